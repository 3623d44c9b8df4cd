"""Ways to a server that can be cut, reset, slowed down, or swallow everything."""

import asyncio
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from devchain.processes import LOOPBACK

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Tap = Callable[[bytes], bytes]
"""Sees a chunk that passes, and returns what of it is passed on."""

# Linger for no time: the kernel closes with RST instead of FIN.
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class Proxy(ABC):
    """Passes bytes on between clients and one server; each fault stays until `restore`."""

    def __init__(self) -> None:
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._delay_s = 0.0
        self._is_refusing = False
        self._refused = 0
        self._news = asyncio.Condition()

    def drop(self) -> None:
        """Abort all connections, without a goodbye. New ones are taken at once."""
        for writer in self._writers:
            writer.transport.abort()

    def refuse(self) -> None:
        """Drop all connections and take no new ones."""
        self._is_refusing = True
        self._refused = 0
        self.drop()

    def reset(self) -> None:
        """Drop all connections with RST, which a Unix socket does not know. New ones are taken."""
        for writer in self._writers:
            connection: socket.socket = writer.get_extra_info("socket")
            if connection.family == socket.AF_INET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.drop()

    def black_hole(self) -> None:
        """Let nothing through, not even a goodbye; connections stay open, new ones are taken.

        What was swallowed arrives after `restore`, as what TCP sends again does.
        """
        self._flows.clear()

    def slow(self, delay_s: float) -> None:
        """Hold each chunk back for so long."""
        self._delay_s = delay_s

    def restore(self) -> None:
        """End all faults."""
        self._is_refusing = False
        self._delay_s = 0.0
        self._flows.set()

    async def refused(self, count: int) -> None:
        """Return once so many connections were refused since the last `refuse`."""
        async with self._news:
            await self._news.wait_for(lambda: self._refused >= count)

    async def serve_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Pass one connection on until either side ends it."""
        if self._is_refusing:
            writer.transport.abort()
            async with self._news:
                self._refused += 1
                self._news.notify_all()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = {writer}
        self._writers |= writers
        try:
            # Python 3.11 complains of one who serves and is cancelled, as `end` does.
            with suppress(ConnectionError, FileNotFoundError, asyncio.CancelledError):
                await self._flows.wait()
                from_server, to_server = await self._connect()
                writers.add(to_server)
                self._writers |= writers
                await self._pass_on((reader, writer), (from_server, to_server))
        finally:
            self._writers -= writers
            self._tasks.discard(task)
            for one in writers:
                one.transport.abort()

    async def end(self) -> None:
        """Drop all connections and wait for who serves them."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @abstractmethod
    async def _connect(self) -> Streams:
        """Open a connection to the server."""

    async def _pass_on(self, client: Streams, server: Streams) -> None:
        await self._pump_both(client, server, lambda data: data, lambda data: data)

    async def _pump_both(
        self, client: Streams, server: Streams, from_client: Tap, from_server: Tap
    ) -> None:
        await asyncio.gather(
            self._pump(client[0], server[1], from_client),
            self._pump(server[0], client[1], from_server),
        )

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tap: Tap
    ) -> None:
        """Pass bytes on until one side is gone."""
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._flows.wait()
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                writer.write(tap(data))
                await writer.drain()
        await self._flows.wait()
        writer.close()


class TcpProxy(Proxy):
    """Before a TCP server on loopback. `cut` is `drop`: new connections are taken at once."""

    def __init__(self, server_port: int) -> None:
        super().__init__()
        self.port = 0
        self._server_port = server_port

    def cut(self) -> None:
        """Abort all connections, without a goodbye."""
        self.drop()

    async def _connect(self) -> Streams:
        return await asyncio.open_connection(LOOPBACK, self._server_port)


@asynccontextmanager
async def start_tcp_proxy(server_port: int, *, port: int = 0) -> AsyncIterator[TcpProxy]:
    """Listen on a loopback port (0: any free one) before `server_port` until the block ends."""
    proxy = TcpProxy(server_port)
    server = await asyncio.start_server(proxy.serve_client, LOOPBACK, port)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.end()
        await server.wait_closed()
