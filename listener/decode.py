"""Answers of a node as domain facts. By hand: about 1 µs a log, 300 times web3's `process_log`.

Nodes lie, so every field is checked. What is not what it should be raises `InconsistentNode` where
the answer as a whole cannot be trusted, and gives None where one foreign log is simply not ours.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final

from oncepaid.domain.chain import (
    AUTHORIZATION_USED_TOPIC,
    TRANSFER_TOPIC,
    Address,
    AuthorizationLog,
    BlockContents,
    BlockHash,
    BlockRef,
    EventLog,
    Header,
    Receipt,
    Transaction,
    TransferLog,
    TxHash,
)
from oncepaid.domain.errors import InconsistentNode
from oncepaid.domain.money import Units

Json = Any
"""A decoded JSON value, as it came from a node."""

_ADDRESS_PADDING: Final = "0x" + "0" * 24
_WORD_HEX: Final = 66  # 0x and 32 bytes
_MAX_QUANTITY: Final = 2**63 - 1  # what a bigint column holds
MAX_EVENTS: Final = 5_000
"""Of one receipt; real bundles of user operations have some 500."""
_MAX_TOPICS: Final = 4
# A block time in plain seconds is this small until the year 5138; a millisecond count is larger.
_MAX_SECONDS: Final = 10**11


class OversizedReceipt(InconsistentNode):
    """A receipt has more events than are kept. No lie: anyone can emit as many as he pays for."""


def quantity(value: Json) -> int:
    """Return a hex quantity (`"0x1f"`) that fits a bigint; raises `InconsistentNode`."""
    if not isinstance(value, str) or not value.startswith("0x"):
        raise InconsistentNode(f"not a hex quantity: {_shown(value)}")
    try:
        number = int(value, 16)
    except ValueError as exc:
        raise InconsistentNode(f"not a hex quantity: {value[:40]!r}") from exc
    if not 0 <= number <= _MAX_QUANTITY:
        raise InconsistentNode(f"a quantity out of range: {value[:40]!r}")
    return number


def hash32(value: Json) -> str:
    """Return a 32-byte hash as lower-case hex; raises `InconsistentNode`."""
    if isinstance(value, str) and len(value) == _WORD_HEX and value.startswith("0x"):
        try:
            # White space, which `fromhex` skips, would leave fewer than 32 bytes.
            if len(bytes.fromhex(value[2:])) == 32:
                return value.lower()
        except ValueError:
            pass
    raise InconsistentNode(f"not a 32-byte hash: {_shown(value)}")


def _lower(value: Json) -> str:
    return value.lower() if isinstance(value, str) else ""


def _shown(value: Json) -> str:
    # Only text is quoted: a value nested a thousand deep has no `str` that Python's stack survives.
    return repr(value[:80]) if isinstance(value, str) else type(value).__name__


def decode_header(value: Json) -> Header | None:
    """Return a block's header; None for `null`, a block that the node does not have (yet)."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InconsistentNode("a block is not an object")
    return Header(
        number=quantity(value.get("number")),
        hash=BlockHash(hash32(value.get("hash"))),
        parent_hash=BlockHash(hash32(value.get("parentHash"))),
        timestamp_ms=_timestamp_ms(value.get("timestamp"), value.get("timestampMs")),
    )


def _timestamp_ms(seconds: Json, milliseconds: Json) -> int:
    # Since Denim several blocks share a second; `timestampMs` tells them apart (optional field).
    if milliseconds is not None:
        return quantity(milliseconds)
    return min(quantity(seconds), _MAX_SECONDS) * 1000


def decode_transfer(log: Json, token: Address) -> TransferLog | None:
    """Return a `Transfer` log of `token`, or None for anything else and for a value of zero.

    Zero-value transfers prove nothing: `transferFrom(victim, us, 0)` needs nobody's consent.
    """
    if not isinstance(log, dict):
        raise InconsistentNode("a log is not an object")
    topics, data = log.get("topics"), log.get("data")
    if (
        not isinstance(topics, list)
        or len(topics) != 3
        or _lower(topics[0]) != TRANSFER_TOPIC
        or _lower(log.get("address")) != token
        or log.get("removed") is True
        or not isinstance(data, str)
        or len(data) != _WORD_HEX
    ):
        return None
    sender, recipient = address_of_topic(topics[1]), address_of_topic(topics[2])
    if sender is None or recipient is None:
        return None
    units = int(hash32(data), 16)
    if units == 0:
        return None
    stamp, stamp_ms = log.get("blockTimestamp"), log.get("blockTimestampMs")
    return TransferLog(
        block=_block_of(log),
        timestamp_ms=None if stamp is None and stamp_ms is None else _timestamp_ms(stamp, stamp_ms),
        tx_hash=TxHash(hash32(log.get("transactionHash"))),
        log_index=quantity(log.get("logIndex")),
        sender=sender,
        recipient=recipient,
        units=Units(units),
    )


