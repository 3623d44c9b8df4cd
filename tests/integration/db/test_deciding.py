"""What was seen is decided once, under locks on the jobs that it speaks of."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

from db.deciding import PRICES
from db.payments import PaymentStore
from db.pool import Database
from db.ranges import RangeStore
from oncepaid.domain.chain import Address
from oncepaid.domain.jobs import JobId, JobTerms
from oncepaid.domain.matching import Decision, Matched
from oncepaid.domain.payments import PaymentId, SeenPayment
from tests.integration.db.support import (
    DECIDE,
    EPOCH,
    SHOP,
    Job,
    add_job,
    add_skill,
    cursor_at,
    execute,
    first_cursor,
    header,
    match,
    observed,
    rows,
    see,
    standing,
)

PRICE = 1_000_000
ELSEWHERE = Address("0x" + "77" * 20)


async def add_jobs(database: Database, count: int) -> list[Job]:
    skill = await add_skill(database)
    return [await add_job(database, skill_id=skill) for _ in range(count)]


async def test_by_memo_and_by_amount(database: Database, ledger: PaymentStore) -> None:
    first, second = await add_jobs(database, 2)
    assert second.unique_amount is not None
    ids = await see(
        database,
        observed(PRICE, first.memo),
        observed(second.unique_amount),
        observed(PRICE),
        observed(PRICE, b"nobody's memo..."),
        observed(2**256 - 1),
    )
    decided = await ledger.decide_seen(DECIDE, 10)
    assert [each.payment.id for each in decided] == ids
    named = [each.decision.job_id if each.decision else -1 for each in decided]
    assert named == [first.id, second.id, None, None, None]
    assert [each.job_uuid is None for each in decided] == [job is None for job in named]
    assert await standing(database, ids) == [
        ("matched", None),
        ("matched", None),
        ("unmatched", "no_memo"),
        ("unmatched", "unknown_memo"),
        ("unmatched", "no_memo"),
    ]
    assert await ledger.decide_seen(DECIDE, 10) == []


async def test_an_amount_that_is_another_jobs_price(database: Database) -> None:
    """A payer without a memo may have left out the millionths: nobody's job is guessed."""
    first = await add_job(database, "0.001", unique_amount_units=5_000)
    other = await add_job(database, "0.005")
    assert other.unique_amount is not None
    ids = await match(
        database,
        observed(5_000),
        observed(5_000, sender=ELSEWHERE),
        observed(other.unique_amount),
        observed(5_000, first.memo),
    )
    assert await standing(database, ids) == [
        ("unmatched", "ambiguous_amount"),
        ("unmatched", "ambiguous_amount"),
        ("matched", None),
        ("matched", None),
    ]


@pytest.mark.parametrize(
    "change",
    [
        "status = 'paid'",
        "pay_to = '0x7777777777777777777777777777777777777777'",
        "price_usdc = 0.005001",
        "price_usdc = 0.004999",
        "unique_amount_units = 5000, pay_to = '0x7777777777777777777777777777777777777777'",
        "amount_after_block = 1",
        "price_usdc = NULL",
    ],
)
async def test_a_price_that_nobody_can_mean(database: Database, change: str) -> None:
    await add_job(database, "0.001", unique_amount_units=5_000)
    other = await add_job(database, "0.005")
    await execute(database, f"UPDATE jobs SET {change} WHERE id = $1", other.id)
    assert await standing(database, await match(database, observed(5_000))) == [("matched", None)]


async def test_an_amount_that_is_its_own_jobs_price(database: Database) -> None:
    """A host names it so, and knows why."""
    await add_job(database, "0.005", unique_amount_units=5_000)
    assert await standing(database, await match(database, observed(5_000))) == [("matched", None)]


async def test_the_price_of_a_job_is_found_by_its_index(database: Database) -> None:
    skill = await add_skill(database)
    await execute(
        database,
        "INSERT INTO jobs (skill_id, price_usdc) SELECT $1, 1 + n FROM generate_series(1, 2000) n",
        skill,
    )
    async with database.connection() as connection:
        await connection.execute("ANALYZE jobs")
        ours = ([1], [5_000], [SHOP], [1])
        plan = await connection.fetch("EXPLAIN " + PRICES, *ours)
    assert "jobs_awaited_price_idx" in "\n".join(line[0] for line in plan)


async def test_in_batches(database: Database, ledger: PaymentStore) -> None:
    ids = await see(database, *(observed(n + 1) for n in range(25)))
    sizes = [len(await ledger.decide_seen(DECIDE, 10)) for _ in range(4)]
    assert sizes == [10, 10, 5, 0]
    assert set(await standing(database, ids)) == {("unmatched", "no_memo")}


async def test_second_payment_of_a_job_is_a_duplicate(database: Database) -> None:
    """Whether the first came in the same batch or in an earlier one."""
    (job,) = await add_jobs(database, 1)
    ids = await match(database, observed(PRICE, job.memo), observed(PRICE, job.memo))
    ids += await match(database, observed(job.unique_amount or 0))
    assert await standing(database, ids) == [
        ("matched", None),
        ("unmatched", "duplicate"),
        ("unmatched", "duplicate"),
    ]


