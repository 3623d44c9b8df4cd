"""Every way in which money can meet a job has a named end."""

from collections.abc import Sequence

import pytest

from oncepaid.domain.jobs import JobTerms
from oncepaid.domain.matching import MOST_PARTIALS, Unmatched, decide_all
from oncepaid.domain.money import Units
from oncepaid.domain.payments import Reason, SeenPayment
from tests.unit.domain.cases import AMOUNT_JOB, BY_MEMO, BY_THIRD, SECOND, Case
from tests.unit.domain.cases_by_amount import AMOUNT_CASES, OLDER_CASES, SENDER_CASES, SHORT_CASES
from tests.unit.domain.cases_by_memo import MEMO_CASES, THIRD_PARTY_CASES
from tests.unit.domain.cases_by_name import (
    DUST_CASES,
    OPERATOR_CASES,
    REFERENCE_CASES,
    SHARED_CASES,
)
from tests.unit.samples import GRACE, NOON, RULES, STRANGER, job, payment

CASES = [
    *(*MEMO_CASES, *THIRD_PARTY_CASES, *REFERENCE_CASES, *SHARED_CASES, *OPERATOR_CASES),
    *(*AMOUNT_CASES, *SHORT_CASES, *OLDER_CASES, *SENDER_CASES, *DUST_CASES),
]


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


def test_dust_flood_neither_locks_nor_fills_nor_pays_a_job() -> None:
    dust = [payment(n, 1, BY_MEMO, sender=STRANGER) for n in range(1, 2001)]
    honest = payment(2001, 1000, BY_MEMO)
    decided = reasons([*dust, honest], job(price=Units(1000)))
    kept = [Reason.UNDERPAID] * MOST_PARTIALS
    assert decided == [*kept, *[Reason.DUST] * (2000 - MOST_PARTIALS), None]


def test_no_more_parts_are_kept_than_make_the_price() -> None:
    parts = [payment(n, 50, BY_MEMO) for n in range(1, 30)]
    decided = reasons(parts, job(price=Units(1000)))
    kept = [Reason.UNDERPAID] * (MOST_PARTIALS - 1)
    assert decided == [*kept, None, *[Reason.DUPLICATE] * (29 - MOST_PARTIALS)]


def test_what_does_not_count_is_not_added_up() -> None:
    late = payment(1, 9, BY_MEMO, block_time=NOON + GRACE + SECOND)
    foreign = payment(2, 9, BY_THIRD)
    assert reasons([late, foreign, payment(3, 9, BY_MEMO)], job()) == [
        Reason.LATE,
        Reason.THIRD_PARTY_MEMO,
        Reason.UNDERPAID,
    ]
