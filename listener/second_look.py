"""Every range is asked again, of another endpoint where there is one, before it can be `safe`.

A node that lags, or a load balancer whose backends stand at different heights, answers
`eth_getLogs` with too little and without an error (go-ethereum #24078): money would be lost in
silence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

import structlog

from listener.arbiter import Arbiter, Verdict, refuse_two_blocks
from listener.comparison import Difference, compare
from listener.follower import FetchRange, Spans
from listener.ledger import ChainState, Checkpoint
from listener.ranges import RangeMoved, RangeReader, Watch
from listener.reorg import tell_orphaned
from listener.rpc import ChainReader, Endpoint, HttpRpc
from oncepaid.domain.chain import BlockRef, Header, TxHash
from oncepaid.domain.errors import InconsistentNode, NodeBehind, RangeRefused
from oncepaid.domain.payments import ObservedPayment, OrphanedPayment, PaymentId, StoredLog
from oncepaid.metrics import Metrics

log = structlog.get_logger()

AFTER: Final = timedelta(seconds=10)
"""So long after a range was stored it is asked again: a node that lagged has caught up. Base calls
a block `safe` after some 2 minutes."""


class Ledger(Protocol):
    async def state(self) -> ChainState | None: ...
    async def checkpoints(
        self,
        *,
        limit: int,
        min_age: timedelta = timedelta(0),
        until: datetime | None = None,
    ) -> Sequence[Checkpoint]: ...
    async def live_logs(
        self, first: int, last: int, tx_hashes: Sequence[TxHash] = ()
    ) -> list[StoredLog]: ...
    async def bare_logs(self, first: int, last: int) -> list[StoredLog]: ...
    async def repair(
        self,
        last: int,
        missing: Sequence[ObservedPayment],
        gone: Sequence[PaymentId],
        *,
        epoch: int,
        checked: int,
        anchor: BlockRef,
    ) -> list[OrphanedPayment]: ...
    async def mark_finalized(self, block: Header, *, anchor: BlockRef, epoch: int) -> None: ...


class Lead(Protocol):
    @property
    def epoch(self) -> int | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a second look at a range found, resolved: what to store and what to orphan.

    `logs` is how many payments the endpoint told of.
    """

    logs: int
    difference: Difference
    missing: list[ObservedPayment]
    enriched: list[ObservedPayment]
    verdict: Verdict

    @property
    def differences(self) -> int:
        return len(self.difference) + len(self.enriched)

    @property
    def to_store(self) -> list[ObservedPayment]:
        """What was missing, and what is there without the memo that it carries."""
        return [*self.missing, *self.enriched]


