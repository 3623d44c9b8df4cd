"""Daemons forked off one process that has imported everything: none of them has to."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from devchain.daemon import Daemon, follow
from tests.faults.crashing_daemon import READY, Request

_LINE_LIMIT_BYTES = 1 << 22


class Forked:
    """A forked daemon, with what `asyncio.subprocess.Process` offers of one."""

    def __init__(self, pid: int, stdout: asyncio.StreamReader, told: asyncio.StreamReader) -> None:
        self.pid = pid
        self.stdout = stdout
        self._returncode: int | None = None
        self._end = asyncio.create_task(self._await_end(told), name=f"forked.{pid}")

    @property
    def returncode(self) -> int | None:
        return self._returncode

    def send_signal(self, signal: int) -> None:
        # Its number is reaped, and may be another's, only after it was told of.
        if self._returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        return await asyncio.shield(self._end)

    async def _await_end(self, told: asyncio.StreamReader) -> int:
        line = await told.readline()
        # Nothing is told where the process that forks was killed, with all of its children.
        self._returncode = int(line.split()[1]) if line else -signal.SIGKILL
        return self._returncode


class Zygote:
    """The process that daemons are forked off."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @asynccontextmanager
    async def daemon(
        self, request: Request, *, config: Path, hear: Callable[[], None] = lambda: None
    ) -> AsyncIterator[Daemon]:
        """Run a daemon until the block ends, then kill it. Waits for nothing."""
        output, write_end = os.pipe()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._path))
        socket.send_fds(connection, [request.line()], [write_end])
        os.close(write_end)
        told, writer = await asyncio.open_unix_connection(sock=connection)
        stdout = asyncio.StreamReader(limit=_LINE_LIMIT_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stdout), os.fdopen(output, "rb")
        )
        pid = int((await told.readline()).split()[1])
        try:
            process = Forked(pid, stdout, told)
            async with follow(Daemon(process=process, config=config, hear=hear)) as daemon:
                yield daemon
        finally:
            transport.close()
            writer.close()
            await writer.wait_closed()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """One for all tests: it costs the 2 s that each daemon saves."""
    with tempfile.TemporaryDirectory(prefix="oncepaid-fork-") as folder:
        path = Path(folder) / "socket"
        argv = [sys.executable, "-m", "tests.faults.crashing_daemon", str(path)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline().strip() == READY
                yield Zygote(path)
            finally:
                process.kill()
