"""What came in above a price is recorded, and forgotten with the money that it came from."""

from typing import Final

import pytest

from db.payments import PaymentStore
from db.pool import Database
from db.reversals import ReversalStore
from oncepaid.domain.reversal import reverse
from tests.integration.db.credits import LIMIT, PRICE, credit, orphan
from tests.integration.db.support import CHAIN, Job, add_job, execute, job_row, match, observed

HALF: Final = PRICE // 2


async def overpaid(database: Database, job: Job) -> int:
    return int((await job_row(database, job.id))["overpaid_units"])


@pytest.mark.parametrize(
    ("parts", "above"),
    [
        ((PRICE,), 0),
        ((PRICE + 1,), 1),
        ((3 * PRICE,), 2 * PRICE),
        ((HALF, HALF), 0),
        ((HALF, HALF - 1, HALF), HALF - 1),
    ],
)
async def test_the_sum_of_the_parts_counts(
    database: Database, parts: tuple[int, ...], above: int
) -> None:
    job = await add_job(database)
    await credit(database, job, *parts)
    assert await overpaid(database, job) == above


@pytest.mark.parametrize("with_memo", [True, False])
async def test_the_unique_amount_is_what_was_asked_for(database: Database, with_memo: bool) -> None:
    job = await add_job(database)
    assert job.unique_amount is not None
    ids = await match(database, observed(job.unique_amount, job.memo if with_memo else None))
    assert len((await PaymentStore(database, CHAIN).credit(ids)).credited) == 1
    assert await overpaid(database, job) == 0


async def test_a_price_that_is_no_whole_unit_is_rounded_up(database: Database) -> None:
    job = await add_job(database, price="0.0000015")
    await credit(database, job, 5)
    assert await overpaid(database, job) == 3


async def test_a_second_payment_is_no_excess(database: Database) -> None:
    job = await add_job(database)
    await credit(database, job, PRICE)
    await match(database, observed(PRICE, job.memo))
    assert await overpaid(database, job) == 0


@pytest.mark.parametrize(
    ("gone", "status", "above"), [(0, "paid", 0), (1, "pending", 0), (1, "completed", 0)]
)
async def test_with_the_money_goes_its_excess(
    database: Database, gone: int, status: str, above: int
) -> None:
    """What is left covers the price; the job is open again; its work was done for nothing."""
    job = await add_job(database)
    ids = await credit(database, job, HALF, PRICE)
    assert await overpaid(database, job) == HALF
    if status == "completed":
        await execute(database, "UPDATE jobs SET status = 'completed', completed_at = now()")
    await orphan(database, ids[gone])
    await ReversalStore(database, CHAIN).reverse_orphaned(reverse, LIMIT)
    stored = await job_row(database, job.id)
    assert (stored["status"], stored["overpaid_units"]) == (status, above)


async def test_money_that_makes_a_loss_good_counts_with_what_is_left(database: Database) -> None:
    job = await add_job(database)
    ids = await credit(database, job, HALF, PRICE)
    await execute(database, "UPDATE jobs SET status = 'completed', completed_at = now()")
    await orphan(database, ids[1])
    await ReversalStore(database, CHAIN).reverse_orphaned(reverse, LIMIT)
    again = await match(database, observed(PRICE, job.memo))
    assert len((await PaymentStore(database, CHAIN).credit(again)).credited) == 1
    assert await overpaid(database, job) == HALF
