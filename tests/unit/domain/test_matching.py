"""Every way in which money can meet a job has a named end, in any order and in any batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncepaid.domain.chain import ZERO_ADDRESS
from oncepaid.domain.jobs import JobId, JobTerms
from oncepaid.domain.matching import (
    Decision,
    Matched,
    MatchingRules,
    Unmatched,
    decide_all,
)
from oncepaid.domain.money import MAX_UNITS, Units
from oncepaid.domain.payments import PaymentId, Reason, SeenPayment, Signer
from tests.unit.samples import (
    GRACE,
    NOON,
    OTHER_SHOP,
    PAYER,
    RULES,
    SHOP,
    STRANGER,
    evidence,
    job,
    payment,
)

SECOND = timedelta(seconds=1)
THIRD = Signer.THIRD_PARTY
EVERY_RECIPIENT = replace(RULES, recipients=None)
NO_FALLBACK = replace(RULES, amount_fallback=False)


def unmatched(reason: Reason, job: int | None = None) -> Unmatched:
    return Unmatched(reason=reason, job_id=None if job is None else JobId(job))


MATCHED = Matched(job_id=JobId(1))
BY_MEMO = evidence(1)
BY_THIRD = evidence(1, THIRD)
AMOUNT_JOB = job(unique_amount=Units(13))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One payment, what it meets and what must follow."""

    name: str
    paid: SeenPayment
    jobs: Sequence[JobTerms] = (job(),)
    rules: MatchingRules = RULES
    then: Decision


def of(units: int, *pieces: Any, **changed: Any) -> SeenPayment:
    return payment(1, units, *pieces, **changed)


MEMO_CASES = [
    Case(name="memo and price", paid=of(10, BY_MEMO), then=MATCHED),
    Case(name="more than the price", paid=of(11, BY_MEMO), then=MATCHED),
    Case(name="all the money there is", paid=of(MAX_UNITS, BY_MEMO), then=MATCHED),
    Case(name="the same memo twice", paid=of(10, BY_MEMO, BY_MEMO), then=MATCHED),
    Case(name="minted, with a memo", paid=of(10, BY_MEMO, sender=ZERO_ADDRESS), then=MATCHED),
    Case(
        name="job at any of our addresses",
        paid=of(10, BY_MEMO, recipient=OTHER_SHOP),
        jobs=[job(pay_to=None)],
        then=MATCHED,
    ),
    Case(
        name="job is paid at another address",
        paid=of(10, BY_MEMO, recipient=OTHER_SHOP),
        then=unmatched(Reason.WRONG_RECIPIENT, 1),
    ),
    Case(name="unknown memo", paid=of(10, evidence(9)), then=unmatched(Reason.UNKNOWN_MEMO)),
    Case(
        name="unknown memo, another job's amount",
        paid=of(13, evidence(9)),
        jobs=[AMOUNT_JOB],
        then=unmatched(Reason.UNKNOWN_MEMO),
    ),
    Case(
        name="on the edge of the grace",
        paid=of(10, BY_MEMO, block_time=NOON + GRACE),
        then=MATCHED,
    ),
    Case(
        name="one second late",
        paid=of(10, BY_MEMO, block_time=NOON + GRACE + SECOND),
        then=unmatched(Reason.LATE, 1),
    ),
    Case(
        name="late, another job's amount",
        paid=of(13, BY_MEMO, block_time=NOON + GRACE + SECOND),
        jobs=[job(), job(2, unique_amount=Units(13), expires_at=NOON + 9 * GRACE)],
        then=unmatched(Reason.LATE, 1),
    ),
    Case(
        name="job without an end",
        paid=of(10, BY_MEMO, block_time=NOON + 10_000 * GRACE),
        jobs=[job(expires_at=datetime.max.replace(tzinfo=UTC))],
        then=MATCHED,
    ),
    Case(
        name="job from before all time",
        paid=of(10, BY_MEMO, block_time=datetime.max.replace(tzinfo=UTC)),
        jobs=[job(expires_at=datetime.min.replace(tzinfo=UTC))],
        then=unmatched(Reason.LATE, 1),
    ),
    Case(
        name="one unit too little",
        paid=of(9, BY_MEMO),
        then=unmatched(Reason.UNDERPAID, 1),
    ),
    Case(
        name="too little, another job's amount",
        paid=of(9, BY_MEMO),
        jobs=[job(), job(2, price=Units(8), unique_amount=Units(9))],
        then=unmatched(Reason.UNDERPAID, 1),
    ),
    Case(
        name="the rest of a partial payment",
        paid=of(4, BY_MEMO),
        jobs=[job(partial=Units(6))],
        then=MATCHED,
    ),
    Case(
        name="not yet the rest",
        paid=of(3, BY_MEMO),
        jobs=[job(partial=Units(6))],
        then=unmatched(Reason.UNDERPAID, 1),
    ),
    Case(
        name="the rest, one second late",
        paid=of(4, BY_MEMO, block_time=NOON + GRACE + SECOND),
        jobs=[job(partial=Units(6))],
        then=unmatched(Reason.LATE, 1),
    ),
    Case(
        name="paid already",
        paid=of(10, BY_MEMO),
        jobs=[job(covered=Units(10))],
        then=unmatched(Reason.DUPLICATE, 1),
    ),
    Case(
        name="closed by the host",
        paid=of(10, BY_MEMO),
        jobs=[job(is_pending=False)],
        then=unmatched(Reason.DUPLICATE, 1),
    ),
    Case(
        name="paid already, and late: the first is said",
        paid=of(10, BY_MEMO, block_time=NOON + 9 * GRACE),
        jobs=[job(covered=Units(10))],
        then=unmatched(Reason.DUPLICATE, 1),
    ),
    Case(
        name="paid already, another job's amount",
        paid=of(13, BY_MEMO),
        jobs=[job(covered=Units(10)), job(2, unique_amount=Units(13))],
        then=unmatched(Reason.DUPLICATE, 1),
    ),
    Case(
        name="job without a price",
        paid=of(10, BY_MEMO),
        jobs=[job(price=None)],
        then=unmatched(Reason.JOB_NOT_PAYABLE, 1),
    ),
    Case(
        name="memos of two jobs",
        paid=of(10, BY_MEMO, evidence(2)),
        jobs=[job(), job(2)],
        then=unmatched(Reason.MEMO_CONFLICT),
    ),
    Case(
        name="a job's memo and an unknown one",
        paid=of(10, BY_MEMO, evidence(9)),
        then=unmatched(Reason.MEMO_CONFLICT),
    ),
    Case(
        name="conflicting memos, another job's amount",
        paid=of(13, BY_MEMO, evidence(2)),
        jobs=[job(), job(2), job(3, unique_amount=Units(13))],
        then=unmatched(Reason.MEMO_CONFLICT),
    ),
    Case(
        name="the payer's memo before a third party's",
        paid=of(11, evidence(2, THIRD), BY_MEMO, transfers_in_tx=2),
        jobs=[job(), job(2)],
        then=MATCHED,
    ),
]

