"""The tables refuse what must never be in them."""

from typing import Any

import asyncpg
import pytest

from db.pool import Database
from tests.integration.db.support import (
    CHAIN,
    PAYER,
    SHOP,
    START,
    add_job,
    execute,
    hash_of,
    row,
)

PAYMENT: dict[str, Any] = {
    "chain_id": CHAIN, "tx_hash": hash_of("tx"), "log_index": 0, "block_number": 1,
    "block_hash": hash_of("block"), "block_time": START, "sender": PAYER, "recipient": SHOP,
    "amount_units": 1,
}  # fmt: skip
MATCHED: dict[str, Any] = {"status": "matched", "job_id": 1, "matched_at": START}


async def insert(database: Database, table: str, columns: dict[str, Any]) -> None:
    places = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
    await execute(
        database, f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", *columns.values()
    )


async def insert_payment(database: Database, **columns: Any) -> None:
    await add_job(database)
    await insert(database, "payments", PAYMENT | columns)


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"amount_units": 2**256 - 1, "log_index": 0xFFFFFFE2},
        {"memo": b"m" * 16, "memo_source": "authorization"},
        MATCHED,
        MATCHED | {"status": "credited", "credited_at": START},
        {"status": "unmatched", "reason": "underpaid", "job_id": 1},
        {"status": "orphaned"},
        {"status": "refunded"},
        {"status": "ignored"},
    ],
)
async def test_legal_payments(database: Database, columns: dict[str, Any]) -> None:
    await insert_payment(database, **columns)


@pytest.mark.parametrize(
    "columns",
    [
        {"tx_hash": PAYMENT["tx_hash"].upper().replace("X", "x")},
        {"tx_hash": PAYMENT["tx_hash"][2:]},
        {"block_hash": PAYMENT["block_hash"] + "0"},
        {"sender": "0x" + "AB" * 20},
        {"recipient": "0x" + "ab" * 19},
        {"recipient": ""},
        {"log_index": -1},
        {"amount_units": 0},
        {"amount_units": -1},
        {"memo": b"m" * 15, "memo_source": "calldata"},
        {"memo": b"m" * 16},
        {"memo_source": "calldata"},
        {"memo": b"m" * 16, "memo_source": "hearsay"},
        {"status": "paid"},
        {"status": "unmatched"},
        {"status": "unmatched", "reason": "bad weather"},
        {"job_id": 1},
        {"reason": "late"},
        MATCHED | {"job_id": None},
        MATCHED | {"reason": "late"},
        MATCHED | {"matched_at": None},
        MATCHED | {"status": "credited"},
        {"status": "credited", "credited_at": START, "matched_at": START},
    ],
)
async def test_illegal_payments(database: Database, columns: dict[str, Any]) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await insert_payment(database, **columns)


@pytest.mark.parametrize(
    ("first", "second", "is_refused"),
    [
        ({}, {}, True),
        ({}, {"tx_hash": hash_of("other tx")}, True),
        ({}, {"block_hash": hash_of("other block")}, True),
        ({"status": "orphaned"}, {"block_hash": hash_of("other block")}, False),
        ({"status": "orphaned"}, {}, True),
        ({}, {"log_index": 1}, False),
        ({}, {"chain_id": 1}, False),
    ],
)
async def test_one_row_a_log(
    database: Database, first: dict[str, Any], second: dict[str, Any], is_refused: bool
) -> None:
    await insert_payment(database, **first)
    if is_refused:
        with pytest.raises(asyncpg.UniqueViolationError):
            await insert_payment(database, **second)
    else:
        await insert_payment(database, **second)


async def test_payment_of_no_job(database: Database) -> None:
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await insert_payment(database, **MATCHED | {"job_id": 77})


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ({"status": "cancelled"}, asyncpg.CheckViolationError),
        ({"memo": b"m" * 17}, asyncpg.CheckViolationError),
        ({"memo": None}, asyncpg.NotNullViolationError),
        ({"unique_amount_units": 0}, asyncpg.CheckViolationError),
        ({"unique_amount_units": -5}, asyncpg.CheckViolationError),
        ({"amount_is_held": True, "status": "paid"}, asyncpg.CheckViolationError),
        ({"lease_until": START}, asyncpg.CheckViolationError),
        ({"skill_id": 77}, asyncpg.ForeignKeyViolationError),
    ],
)
async def test_illegal_jobs(
    database: Database, columns: dict[str, Any], error: type[asyncpg.PostgresError]
) -> None:
    if columns.get("status") == "paid":
        await execute(database, "UPDATE payment_terms SET amount_fallback = false")
    with pytest.raises(error):
        await add_job(database, **columns)


@pytest.mark.parametrize("column", ["memo", "job_uuid"])
async def test_jobs_are_told_apart(database: Database, column: str) -> None:
    first = await add_job(database)
    stored = await row(database, "SELECT * FROM jobs WHERE id = $1", first.id)
    with pytest.raises(asyncpg.UniqueViolationError):
        await add_job(database, **{column: stored[column]})


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ({"attempt_no": 1}, asyncpg.UniqueViolationError),
        ({"attempt_no": 0}, asyncpg.CheckViolationError),
        ({"attempt_no": 2, "finished_at": START}, asyncpg.CheckViolationError),
        ({"attempt_no": 2, "outcome": "lost"}, asyncpg.CheckViolationError),
        (
            {"attempt_no": 2, "outcome": "succeeded", "finished_at": START},
            asyncpg.CheckViolationError,
        ),
        ({"attempt_no": 2, "job_id": 77}, asyncpg.ForeignKeyViolationError),
    ],
)
async def test_illegal_attempts(
    database: Database, columns: dict[str, Any], error: type[asyncpg.PostgresError]
) -> None:
    job = await add_job(database)
    await insert(database, "generation_attempts", {"job_id": job.id, "attempt_no": 1})
    with pytest.raises(error):
        await insert(database, "generation_attempts", {"job_id": job.id, **columns})


@pytest.mark.parametrize(
    "columns",
    [{"block_number": -1}, {"block_hash": "0x"}, {"block_hash": hash_of(1).replace("0x", "0X")}],
)
async def test_illegal_cursors(database: Database, columns: dict[str, Any]) -> None:
    cursor = {
        "chain_id": CHAIN, "block_number": 1, "block_hash": hash_of(1), "block_time": START
    }  # fmt: skip
    with pytest.raises(asyncpg.CheckViolationError):
        await insert(database, "chain_cursor", cursor | columns)


async def test_one_row_of_terms(database: Database) -> None:
    with pytest.raises(asyncpg.UniqueViolationError):
        await execute(database, "INSERT INTO payment_terms DEFAULT VALUES")
    with pytest.raises(asyncpg.CheckViolationError):
        await execute(database, "INSERT INTO payment_terms (only_row) VALUES (false)")
