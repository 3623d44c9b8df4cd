"""A way to a TCP server on loopback that can be cut."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from devchain.processes import LOOPBACK


class TcpProxy:
    """Passes bytes on; `cut` drops what is open, and new connections are taken at once."""

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self._server_port = server_port
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Abort all connections, without a goodbye."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Pass one connection on until either side ends it."""
        from_server, to_server = await asyncio.open_connection(LOOPBACK, self._server_port)
        self._writers |= {writer, to_server}
        try:
            await asyncio.gather(pump(reader, to_server), pump(from_server, writer))
        finally:
            for one in (writer, to_server):
                self._writers.discard(one)
                one.transport.abort()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until one side is gone."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


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
        proxy.cut()
        await server.wait_closed()
