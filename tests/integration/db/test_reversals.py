"""Credits whose block is gone: by rule, once, and never at somebody else's expense."""

import asyncio
from datetime import timedelta

import pytest

from db.jobs import JobStore
from db.payments import PaymentStore
from db.pool import Database
from db.ranges import RangeStore
from db.reports import Reports
from db.reversals import ReversalStore
from oncepaid.domain.payments import PaymentStatus
from oncepaid.domain.reversal import LOSE, REOPEN, reverse
from tests.integration.db.credits import LIMIT, PRICE, credit, cursor_number, orphan, rewind, state
from tests.integration.db.support import (
    CHAIN,
    DECIDE,
    EPOCH,
    add_job,
    answered,
    claim_one,
    cursor_at,
    execute,
    header,
    lock_waits,
    match,
    observed,
    row,
    rows,
    see,
    standing,
)

pytestmark = pytest.mark.fault("F16")


async def test_a_job_that_was_not_begun_waits_for_money_again(
    database: Database, reversals: ReversalStore
) -> None:
    job = await add_job(database)
    (paid,) = await credit(database, job, PRICE)
    await orphan(database, paid)
    assert await JobStore(database).claim(5, timedelta(minutes=1)) == []
    done = await reversals.reverse_orphaned(reverse, LIMIT)
    assert [(each.id, each.reversal) for each in done.reversed] == [(paid, REOPEN)]
    assert await state(database, job) == {
        "status": "pending",
        "credited_units": 0,
        "is_unbacked": False,
    }
    assert (await reversals.reverse_orphaned(reverse, LIMIT)).reversed == []
    # The same money in another block pays it again.
    (again,) = await credit(database, job, PRICE)
    assert (await state(database, job))["status"] == "paid"
    assert await standing(database, [paid, again]) == [("orphaned", None), ("credited", None)]


@pytest.mark.parametrize("status", ["in_progress", "completed", "failed", "delivered"])
async def test_work_that_was_begun_is_kept_and_the_loss_told(
    database: Database, ledger: PaymentStore, reversals: ReversalStore, status: str
) -> None:
    job = await add_job(database)
    (paid,) = await credit(database, job, PRICE)
    await execute(database, "UPDATE jobs SET status = $1", status)
    await orphan(database, paid)
    done = await reversals.reverse_orphaned(reverse, LIMIT)
    assert [each.reversal for each in done.reversed] == [LOSE]
    assert await state(database, job) == {
        "status": status,
        "credited_units": 0,
        "is_unbacked": True,
    }
    loss = await row(
        database, "SELECT payment_id, amount_units, job_status, made_good_at FROM losses"
    )
    assert loss == {
        "payment_id": paid,
        "amount_units": PRICE,
        "job_status": status,
        "made_good_at": None,
    }
    (told,) = await Reports(database).losses()
    assert (told["payment_id"], told["job_status"], told["amount_units"]) == (paid, status, PRICE)
    shown = await Reports(database).job(str(job.id))
    assert shown is not None
    assert [one["payment_id"] for one in shown["losses"]] == [paid]
    # New money for it makes the loss good, in the state that the job is in.
    (again,) = await match(database, observed(PRICE, job.memo))
    crediting = await ledger.credit([again])
    assert [credited.id for credited in crediting.credited] == [again]
    assert await state(database, job) == {
        "status": status,
        "credited_units": PRICE,
        "is_unbacked": False,
    }
    assert (await row(database, "SELECT made_good_at IS NULL AS is_open FROM losses")) == {
        "is_open": False
    }
    # And only once: it is paid.
    (third,) = await match(database, observed(PRICE, job.memo))
    assert await standing(database, [third]) == [("unmatched", "duplicate")]


async def test_work_that_ends_without_a_result_is_given_up(
    database: Database, reversals: ReversalStore
) -> None:
    """Its worker is gone: nobody is asked again, on nobody's money."""
    job = await add_job(database)
    (paid,) = await credit(database, job, PRICE)
    claimed = await claim_one(database, timedelta(seconds=-1))
    await orphan(database, paid)
    done = await reversals.reverse_orphaned(reverse, LIMIT)
    assert [each.reversal for each in done.reversed] == [LOSE]
    assert done.reopened == [claimed.uuid]
    assert (await state(database, job))["status"] == "pending"
    attempt = await row(database, "SELECT outcome FROM generation_attempts")
    assert attempt == {"outcome": "lost"}
    assert await row(database, "SELECT made_good_at IS NULL AS is_open FROM losses") == {
        "is_open": False
    }


