"""Rows that a node's logs do not show: block gone, answer short, or the row a phantom?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from listener.decode import Json, decode_receipt
from listener.rpc import Call, Caller, ChainReader
from oncepaid.domain.chain import Address, Receipt, TransferLog
from oncepaid.domain.errors import InconsistentNode, Retryable
from oncepaid.domain.payments import PaymentId, StoredLog

log = structlog.get_logger()

RECEIPTS_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`gone` are not on the chain. `kept` are, whatever the logs left out."""

    gone: list[PaymentId]
    kept: list[PaymentId]


class Arbiter:
    """Judges rows by block hashes and receipts, which say more than an absence of logs."""

    def __init__(self, token: Address) -> None:
        self._token = token

    async def judge(
        self, rows: Sequence[StoredLog], main: Caller, second: Caller | None
    ) -> Verdict:
        """Judge rows by the chain of `main`; `second` is asked where its logs may be short.

        A row is gone where its block is no longer the one at its height. Where it still is, any
        receipt that has the log proves the row; one that nobody has a receipt of is a phantom.
        Raises `Retryable` errors of `main`.
        """
        heights = sorted({row.block.number for row in rows})
        hashes = await ChainReader(main).hashes(heights)
        standing = [row for row in rows if hashes[row.block.number] == row.block.hash]
        proven = await self.proven(standing, main)
        doubtful = [row for row in standing if row.id not in proven]
        if doubtful and second is not None:
            try:
                proven |= await self.proven(doubtful, second)
            except Retryable as exc:
                log.warning("arbiter.second_away", error=str(exc))
        for row in standing:
            if row.id not in proven:
                log.error("payment.phantom", payment_id=row.id, tx_hash=row.tx_hash)
        return Verdict(
            gone=[row.id for row in rows if row.id not in proven],
            kept=[row.id for row in standing if row.id in proven],
        )

    async def proven(self, rows: Sequence[StoredLog], caller: Caller) -> set[PaymentId]:
        """Return the rows whose logs are in the receipts that `caller` has."""
        hashes = list(dict.fromkeys(row.tx_hash for row in rows))
        answers: list[Json] = []
        for at in range(0, len(hashes), RECEIPTS_AT_ONCE):
            some = hashes[at : at + RECEIPTS_AT_ONCE]
            answers += await caller.call_all(
                [Call(method="eth_getTransactionReceipt", params=(h,)) for h in some]
            )
        receipts = {
            tx_hash: decode_receipt(answer, self._token)
            for tx_hash, answer in zip(hashes, answers, strict=True)
        }
        return {row.id for row in rows if _proves(receipts[row.tx_hash], row)}


def _proves(receipt: Receipt | None, row: StoredLog) -> bool:
    if receipt is None or not receipt.succeeded or receipt.block != row.block:
        return False
    return any(
        (log.log_index, log.tx_hash, log.sender, log.recipient, log.units)
        == (row.log_index, row.tx_hash, row.sender, row.recipient, row.units)
        for log in receipt.transfers
    )


def refuse_two_blocks(
    rows: Sequence[StoredLog], kept: Sequence[PaymentId], logs: Sequence[TransferLog]
) -> None:
    """A transaction is in one block: a node that proves it in two is believed in neither.

    Raises `InconsistentNode` for that.
    """
    told = {entry.tx_hash: entry.block for entry in logs}
    for row in rows:
        if row.id in kept and told.get(row.tx_hash, row.block) != row.block:
            raise InconsistentNode(f"transaction {row.tx_hash} is told of in two blocks")
