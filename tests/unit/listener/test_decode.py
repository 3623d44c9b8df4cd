"""What a node says becomes facts exactly as web3 reads it, or is named inconsistent."""

from dataclasses import replace
from functools import cache
from typing import Any

import orjson
import pytest
from eth_abi.abi import encode
from hexbytes import HexBytes
from hypothesis import given
from hypothesis import strategies as st
from web3 import Web3
from web3.types import LogReceipt

from listener.decode import (
    address_of_topic,
    decode_authorization,
    decode_header,
    decode_transaction,
    decode_transfer,
    topic_of_address,
)
from oncepaid.domain.chain import (
    AUTHORIZATION_USED_TOPIC,
    TRANSFER_TOPIC,
    Address,
    TransferLog,
)
from oncepaid.domain.errors import InconsistentNode
from oncepaid.domain.money import MAX_UNITS
from tests.unit.samples import PAYER, SHOP, USDC, recorded_receipts, sepolia_receipt

pytestmark = pytest.mark.fault("F22")

BLOCK_HASH = "0x" + "0b" * 32
TX_HASH = "0x" + "0c" * 32
TOO_DEEP = orjson.loads("[" * 1000 + "]" * 1000)
"""orjson reads what Python's own recursion cannot print."""


def transfer(**changed: Any) -> dict[str, Any]:
    """Return a good `Transfer` log as JSON, with some fields changed."""
    return {
        "address": USDC,
        "topics": [TRANSFER_TOPIC, topic_of_address(PAYER), topic_of_address(SHOP)],
        "data": "0x" + f"{1_500_000:064x}",
        "blockNumber": "0x3a2b1c0",
        "blockHash": BLOCK_HASH,
        "blockTimestamp": "0x6a90cd37",
        "transactionHash": TX_HASH,
        "transactionIndex": "0x2",
        "logIndex": "0x7",
        "removed": False,
    } | changed


def authorization(**changed: Any) -> dict[str, Any]:
    topics = [AUTHORIZATION_USED_TOPIC, topic_of_address(PAYER), "0x" + "0d" * 32]
    return transfer(topics=topics, data="0x") | changed


def decoded(**changed: Any) -> TransferLog:
    log = decode_transfer(transfer(**changed), USDC)
    assert log is not None
    return log


@cache
def oracle() -> Any:
    inputs = [("from", "address", True), ("to", "address", True), ("value", "uint256", False)]
    abi = {
        "type": "event",
        "name": "Transfer",
        "anonymous": False,
        "inputs": [{"name": n, "type": t, "indexed": i} for n, t, i in inputs],
    }
    return Web3().eth.contract(abi=[abi]).events.Transfer()


def as_web3_reads(log: dict[str, Any]) -> dict[str, Any]:
    receipt = LogReceipt(
        address=log["address"],
        topics=[HexBytes(topic) for topic in log["topics"]],
        data=HexBytes(log["data"]),
        blockNumber=int(log["blockNumber"], 16),  # type: ignore[typeddict-item]
        blockHash=HexBytes(log["blockHash"]),
        transactionHash=HexBytes(log["transactionHash"]),
        transactionIndex=int(log["transactionIndex"], 16),
        logIndex=int(log["logIndex"], 16),
        removed=False,
    )
    event = oracle().process_log(receipt)
    return {
        "sender": event["args"]["from"].lower(),
        "recipient": event["args"]["to"].lower(),
        "units": event["args"]["value"],
        "number": event["blockNumber"],
        "hash": event["blockHash"].to_0x_hex(),
        "tx_hash": event["transactionHash"].to_0x_hex(),
        "log_index": event["logIndex"],
    }


def as_we_read(log: TransferLog) -> dict[str, Any]:
    return {
        "sender": log.sender,
        "recipient": log.recipient,
        "units": log.units,
        "number": log.block.number,
        "hash": log.block.hash,
        "tx_hash": log.tx_hash,
        "log_index": log.log_index,
    }


RECORDED = [
    log
    for content in recorded_receipts().values()
    for log in content["receipt"]["logs"]
    if log["topics"] and log["topics"][0] == TRANSFER_TOPIC
]


def test_every_recorded_transfer_is_read_as_web3_reads_it() -> None:
    compared = 0
    for log in RECORDED:
        ours = decode_transfer(log, Address(log["address"].lower()))
        # Tokens that are no ERC-20 have the same topic: NFTs index the id as a fourth one.
        if len(log["topics"]) != 3 or int(log["data"], 16) == 0:
            assert ours is None
            continue
        assert ours is not None
        assert as_we_read(ours) == as_web3_reads(log)
        compared += 1
    assert compared > 100


