"""A job becomes paid in the transaction that credits its payments, and never twice."""

import asyncio
from decimal import Decimal

import pytest

from db.payments import PaymentStore
from db.pool import Database
from oncepaid.domain.errors import DatabaseUnavailable
from oncepaid.domain.jobs import JobId
from oncepaid.domain.payments import PaymentId
from tests.integration.db.support import (
    CHAIN,
    Job,
    add_job,
    execute,
    job_row,
    match,
    observed,
    rows,
    standing,
)

PRICE = 1_000_000
CREDITED = ("credited", None)
MATCHED = ("matched", None)


async def pay(database: Database, *units: int) -> tuple[Job, list[PaymentId]]:
    """A job with matched payments of these amounts, which together reach its price."""
    job = await add_job(database)
    ids = await match(database, *(observed(each, job.memo) for each in units))
    assert await standing(database, ids) == [MATCHED] * len(units)
    return job, ids


async def test_job_and_payments_together(database: Database, ledger: PaymentStore) -> None:
    job, ids = await pay(database, 400_000, 700_000)
    other, _ = await pay(database, PRICE)
    credited = (await ledger.credit(ids)).credited
    assert sorted((each.id, each.job_id, each.units) for each in credited) == [
        (ids[0], job.id, 400_000),
        (ids[1], job.id, 700_000),
    ]
    assert {each.service_key for each in credited} == {"creativeconcept"}
    assert await standing(database, ids) == [CREDITED] * 2
    stored = await job_row(database, job.id)
    assert (stored["status"], stored["credited_units"]) == ("paid", 1_100_000)
    assert stored["paid_at"] is not None
    assert (await job_row(database, other.id))["status"] == "pending"


async def test_twice_counts_once(database: Database, ledger: PaymentStore) -> None:
    job, ids = await pay(database, PRICE)
    await ledger.credit(ids)
    before = await job_row(database, job.id)
    assert (await ledger.credit(ids)).credited == []
    assert await standing(database, ids) == [CREDITED]
    assert await job_row(database, job.id) == before


async def test_at_once_counts_once(database: Database, ledger: PaymentStore) -> None:
    paid = [await pay(database, 500_000, 500_000) for _ in range(10)]
    ids = [payment for _, group in paid for payment in group]
    answers = [
        answer.credited
        for answer in await asyncio.gather(
            ledger.credit(ids), ledger.credit(ids[::-1]), ledger.credit(ids)
        )
    ]
    assert sorted(each.id for answer in answers for each in answer) == sorted(ids)
    assert await standing(database, ids) == [CREDITED] * 20
    sums = await rows(database, "SELECT DISTINCT status, credited_units FROM jobs")
    assert sums == [{"status": "paid", "credited_units": 1_000_000}]


