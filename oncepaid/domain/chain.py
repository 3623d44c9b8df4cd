"""Facts read from the chain, frozen at the border. Hex is lower-case with `0x`."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NewType

from oncepaid.domain.money import Units

Address = NewType("Address", str)
"""20 bytes, `0x` and 40 lower-case hex digits."""
TxHash = NewType("TxHash", str)
"""32 bytes, `0x` and 64 lower-case hex digits."""
BlockHash = NewType("BlockHash", str)
"""32 bytes, `0x` and 64 lower-case hex digits."""

ZERO_ADDRESS: Final = Address("0x" + "0" * 40)

TRANSFER_TOPIC: Final = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
"""keccak256("Transfer(address,address,uint256)")."""
AUTHORIZATION_USED_TOPIC: Final = (
    "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"
)
"""keccak256("AuthorizationUsed(address,bytes32)"), EIP-3009."""

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRef:
    """A block by number and hash: the number alone does not survive a reorg."""

    number: int
    hash: BlockHash

    def __str__(self) -> str:
        return f"{self.number} ({self.hash[:10]}…)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What is used of a block header. `timestamp_ms` is the block's own time, Unix milliseconds."""

    number: int
    hash: BlockHash
    parent_hash: BlockHash
    timestamp_ms: int

    @property
    def ref(self) -> BlockRef:
        return BlockRef(number=self.number, hash=self.hash)

    @property
    def time(self) -> datetime:
        return time_of(self.timestamp_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferLog:
    """One `Transfer` log of the token. `timestamp_ms` is None where the node leaves it out."""

    block: BlockRef
    timestamp_ms: int | None
    tx_hash: TxHash
    log_index: int
    sender: Address
    recipient: Address
    units: Units


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationLog:
    """One `AuthorizationUsed` log of the token: `authorizer` signed an EIP-3009 `nonce`."""

    block: BlockRef
    tx_hash: TxHash
    log_index: int
    authorizer: Address
    nonce: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """What is used of a transaction. `to` is None for a contract creation.

    `calldata` is empty where the transaction has no `input` (EIP-8130 carries `calls` instead).
    """

    hash: TxHash
    block_hash: BlockHash | None
    sender: Address
    to: Address | None
    calldata: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockContents:
    """A block with the hashes of its transactions; None where the node leaves them out."""

    ref: BlockRef
    transactions: frozenset[TxHash] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """Any log of a receipt: who emitted it, its topics (32 bytes each) and its data, undecoded."""

    log_index: int
    address: Address
    topics: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What is used of a transaction's receipt: where it was mined, the token's transfers, events.

    `events` are those that were asked for, in the order of their log indices, the token's own
    transfers among them.
    """

    block: BlockRef
    succeeded: bool
    transfers: tuple[TransferLog, ...]
    events: tuple[EventLog, ...] = ()


LATEST_DATETIME_MS: Final = 253_402_300_799_000
"""9999-12-31T23:59:59Z; a node that lies about time must not overflow `datetime`."""


def time_of(timestamp_ms: int) -> datetime:
    """Return Unix milliseconds as an aware UTC datetime, clamped to what `datetime` can hold."""
    return datetime.fromtimestamp(min(max(timestamp_ms, 0), LATEST_DATETIME_MS) / 1000, tz=UTC)


def address_in(word: bytes) -> Address | None:
    """Return the address in a 32-byte word, or None where its first 12 bytes are not zero."""
    return None if len(word) != 32 or any(word[:12]) else Address("0x" + word[12:].hex())


def parse_address(text: str) -> Address:
    """Return `text` as a lower-case address; raises `ValueError` if it is not one.

    The EIP-55 checksum is the caller's to check: chain data is never checksummed.
    """
    if not _ADDRESS.match(text):
        raise ValueError(f"{text!r} is not an address (0x and 40 hex digits)")
    return Address(text.lower())
