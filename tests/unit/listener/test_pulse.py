"""Whether the chain moves, and whether our endpoint moves with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from listener.pulse import (
    FORGET_S,
    HALTED_S,
    LOOK_EVERY_S,
    STILL_S,
    Halted,
    Lagging,
    Pulse,
    Steady,
    Verdict,
)
from oncepaid.domain.chain import BlockHash, Header

BLOCK_MS = 200
HASH = BlockHash("0x" + "a" * 64)


def header(number: int, *, late_ms: int = 0) -> Header:
    stamp = number * BLOCK_MS + late_ms
    return Header(number=number, hash=HASH, parent_hash=HASH, timestamp_ms=stamp)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Heads as `(seconds, endpoint, number)`, and what is said of endpoint 0 after them."""

    looks: Sequence[tuple[float, int, int]]
    now: float
    said: Verdict
    able: frozenset[int] = field(default_factory=lambda: frozenset({0, 1, 2}))


FAR = 26
"""Blocks that take a little longer than `BEHIND_S`."""

CASES = {
    "nothing was seen": Case(looks=[], now=0.0, said=Steady()),
    "a growing head": Case(looks=[(0, 0, 1), (40, 0, 2)], now=41.0, said=Steady()),
    "the other is a little ahead": Case(
        looks=[(0, 0, 100), (1, 1, 100 + FAR - 1)], now=1.0, said=Steady()
    ),
    "the other is far ahead": Case(
        looks=[(0, 0, 100), (1, 1, 100 + FAR)],
        now=1.0,
        said=Lagging(other=1, blocks=FAR, seconds=FAR / 5),
    ),
    "the other is far behind": Case(looks=[(0, 0, 100 + FAR), (1, 1, 100)], now=1.0, said=Steady()),
    "ours stands, the other is one ahead": Case(
        looks=[(0, 0, 100), (STILL_S, 0, 100), (STILL_S, 1, 101)],
        now=STILL_S,
        said=Lagging(other=1, blocks=1, seconds=0.2),
    ),
    "nobody looked at ours again": Case(
        looks=[(0, 0, 100), (STILL_S, 1, 101)], now=STILL_S, said=Steady()
    ),
    "ours stands, and so do the others": Case(
        looks=[(0, 0, 100), (0, 1, 100), (STILL_S, 0, 100), (STILL_S, 1, 100)],
        now=STILL_S,
        said=Steady(),
    ),
    "the one that is ahead is not able": Case(
        looks=[(0, 0, 100), (1, 1, 100 + FAR)], now=1.0, said=Steady(), able=frozenset({0, 2})
    ),
    "the furthest of two": Case(
        looks=[(0, 0, 100), (1, 1, 100 + FAR), (1, 2, 105 + FAR)],
        now=1.0,
        said=Lagging(other=2, blocks=5 + FAR, seconds=(5 + FAR) / 5),
    ),
    "all stand": Case(
        looks=[(0, 0, 100), (0, 1, 99), (HALTED_S, 0, 100), (HALTED_S, 1, 99)],
        now=HALTED_S,
        said=Halted(head=header(100), idle_s=HALTED_S),
    ),
    "all stand, not for long enough": Case(
        looks=[(0, 0, 100), (HALTED_S - 1, 0, 100)], now=HALTED_S - 1, said=Steady()
    ),
    "ours stands, nobody looked": Case(looks=[(0, 0, 100)], now=500.0, said=Steady()),
    "a new endpoint with an old head is no news": Case(
        looks=[(0, 0, 100), (HALTED_S, 0, 100), (HALTED_S, 1, 100)],
        now=HALTED_S,
        said=Halted(head=header(100), idle_s=HALTED_S),
    ),
    "one that died does not hide that the other stands": Case(
        looks=[(0, 0, 100), (1, 1, 100), (35, 0, 100)],
        now=35.0,
        said=Halted(head=header(100), idle_s=35.0),
    ),
    "backends that take turns do not move": Case(
        looks=[(at, 0, 100 - at % 2) for at in range(int(HALTED_S) + 1)],
        now=HALTED_S,
        said=Halted(head=header(100), idle_s=HALTED_S),
    ),
    "a height that was told once is forgotten": Case(
        looks=[(0, 0, 10**9), *((at, 0, 100 + at) for at in range(1, int(FORGET_S) + 12))],
        now=FORGET_S + 11,
        said=Steady(),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_verdicts(case: Case) -> None:
    pulse = Pulse()
    for at, index, number in case.looks:
        pulse.saw(index, header(number), float(at))
    assert pulse.verdict(0, case.now, case.able) == case.said


def test_a_height_that_was_told_once_does_not_stay_the_head() -> None:
    pulse = Pulse()
    pulse.saw(0, header(10**9), 0.0)
    pulse.saw(0, header(100), FORGET_S - 1)
    assert pulse.head(0) == header(10**9)
    pulse.saw(0, header(101), FORGET_S)
    assert pulse.head(0) == header(101)
    assert pulse.head(1) is None


def test_block_times_are_compared_with_each_other_only() -> None:
    """A chain whose clock is years late lags behind nothing; two heads that differ may."""
    pulse = Pulse()
    pulse.saw(0, header(100, late_ms=-(10**11)), 0.0)
    pulse.saw(1, header(101, late_ms=-(10**11)), 0.0)
    assert pulse.verdict(0, 0.0, {0, 1}) == Steady()
    pulse.saw(1, header(102, late_ms=10**11), 0.0)
    assert isinstance(pulse.verdict(0, 0.0, {0, 1}), Lagging)


def test_when_to_look() -> None:
    pulse = Pulse()
    assert pulse.is_look_due(0, 0.0), "nobody ever did"
    pulse.looked(0.0)
    pulse.saw(0, header(100), 0.0)
    assert not pulse.is_look_due(0, STILL_S - 1)
    assert pulse.is_look_due(0, STILL_S), "ours is suspicious"
    pulse.saw(0, header(101), STILL_S)
    assert not pulse.is_look_due(0, STILL_S + 1)
    for at in range(9, int(LOOK_EVERY_S)):
        pulse.saw(0, header(100 + at), float(at))
        assert not pulse.is_look_due(0, float(at))
    assert pulse.is_look_due(0, LOOK_EVERY_S), "however well ours does"
