"""A host application's own role needs rights on the tables that it writes, and on none of ours."""

from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from db.payments import PaymentStore
from db.pool import Database
from tests.integration.db.support import CHAIN, PAYER, add_job, execute, match, standing
from tests.integration.db.test_bindings import NO_MEMO, NONCE, PRICE, authorized


@pytest.fixture
async def host(database: Database, shared_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A session of a role that may do with jobs and bindings what a host does."""
    role = f"host_{uuid4().hex}"
    await execute(database, f"CREATE ROLE {role}")
    await execute(database, f"GRANT SELECT, INSERT, UPDATE, DELETE ON jobs, skills TO {role}")
    await execute(database, f"GRANT INSERT ON job_bindings TO {role}")
    connection = await asyncpg.connect(shared_url)
    try:
        await connection.execute(f"SET ROLE {role}")
        yield connection
    finally:
        await connection.close()
        await execute(database, f"DROP OWNED BY {role}")
        await execute(database, f"DROP ROLE {role}")


async def test_a_job_from_its_insert_to_its_end(host: asyncpg.Connection) -> None:
    """The amount is drawn, rests when the job is deleted, and its expiry may be moved."""
    first = await host.fetchrow(
        "INSERT INTO jobs (price_usdc) VALUES (1) RETURNING id, unique_amount_units, memo"
    )
    assert first is not None
    assert first["unique_amount_units"] > PRICE
    await host.execute("UPDATE jobs SET expires_at = now() WHERE id = $1", first["id"])
    await host.execute("DELETE FROM jobs WHERE id = $1", first["id"])
    with pytest.raises(asyncpg.UniqueViolationError):
        await host.execute(
            "INSERT INTO jobs (price_usdc, unique_amount_units) VALUES (1, $1)",
            first["unique_amount_units"],
        )
    await host.execute("INSERT INTO jobs (price_usdc) VALUES (1)")
    with pytest.raises(asyncpg.UniqueViolationError):
        await host.execute("UPDATE jobs SET unique_amount_units = $1", first["unique_amount_units"])
    await host.execute("UPDATE jobs SET unique_amount_units = 77")


async def test_a_binding_that_comes_late(database: Database, host: asyncpg.Connection) -> None:
    job = await add_job(database)
    payments = await match(database, authorized())
    assert await standing(database, payments) == [NO_MEMO]
    await host.execute(
        "INSERT INTO job_bindings (issuer, reference, job_id) VALUES ($1, $2, $3)",
        *(PAYER, NONCE, job.id),
    )
    assert await PaymentStore(database, CHAIN).reconsider() == 1
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await host.fetch("SELECT FROM payments")