THIRD_PARTY_CASES = [
    Case(name="third party, exact price", paid=of(10, BY_THIRD), then=MATCHED),
    Case(
        name="third party, exact unique amount",
        paid=of(13, BY_THIRD),
        jobs=[AMOUNT_JOB],
        then=MATCHED,
    ),
    Case(
        name="third party, too much",
        paid=of(11, BY_THIRD),
        then=unmatched(Reason.THIRD_PARTY_MEMO, 1),
    ),
    Case(
        name="third party, too little",
        paid=of(9, BY_THIRD),
        then=unmatched(Reason.THIRD_PARTY_MEMO, 1),
    ),
    Case(
        name="third party, the rest of a partial payment",
        paid=of(4, BY_THIRD),
        jobs=[job(partial=Units(6))],
        then=unmatched(Reason.THIRD_PARTY_MEMO, 1),
    ),
    Case(
        name="third party, exact, with company",
        paid=of(10, BY_THIRD, transfers_in_tx=2),
        then=unmatched(Reason.THIRD_PARTY_MEMO, 1),
    ),
    Case(
        name="third party, another job's amount",
        paid=of(13, BY_THIRD),
        jobs=[job(), job(2, unique_amount=Units(13))],
        then=unmatched(Reason.THIRD_PARTY_MEMO, 1),
    ),
    Case(
        name="third party, unknown memo",
        paid=of(10, evidence(9, THIRD)),
        then=unmatched(Reason.UNKNOWN_MEMO),
    ),
    Case(
        name="third parties' memos of two jobs",
        paid=of(10, BY_THIRD, evidence(2, THIRD)),
        jobs=[job(), job(2)],
        then=unmatched(Reason.MEMO_CONFLICT),
    ),
]

