"""A database that is away is an error to try again after, and never one to stay."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Final

import asyncpg
import pytest

from db import pool as pool_module
from db.pool import Connection, Database, translated_errors
from oncepaid.domain.errors import DatabaseUnavailable, Retryable
from tests.fakes.database_proxy import DatabaseProxy, start_database_proxy
from tests.integration.db.support import execute, lock_waits, row

pytestmark = pytest.mark.fault("F3", "F4", "F6")

COMMAND_TIMEOUT_S: Final = 0.1
PROMPTLY_S: Final = 2.0
"""Far below all limits that are not the one under test, and with room for a slow machine."""


@pytest.fixture
async def proxy(shared_url: str) -> AsyncIterator[DatabaseProxy]:
    async with start_database_proxy(shared_url) as running:
        yield running


@pytest.fixture
async def far_database(proxy: DatabaseProxy) -> AsyncIterator[Database]:
    pool = await Database.connect(proxy.url, size=2)
    yield pool
    await pool.close()


async def works(database: Database) -> bool:
    return await row(database, "SELECT 1 AS n") == {"n": 1}


async def terminate_others(url: str) -> None:
    admin = await asyncpg.connect(url)
    await admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await admin.close()


async def test_broken_while_idle(database: Database, shared_url: str) -> None:
    await terminate_others(shared_url)
    # At worst every pooled connection is found broken once.
    for _ in range(6):
        try:
            assert await works(database)
        except DatabaseUnavailable:
            continue
        break
    assert await works(database)
    assert database.in_use == 0


async def test_broken_in_a_transaction(database: Database, shared_url: str) -> None:
    async def change() -> None:
        async with database.transaction() as connection:
            await connection.execute("UPDATE payment_terms SET amount_fallback = false")
            await terminate_others(shared_url)
            await connection.execute("SELECT 1")

    with pytest.raises(DatabaseUnavailable):
        await change()
    stored = await row(database, "SELECT amount_fallback FROM payment_terms")
    assert stored == {"amount_fallback": True}


async def test_broken_while_waiting(database: Database) -> None:
    """A statement that waits for a lock when its connection is cut."""
    async with asyncio.TaskGroup() as tasks, database.transaction() as holder:
        await holder.execute("LOCK TABLE jobs")
        async with lock_waits(database, holder):
            waiting = tasks.create_task(_fails_to_wait(database))
        await holder.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
        )
        await waiting
    assert await works(database)


async def _fails_to_wait(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable):
        await row(database, "SELECT count(*) FROM jobs")


@pytest.mark.parametrize(
    "sqlstate", ["08006", "40001", "40P01", "53100", "53300", "57014", "57P03", "58030", "25006"]
)
async def test_passing_errors(database: Database, sqlstate: str) -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        await execute(
            database, f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{sqlstate}'; END $$"
        )
    assert isinstance(caught.value.__cause__, asyncpg.PostgresError)
    assert await works(database)


@pytest.mark.parametrize("sql", ["SELECT 1 / 0", "SELECT nonsense", "SELECT $1::int"])
async def test_our_own_errors_are_not_tried_again(database: Database, sql: str) -> None:
    with pytest.raises(asyncpg.PostgresError):
        await execute(database, sql, *(["no number"] if "$1" in sql else []))
    assert await works(database)


async def test_no_free_connection(shared_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("db.pool.ACQUIRE_TIMEOUT_S", 0.05)
    database = await Database.connect(shared_url, size=1)
    async with database.connection():
        assert database.in_use == 1
        with pytest.raises(DatabaseUnavailable):
            await works(database)
    assert await works(database)
    await database.close()


@pytest.mark.parametrize("problem", ["nobody listens", "no such socket"])
async def test_server_is_away(problem: str) -> None:
    with pytest.raises(Retryable):
        await Database.connect(
            "postgresql://postgres@127.0.0.1:1/x"
            if problem == "nobody listens"
            else "postgresql://postgres@/x?host=/nowhere"
        )


@pytest.mark.parametrize(
    "error", [TimeoutError(), ConnectionResetError(), asyncpg.InternalClientError("state 15")]
)
def test_lost_connections(error: Exception) -> None:
    """The last one is what asyncpg makes of a server's last word between two statements."""
    with pytest.raises(DatabaseUnavailable), translated_errors():
        raise error


async def test_close_beside_a_lost_server(shared_url: str) -> None:
    database = await Database.connect(shared_url, size=2)
    assert await works(database)
    await terminate_others(shared_url)
    async with asyncio.timeout(5):
        await database.close()


