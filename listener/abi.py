"""Reading ABI-encoded arguments that strangers wrote: in bounded steps, and without a copy.

`eth_abi` is right, and unbounded: the heads of an array may all point at one blob, which it copies
for each of them. 128 KB of calldata whose 2,048 heads share 64 KB became 134 MB; an array of arrays
squares that. Here a value of type `bytes` is a view of the calldata, the elements of an array are
counted, and all that is read for one transaction takes from one allowance.

What Solidity would refuse is refused. It accepts a few encodings that are refused here too, such
as offsets that point backwards: whoever writes those hides his own memo, and proves nothing else.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

WORD_BYTES: Final = 32
MAX_ELEMENTS: Final = 256
"""Of one array; nothing in the walk may have more calls."""
MAX_STEPS: Final = 8192
"""Values read for one transaction; 256 Safe transactions in a batch need 3,600."""

Value = Any
"""int for a word, memoryview for bytes, a tuple of values for an array or a tuple."""


class Malformed(Exception):
    """These bytes are not what their type says, or more of it than is read."""


class Steps:
    """How many more values may be read for this transaction.

    `is_short`: not all was read, as a limit was met or bytes were not what they should be.
    """

    __slots__ = ("is_short", "left")

    def __init__(self, left: int = MAX_STEPS) -> None:
        self.left = left
        self.is_short = False

    def take(self) -> None:
        if self.left <= 0:
            raise Malformed("more values than are read for one transaction")
        self.left -= 1


class Kind(Enum):
    """The shapes of ABI values."""

    WORD = auto()
    """32 bytes in place: a number, an address, a flag, a hash."""
    BYTES = auto()
    """`bytes` or `string`: a length, then so many bytes."""
    ARRAY = auto()
    """`T[]`: a count, then so many values."""
    TUPLE = auto()
    """Members behind each other, as a call's arguments are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbiType:
    """A type. `head_bytes` is what it takes up in place; a dynamic one has an offset there."""

    kind: Kind
    members: tuple["AbiType", ...] = ()
    is_dynamic: bool = True
    head_bytes: int = WORD_BYTES


_WORD: Final = AbiType(kind=Kind.WORD, is_dynamic=False)
_BYTES: Final = AbiType(kind=Kind.BYTES)


def parse_type(text: str) -> AbiType:
    """Return the type that is written as in a signature: `(address,bytes)[]`.

    Knows what the table of wrappers needs: words, `bytes`, `string`, `T[]` and tuples. The text is
    ours, and its type is trusted.
    """
    if text.endswith("[]"):
        return AbiType(kind=Kind.ARRAY, members=(parse_type(text[:-2]),))
    if text.startswith("("):
        members = tuple(map(parse_type, _members(text[1:-1])))
        if any(member.is_dynamic for member in members):
            return AbiType(kind=Kind.TUPLE, members=members)
        size = sum(member.head_bytes for member in members)
        return AbiType(kind=Kind.TUPLE, members=members, is_dynamic=False, head_bytes=size)
    return _BYTES if text in ("bytes", "string") else _WORD


def _members(text: str) -> list[str]:
    """Split at the commas outside all parentheses."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part for part in parts if part]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """A call's arguments. `end` is behind the furthest byte of them: the tail begins there.

    Where `bytes` stand last, up to 31 zeros of padding are still in the tail: some write none.
    """

    values: tuple[Value, ...]
    end: int


def decode(arguments: AbiType, data: memoryview, steps: Steps) -> Arguments:
    """Return the members of a tuple that `data` begins with. Raises `Malformed`."""
    reader = _Reader(data, steps)
    try:
        values = reader.members(arguments, 0)
    except Malformed:
        steps.is_short = True
        raise
    return Arguments(values=values, end=reader.end)


class _Reader:
    __slots__ = ("_data", "_size", "_steps", "end")

    def __init__(self, data: memoryview, steps: Steps) -> None:
        self._data = data
        self._size = len(data)
        self._steps = steps
        self.end = 0

    def members(self, kind: AbiType, base: int) -> tuple[Value, ...]:
        values = []
        at = base
        for member in kind.members:
            values.append(self._value(member, base, at))
            at += member.head_bytes
        return tuple(values)

    def _value(self, kind: AbiType, base: int, at: int) -> Value:
        """Read the value whose head stands at `at`; offsets count from `base`."""
        self._steps.take()
        if kind.is_dynamic:
            at = base + self._word(at)
        # Compared by identity, commonest first: this is where all the time goes.
        if kind.kind is Kind.WORD:
            return self._word(at)
        if kind.kind is Kind.BYTES:
            return self._slice(at + WORD_BYTES, self._word(at))
        if kind.kind is Kind.TUPLE:
            return self.members(kind, at)
        return self._array(kind.members[0], at + WORD_BYTES, self._word(at))

    def _array(self, element: AbiType, base: int, count: int) -> tuple[Value, ...]:
        if count > MAX_ELEMENTS:
            raise Malformed("an array of more elements than are read")
        stride = element.head_bytes
        return tuple(self._value(element, base, base + stride * index) for index in range(count))

    def _word(self, at: int) -> int:
        return int.from_bytes(self._slice(at, WORD_BYTES))

    def _slice(self, at: int, size: int) -> memoryview:
        end = at + size
        if end > self._size:
            raise Malformed("a value that ends behind its bytes")
        if end > self.end:
            self.end = end
        return self._data[at:end]
