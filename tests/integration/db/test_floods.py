"""Attacks by number: what strangers send neither pays, nor fills, nor slows anything."""

import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

import asyncpg
import pytest

from db.payments import PaymentStore
from db.pool import Database
from oncepaid.domain.chain import Address
from oncepaid.domain.matching import MOST_PARTIALS
from tests.integration.db.support import (
    CHAIN,
    DECIDE,
    add_job,
    add_skill,
    execute,
    job_row,
    match,
    observed,
    rows,
    see,
    standing,
)

PRICE: Final = 1_000_000
BATCH: Final = 500
STRANGER: Final = Address("0x" + "7e" * 20)


@pytest.fixture
async def alone(database: Database) -> AsyncIterator[Database]:
    """The same tables by a single connection, whose statements can be counted."""
    pool = await Database.connect(database.url, size=1)
    yield pool
    await pool.close()


_OURS: Final = re.compile(r"\b(payments|jobs|job_bindings)\b")


async def statements_of(database: Database, payments: int) -> int:
    """Decide a batch and return how many statements on our tables that took."""
    asked: list[str] = []

    def note(record: asyncpg.connection.LoggedQuery) -> None:
        asked.append(record.query)

    async with database.connection() as connection:
        connection.add_query_logger(note)
    decided = await PaymentStore(database, CHAIN).decide_seen(DECIDE, BATCH)
    assert len(decided) == payments
    async with database.connection() as connection:
        connection.remove_query_logger(note)
    return sum(_OURS.search(query) is not None for query in asked)


async def test_dust_flood(database: Database, alone: Database) -> None:
    """2,000 payments of dust around an honest one: it pays its job, and a batch is a batch."""
    job = await add_job(database)
    dust = [observed(1, job.memo, sender=STRANGER) for _ in range(2000)]
    honest = observed(PRICE, job.memo)
    ids = await see(database, *dust[:1000], honest, *dust[1000:])
    counts = [await statements_of(alone, size) for size in (500, 500, 500, 500, 1)]
    assert max(counts) <= 6
    assert await standing(database, [ids[1000]]) == [("matched", None)]
    kept, rest = ids[:MOST_PARTIALS], [*ids[MOST_PARTIALS:1000], *ids[1001:]]
    assert await standing(database, kept) == [("matched", None)] * MOST_PARTIALS
    assert Counter(await standing(database, rest)) == {
        ("unmatched", "dust"): 1000 - MOST_PARTIALS,
        ("unmatched", "duplicate"): 1000,
    }
    crediting = await PaymentStore(database, CHAIN).credit([*kept, ids[1000]])
    assert [each.id for each in crediting.credited] == [*kept, ids[1000]]
    stored = await job_row(database, job.id)
    assert (stored["status"], stored["credited_units"]) == ("paid", PRICE + MOST_PARTIALS)


async def test_dust_leaves_an_unpaid_job_as_it_was(database: Database) -> None:
    job = await add_job(database)
    flood = [observed(49, job.memo, sender=STRANGER) for _ in range(100)]
    await match(database, *flood)
    assert (await job_row(database, job.id))["status"] == "pending"
    found = await rows(
        database, "SELECT reason, job_id, count(*) AS n FROM payments GROUP BY 1, 2 ORDER BY 1"
    )
    assert found == [
        {"reason": "dust", "job_id": job.id, "n": 100 - MOST_PARTIALS},
        {"reason": "underpaid", "job_id": job.id, "n": MOST_PARTIALS},
    ]
    ids = await match(database, observed(PRICE, job.memo))
    assert await standing(database, ids) == [("matched", None)]


async def test_bare_payments_are_looked_up_together(database: Database, alone: Database) -> None:
    """Each is compared with the nearest amount, among 9,000 that are held."""
    skill = await add_skill(database)
    await execute(
        database,
        "INSERT INTO jobs (skill_id, unique_amount_units)"
        " SELECT $1, $2 + n FROM generate_series(1, 9000) n",
        *(skill, PRICE),
    )
    await execute(database, "UPDATE jobs SET status = 'paid' WHERE unique_amount_units < $1", 10**9)
    await add_job(database, skill_id=skill, price_usdc=2)
    await see(database, *(observed(PRICE - n, sender=STRANGER) for n in range(BATCH)))
    assert await statements_of(alone, BATCH) <= 6


@pytest.mark.parametrize(
    ("units", "pay_to", "reason"),
    [
        (PRICE * 9 // 10, None, "underpaid"),
        (PRICE - 1, None, "underpaid"),
        (PRICE - 1, "0x" + "5A" * 20, "underpaid"),
        (PRICE - 1, STRANGER, "no_memo"),
        (PRICE * 9 // 10 - 1, None, "no_memo"),
        (PRICE, None, "no_memo"),
    ],
)
async def test_what_an_exchange_shortened_waits_beside_no_job(
    database: Database, units: int, pay_to: str | None, reason: str
) -> None:
    job = await add_job(database, pay_to=pay_to)
    ids = await match(database, observed(units))
    assert await standing(database, ids) == [("unmatched", reason)]
    found = await rows(database, "SELECT job_id FROM payments")
    assert found == [{"job_id": None}]
    # And it counts for nothing.
    await match(database, observed(PRICE - units or 1, job.memo, recipient=_payee(pay_to)))
    assert (await job_row(database, job.id))["status"] == "pending"
    assert await rows(database, "SELECT 1 FROM payments WHERE status = 'matched'") == []


def _payee(pay_to: str | None) -> Address:
    return Address((pay_to or "0x" + "5a" * 20).lower())


@pytest.mark.parametrize("status", ["paid", "completed"])
async def test_nothing_is_short_of_a_job_that_does_not_wait(
    database: Database, status: str
) -> None:
    job = await add_job(database)
    await execute(database, "UPDATE jobs SET status = $2 WHERE id = $1", job.id, status)
    ids = await match(database, observed(PRICE - 1))
    assert await standing(database, ids) == [("unmatched", "no_memo")]
