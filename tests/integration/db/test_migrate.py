"""Migrations: whole or not at all, once, and never against a database of somebody else's."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest

from db.migrate import (
    Migration,
    MigrationMismatch,
    load_migrations,
    migrate,
    missing_migrations,
)
from db.pool import Database
from tests.integration.db.support import row, rows

NAMES = [
    *("0001_hub", "0002_job_terms", "0003_ledger", "0004_generation", "0005_reliability"),
    *("0006_every_wallet", "0007_paying_view", "0008_desk"),
]

# The public columns, by table; a type ends in `!` where null is refused.
PUBLIC = {
    "skills": {
        "id": "bigint!", "agent_id": "bigint", "name": "text!", "description": "text",
        "category": "text", "price_usdc": "numeric(20,6)", "estimated_time": "text",
        "is_active": "boolean!", "created_at": "timestamp with time zone!", "service_key": "text",
    },
    "jobs": {
        "id": "bigint!", "job_uuid": "uuid!", "skill_id": "bigint", "input_data": "jsonb",
        "output_data": "jsonb", "status": "text!", "price_usdc": "numeric(20,6)",
        "pay_to": "text", "memo": "bytea!", "unique_amount_units": "bigint",
        "created_at": "timestamp with time zone!", "expires_at": "timestamp with time zone!",
        "paid_at": "timestamp with time zone", "started_at": "timestamp with time zone",
        "completed_at": "timestamp with time zone", "attempts": "integer!",
    },
    "payments": {
        "id": "bigint!", "chain_id": "bigint!", "tx_hash": "text!", "log_index": "bigint!",
        "block_number": "bigint!", "block_hash": "text!",
        "block_time": "timestamp with time zone!", "sender": "text!", "recipient": "text!",
        "amount_units": "numeric(78,0)!", "memo": "bytea", "memo_source": "text",
        "job_id": "bigint", "status": "text!", "reason": "text",
        "seen_at": "timestamp with time zone!", "matched_at": "timestamp with time zone",
        "credited_at": "timestamp with time zone",
    },
    "chain_cursor": {
        "chain_id": "bigint!", "block_number": "bigint!", "block_hash": "text!",
        "updated_at": "timestamp with time zone!",
    },
    "generation_attempts": {
        "id": "bigint!", "job_id": "bigint!", "attempt_no": "integer!", "model": "text",
        "started_at": "timestamp with time zone!", "finished_at": "timestamp with time zone",
        "outcome": "text", "stop_reason": "text", "request_id": "text",
        "input_tokens": "integer", "output_tokens": "integer", "cost_usd": "numeric(12,6)",
    },
    "webhook_deliveries": {"id": "bigint!"},
    "audit_log": {"id": "bigint!"},
}  # fmt: skip


@pytest.fixture
async def empty(empty_url: str) -> AsyncIterator[Database]:
    opened = await Database.connect(empty_url, size=1)
    yield opened
    await opened.close()


def migration(number: int, sql: str) -> Migration:
    return Migration(number=number, name=f"{number:04}_test", sql=sql, checksum=f"of {sql}")


async def tables(database: Database) -> set[str]:
    found = await rows(
        database, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    )
    return {row["table_name"] for row in found}


async def test_fresh_then_nothing_left(empty: Database) -> None:
    assert await missing_migrations(empty) == len(NAMES)
    assert await migrate(empty) == NAMES
    assert await missing_migrations(empty) == 0
    assert await migrate(empty) == []
    applied = await rows(empty, "SELECT number, name, checksum FROM oncepaid_migrations")
    assert applied == [
        {"number": m.number, "name": m.name, "checksum": m.checksum} for m in load_migrations()
    ]


async def test_two_at_once(empty_url: str) -> None:
    first, second = await asyncio.gather(*(Database.connect(empty_url, size=1) for _ in "ab"))
    applied = await asyncio.gather(migrate(first), migrate(second))
    assert sorted(applied) == [[], NAMES]
    assert await tables(first) >= set(PUBLIC)
    await asyncio.gather(first.close(), second.close())


async def test_only_the_new_ones_are_applied(own_database: Database) -> None:
    more = [*load_migrations(), migration(99, "CREATE TABLE extra ()")]
    assert await migrate(own_database, more) == ["0099_test"]
    assert await migrate(own_database, more) == []
    assert "extra" in await tables(own_database)


async def test_changed_migration_is_refused(own_database: Database) -> None:
    ours = load_migrations()
    ours[1] = replace(ours[1], checksum="another")
    with pytest.raises(MigrationMismatch, match="0002_job_terms was applied with other contents"):
        await migrate(own_database, [*ours, migration(99, "CREATE TABLE extra ()")])
    assert "extra" not in await tables(own_database)


async def test_newer_database_is_refused(own_database: Database) -> None:
    await migrate(own_database, [*load_migrations(), migration(99, "CREATE TABLE extra ()")])
    with pytest.raises(MigrationMismatch, match="migration 0099"):
        await migrate(own_database)


async def test_failing_migration_leaves_nothing_behind(empty: Database) -> None:
    ours = [
        *load_migrations(),
        migration(98, "CREATE TABLE extra ()"),
        migration(99, "CREATE TABLE more (); SELECT 1 / 0"),
    ]
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(empty, ours)
    assert await tables(empty) == set()
    functions = await rows(empty, "SELECT proname FROM pg_proc WHERE proname ~ '^oncepaid'")
    assert functions == []
    assert await migrate(empty) == NAMES


@pytest.mark.parametrize("table", PUBLIC)
async def test_public_columns(database: Database, table: str) -> None:
    found = await rows(
        database,
        """
        SELECT attname, format_type(atttypid, atttypmod)
                        || CASE WHEN attnotnull THEN '!' ELSE '' END AS type
          FROM pg_attribute
         WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped
        """,
        f"public.{table}",
    )
    types = {column["attname"]: column["type"] for column in found}
    assert {name: types.get(name) for name in PUBLIC[table]} == PUBLIC[table]


async def test_checksums_are_of_the_files(database: Database) -> None:
    stored = await row(
        database,
        "SELECT count(DISTINCT checksum) AS n, min(length(checksum)) AS l FROM oncepaid_migrations",
    )
    assert stored == {"n": len(NAMES), "l": 64}
