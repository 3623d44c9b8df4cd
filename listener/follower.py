"""What to fetch next, and what an answer means: the follower's rules, without any I/O.

The listener around it asks a node and stores rows; everything that has an `if` about blocks is
here. A range is read from the cursor's next block to an `end` whose hash was known before the
logs were asked for, and is believed only if the same hash stands there afterwards.
"""

from dataclasses import dataclass, replace
from typing import Final

from oncepaid.domain.chain import BlockRef, Header

FIRST_SPAN_BLOCKS: Final = 100
"""20 s of Base since Denim. Small, for it may be full of payments; it doubles where it is not."""
PAYMENTS_PER_RANGE: Final = 2_000
"""Ranges are sized towards this many payments, to bound memory and one transaction's work."""
WIDEN_AFTER: Final = 3
"""Ranges served in a row before a width is tried again that was refused before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """How many blocks the next range may have.

    `refused_at` is the smallest width that the node refused lately; growth stops short of it until
    enough ranges were served, so that a fixed limit is not run into again and again.
    """

    blocks: int
    max_blocks: int
    refused_at: int | None = None
    served_in_row: int = 0

    @classmethod
    def first(cls, max_blocks: int) -> "Span":
        return cls(blocks=min(FIRST_SPAN_BLOCKS, max_blocks), max_blocks=max_blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRange:
    """Ask for the logs of blocks `first` to `last`, both included."""

    first: int
    last: int

    @property
    def blocks(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class UpToDate:
    """The cursor stands on the head, or above a head that lags: nothing to fetch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CursorOrphaned:
    """The chain has another block where the cursor stands."""

    found: BlockRef


NextStep = FetchRange | UpToDate | CursorOrphaned


def next_step(cursor: BlockRef, head: BlockRef, span: Span) -> NextStep:
    """Say what follows from a head. A head below the cursor is a node that lags, never a reorg."""
    if head.number < cursor.number:
        return UpToDate()
    if head.number == cursor.number:
        return UpToDate() if head.hash == cursor.hash else CursorOrphaned(found=head)
    last = min(head.number, cursor.number + span.blocks)
    return FetchRange(first=cursor.number + 1, last=last)


def is_end_sound(before: BlockRef, after: Header | None) -> bool:
    """Say whether a range's end is the block it was before its logs were fetched."""
    return after is not None and after.ref == before


def follows_cursor(cursor: BlockRef, end: Header, at_cursor: Header | None) -> bool:
    """Say whether a range is built upon the cursor.

    `at_cursor` is the header that now stands at the cursor's height; it is not needed where `end`
    is the very next block, whose parent hash tells.
    """
    if end.number == cursor.number + 1:
        return end.parent_hash == cursor.hash
    return at_cursor is not None and at_cursor.ref == cursor


def on_served(span: Span, fetched: FetchRange, payments: int) -> Span:
    """Return the span after a range was served: wider, unless it was full of payments."""
    if payments > PAYMENTS_PER_RANGE:
        fitting = fetched.blocks * PAYMENTS_PER_RANGE // payments
        return replace(span, blocks=max(1, fitting), served_in_row=0)
    if fetched.blocks < span.blocks or payments > PAYMENTS_PER_RANGE // 2:
        return span
    served = span.served_in_row + 1
    wider = min(span.blocks * 2, span.max_blocks)
    if span.refused_at is not None and wider >= span.refused_at:
        if served < WIDEN_AFTER:
            return replace(span, served_in_row=served)
        # Creep up on a fixed limit by halves of what is left, and forget it once passed.
        wider = span.blocks + max(1, (span.refused_at - span.blocks) // 2)
        if wider >= span.refused_at:
            return replace(span, refused_at=span.refused_at * 2, served_in_row=0)
    return replace(span, blocks=min(wider, span.max_blocks), served_in_row=0)


def narrowed(span: Span) -> Span:
    """Return half of a span, without taking its width for a limit of the node."""
    return replace(span, blocks=max(1, span.blocks // 2), served_in_row=0)


def on_refused(span: Span, refused: FetchRange) -> Span | None:
    """Return the span after the node refused a range: half of it. None: one block is refused."""
    if refused.blocks == 1:
        return None
    return replace(
        span, blocks=max(1, refused.blocks // 2), refused_at=refused.blocks, served_in_row=0
    )


class Spans:
    """The span of each of several endpoints: what one refuses, another may serve."""

    def __init__(self, max_blocks: int, endpoints: int) -> None:
        self._spans = [Span.first(max_blocks) for _ in range(endpoints)]

    def step(self, endpoint: int, first: int, last: int) -> FetchRange:
        """Return as many of these blocks, from the first on, as an endpoint is to be asked for."""
        return FetchRange(first=first, last=min(last, first + self._spans[endpoint].blocks - 1))

    def served(self, endpoint: int, step: FetchRange, logs: int) -> None:
        """Note that a range was served, with so many logs of ours."""
        self._spans[endpoint] = on_served(self._spans[endpoint], step, logs)

    def refused(self, endpoint: int, step: FetchRange) -> bool:
        """Ask for half of it next time; False where not even one block is served."""
        narrower = on_refused(self._spans[endpoint], step)
        if narrower is not None:
            self._spans[endpoint] = narrower
        return narrower is not None