def test_only_the_tokens_own_logs_are_read() -> None:
    ours = [log for log in RECORDED if decode_transfer(log, USDC) is not None]
    assert ours
    assert {log["address"].lower() for log in ours} == {USDC}
    assert len(ours) < len(RECORDED)


addresses = st.binary(min_size=20, max_size=20).map(lambda raw: Address("0x" + raw.hex()))
hashes = st.binary(min_size=32, max_size=32).map(lambda raw: "0x" + raw.hex())


@given(
    addresses, addresses, st.integers(1, MAX_UNITS), hashes, hashes,
    st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_any_transfer_is_read_as_web3_reads_it(
    sender: Address, recipient: Address, units: int, block: str, tx: str, number: int, index: int
) -> None:
    log = transfer(
        topics=[
            TRANSFER_TOPIC,
            "0x" + encode(["address"], [sender]).hex(),
            "0x" + encode(["address"], [recipient]).hex(),
        ],
        data="0x" + encode(["uint256"], [units]).hex(),
        blockHash=block,
        transactionHash=tx,
        blockNumber=hex(number),
        logIndex=hex(index),
    )
    ours = decode_transfer(log, USDC)
    assert ours is not None
    assert as_we_read(ours) == as_web3_reads(log)
    assert (ours.sender, ours.recipient, ours.units) == (sender, recipient, units)


def test_an_authorization_stands_right_before_its_transfer() -> None:
    receipt = sepolia_receipt()
    common = {
        "blockNumber": receipt["blockNumber"],
        "blockHash": BLOCK_HASH,
        "transactionHash": receipt["transactionHash"],
    }
    logs = [log | common for log in receipt["logs"]]
    token = Address(logs[0]["address"])
    authorizations = [a for log in logs if (a := decode_authorization(log, token)) is not None]
    transfers = [t for log in logs if (t := decode_transfer(log, token)) is not None]
    assert (len(authorizations), len(transfers)) == (1, 1)
    [used], [made] = authorizations, transfers
    assert used.log_index + 1 == made.log_index == 0x1B
    assert (used.tx_hash, used.block, used.authorizer) == (made.tx_hash, made.block, made.sender)
    assert used.nonce.hex() == receipt["logs"][0]["topics"][2][2:]


@pytest.mark.parametrize(
    "changed",
    [
        {"address": SHOP},
        {"address": None},
        {"address": 5},
        {"address": TOO_DEEP},
        {"topics": None},
        {"topics": []},
        {"topics": {}},
        {"topics": transfer()["topics"][:2]},
        {"topics": [*transfer()["topics"], "0x" + "00" * 32]},
        {"topics": [AUTHORIZATION_USED_TOPIC, *transfer()["topics"][1:]]},
        {"topics": [None, *transfer()["topics"][1:]]},
        {"topics": [TRANSFER_TOPIC, "0x" + "01" * 32, topic_of_address(SHOP)]},
        {"topics": [TRANSFER_TOPIC, topic_of_address(PAYER), "0x" + "00" * 11 + "01" + "ab" * 20]},
        {"topics": [TRANSFER_TOPIC, topic_of_address(PAYER), SHOP]},
        {"topics": [TRANSFER_TOPIC, topic_of_address(PAYER), 7]},
        {"data": "0x" + "00" * 32},
        {"data": "0x"},
        {"data": "0x" + "01" * 31},
        {"data": "0x" + "01" * 64},
        {"data": None},
        {"removed": True},
    ],
    ids=lambda changed: str(changed)[:60] if "TOO_DEEP" not in changed else "deep",
)
def test_what_is_no_payment_of_the_token_is_passed_over(changed: dict[str, Any]) -> None:
    assert decode_transfer(transfer(**changed), USDC) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"data": "0x" + "zz" * 32},
        {"data": "1x" + "01" * 32},
        {"topics": [TRANSFER_TOPIC, topic_of_address(PAYER), "0x" + "00" * 12 + "zz" * 20]},
        {"blockNumber": None},
        {"blockNumber": "123"},
        {"blockNumber": 123},
        {"blockNumber": "0x"},
        {"blockNumber": "0xzz"},
        {"blockNumber": "0x-1"},
        {"blockNumber": "0x8000000000000000"},
        {"blockNumber": "0x" + "f" * 100_000},
        {"blockNumber": TOO_DEEP},
        {"blockHash": None},
        {"blockHash": "0x0b"},
        {"blockHash": TOO_DEEP},
        {"transactionHash": None},
        {"transactionHash": "0x" + "é" * 64},
        {"transactionHash": TX_HASH[2:] + "00"},
        {"logIndex": None},
        {"logIndex": "0x8000000000000000"},
        {"blockTimestamp": "yesterday"},
        {"blockTimestamp": 1_700_000_000},
        {"blockTimestamp": "0x" + "f" * 40},
        {"blockTimestampMs": "0x" + "f" * 40},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_broken_log_of_ours_is_inconsistent(changed: dict[str, Any]) -> None:
    with pytest.raises(InconsistentNode):
        decode_transfer(transfer(**changed), USDC)


