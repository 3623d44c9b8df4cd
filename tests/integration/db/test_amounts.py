"""Unique amounts: drawn while there are any, and reserved for one job whatever its host does."""

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from db.jobs import JobStore
from db.payments import PaymentStore
from db.pool import Database
from tests.integration.db.credits import credit, orphan
from tests.integration.db.support import (
    CHAIN,
    DECIDE,
    SHOP,
    START,
    Job,
    add_job,
    add_skill,
    execute,
    first_cursor,
    header,
    job_row,
    lock_waits,
    match,
    observed,
    row,
    rows,
    see,
    standing,
)

PRICE = 1_000_000
ELSEWHERE = "0x" + "77" * 20
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
FREE = list(range(PRICE + 9_981, PRICE + 10_000))
"""What `crowd` leaves."""


async def crowd(database: Database) -> int:
    """Reserve all amounts of a price but the last 19; returns the skill."""
    skill = await add_skill(database)
    await execute(
        database,
        "INSERT INTO jobs (skill_id, unique_amount_units, expires_at)"
        " SELECT $1, $2 + n, $3 FROM generate_series(1, 9980) n",
        *(skill, PRICE, START + DAY),
    )
    return skill


async def release(database: Database, chain_time: timedelta) -> int:
    """Release amounts at a time of the chain; grace is one hour and quarantine a day."""
    await first_cursor(database)
    now = START - 9 * DAY + chain_time
    await execute(database, "UPDATE chain_cursor SET block_time = $1", now)
    return await JobStore(database).release_amounts(CHAIN, HOUR, DAY)


async def add_old_job(database: Database, **columns: Any) -> Job:
    """Add a job that expires when the chain's time of `release` is zero."""
    return await add_job(database, expires_at=START - 9 * DAY, **columns)


