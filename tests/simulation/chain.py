"""A chain that forks, and payments with what their payers meant by them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from oncepaid.domain.chain import Address
from oncepaid.domain.memo import Memo
from tests.fakes.blocks import Tx, address

SHOP: Final = address("shop")
OTHER_SHOP: Final = address("other shop")
OURS: Final = frozenset({SHOP, OTHER_SHOP})
PAYERS: Final = (address("payer"), address("another payer"))
SPENDER: Final = address("spender")
GENESIS_S: Final = 1_790_000_000
BLOCK_S: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What one transfer is meant as: the truth that the reference ledger goes by."""

    sender: Address
    recipient: Address
    units: int
    memos: frozenset[Memo] = frozenset()
    is_signed_by_payer: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Payment:
    """A transaction. `transfers` are those of its logs that are `Transfer`s, in their order."""

    hash: str
    tx: Tx
    transfers: tuple[Transfer, ...]


@dataclass(slots=True, kw_only=True, eq=False)
class Block:
    """A block with the path of blocks that it stands on, itself last."""

    number: int
    hash: str
    time_s: int
    payments: tuple[Payment, ...]
    header: dict[str, Any]
    logs: list[dict[str, Any]]
    keys: list[tuple[tuple[str, int], Transfer, Payment]]
    """Of each transfer to us the log's identity."""
    path: tuple["Block", ...] = ()
    total: int = 0
    """Transfers to us on the path."""

    def transaction(self, payment: Payment) -> dict[str, Any]:
        tx = payment.tx
        return {
            "hash": payment.hash,
            "blockHash": self.hash,
            "from": tx.sender,
            "to": tx.to,
            "input": tx.input,
        }

    def receipt(self, payment: Payment) -> dict[str, Any]:
        return {
            "blockNumber": hex(self.number),
            "blockHash": self.hash,
            "status": "0x1",
            "logs": [log for log in self.logs if log["transactionHash"] == payment.hash],
        }


@dataclass(slots=True)
class ForkingChain:
    """All blocks that ever were; `tip` ends the canonical path. Numbers name blocks: no hashing."""

    tip: Block = field(init=False)
    where: dict[str, list[Block]] = field(default_factory=dict)
    by_hash: dict[str, Block] = field(default_factory=dict)
    payments: list[Payment] = field(default_factory=list)
    tells_times: bool = True

    def __post_init__(self) -> None:
        self.tip = self._block(None, (), GENESIS_S)

    @property
    def height(self) -> int:
        return self.tip.number

    def mine(self, payments: Sequence[Payment], time_s: int) -> None:
        self.tip = self._block(self.tip, payments, time_s)

    def back_to(self, number: int) -> list[tuple[int, Payment]]:
        """Cut the canonical path off above a block; returns what was mined there, by distance."""
        gone = self.tip.path[number + 1 :]
        self.tip = self.tip.path[number]
        return [(block.number - number, paid) for block in gone for paid in block.payments]

    def is_mined(self, payment: Payment) -> bool:
        return any(self.has(block) for block in self.where.get(payment.hash, ()))

    def has(self, block: Block) -> bool:
        path = self.tip.path
        return block.number < len(path) and path[block.number] is block

    def _block(self, parent: Block | None, payments: Sequence[Payment], time_s: int) -> Block:
        number = 0 if parent is None else parent.number + 1
        hash_ = f"0x{len(self.by_hash) + 1:064x}"
        block = Block(
            number=number,
            hash=hash_,
            time_s=time_s,
            payments=tuple(payments),
            header={
                "number": hex(number),
                "hash": hash_,
                "parentHash": "0x" + "0" * 64 if parent is None else parent.hash,
                "timestamp": hex(time_s),
                "transactions": [payment.hash for payment in payments],
            },
            logs=[],
            keys=[],
        )
        block.path = (*(() if parent is None else parent.path), block)
        for payment in payments:
            self._place(block, payment)
            self.where.setdefault(payment.hash, []).append(block)
        block.total = len(block.keys) + (0 if parent is None else parent.total)
        self.by_hash[hash_] = block
        return block

    def _place(self, block: Block, payment: Payment) -> None:
        """Write a payment's logs, from the index on that its transaction asks for."""
        at = int(block.logs[-1]["logIndex"], 16) + 1 if block.logs else 0
        at = max(at, payment.tx.at_index or 0)
        stamp = {"blockTimestamp": hex(block.time_s)} if self.tells_times else {}
        transfers = iter(payment.transfers)
        for index, log in enumerate(payment.tx.logs, at):
            block.logs.append(
                {
                    "address": log.address,
                    "topics": list(log.topics),
                    "data": log.data,
                    "blockNumber": hex(block.number),
                    "blockHash": block.hash,
                    "transactionHash": payment.hash,
                    "logIndex": hex(index),
                    **stamp,
                }
            )
            if len(log.topics) == 3 and log.data != "0x":
                meant = next(transfers)
                if meant.recipient in OURS:
                    block.keys.append(((block.hash, index), meant, payment))


def moved(payment: Payment, at_index: int) -> Payment:
    """Return the same transaction with its logs at another index."""
    return replace(payment, tx=replace(payment.tx, at_index=at_index))
