"""`oncepaid run` that dies at a chosen point, or writes down every point that it passes.

The product knows nothing of this: the awaits that matter are wrapped from outside. A point is named
after what it stands before or after:

- `STORE.METHOD`: each public coroutine of the stores in `db`, found by introspection; `migrate`;
- `STORE.METHOD:VERB-TABLE-HASH`: each statement in it; `STORE.METHOD:commit`: its COMMIT;
- `claude`: the call of Claude; `node.METHOD`: a request to the node that asks for METHOD.

Started with the path of a unix socket it imports everything once and then forks a daemon for each
connection: in comes one line of JSON (`Request`) with a pipe for the output beside it, out go the
lines `pid N` and `exit STATUS`.
"""

import ctypes
import functools
import gc
import importlib
import inspect
import json
import os
import pkgutil
import random
import re
import select
import signal
import socket
import sys
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NoReturn

import anthropic.resources.messages
import anthropic.types
import asyncpg
import uvloop

import db
import db.migrate
import oncepaid.cli
import oncepaid.daemon
import oncepaid.loops
import processors.finisher
from listener.exchange import Exchange
from listener.second_look import SecondLook
from oncepaid.domain.retrying import Backoff
from processors.claude import Claude

__all__ = ["anthropic", "uvloop"]  # imported before the fork, so that no child has to

READY: Final = b"zygote.ready"
KILLED: Final = 137
NOT_STORES: Final = {
    "Database": "the pool: its statements are those of the stores that use it",
    "EmbeddedPostgres": "starts a server, writes no row",
    "Reports": "reads for commands and gauges, writes no row",
    "AuditStore": "reads what the audit compares, writes no row",
    "OperatorStore": "commands of an operator, each one transaction, not of the daemon",
    "BindingStore": "one command of an operator, one transaction, not of the daemon",
    "OrderStore": "one statement of an operator's command, not of the daemon",
    "DeskStore": "an operator's commands, a transaction each; RefundStore.record is the daemon's",
    "DeskReader": "reads for commands, writes no row",
}
"""Classes of `db` with public coroutines that hold no crash points, and why."""
_PR_SET_PDEATHSIG: Final = 1
_METHODS: Final = ("execute", "executemany", "fetch", "fetchrow", "fetchval")
_TABLE = re.compile(r"\b(?:INSERT INTO|UPDATE|DELETE FROM|FROM|TABLE)\s+([a-z_]+)")
# A crash there is one before or after a neighbour. The pool's own cleaning and asyncpg's own
# questions come with a connection, at nobody's place in particular.
_NO_POINT = re.compile(r"\s*(BEGIN|SAVEPOINT|RELEASE|ROLLBACK|START|SELECT pg_advisory_unlock_all)")
_ASYNCPG_ASKS = re.compile(r"pg_catalog|pg_type")

