"""Child processes of the dev tools: in their own group, ready before use, never left behind.

On Linux the kernel kills a child when the thread that started it dies, however it dies.
"""

import asyncio
import ctypes
import os
import re
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

LOOPBACK = "127.0.0.1"
_NODE_MODULES = Path(__file__).parent / "node_modules"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_TAIL_LINES = 40
_LINE_LIMIT_BYTES = 1 << 20


class DevToolError(RuntimeError):
    """A dev tool is missing, did not become ready, or stopped by itself."""


def node_file(relative: str) -> Path:
    """Return a file below node_modules; raises DevToolError if it was never installed."""
    path = _NODE_MODULES / relative
    if not path.exists():
        raise DevToolError(f"{relative} is missing from devchain/node_modules: run `make install`")
    return path


def free_port() -> int:
    """Return a loopback TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, kw_only=True)
class Child:
    """A running child; `ready` is the match of its line of readiness."""

    name: str
    process: asyncio.subprocess.Process
    ready: re.Match[str]
    stop_signal: signal.Signals

    def send(self, number: signal.Signals) -> None:
        """Signal the child's whole group (SIGSTOP and SIGCONT make it hang and go on)."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    async def stop(self) -> None:
        """Stop the child and wait until it is gone; a second call does nothing."""
        await _end(self.process, self.stop_signal)


@asynccontextmanager
async def start_child(
    argv: Sequence[str],
    *,
    ready: re.Pattern[str],
    stop_signal: signal.Signals = signal.SIGKILL,
    timeout_s: float = 20.0,
) -> AsyncIterator[Child]:
    """Run `argv` until the block ends, entering it once a line of output matches `ready`.

    Raises DevToolError, with the last lines of output, if it exits or is silent for `timeout_s`.
    """
    name = Path(argv[0] if argv[0] != "node" else argv[1]).name
    process = await _spawn(argv)
    assert process.stdout is not None
    drain: asyncio.Task[None] | None = None
    try:
        match = await _wait_ready(name, process.stdout, ready, timeout_s)
        # An unread pipe would block the child after 64 KiB of output.
        drain = asyncio.create_task(_drain(process.stdout), name=f"devchain.drain.{name}")
        yield Child(name=name, process=process, ready=match, stop_signal=stop_signal)
    finally:
        await asyncio.shield(_end(process, stop_signal))
        if drain is not None:
            await drain


async def _spawn(argv: Sequence[str]) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LINE_LIMIT_BYTES,
            start_new_session=True,
            preexec_fn=partial(_die_with_parent, os.getpid()),
        )
    except FileNotFoundError as exc:
        raise DevToolError(f"{argv[0]} is not installed") from exc


async def _wait_ready(
    name: str, stdout: asyncio.StreamReader, ready: re.Pattern[str], timeout_s: float
) -> re.Match[str]:
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    try:
        async with asyncio.timeout(timeout_s):
            async for line in stdout:
                tail.append(line.decode(errors="replace"))
                if match := ready.search(tail[-1]):
                    return match
    except TimeoutError:
        reason = f"was not ready within {timeout_s} s"
    else:
        reason = "exited before it was ready"
    raise DevToolError(f"{name} {reason}; its last output:\n{''.join(tail)}")


async def _drain(stdout: asyncio.StreamReader) -> None:
    while await stdout.read(1 << 16):
        pass


async def _end(process: asyncio.subprocess.Process, first: signal.Signals) -> None:
    for number in (signal.SIGCONT, first):
        with suppress(ProcessLookupError):
            if process.returncode is None:
                os.killpg(process.pid, number)
    try:
        async with asyncio.timeout(5.0):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _die_with_parent(parent: int) -> None:
    """Run between fork and exec, where only system calls are safe."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
