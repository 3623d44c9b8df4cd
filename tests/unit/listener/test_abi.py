"""ABI-encoded arguments are read as eth_abi reads them, in bounded steps and without copies."""

from typing import Any

import pytest
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st

from listener.abi import (
    MAX_ELEMENTS,
    MAX_STEPS,
    Arguments,
    Kind,
    Malformed,
    Steps,
    decode,
    parse_type,
)

WORDS = {
    "uint256": st.integers(0, 2**256 - 1),
    "address": st.binary(min_size=20, max_size=20).map(lambda b: "0x" + b.hex()),
    "bool": st.booleans(),
    "bytes32": st.binary(min_size=32, max_size=32),
}
LEAVES = st.sampled_from([*WORDS, "bytes", "string"])
TYPES = st.recursive(
    LEAVES,
    lambda inner: (
        inner.map(lambda t: t + "[]")
        | st.lists(inner, min_size=1, max_size=4).map(lambda parts: f"({','.join(parts)})")
    ),
    max_leaves=6,
)


def members(text: str) -> list[str]:
    parts, depth = [""], 0
    for sign in text[1:-1]:
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def values_of(kind: str) -> st.SearchStrategy[Any]:
    if kind.endswith("[]"):
        return st.lists(values_of(kind[:-2]), max_size=3)
    if kind.startswith("("):
        return st.tuples(*map(values_of, members(kind)))
    if kind == "bytes":
        return st.binary(max_size=70)
    if kind == "string":
        return st.text(max_size=20)
    return WORDS[kind]


def plain(kind: str, value: Any) -> Any:
    """Return a value as this reader gives it: numbers, bytes and tuples."""
    if kind.endswith("[]"):
        return tuple(plain(kind[:-2], entry) for entry in value)
    if kind.startswith("("):
        return tuple(map(plain, members(kind), value))
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        return int(value, 16) if kind == "address" else value.encode()
    return int.from_bytes(value) if kind == "bytes32" else value


def unviewed(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(unviewed, value))
    return bytes(value) if isinstance(value, memoryview) else value


def read(kind: str, data: bytes, steps: Steps | None = None) -> Arguments:
    return decode(parse_type(kind), memoryview(data), steps or Steps())


@st.composite
def encodings(draw: st.DrawFn) -> tuple[list[str], tuple[Any, ...]]:
    kinds = draw(st.lists(TYPES, min_size=1, max_size=4))
    return kinds, tuple(draw(values_of(kind)) for kind in kinds)


@given(encodings(), st.binary(max_size=80))
def test_what_eth_abi_encodes_is_read_and_the_tail_is_what_was_appended(
    sample: tuple[list[str], tuple[Any, ...]], tail: bytes
) -> None:
    kinds, values = sample
    encoded = encode(kinds, values)
    found = read(f"({','.join(kinds)})", encoded + tail)
    assert unviewed(found.values) == tuple(map(plain, kinds, values))
    padding = len(encoded) - found.end
    assert 0 <= padding < 32
    assert (encoded + tail)[found.end :] == bytes(padding) + tail


@given(encodings(), st.data())
def test_what_is_cut_short_is_refused(
    sample: tuple[list[str], tuple[Any, ...]], data: st.DataObject
) -> None:
    kinds, values = sample
    kind, encoded = f"({','.join(kinds)})", encode(kinds, values)
    size = data.draw(st.integers(0, read(kind, encoded).end - 1))
    with pytest.raises(Malformed):
        read(kind, encoded[:size])


@given(TYPES, st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(kind: str, data: bytes) -> None:
    steps = Steps(500)
    try:
        found = read(f"({kind})", data, steps)
    except Malformed:
        return
    assert 0 <= found.end <= len(data)
    assert steps.left >= 0


@pytest.mark.parametrize(
    ("text", "kind", "head_bytes"),
    [
        ("uint8", Kind.WORD, 32),
        ("bytes32", Kind.WORD, 32),
        ("bytes", Kind.BYTES, 32),
        ("(address,(bool,uint8))", Kind.TUPLE, 96),
        ("(address,(bool,bytes))", Kind.TUPLE, 32),
        ("(address,bytes)[]", Kind.ARRAY, 32),
        ("()", Kind.TUPLE, 0),
    ],
)
def test_types_are_read_as_a_signature_writes_them(text: str, kind: Kind, head_bytes: int) -> None:
    found = parse_type(text)
    assert (found.kind, found.head_bytes) == (kind, head_bytes)


def test_bytes_are_views_of_the_calldata() -> None:
    data = encode(["bytes"], [b"memo"])
    (value,) = read("(bytes)", data).values
    assert isinstance(value, memoryview)
    assert value.obj is data


def test_unpadded_bytes_end_where_they_end() -> None:
    found = read("(bytes)", (32).to_bytes(32) + (4).to_bytes(32) + b"memo" + b"tail")
    assert (bytes(found.values[0]), found.end) == (b"memo", 68)


def words(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(32) for number in numbers)


REFUSED = {
    "an offset behind the end": ("(bytes)", words(64)),
    "a huge offset": ("(bytes)", words(2**256 - 1, 0)),
    "a backward offset": ("(bytes)", words(2**256 - 32, 0)),
    "a huge length": ("(bytes)", words(32, 2**255)),
    "a length of one too many": ("(bytes)", words(32, 33) + bytes(32)),
    "a huge array": ("(uint8[])", words(32, 2**255)),
    "100k elements": ("(bytes[])", words(32, 100_000) + bytes(100_000)),
    "an array of one too many": ("(uint8[])", words(32, MAX_ELEMENTS + 1) + bytes(2**14)),
    "an element that is not there": ("(uint8[])", words(32, 2, 1)),
}


@pytest.mark.parametrize(("kind", "data"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(kind: str, data: bytes) -> None:
    with pytest.raises(Malformed):
        read(kind, data)


def test_the_largest_array_is_read() -> None:
    data = words(32, MAX_ELEMENTS, *range(MAX_ELEMENTS))
    assert read("(uint8[])", data).values == (tuple(range(MAX_ELEMENTS)),)


def test_an_array_whose_heads_share_one_blob_costs_no_copies() -> None:
    heads = words(*[32 * MAX_ELEMENTS] * MAX_ELEMENTS)
    data = words(32, MAX_ELEMENTS) + heads + words(100_000) + bytes(100_000)
    steps = Steps()
    (found,) = read("(bytes[])", data, steps).values
    assert {(len(entry), entry.obj is data) for entry in found} == {(100_000, True)}
    assert MAX_STEPS - steps.left == MAX_ELEMENTS + 1


def test_arrays_of_arrays_that_refer_to_themselves_run_out_of_steps() -> None:
    """Each of 256 heads leads to the same 256 heads, which lead to the same 256 bytes."""
    inner = words(MAX_ELEMENTS, *[32 * MAX_ELEMENTS] * MAX_ELEMENTS, 0)
    outer = words(32, MAX_ELEMENTS, *[32 * MAX_ELEMENTS] * MAX_ELEMENTS) + inner
    steps = Steps()
    with pytest.raises(Malformed):
        read("(bytes[][])", outer, steps)
    assert steps.left == 0


def test_one_allowance_serves_all_that_is_read_with_it() -> None:
    steps = Steps(5)
    read("(uint8,uint8)", words(1, 2), steps)
    read("(uint8,uint8)", words(1, 2), steps)
    with pytest.raises(Malformed):
        read("(uint8,uint8)", words(1, 2), steps)
