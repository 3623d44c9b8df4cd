"""Blocks, transactions and plain values as a node says them."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.decode import (
    address_of_topic,
    decode_header,
    decode_transaction,
    hash32,
    quantity,
)
from oncepaid.domain.errors import InconsistentNode
from tests.unit.samples import PAYER, USDC

pytestmark = pytest.mark.fault("F22")

BLOCK_HASH = "0x" + "0b" * 32
TX_HASH = "0x" + "0c" * 32
TOO_DEEP = orjson.loads("[" * 1000 + "]" * 1000)
"""orjson reads what Python's own recursion cannot print."""


@pytest.mark.parametrize(
    ("text", "number"),
    [("0x0", 0), ("0x1f", 31), ("0x001F", 31), ("0x7fffffffffffffff", 2**63 - 1)],
)
def test_quantities(text: str, number: int) -> None:
    assert quantity(text) == number


HEADER = {"number": "0x10", "hash": BLOCK_HASH, "parentHash": TX_HASH, "timestamp": "0x6a90cd37"}


@pytest.mark.parametrize(
    ("changed", "timestamp_ms"),
    [
        ({}, 0x6A90CD37 * 1000),
        ({"timestampMs": hex(0x6A90CD37 * 1000 + 600)}, 0x6A90CD37 * 1000 + 600),
        ({"timestamp": "0x7fffffffffffffff"}, 10**14),
        ({"timestamp": None, "timestampMs": "0x1"}, 1),
    ],
)
def test_headers(changed: dict[str, Any], timestamp_ms: int) -> None:
    header = decode_header(HEADER | changed)
    assert header is not None
    assert (header.number, header.hash, header.parent_hash) == (16, BLOCK_HASH, TX_HASH)
    assert header.timestamp_ms == timestamp_ms


@pytest.mark.parametrize("missing", sorted(HEADER))
def test_a_header_without_a_field_is_inconsistent(missing: str) -> None:
    with pytest.raises(InconsistentNode):
        decode_header({key: value for key, value in HEADER.items() if key != missing})


def test_null_is_a_thing_that_the_node_does_not_have() -> None:
    assert decode_header(None) is None
    assert decode_transaction(None) is None


TRANSACTION = {"hash": TX_HASH, "blockHash": BLOCK_HASH, "from": PAYER, "to": USDC, "input": "0xab"}


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({}, {"to": USDC, "calldata": b"\xab"}),
        ({"to": None}, {"to": None}),
        ({"blockHash": None}, {"block_hash": None}),
        ({"input": None}, {"calldata": b""}),
        ({"input": "0x"}, {"calldata": b""}),
        ({"from": "0x" + PAYER[2:].upper()}, {"sender": PAYER}),
        ({"to": "0x" + USDC[2:].upper()}, {"to": USDC}),
        ({"from": TOO_DEEP, "to": TOO_DEEP}, {"sender": "", "to": ""}),
        ({"type": "0x7e", "calls": [{"data": "0x"}]}, {"sender": PAYER}),
    ],
)
def test_transactions(changed: dict[str, Any], facts: dict[str, Any]) -> None:
    transaction = decode_transaction(TRANSACTION | changed)
    assert {name: getattr(transaction, name) for name in facts} == facts


def test_a_transaction_of_an_unknown_type_has_no_input() -> None:
    value = {key: field for key, field in TRANSACTION.items() if key not in ("input", "to")}
    transaction = decode_transaction(value | {"type": "0x7b", "calls": []})
    assert transaction is not None
    assert (transaction.calldata, transaction.to) == (b"", None)


@pytest.mark.parametrize(
    "changed",
    [
        {"input": "0xa"},
        {"input": "0xzz"},
        {"input": "a9059cbb"},
        {"input": 5},
        {"input": ["0x"]},
        {"input": {"0x": 1}},
        {"input": TOO_DEEP},
        {"hash": None},
        {"blockHash": "0x1"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_broken_transaction_is_inconsistent(changed: dict[str, Any]) -> None:
    with pytest.raises(InconsistentNode):
        decode_transaction(TRANSACTION | changed)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=70)
    | st.sampled_from(["0x", "0x1", "0xab", BLOCK_HASH, USDC]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


DECODERS: list[Callable[[Any], object]] = [
    decode_header,
    decode_transaction,
    quantity,
    hash32,
    address_of_topic,
]


@given(json_values, json_values)
def test_any_lie_is_read_passed_over_or_inconsistent(one: Any, other: Any) -> None:
    header = HEADER | {"number": one, "timestamp": other, "timestampMs": one}
    transaction = TRANSACTION | {"input": one, "from": other, "to": one}
    for decode in DECODERS:
        for value in (one, header, transaction):
            try:
                decode(value)
            except InconsistentNode:
                continue