async def test_a_crash_in_between_credits_nothing(own_database: Database) -> None:
    """The job's row refuses: its payments must not be credited either."""
    job, ids = await pay(own_database, PRICE)
    await execute(
        own_database,
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = '53100'; END $$
        """,
    )
    await execute(
        own_database,
        "CREATE TRIGGER refuse AFTER UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    with pytest.raises(DatabaseUnavailable):
        await PaymentStore(own_database, CHAIN).credit(ids)
    assert await standing(own_database, ids) == [MATCHED]
    assert (await job_row(own_database, job.id))["status"] == "pending"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("status = 'refunded'", "duplicate"),
        ("status = 'completed'", "duplicate"),
        ("status = 'paid'", "duplicate"),
        ("price_usdc = 1.000001", "underpaid"),
        ("price_usdc = NULL", "job_not_payable"),
        ("price_usdc = 'NaN'", "underpaid"),
    ],
)
async def test_host_changed_the_job_meanwhile(
    database: Database, ledger: PaymentStore, change: str, reason: str
) -> None:
    job, ids = await pay(database, 500_000, 500_000)
    sound, sound_ids = await pay(database, PRICE)
    await execute(database, f"UPDATE jobs SET {change} WHERE id = $1", job.id)
    credited = (await ledger.credit([*ids, *sound_ids])).credited
    assert [each.job_id for each in credited] == [sound.id]
    assert await standing(database, ids) == [("unmatched", reason)] * 2
    assert (await job_row(database, job.id))["credited_units"] == 0


@pytest.mark.parametrize("change", ["status = 'refunded'", "completed_at = now()"])
async def test_host_changes_the_job_at_the_same_time(
    database: Database, ledger: PaymentStore, change: str
) -> None:
    """Its change is not committed yet: the job is passed over, others are not held up by it."""
    job, ids = await pay(database, PRICE)
    other, other_ids = await pay(database, PRICE)
    async with database.transaction() as host, asyncio.timeout(5):
        await host.execute(f"UPDATE jobs SET {change} WHERE id = $1", job.id)
        meanwhile = await ledger.credit([*ids, *other_ids])
    assert [each.job_id for each in meanwhile.credited] == [other.id]
    assert (meanwhile.returned, await standing(database, ids)) == ([], [("matched", None)])
    crediting = await ledger.credit(ids)
    if "status" in change:
        assert crediting.credited == []
        assert await standing(database, ids) == [("unmatched", "duplicate")]
        assert (await job_row(database, job.id))["status"] == "refunded"
    else:
        assert [each.id for each in crediting.credited] == ids
        assert await standing(database, ids) == [CREDITED]
        assert (await job_row(database, job.id))["status"] == "paid"


@pytest.mark.parametrize("status", ["orphaned", "refunded", "ignored"])
async def test_payment_that_is_matched_no_more(
    database: Database, ledger: PaymentStore, status: str
) -> None:
    """Its block left the chain, or an operator dealt with it, since it was loaded."""
    job, ids = await pay(database, PRICE)
    await execute(database, "UPDATE payments SET status = $1", status)
    assert (await ledger.credit(ids)).credited == []
    assert await standing(database, ids) == [(status, None)]
    assert (await job_row(database, job.id))["status"] == "pending"


async def test_part_of_a_group_is_not_credited(database: Database, ledger: PaymentStore) -> None:
    job, ids = await pay(database, 400_000, 600_000)
    assert (await ledger.credit(ids[:1])).credited == []
    assert (await job_row(database, job.id))["status"] == "pending"
    assert (await standing(database, ids))[1] == MATCHED


async def test_raised_price_and_a_top_up(database: Database, ledger: PaymentStore) -> None:
    """Nothing is lost: what became too little counts again with the rest."""
    job, ids = await pay(database, PRICE)
    await execute(database, "UPDATE jobs SET price_usdc = 1.5 WHERE id = $1", job.id)
    await ledger.credit(ids)
    ids += await match(database, observed(500_000, job.memo))
    assert await standing(database, ids) == [MATCHED] * 2
    await ledger.credit(ids)
    assert (await job_row(database, job.id))["credited_units"] == 1_500_000


async def test_price_of_finer_decimals_is_not_undercut(
    own_database: Database,
) -> None:
    await execute(own_database, "ALTER TABLE jobs ALTER COLUMN price_usdc TYPE numeric")
    job = await add_job(own_database, price="1.0000001")
    ids = await match(own_database, observed(PRICE, job.memo))
    assert await standing(own_database, ids) == [("unmatched", "underpaid")]
    ids += await match(own_database, observed(1, job.memo))
    assert len((await PaymentStore(own_database, CHAIN).credit(ids)).credited) == 2
    assert (await job_row(own_database, job.id))["price_usdc"] == Decimal("1.0000001")


async def test_pages_of_matched_payments(database: Database, ledger: PaymentStore) -> None:
    """A page ends between jobs, and a job's sum is that of all its matched payments."""
    groups = [await pay(database, 300_000, 700_000) for _ in range(5)]
    await match(database, observed(5))
    after, pages = JobId(0), []
    while page := await ledger.load_matched(after, 2):
        pages.append([(payment.job_id, payment.id) for payment in page])
        assert {payment.job_units for payment in page} == {1_000_000}
        after = page[-1].job_id
    expected = [(job.id, payment) for job, ids in groups for payment in ids]
    assert pages == [expected[:4], expected[4:8], expected[8:]]


async def test_a_batch_of_many_jobs(database: Database, ledger: PaymentStore) -> None:
    ids = [payment for _ in range(30) for payment in (await pay(database, PRICE))[1]]
    assert len((await ledger.credit(ids)).credited) == 30


async def test_a_host_that_refuses_one_job_holds_up_no_other(own_database: Database) -> None:
    database = own_database
    refused, free = await add_job(database), await add_job(database)
    ids = await match(database, *(observed(PRICE, job.memo) for job in (refused, free)))
    await execute(
        database,
        f"ALTER TABLE jobs ADD CONSTRAINT never_paid CHECK (id <> {refused.id} OR paid_at IS NULL)",
    )
    crediting = await PaymentStore(database, CHAIN).credit(ids)
    assert [each.job_id for each in crediting.credited] == [free.id]
    (problem,) = crediting.refused.values()
    assert "never_paid" in problem
