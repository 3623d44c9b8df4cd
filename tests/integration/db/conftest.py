"""One migrated database for all tests that leave its tables as they are: a new one takes long."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from db.payments import PaymentStore
from db.pool import Database
from db.reversals import ReversalStore
from tests.conftest import database_url
from tests.integration.db.support import CHAIN

_TABLES = (
    "audit_log, chain_checkpoints, chain_cursor, chain_leader, generation_attempts, job_bindings,"
    " jobs, losses, payment_refunds, payments, retired_amounts, skills, webhook_deliveries"
)


@pytest.fixture(scope="session")
def shared_url(postgres_url: str, template: str) -> str:
    """A migrated database; what the server holds need not survive a power cut."""

    async def set_up() -> None:
        connection = await asyncpg.connect(postgres_url)
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            await connection.execute(f"ALTER SYSTEM SET {setting} = off")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.execute(f"CREATE DATABASE oncepaid_shared TEMPLATE {template}")
        await connection.execute("CREATE DATABASE oncepaid_blank")
        await connection.close()

    asyncio.run(set_up())
    return database_url(postgres_url, "oncepaid_shared")


@pytest.fixture
async def database(shared_url: str) -> AsyncIterator[Database]:
    """A pool on the shared database, empty and with the terms of a new one."""
    pool = await Database.connect(shared_url, size=5)
    async with pool.connection() as connection:
        await connection.execute(
            f"""
            TRUNCATE {_TABLES} RESTART IDENTITY;
            DELETE FROM payment_terms;
            INSERT INTO payment_terms DEFAULT VALUES;
            """
        )
    yield pool
    await pool.close()


@pytest.fixture
async def empty_url(postgres_url: str, shared_url: str) -> str:
    """The URL of a database without any tables, emptied before each test."""
    url = database_url(postgres_url, "oncepaid_blank")
    connection = await asyncpg.connect(url)
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()
    return url


@pytest.fixture
async def own_database(migrated_url: str) -> AsyncIterator[Database]:
    """A pool on a database of this test alone, whose tables it may change."""
    pool = await Database.connect(migrated_url, size=5)
    yield pool
    await pool.close()


@pytest.fixture
def ledger(database: Database) -> PaymentStore:
    return PaymentStore(database, CHAIN)


@pytest.fixture
def reversals(database: Database) -> ReversalStore:
    return ReversalStore(database, CHAIN)
