"""A database that is away is an error to try again after, and never one to stay."""

import asyncio

import asyncpg
import pytest

from db.pool import Database
from oncepaid.domain.errors import DatabaseUnavailable, Retryable
from tests.integration.db.support import execute, lock_waits, row


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
