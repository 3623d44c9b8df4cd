"""Receipts: which of their logs are kept, and what makes one unbelievable."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener import decode
from listener.decode import OversizedReceipt, decode_receipt
from oncepaid.domain.chain import Address, BlockHash, BlockRef
from oncepaid.domain.errors import InconsistentNode
from tests.unit.listener.test_decode import BLOCK_HASH, TOO_DEEP, TX_HASH, json_values, transfer
from tests.unit.samples import PAYER, SHOP, STRANGER, USDC, recorded_receipts

pytestmark = pytest.mark.fault("F22")

ENTRY_POINT = Address("0x5ff137d4b0fdcd49dca30c7cf57e578a026d2789")
WORD = "0x" + "ab" * 32


def log(**changed: Any) -> dict[str, Any]:
    """Return any contract's log."""
    return {"address": STRANGER, "topics": [WORD], "data": "0x0102", "logIndex": "0x9"} | changed


def receipt(*logs: Any, **changed: Any) -> dict[str, Any]:
    return {
        "transactionHash": TX_HASH,
        "blockHash": BLOCK_HASH,
        "blockNumber": "0x7",
        "status": "0x1",
        "logs": list(logs),
    } | changed


def test_only_the_logs_of_emitters_are_kept() -> None:
    ours = log(address="0x" + STRANGER[2:].upper())
    found = decode_receipt(receipt(log(address=SHOP), ours, transfer()), USDC, {STRANGER})
    assert found is not None
    assert found.block == BlockRef(number=7, hash=BlockHash(BLOCK_HASH))
    assert found.succeeded
    [event] = found.events
    assert (event.address, event.log_index) == (STRANGER, 9)
    assert (event.topics, event.data) == ((b"\xab" * 32,), b"\x01\x02")
    assert [one.sender for one in found.transfers] == [PAYER]


def test_none_are_kept_where_nobody_asks() -> None:
    found = decode_receipt(receipt(log(topics=5), transfer()), USDC)
    assert found is not None
    assert (found.events, len(found.transfers)) == ((), 1)
    assert decode_receipt(None, USDC, {STRANGER}) is None


def test_events_come_in_the_order_of_their_indexes() -> None:
    logs = [log(logIndex=hex(index)) for index in (30, 4, 11)]
    found = decode_receipt(receipt(*logs), USDC, {STRANGER})
    assert found is not None
    assert [event.log_index for event in found.events] == [4, 11, 30]


def test_a_log_that_was_removed_is_none() -> None:
    found = decode_receipt(receipt(log(removed=True), log(removed=False)), USDC, {STRANGER})
    assert found is not None
    assert len(found.events) == 1


def test_unknown_fields_and_odd_logs_of_others_are_passed_over() -> None:
    foreign = [log(address=SHOP, topics=None), log(address=None), log(address=TOO_DEEP)]
    found = decode_receipt(receipt(log(colour="red"), *foreign, type="0x7d"), USDC, {STRANGER})
    assert found is not None
    assert len(found.events) == 1


def test_every_recorded_log_is_kept_as_it_is() -> None:
    for content in recorded_receipts().values():
        logs = content["receipt"]["logs"]
        emitters = {Address(entry["address"].lower()) for entry in logs}
        found = decode_receipt(content["receipt"], USDC, emitters)
        assert found is not None
        assert [event.log_index for event in found.events] == [int(x["logIndex"], 16) for x in logs]
        assert [event.data.hex() for event in found.events] == [x["data"][2:] for x in logs]
        assert [["0x" + t.hex() for t in event.topics] for event in found.events] == [
            entry["topics"] for entry in logs
        ]


def test_more_events_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers' logs do not count: they cost a few hundred gas each."""
    monkeypatch.setattr(decode, "MAX_EVENTS", 3)
    foreign = [log(address=SHOP)] * 10
    found = decode_receipt(receipt(*foreign, *[log()] * 3), USDC, {STRANGER})
    assert found is not None
    assert len(found.events) == 3
    with pytest.raises(OversizedReceipt):
        decode_receipt(receipt(*[log()] * 4), USDC, {STRANGER})


@pytest.mark.parametrize(
    "changed",
    [
        {"topics": None},
        {"topics": {}},
        {"topics": [WORD] * 5},
        {"topics": ["0xab"]},
        {"topics": [5]},
        {"topics": [TOO_DEEP]},
        {"data": None},
        {"data": "0102"},
        {"data": "0x1"},
        {"data": "0x01 02"},
        {"data": "0xzz"},
        {"data": ["0x"]},
        {"logIndex": None},
        {"logIndex": 7},
        {"logIndex": "0x8000000000000000"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_broken_log_of_an_emitter_is_inconsistent(changed: dict[str, Any]) -> None:
    with pytest.raises(InconsistentNode):
        decode_receipt(receipt(log(**changed)), USDC, {STRANGER})


@pytest.mark.parametrize(
    "value",
    [5, [], receipt(logs=None), receipt(logs={}), receipt(5), receipt(None), receipt(blockHash=1)],
    ids=str,
)
def test_what_is_no_receipt_is_inconsistent(value: Any) -> None:
    with pytest.raises(InconsistentNode):
        decode_receipt(value, USDC, {STRANGER})


@given(st.lists(json_values | st.dictionaries(st.sampled_from(sorted(log())), json_values)))
def test_any_logs_are_read_or_inconsistent(lies: list[Any]) -> None:
    entries = [log(**lie) if isinstance(lie, dict) else lie for lie in lies]
    try:
        found = decode_receipt(receipt(*entries), USDC, {STRANGER, ENTRY_POINT})
    except InconsistentNode:
        return
    assert found is not None
    for event in found.events:
        assert event.address == STRANGER
        assert all(len(topic) == 32 for topic in event.topics)
