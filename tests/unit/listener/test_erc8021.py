"""An ERC-8021 suffix is cut off exactly, or left where it is."""

import time
from io import BytesIO
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.erc8021 import strip_suffixes
from listener.tails import memos_behind
from oncepaid.domain.memo import envelope_of
from tests.unit.listener.calls import BASEAPP, ENVELOPE, MARKER
from tests.unit.samples import memo

# The vectors of the reference implementation (`Attribution.ts` of wevm/ox), and one seen on Base.
BASEAPP_MORPHO = bytes.fromhex("626173656170702c6d6f7270686f0e00") + MARKER
REGISTERED = bytes(range(20)) + bytes.fromhex("210502") + b"baseapp\x07\x01" + MARKER
CBOR_BASEAPP = bytes.fromhex("a161616762617365617070000b02") + MARKER
CBOR_FACILITATOR = bytes.fromhex("a161776a6364705f666163696c31000e02") + MARKER
VECTORS = [BASEAPP, BASEAPP_MORPHO, REGISTERED, CBOR_BASEAPP, CBOR_FACILITATOR]

LENGTH_FIRST = b"\x07baseapp\x00" + MARKER
"""Schema 0 as several published pages print it: a naive parser reads a length of 0x70."""

codes = st.from_regex(r"[a-z0-9_]{1,12}(,[a-z0-9_]{1,12}){0,3}", fullmatch=True).map(str.encode)
schema_0 = codes.map(lambda c: c + bytes([len(c), 0]) + MARKER)
schema_1 = st.builds(
    lambda registry, chain, c: (
        registry + chain + bytes([len(chain)]) + c + bytes([len(c), 1]) + MARKER
    ),
    st.binary(min_size=20, max_size=20),
    st.binary(min_size=1, max_size=32),
    codes,
)
schema_2 = st.dictionaries(
    st.sampled_from(["a", "w", "s", "m"]), st.text(max_size=10) | st.binary(max_size=20), max_size=3
).map(lambda m: (body := cbor2.dumps(m)) + len(body).to_bytes(2) + b"\x02" + MARKER)
suffixes = st.one_of(st.sampled_from(VECTORS), schema_0, schema_1, schema_2)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.hex()[:16])
@pytest.mark.parametrize("before", [b"", ENVELOPE, bytes(200)], ids=["alone", "memo", "zeros"])
def test_a_published_suffix_is_cut_off_exactly(vector: bytes, before: bytes) -> None:
    assert strip_suffixes(before + vector) == before


@given(st.sampled_from([b"", ENVELOPE, bytes(32)]), st.lists(suffixes, max_size=8))
def test_stacked_suffixes_are_cut_off_down_to_the_memo(before: bytes, stack: list[bytes]) -> None:
    tail = before + b"".join(stack)
    assert strip_suffixes(tail) == before
    assert memos_behind(tail) == ((memo(7),) if before == ENVELOPE else ())


def test_the_stack_is_bounded_and_the_memo_still_found() -> None:
    tail = ENVELOPE + BASEAPP * 12
    assert strip_suffixes(tail) == ENVELOPE + BASEAPP * 4
    assert memos_behind(tail) == (memo(7),)


@pytest.mark.parametrize("before", [b"", ENVELOPE, bytes(500), b"a" * 500])
def test_a_suffix_with_its_length_first_is_left_alone(before: bytes) -> None:
    assert strip_suffixes(before + LENGTH_FIRST) == before + LENGTH_FIRST
    assert memos_behind(ENVELOPE + before + LENGTH_FIRST) == (memo(7),)


def cbor_suffix(body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return body + size.to_bytes(2) + b"\x02" + MARKER


@pytest.mark.parametrize(
    "tail",
    [
        MARKER,
        b"\x00" + MARKER,
        b"\x00\x00" + MARKER,
        b"baseapp\x07\x03" + MARKER,
        b"baseapp\x07\xff" + MARKER,
        b"BaseApp\x07\x00" + MARKER,
        b"base app\x08\x00" + MARKER,
        b"base,,app\x09\x00" + MARKER,
        b"baseapp,\x08\x00" + MARKER,
        b"baseapp\n\x08\x00" + MARKER,
        b"baseapp\x08\x00" + MARKER,
        b"baseapp\x07\x00" + MARKER[:-1],
        b"baseapp\x07\x00" + MARKER + b"\x00",
        REGISTERED[1:],
        bytes(20) + b"\x00" + b"baseapp\x07\x01" + MARKER,
        bytes(60) + b"\x21" + b"baseapp\x07\x01" + MARKER,
        b"\x00\x02" + MARKER,
        b"\x02" + MARKER,
        cbor_suffix(b""),
        cbor_suffix(b"\xa0", 2),
        cbor_suffix(b"\xa1"),
        cbor_suffix(cbor2.dumps([1])),
        cbor_suffix(cbor2.dumps("text")),
        cbor_suffix(b"\xa0\x00"),
        cbor_suffix(b"\xa0" + ENVELOPE),
        cbor_suffix(cbor2.dumps({"m": bytes(2000)})),
        cbor_suffix(b"\xa1\x61m" + b"\x81" * 900),
        cbor_suffix(cbor2.dumps({"m": cbor2.CBORTag(4000, 1)})),
        cbor_suffix(b"\xd9\xd9\xf7" + cbor2.dumps({"a": "baseapp"})),
        cbor_suffix(b"\xa1\x61a\xc1"),
        cbor_suffix(b"\xa1\x61a\xd8\x23"),
        cbor_suffix(b"\xbf\x61a\x61b\xff"),
        cbor_suffix(b"\xa1\x61a\x7f\x61b\xff"),
        cbor_suffix(b"\xa1\x61a\xff"),
        cbor_suffix(b"\xa1\x61a\x1c"),
        cbor_suffix(b"\xa1\x61a\xf8\x1f"),
        cbor_suffix(b"\xa1\x61a\x19\x01"),
        cbor_suffix(b"\xa1\x61a\x42\x01"),
        cbor_suffix(b"\xa1\x61a"),
        cbor_suffix(b"\xa0\xa0"),
        cbor_suffix(cbor2.dumps({"m": [[[[]]]]})),
        cbor_suffix(cbor2.dumps({"m": [0] * 126})),
    ],
    ids=lambda tail: tail.hex()[:24],
)
def test_what_does_not_parse_exactly_is_left_alone(tail: bytes) -> None:
    assert strip_suffixes(tail) == tail


@given(st.binary(max_size=200), st.sampled_from([0, 1, 2, 3, 255]), st.integers(0, 3))
def test_stripping_only_ever_cuts_the_end_off(data: bytes, schema: int, markers: int) -> None:
    tail = data + (bytes([schema]) + MARKER) * markers
    assert tail.startswith(strip_suffixes(tail))


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"m": [[[]]]},
        {"m": [0] * 125},
        {"m": {1: -1, "f": [0.5, 1e300, None, True, cbor2.undefined, cbor2.CBORSimpleValue(99)]}},
        {"m": {b"\0" * 300: "€" * 60, "n": [2**64 - 1, -(2**32), 256, 24]}},
        {n: n for n in range(60)},
    ],
    ids=["empty", "deep", "many items", "simple", "lengths", "many keys"],
)
def test_a_map_of_any_plain_values_is_cut_off(value: Any) -> None:
    assert strip_suffixes(ENVELOPE + cbor_suffix(cbor2.dumps(value))) == ENVELOPE


