"""Connections to PostgreSQL, bounded in time, with its errors sorted into ours."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final, Self

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from oncepaid.domain.errors import DatabaseRefused, DatabaseUnavailable

if TYPE_CHECKING:
    # Generic for type checkers only.
    Connection = PoolConnectionProxy[asyncpg.Record]
else:
    Connection = PoolConnectionProxy

CONNECT_TIMEOUT_S: Final = 5.0
ACQUIRE_TIMEOUT_S: Final = 5.0
COMMAND_TIMEOUT_S: Final = 30.0
"""The longest statement is the storing of one range of payments: well under a second."""
CLOSE_TIMEOUT_S: Final = 3.0

# SQLSTATE classes that say "not now": connection (08), rollback by conflict (40), resources
# (53), operator intervention (57), system error (58). 25006 is a read-only server: a standby
# that has not been promoted yet, 0A000 as `InvalidCachedStatementError` a statement that was
# prepared before a migration of somebody else.
# 55P03 is a lock that a migration did not get in time.
_PASSING: Final = ("08", "40", "53", "57", "58", "25006", "55P03")
# Wrong password (28), no such database (3D), not allowed (42501).
_REFUSED: Final = ("28", "3D", "42501")


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
    except (asyncpg.InterfaceError, OSError, TimeoutError) as exc:
        raise DatabaseUnavailable(f"the database is away: {type(exc).__name__}: {exc}") from exc


async def _prepare(connection: asyncpg.Connection) -> None:
    for name in ("json", "jsonb"):
        await connection.set_type_codec(
            name,
            schema="pg_catalog",
            encoder=json.dumps,
            decoder=json.loads,
        )


# What its own reconnecting runs into, our stages meet too, and tell in one line.
logging.getLogger("asyncpg").setLevel(logging.CRITICAL)


class Database:
    """A pool of connections. Safe to share among all stages of a process."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    @classmethod
    async def connect(cls, url: str, *, size: int = 10) -> Self:
        """Open the pool. Raises `DatabaseUnavailable` while the server cannot be reached."""
        with translated_errors():
            pool = await asyncpg.create_pool(
                url,
                # Warm ones for the stages of one process: opening a connection takes 10 ms.
                min_size=min(4, size),
                max_size=size,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=COMMAND_TIMEOUT_S,
                init=_prepare,
                server_settings={"application_name": "oncepaid", "timezone": "UTC"},
            )
        return cls(pool)

    async def close(self) -> None:
        """Close all connections, by force when the server does not answer."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._pool.close()
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._pool.terminate()

    @property
    def in_use(self) -> int:
        """How many connections are busy."""
        return self._pool.get_size() - self._pool.get_idle_size()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Borrow a connection; each statement is a transaction of its own."""
        with translated_errors():
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Borrow a connection inside one transaction."""
        async with self.connection() as connection, connection.transaction():
            yield connection
