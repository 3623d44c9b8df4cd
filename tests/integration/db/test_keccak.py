"""Keccak-256 in SQL is the one of Ethereum, as `eth_hash` computes it."""

from random import Random
from typing import Final

import pytest
from eth_hash.auto import keccak
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from db.pool import Database
from tests.integration.db.support import row, rows

VECTORS: Final = {
    b"": "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470",
    b"abc": "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45",
    b"Transfer(address,address,uint256)": (
        "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
    ),
}


@pytest.mark.parametrize("message", VECTORS)
async def test_published_hashes(database: Database, message: bytes) -> None:
    found = await row(database, "SELECT encode(oncepaid_keccak256($1), 'hex') AS h", message)
    assert found == {"h": VECTORS[message]}


async def test_hashes_of_every_length_up_to_two_blocks(database: Database) -> None:
    random = Random(4)
    await _hashes_are_right(database, [random.randbytes(size) for size in range(2 * 136 + 2)])


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=500), max_size=20))
async def test_hashes(database: Database, messages: list[bytes]) -> None:
    await _hashes_are_right(database, messages)


async def _hashes_are_right(database: Database, messages: list[bytes]) -> None:
    found = await rows(
        database,
        "SELECT oncepaid_keccak256(m) AS h FROM unnest($1::bytea[]) WITH ORDINALITY AS u (m, n)"
        " ORDER BY n",
        messages,
    )
    assert [one["h"] for one in found] == [keccak(message) for message in messages]
