"""Every way in which money can meet a job has a named end."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

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
from oncepaid.domain.payments import Reason, SeenPayment, Signer
from tests.unit.samples import (
    GRACE,
    NOON,
    OTHER_SHOP,
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
        jobs=[job(awaits_payment=False)],
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
    Case(name="one unit beside it", paid=of(12), jobs=[AMOUNT_JOB], then=unmatched(Reason.NO_MEMO)),
    Case(name="one unit above it", paid=of(14), jobs=[AMOUNT_JOB], then=unmatched(Reason.NO_MEMO)),
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
        jobs=[replace(AMOUNT_JOB, awaits_payment=False)],
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
