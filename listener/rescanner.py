"""Blocks read again at an operator's word, and what differs repaired."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from listener.follower import FetchRange, Spans
from listener.ranges import RangeMoved, Watch
from listener.rpc import ChainReader, Endpoint, HttpRpc
from listener.second_look import Found, Ledger, look_again
from oncepaid.domain.chain import BlockRef
from oncepaid.domain.errors import (
    ChainConflict,
    InconsistentNode,
    NodeBehind,
    NotLeading,
    RangeRefused,
)
from oncepaid.domain.payments import ObservedPayment, OrphanedPayment, PaymentId, StoredLog

Repair = Callable[
    [FetchRange, Sequence[ObservedPayment], Sequence[PaymentId], BlockRef],
    Awaitable[list[OrphanedPayment]],
]
"""Writes the repair of a range that was read by the chain of a block. Raises `NotLeading` where
that is no longer the chain that the listener follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescanned:
    """What was done about some blocks. `altered` payments say otherwise than their logs."""

    first: int
    last: int
    added: Sequence[ObservedPayment]
    orphaned: Sequence[OrphanedPayment]
    altered: Sequence[StoredLog]


class Rescanner:
    """Repairs ranges one by one; doing one again changes nothing. Safe beside a daemon."""

    def __init__(self, rpc: HttpRpc, ledger: Ledger, watch: Watch, repair: Repair) -> None:
        self._rpc = rpc
        self._ledger = ledger
        self._watch = watch
        self._repair = repair
        self._spans = Spans(watch.max_range_blocks, rpc.count)

    async def repair_next(self, first: int, last: int) -> Rescanned:
        """Read as many of these blocks as an endpoint serves at once, and repair what differs.

        Raises `Retryable`s, among them `NotLeading` where the chain was reorganised meanwhile.
        """
        while True:
            asked = self._rpc.other_in_service()
            step = self._spans.step(asked.index, first, last)
            anchor = await self._anchor(asked)
            try:
                found = await self._look(step, asked)
            except RangeRefused as exc:
                if not self._spans.refused(asked.index, step):
                    raise InconsistentNode(f"a single block's logs are refused: {exc}") from exc
                continue
            self._spans.served(asked.index, step, found.logs)
            orphaned = await self._repair(step, found.to_store, found.verdict.gone, anchor)
            return Rescanned(
                first=step.first,
                last=step.last,
                added=found.to_store,
                orphaned=orphaned,
                altered=found.difference.altered,
            )

    async def _look(self, step: FetchRange, asked: Endpoint) -> Found:
        other = self._rpc.pinned(self._rpc.current) if self._rpc.count > 1 else None
        return await look_again(self._ledger, self._watch, step, None, asked=asked, other=other)

    async def _anchor(self, asked: Endpoint) -> BlockRef:
        """Return the cursor, which the endpoint has, too: it is on the chain that was stored."""
        state = await self._ledger.state()
        if state is None:
            raise NotLeading("the chain was never read: start the daemon first")
        header = await ChainReader(asked).header(state.cursor.number)
        if header is None:
            raise NodeBehind(f"{asked.label} has no block {state.cursor.number} yet")
        if state.conflict is not None:
            raise ChainConflict("the chain is in conflict: resolve that first")
        if header.ref != state.cursor:
            raise RangeMoved(
                f"{asked.label} has another block where the cursor stands; a running daemon follows"
            )
        return state.cursor
