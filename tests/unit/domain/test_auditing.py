"""The rules of the audit: what is in order is never flagged, what is not is named."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from oncepaid.domain.auditing import (
    AttemptFacts,
    Balance,
    Check,
    CursorFacts,
    Invariant,
    JobFacts,
    RangeFacts,
    Violation,
    judge_balance,
    judge_cursor,
    judge_job,
    judge_range,
)
from oncepaid.domain.chain import Address, BlockHash, BlockRef, TxHash
from oncepaid.domain.money import Units
from oncepaid.domain.payments import PaymentId, StoredLog

NOW = datetime(2026, 11, 24, tzinfo=UTC)
OURS = Address("0x" + "5a" * 20)
ATTEMPT = AttemptFacts(is_its_own=True, outcome="succeeded", started_at=NOW, is_finished=True)
JOB = JobFacts(
    uuid="j",
    status="completed",
    counted=Units(10),
    is_unbacked=False,
    credited=Units(10),
    unreversed=Units(0),
    settled=Units(0),
    losses=0,
    open_losses=0,
    first_credited_at=NOW,
    names_attempt=True,
    attempt=ATTEMPT,
    output_is_attempts=True,
)
NO_ATTEMPT: Mapping[str, Any] = {"names_attempt": False, "attempt": None}
LOST: Mapping[str, Any] = {"is_unbacked": True, "losses": 1, "open_losses": 1}


def block(number: int, fork: str = "a") -> BlockRef:
    return BlockRef(number=number, hash=BlockHash("0x" + fork * 64))


def stored(id_: int, number: int = 5) -> StoredLog:
    return StoredLog(
        id=PaymentId(id_),
        block=block(number),
        tx_hash=TxHash("0x" + "7" * 64),
        log_index=0,
        sender=OURS,
        recipient=OURS,
        units=Units(1),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"status": "delivered"},
        {"status": "refunded", "credited": 0, "settled": 10},
        {"status": "paid", **NO_ATTEMPT},
        {"status": "in_progress"},
        {"status": "failed", "attempt": replace(ATTEMPT, outcome="refused")},
        {"credited": 0, "unreversed": 10},
        {"credited": 4, "unreversed": 6},
        {"counted": 0, "credited": 0, **LOST},
        {"counted": 0, "credited": 0, "first_credited_at": None, **LOST},
        {"losses": 1, "attempt": replace(ATTEMPT, started_at=NOW - timedelta(hours=1))},
        {"status": "pending", "counted": 0, "credited": 0, **NO_ATTEMPT},
        {"status": "completed", "counted": 0, "credited": 0, **NO_ATTEMPT},
        {"attempt": replace(ATTEMPT, started_at=NOW - timedelta(milliseconds=900))},
    ],
)
def test_jobs_in_order(changes: dict[str, Any]) -> None:
    assert judge_job(replace(JOB, **changes)) == []


@pytest.mark.parametrize(
    ("changes", "invariant"),
    [
        ({"counted": 11}, "credit_of_job"),
        ({"counted": 9}, "credit_of_job"),
        ({"credited": 20}, "credit_of_job"),
        ({"unreversed": 1}, "credit_of_job"),
        ({"credited": 0, "settled": 9}, "credit_of_job"),
        ({"status": "pending"}, "credit_of_job"),
        ({"is_unbacked": True}, "credit_of_job"),
        ({"losses": 1, "open_losses": 1}, "credit_of_job"),
        (NO_ATTEMPT, "one_result"),
        ({"attempt": None}, "one_result"),
        ({"attempt": replace(ATTEMPT, is_its_own=False)}, "one_result"),
        ({"attempt": replace(ATTEMPT, outcome="truncated")}, "one_result"),
        ({"output_is_attempts": False}, "one_result"),
        ({"status": "in_progress", **NO_ATTEMPT}, "one_result"),
        ({"attempt": replace(ATTEMPT, started_at=NOW - timedelta(minutes=1))}, "one_result"),
    ],
)
def test_jobs_that_cannot_be(changes: dict[str, Any], invariant: str) -> None:
    found = judge_job(replace(JOB, **changes))
    assert [violation.invariant for violation in found] == [invariant]
    assert found[0].subject == "job j"


@pytest.mark.parametrize(
    ("before", "after", "came", "went", "words"),
    [
        (0, 10, 10, 0, None),
        (100, 95, 10, 15, None),
        (7, 7, 3, 3, None),
        (None, 10, 0, 0, None),
        (10, None, 0, 0, None),
        (0, 10, 9, 0, "0.000001 are unexplained"),
        (0, 10, 11, 0, "-0.000001 are unexplained"),
        (10, 0, 0, 9, "-0.000001 are unexplained"),
    ],
)
def test_balances(
    before: int | None, after: int | None, came: int, went: int, words: str | None
) -> None:
    balance = Balance(address=OURS, before=before, after=after, came=came, went=went)
    found = judge_balance(balance, 3, 9)
    assert (found is None) is (words is None)
    if found is not None:
        assert words is not None
        assert words in found.text
        assert found.subject == f"address {OURS}"


def test_a_credited_payment_that_is_gone_is_named_once() -> None:
    facts = RangeFacts(
        first=1,
        last=9,
        rows=2,
        credited=1,
        gone=[stored(1), stored(2)],
        off_chain=[stored(2)],
        came={},
        went={},
    )
    assert [(one.invariant, one.subject) for one in judge_range(facts)] == [
        ("completeness", "payment 1"),
        ("credit_on_chain", "payment 2"),
    ]


@pytest.mark.parametrize(
    ("changes", "subjects"),
    [
        ({}, []),
        ({"found": block(9, "b")}, ["cursor"]),
        ({"above": [stored(1, 10)]}, ["payment"]),
        ({"strayed": [block(7)]}, ["checkpoint"]),
        ({"strayed": [block(9)], "found": block(9, "b")}, ["cursor"]),
        ({"checked": 10}, ["checked"]),
        ({"finalized": 10}, ["finalized"]),
    ],
)
def test_cursors(changes: dict[str, Any], subjects: list[str]) -> None:
    facts = CursorFacts(
        cursor=block(9), found=block(9), checked=9, finalized=-1, above=[], strayed=[]
    )
    found = judge_cursor(replace(facts, **changes))
    assert [violation.subject.split()[0] for violation in found] == subjects


def test_a_payment_above_a_cursor_that_moved_is_another_finding() -> None:
    """Only one that is there twice is told, and the cursor must have stood still."""
    facts = CursorFacts(
        cursor=block(8), found=block(8), checked=8, finalized=-1, above=[stored(1, 10)], strayed=[]
    )
    moved = replace(facts, cursor=block(9), found=block(9))
    assert {one.key for one in judge_cursor(facts)}.isdisjoint(
        one.key for one in judge_cursor(moved)
    )


def test_states_of_a_check() -> None:
    check = Check(invariant=Invariant.SUMS, checked="x")
    violation = Violation(invariant=Invariant.SUMS, subject="s", text="t")
    assert check.state == "ok"
    assert replace(check, not_checked="why").state == "not checked"
    assert replace(check, violations=(violation,)).state == "violated"
    assert all(invariant.sentence.endswith(".") for invariant in Invariant)
