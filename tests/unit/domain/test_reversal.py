"""What an orphaned credit does to its job, for every state that a job may be in."""

import pytest

from oncepaid.domain.jobs import JobStatus
from oncepaid.domain.money import Units
from oncepaid.domain.reversal import COVERED, LOSE, REOPEN, Reversal, ReversedCredit, reverse


@pytest.mark.parametrize(
    ("status", "price", "rest", "reversal"),
    [
        *((status, 10, 10, COVERED) for status in JobStatus),
        *((status, 10, 9, LOSE) for status in JobStatus if status not in ("pending", "paid")),
        ("pending", 10, 9, REOPEN),
        ("paid", 10, 9, REOPEN),
        ("paid", 10, 0, REOPEN),
        ("paid", 0, 0, REOPEN),
        ("paid", 0, 1, COVERED),
        ("paid", None, 10, REOPEN),
        ("completed", None, 10, LOSE),
        ("a state of the host's own", 10, 0, LOSE),
    ],
)
def test_a_reversal(status: str, price: int | None, rest: int, reversal: Reversal) -> None:
    credit = ReversedCredit(
        status=status,
        price=None if price is None else Units(price),
        gone=Units(5),
        rest=Units(rest),
    )
    assert reverse(credit) is reversal
