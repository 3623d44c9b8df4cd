"""A made-up chain: blocks with transactions and logs, as JSON-RPC tells of them."""

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from oncepaid.domain.chain import AUTHORIZATION_USED_TOPIC, TRANSFER_TOPIC, Address
from oncepaid.domain.memo import NONCE_BYTES, Memo, envelope_of
from oncepaid.domain.money import MAX_UNITS

CHAIN_ID: Final = 8453
TOKEN: Final = Address("0x833589fcd6edb6e08f4c7c32d4f71b54bda02913")
BLOCK_MS: Final = 200
GENESIS_MS: Final = 1_790_000_000_000
ANY_WORD: Final = "0x" + "11" * 32


def address(name: str) -> Address:
    """Return an address that belongs to a name."""
    return Address("0x" + hashlib.sha256(name.encode()).hexdigest()[:40])


def hash_of(*parts: object) -> str:
    """Return a 32-byte hash of anything."""
    return "0x" + hashlib.sha256(repr(parts).encode()).hexdigest()


def word(value: str | int) -> str:
    """Return an address or a number as a 32-byte word."""
    return f"0x{value:064x}" if isinstance(value, int) else f"0x{value[2:]:0>64}"


@dataclass(frozen=True, kw_only=True)
class Log:
    """A log before it has a place in a block."""

    topics: Sequence[str]
    data: str = "0x"
    address: str = TOKEN


@dataclass(frozen=True, kw_only=True)
class Tx:
    """A transaction before it is mined. `at_index` moves the index of its first log."""

    sender: str
    logs: Sequence[Log] = ()
    to: str | None = TOKEN
    input: str | None = "0x"
    at_index: int | None = None


def transfer_log(sender: str, recipient: str, units: int, *, token: str = TOKEN) -> Log:
    """Return a `Transfer` log."""
    topics = (TRANSFER_TOPIC, word(sender), word(recipient))
    return Log(topics=topics, data=word(units & MAX_UNITS), address=token)


def authorization_log(authorizer: str, nonce: bytes) -> Log:
    """Return an `AuthorizationUsed` log."""
    return Log(topics=(AUTHORIZATION_USED_TOPIC, word(authorizer), "0x" + nonce.hex()))


def pay(sender: str, recipient: str, units: int, *, memo: Memo | None = None) -> Tx:
    """Return a direct `transfer`, with the memo's envelope behind its arguments."""
    tail = envelope_of(memo).hex() if memo else ""
    calldata = f"0xa9059cbb{word(recipient)[2:]}{word(units)[2:]}{tail}"
    return Tx(sender=sender, input=calldata, logs=[transfer_log(sender, recipient, units)])


def pay_from(spender: str, owner: str, recipient: str, units: int, *, memo: Memo) -> Tx:
    """Return a `transferFrom` by a spender, who attaches a memo."""
    words = "".join(word(value)[2:] for value in (owner, recipient, units))
    calldata = f"0x23b872dd{words}{envelope_of(memo).hex()}"
    return Tx(sender=spender, input=calldata, logs=[transfer_log(owner, recipient, units)])


def nonce_of(memo: Memo) -> bytes:
    """Return an EIP-3009 nonce that carries a memo."""
    return envelope_of(memo).ljust(NONCE_BYTES, b"\x07")


def call_through(relayer: str, *logs: Log, at_index: int | None = None) -> Tx:
    """Return a call of some other contract, or of a relayer, that made these logs."""
    router = address("router")
    return Tx(sender=relayer, to=router, input="0xe3ee160e", logs=logs, at_index=at_index)


