"""What a subscription should have told of, and when that is certain."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from listener import hearing as hearing_module
from listener.hearing import HeadHearing, LogHearing, MissedHeads, MissedLogs
from oncepaid.domain.chain import Address, BlockHash, BlockRef, TransferLog, TxHash
from oncepaid.domain.money import Units
from oncepaid.domain.payments import ObservedPayment

AFTER_S = 5.0


def block(number: int, branch: str = "a") -> BlockRef:
    return BlockRef(number=number, hash=BlockHash(f"0x{branch}{number:063x}"))


def payment(number: int, log_index: int = 0, branch: str = "a") -> ObservedPayment:
    return ObservedPayment(
        log=TransferLog(
            block=block(number, branch),
            timestamp_ms=None,
            tx_hash=TxHash("0x" + "0" * 64),
            log_index=log_index,
            sender=Address("0x" + "1" * 40),
            recipient=Address("0x" + "2" * 40),
            units=Units(1),
        ),
        block_time=datetime(2026, 11, 23, tzinfo=UTC),
        evidence=(),
        transfers_in_tx=1,
    )


@dataclass(frozen=True, kw_only=True)
class Heard:
    number: int
    log_index: int = 0
    branch: str = "a"


@dataclass(frozen=True, kw_only=True)
class Found:
    head: int
    payments: Sequence[ObservedPayment] = ()


Event = tuple[float, Heard | Found]
DRAWN: list[Event] = [(0, Found(head=100)), (0, Found(head=101))]
"""The line is drawn at 101."""


def found(*numbers: int) -> Found:
    return Found(head=max(numbers), payments=[payment(number) for number in numbers])


@pytest.mark.parametrize(
    ("events", "missed"),
    [
        pytest.param([], None, id="nothing was found"),
        pytest.param([(1, Found(head=110))], None, id="blocks without payments prove nothing"),
        pytest.param([(1, found(102))], MissedLogs(count=1, first_block=102), id="missed"),
        pytest.param(
            [(1, found(104, 102, 103))], MissedLogs(count=3, first_block=102), id="each counts"
        ),
        pytest.param([(1, found(101))], None, id="at the line"),
        pytest.param([(1, found(101, 90))], None, id="below the line"),
        pytest.param([(1, Heard(number=102)), (2, found(102))], None, id="heard before"),
        pytest.param([(1, found(102)), (5.9, Heard(number=102))], None, id="heard after"),
        pytest.param(
            [(1, found(102)), (2, Heard(number=102)), (3, found(102))], None, id="found twice"
        ),
        pytest.param(
            [(1, Heard(number=102, branch="b")), (2, found(102))],
            MissedLogs(count=1, first_block=102),
            id="heard on another branch",
        ),
        pytest.param(
            [(1, Heard(number=102, log_index=1)), (2, found(102))],
            MissedLogs(count=1, first_block=102),
            id="another log of the block was heard",
        ),
        pytest.param(
            [(1, Heard(number=102)), (2, found(102, 103)), (3, Heard(number=104))],
            MissedLogs(count=1, first_block=103),
            id="one of several",
        ),
    ],
)
def test_logs(events: list[Event], missed: MissedLogs | None) -> None:
    hearing = LogHearing(missed_after_s=AFTER_S)
    for now, event in DRAWN + events:
        match event:
            case Heard(number=number, log_index=log_index, branch=branch):
                hearing.heard(block(number, branch), log_index)
            case Found(head=head, payments=payments):
                hearing.reconciled(block(head), payments, now)
    assert (hearing.due is None) is (missed is None)
    assert hearing.missed(10) == missed


def test_the_time_of_a_miss() -> None:
    hearing = LogHearing(missed_after_s=AFTER_S)
    for now, numbers in [(0, [1]), (0, [1]), (1.0, [2]), (2.0, [2, 3])]:
        hearing.reconciled(block(max(numbers)), [payment(number) for number in numbers], now)
    assert hearing.due == 6.0
    assert hearing.missed(5.99) is None
    assert hearing.missed(6.0) == MissedLogs(count=1, first_block=2)
    hearing.heard(block(2), 0)
    assert hearing.due == 7.0
    assert hearing.missed(7.0) == MissedLogs(count=1, first_block=3)


@pytest.mark.parametrize(
    "make", [lambda: LogHearing(missed_after_s=5), lambda: HeadHearing(missed_after_s=5)]
)
def test_the_first_two_reconciles_judge_nothing(
    make: Callable[[], LogHearing | HeadHearing],
) -> None:
    """The first may have begun before the subscription; the second one's head draws the line."""
    hearing = make()
    hearing.reconciled(block(7), [payment(7)], 0)
    hearing.reconciled(block(9), [payment(8), payment(9)], 1)
    assert hearing.due is None
    hearing.reconciled(block(9), [], 2)
    assert hearing.due is None
    hearing.reconciled(block(10), [payment(10)], 3)
    assert hearing.due == 8