_store_method: ContextVar[str | None] = ContextVar("_store_method", default=None)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to run, and where it dies: `at` a point's `hit`-th time, or nowhere.

    `record` is a file that gets a line for each point that is passed.
    """

    arguments: Sequence[str]
    at: str | None = None
    hit: int = 1
    by_signal: bool = False
    record: str | None = None

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


class Points:
    """Counts the points that are passed, and ends the process at the chosen one."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._hits: Counter[str] = Counter()
        self._record = (
            os.open(request.record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            if request.record
            else None
        )

    def passed(self, point: str) -> None:
        self._hits[point] += 1
        if self._record is not None:
            os.write(self._record, f"{point}\n".encode())
        if point == self._request.at and self._hits[point] == self._request.hit:
            self._die()

    async def around(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        self.passed(f"{name}:before")
        result = await call()
        self.passed(f"{name}:after")
        return result

    def _die(self) -> NoReturn:
        if self._request.by_signal:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(KILLED)


def store_methods() -> Iterator[tuple[type, str]]:
    """Yield each public coroutine of each store of `db`, with its class."""
    for module_info in pkgutil.iter_modules(db.__path__, "db."):
        module = importlib.import_module(module_info.name)
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ != module.__name__ or cls.__name__.startswith("_"):
                continue
            if cls.__name__ in NOT_STORES:
                continue
            for name, _ in inspect.getmembers(cls, inspect.iscoroutinefunction):
                if not name.startswith("_"):
                    yield cls, name


def name_of_statement(query: str) -> str | None:
    """Return a short name of a statement, the same in every run; None for one without a point."""
    if _NO_POINT.match(query) or _ASYNCPG_ASKS.search(query):
        return None
    text = " ".join(query.split())
    if text.startswith("COMMIT"):
        return "commit"
    tables = _TABLE.findall(text) or ["none"]
    return f"{text.split()[0].lower()}-{tables[-1]}-{zlib.crc32(text.encode()) & 0xFFFF:04x}"


def wrap_everything(points: Points) -> None:
    """Put points around all awaits that matter, in this process."""
    for cls, name in store_methods():
        _wrap_method(points, cls, name)
    _wrap_migrate(points)
    for name in _METHODS:
        _wrap_statement(points, name)
    generate, post = Claude.generate, Exchange.post

    async def generate_around(self: Claude, *args: Any, **kwargs: Any) -> Any:
        return await points.around("claude", lambda: generate(self, *args, **kwargs))

    async def post_around(self: Exchange, url: str, calls: Sequence[Any]) -> Any:
        methods = dict.fromkeys(call.method for call in calls)
        for method in methods:
            points.passed(f"node.{method}:before")
        answers = await post(self, url, calls)
        for method in methods:
            points.passed(f"node.{method}:after")
        return answers

    setattr(Claude, "generate", generate_around)  # noqa: B010
    setattr(Exchange, "post", post_around)  # noqa: B010


def _inside(points: Points, name: str, original: Callable[..., Awaitable[Any]]) -> Any:
    @functools.wraps(original)
    async def around(*args: Any, **kwargs: Any) -> Any:
        token = _store_method.set(name)
        try:
            return await points.around(name, lambda: original(*args, **kwargs))
        finally:
            _store_method.reset(token)

    return around


def _wrap_method(points: Points, cls: type, name: str) -> None:
    setattr(cls, name, _inside(points, f"{cls.__name__}.{name}", getattr(cls, name)))


def _wrap_migrate(points: Points) -> None:
    original = db.migrate.migrate
    wrapped = _inside(points, "migrate", original)
    for module in list(sys.modules.values()):
        if getattr(module, "migrate", None) is original:
            setattr(module, "migrate", wrapped)  # noqa: B010


def _wrap_statement(points: Points, name: str) -> None:
    original = getattr(asyncpg.Connection, name)

    @functools.wraps(original)
    async def around(self: Any, query: str, *args: Any, **kwargs: Any) -> Any:
        method, statement = _store_method.get(), name_of_statement(query)
        if method is None or statement is None:
            return await original(self, query, *args, **kwargs)
        return await points.around(
            f"{method}:{statement}", lambda: original(self, query, *args, **kwargs)
        )

    setattr(asyncpg.Connection, name, around)


def quicken() -> None:
    """Shorten every pause, so that a run needs seconds. No decision depends on one."""
    for name in ("WORK_POLL_S", "SETTLE_POLL_S", "SECOND_LOOK_S", "STANDBY_S"):
        setattr(oncepaid.daemon, name, 0.2)
    for name in ("SWEEP_S", "HEARTBEAT_S", "MARK_S", "REFUNDS_S"):
        setattr(oncepaid.daemon, name, 0.5)
    setattr(oncepaid.loops, "PERMANENT_RETRY_S", 0.1)  # noqa: B010
    setattr(oncepaid.loops, "LOOP_BACKOFF", Backoff(base_s=0.05, cap_s=0.2))  # noqa: B010
    backoff = Backoff(base_s=0.05, cap_s=0.2)
    setattr(processors.finisher, "GENERATION_BACKOFF", backoff)  # noqa: B010
    defaults = SecondLook.__init__.__kwdefaults__
    assert defaults is not None
    assert "after" in defaults
    defaults["after"] = timedelta(seconds=0.3)


def run(request: Request) -> NoReturn:
    """Be the daemon, as the command line starts it."""
    random.seed()
    quicken()
    if request.at or request.record:
        wrap_everything(Points(request))
    sys.argv = ["oncepaid", *request.arguments]
    status = 0
    try:
        oncepaid.cli.main()
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    sys.stdout.flush()
    os._exit(status)


def serve(path: Path) -> NoReturn:
    """Fork a daemon for each connection, until killed."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    ended, wakes = socket.socketpair()
    ended.setblocking(False)
    wakes.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # As `python -m oncepaid` does first; a child has it from its first moment.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    gc.freeze()
    sys.stdout.buffer.write(READY + b"\n")
    sys.stdout.flush()
    children: dict[int, socket.socket] = {}
    while True:
        readable, _, _ = select.select([listener, ended], [], [])
        if ended in readable:
            ended.recv(4096)
            _reap(children)
        if listener in readable:
            connection, _ = listener.accept()
            line, (output,), _, _ = socket.recv_fds(connection, 1 << 16, 1)
            pid = os.fork()
            if pid == 0:
                _become(line, output)
            os.close(output)
            children[pid] = connection
            connection.sendall(b"pid %d\n" % pid)


def _reap(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        # Who asked for it may be gone.
        with children.pop(pid) as connection, suppress(BrokenPipeError):
            connection.sendall(b"exit %d\n" % os.waitstatus_to_exitcode(status))


def _become(line: bytes, output: int) -> NoReturn:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, 1024)
    try:
        run(Request(**json.loads(line)))
    finally:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