@pytest.mark.parametrize("inserts", [1, 19], ids=["in one statement", "one by one"])
async def test_the_last_ones_are_found_and_then_the_error_says_why(
    database: Database, inserts: int
) -> None:
    skill = await crowd(database)
    for _ in range(inserts):
        await execute(
            database,
            "INSERT INTO jobs (skill_id) SELECT $1 FROM generate_series(1, $2)",
            *(skill, 19 // inserts),
        )
    drawn = await rows(database, "SELECT unique_amount_units AS a FROM jobs ORDER BY id DESC")
    assert sorted(each["a"] for each in drawn[:19]) == FREE
    with pytest.raises(asyncpg.PostgresError) as caught:
        await add_job(database, skill_id=skill)
    error = caught.value
    assert error.sqlstate == "OP001"
    assert str(error).startswith("no unique amount is free for a price of 1.000000 USDC")
    until = START + DAY + timedelta(hours=25)
    assert error.detail == (
        f"9999 of 9999 amounts are reserved, until {until:%Y-%m-%d %H:%M:%S} UTC at the earliest."
    )
    assert "amount_fallback" in str(error.hint)


async def test_no_amount_is_drawn_that_is_a_price(database: Database) -> None:
    """Of a skill, or of a job that waits: who pays it without its millionths has no memo."""
    skill = await crowd(database)
    skills = [await add_skill(database, Decimal(FREE[0]) / 1_000_000)]
    skills += [await add_skill(database, price) for price in (None, Decimal("NaN"), Decimal(-1))]
    for price, status in ((FREE[1], "pending"), (FREE[2], "completed"), (FREE[3], "pending")):
        job = await add_job(database, str(Decimal(price) / 1_000_000))
        await execute(database, "UPDATE jobs SET status = $2 WHERE id = $1", job.id, status)
    await execute(
        database, "INSERT INTO jobs (skill_id) SELECT $1 FROM generate_series(1, 16)", skill
    )
    drawn = await rows(database, "SELECT unique_amount_units AS a FROM jobs ORDER BY id DESC")
    assert sorted(each["a"] for each in drawn[:16]) == [FREE[2], *FREE[4:]]
    with pytest.raises(asyncpg.PostgresError) as caught:
        await add_job(database, skill_id=skill)
    assert caught.value.sqlstate == "OP001"


async def test_the_error_goes_by_the_settings(database: Database) -> None:
    skill = await crowd(database)
    await execute(database, "INSERT INTO jobs (skill_id) SELECT $1 FROM generate_series(1, 19)", 1)
    await first_cursor(database)
    await JobStore(database).release_amounts(CHAIN, HOUR, 3 * HOUR)
    with pytest.raises(asyncpg.PostgresError) as caught:
        await add_job(database, skill_id=skill)
    assert f"until {START + DAY + 4 * HOUR:%Y-%m-%d %H:%M:%S} UTC" in str(caught.value.detail)


async def test_who_needs_no_amount_is_never_refused(database: Database) -> None:
    skill = await crowd(database)
    await execute(database, "INSERT INTO jobs (skill_id) SELECT $1 FROM generate_series(1, 19)", 1)
    named = await add_job(database, skill_id=skill, unique_amount_units=2 * PRICE)
    assert named.unique_amount == 2 * PRICE
    assert (await add_job(database, skill_id=skill, status="completed")).unique_amount is None
    dearer = await add_job(database, skill_id=skill, price_usdc=Decimal("1.000001"))
    assert dearer.unique_amount == PRICE + 10_000, "the one that is not a neighbour's, too"
    await execute(database, "UPDATE payment_terms SET amount_fallback = false")
    assert (await add_job(database, skill_id=skill)).unique_amount is None


async def test_many_sessions_draw_the_last_ones(database: Database) -> None:
    """No amount twice, and nobody is told that there is none before there is none."""
    skill = await crowd(database)

    async def draw_some() -> list[int | None]:
        return [await draw() for _ in range(5)]

    async def draw() -> int | None:
        try:
            async with database.transaction() as connection:
                found: int = await connection.fetchval(
                    "INSERT INTO jobs (skill_id) VALUES ($1) RETURNING unique_amount_units", skill
                )
                # Others look for theirs while this transaction goes on.
                await connection.execute("SELECT count(*) FROM jobs")
                return found
        except asyncpg.PostgresError as exc:
            if exc.sqlstate != "OP001":
                raise
            return None

    async with asyncio.timeout(30):
        by_session = await asyncio.gather(*(draw_some() for _ in range(5)))
    drawn = [amount for session in by_session for amount in session]
    assert sorted(amount for amount in drawn if amount is not None) == FREE
    assert drawn.count(None) == 6


async def test_an_amount_behind_a_lock_is_waited_for(database: Database) -> None:
    """Another's transaction holds the bucket of the one that it leaves."""
    skill = await crowd(database)
    async with database.transaction() as other:
        await other.execute(
            "INSERT INTO jobs (skill_id) SELECT $1 FROM generate_series(1, 18)", skill
        )
        async with asyncio.timeout(10), lock_waits(database, other):
            waiting = asyncio.create_task(add_job(database, skill_id=skill))
    job = await waiting
    stored = await rows(database, "SELECT unique_amount_units AS a FROM jobs ORDER BY id DESC")
    assert job.unique_amount in FREE
    assert sorted(each["a"] for each in stored[:19]) == FREE


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM jobs WHERE id = $1",
        "UPDATE jobs SET expires_at = expires_at - interval '30 days' WHERE id = $1",
        "UPDATE jobs SET status = 'refunded' WHERE id = $1",
        "UPDATE jobs SET unique_amount_units = 77 WHERE id = $1",
        f"UPDATE jobs SET pay_to = '{SHOP}' WHERE id = $1",
        """
        WITH a AS (UPDATE jobs SET expires_at = expires_at + interval '1 hour' WHERE id = $1)
        SELECT
        """,
    ],
    ids=["deleted", "expired early", "closed", "another amount", "another recipient", "prolonged"],
)
async def test_a_host_frees_no_amount_early(database: Database, change: str) -> None:
    old = await add_old_job(database)
    amount = old.unique_amount
    await execute(database, change, old.id)
    for hours in (0, 1, 24):
        await release(database, hours * HOUR)
        assert await is_reserved(database, amount), f"after {hours} hours"
    await release(database, timedelta(hours=26, seconds=1))
    assert not await is_reserved(database, amount)


async def is_reserved(database: Database, amount: int | None) -> bool:
    found = await rows(
        database,
        "SELECT 1 FROM jobs WHERE unique_amount_units = $1 AND amount_is_held UNION ALL"
        " SELECT 1 FROM retired_amounts WHERE unique_amount_units = $1",
        amount,
    )
    return bool(found)


async def test_an_expiry_that_was_prolonged_and_taken_back(database: Database) -> None:
    old = await add_old_job(database)
    for days in (5, -7, 1):
        await execute(
            database,
            "UPDATE jobs SET expires_at = expires_at + $1 WHERE id = $2",
            DAY * days,
            old.id,
        )
    await release(database, 5 * DAY + 25 * HOUR)
    assert await is_reserved(database, old.unique_amount)
    await release(database, 5 * DAY + 26 * HOUR)
    assert not await is_reserved(database, old.unique_amount)