async def look_again(
    ledger: Ledger,
    watch: Watch,
    step: FetchRange,
    end: BlockRef | None,
    *,
    asked: Endpoint,
    other: Endpoint | None,
) -> Found:
    """Read a range from `asked`, hold it against the rows, and resolve what differs.

    `end` is the block that its last one must be, None for whichever is. Raises `RangeRefused` and
    other `Retryable` errors.
    """
    reader = RangeReader(asked, watch)
    header, logs = await reader.read(step, end)
    rows = await ledger.live_logs(step.first, step.last, [entry.tx_hash for entry in logs])
    difference = compare(rows, logs)
    verdict = Verdict(gone=[], kept=[])
    if difference.extra:
        verdict = await Arbiter(watch.token).judge(
            difference.extra, asked, other, anchor=header.ref
        )
        refuse_two_blocks(difference.extra, verdict.kept, logs)
    told = {(entry.block.hash, entry.log_index): entry for entry in logs}
    bare = [
        told[row.block.hash, row.log_index]
        for row in await ledger.bare_logs(step.first, step.last)
        if (row.block.hash, row.log_index) in told
    ]
    observed = await reader.observe([*difference.missing, *bare], header, among=logs)
    missing = observed[: len(difference.missing)]
    # What pays by its memo may have been told of without it: that answer was short, too.
    enriched = [payment for payment in observed[len(missing) :] if payment.evidence]
    for row in difference.altered:
        log.error("payment.facts_differ", payment_id=row.id, tx_hash=row.tx_hash)
    return Found(
        logs=len(logs),
        difference=difference,
        missing=missing,
        enriched=enriched,
        verdict=verdict,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Due:
    """A range to look at again. `anchor` is a checkpoint at or above its end."""

    step: FetchRange
    end: BlockRef | None
    anchor: BlockRef


class SecondLook:
    """Asks stored ranges again and repairs what differs. `step` does one range."""

    def __init__(
        self,
        rpc: HttpRpc,
        ledger: Ledger,
        *,
        lead: Lead,
        watch: Watch,
        metrics: Metrics,
        announce: Callable[[], None] = lambda: None,
        after: timedelta = AFTER,
    ) -> None:
        """`announce` is called when payments were stored or orphaned."""
        self._rpc = rpc
        self._ledger = ledger
        self._lead = lead
        self._watch = watch
        self._metrics = metrics
        self._announce = announce
        self._after = after
        self._spans = Spans(watch.max_range_blocks, rpc.count)
        self._asked: FetchRange | None = None
        self._falls_back = False

    async def step(self) -> bool:
        """Look at one range again; True when more is waiting. Raises `Retryable` errors."""
        epoch = self._lead.epoch
        state = await self._ledger.state() if epoch is not None else None
        if epoch is None or state is None:
            return False
        checked = state.cursor.number if state.checked is None else state.checked
        in_use = self._rpc.pinned(self._rpc.current)
        asked = in_use if self._falls_back else self._rpc.other_in_service()
        self._falls_back = False
        try:
            due = await self._due(checked, asked)
            if due is None:
                return False
            found = await look_again(
                self._ledger,
                self._watch,
                due.step,
                due.end,
                asked=asked,
                other=None if asked.index == in_use.index else in_use,
            )
        except RangeRefused as exc:
            if self._narrow(asked):
                return True
            log.warning("second_look.refused", endpoint=asked.label, because=str(exc))
            self._falls_back = asked.index != in_use.index
            return self._falls_back
        except (NodeBehind, InconsistentNode) as exc:
            # An endpoint that lags, or a reorganisation that the listener is about to follow.
            log.info("second_look.waits", endpoint=asked.label, because=str(exc))
            # One that always does must not keep the mark where it is: then ours is asked again.
            self._falls_back = asked.index != in_use.index
            return self._falls_back
        self._asked = None
        self._spans.served(asked.index, due.step, found.logs)
        await self._repair(found, due, asked, epoch)
        return True

    async def _due(self, checked: int, asked: Endpoint) -> _Due | None:
        """Return the next range that is old enough, with the block that must end it if known."""
        checkpoints = await self._ledger.checkpoints(min_age=self._after, limit=1)
        if not checkpoints or checkpoints[0].block.number <= checked:
            return None
        anchor = checkpoints[0].block
        step = self._asked = self._spans.step(asked.index, checked + 1, anchor.number)
        if step.last == anchor.number:
            return _Due(step=step, end=anchor, anchor=anchor)
        # Of a block between two checkpoints we know no hash: at least the node is on our chain.
        header = await ChainReader(asked).header(anchor.number)
        if header is None:
            raise NodeBehind(f"{asked.label} has no block {anchor.number} yet")
        if header.ref != anchor:
            raise RangeMoved(f"{asked.label} has another block {anchor.number}")
        return _Due(step=step, end=None, anchor=anchor)

    def _narrow(self, asked: Endpoint) -> bool:
        """Ask for half of it next; False where a single block's logs are refused."""
        return self._asked is not None and self._spans.refused(asked.index, self._asked)

    async def _repair(self, found: Found, due: _Due, asked: Endpoint, epoch: int) -> None:
        step = due.step
        orphaned = await self._ledger.repair(
            step.last,
            found.to_store,
            found.verdict.gone,
            epoch=epoch,
            checked=step.last,
            anchor=due.anchor,
        )
        self._metrics.checked_block.set(step.last)
        if not found.differences:
            return
        self._metrics.disagreements.inc(found.differences)
        log.warning(
            "range.disagreement",
            first=step.first,
            last=step.last,
            endpoint=asked.label,
            missing=len(found.missing),
            without_memo=len(found.enriched),
            extra=len(found.difference.extra),
            orphaned=len(orphaned),
        )
        for payment in orphaned:
            tell_orphaned(payment, self._metrics)
        self._announce()


class FinalityMark:
    """Keeps the mark below which a fork is a contradiction, and forgets older checkpoints."""

    def __init__(
        self, rpc: HttpRpc, ledger: Ledger, *, lead: Lead, age: timedelta | None = None
    ) -> None:
        """`age` replaces the node's `finalized` by so much chain time below the cursor."""
        self._rpc = rpc
        self._ledger = ledger
        self._lead = lead
        self._age = age

    async def step(self) -> bool:
        """Move the mark. Raises `Retryable` errors; a node without the tag moves nothing."""
        epoch = self._lead.epoch
        state = await self._ledger.state() if epoch is not None else None
        if epoch is None or state is None:
            return False
        limit = state.cursor.number if state.checked is None else state.checked
        number = await (self._by_tag() if self._age is None else self._by_age(self._age))
        if number is None or min(number, limit) <= state.finalized:
            return False
        # Asked in one request: a node that has our cursor has the block below it on our chain.
        final, at_cursor = await ChainReader(self._rpc).headers(
            [min(number, limit), state.cursor.number]
        )
        if final is not None and at_cursor is not None and at_cursor.ref == state.cursor:
            await self._ledger.mark_finalized(final, anchor=state.cursor, epoch=epoch)
        return False

    async def _by_tag(self) -> int | None:
        header = await ChainReader(self._rpc).header("finalized")
        return None if header is None else header.number

    async def _by_age(self, age: timedelta) -> int | None:
        newest = await self._ledger.checkpoints(limit=1)
        if not newest:
            return None
        old = await self._ledger.checkpoints(limit=1, until=newest[0].time - age)
        return old[0].block.number if old else None