async def test_close_does_not_wait_for_ever(
    shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.pool.CLOSE_TIMEOUT_S", 0.05)
    database = await Database.connect(shared_url, size=2)

    async def close_while_busy() -> None:
        async with database.connection() as connection:
            await database.close()
            await connection.execute("SELECT 1")

    with pytest.raises(DatabaseUnavailable):
        await close_while_busy()


async def test_statements_of_before_a_migration(own_database: Database, migrated_url: str) -> None:
    """A daemon that runs while another version migrates tries again, and then knows better."""
    query = "SELECT price_usdc FROM jobs"
    other = await Database.connect(migrated_url, size=1)
    async with other.connection() as connection:
        await connection.fetch(query)
    await execute(own_database, "ALTER TABLE jobs ALTER COLUMN price_usdc TYPE numeric(30, 8)")
    with pytest.raises(DatabaseUnavailable):
        async with other.transaction() as connection:
            await connection.fetch(query)
    async with other.transaction() as connection:
        assert await connection.fetch(query) == []
    await other.close()


async def test_a_server_that_answers_nothing(
    shared_url: str, proxy: DatabaseProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the statement nor what asyncpg wants to tidy up behind it waits for ever."""
    monkeypatch.setattr("db.pool.COMMAND_TIMEOUT_S", COMMAND_TIMEOUT_S)
    monkeypatch.setattr("db.pool.ACQUIRE_TIMEOUT_S", COMMAND_TIMEOUT_S)
    database = await Database.connect(proxy.url, size=2)
    proxy.black_hole()
    async with asyncio.timeout(PROMPTLY_S):
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable):
                await works(database)
    assert database.in_use == 0
    proxy.restore()
    assert await works(database)
    proxy.black_hole()
    async with asyncio.timeout(PROMPTLY_S):
        monkeypatch.setattr("db.pool.CLOSE_TIMEOUT_S", COMMAND_TIMEOUT_S)
        await database.close()


@pytest.mark.parametrize("blocks", [0, 1, 2])
async def test_cancelled_while_nothing_is_answered(
    far_database: Database, proxy: DatabaseProxy, blocks: int
) -> None:
    """Also in a transaction, and in a savepoint: a stop does not wait for the limits."""
    sent = asyncio.Event()

    async def run() -> None:
        async with AsyncExitStack() as inside:
            connection = await inside.enter_async_context(far_database.connection())
            for _ in range(blocks):
                await inside.enter_async_context(connection.transaction())
            await never_answered(connection)

    async def never_answered(connection: Connection) -> None:
        await connection.fetchval("SELECT 1")
        proxy.black_hole()
        sent.set()
        await connection.fetchval("SELECT 1")

    task = asyncio.create_task(run())
    await sent.wait()
    # Its statement is on the way when everybody else has had a turn.
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(PROMPTLY_S):
        with pytest.raises(asyncio.CancelledError):
            await task
    proxy.restore()
    assert await works(far_database)
    assert far_database.in_use == 0


async def test_cancelled_while_connecting(proxy: DatabaseProxy) -> None:
    proxy.black_hole()
    task = asyncio.create_task(Database.connect(proxy.url, size=1))
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(PROMPTLY_S):
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_server_that_falls_silent_while_a_connection_is_set_up(
    shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it has let us in, when asyncpg asks for the types: a moment no proxy can hit."""

    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncpg.Connection, "set_type_codec", never)
    monkeypatch.setattr(pool_module, "CONNECT_TIMEOUT_S", 5 * COMMAND_TIMEOUT_S)
    async with asyncio.timeout(PROMPTLY_S):
        with pytest.raises(DatabaseUnavailable):
            await Database.connect(shared_url, size=1)


async def test_what_was_done_is_done(
    far_database: Database, proxy: DatabaseProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server falls silent after the last answer: that is the next one's trouble."""
    monkeypatch.setattr("db.pool.RELEASE_TIMEOUT_S", COMMAND_TIMEOUT_S)
    monkeypatch.setattr("db.pool.CLOSE_TIMEOUT_S", COMMAND_TIMEOUT_S)

    async def last_statement() -> int:
        async with far_database.connection() as connection:
            found: int = await connection.fetchval("SELECT 1")
            proxy.black_hole()
            return found

    async with asyncio.timeout(PROMPTLY_S):
        assert await last_statement() == 1
    assert far_database.in_use == 0


async def test_a_cancelled_statement_is_dropped_by_the_server(database: Database) -> None:
    """It must not wait for its lock, get it, and then be executed when nobody listens."""
    async with database.transaction() as holder:
        await holder.execute("LOCK TABLE skills")
        async with lock_waits(database, holder):
            task = asyncio.create_task(execute(database, "INSERT INTO skills DEFAULT VALUES"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        waiting = await holder.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
        assert waiting == 0
    assert await row(database, "SELECT count(*) AS n FROM skills") == {"n": 0}


async def test_a_transaction_that_hangs_loses_its_locks(
    database: Database, monkeypatch: pytest.MonkeyPatch, shared_url: str
) -> None:
    """The process is stopped, or its machine is off the network, between two statements."""
    limit = "idle_in_transaction_session_timeout"
    assert limit in pool_module.SERVER_SETTINGS
    settings = {**pool_module.SERVER_SETTINGS, limit: "20ms"}
    monkeypatch.setattr(pool_module, "SERVER_SETTINGS", settings)
    hanging = await Database.connect(shared_url, size=1)

    async def hang() -> None:
        async with hanging.transaction() as connection:
            await connection.execute("LOCK TABLE skills")
            await execute(database, "DELETE FROM skills")
            await connection.execute("SELECT 1")

    with pytest.raises(DatabaseUnavailable):
        await hang()
    assert await works(hanging)
    await hanging.close()
