"""The demo's folder, and its daemon as a process of its own that leaves nothing behind."""

import asyncio
import ctypes
import fcntl
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from devchain.processes import LOOPBACK
from devchain.stack import Stack

T = TypeVar("T")

KEPT_FOLDER = Path(".demo")
CONFIG, LOG, POSTGRES = "oncepaid.toml", "daemon.log", "postgres"
_LOCK = "demo.lock"
_FOREIGN = ("ONCEPAID", "ANTHROPIC_", "PG", "CREDENTIALS_DIRECTORY", "NOTIFY_", "WATCHDOG_")
_API_KEY = "ANTHROPIC_API_KEY"
_POLL_S = 0.03
_READY_S = 60.0
# The daemon bounds its own stop at 12 s.
_STOP_S = 15.0
_POSTGRES_STOP_S = 5.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class DemoFailed(RuntimeError):
    """The demo cannot go on; the text is for whoever started it."""


def take_api_key(environment: MutableMapping[str, str]) -> str | None:
    """Remove what would lead the demo elsewhere, and return the API key that was there, if any.

    Settings, database and service manager of the machine are none of the demo's business.
    """
    key = environment.get(_API_KEY)
    for name in [name for name in environment if name.startswith(_FOREIGN)]:
        del environment[name]
    # A proxy of the machine does not know our loopback.
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = ",".join(filter(None, [environment.get(name), LOOPBACK]))
    return key or None


@contextmanager
def demo_folder(*, keep: bool) -> Iterator[Path]:
    """Yield an empty folder: a temporary one, removed at the end, or `.demo`, which stays.

    A `.demo` of an earlier demo is replaced. Raises DemoFailed if it is in use or not a demo's.
    """
    if not keep:
        with tempfile.TemporaryDirectory(prefix="oncepaid-demo-") as temporary:
            yield Path(temporary).resolve()
        return
    folder = KEPT_FOLDER.resolve()
    if folder.exists() and not (folder / _LOCK).is_file():
        raise DemoFailed(f"{folder} exists and is not a demo's: move it away")
    folder.mkdir(exist_ok=True)
    with (folder / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DemoFailed(f"a demo is already running in {folder}") from None
        for name in (CONFIG, LOG):
            (folder / name).unlink(missing_ok=True)
        if (folder / POSTGRES).exists():
            shutil.rmtree(folder / POSTGRES)
        yield folder


def write_config(folder: Path, stack: Stack) -> Path:
    """Write the daemon's settings; a real API key never gets into the file."""
    sections: dict[str, dict[str, object]] = {
        "chain": {
            "recipients": [stack.merchant],
            "http_urls": [stack.anvil.http_url],
            "ws_urls": [stack.anvil.ws_url],
            "start_block": 0,
        },
        "database": {"url": f"embedded:{folder / POSTGRES}"},
        "http": {"listen": f"{LOOPBACK}:0"},
    }
    if stack.claude is not None:
        sections["claude"] = {"api_key": "none-needed", "base_url": stack.claude.base_url}
    lines = ["# Written by `oncepaid demo`; all else is as config.example.toml says."]
    for section, keys in sections.items():
        # What JSON writes of strings, numbers and lists is TOML too.
        lines += ["", f"[{section}]", *(f"{key} = {json.dumps(keys[key])}" for key in keys)]
    path = folder / CONFIG
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass(frozen=True, kw_only=True)
class DemoDaemon:
    """A running `oncepaid run`; `ready_after_s` is how long it took to become ready."""

    process: asyncio.subprocess.Process
    http_url: str
    database_url: str
    ready_after_s: float

    async def until(
        self, what: str, probe: Callable[[], Awaitable[T | None]], *, timeout_s: float
    ) -> T:
        """Return the first thing that `probe` finds; `what` names it for people.

        Raises DemoFailed if that is not within `timeout_s`, or the daemon ends before.
        """
        return await _until(self.process, what, probe, timeout_s)


async def _until(
    process: asyncio.subprocess.Process,
    what: str,
    probe: Callable[[], Awaitable[T | None]],
    timeout_s: float,
) -> T:
    deadline = time.monotonic() + timeout_s
    while (found := await probe()) is None:
        if process.returncode is not None:
            raise _ended_by_itself(process)
        if time.monotonic() > deadline:
            raise DemoFailed(f"waited {timeout_s:g} s in vain: {what}")
        await asyncio.sleep(_POLL_S)
    return found


def _ended_by_itself(process: asyncio.subprocess.Process) -> DemoFailed:
    return DemoFailed(f"the daemon ended by itself with exit code {process.returncode}")


@asynccontextmanager
async def start_daemon(config: Path, *, api_key: str | None) -> AsyncIterator[DemoDaemon]:
    """Run the daemon until the block ends, entering it once it is ready.

    Its log goes to a file beside `config`. Whatever happens to it, its PostgreSQL is stopped too.
    Raises DemoFailed if it does not become ready, or does not stop in order.
    """
    started_s = time.monotonic()
    log = config.with_name(LOG)
    process = await _spawn(config, log, api_key)
    try:
        await _until(process, "the daemon is ready", lambda: _logged(log, "daemon.ready"), _READY_S)
        starting = await _until(process, "its port", lambda: _logged(log, "daemon.starting"), 1.0)
        yield DemoDaemon(
            process=process,
            http_url=f"http://{LOOPBACK}:{starting['http_port']}",
            database_url=_database_url(config.with_name(POSTGRES)),
            ready_after_s=time.monotonic() - started_s,
        )
        code = await _stop(process)
        if code != 0:
            raise DemoFailed(f"the daemon was asked to stop and ended with exit code {code}")
    except DemoFailed:
        raise
    except Exception as exc:
        # Whatever fails because the daemon is dead is told as that.
        if process.returncode is not None:
            raise _ended_by_itself(process) from exc
        raise
    finally:
        await _stop(process)
        await _stop_postgres(config.with_name(POSTGRES))


async def _spawn(config: Path, log: Path, api_key: str | None) -> asyncio.subprocess.Process:
    key = {} if api_key is None else {"ONCEPAID__CLAUDE__API_KEY": api_key}
    with log.open("wb") as out:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "oncepaid", "run", "--config", str(config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **key},
            # Ctrl-C is for the demo, which then stops the daemon in order.
            start_new_session=True,
            preexec_fn=_stop_with_parent,
        )