def call_token(relayer: str, *logs: Log, at_index: int | None = None) -> Tx:
    """Return a relayer's call of the token's `transferWithAuthorization` that made these logs."""
    return Tx(sender=relayer, input="0xe3ee160e", logs=logs, at_index=at_index)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block. `header`, `logs` and `transactions` are as JSON-RPC tells of them."""

    number: int
    hash: str
    timestamp_ms: int
    header: Mapping[str, Any]
    logs: Sequence[Mapping[str, Any]] = ()
    transactions: Sequence[Mapping[str, Any]] = ()
    mined: Sequence[tuple[int, Tx]] = ()
    """The transactions with the numbers that make their hashes, to be mined again elsewhere."""


@dataclass(kw_only=True)
class Chain:
    """Blocks without a gap, the first one being `first`. `fork` makes the hashes differ."""

    first: int = 0
    blocks: list[Block] = field(default_factory=list)
    _nonces: "itertools.count[int]" = field(default_factory=itertools.count)

    @property
    def head(self) -> Block:
        """The highest block."""
        return self.blocks[-1]

    def get(self, number: int) -> Block | None:
        """Return a block, or None where there is none."""
        at = number - self.first
        return self.blocks[at] if 0 <= at < len(self.blocks) else None

    def between(self, first: int, last: int) -> list[Block]:
        """Return the blocks of a range, as many as there are."""
        return self.blocks[max(0, first - self.first) : max(0, last - self.first + 1)]

    def add(self, *transactions: Tx, step_ms: int = BLOCK_MS) -> Block:
        """Mine one block with these transactions."""
        number = self.first + len(self.blocks)
        nonces = [next(self._nonces) for _ in transactions]
        return self._append(number, list(zip(nonces, transactions, strict=True)), step_ms)

    def mine(self, count: int) -> Block:
        """Mine so many empty blocks and return the last one."""
        for _ in range(count):
            self.add()
        return self.head

    def reorg(self, depth: int, *transactions: Tx) -> None:
        """Replace the last blocks by as many empty ones; the last holds these transactions."""
        del self.blocks[len(self.blocks) - depth :]
        fork = 1 + next(self._nonces)
        for left in range(depth - 1, -1, -1):
            number = self.first + len(self.blocks)
            mined = list(enumerate(transactions, start=10**6)) if left == 0 else []
            self._append(number, mined, BLOCK_MS, fork=fork)

    def remine(
        self, depth: int, block: Block, *, blocks_later: int = 0, at_index: int | None = None
    ) -> None:
        """Replace the last blocks; the transactions of `block` are mined again behind some more.

        `at_index` moves the index of the first log.
        """
        del self.blocks[len(self.blocks) - depth :]
        fork = 1 + next(self._nonces)
        for left in range(blocks_later, -1, -1):
            again = [(n, replace(tx, at_index=at_index)) for n, tx in block.mined]
            number = self.first + len(self.blocks)
            self._append(number, again if left == 0 else [], BLOCK_MS, fork=fork)

    def cut(self, count: int) -> None:
        """Take the last blocks away."""
        del self.blocks[len(self.blocks) - count :]

    def receipt(self, tx_hash: str) -> dict[str, Any] | None:
        """Return the receipt of a transaction, or None where it is not mined."""
        for block in self.blocks:
            if any(transaction["hash"] == tx_hash for transaction in block.transactions):
                return {
                    "transactionHash": tx_hash,
                    "blockHash": block.hash,
                    "blockNumber": hex(block.number),
                    "status": "0x1",
                    "logs": [log for log in block.logs if log["transactionHash"] == tx_hash],
                }
        return None

    def _append(
        self, number: int, mined: Sequence[tuple[int, Tx]], step_ms: int, *, fork: int = 0
    ) -> Block:
        parent = self.blocks[-1] if self.blocks else None
        parent_hash = parent.hash if parent else hash_of("before", number)
        stamp = parent.timestamp_ms + step_ms if parent else GENESIS_MS
        block_hash = hash_of("block", number, parent_hash, fork)
        block = Block(
            number=number,
            hash=block_hash,
            timestamp_ms=stamp,
            header={
                "number": hex(number),
                "hash": block_hash,
                "parentHash": parent_hash,
                "timestamp": hex(stamp // 1000),
                "timestampMs": hex(stamp),
                "transactions": [_tx_hash(nonce, tx) for nonce, tx in mined],
            },
            mined=tuple(mined),
            transactions=[_mined(nonce, tx, number, block_hash) for nonce, tx in mined],
            logs=list(_logged(mined, number, block_hash, stamp)),
        )
        self.blocks.append(block)
        return block


def _tx_hash(nonce: int, tx: Tx) -> str:
    return hash_of("tx", nonce, tx.sender, tx.input)


def _mined(nonce: int, tx: Tx, number: int, block_hash: str) -> dict[str, Any]:
    told = {
        "hash": _tx_hash(nonce, tx),
        "blockHash": block_hash,
        "blockNumber": hex(number),
        "from": tx.sender,
        "to": tx.to,
        "type": "0x2",
    }
    return told if tx.input is None else {**told, "input": tx.input}


def _logged(
    mined: Iterable[tuple[int, Tx]], number: int, block_hash: str, stamp: int
) -> Iterable[dict[str, Any]]:
    index = 0
    for nonce, tx in mined:
        index = index if tx.at_index is None else tx.at_index
        for one in tx.logs:
            yield {
                "address": one.address,
                "topics": list(one.topics),
                "data": one.data,
                "blockNumber": hex(number),
                "blockHash": block_hash,
                "blockTimestamp": hex(stamp // 1000),
                "blockTimestampMs": hex(stamp),
                "transactionHash": _tx_hash(nonce, tx),
                "logIndex": hex(index),
                "removed": False,
            }
            index += 1


def fits(log: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Say whether a log passes the address and topics of an `eth_getLogs` filter."""
    addresses = wanted.get("address")
    known = [addresses] if isinstance(addresses, str) else addresses
    if known and log["address"].lower() not in [one.lower() for one in known]:
        return False
    topics = wanted.get("topics") or []
    if len(topics) > len(log["topics"]):
        return False
    pairs = zip(topics, log["topics"], strict=False)
    return all(w is None or t == w or (isinstance(w, list) and t in w) for w, t in pairs)