AMOUNT_CASES = [
    Case(name="unique amount", paid=of(13), jobs=[AMOUNT_JOB], then=MATCHED),
    Case(
        name="unique amount, with company",
        paid=of(13, transfers_in_tx=2),
        jobs=[AMOUNT_JOB],
        then=MATCHED,
    ),
    Case(
        name="one unit beside it", paid=of(12), jobs=[AMOUNT_JOB], then=unmatched(Reason.NO_MEMO)
    ),
    Case(
        name="one unit above it", paid=of(14), jobs=[AMOUNT_JOB], then=unmatched(Reason.NO_MEMO)
    ),
    Case(name="bare price", paid=of(10), jobs=[AMOUNT_JOB], then=unmatched(Reason.NO_MEMO)),
    Case(name="nothing that it could pay", paid=of(10), jobs=[], then=unmatched(Reason.NO_MEMO)),
    Case(
        name="fallback is off",
        paid=of(13),
        jobs=[AMOUNT_JOB],
        rules=NO_FALLBACK,
        then=unmatched(Reason.NO_MEMO),
    ),
    Case(
        name="minted, without a memo",
        paid=of(13, sender=ZERO_ADDRESS),
        jobs=[AMOUNT_JOB],
        then=unmatched(Reason.NO_MEMO),
    ),
    Case(
        name="amount of another address",
        paid=of(13, recipient=OTHER_SHOP),
        jobs=[AMOUNT_JOB],
        then=unmatched(Reason.NO_MEMO),
    ),
    Case(
        name="two jobs wait for it",
        paid=of(13),
        jobs=[AMOUNT_JOB, job(2, unique_amount=Units(13))],
        then=unmatched(Reason.AMBIGUOUS_AMOUNT),
    ),
    Case(
        name="two jobs, but at different addresses",
        paid=of(13),
        jobs=[AMOUNT_JOB, job(2, unique_amount=Units(13), pay_to=OTHER_SHOP)],
        then=MATCHED,
    ),
    Case(
        name="amount on the edge of the grace",
        paid=of(13, block_time=NOON + GRACE),
        jobs=[AMOUNT_JOB],
        then=MATCHED,
    ),
    Case(
        name="amount, one second late",
        paid=of(13, block_time=NOON + GRACE + SECOND),
        jobs=[AMOUNT_JOB],
        then=unmatched(Reason.LATE, 1),
    ),
    Case(
        name="amount of a paid job",
        paid=of(13),
        jobs=[replace(AMOUNT_JOB, covered=Units(13))],
        then=unmatched(Reason.DUPLICATE, 1),
    ),
    Case(
        name="amount of a closed job",
        paid=of(13),
        jobs=[replace(AMOUNT_JOB, is_pending=False)],
        then=unmatched(Reason.DUPLICATE, 1),
    ),
    Case(
        name="amount of a job without a price",
        paid=of(13),
        jobs=[replace(AMOUNT_JOB, price=None)],
        then=unmatched(Reason.JOB_NOT_PAYABLE, 1),
    ),
]

SENDER_CASES = [
    Case(
        name="from our own address",
        paid=of(10, BY_MEMO, sender=OTHER_SHOP),
        then=unmatched(Reason.OWN_ADDRESS),
    ),
    Case(
        name="to ourselves",
        paid=of(10, BY_MEMO, sender=SHOP),
        then=unmatched(Reason.OWN_ADDRESS),
    ),
    Case(
        name="to oneself, where every recipient is observed",
        paid=of(10, BY_MEMO, sender=STRANGER, recipient=STRANGER),
        jobs=[job(pay_to=None)],
        rules=EVERY_RECIPIENT,
        then=unmatched(Reason.OWN_ADDRESS),
    ),
    Case(
        name="from another observed address",
        paid=of(10, BY_MEMO, sender=OTHER_SHOP),
        rules=EVERY_RECIPIENT,
        then=MATCHED,
    ),
]

CASES = MEMO_CASES + THIRD_PARTY_CASES + AMOUNT_CASES + SENDER_CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_has_its_name(case: Case) -> None:
    assert decide_all([case.paid], case.jobs, case.rules) == {case.paid.id: case.then}


def test_the_table_knows_every_reason() -> None:
    assert {c.then.reason for c in CASES if isinstance(c.then, Unmatched)} == set(Reason)


