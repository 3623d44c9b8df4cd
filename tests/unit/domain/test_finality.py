"""A payment counts when its block is as final as its job's sum requires, by chain time."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncepaid.domain.chain import (
    LATEST_DATETIME_MS,
    ZERO_ADDRESS,
    BlockHash,
    BlockRef,
    TxHash,
    time_of,
)
from oncepaid.domain.finality import (
    INCLUDED,
    Aged,
    ChainHeads,
    FinalityAges,
    Finalized,
    Included,
    Requirement,
    Safe,
    Tier,
    by_age,
    is_final_enough,
    parse_requirement,
    requirement_for,
    select_ready,
)
from oncepaid.domain.jobs import JobId
from oncepaid.domain.money import Units
from oncepaid.domain.payments import MatchedPayment, PaymentId, StoredLog
from tests.unit.samples import NOON

TIERS = [
    Tier(up_to=Units(100), require=INCLUDED),
    Tier(up_to=Units(5000), require=Safe()),
    Tier(up_to=None, require=Finalized()),
]
THIRTY = Aged(timedelta(seconds=30))


@pytest.mark.parametrize(
    ("text", "requirement"),
    [
        ("included", Included()),
        ("0s", Aged(timedelta(0))),
        ("30s", THIRTY),
        ("9999999s", Aged(timedelta(seconds=9_999_999))),
        ("safe", Safe()),
        ("finalized", Finalized()),
    ],
)
def test_requirements(text: str, requirement: Requirement) -> None:
    assert parse_requirement(text) == requirement


@pytest.mark.parametrize(
    "text", ["", "s", "30", "30 s", "-1s", "1.5s", "30s\n", "12345678s", "Safe", "latest"]
)
def test_what_is_no_requirement_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is none of"):
        parse_requirement(text)


@pytest.mark.parametrize(
    ("units", "requirement"),
    [
        (0, Included()),
        (100, Included()),
        (101, Safe()),
        (5000, Safe()),
        (5001, Finalized()),
        (2**256, Finalized()),
    ],
)
def test_the_first_tier_that_reaches_the_amount_counts(
    units: int, requirement: Requirement
) -> None:
    assert requirement_for(units, TIERS) == requirement


@pytest.mark.parametrize("tiers", [[], TIERS[:1], TIERS[:2]])
def test_above_all_tiers_only_finality_will_do(tiers: list[Tier]) -> None:
    assert requirement_for(5001, tiers) == Finalized()


def heads(
    *, aged_s: float | None = None, safe: int | None = None, final: int | None = None
) -> ChainHeads:
    latest = None if aged_s is None else NOON + timedelta(seconds=aged_s)
    return ChainHeads(latest_time=latest, safe_number=safe, finalized_number=final)


@pytest.mark.parametrize(
    ("requirement", "heads", "enough"),
    [
        (Included(), heads(), True),
        (THIRTY, heads(), False),
        (THIRTY, heads(aged_s=29.999), False),
        (THIRTY, heads(aged_s=30), True),
        (THIRTY, heads(aged_s=31), True),
        (THIRTY, heads(aged_s=-30), False),
        (THIRTY, heads(safe=1000, final=1000), False),
        (Safe(), heads(), False),
        (Safe(), heads(safe=99), False),
        (Safe(), heads(safe=100), True),
        (Safe(), heads(safe=101), True),
        (Safe(), heads(aged_s=10**6, final=1000), False),
        (Finalized(), heads(), False),
        (Finalized(), heads(safe=1000), False),
        (Finalized(), heads(final=99), False),
        (Finalized(), heads(final=100), True),
        (Finalized(), heads(final=101), True),
        (Finalized(), heads(final=0), False),
    ],
)
def test_block_100_of_noon(requirement: Requirement, heads: ChainHeads, enough: bool) -> None:
    assert is_final_enough(requirement, block_number=100, block_time=NOON, heads=heads) is enough


@pytest.mark.parametrize(
    "block_time", [time_of(LATEST_DATETIME_MS), datetime.max.replace(tzinfo=UTC)]
)
def test_the_last_time_that_there_is_does_not_overflow(block_time: datetime) -> None:
    assert not is_final_enough(THIRTY, block_number=1, block_time=block_time, heads=heads(aged_s=9))


def matched(number: int, job: int, *, units: int, job_units: int, block: int) -> MatchedPayment:
    log = StoredLog(
        id=PaymentId(number),
        block=BlockRef(number=block, hash=BlockHash("0x" + "00" * 32)),
        tx_hash=TxHash("0x" + "11" * 32),
        log_index=0,
        sender=ZERO_ADDRESS,
        recipient=ZERO_ADDRESS,
        units=Units(units),
    )
    return MatchedPayment(log=log, job_id=JobId(job), block_time=NOON, job_units=Units(job_units))


def test_a_job_waits_for_its_slowest_payment_and_for_nobody_elses() -> None:
    old = matched(1, 1, units=60, job_units=120, block=10)
    young = matched(2, 1, units=60, job_units=120, block=20)
    small = matched(3, 2, units=100, job_units=100, block=30)
    large = matched(4, 3, units=5001, job_units=5001, block=5)
    payments = [old, small, young, large]
    assert select_ready(payments, TIERS, heads()) == [small]
    assert select_ready(payments, TIERS, heads(safe=10)) == [small]
    assert select_ready(payments, TIERS, heads(safe=20)) == [old, small, young]
    assert select_ready(payments, TIERS, heads(safe=20, final=5)) == payments
    assert select_ready([], TIERS, heads(safe=20)) == []


def test_the_tier_goes_by_the_sum_not_by_the_part() -> None:
    part = matched(1, 1, units=50, job_units=5050, block=10)
    assert select_ready([part], TIERS, heads(safe=10)) == []
    assert select_ready([part], TIERS, heads(final=10)) == [part]


block_numbers = st.none() | st.integers(0, 40)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 40), st.sampled_from([1, 101, 5001]))),
    block_numbers,
    block_numbers,
)
def test_a_job_is_ready_as_a_whole_or_not_at_all(
    rows: list[tuple[int, int, int]], safe: int | None, final: int | None
) -> None:
    payments = [
        matched(number, job, units=1, job_units=units, block=block)
        for number, (job, block, units) in enumerate(rows)
    ]
    ready = select_ready(payments, TIERS, heads(safe=safe, final=final))
    assert [p for p in payments if p.job_id in {r.job_id for r in ready}] == ready
    needed = {1: -1, 101: safe, 5001: final}
    for job in {p.job_id for p in payments}:
        own = [p for p in payments if p.job_id == job]
        reached = [needed[p.job_units] for p in own]
        final_enough = all(
            p.job_units == 1 or (limit is not None and p.block.number <= limit)
            for p, limit in zip(own, reached, strict=True)
        )
        assert (own[0] in ready) is final_enough


def test_ages_stand_for_tags_that_mean_nothing() -> None:
    ages = FinalityAges(safe=timedelta(seconds=20), finalized=timedelta(seconds=90))
    assert by_age(TIERS, ages) == [
        Tier(up_to=Units(100), require=INCLUDED),
        Tier(up_to=Units(5000), require=Aged(timedelta(seconds=20))),
        Tier(up_to=None, require=Aged(timedelta(seconds=90))),
        Tier(up_to=None, require=Aged(timedelta(seconds=90))),
    ]
    # What is above all tiers needs finality, also by age.
    only_small = by_age([Tier(up_to=Units(1), require=THIRTY)], ages)
    assert requirement_for(1, only_small) == THIRTY
    assert requirement_for(2, only_small) == Aged(timedelta(seconds=90))
