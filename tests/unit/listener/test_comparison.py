"""What is stored held against what is told, and where a walk back ends."""

from dataclasses import replace

import pytest

from listener.comparison import (
    MAX_ANCHORS,
    BelowFinalized,
    LookDeeper,
    RewindTo,
    Walk,
    anchors_below,
    compare,
    judge_walk,
)
from oncepaid.domain.chain import ZERO_ADDRESS, Address, BlockHash, BlockRef, TransferLog, TxHash
from oncepaid.domain.money import Units
from oncepaid.domain.payments import PaymentId, StoredLog


def block(number: int, fork: str = "a") -> BlockRef:
    return BlockRef(number=number, hash=BlockHash("0x" + fork * 64))


def log(index: int, *, at: BlockRef | None = None, units: int = 5) -> TransferLog:
    return TransferLog(
        block=at or block(7),
        timestamp_ms=None,
        tx_hash=TxHash("0x" + "1" * 64),
        log_index=index,
        sender=ZERO_ADDRESS,
        recipient=Address("0x" + "2" * 40),
        units=Units(units),
    )


def row(number: int, of: TransferLog) -> StoredLog:
    return StoredLog(
        id=PaymentId(number),
        block=of.block,
        tx_hash=of.tx_hash,
        log_index=of.log_index,
        sender=of.sender,
        recipient=of.recipient,
        units=of.units,
    )


def test_equal_sides_differ_in_nothing() -> None:
    logs = [log(1), log(2)]
    assert len(compare([row(2, logs[1]), row(1, logs[0])], logs)) == 0
    assert len(compare([], [])) == 0


def test_missing_extra_and_altered() -> None:
    kept, new, altered = log(1), log(2), log(3)
    stored = [row(1, kept), row(3, replace(altered, units=Units(6))), row(4, log(4))]
    difference = compare(stored, [kept, new, altered])
    assert difference.missing == [new]
    assert [extra.id for extra in difference.extra] == [4]
    assert [other.id for other in difference.altered] == [3]
    assert len(difference) == 3


def test_the_same_index_in_another_block_is_another_log() -> None:
    moved = log(1, at=block(7, "b"))
    difference = compare([row(1, log(1))], [moved])
    assert difference.missing == [moved]
    assert [extra.id for extra in difference.extra] == [1]


@pytest.mark.parametrize(
    ("on_chain", "finalized", "walk"),
    [
        ({block(9), block(7), block(5)}, -1, RewindTo(ancestor=block(9))),
        ({block(7), block(5)}, -1, RewindTo(ancestor=block(7))),
        ({block(7), block(5)}, 8, RewindTo(ancestor=block(7))),
        ({block(7), block(5)}, 9, BelowFinalized(block=block(9))),
        ({block(5)}, 7, BelowFinalized(block=block(7))),
        ({block(5)}, 6, RewindTo(ancestor=block(5))),
        (set(), 4, LookDeeper()),
        ({block(9, "b"), block(7, "b")}, -1, LookDeeper()),
    ],
)
def test_a_walk_ends_at_the_highest_block_that_stands(
    on_chain: set[BlockRef], finalized: int, walk: Walk
) -> None:
    assert judge_walk([block(9), block(7), block(5)], on_chain, finalized) == walk


def test_anchors_lie_ever_further_below() -> None:
    assert anchors_below(0) == []
    assert anchors_below(1) == [0]
    assert anchors_below(6) == [5, 4, 2]
    anchors = anchors_below(10**9)
    assert len(anchors) == MAX_ANCHORS
    assert anchors[0] == 10**9 - 1
    assert anchors == sorted(anchors, reverse=True)