@pytest.mark.parametrize("value", [None, 5, "0x", [], True, TOO_DEEP])
def test_what_is_no_object_is_inconsistent(value: Any) -> None:
    with pytest.raises(InconsistentNode):
        decode_transfer(value, USDC)
    with pytest.raises(InconsistentNode):
        decode_authorization(value, USDC)
    if value is not None:
        with pytest.raises(InconsistentNode):
            decode_header(value)
        with pytest.raises(InconsistentNode):
            decode_transaction(value)


def test_extreme_but_possible_values_are_read() -> None:
    assert decoded(data="0x" + "f" * 64).units == MAX_UNITS
    assert decoded(data="0x" + "F" * 64).units == MAX_UNITS
    assert decoded(logIndex="0xffffffe2").log_index == 0xFFFFFFE2
    assert decoded(blockNumber="0x7fffffffffffffff").block.number == 2**63 - 1
    assert decoded(removed=None) == decoded()


def test_hex_is_read_in_any_case() -> None:
    upper = {
        "address": "0x" + USDC[2:].upper(),
        "topics": ["0x" + topic[2:].upper() for topic in transfer()["topics"]],
        "data": "0x" + transfer()["data"][2:].upper(),
        "blockHash": "0x" + BLOCK_HASH[2:].upper(),
        "transactionHash": "0x" + TX_HASH[2:].upper(),
        "blockNumber": "0x3A2B1C0",
    }
    assert decoded(**upper) == decoded()
    topics = ["0x" + topic[2:].upper() for topic in authorization()["topics"]]
    shouted = authorization(topics=topics)
    assert decode_authorization(shouted, USDC) == decode_authorization(authorization(), USDC)


@pytest.mark.parametrize(
    ("changed", "timestamp_ms"),
    [
        ({}, 0x6A90CD37 * 1000),
        ({"blockTimestamp": None}, None),
        ({"blockTimestamp": None, "blockTimestampMs": "0x10"}, 16),
        ({"blockTimestampMs": hex(0x6A90CD37 * 1000 + 400)}, 0x6A90CD37 * 1000 + 400),
        ({"blockTimestamp": "0x0"}, 0),
        ({"blockTimestamp": "0x7fffffffffffffff"}, 10**14),
        ({"blockTimestampMs": "0x7fffffffffffffff"}, 2**63 - 1),
    ],
)
def test_block_times(changed: dict[str, Any], timestamp_ms: int | None) -> None:
    assert decoded(**changed).timestamp_ms == timestamp_ms


def test_a_log_without_a_time_is_read() -> None:
    log = transfer()
    del log["blockTimestamp"]
    assert decode_transfer(log, USDC) == replace(decoded(), timestamp_ms=None)


@pytest.mark.parametrize(
    "changed",
    [
        {"address": SHOP},
        {"removed": True},
        {"topics": transfer()["topics"]},
        {"topics": authorization()["topics"][:2]},
        {"topics": [AUTHORIZATION_USED_TOPIC, "0x" + "01" * 32, "0x" + "0d" * 32]},
        {"topics": None},
    ],
)
def test_what_is_no_authorization_is_passed_over(changed: dict[str, Any]) -> None:
    assert decode_authorization(authorization(**changed), USDC) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"topics": [AUTHORIZATION_USED_TOPIC, topic_of_address(PAYER), "0x0d"]},
        {"blockHash": None},
        {"logIndex": "7"},
        {"transactionHash": TOO_DEEP},
    ],
)
def test_a_broken_authorization_is_inconsistent(changed: dict[str, Any]) -> None:
    with pytest.raises(InconsistentNode):
        decode_authorization(authorization(**changed), USDC)


@given(addresses)
def test_an_address_survives_its_topic(address: Address) -> None:
    assert address_of_topic(topic_of_address(address)) == address


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=70)
    | st.sampled_from(["0x", "0x1", BLOCK_HASH, USDC, TRANSFER_TOPIC, topic_of_address(PAYER)]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(transfer())), json_values), json_values)
def test_any_lie_is_read_passed_over_or_inconsistent(lies: dict[str, Any], other: Any) -> None:
    for value in (transfer(**lies), authorization(**lies), other):
        try:
            made, used = decode_transfer(value, USDC), decode_authorization(value, USDC)
        except InconsistentNode:
            continue
        assert made is None or 0 < made.units <= MAX_UNITS
        assert used is None or len(used.nonce) == 32
