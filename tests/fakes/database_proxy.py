"""A way to a PostgreSQL server over its Unix socket: cut, black, slow, or losing one answer."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

from tests.fakes.postgres_wire import Messages, Statements, ends_answer
from tests.fakes.tcp_proxy import Proxy, Streams

SOCKET_NAME = ".s.PGSQL.5432"

Wanted = Callable[[Sequence[str]], bool]
"""Tells by the statements of a connection's transaction, the newest last, if that one is meant."""


class DatabaseProxy(Proxy):
    """Before a server's Unix socket. `cut` is `refuse`: nobody comes through until `restore`."""

    def __init__(self, server_socket: Path, url: str) -> None:
        super().__init__()
        self.url = url
        self.lost_answers = 0
        """Of statements that the server has executed."""
        self._server_socket = server_socket
        self._wanted: Wanted | None = None

    def cut(self) -> None:
        """Drop all connections and take no new ones."""
        self.refuse()

    def cut_after_commit(self, text: str = "") -> None:
        """Let the next COMMIT through, swallow its answer, and drop that one connection.

        The next one of a transaction with a statement whose SQL contains `text`.
        """

        def is_wanted(statements: Sequence[str]) -> bool:
            return _command(statements[-1]) == "COMMIT" and any(text in one for one in statements)

        self._wanted = is_wanted

    def cut_answer_of(self, text: str) -> None:
        """Do the same with the next statement whose SQL contains `text`."""
        self._wanted = lambda statements: text in statements[-1]

    async def _connect(self) -> Streams:
        return await asyncio.open_unix_connection(self._server_socket)

    async def _pass_on(self, client: Streams, server: Streams) -> None:
        connection = _Connection(self)
        await self._pump_both(client, server, connection.from_client, connection.from_server)

    def takes(self, statements: Sequence[str]) -> bool:
        """Tell, once, that the answer of the newest of these statements is to be lost."""
        if self._wanted is None or not self._wanted(statements):
            return False
        self._wanted = None
        return True


class _Connection:
    """What one connection has been told, and whether its answer is still passed on."""

    def __init__(self, proxy: DatabaseProxy) -> None:
        self._proxy = proxy
        self._statements = Statements()
        self._statements_of_transaction: list[str] = []
        self._is_in_transaction = False
        self._swallowed: Messages | None = None

    def from_client(self, data: bytes) -> bytes:
        for sql in self._statements.feed(data):
            if not self._is_in_transaction:
                self._statements_of_transaction = []
            self._statements_of_transaction.append(sql)
            if _command(sql) == "BEGIN":
                self._is_in_transaction = True
            elif _command(sql) in {"COMMIT", "ROLLBACK"}:
                self._is_in_transaction = False
            if self._proxy.takes(self._statements_of_transaction):
                # A client that sends a statement has heard all answers of before.
                self._swallowed = Messages(begins_with_startup=False)
        return data

    def from_server(self, data: bytes) -> bytes:
        if self._swallowed is None:
            return data
        if ends_answer(self._swallowed, data):
            self._proxy.lost_answers += 1
            raise ConnectionAbortedError("the answer is lost")
        return b""


def _command(sql: str) -> str:
    return sql.strip(" ;").upper()


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
            await proxy.end()
            await server.wait_closed()