async def test_a_job_that_loses_its_money_in_two_steps_leaves_no_loss_behind(
    database: Database, reversals: ReversalStore
) -> None:
    """Half of it while a call is under way, the rest when that was given back."""
    job = await add_job(database, price="2")
    first, second = await credit(database, job, PRICE, PRICE)
    claimed = await claim_one(database)
    await orphan(database, first)
    assert [r.reversal for r in (await reversals.reverse_orphaned(reverse, LIMIT)).reversed] == [
        LOSE
    ]
    await JobStore(database).release([claimed.attempt])
    await orphan(database, second)
    done = await reversals.reverse_orphaned(reverse, LIMIT)
    assert [each.reversal for each in done.reversed] == [REOPEN]
    assert (await state(database, job))["status"] == "pending"
    assert await row(
        database, "SELECT count(*) AS open FROM losses WHERE made_good_at IS NULL"
    ) == {"open": 0}


async def test_a_call_under_way_goes_on(database: Database, reversals: ReversalStore) -> None:
    job = await add_job(database)
    (paid,) = await credit(database, job, PRICE)
    claimed = await claim_one(database)
    await orphan(database, paid)
    done = await reversals.reverse_orphaned(reverse, LIMIT)
    assert done.reopened == []
    assert await JobStore(database).record_if_leased(claimed.attempt, answered())
    assert (await reversals.reverse_orphaned(reverse, LIMIT)).reopened == []
    assert (await state(database, job))["status"] == "in_progress"


async def test_a_block_that_comes_back_before_the_reversal_changes_nothing(
    database: Database, reversals: ReversalStore
) -> None:
    job = await add_job(database)
    ids = await see(database, paying := observed(PRICE, job.memo, block=header(1)))
    ledger = PaymentStore(database, CHAIN)
    await ledger.decide_seen(DECIDE, LIMIT)
    await ledger.credit(ids)
    before = await rows(database, "SELECT * FROM payments")
    await rewind(database, *ids)
    await RangeStore(database, CHAIN).store_range(cursor_at(0), header(1), [paying], epoch=EPOCH)
    assert await rows(database, "SELECT * FROM payments") == before
    assert (await reversals.reverse_orphaned(reverse, LIMIT)).reversed == []
    assert (await state(database, job))["status"] == "paid"


async def test_a_block_that_comes_back_after_the_reversal_pays_again(
    database: Database, ledger: PaymentStore, reversals: ReversalStore
) -> None:
    job = await add_job(database)
    ids = await see(database, paying := observed(PRICE, job.memo, block=header(1)))
    await ledger.decide_seen(DECIDE, LIMIT)
    await ledger.credit(ids)
    await rewind(database, *ids)
    await reversals.reverse_orphaned(reverse, LIMIT)
    await RangeStore(database, CHAIN).store_range(cursor_at(0), header(1), [paying], epoch=EPOCH)
    assert await standing(database, ids) == [("seen", None)]
    await ledger.decide_seen(DECIDE, LIMIT)
    assert len((await ledger.credit(ids)).credited) == 1


@pytest.mark.parametrize("status", ["refunded", "ignored"])
async def test_what_an_operator_decided_stands_when_the_block_comes_back(
    database: Database, status: str
) -> None:
    ids = await see(database, paying := observed(PRICE, block=header(1)))
    await execute(database, "UPDATE payments SET status = $1", status)
    await rewind(database, *ids)
    await RangeStore(database, CHAIN).store_range(cursor_at(0), header(1), [paying], epoch=EPOCH)
    assert await standing(database, ids) == [(status, None)]


async def test_a_job_that_a_host_holds_is_passed_over(
    database: Database, reversals: ReversalStore
) -> None:
    held, free = await add_job(database), await add_job(database)
    (of_held,) = await credit(database, held, PRICE)
    (of_free,) = await credit(database, free, PRICE)
    await orphan(database, of_held, of_free)
    async with database.transaction() as connection:
        await connection.execute("SELECT FROM jobs WHERE id = $1 FOR UPDATE", held.id)
        done = await reversals.reverse_orphaned(reverse, LIMIT)
        assert [each.id for each in done.reversed] == [of_free]
    done = await reversals.reverse_orphaned(reverse, LIMIT)
    assert [each.id for each in done.reversed] == [of_held]