def decode_authorization(log: Json, token: Address) -> AuthorizationLog | None:
    """Return an `AuthorizationUsed` log of `token`, or None for anything else."""
    if not isinstance(log, dict):
        raise InconsistentNode("a log is not an object")
    topics = log.get("topics")
    if (
        not isinstance(topics, list)
        or len(topics) != 3
        or _lower(topics[0]) != AUTHORIZATION_USED_TOPIC
        or _lower(log.get("address")) != token
        or log.get("removed") is True
    ):
        return None
    authorizer = address_of_topic(topics[1])
    if authorizer is None:
        return None
    return AuthorizationLog(
        block=_block_of(log),
        tx_hash=TxHash(hash32(log.get("transactionHash"))),
        log_index=quantity(log.get("logIndex")),
        authorizer=authorizer,
        nonce=bytes.fromhex(hash32(topics[2])[2:]),
    )


def _block_of(log: dict[str, Json]) -> BlockRef:
    return BlockRef(
        number=quantity(log.get("blockNumber")), hash=BlockHash(hash32(log.get("blockHash")))
    )


def address_of_topic(topic: Json) -> Address | None:
    """Return the address in a 32-byte topic, or None where its first 12 bytes are not zero."""
    if isinstance(topic, str) and len(topic) == _WORD_HEX and topic.startswith(_ADDRESS_PADDING):
        return Address("0x" + hash32(topic)[26:])
    return None


def topic_of_address(address: Address) -> str:
    """Return an address as the 32-byte topic that a filter asks for."""
    return _ADDRESS_PADDING + address[2:]


def decode_transaction(value: Json) -> Transaction | None:
    """Return a transaction; None for `null`. Unknown types, and ones without `input`, are fine."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InconsistentNode("a transaction is not an object")
    calldata, to, block = value.get("input") or "0x", value.get("to"), value.get("blockHash")
    return Transaction(
        hash=TxHash(hash32(value.get("hash"))),
        block_hash=None if block is None else BlockHash(hash32(block)),
        sender=Address(_lower(value.get("from"))),
        to=None if to is None else Address(_lower(to)),
        calldata=_bytes_of(calldata, "a transaction's input"),
    )


def decode_contents(value: Json) -> BlockContents | None:
    """Return a block with the hashes of its transactions; None for `null`."""
    header = decode_header(value)
    if header is None:
        return None
    hashes = value.get("transactions")
    known = isinstance(hashes, list) and all(isinstance(entry, str) for entry in hashes)
    return BlockContents(
        ref=header.ref,
        transactions=frozenset(TxHash(entry.lower()) for entry in hashes) if known else None,
    )


def decode_receipt(
    value: Json, token: Address, emitters: Collection[Address] = ()
) -> Receipt | None:
    """Return a transaction's receipt; None for `null`, a transaction that is not mined.

    Its `events` are the logs of `emitters`; what others emitted is not even looked at. Raises
    `OversizedReceipt` for more than `MAX_EVENTS` of them.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InconsistentNode("a receipt is not an object")
    logs = value.get("logs")
    if not isinstance(logs, list):
        raise InconsistentNode("a receipt has no list of logs")
    found = (decode_transfer(entry, token) for entry in logs)
    return Receipt(
        block=_block_of(value),
        succeeded=value.get("status") == "0x1",
        transfers=tuple(transfer for transfer in found if transfer is not None),
        events=_events_of(logs, emitters) if emitters else (),
    )


def _events_of(
    logs: Sequence[dict[str, Json]], emitters: Collection[Address]
) -> tuple[EventLog, ...]:
    kept = [
        log
        for log in logs
        if _lower(log.get("address")) in emitters and log.get("removed") is not True
    ]
    if len(kept) > MAX_EVENTS:
        raise OversizedReceipt(f"a receipt has {len(kept)} events of contracts that we know")
    return tuple(sorted(map(_event_of, kept), key=lambda event: event.log_index))


def _event_of(log: dict[str, Json]) -> EventLog:
    topics = log.get("topics")
    if not isinstance(topics, list) or len(topics) > _MAX_TOPICS:
        raise InconsistentNode("a log has no list of up to four topics")
    return EventLog(
        log_index=quantity(log.get("logIndex")),
        address=Address(_lower(log.get("address"))),
        topics=tuple(bytes.fromhex(hash32(topic)[2:]) for topic in topics),
        data=_bytes_of(log.get("data"), "a log's data"),
    )


def _bytes_of(value: Json, what: str) -> bytes:
    if isinstance(value, str) and value.startswith("0x"):
        try:
            data = bytes.fromhex(value[2:])
        except ValueError:
            pass
        else:
            # White space, which `fromhex` skips, would shift what stands behind it.
            if 2 * len(data) == len(value) - 2:
                return data
    raise InconsistentNode(f"{what} is not hex")