def test_a_head_that_went_back_does_not_lower_the_line() -> None:
    """A lagging node told the second head: what lies below the first was before the connection."""
    hearing = LogHearing(missed_after_s=AFTER_S)
    hearing.reconciled(block(100), [], 0)
    hearing.reconciled(block(90), [], 0)
    hearing.reconciled(block(100), [payment(95), payment(100)], 0)
    assert hearing.due is None


def test_what_is_forgotten_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing_module, "MAX_REMEMBERED", 3)
    hearing = LogHearing(missed_after_s=AFTER_S)
    hearing.reconciled(block(1), [], 0)
    hearing.reconciled(block(1), [], 0)
    for number in (2, 3, 4, 5):
        hearing.heard(block(number), 0)
    hearing.reconciled(block(6), [payment(number) for number in (2, 3, 4, 5, 6)], 0)
    assert hearing.missed(AFTER_S) == MissedLogs(count=1, first_block=6)


def test_what_is_waited_for_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing_module, "MAX_REMEMBERED", 3)
    hearing = LogHearing(missed_after_s=AFTER_S)
    for payments in ([], [], [payment(2, index) for index in range(5)]):
        hearing.reconciled(block(1), payments, 0)
    assert hearing.missed(AFTER_S) == MissedLogs(count=3, first_block=2)


@pytest.mark.parametrize(
    ("events", "missed"),
    [
        pytest.param([], None, id="nothing"),
        pytest.param([(1, Found(head=101)), (2, Found(head=101))], None, id="halted"),
        pytest.param([(1, Found(head=99))], None, id="lagging"),
        pytest.param([(1, Found(head=102))], MissedHeads(head=102, heard=None), id="never heard"),
        pytest.param(
            [(1, Heard(number=105)), (2, Found(head=106)), (4, Found(head=120))],
            MissedHeads(head=106, heard=105),
            id="heard no more",
        ),
        pytest.param([(1, Heard(number=102)), (2, Found(head=102))], None, id="heard before"),
        pytest.param([(1, Found(head=102)), (2, Heard(number=102))], None, id="heard after"),
        pytest.param([(1, Found(head=102)), (2, Heard(number=109))], None, id="a later one heard"),
        pytest.param(
            [(1, Found(head=105)), (2, Heard(number=103)), (3, Heard(number=104))],
            MissedHeads(head=105, heard=104),
            id="throttled",
        ),
        pytest.param(
            [(1, Heard(number=104)), (2, Found(head=105)), (3, Found(head=104))],
            None,
            id="the head went back",
        ),
    ],
)
def test_heads(events: list[Event], missed: MissedHeads | None) -> None:
    hearing = HeadHearing(missed_after_s=AFTER_S)
    for now, event in DRAWN + events:
        match event:
            case Heard(number=number):
                hearing.heard(number)
            case Found(head=head):
                hearing.reconciled(block(head), [payment(head)], now)
    assert (hearing.due is None) is (missed is None)
    assert hearing.missed(10) == missed


def test_the_time_of_a_missed_head() -> None:
    hearing = HeadHearing(missed_after_s=AFTER_S)
    for now, head in [(0.0, 1), (0.0, 1), (1.0, 2), (3.0, 9)]:
        hearing.reconciled(block(head), [], now)
    assert hearing.due == 6.0
    assert hearing.missed(5.99) is None
    assert hearing.missed(6.0) == MissedHeads(head=2, heard=None)
