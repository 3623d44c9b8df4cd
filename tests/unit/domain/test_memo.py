"""An envelope names exactly one job, wherever it stands, and nothing else is taken for one."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from oncepaid.domain.memo import (
    ENVELOPE_BYTES,
    MAGIC,
    MAX_TAIL_BYTES,
    Memo,
    envelope_of,
    memo_of_nonce,
    memos_of_tail,
    read_envelope,
)

EXAMPLE = Memo(bytes.fromhex("00112233445566778899aabbccddeeff"))
EXAMPLE_ENVELOPE = bytes.fromhex("5c2e113200112233445566778899aabbccddeeff9eab6a62")

memos = st.binary(min_size=16, max_size=16).map(Memo)
# Noise cannot hold an envelope by accident, but may well hold pieces of one.
noise = st.lists(
    st.binary(max_size=40) | st.just(MAGIC) | st.just(EXAMPLE_ENVELOPE[:-1]), max_size=4
).map(b"".join)


def test_the_published_example() -> None:
    assert envelope_of(EXAMPLE) == EXAMPLE_ENVELOPE
    assert read_envelope(EXAMPLE_ENVELOPE) == EXAMPLE


@pytest.mark.parametrize("size", [0, 15, 17, 24])
def test_a_memo_has_sixteen_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        envelope_of(Memo(bytes(size)))


@given(memos, st.binary(max_size=50))
def test_an_envelope_reads_back_whatever_follows(memo: Memo, rest: bytes) -> None:
    envelope = envelope_of(memo)
    assert len(envelope) == ENVELOPE_BYTES == 24
    assert read_envelope(envelope + rest) == memo


@pytest.mark.parametrize(
    "memo", [EXAMPLE, Memo(bytes(16)), Memo(b"\xff" * 16), Memo(MAGIC * 4), Memo(bytes(range(16)))]
)
def test_no_single_byte_of_an_envelope_can_be_changed(memo: Memo) -> None:
    """All of them: another byte at each place, and each where it may stand."""
    envelope = envelope_of(memo)
    for position in range(ENVELOPE_BYTES):
        for difference in range(1, 256):
            changed = bytearray(envelope)
            changed[position] ^= difference
            assert read_envelope(bytes(changed)) is None
            assert memo_of_nonce(bytes(changed) + bytes(8)) is None
            assert memos_of_tail(bytes(3) + bytes(changed)) == ()


@given(memos, st.integers(0, ENVELOPE_BYTES - 1), st.integers(1, 255))
def test_a_mistyped_envelope_names_no_job(memo: Memo, position: int, difference: int) -> None:
    changed = bytearray(envelope_of(memo))
    changed[position] ^= difference
    assert read_envelope(bytes(changed)) is None
    assert memos_of_tail(bytes(changed)) == ()
    assert memo_of_nonce(bytes(changed) + bytes(8)) is None


@given(memos, st.integers(0, ENVELOPE_BYTES - 1))
def test_a_truncated_envelope_names_no_job(memo: Memo, size: int) -> None:
    assert read_envelope(envelope_of(memo)[:size]) is None
    assert memos_of_tail(envelope_of(memo)[:size]) == ()


# The noise holds our magic often, which would make a second envelope: here it is taken out.
others = noise.map(lambda drawn: drawn.replace(MAGIC, b""))


@given(others, memos, others)
def test_an_envelope_is_found_at_any_offset(before: bytes, memo: Memo, after: bytes) -> None:
    assume(MAGIC not in before + after)
    assert memos_of_tail(before + envelope_of(memo) + after) == (memo,)


@pytest.mark.parametrize("offset", [0, 1, 31, 32, 500, MAX_TAIL_BYTES - ENVELOPE_BYTES])
def test_an_envelope_is_found_up_to_the_limit(offset: int) -> None:
    assert memos_of_tail(bytes(offset) + EXAMPLE_ENVELOPE) == (EXAMPLE,)


@pytest.mark.parametrize("offset", [MAX_TAIL_BYTES - ENVELOPE_BYTES + 1, MAX_TAIL_BYTES, 300_000])
def test_an_envelope_beyond_the_limit_is_not_looked_for(offset: int) -> None:
    assert memos_of_tail(bytes(offset) + EXAMPLE_ENVELOPE) == ()


@given(st.lists(memos, min_size=1, max_size=5), noise)
def test_all_memos_are_found_once_and_in_their_order(found: list[Memo], between: bytes) -> None:
    tail = between.join(envelope_of(memo) for memo in found)
    assert memos_of_tail(tail) == tuple(dict.fromkeys(found))


def test_a_memo_may_begin_with_the_magic() -> None:
    inner = Memo(MAGIC + bytes(12))
    assert memos_of_tail(MAGIC + envelope_of(inner)) == (inner,)


@given(st.binary(max_size=2000))
def test_random_bytes_name_no_job(data: bytes) -> None:
    assert read_envelope(data) is None
    assert memos_of_tail(data) == ()
    assert memos_of_tail(MAGIC + data) == ()


@given(memos, st.binary(min_size=8, max_size=8))
def test_a_nonce_ends_in_eight_free_bytes(memo: Memo, free: bytes) -> None:
    assert memo_of_nonce(envelope_of(memo) + free) == memo


@pytest.mark.parametrize("free", [0, 7, 9, 40])
def test_a_nonce_has_thirty_two_bytes(free: int) -> None:
    assert memo_of_nonce(EXAMPLE_ENVELOPE + bytes(free)) is None