async def test_the_amount_of_a_deleted_job_may_not_be_named(database: Database) -> None:
    old = await add_old_job(database)
    await execute(database, "DELETE FROM jobs")
    with pytest.raises(asyncpg.UniqueViolationError, match="still reserved"):
        await add_job(database, unique_amount_units=old.unique_amount)
    with pytest.raises(asyncpg.UniqueViolationError, match="still reserved"):
        await add_job(database, unique_amount_units=old.unique_amount, pay_to=SHOP)
    assert await release(database, 26 * HOUR) == 1
    await add_job(database, unique_amount_units=old.unique_amount)


@pytest.mark.parametrize("old_payee", [None, SHOP])
@pytest.mark.parametrize("new_payee", [None, SHOP, SHOP.upper().replace("X", "x"), ELSEWHERE])
async def test_nor_given_to_a_job_that_may_be_paid_where_it_was(
    database: Database, old_payee: str | None, new_payee: str | None
) -> None:
    """Whether the amount comes to the job or the recipient to the amount."""
    old = await add_old_job(database, pay_to=old_payee)
    await execute(database, "DELETE FROM jobs")
    named = "UPDATE jobs SET unique_amount_units = $2, pay_to = $3 WHERE id = $1"
    job = await add_job(database, pay_to=ELSEWHERE)
    meets = None in (old_payee, new_payee) or new_payee != ELSEWHERE
    if meets:
        with pytest.raises(asyncpg.UniqueViolationError, match="still reserved"):
            await execute(database, named, job.id, old.unique_amount, new_payee)
        assert (await job_row(database, job.id))["unique_amount_units"] == job.unique_amount
        await release(database, 26 * HOUR)
    await execute(database, named, job.id, old.unique_amount, new_payee)


async def test_a_job_may_take_its_own_amount_back(database: Database) -> None:
    """And go on to one of its recipients with it; nobody else may."""
    old, other = await add_old_job(database), await add_job(database)
    amount = old.unique_amount
    for change in ("unique_amount_units = 77", f"unique_amount_units = {amount}"):
        await execute(database, f"UPDATE jobs SET {change} WHERE id = $1", old.id)
    await execute(database, "UPDATE jobs SET pay_to = $2 WHERE id = $1", old.id, SHOP)
    with pytest.raises(asyncpg.UniqueViolationError, match="still reserved"):
        await execute(
            database, "UPDATE jobs SET unique_amount_units = $2 WHERE id = $1", other.id, amount
        )
    paid = await match(database, observed(amount or 0, block=header(1)))
    assert await standing(database, paid) == [("unmatched", "late")]
    await execute(database, "DELETE FROM payments")
    await execute(database, "DELETE FROM jobs WHERE id = $1", old.id)
    with pytest.raises(asyncpg.UniqueViolationError, match="still reserved"):
        await add_job(database, unique_amount_units=amount)


async def test_an_amount_that_two_jobs_had_rests_when_one_gives_it_up(database: Database) -> None:
    """Both at overlapping recipients. Until then it is told that it cannot be told apart."""
    amount = PRICE + 77
    old = await add_old_job(database, unique_amount_units=amount)
    job = await add_job(database, unique_amount_units=amount, pay_to=SHOP)
    both = await match(database, observed(amount, block=header(1)))
    await execute(database, "DELETE FROM jobs WHERE id = $1", old.id)
    one = await match(database, observed(amount, block=header(2)))
    assert await standing(database, both + one) == [
        ("unmatched", "ambiguous_amount"),
        ("unmatched", "no_memo"),
    ]
    assert await release(database, 26 * HOUR) == 1
    await execute(database, "UPDATE payments SET status = 'seen', reason = NULL")
    await PaymentStore(database, CHAIN).decide_seen(DECIDE, 10)
    assert await standing(database, both + one) == [("matched", None), ("unmatched", "duplicate")]
    assert (await row(database, "SELECT job_id FROM payments WHERE id = $1", both[0])) == {
        "job_id": job.id
    }


