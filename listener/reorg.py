"""After a reorganisation: back to the common ancestor, and orphan what is above it."""

from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from listener.comparison import BelowFinalized, LookDeeper, RewindTo, judge_walk
from listener.ledger import ChainState, Checkpoint
from listener.rpc import ChainReader, HttpRpc
from oncepaid.domain.chain import BlockRef, Header, TxHash
from oncepaid.domain.errors import (
    ChainConflict,
    InconsistentNode,
    NodeBehind,
    Retryable,
)
from oncepaid.domain.money import UNITS_PER_USDC, format_usdc
from oncepaid.domain.payments import OrphanedPayment, PaymentId, StoredLog
from oncepaid.metrics import Metrics

log = structlog.get_logger()

FIRST_PAGE: Final = 16
PAGE: Final = 200
YOUNG_MS: Final = 5_000
"""Of chain time, that a head may be behind another and still be on the living chain."""
YOUNG_BLOCKS: Final = 25
"""The same in blocks of Base, for a dead node whose last block has a time in the future."""
LOOKS_BEFORE_CONFLICT: Final = 4
"""A contradiction must be there so often in a row: it stops all crediting until somebody acts."""
HIGHEST: Final = 2**63 - 1


class Ledger(Protocol):
    async def state(self) -> ChainState | None: ...
    async def checkpoints(self, *, below: int | None, limit: int) -> Sequence[Checkpoint]: ...
    async def live_logs(
        self, first: int, last: int, tx_hashes: Sequence[TxHash] = ()
    ) -> list[StoredLog]: ...
    async def newest_logs(self, *, below: int, limit: int) -> list[StoredLog]: ...
    async def rewind(
        self, cursor: BlockRef, to: Header, gone: Sequence[PaymentId], *, epoch: int
    ) -> list[OrphanedPayment] | None: ...
    async def declare_conflict(self, what: str, *, epoch: int) -> None: ...