def _stop_with_parent() -> None:
    """Have the kernel stop the daemon if the demo is killed; runs between fork and exec."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


async def _logged(log: Path, name: str) -> Mapping[str, Any] | None:
    return await asyncio.to_thread(_event, log, name)


def _event(log: Path, name: str) -> Mapping[str, Any] | None:
    """Return the first event of that name in the log, or None."""
    for line in log.read_text(errors="replace").splitlines():
        with suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("event") == name:
                return event
    return None


async def _stop(process: asyncio.subprocess.Process) -> int:
    """Stop the daemon, by force if it must be; returns its exit code."""
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_S):
            return await process.wait()
    except TimeoutError:
        process.kill()
        return await process.wait()


def _database_url(data: Path) -> str:
    """Return the address of the daemon's server, which stays the daemon's to stop.

    The lines of postmaster.pid: PostgreSQL's documentation, "Database File Layout".
    """
    _, _, _, port, socket_folder, *_ = (data / "postmaster.pid").read_text().splitlines()
    return f"postgresql://postgres@/postgres?host={quote(socket_folder)}&port={port}"


async def _stop_postgres(data: Path) -> None:
    """Stop a server that outlived its daemon, which stops it unless it was killed."""
    mark = data / "postmaster.pid"
    for number in (signal.SIGINT, signal.SIGQUIT):
        deadline = time.monotonic() + _POSTGRES_STOP_S
        with suppress(OSError, ValueError, IndexError):
            os.kill(int(mark.read_text().split()[0]), number)
            while mark.exists() and time.monotonic() < deadline:
                await asyncio.sleep(_POLL_S)