@pytest.mark.parametrize("change", ["unique_amount_units = 1000077", f"pay_to = '{SHOP}'"])
async def test_who_paid_an_amount_before_it_became_this_jobs_meant_another(
    database: Database, change: str
) -> None:
    job = await add_job(database)
    await first_cursor(database)
    await execute(database, "UPDATE chain_cursor SET finalized_number = 1")
    await execute(database, "UPDATE jobs SET expires_at = expires_at + interval '1 hour'")
    assert (await job_row(database, job.id))["amount_after_block"] == -1
    await execute(database, f"UPDATE jobs SET {change} WHERE id = $1", job.id)
    amount = (await job_row(database, job.id))["unique_amount_units"]
    old, new = await match(
        database, observed(amount, block=header(1)), observed(amount, block=header(2))
    )
    assert await standing(database, [old, new]) == [("unmatched", "no_memo"), ("matched", None)]


async def test_the_amount_of_a_job_that_is_being_deleted_may_not_be_named(
    database: Database,
) -> None:
    """The INSERT waits for the DELETE, and must see what that left behind."""
    old = await add_old_job(database)
    async with database.transaction() as host:
        await host.execute("DELETE FROM jobs")
        async with asyncio.timeout(10), lock_waits(database, host):
            naming = asyncio.create_task(add_job(database, unique_amount_units=old.unique_amount))
    with pytest.raises(asyncpg.UniqueViolationError, match="still reserved"):
        await naming


async def test_a_payment_that_waits_for_its_decision_holds_its_amount(database: Database) -> None:
    """The matcher is behind: what it has not seen yet may be meant for this job."""
    old = await add_old_job(database)
    await see(database, observed(old.unique_amount or 0))
    assert await release(database, 30 * HOUR) == 0
    await PaymentStore(database, CHAIN).decide_seen(DECIDE, 10)
    assert await release(database, 30 * HOUR) == 1


async def test_late_money_lies_beside_the_job_that_it_was_meant_for(database: Database) -> None:
    old = await add_old_job(database)
    ids = await match(database, observed(old.unique_amount or 0))
    assert await standing(database, ids) == [("unmatched", "late")]
    found = await row(database, "SELECT job_id FROM payments")
    assert found["job_id"] == old.id


async def test_money_from_before_its_draw_pays_no_job(database: Database) -> None:
    """A rescan finds a payment whose amount has been drawn for another job since."""
    await first_cursor(database)
    await execute(database, "UPDATE chain_cursor SET finalized_number = 1")
    job = await add_job(database)
    assert (await job_row(database, job.id))["amount_after_block"] == 1
    old, new = await match(
        database,
        observed(job.unique_amount or 0, block=header(1)),
        observed(job.unique_amount or 0, block=header(2)),
    )
    assert await standing(database, [old, new]) == [("unmatched", "no_memo"), ("matched", None)]


@pytest.mark.parametrize("is_held", [True, False])
async def test_a_second_payment_by_amount_is_nobodys_once_the_amount_is_free(
    database: Database, is_held: bool
) -> None:
    """The host opens an old job again; its amount may be another job's by now."""
    job = await add_job(database, status="disputed", unique_amount_units=PRICE + 5)
    await execute(database, "UPDATE jobs SET amount_is_held = true")
    by_memo, by_amount = await match(
        database, observed(PRICE, job.memo), observed(job.unique_amount or 0)
    )
    assert await standing(database, [by_memo, by_amount]) == [("unmatched", "duplicate")] * 2
    await execute(database, "UPDATE jobs SET status = 'pending', amount_is_held = $1", is_held)
    assert await PaymentStore(database, CHAIN).reconsider() == 1 + is_held
    again = ("seen", None) if is_held else ("unmatched", "duplicate")
    assert await standing(database, [by_memo, by_amount]) == [("seen", None), again]


@pytest.mark.parametrize("is_held", [True, False])
async def test_nor_when_the_first_payment_leaves_the_chain(
    database: Database, is_held: bool
) -> None:
    job = await add_job(database)
    (paid,) = await credit(database, job, PRICE)
    (twice,) = await match(database, observed(job.unique_amount or 0))
    await execute(database, "UPDATE jobs SET amount_is_held = $1", is_held)
    await orphan(database, paid)
    expected = ("seen", None) if is_held else ("unmatched", "duplicate")
    assert await standing(database, [twice]) == [expected]


async def test_an_expiry_at_the_end_of_time_disturbs_no_other(database: Database) -> None:
    await add_job(database)
    await execute(database, "UPDATE jobs SET expires_at = '294276-12-31 23:59:59 UTC'")
    await add_old_job(database)
    assert await release(database, 30 * HOUR) == 1
