"""Bytes in which a memo may stand, who signed them, and the search for memos in them."""

from dataclasses import dataclass
from typing import Final

from listener.erc8021 import strip_suffixes
from oncepaid.domain.chain import Address
from oncepaid.domain.memo import MAGIC, MAX_LOOKS, Memo, memos_of_tail
from oncepaid.domain.payments import MemoSource

MAX_SEARCHED_BYTES: Final = 256 * 1024
"""Of one transaction, whose tails and unknown calls are parts of its 128 KB, and seldom overlap."""
MAX_MEMOS: Final = 16
"""Of one tail. Two already name more than one job."""
MAX_LOOKS_IN_ALL: Final = 4 * MAX_LOOKS
"""Of one transaction, 14 µs each. Only who fills tails with broken envelopes comes near it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tail:
    """`operation` is the user operation in which it stands, None outside of all of them."""

    data: memoryview
    source: MemoSource
    by: Address | None
    operation: int | None


def memos_behind(tail: bytes) -> tuple[Memo, ...]:
    """Return the memos of a tail: before the ERC-8021 suffixes, else in what looks like one."""
    if MAGIC not in tail:
        return ()
    return memos_of_tail(strip_suffixes(tail)) or memos_of_tail(tail)


class TailSearch:
    """Searches the tails of one transaction: each of them once, and all within one bound.

    `is_short`: a bound was met, and not all was searched.
    """

    def __init__(self) -> None:
        self.is_short = False
        self._found: dict[Tail, tuple[Memo, ...]] = {}
        self._bytes_left = MAX_SEARCHED_BYTES
        self._looks_left = MAX_LOOKS_IN_ALL

    def memos(self, tail: Tail) -> tuple[Memo, ...]:
        found = self._found.get(tail)
        if found is None:
            found = self._found[tail] = self._search(tail.data)
        return found

    def _search(self, view: memoryview) -> tuple[Memo, ...]:
        # Asked before the bytes are copied: what no longer fits must cost nothing.
        if len(view) > self._bytes_left:
            self.is_short = True
            return ()
        self._bytes_left -= len(view)
        data = bytes(view)
        places = data.count(MAGIC)
        looks = min(places, MAX_LOOKS)
        if places > MAX_LOOKS or looks > self._looks_left:
            self.is_short = True
        if looks > self._looks_left:
            return ()
        self._looks_left -= looks
        return memos_behind(data)[:MAX_MEMOS]
