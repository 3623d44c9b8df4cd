"""Receipts as bytes that a fuzzer can turn into others: short names for what events are made of.

Input: the calldata's length (2 bytes), the calldata, then events until the bytes end. An event: a
byte for its emitter, one for how many topics it has, one for how many words of data, the words. A
word: a byte that names a known one or a small number, or `RAW` and 32 bytes.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from eth_hash.auto import keccak

from listener.contract_events import (
    MEMO,
    PAYMENT_AUTHORIZED,
    PAYMENT_CAPTURED,
    PAYMENT_CAPTURED_1_1,
    PAYMENT_CHARGED,
    PAYMENT_CHARGED_1_1,
    TOKEN_STORE_CREATED,
    TRANSFER_WITH_REFERENCE,
    TRANSFER_WITH_REFERENCE_AND_FEE,
    TRANSFERRED,
    infos_in,
)
from oncepaid.domain.chain import (
    TRANSFER_TOPIC,
    EventLog,
    Receipt,
    TransferLog,
    address_in,
)
from oncepaid.domain.memo import envelope_of
from oncepaid.domain.money import Units
from tests.unit.listener.contract_logs import (
    BLOCK,
    CHAIN_ID,
    COMMERCE,
    ESCROW,
    FEES,
    OPERATOR,
    PROXY,
    STORE,
    TX_HASH,
    word,
)
from tests.unit.samples import PAYER, SHOP, STRANGER, USDC, memo

EMITTERS: Final = (USDC, PROXY, COMMERCE, ESCROW, STRANGER)
TRANSFER: Final = bytes.fromhex(TRANSFER_TOPIC[2:])
ENVELOPE: Final = envelope_of(memo(7))
NAMED: Final = (
    *(TRANSFER, MEMO, TRANSFER_WITH_REFERENCE, TRANSFER_WITH_REFERENCE_AND_FEE, TRANSFERRED),
    *(PAYMENT_AUTHORIZED, PAYMENT_CHARGED, PAYMENT_CHARGED_1_1, TOKEN_STORE_CREATED),
    *(PAYMENT_CAPTURED, PAYMENT_CAPTURED_1_1),
    *map(word, (USDC, PAYER, SHOP, FEES, STORE, OPERATOR, PROXY, COMMERCE, STRANGER)),
    *(ENVELOPE.ljust(32, b"\0"), keccak(ENVELOPE), keccak(ENVELOPE.ljust(32, b"\0"))),
)
HASH, RAW = 254, 255
"""Names of a word: the hash of the first PaymentInfo in the calldata, and any other 32 bytes."""
MAX_EVENTS: Final = 64
_MAX_TOPICS: Final = 4
_MAX_WORDS: Final = 20


def packed(calldata: bytes, events: Sequence[EventLog]) -> bytes:
    """Return the input for these events. Their log indices must follow each other."""
    parts = [len(calldata).to_bytes(2), calldata]
    hashes = _hashes(calldata)
    for event in events:
        data = [event.data[at : at + 32] for at in range(0, len(event.data), 32)]
        parts.append(bytes([EMITTERS.index(event.address), len(event.topics), len(data)]))
        parts += [_packed_word(one, hashes) for one in (*event.topics, *data)]
    return b"".join(parts)


def unpacked(data: bytes) -> tuple[bytes, Receipt]:
    """Return the calldata and the receipt of any input."""
    size = int.from_bytes(data[:2])
    calldata = data[2 : 2 + size]
    events = tuple(_events(data[2 + size :], _hashes(calldata)))
    transfers = tuple(log for log in map(_transfer_of, events) if log is not None)
    return calldata, Receipt(block=BLOCK, succeeded=True, transfers=transfers, events=events)


def _hashes(calldata: bytes) -> list[bytes]:
    return list(infos_in(calldata, token=USDC, escrow=ESCROW, chain_id=CHAIN_ID))


def _packed_word(value: bytes, hashes: Sequence[bytes]) -> bytes:
    if value in NAMED:
        return bytes([NAMED.index(value)])
    if hashes and value == hashes[0]:
        return bytes([HASH])
    number = int.from_bytes(value) + len(NAMED)
    return bytes([number]) if number < HASH else bytes([RAW]) + value


def _events(data: bytes, hashes: Sequence[bytes]) -> Iterator[EventLog]:
    left = iter(data)
    for index in range(MAX_EVENTS):
        emitter = next(left, None)
        if emitter is None:
            return
        topics, words = next(left, 0) % (_MAX_TOPICS + 1), next(left, 0) % (_MAX_WORDS + 1)
        yield EventLog(
            log_index=index,
            address=EMITTERS[emitter % len(EMITTERS)],
            topics=tuple(_word(left, hashes) for _ in range(topics)),
            data=b"".join(_word(left, hashes) for _ in range(words)),
        )


def _word(left: Iterator[int], hashes: Sequence[bytes]) -> bytes:
    name = next(left, 0)
    if name == RAW:
        return bytes(next(left, 0) for _ in range(32))
    if name == HASH:
        return hashes[0] if hashes else bytes(32)
    return NAMED[name] if name < len(NAMED) else (name - len(NAMED)).to_bytes(32)


def _transfer_of(event: EventLog) -> TransferLog | None:
    """Return the transfer as a node's answer would tell of it, or None for any other event."""
    if event.address != USDC or len(event.topics) != 3 or event.topics[0] != TRANSFER:
        return None
    sender, recipient = address_in(event.topics[1]), address_in(event.topics[2])
    units = int.from_bytes(event.data)
    if sender is None or recipient is None or len(event.data) != 32 or units == 0:
        return None
    return TransferLog(
        block=BLOCK,
        timestamp_ms=None,
        tx_hash=TX_HASH,
        log_index=event.log_index,
        sender=sender,
        recipient=recipient,
        units=Units(units),
    )