class ReorgWalker:
    """Finds out how far a chain was reorganised, and takes the ledger back there."""

    def __init__(self, rpc: HttpRpc, ledger: Ledger, metrics: Metrics) -> None:
        self._rpc = rpc
        self._ledger = ledger
        self._metrics = metrics
        self._contradictions = 0

    def note_progress(self) -> None:
        """Note that a range was read upon the cursor: what contradicted it before is over."""
        self._contradictions = 0

    async def recover(self, cursor: BlockRef, *, epoch: int) -> None:
        """Take the cursor back to the highest checkpoint that the chain still has.

        The rows above it are orphaned where their block is gone; what is above it is then read
        again. Raises `ChainConflict` for a chain without a block that was final, `InconsistentNode`
        where another endpoint still has the cursor's block, and `Retryable` errors.
        """
        await self._check_elsewhere(cursor)
        ancestor = await self._ancestor(cursor, epoch)
        rows = await self._ledger.live_logs(ancestor.number + 1, HIGHEST)
        gone = await self._gone(rows, cursor)
        orphaned = await self._ledger.rewind(cursor, ancestor, gone, epoch=epoch)
        if orphaned is None:
            return
        depth = cursor.number - ancestor.number
        self._metrics.reorgs.inc()
        self._metrics.reorg_depth.observe(depth)
        log.warning(
            "chain.reorg",
            depth_blocks=depth,
            cursor=str(cursor),
            ancestor=str(ancestor.ref),
            orphaned=len(orphaned),
            kept=len(rows) - len(orphaned),
        )
        for payment in orphaned:
            tell_orphaned(payment, self._metrics)

    async def _check_elsewhere(self, cursor: BlockRef) -> None:
        """A lone node on a fork of its own is not followed while another one has our block.

        Its word counts only while its own head is as young: a node that stopped on a dead branch
        would hold us there for ever.
        """
        other = self._rpc.second()
        if other is None:
            return
        try:
            header, head = await ChainReader(other).headers([cursor.number, "latest"])
        except Retryable as exc:
            log.warning("reorg.no_second_opinion", endpoint=other.label, error=str(exc))
            return
        ours = await ChainReader(self._rpc).header("latest")
        if header is None or header.ref != cursor or head is None or ours is None:
            return
        is_young = head.timestamp_ms >= ours.timestamp_ms - YOUNG_MS
        if is_young and head.number >= ours.number - YOUNG_BLOCKS:
            self._metrics.disagreements.inc()
            log.warning("node.on_a_fork", endpoint=self._rpc.endpoint, other=other.label)
            raise InconsistentNode(f"{other.label} still has block {cursor}")

    async def _ancestor(self, cursor: BlockRef, epoch: int) -> Header:
        state = await self._ledger.state()
        finalized = -1 if state is None else state.finalized
        below: int | None = None
        limit, lowest = FIRST_PAGE, cursor.number
        while page := await self._ledger.checkpoints(below=below, limit=limit):
            blocks = [checkpoint.block for checkpoint in page]
            headers = await self._headers([block.number for block in blocks])
            on_chain = {header.ref: header for header in headers}
            walk = judge_walk(blocks, on_chain, finalized)
            match walk:
                case RewindTo(ancestor=found) if found == cursor:
                    raise InconsistentNode(f"block {cursor} is on the chain again")
                case RewindTo(ancestor=found):
                    return on_chain[found]
                case BelowFinalized(block=block):
                    what = (
                        f"block {block} was final, and {self._rpc.endpoint} has another one"
                        " (see `oncepaid conflict show`)"
                    )
                    self._contradictions += 1
                    if self._contradictions < LOOKS_BEFORE_CONFLICT:
                        raise InconsistentNode(what)
                    await self._ledger.declare_conflict(what, epoch=epoch)
                    raise ChainConflict(what)
                case LookDeeper():
                    lowest = blocks[-1].number
                    below, limit = lowest, PAGE
        return await self._below_all(lowest, None if state is None else state.start)

    async def _headers(self, numbers: Sequence[int]) -> list[Header]:
        """Return headers at or below the cursor: the node told of a head that is not lower.

        Raises `NodeBehind` where one is missing all the same: that is another backend, no fork.
        """
        found = await ChainReader(self._rpc).headers(list(numbers))
        if None in found:
            raise NodeBehind("the node has not all the blocks below its head")
        return [header for header in found if header is not None]

    async def _below_all(self, lowest: int, start: int | None) -> Header:
        """No checkpoint that we have is on the chain, and none of them was final.

        Then the highest payment tells whose block still stands; else it is all to be read again.
        """
        below = lowest
        while rows := await self._ledger.newest_logs(below=below, limit=PAGE):
            headers = await self._headers(sorted({row.block.number for row in rows}))
            on_chain = {header.ref: header for header in headers}
            standing = [row.block for row in rows if row.block in on_chain]
            if standing:
                return on_chain[max(standing, key=lambda block: block.number)]
            below = rows[-1].block.number
        bottom = lowest - 1 if start is None else min(start, lowest - 1)
        (header,) = await self._headers([max(0, bottom)])
        return header

    async def _gone(self, rows: Sequence[StoredLog], cursor: BlockRef) -> list[PaymentId]:
        """Return the rows whose height has another block; above the cursor some may have none yet.

        Raises `NodeBehind` where the node lacks one at or below the cursor.
        """
        heights = sorted({row.block.number for row in rows})
        hashes = await ChainReader(self._rpc).hashes(heights) if heights else {}
        if any(block_hash is None for n, block_hash in hashes.items() if n <= cursor.number):
            raise NodeBehind("the node has not all the blocks below its head")
        return [row.id for row in rows if hashes[row.block.number] not in (None, row.block.hash)]


def tell_orphaned(payment: OrphanedPayment, metrics: Metrics) -> None:
    """Log and count a payment whose block is gone."""
    log.warning(
        "payment.orphaned",
        payment_id=payment.id,
        tx_hash=payment.tx_hash,
        usdc=format_usdc(payment.units),
        was=payment.was,
        job_uuid=payment.job_uuid,
    )
    metrics.payments.labels(status="orphaned", reason="").inc()
    metrics.payments_usdc.labels(status="orphaned").inc(payment.units / UNITS_PER_USDC)