@pytest.mark.parametrize("is_one_batch", [True, False])
async def test_partial_payments_add_up(database: Database, is_one_batch: bool) -> None:
    (job,) = await add_jobs(database, 1)
    parts = [observed(units, job.memo) for units in (400_000, 500_000, 100_000)]
    if is_one_batch:
        ids = await match(database, *parts)
    else:
        ids = await match(database, *parts[:2])
        assert await standing(database, ids) == [("unmatched", "underpaid")] * 2
        ids += await match(database, parts[2])
    assert await standing(database, ids) == [("matched", None)] * 3


async def test_two_deciders_decide_each_once(database: Database, ledger: PaymentStore) -> None:
    """Both know all jobs; every job has two full payments, and exactly one of them counts."""
    jobs = await add_jobs(database, 40)
    await see(database, *(observed(PRICE, job.memo) for job in jobs + jobs))
    asked: Counter[PaymentId] = Counter()

    def decide(
        payments: Sequence[SeenPayment], terms: Sequence[JobTerms]
    ) -> Mapping[PaymentId, Decision]:
        asked.update(payment.id for payment in payments)
        return DECIDE(payments, terms)

    async def decide_everything() -> int:
        done = 0
        while batch := await ledger.decide_seen(decide, 7):
            done += sum(each.decision is not None for each in batch)
        return done

    async with asyncio.timeout(20):
        assert sum(await asyncio.gather(*(decide_everything() for _ in range(3)))) == 80
    assert set(asked.values()) == {1}
    found = await rows(database, "SELECT job_id, status, reason FROM payments")
    matched = Counter(each["job_id"] for each in found if each["status"] == "matched")
    assert matched == {job.id: 1 for job in jobs}
    rest = {(each["status"], each["reason"]) for each in found if each["status"] != "matched"}
    assert rest == {("unmatched", "duplicate")}


async def test_a_job_that_another_decides_on_is_passed_over(
    database: Database, ledger: PaymentStore
) -> None:
    """The first one's decision is not committed: the second must not decide on what was."""
    job, free = await add_jobs(database, 2)
    first, second, third = await see(
        database, observed(PRICE, job.memo), observed(PRICE, job.memo), observed(PRICE, free.memo)
    )
    async with database.transaction() as other, asyncio.timeout(5):
        await other.execute("SELECT FROM payments WHERE id = $1 FOR UPDATE", first)
        await other.execute("SELECT FROM jobs WHERE id = $1 FOR NO KEY UPDATE", job.id)
        meanwhile = await ledger.decide_seen(DECIDE, 10)
        decided = [each.payment.id for each in meanwhile if each.decision is not None]
        assert decided == [third], "it waits for nobody else's job"
        await other.execute(
            "UPDATE payments SET status = 'matched', job_id = $2, matched_at = now() WHERE id = $1",
            first,
            job.id,
        )
    assert [each.payment.id for each in await ledger.decide_seen(DECIDE, 10)] == [second]
    assert await standing(database, [first, second]) == [
        ("matched", None),
        ("unmatched", "duplicate"),
    ]


async def test_failing_decision_leaves_all_as_seen(
    database: Database, ledger: PaymentStore
) -> None:
    ids = await see(database, observed(1), observed(2))

    def decide(*_: object) -> Mapping[PaymentId, Decision]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ledger.decide_seen(decide, 10)
    assert await standing(database, ids) == [("seen", None)] * 2
    assert len(await ledger.decide_seen(DECIDE, 10)) == 2


async def test_released_amount_matches_no_more(database: Database) -> None:
    (job,) = await add_jobs(database, 1)
    await execute(database, "UPDATE jobs SET amount_is_held = false")
    ids = await match(database, observed(job.unique_amount or 0))
    assert await standing(database, ids) == [("unmatched", "no_memo")]


@pytest.mark.parametrize(
    ("expiry", "standing_then"),
    [
        ("infinity", ("matched", None)),
        ("20000-01-01", ("matched", None)),
        ("4000-01-01 BC", ("unmatched", "late")),
        ("-infinity", ("unmatched", "late")),
    ],
)
async def test_endless_expiry(
    database: Database, expiry: str, standing_then: tuple[str, str | None]
) -> None:
    (job,) = await add_jobs(database, 1)
    await execute(database, f"UPDATE jobs SET expires_at = '{expiry}'")
    ids = await match(database, observed(PRICE, job.memo))
    assert await standing(database, ids) == [standing_then]


async def test_unusable_price_is_named(database: Database) -> None:
    jobs = [await add_job(database, price=price) for price in ("NaN", "-1", "0.0000005")]
    ids = await match(database, *(observed(PRICE, job.memo) for job in jobs))
    unpayable = ("unmatched", "job_not_payable")
    assert await standing(database, ids) == [unpayable, unpayable, ("matched", None)]


async def test_payments_of_another_chain_are_left_alone(
    database: Database, ledger: PaymentStore
) -> None:
    """A test network's tokens are free: they must not pay what is sold for the real ones."""
    (job,) = await add_jobs(database, 1)
    other = PaymentStore(database, 84532)
    await first_cursor(database, 84532)
    await RangeStore(database, 84532).store_range(
        cursor_at(0), header(1), [observed(PRICE, job.memo)], epoch=EPOCH
    )
    assert await ledger.decide_seen(DECIDE, 10) == []
    (decided,) = await other.decide_seen(DECIDE, 10)
    assert isinstance(decided.decision, Matched)
    assert await ledger.load_matched(JobId(0), 10) == []
