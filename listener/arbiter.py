"""Rows that a node's logs do not show: block gone, answer short, or the row a phantom?"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from listener.comparison import Standing, standing_of
from listener.decode import decode_contents, decode_receipt
from listener.reader import Caller, header_call, receipt_call
from oncepaid.domain.chain import Address, BlockRef, TransferLog, TxHash
from oncepaid.domain.errors import InconsistentNode, NodeBehind, RangeRefused
from oncepaid.domain.payments import PaymentId, StoredLog

log = structlog.get_logger()

ROWS_AT_ONCE: Final = 49
"""Each of them a block and a receipt, beside the anchor: one request of a hundred calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`gone` are not on the chain. `kept` are, whatever the logs left out."""

    gone: list[PaymentId]
    kept: list[PaymentId]


class Arbiter:
    """Judges rows by blocks and receipts, which say more than an absence of logs."""

    def __init__(self, token: Address) -> None:
        self._token = token

    async def judge(
        self,
        rows: Sequence[StoredLog],
        main: Caller,
        second: Caller | None,
        *,
        anchor: BlockRef,
    ) -> Verdict:
        """Judge rows by the chain of `main`; `second` is asked where that does not prove a row.

        A row is gone where another block stands at its height, or where no endpoint that can tell
        has its log. `anchor` is the end of the range that was read: `main` must have it in the same
        request, or it was another backend that answered. Raises `NodeBehind` where `main` cannot
        tell and `second` proves nothing, `InconsistentNode` without the anchor, and `Retryable`
        errors of both.
        """
        standings = await self.standings(rows, main, anchor)
        doubted = (Standing.ABSENT, Standing.UNKNOWN)
        unproven = [row for row in rows if standings[row.id] in doubted]
        if unproven and second is not None:
            # Presence is believed; that the other one cannot tell either changes nothing.
            elsewhere = await self.standings(unproven, second)
            standings |= {
                number: standing
                for number, standing in elsewhere.items()
                if standing is Standing.PROVEN
            }
        for row in rows:
            if standings[row.id] is Standing.UNKNOWN:
                raise NodeBehind(f"nobody can tell yet what became of payment {row.id}")
            if standings[row.id] is Standing.ABSENT:
                log.error("payment.phantom", payment_id=row.id, tx_hash=row.tx_hash)
        kept = [row.id for row in rows if standings[row.id] is Standing.PROVEN]
        return Verdict(gone=[row.id for row in rows if row.id not in kept], kept=kept)

    async def standings(
        self, rows: Sequence[StoredLog], caller: Caller, anchor: BlockRef | None = None
    ) -> dict[PaymentId, Standing]:
        """Return how each row stands with what `caller` has, on the chain of `anchor`.

        A receipt that it refuses leaves its own row unknown, and no other: anyone can make one as
        large as he pays for. Raises `InconsistentNode` without the anchor, other `Retryable`s.
        """
        found: dict[PaymentId, Standing] = {}
        for at in range(0, len(rows), ROWS_AT_ONCE):
            found |= await self._some(rows[at : at + ROWS_AT_ONCE], caller, anchor)
        return found

    async def _some(
        self, rows: Sequence[StoredLog], caller: Caller, anchor: BlockRef | None
    ) -> dict[PaymentId, Standing]:
        """Ask for all in one request, and for halves of it where that is too much."""
        try:
            return await self._ask(rows, caller, anchor, dict.fromkeys(row.tx_hash for row in rows))
        except RangeRefused:
            if len(rows) == 1:
                return await self._ask(rows, caller, anchor, ())
        half = len(rows) // 2
        first = await self._some(rows[:half], caller, anchor)
        return first | await self._some(rows[half:], caller, anchor)

    async def _ask(
        self,
        rows: Sequence[StoredLog],
        caller: Caller,
        anchor: BlockRef | None,
        hashes: Collection[TxHash],
    ) -> dict[PaymentId, Standing]:
        """Ask for the blocks of rows and the receipts of these transactions."""
        heights = sorted(
            {row.block.number for row in rows} | ({anchor.number} if anchor else set())
        )
        calls = [header_call(height) for height in heights]
        calls += [replace(receipt_call(one), optional=True) for one in hashes]
        answers = await caller.call_all(calls)
        blocks = dict(zip(heights, map(decode_contents, answers[: len(heights)]), strict=True))
        end = None if anchor is None else blocks[anchor.number]
        if anchor is not None and (end is None or end.ref != anchor):
            raise InconsistentNode(f"the node has not block {anchor}, by which a range was read")
        receipts = {
            tx_hash: decode_receipt(answer, self._token)
            for tx_hash, answer in zip(hashes, answers[len(heights) :], strict=True)
        }
        return {
            row.id: standing_of(row, blocks[row.block.number], receipts.get(row.tx_hash))
            for row in rows
        }


def refuse_two_blocks(
    rows: Sequence[StoredLog], kept: Sequence[PaymentId], logs: Sequence[TransferLog]
) -> None:
    """A transaction is in one block: a node that proves it in two is believed in neither.

    Raises `InconsistentNode` for that.
    """
    told = _blocks_of(logs)
    for row in rows:
        if row.id in kept and told.get(row.tx_hash, row.block) != row.block:
            raise InconsistentNode(f"transaction {row.tx_hash} is told of in two blocks")


def _blocks_of(logs: Sequence[TransferLog]) -> Mapping[str, BlockRef]:
    return {entry.tx_hash: entry.block for entry in logs}
