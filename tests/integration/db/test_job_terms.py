"""What a host's plain INSERT into jobs leaves out is filled in."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import asyncpg
import pytest

from db.pool import Database
from oncepaid.domain.jobs import JobId
from tests.integration.db.support import (
    SHOP,
    add_job,
    add_skill,
    execute,
    job_row,
    row,
    rows,
)

PRICE = 1_000_000
AMOUNTS = range(PRICE + 1, PRICE + 10_000)
BULK = "INSERT INTO jobs (skill_id, input_data) SELECT $1, '{}' FROM generate_series(1, $2)"
OTHER = "0x" + "07" * 20


async def test_plain_insert(database: Database) -> None:
    skill = await add_skill(database, Decimal("1.000000"))
    await execute(database, "UPDATE payment_terms SET job_lifetime = interval '90 minutes'")
    before = datetime.now(UTC)
    await execute(
        database,
        "INSERT INTO jobs (job_uuid, skill_id, input_data) VALUES ($1, $2, $3)",
        uuid4(),
        skill,
        {"prompt": "x"},
    )
    job = await row(database, "SELECT * FROM jobs")
    assert (job["status"], job["attempts"], job["pay_to"]) == ("pending", 0, None)
    assert job["price_usdc"] == 1
    assert len(job["memo"]) == 16
    assert job["unique_amount_units"] in AMOUNTS
    assert job["amount_is_held"]
    lifetime = timedelta(minutes=90)
    assert before - timedelta(seconds=1) < job["expires_at"] - lifetime < datetime.now(UTC)


async def test_memos_are_random(database: Database) -> None:
    skill = await add_skill(database)
    await execute(database, BULK, skill, 2000)
    memos = [job["memo"] for job in await rows(database, "SELECT memo FROM jobs")]
    assert len(set(memos)) == 2000
    # Each of the 128 bits is set in about half of them; 9 deviations of 22 are never reached.
    for bit in range(128):
        ones = sum(memo[bit // 8] >> bit % 8 & 1 for memo in memos)
        assert abs(ones - 1000) < 200, bit


@pytest.mark.parametrize(
    ("price", "lowest"),
    [
        (Decimal("0.000001"), 2),
        (Decimal("1.5"), 1_500_001),
        (Decimal("999999999.999999"), 999_999_999_999_999 + 1),
        (Decimal(0), 1),
        (None, None),
        (Decimal("NaN"), None),
        (Decimal(-1), None),
        (Decimal("1000000001"), None),
    ],
)
async def test_amount_lies_above_the_price(
    database: Database, price: Decimal | None, lowest: int | None
) -> None:
    skill = await add_skill(database, price)
    job = await add_job(database, skill_id=skill, price_usdc=None)
    stored = await job_row(database, job.id)
    if lowest is None:
        assert job.unique_amount is None
        assert not stored["amount_is_held"]
    else:
        assert job.unique_amount in range(lowest, lowest + 9999)


async def test_no_amount_without_the_fallback(database: Database) -> None:
    await execute(database, "UPDATE payment_terms SET amount_fallback = false")
    job = await add_job(database)
    assert job.unique_amount is None
    assert not (await job_row(database, job.id))["amount_is_held"]


async def test_no_amount_for_a_job_that_is_not_pending(database: Database) -> None:
    job = await add_job(database, status="completed")
    assert job.unique_amount is None


async def test_what_the_host_says_stands(database: Database) -> None:
    expires = datetime(2031, 1, 2, tzinfo=UTC)
    job = await add_job(
        database,
        price="2.5",
        pay_to="0x" + "Ab" * 20,
        expires_at=expires,
        memo=b"0123456789abcdef",
        unique_amount_units=2_600_000,
    )
    stored = await job_row(database, job.id)
    assert stored["price_usdc"] == Decimal("2.5")
    assert stored["pay_to"] == "0x" + "ab" * 20
    assert stored["expires_at"] == expires
    assert stored["memo"] == b"0123456789abcdef"
    assert (stored["unique_amount_units"], stored["amount_is_held"]) == (2_600_000, True)


@pytest.mark.parametrize("pay_to", [None, SHOP])
async def test_amount_of_another_job_is_refused(database: Database, pay_to: str | None) -> None:
    first = await add_job(database, unique_amount_units=PRICE + 5, pay_to=pay_to)
    with pytest.raises(asyncpg.UniqueViolationError, match="jobs_held_amount_key"):
        await add_job(database, unique_amount_units=PRICE + 5, pay_to=pay_to)
    # Another recipient's, and one that is held no longer, are free.
    await add_job(database, unique_amount_units=PRICE + 5, pay_to=OTHER)
    await execute(database, "UPDATE jobs SET amount_is_held = false WHERE id = $1", first.id)
    await add_job(database, unique_amount_units=PRICE + 5, pay_to=pay_to)


async def test_drawn_amounts_avoid_every_recipients(database: Database) -> None:
    """A job that any recipient may take must not share its amount with one that names his."""
    skill = await add_skill(database)
    taken = "INSERT INTO jobs (skill_id, pay_to, unique_amount_units) SELECT $1, $2, $3 + n"
    await execute(database, f"{taken} FROM generate_series(1, 9990) n", skill, OTHER, PRICE)
    jobs = [await add_job(database, skill_id=skill) for _ in range(9)]
    assert {job.unique_amount for job in jobs} == set(range(PRICE + 9991, PRICE + 10_000))


@pytest.mark.parametrize(
    ("price", "count"), [("1", 5_000), ("n", 20_000)], ids=["one price", "every price another"]
)
async def test_bulk_insert_in_one_transaction(database: Database, price: str, count: int) -> None:
    """Its locks must fit beside those of others into the lock table of the whole server."""
    skill = await add_skill(database)
    async with asyncio.timeout(20), database.transaction() as connection:
        await connection.execute(
            f"INSERT INTO jobs (skill_id, price_usdc) SELECT $1, {price}"
            " FROM generate_series(1, $2) n",
            *(skill, count),
        )
        locks = await connection.fetchval(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        )
    assert locks <= 1024
    stored = await row(
        database,
        "SELECT count(*) AS jobs, count(DISTINCT unique_amount_units) AS amounts FROM jobs",
    )
    assert stored["jobs"] == count
    assert stored["amounts"] == count if price == "1" else stored["amounts"] > count / 2


async def test_concurrent_transactions_neither_collide_nor_wait(database: Database) -> None:
    """Each holds its rows uncommitted while the other inserts."""
    skill = await add_skill(database)
    async with (
        asyncio.timeout(10),
        database.transaction() as first,
        database.transaction() as second,
    ):
        for _ in range(20):
            for connection in (first, second):
                await connection.execute("SET LOCAL lock_timeout = '1s'")
                await connection.execute(BULK, skill, 5)
    amounts = await rows(
        database, "SELECT unique_amount_units AS a FROM jobs WHERE unique_amount_units > 0"
    )
    assert len(amounts) == len({amount["a"] for amount in amounts})
    # Two transactions share 100 buckets of amounts: neither is left without any.
    assert len(amounts) > 100


async def test_many_single_inserts_at_once(database: Database) -> None:
    skill = await add_skill(database)

    async def insert_some() -> list[JobId]:
        return [(await add_job(database, skill_id=skill)).id for _ in range(30)]

    await asyncio.gather(*(insert_some() for _ in range(5)))
    stored = await row(
        database,
        "SELECT count(*) AS jobs, count(DISTINCT unique_amount_units) AS amounts FROM jobs",
    )
    assert stored == {"jobs": 150, "amounts": 150}
