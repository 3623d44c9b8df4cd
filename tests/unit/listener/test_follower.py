"""What to fetch next: every block once, in ranges that the node will serve."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.follower import (
    FIRST_SPAN_BLOCKS,
    PAYMENTS_PER_RANGE,
    WIDEN_AFTER,
    CursorOrphaned,
    FetchRange,
    NextStep,
    Span,
    UpToDate,
    follows_cursor,
    is_end_sound,
    next_step,
    on_refused,
    on_served,
)
from oncepaid.domain.chain import BlockHash, BlockRef, Header


def block(number: int, branch: str = "a") -> BlockRef:
    return BlockRef(number=number, hash=BlockHash("0x" + branch * 64))


def header(number: int, branch: str = "a", parent: str = "a") -> Header:
    return Header(
        number=number,
        hash=BlockHash("0x" + branch * 64),
        parent_hash=BlockHash("0x" + parent * 64),
        timestamp_ms=0,
    )


def span(
    blocks: int, max_blocks: int = 5000, refused_at: int | None = None, served: int = 0
) -> Span:
    return Span(blocks=blocks, max_blocks=max_blocks, refused_at=refused_at, served_in_row=served)


def fetched(blocks: int) -> FetchRange:
    return FetchRange(first=1, last=blocks)


@pytest.mark.parametrize(
    ("cursor", "head", "step"),
    [
        (block(100), block(100), UpToDate()),
        (block(100), block(100, "b"), CursorOrphaned(found=block(100, "b"))),
        (block(100), block(99), UpToDate()),
        (block(100), block(99, "b"), UpToDate()),
        (block(100), block(0, "b"), UpToDate()),
        (block(100), block(101), FetchRange(first=101, last=101)),
        (block(100), block(101, "b"), FetchRange(first=101, last=101)),
        (block(100), block(110), FetchRange(first=101, last=110)),
        (block(100), block(111), FetchRange(first=101, last=110)),
        (block(100), block(10**9), FetchRange(first=101, last=110)),
        (block(0), block(3), FetchRange(first=1, last=3)),
    ],
)
def test_the_next_step(cursor: BlockRef, head: BlockRef, step: NextStep) -> None:
    assert next_step(cursor, head, span(10)) == step


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 10**6))
def test_a_range_begins_behind_the_cursor_and_ends_at_the_head(
    cursor: int, head: int, blocks: int
) -> None:
    match next_step(block(cursor), block(head), span(blocks, 10**6)):
        case FetchRange(first=first, last=last) as step:
            assert first == cursor + 1 <= last <= head
            assert step.blocks == min(blocks, head - cursor)
        case UpToDate():
            assert head <= cursor
        case CursorOrphaned():
            pytest.fail("both stand on the same branch")


@pytest.mark.parametrize(
    ("after", "sound"),
    [(header(5), True), (header(5, "b"), False), (header(6), False), (None, False)],
)
def test_an_end_is_sound_while_it_stays_the_same_block(after: Header | None, sound: bool) -> None:
    assert is_end_sound(block(5), after) is sound


@pytest.mark.parametrize(
    ("end", "at_cursor", "follows"),
    [
        (header(6, "c", parent="a"), None, True),
        (header(6, "c", parent="b"), None, False),
        (header(6, "c", parent="b"), header(5), False),
        (header(7, "c", parent="b"), header(5), True),
        (header(7, "c", parent="b"), header(5, "b"), False),
        (header(7, "c", parent="b"), None, False),
    ],
)
def test_a_range_is_built_upon_the_cursor_or_it_is_not(
    end: Header, at_cursor: Header | None, follows: bool
) -> None:
    assert follows_cursor(block(5), end, at_cursor) is follows


@pytest.mark.parametrize(
    ("max_blocks", "blocks"),
    [
        (1, 1),
        (10, 10),
        (FIRST_SPAN_BLOCKS - 1, FIRST_SPAN_BLOCKS - 1),
        (FIRST_SPAN_BLOCKS, FIRST_SPAN_BLOCKS),
        (1_000_000, FIRST_SPAN_BLOCKS),
    ],
)
def test_the_first_span(max_blocks: int, blocks: int) -> None:
    assert Span.first(max_blocks) == span(blocks, max_blocks)


@pytest.mark.parametrize(
    ("before", "served", "payments", "after"),
    [
        (span(500), 500, 0, span(1000)),
        (span(3000), 3000, 0, span(5000)),
        (span(5000), 5000, 0, span(5000)),
        (span(500), 499, 0, span(500)),
        (span(500), 500, PAYMENTS_PER_RANGE // 2, span(1000)),
        (span(500), 500, PAYMENTS_PER_RANGE // 2 + 1, span(500)),
        (span(500), 500, PAYMENTS_PER_RANGE, span(500)),
        (span(500), 500, PAYMENTS_PER_RANGE * 2, span(250)),
        (span(500), 100, PAYMENTS_PER_RANGE * 2, span(50)),
        (span(500), 500, PAYMENTS_PER_RANGE * 10_000, span(1)),
        (span(100, refused_at=300), 100, 0, span(200, refused_at=300)),
        (span(200, refused_at=300), 200, 0, span(200, refused_at=300, served=1)),
        (span(200, refused_at=300, served=WIDEN_AFTER - 1), 200, 0, span(250, refused_at=300)),
        (span(298, refused_at=300, served=WIDEN_AFTER - 1), 298, 0, span(299, refused_at=300)),
        (span(299, refused_at=300, served=WIDEN_AFTER - 1), 299, 0, span(299, refused_at=600)),
        (span(299, refused_at=600), 299, 0, span(598, refused_at=600)),
    ],
)
def test_a_served_range_widens_the_next(
    before: Span, served: int, payments: int, after: Span
) -> None:
    assert on_served(before, fetched(served), payments) == after


@pytest.mark.parametrize(
    ("refused", "after"),
    [
        (1000, span(500, refused_at=1000)),
        (501, span(250, refused_at=501)),
        (3, span(1, refused_at=3)),
        (2, span(1, refused_at=2)),
        (1, None),
    ],
)
def test_a_refused_range_halves_the_next(refused: int, after: Span | None) -> None:
    assert on_refused(span(1000, served=2), fetched(refused)) == after


def test_halving_ends_at_one_block() -> None:
    widths: list[int] = []
    current: Span | None = span(500)
    while current is not None:
        widths.append(current.blocks)
        current = on_refused(current, fetched(current.blocks))
    assert widths == [500, 250, 125, 62, 31, 15, 7, 3, 1]


@dataclass
class Run:
    """A listener without a network: follows a node of `limit_at(request)` blocks to its head."""

    span: Span
    covered: list[int] = field(default_factory=list)
    served: list[int] = field(default_factory=list)
    refused: int = 0

    def follow(self, head: int, limit_at: Callable[[int], int], dense: int = 0) -> None:
        """Go to the head; each block holds `dense` payments."""
        while not isinstance(
            step := next_step(block(len(self.covered)), block(head), self.span), UpToDate
        ):
            assert isinstance(step, FetchRange)
            assert 1 <= step.blocks <= self.span.blocks <= self.span.max_blocks
            if step.blocks > limit_at(len(self.served) + self.refused):
                self.refused += 1
                narrower = on_refused(self.span, step)
                assert narrower is not None, "a single block is always served here"
                self.span = narrower
                continue
            self.served.append(step.blocks)
            self.covered.extend(range(step.first, step.last + 1))
            self.span = on_served(self.span, step, step.blocks * dense)


limits = st.one_of(st.integers(1, 20), st.integers(1, 700), st.integers(1, 12_000))


@given(limits, st.integers(1, 6000), st.integers(0, 60))
def test_every_block_is_covered_once_in_ranges_near_the_limit(
    limit: int, max_blocks: int, rounds: int
) -> None:
    best = min(limit, max_blocks)
    run = Run(Span.first(max_blocks))
    head = best * rounds
    run.follow(head, lambda _: limit)
    assert run.covered == list(range(1, head + 1))
    # Ten halvings at first; then rarely one in four is refused, and none is far below the limit.
    assert run.refused <= 10 + len(run.served) / 3
    assert all(width >= best // 2 for width in run.served[6:-1])


@pytest.mark.parametrize("limit", [1, 2, 10, 100, 500, 2000, 3333])
def test_over_a_long_way_most_of_what_the_node_serves_is_used(limit: int) -> None:
    run = Run(Span.first(5000))
    run.follow(limit * 300, lambda _: limit)
    assert sum(run.served) / len(run.served) > 0.7 * limit
    assert run.refused < 0.3 * len(run.served)


def test_a_node_that_recovers_is_asked_for_the_most_again() -> None:
    run = Run(Span.first(5000))
    run.follow(200_000, lambda request: 10 if request < 50 else 10_000)
    assert run.span.blocks == 5000
    assert len(run.served) < 150


@given(st.lists(limits, min_size=1, max_size=30), st.integers(0, 3000))
def test_a_node_of_changing_moods_loses_nothing(moods: list[int], head: int) -> None:
    run = Run(Span.first(2000))
    run.follow(head, lambda request: moods[request % len(moods)] if request % 3 else 4000)
    assert run.covered == list(range(1, head + 1))


def test_full_ranges_shrink_towards_the_bound() -> None:
    run = Run(Span.first(5000))
    run.follow(3000, lambda _: 10_000, dense=100)
    assert run.covered == list(range(1, 3001))
    assert {width * 100 for width in run.served[1:]} == {PAYMENTS_PER_RANGE}


def test_a_short_range_at_the_head_says_nothing_about_the_node() -> None:
    current = span(500, refused_at=600, served=2)
    assert on_served(current, fetched(3), 0) == current
