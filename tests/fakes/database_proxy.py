"""A way to a PostgreSQL server over its Unix socket that can be cut and opened again."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

from tests.fakes.tcp_proxy import pump

SOCKET_NAME = ".s.PGSQL.5432"


class DatabaseProxy:
    """Passes bytes on while it is open; refuses and drops connections while it is cut."""

    def __init__(self, server_socket: Path, url: str) -> None:
        self.url = url
        self._refused = 0
        self._news = asyncio.Condition()
        self._server_socket = server_socket
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Drop all connections and take no new ones."""
        self._is_cut = True
        self._refused = 0
        for writer in self._writers:
            writer.transport.abort()

    def restore(self) -> None:
        """Take connections again."""
        self._is_cut = False

    async def refused(self, count: int) -> None:
        """Return once so many connections were refused since the last `cut`."""
        async with self._news:
            await self._news.wait_for(lambda: self._refused >= count)

    async def serve_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Pass one connection on until either side ends it."""
        if self._is_cut:
            writer.transport.abort()
            async with self._news:
                self._refused += 1
                self._news.notify_all()
            return
        from_server, to_server = await asyncio.open_unix_connection(self._server_socket)
        self._writers |= {writer, to_server}
        try:
            await asyncio.gather(pump(reader, to_server), pump(from_server, writer))
        finally:
            for one in (writer, to_server):
                self._writers.discard(one)
                one.transport.abort()


@asynccontextmanager
async def start_database_proxy(url: str) -> AsyncIterator[DatabaseProxy]:
    """Put a proxy before the server of a URL with a Unix socket, until the block ends."""
    parts = urlsplit(url)
    folder = parse_qs(parts.query)["host"][0]
    with tempfile.TemporaryDirectory(prefix="oncepaid-proxy-") as own_folder:
        own_url = urlunsplit(parts._replace(query=f"host={own_folder}"))
        proxy = DatabaseProxy(Path(folder) / SOCKET_NAME, own_url)
        server = await asyncio.start_unix_server(proxy.serve_client, Path(own_folder) / SOCKET_NAME)
        try:
            yield proxy
        finally:
            server.close()
            proxy.cut()
            await server.wait_closed()