def reasons(payments: Sequence[SeenPayment], *jobs: JobTerms) -> list[Reason | None]:
    """Return each payment's reason, None for a matched one."""
    decisions = decide_all(payments, jobs, RULES).values()
    return [d.reason if isinstance(d, Unmatched) else None for d in decisions]


def test_within_a_batch_partial_payments_add_up_and_a_third_is_too_much() -> None:
    parts = [payment(n, 6, BY_MEMO) for n in (1, 2, 3)]
    assert reasons(parts, job()) == [Reason.UNDERPAID, None, Reason.DUPLICATE]


def test_within_a_batch_a_job_is_paid_once_by_memo_and_amount_together() -> None:
    by_memo, by_amount = payment(1, 10, BY_MEMO), payment(2, 13)
    assert reasons([by_memo, by_amount], AMOUNT_JOB) == [None, Reason.DUPLICATE]
    assert reasons([by_amount, by_memo], AMOUNT_JOB) == [None, Reason.DUPLICATE]


def test_dust_neither_locks_nor_pays_a_job() -> None:
    dust = [payment(n, 1, BY_MEMO, sender=STRANGER) for n in range(1, 6)]
    assert reasons([*dust, payment(9, 10, BY_MEMO)], job()) == [*[Reason.UNDERPAID] * 5, None]


def test_what_does_not_count_is_not_added_up() -> None:
    late = payment(1, 9, BY_MEMO, block_time=NOON + GRACE + SECOND)
    foreign = payment(2, 9, BY_THIRD)
    assert reasons([late, foreign, payment(3, 9, BY_MEMO)], job()) == [
        Reason.LATE,
        Reason.THIRD_PARTY_MEMO,
        Reason.UNDERPAID,
    ]


@dataclass
class Ledger:
    """What the database does with decisions, in a few lines: the sums of a job are its rows'."""

    jobs: dict[JobId, JobTerms]
    payments: dict[PaymentId, SeenPayment] = field(default_factory=dict)
    decisions: dict[PaymentId, Decision] = field(default_factory=dict)

    def decide(self, batch: Sequence[SeenPayment]) -> None:
        """Decide what was not decided before, knowing only the jobs that the batch names."""
        new = [paid for paid in batch if paid.id not in self.decisions]
        memos = {piece.memo for paid in new for piece in paid.evidence}
        amounts = {paid.units for paid in new}
        named = [
            self._stored(terms)
            for terms in self.jobs.values()
            if terms.memo in memos or terms.unique_amount in amounts
        ]
        self.payments.update({paid.id: paid for paid in new})
        self.decisions.update(decide_all(new, named, RULES))

    def _stored(self, terms: JobTerms) -> JobTerms:
        covered, partial = self.sums_of(terms.id)
        return replace(
            terms,
            covered=Units(terms.covered + covered),
            partial=Units(terms.partial + partial),
        )

    def sums_of(self, job_id: JobId) -> tuple[int, int]:
        """Return the units that pay the job, and those that still wait on it."""
        full = [p for p, d in self.decisions.items() if d == Matched(job_id=job_id)]
        parts = [
            p
            for p, d in self.decisions.items()
            if d == Unmatched(reason=Reason.UNDERPAID, job_id=job_id)
        ]
        waiting = sum(self.payments[p].units for p in parts)
        paid = sum(self.payments[p].units for p in full)
        # The partial payments before it are matched together with the one that completes them.
        return (paid + waiting, 0) if full else (0, waiting)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[JobId, JobTerms], list[SeenPayment]]:
    """Draw a few jobs, and payments that come close to them in every respect."""
    jobs = {}
    for number in range(1, draw(st.integers(1, 4)) + 1):
        price = draw(st.sampled_from([10, 12, 20]))
        jobs[JobId(number)] = job(
            number,
            price=draw(st.sampled_from([Units(price)] * 6 + [None])),
            unique_amount=draw(st.sampled_from([None, Units(price + 1), Units(price + 2)])),
            pay_to=draw(st.sampled_from([SHOP, SHOP, None, OTHER_SHOP])),
            is_pending=draw(st.sampled_from([True] * 5 + [False])),
            covered=Units(draw(st.sampled_from([0] * 6 + [price]))),
            expires_at=NOON + draw(st.sampled_from([0, 1])) * SECOND,
        )
    amounts = sorted(
        {u for j in jobs.values() for u in (j.price, j.unique_amount) if u is not None} | {1, 6, 50}
    )
    pieces = st.builds(
        evidence,
        st.integers(1, len(jobs) + 1),
        st.sampled_from([Signer.PAYER, Signer.PAYER, Signer.THIRD_PARTY]),
    )
    payments = [
        payment(
            number,
            draw(st.sampled_from(amounts)),
            *draw(st.lists(pieces, max_size=2)),
            sender=draw(st.sampled_from([PAYER] * 4 + [STRANGER, ZERO_ADDRESS, SHOP])),
            recipient=draw(st.sampled_from([SHOP, SHOP, OTHER_SHOP])),
            block_time=NOON + GRACE + draw(st.sampled_from([-1, 0, 1])) * SECOND,
            transfers_in_tx=draw(st.sampled_from([1, 1, 2])),
        )
        for number in range(1, draw(st.integers(1, 10)) + 1)
    ]
    return jobs, payments


