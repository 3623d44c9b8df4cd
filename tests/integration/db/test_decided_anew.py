"""Money that its job waits for after all: decided anew, and counted with what is left of it."""

import pytest

from db.payments import PaymentStore
from db.pool import Database
from db.ranges import RangeStore
from db.reversals import ReversalStore
from oncepaid.domain.matching import Matched, Unmatched
from oncepaid.domain.payments import Reason
from oncepaid.domain.reversal import COVERED, reverse
from tests.integration.db.credits import LIMIT, PRICE, credit, orphan, state
from tests.integration.db.support import (
    CHAIN,
    DECIDE,
    EPOCH,
    add_job,
    execute,
    match,
    observed,
    see,
    standing,
)

pytestmark = pytest.mark.fault("F16")


async def test_money_that_is_left_covers_the_job(
    database: Database, reversals: ReversalStore
) -> None:
    job = await add_job(database, price="2")
    small, large = await credit(database, job, PRICE, 2 * PRICE)
    await orphan(database, small)
    done = await reversals.reverse_orphaned(reverse, LIMIT)
    assert [each.reversal for each in done.reversed] == [COVERED]
    assert await state(database, job) == {
        "status": "paid",
        "credited_units": 2 * PRICE,
        "is_unbacked": False,
    }
    assert await standing(database, [large]) == [("credited", None)]


async def test_a_part_that_is_left_waits_with_the_job(
    database: Database, ledger: PaymentStore, reversals: ReversalStore
) -> None:
    job = await add_job(database, price="2")
    first, second = await credit(database, job, PRICE, PRICE)
    await orphan(database, second)
    await reversals.reverse_orphaned(reverse, LIMIT)
    assert await standing(database, [first]) == [("matched", None)]
    crediting = await ledger.credit([first])
    assert [(each.id, each.reason) for each in crediting.returned] == [(first, Reason.UNDERPAID)]
    (third,) = await see(database, observed(PRICE, job.memo))
    (decided,) = await ledger.decide_seen(DECIDE, LIMIT)
    assert decided.decision == Matched(job_id=job.id)
    assert len((await ledger.credit([first, third])).credited) == 2


async def test_a_part_that_is_still_matched_counts_with_what_comes(
    database: Database, ledger: PaymentStore, reversals: ReversalStore
) -> None:
    """Before the settler saw that the sum is short, the rest arrives again."""
    job = await add_job(database, price="2")
    first, second = await credit(database, job, PRICE, PRICE)
    await orphan(database, second)
    await reversals.reverse_orphaned(reverse, LIMIT)
    (third,) = await match(database, observed(PRICE, job.memo))
    assert await standing(database, [first, third]) == [("matched", None)] * 2
    assert len((await ledger.credit([first, third])).credited) == 2


async def test_who_paid_a_second_time_pays_it_now(
    database: Database, ledger: PaymentStore, reversals: ReversalStore
) -> None:
    job = await add_job(database)
    (paid,) = await credit(database, job, PRICE)
    (twice,) = await match(database, observed(PRICE, job.memo))
    assert await standing(database, [twice]) == [("unmatched", "duplicate")]
    await orphan(database, paid)
    await reversals.reverse_orphaned(reverse, LIMIT)
    (decided,) = await ledger.decide_seen(DECIDE, LIMIT)
    assert (decided.payment.id, decided.decision) == (twice, Matched(job_id=job.id))


async def test_money_that_comes_before_the_reversal_is_no_duplicate(
    database: Database, ledger: PaymentStore, reversals: ReversalStore
) -> None:
    job = await add_job(database)
    (paid,) = await credit(database, job, PRICE)
    await orphan(database, paid)
    (again,) = await match(database, observed(PRICE, job.memo))
    assert await standing(database, [again]) == [("matched", None)]
    crediting = await ledger.credit([again])
    assert (crediting.credited, crediting.returned) == ([], [])
    await reversals.reverse_orphaned(reverse, LIMIT)
    assert len((await ledger.credit([again])).credited) == 1


async def test_partials_that_are_enough_together_are_decided_anew(
    database: Database, ledger: PaymentStore
) -> None:
    job = await add_job(database, price="2")
    ids = await match(database, *(observed(PRICE, job.memo) for _ in range(2)))
    await execute(
        database,
        "UPDATE payments SET status = 'unmatched', reason = 'underpaid', matched_at = NULL",
    )
    assert await ledger.reconsider() == 2
    decided = await ledger.decide_seen(DECIDE, LIMIT)
    assert [each.decision for each in decided] == [
        Unmatched(reason=Reason.UNDERPAID, job_id=job.id),
        Matched(job_id=job.id),
    ]
    assert await standing(database, ids) == [("matched", None)] * 2
    assert await ledger.reconsider() == 0


async def test_nothing_is_credited_while_the_chain_is_in_conflict(
    database: Database, ledger: PaymentStore
) -> None:
    job = await add_job(database)
    ids = await match(database, observed(PRICE, job.memo))
    await RangeStore(database, CHAIN).declare_conflict("block 7 was final", epoch=EPOCH)
    assert await ledger.conflict() == "block 7 was final"
    crediting = await ledger.credit(ids)
    assert (crediting.credited, crediting.returned) == ([], [])
    await execute(database, "UPDATE chain_cursor SET conflict = NULL")
    assert len((await ledger.credit(ids)).credited) == 1


async def test_who_paid_second_pays_it_when_the_first_is_gone_before_its_credit(
    database: Database, ledger: PaymentStore
) -> None:
    job = await add_job(database)
    first, second = await match(database, *(observed(PRICE, job.memo) for _ in range(2)))
    assert await standing(database, [first, second]) == [
        ("matched", None),
        ("unmatched", "duplicate"),
    ]
    await orphan(database, first)
    (decided,) = await ledger.decide_seen(DECIDE, LIMIT)
    assert (decided.payment.id, decided.decision) == (second, Matched(job_id=job.id))


async def test_amounts_below_a_raised_price_add_up_and_are_decided_once(
    database: Database, ledger: PaymentStore
) -> None:
    """A host raised the price above the unique amount that it had told."""
    job = await add_job(database)
    await execute(database, "UPDATE jobs SET price_usdc = 2 WHERE id = $1", job.id)
    assert job.unique_amount is not None
    ids = await match(database, *(observed(job.unique_amount) for _ in range(2)))
    assert await standing(database, ids) == [("matched", None)] * 2
    assert await ledger.reconsider() == 0


@pytest.mark.parametrize("change", ["status = 'disputed'", "price_usdc = 0.1"])
async def test_what_a_host_toggles_is_decided_anew(
    database: Database, ledger: PaymentStore, change: str
) -> None:
    """A payment was one too many only while the job looked otherwise."""
    job = await add_job(database)
    await execute(database, f"UPDATE jobs SET {change} WHERE id = $1", job.id)
    first = await match(database, observed(PRICE // 2, job.memo))
    (second,) = await match(database, observed(PRICE, job.memo))
    assert await standing(database, [second]) == [("unmatched", "duplicate")]
    await execute(
        database, "UPDATE jobs SET status = 'pending', price_usdc = 1 WHERE id = $1", job.id
    )
    await ledger.credit(first)
    await ledger.reconsider()
    await ledger.decide_seen(DECIDE, LIMIT)
    assert (await standing(database, [second]))[0] == ("matched", None)
    assert await ledger.reconsider() == 0
