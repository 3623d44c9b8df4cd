"""Addresses and times at the border of the chain."""

from datetime import UTC, datetime

import pytest
from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from oncepaid.domain.chain import (
    AUTHORIZATION_USED_TOPIC,
    LATEST_DATETIME_MS,
    TRANSFER_TOPIC,
    BlockHash,
    Header,
    parse_address,
    time_of,
)


def test_the_topics_are_the_hashes_of_their_events() -> None:
    assert "0x" + keccak(b"Transfer(address,address,uint256)").hex() == TRANSFER_TOPIC
    assert "0x" + keccak(b"AuthorizationUsed(address,bytes32)").hex() == AUTHORIZATION_USED_TOPIC


@given(st.integers(0, LATEST_DATETIME_MS))
def test_milliseconds_become_the_same_time(timestamp_ms: int) -> None:
    assert round(time_of(timestamp_ms).timestamp() * 1000) == timestamp_ms


@pytest.mark.parametrize(
    ("timestamp_ms", "time"),
    [
        (-1, datetime(1970, 1, 1, tzinfo=UTC)),
        (-(2**63), datetime(1970, 1, 1, tzinfo=UTC)),
        (1_700_000_000_200, datetime(2023, 11, 14, 22, 13, 20, 200_000, tzinfo=UTC)),
        (LATEST_DATETIME_MS + 1, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (2**256, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_a_lying_clock_is_clamped(timestamp_ms: int, time: datetime) -> None:
    assert time_of(timestamp_ms) == time


def test_a_header_knows_its_block_and_time() -> None:
    header = Header(
        number=7,
        hash=BlockHash("0x" + "ab" * 32),
        parent_hash=BlockHash("0x" + "cd" * 32),
        timestamp_ms=1000,
    )
    assert str(header.ref) == "7 (0xabababab…)"
    assert header.time == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)


@given(st.binary(min_size=20, max_size=20))
def test_an_address_is_lowered(raw: bytes) -> None:
    assert parse_address("0x" + raw.hex().upper()) == "0x" + raw.hex()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x",
        "ab" * 20,
        "0x" + "ab" * 19,
        "0x" + "ab" * 21,
        "0x" + "ab" * 20 + "\n",
        "0X" + "ab" * 20,
        "0x" + "zz" * 20,
        " 0x" + "ab" * 20,
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        parse_address(text)