World = tuple[dict[JobId, JobTerms], list[SeenPayment]]


@given(worlds())
def test_no_job_is_paid_twice_or_for_less_than_its_price(world: World) -> None:
    jobs, payments = world
    ledger = Ledger(jobs)
    ledger.decide(payments)
    assert set(ledger.decisions) == {paid.id for paid in payments}
    matched = [d.job_id for d in ledger.decisions.values() if isinstance(d, Matched)]
    assert len(set(matched)) == len(matched)
    for job_id in matched:
        terms = jobs[job_id]
        assert terms.is_pending
        assert terms.price is not None
        assert terms.covered < terms.price <= ledger.sums_of(job_id)[0]


@given(worlds())
def test_money_that_names_one_job_never_pays_another(world: World) -> None:
    jobs, payments = world
    decisions = decide_all(payments, jobs.values(), RULES)
    for paid in payments:
        decision = decisions[paid.id]
        if decision.job_id is None:
            continue
        terms = jobs[decision.job_id]
        if paid.evidence:
            assert terms.memo in {piece.memo for piece in paid.evidence}
        else:
            assert terms.unique_amount == paid.units
        if isinstance(decision, Matched):
            assert paid.sender != SHOP
            assert terms.pay_to in (None, paid.recipient)
            assert paid.block_time <= terms.expires_at + GRACE


@given(worlds())
def test_a_job_that_could_be_paid_is(world: World) -> None:
    """The other side: refusing everything would satisfy the properties above."""
    jobs, payments = world
    for terms in jobs.values():
        if terms.price is None or not terms.is_pending or terms.covered:
            continue
        sure = payment(
            99, terms.price, evidence(terms.id), recipient=terms.pay_to or SHOP, sender=PAYER
        )
        decisions = decide_all([*payments, sure], jobs.values(), RULES)
        assert Matched(job_id=terms.id) in decisions.values()


@given(worlds(), st.data())
def test_batches_decide_as_their_payments_would_one_by_one(
    world: World, data: st.DataObject
) -> None:
    jobs, payments = world
    at_once, in_batches, one_by_one = Ledger(jobs), Ledger(jobs), Ledger(jobs)
    at_once.decide(payments)
    cut = data.draw(st.integers(0, len(payments)))
    in_batches.decide(payments[:cut])
    in_batches.decide(payments[cut:])
    for paid in payments:
        one_by_one.decide([paid])
    assert at_once.decisions == in_batches.decisions == one_by_one.decisions


@given(worlds(), st.data())
def test_the_same_log_again_changes_nothing(world: World, data: st.DataObject) -> None:
    jobs, payments = world
    again = data.draw(st.lists(st.sampled_from(payments)))
    once = decide_all(payments, jobs.values(), RULES)
    assert decide_all([*payments, *again], jobs.values(), RULES) == once
    ledger = Ledger(jobs)
    ledger.decide(payments)
    ledger.decide(again)
    assert ledger.decisions == once


@given(worlds(), st.data())
def test_payments_of_different_jobs_do_not_wait_for_each_other(
    world: World, data: st.DataObject
) -> None:
    jobs, payments = world
    decisions = decide_all(payments, jobs.values(), RULES)
    queues: dict[JobId | None, list[SeenPayment]] = {}
    for paid in payments:
        queues.setdefault(decisions[paid.id].job_id, []).append(paid)
    # Any interleaving that keeps the order of each job's own payments.
    turns = data.draw(st.permutations([decisions[paid.id].job_id for paid in payments]))
    reordered = [queues[turn].pop(0) for turn in turns]
    assert decide_all(reordered, jobs.values(), RULES) == decisions
