"""Connections to PostgreSQL, bounded in time, with its errors sorted into ours.

A server may also freeze: it keeps its connections open and answers nothing. Then a statement fails
after `COMMAND_TIMEOUT_S`, and a cancelled task ends within a second.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Self

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from asyncpg.transaction import Transaction

from oncepaid.domain.errors import DatabaseRefused, DatabaseUnavailable

if TYPE_CHECKING:
    # Generic for type checkers only.
    Connection = PoolConnectionProxy[asyncpg.Record]
    _BaseConnection = asyncpg.Connection[asyncpg.Record]
else:
    Connection = PoolConnectionProxy
    _BaseConnection = asyncpg.Connection

CONNECT_TIMEOUT_S: Final = 5.0
ACQUIRE_TIMEOUT_S: Final = 5.0
COMMAND_TIMEOUT_S: Final = 10.0
"""The longest statement is the storing of one range of payments: well under a second."""
RELEASE_TIMEOUT_S: Final = 2.0
BREAK_OFF_TIMEOUT_S: Final = 0.5
"""For asking the server to drop a statement that nobody waits for any more."""
CLOSE_TIMEOUT_S: Final = 3.0

# In the server's own time, so that a process that hangs, or whose machine is gone, does not keep
# its locks: a transaction of ours never waits for anything but the database.
SERVER_SETTINGS: Final = {
    "application_name": "oncepaid",
    "timezone": "UTC",
    "idle_in_transaction_session_timeout": "5s",
}

# SQLSTATE classes that say "not now": connection (08), rollback by conflict (40), resources
# (53), operator intervention (57), system error (58). 25006 is a read-only server: a standby
# that has not been promoted yet, 0A000 as `InvalidCachedStatementError` a statement that was
# prepared before a migration of somebody else.
# 55P03 is a lock that a migration did not get in time, 25P03 a transaction that we let idle.
_PASSING: Final = ("08", "40", "53", "57", "58", "25006", "25P03", "55P03")
# Constraints (23), data (22) and RAISE in a trigger (P0): a host's word about one row of its own.
HOST_REFUSES: Final = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    asyncpg.PLPGSQLError,
)

# Wrong password (28), no such database (3D), not allowed (42501).
_REFUSED: Final = ("28", "3D", "42501")
# What the server was told last has no answer, and may never get one.
_INTERRUPTIONS: Final = (TimeoutError, asyncio.CancelledError, GeneratorExit)
# `InternalClientError` too: where the server's last word (a restart, a limit of its) comes between
# two statements, asyncpg 0.32 trips over it, and closes the connection.
_LOST_CONNECTION: Final = (
    TimeoutError,
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
PARTING_ERRORS: Final = (asyncpg.PostgresError, *_LOST_CONNECTION)
"""What a connection may raise when it is given back or closed."""


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what asyncpg raises for a database that is away into `DatabaseUnavailable`."""
    try:
        yield
    except asyncpg.PostgresError as exc:
        is_outdated = isinstance(exc, asyncpg.InvalidCachedStatementError)
        if is_outdated or (exc.sqlstate or "").startswith(_PASSING):
            raise DatabaseUnavailable(f"{type(exc).__name__}: {exc}") from exc
        if (exc.sqlstate or "").startswith(_REFUSED):
            raise DatabaseRefused(f"the database refuses us: {exc}") from exc
        raise
    except _LOST_CONNECTION as exc:
        raise DatabaseUnavailable(f"the database is away: {type(exc).__name__}: {exc}") from exc


class _Transaction(Transaction):
    """Says nothing more to a server that did not answer; `Database.connection` breaks off."""

    async def __aexit__(self, extype: object, ex: object, tb: object) -> None:
        if not isinstance(ex, _INTERRUPTIONS):
            await super().__aexit__(extype, ex, tb)


class _Connection(_BaseConnection):
    def transaction(
        self, *, isolation: Any = None, readonly: bool = False, deferrable: bool = False
    ) -> Transaction:
        return _Transaction(self, isolation, readonly, deferrable)


async def open_connection(
    url: str, *, command_timeout_s: float | None = None, **options: Any
) -> asyncpg.Connection:
    """Open a connection that has our settings. Raises what asyncpg raises.

    `options` are what `asyncpg.connect` takes on top, for the pool.
    """
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        connection: asyncpg.Connection = await asyncpg.connect(
            url,
            **options,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=command_timeout_s or COMMAND_TIMEOUT_S,
            # Whatever it drops from this cache, asyncpg closes on the server without any limit of
            # time. We have fewer statements than this, and they never get old.
            statement_cache_size=1000,
            max_cached_statement_lifetime=0,
            server_settings=SERVER_SETTINGS,
        )
        try:
            for name in ("json", "jsonb"):
                await connection.set_type_codec(
                    name, schema="pg_catalog", encoder=json.dumps, decoder=json.loads
                )
        except BaseException:
            connection.terminate()
            raise
    return connection


async def break_off(connection: asyncpg.Connection | Connection) -> None:
    """Close a connection in the middle of a statement, which the server is asked to drop."""
    # Where that fails it is terminated, and whoever knows why we part has more to say.
    with suppress(*PARTING_ERRORS):
        await connection.close(timeout=BREAK_OFF_TIMEOUT_S)


# What its own reconnecting runs into, our stages meet too, and tell in one line.
logging.getLogger("asyncpg").setLevel(logging.CRITICAL)


class Database:
    """A pool of connections. Safe to share among all stages of a process."""

    def __init__(self, pool: asyncpg.Pool, url: str) -> None:
        self._pool = pool
        self._url = url

    @classmethod
    async def connect(cls, url: str, *, size: int = 10) -> Self:
        """Open the pool. Raises `DatabaseUnavailable` while the server cannot be reached."""

        async def connect(*_: Any, **options: Any) -> asyncpg.Connection:
            return await open_connection(url, **options)

        with translated_errors():
            pool = await asyncpg.create_pool(
                url,
                # Warm ones for the stages of one process: opening a connection takes 10 ms.
                min_size=min(4, size),
                max_size=size,
                # Not `init`: where that fails, asyncpg takes up to 10 s to say goodbye.
                connect=connect,
                connection_class=_Connection,
            )
        return cls(pool, url)

    @property
    def url(self) -> str:
        """Where the server is, for who needs a connection of its own. Holds the password."""
        return self._url

    async def close(self) -> None:
        """Close all connections, by force when the server does not answer."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._pool.close()
        except PARTING_ERRORS:
            self._pool.terminate()

    @property
    def in_use(self) -> int:
        """How many connections are busy."""
        return self._pool.get_size() - self._pool.get_idle_size()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Borrow a connection; each statement is a transaction of its own."""
        with translated_errors():
            connection = await self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
            try:
                yield connection
            except (*_INTERRUPTIONS, asyncpg.ReadOnlySQLTransactionError):
                # A session that was opened while the server took no writes may stay so for ever.
                await break_off(connection)
                raise
            finally:
                await self._give_back(connection)

    async def _give_back(self, connection: Connection) -> None:
        """Never raises for the server: what was done with the connection has been done."""
        with suppress(*PARTING_ERRORS):
            await self._pool.release(connection, timeout=RELEASE_TIMEOUT_S)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Borrow a connection inside one transaction."""
        async with self.connection() as connection, connection.transaction():
            yield connection