async def test_a_host_that_refuses_holds_up_nobody_else(own_database: Database) -> None:
    database = own_database
    refused, free = await add_job(database), await add_job(database)
    (of_refused,) = await credit(database, refused, PRICE)
    (of_free,) = await credit(database, free, PRICE)
    await execute(
        database,
        "ALTER TABLE jobs ADD CONSTRAINT never_back"
        f" CHECK (id <> {refused.id} OR paid_at IS NOT NULL) NOT VALID",
    )
    await orphan(database, of_refused, of_free)
    reversals = ReversalStore(database, CHAIN)
    done = await reversals.reverse_orphaned(reverse, LIMIT)
    assert [each.id for each in done.reversed] == [of_free]
    assert ["never_back" in each.problem for each in done.refused] == [True]
    # It stays as it was, and nothing is generated for it.
    assert (await state(database, refused))["status"] == "paid"
    assert await JobStore(database).claim(5, timedelta(minutes=1)) == []


async def test_an_orphaned_payment_remembers_what_it_was(database: Database) -> None:
    job = await add_job(database)
    (credited,) = await credit(database, job, PRICE)
    (unmatched,) = await match(database, observed(5))
    cursor = cursor_at(await cursor_number(database))
    told = await RangeStore(database, CHAIN).rewind(
        cursor, header(0), [credited, unmatched], epoch=EPOCH
    )
    assert told is not None
    was = {each.id: (each.was, each.job_uuid is not None) for each in told}
    assert was == {
        credited: (PaymentStatus.CREDITED, True),
        unmatched: (PaymentStatus.UNMATCHED, False),
    }


async def test_a_job_of_two_payments_is_reversed_as_a_whole(
    database: Database, reversals: ReversalStore
) -> None:
    """However few jobs are taken at once: one half alone would leave the other one stranded."""
    job = await add_job(database, price="2")
    await orphan(database, *await credit(database, job, PRICE, PRICE))
    done = await reversals.reverse_orphaned(reverse, 1)
    assert len(done.reversed) == 2
    assert (await state(database, job))["status"] == "pending"


async def test_a_reversal_waits_for_a_range_that_brings_the_block_back(
    database: Database, reversals: ReversalStore
) -> None:
    job = await add_job(database, price="2")
    await orphan(database, *await credit(database, job, PRICE, PRICE))
    async with database.transaction() as connection:
        await connection.execute("SELECT FROM chain_cursor FOR NO KEY UPDATE")
        async with lock_waits(database, connection):
            reversing = asyncio.create_task(reversals.reverse_orphaned(reverse, LIMIT))
        await connection.execute(
            "UPDATE payments SET status = 'credited', orphaned_from = NULL, orphaned_at = NULL"
        )
    assert (await reversing).reversed == []
    assert (await state(database, job))["status"] == "paid"


async def test_a_job_that_is_paid_in_part_only_is_not_begun_again(
    database: Database, reversals: ReversalStore
) -> None:
    """Its call was given back before the reverser saw that half of its money is gone."""
    job = await add_job(database, price="2")
    first, _ = await credit(database, job, PRICE, PRICE)
    claimed = await claim_one(database)
    await orphan(database, first)
    await reversals.reverse_orphaned(reverse, LIMIT)
    await JobStore(database).release([claimed.attempt])
    assert await state(database, job) == {
        "status": "paid",
        "credited_units": PRICE,
        "is_unbacked": True,
    }
    assert await JobStore(database).claim(5, timedelta(minutes=1)) == []
    assert (await reversals.reverse_orphaned(reverse, LIMIT)).reopened == [claimed.uuid]
    assert (await state(database, job))["status"] == "pending"


async def test_a_job_is_not_given_up_while_another_of_its_credits_is_unreversed(
    database: Database, reversals: ReversalStore
) -> None:
    job = await add_job(database, price="3")
    first, second, _ = await credit(database, job, PRICE, PRICE, PRICE)
    await claim_one(database, timedelta(seconds=-1))
    await orphan(database, first)
    await execute(database, "UPDATE jobs SET is_unbacked = true, credited_units = 2000000")
    await execute(database, "UPDATE payments SET reversed_at = now() WHERE id = $1", first)
    await orphan(database, second)
    async with database.transaction() as connection:
        await connection.execute("SELECT FROM jobs WHERE id = $1 FOR UPDATE", job.id)
        assert (await reversals.reverse_orphaned(reverse, LIMIT)).reopened == []
    done = await reversals.reverse_orphaned(reverse, LIMIT)
    assert ([each.id for each in done.reversed], len(done.reopened)) == ([second], 1)