def test_a_length_may_be_longer_than_it_must() -> None:
    """Some encoders write every map with two bytes of length."""
    body = b"\xb9\x00\x01\x61a\x7b" + (7).to_bytes(8) + b"baseapp"
    assert cbor2.loads(body) == {"a": "baseapp"}
    assert strip_suffixes(ENVELOPE + cbor_suffix(body)) == ENVELOPE


plain = st.recursive(
    st.integers(-(2**64), 2**64 - 1) | st.text(max_size=9) | st.binary(max_size=9) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=3), plain, max_size=3))
def test_every_map_without_tags_is_cut_off_unless_it_is_deep(value: dict[str, Any]) -> None:
    stripped = strip_suffixes(ENVELOPE + cbor_suffix(cbor2.dumps(value))) == ENVELOPE
    assert stripped == (depth(value) <= 4)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return an encoding with one byte changed, which may make it any other one."""
    encoded = bytearray(cbor2.dumps(draw(plain)))
    encoded[draw(st.integers(0, len(encoded) - 1))] = draw(st.integers(0, 255))
    return bytes(encoded)


@given(st.one_of(damaged(), st.binary(min_size=1, max_size=30).map(lambda body: b"\xa1" + body)))
def test_what_is_cut_off_is_a_map_to_a_decoder_too(body: bytes) -> None:
    if strip_suffixes(cbor_suffix(body)) == b"":
        stream = BytesIO(body)
        value = cbor2.CBORDecoder(stream, read_size=1, str_errors="replace").decode()
        assert isinstance(value, dict)
        assert not stream.read(1)


def depth(value: Any) -> int:
    match value:
        case dict():
            return 1 + max(map(depth, [*value.keys(), *value.values()]), default=0)
        case list() | tuple():
            return 1 + max(map(depth, value), default=0)
        case _:
            return 0


def colliding_map() -> bytes:
    """Return a CBOR map whose keys all have the hash 0: what makes a decoder quadratic."""
    keys = (b"\xc2\x4a" + (n * (2**61 - 1)).to_bytes(10) + b"\x00" for n in range(1, 4900))
    return b"\xb9" + (4899).to_bytes(2) + b"".join(keys)


def expensive_patterns() -> bytes:
    """Return suffixes with regular expressions (tag 35) that take seconds to compile."""
    tail = b""
    for n in range(1, 25):
        pattern = "(?i)" + "".join(
            f"[{chr(1 + (n + at) % 90)}-\uffff{chr(0x100 + n)}]" for at in range(95)
        )
        text = pattern.encode()
        tail += cbor_suffix(b"\xa1\x61a\xd8\x23\x79" + len(text).to_bytes(2) + text)
    return tail


HOSTILE = {
    "patterns": expensive_patterns(),
    "items": cbor_suffix(b"\xb9\x01\xfe" + bytes(1020)) * 120,
    "nested items": cbor_suffix(b"\xa1\x00" + b"\x80" * 1000) * 120,
    "markers": MARKER * 8000,
    "empty": (b"\x00" + MARKER) * 7500,
    "stack": BASEAPP * 4900,
    "pieces": envelope_of(memo(7))[:-1] * 5000,
    "collisions": cbor_suffix(colliding_map()),
    "decimal": cbor_suffix(b"\xa1\x00\xc4\x82\x01\xc2\x59\xea\x60" + b"\xff" * 60_000),
    "deep": cbor_suffix(b"\xa1\x00" + b"\x81" * 60_000),
    "huge": cbor_suffix(b"\xa1\x00\x9b" + b"\xff" * 8),
}


@pytest.mark.parametrize("tail", HOSTILE.values(), ids=HOSTILE)
def test_hostile_tails_are_cheap(tail: bytes) -> None:
    started = time.process_time()
    assert memos_behind(ENVELOPE + tail) == (memo(7),)
    assert time.process_time() - started < 0.1
