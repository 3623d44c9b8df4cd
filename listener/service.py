"""The listener: reads ranges of blocks and hands over what was paid to us, cursor and all."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from listener.arbiter import Arbiter, refuse_two_blocks
from listener.comparison import anchors_below, compare
from listener.follower import (
    CursorOrphaned,
    FetchRange,
    Span,
    UpToDate,
    narrowed,
    next_step,
    on_refused,
    on_served,
)
from listener.ranges import Range, RangeMoved, RangeReader, Watch
from listener.reorg import Ledger as ReorgLedger
from listener.reorg import ReorgWalker, tell_orphaned
from listener.rpc import ChainReader, HttpRpc
from oncepaid.domain.chain import BlockRef, Header
from oncepaid.domain.errors import (
    CursorGone,
    InconsistentNode,
    NodeBehind,
    NodeUnavailable,
    NotLeading,
    RangeRefused,
)
from oncepaid.domain.money import UNITS_PER_USDC, format_usdc
from oncepaid.domain.payments import ObservedPayment, OrphanedPayment, PaymentId
from oncepaid.metrics import Metrics

log = structlog.get_logger()

FAILURES_BEFORE_NARROWING: Final = 2
HEARD_TRIES: Final = 5
"""How often a block that the subscription told of is looked for before the node's head is asked."""


class StoredRange(Protocol):
    @property
    def moved(self) -> bool: ...
    @property
    def stored(self) -> int: ...
    @property
    def is_contradicted(self) -> bool: ...
    @property
    def orphaned(self) -> Sequence[OrphanedPayment]: ...


class Cursor(Protocol):
    async def load(self) -> BlockRef | None: ...
    async def start_at(
        self, header: Header, anchors: Sequence[Header] = (), *, epoch: int
    ) -> BlockRef: ...


class Ledger(ReorgLedger, Protocol):
    async def store_range(
        self,
        cursor: BlockRef,
        end: Header,
        payments: Sequence[ObservedPayment],
        *,
        epoch: int,
        gone: Sequence[PaymentId] = (),
        kept: Sequence[PaymentId] = (),
    ) -> StoredRange: ...


class Lead(Protocol):
    @property
    def epoch(self) -> int | None:
        """Under which a listener may write; None while another one leads."""


OnRead = Callable[[BlockRef, Sequence[ObservedPayment]], None]


class Listener:
    """Keeps the cursor at the head. `step` does one round; a driver calls it again and again."""

    def __init__(
        self,
        rpc: HttpRpc,
        cursor: Cursor,
        ledger: Ledger,
        *,
        lead: Lead,
        watch: Watch,
        metrics: Metrics,
        announce: Callable[[], None] = lambda: None,
        on_read: OnRead = lambda _head, _payments: None,
    ) -> None:
        """`announce` is called when payments were stored or orphaned.

        `on_read` gets the head that was known and the payments that were stored, after every step.
        """
        self._rpc = rpc
        self._reader = ChainReader(rpc)
        self._ranges = RangeReader(rpc, watch)
        self._cursor_store = cursor
        self._ledger = ledger
        self._lead = lead
        self._walker = ReorgWalker(rpc, ledger, metrics)
        self._arbiter = Arbiter(watch.token)
        self._watch = watch
        self._metrics = metrics
        self._announce = announce
        self._on_read = on_read
        # What one endpoint refuses, another may serve.
        self._spans = [Span.first(watch.max_range_blocks) for _ in range(rpc.count)]
        self._cursor: BlockRef | None = None
        self._head_number = 0
        self._failures = 0
        self._heard: tuple[BlockRef, int] | None = None
        self._ahead: tuple[BlockRef, asyncio.Task[Range]] | None = None

    def hear(self, block: BlockRef | None) -> None:
        """Note the block of a log that the subscription told of; saves asking for the head.

        The node that is asked may lag behind the one that told: it is asked again some times.
        """
        if block is None:
            self._heard = None
        elif self._heard is None or block.number > self._heard[0].number:
            self._heard = block, HEARD_TRIES

    async def prepare(self) -> None:
        """Load the cursor, or set it on a first start: what is paid from now on will be found.

        A daemon that stands by is ready once the cursor is there. Raises `Retryable` errors of node
        and database.
        """
        if self._lead.epoch is not None:
            await self._load_cursor(self._lead.epoch)
        elif await self._cursor_store.load() is None:
            raise NotLeading("another daemon is about to set the first cursor")

    async def step(self) -> bool:
        """Read one range, or find that there is none; True when more may be waiting.

        Does nothing while another daemon leads. Raises `Retryable` errors of node and database, and
        `ChainConflict`.
        """
        epoch = self._lead.epoch
        if epoch is None:
            self._start_over()
            return False
        try:
            more = await self._step(epoch)
        except BaseException as exc:
            # Whatever went wrong, the database knows best how far it got.
            self._start_over()
            self._failures += 1
            if isinstance(exc, RangeMoved):
                self._heard = None
            if isinstance(exc, InconsistentNode):
                self._rpc.distrust()
            if isinstance(exc, NodeUnavailable) and self._failures % FAILURES_BEFORE_NARROWING == 0:
                # It may be the width that the node cannot do, whatever it says of it, if anything.
                self._span = narrowed(self._span)
            raise
        self._failures = 0
        return more

    @property
    def _span(self) -> Span:
        return self._spans[self._rpc.current]

    @_span.setter
    def _span(self, span: Span) -> None:
        self._spans[self._rpc.current] = span

    async def _step(self, epoch: int) -> bool:
        cursor = await self._load_cursor(epoch)
        head = await self._head_above(cursor)
        step = next_step(cursor, head, self._span)
        match step:
            case UpToDate():
                self._on_read(head, ())
                self._expect_heard(cursor)
                return False
            case CursorOrphaned():
                return await self._recover(cursor, epoch)
        try:
            fetched = await self._next_range(cursor, step, head)
        except CursorGone:
            return await self._recover(cursor, epoch)
        except RangeRefused as exc:
            self._narrow(step, exc)
            return True
        self._span = on_served(self._span, fetched.fetched, len(fetched.payments))
        self._fetch_ahead(fetched.end.ref, head)
        stored = await self._store(cursor, fetched, epoch)
        if not stored.moved:
            self._start_over()
            return True
        self._after_store(fetched, stored.stored)
        self._on_read(head, fetched.payments)
        return fetched.end.number < head.number

    async def _store(self, cursor: BlockRef, fetched: Range, epoch: int) -> StoredRange:
        stored = await self._ledger.store_range(cursor, fetched.end, fetched.payments, epoch=epoch)
        if not stored.is_contradicted:
            return stored
        # Rows that a reorganisation left behind, or an answer that was short.
        logs = [payment.log for payment in fetched.payments]
        rows = await self._ledger.live_logs(
            cursor.number + 1, fetched.end.number, [log.tx_hash for log in logs]
        )
        difference = compare(rows, logs)
        verdict = await self._arbiter.judge(
            difference.extra, self._rpc, self._rpc.second(), anchor=fetched.end.ref
        )
        refuse_two_blocks(difference.extra, verdict.kept, logs)
        if verdict.kept:
            self._metrics.disagreements.inc(len(verdict.kept))
            log.warning("range.short_answer", endpoint=self._rpc.endpoint, logs=len(verdict.kept))
        stored = await self._ledger.store_range(
            cursor,
            fetched.end,
            fetched.payments,
            epoch=epoch,
            gone=verdict.gone,
            kept=verdict.kept,
        )
        if stored.is_contradicted:
            raise InconsistentNode("what is stored changed while it was compared")
        for payment in stored.orphaned:
            tell_orphaned(payment, self._metrics)
        self._announce()
        return stored

    async def _recover(self, cursor: BlockRef, epoch: int) -> bool:
        self._start_over()
        self._heard = None
        await self._walker.recover(cursor, epoch=epoch)
        self._announce()
        return True

    def _start_over(self) -> None:
        self._cursor = None
        if self._ahead is not None:
            self._ahead[1].cancel()
            self._ahead = None

    def _fetch_ahead(self, cursor: BlockRef, head: BlockRef) -> None:
        """In a backlog, fetch the next range while this one is stored: at most one ahead."""
        step = next_step(cursor, head, self._span)
        if isinstance(step, FetchRange):
            task = asyncio.create_task(self._ranges.fetch(cursor, step, head), name="fetch-ahead")
            task.add_done_callback(_retrieve)
            self._ahead = cursor, task

    async def _next_range(self, cursor: BlockRef, step: FetchRange, head: BlockRef) -> Range:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == cursor:
            return await ahead[1]
        return await self._ranges.fetch(cursor, step, head)

    async def _load_cursor(self, epoch: int) -> BlockRef:
        if self._cursor is None:
            self._cursor = await self._cursor_store.load() or await self._first_cursor(epoch)
            self._metrics.cursor_block.set(self._cursor.number)
        return self._cursor

    async def _first_cursor(self, epoch: int) -> BlockRef:
        """A first start begins at `start_block`: the cursor stands on the block before it."""
        start = self._watch.start_block
        header = await self._reader.header("latest" if start == "latest" else max(0, start - 1))
        if header is None:
            raise InconsistentNode(f"the node has no block {start} yet")
        anchors = await self._reader.headers(anchors_below(header.number)) if header.number else []
        cursor = await self._cursor_store.start_at(
            header, [anchor for anchor in anchors if anchor is not None], epoch=epoch
        )
        log.info("listener.first_start", start_block=start, cursor=cursor.number)
        return cursor

    async def _head_above(self, cursor: BlockRef) -> BlockRef:
        # What was heard is tried once, and believed again only after something succeeded: a
        # websocket that tells of blocks that nobody has must not keep us from the node's head.
        if self._heard is not None and not self._failures:
            heard, _ = self._heard
            if heard.number > cursor.number:
                return heard
        header = await self._reader.header("latest")
        if header is None:
            raise InconsistentNode("the node has no latest block")
        self._see_head(header)
        return header.ref

    def _expect_heard(self, cursor: BlockRef) -> None:
        """A node that lags behind its own websocket is asked again soon, a bounded number of times.

        Raises `NodeBehind` for that.
        """
        if self._heard is None:
            return
        heard, tries_left = self._heard
        if heard.number <= cursor.number or tries_left <= 1:
            self._heard = None
            return
        self._heard = heard, tries_left - 1
        raise NodeBehind(f"the node has no block {heard.number} yet")

    def _see_head(self, header: Header) -> None:
        self._rpc.saw_head(header)
        self._head_number = header.number
        self._metrics.head_block.set(header.number)
        self._metrics.head_timestamp.set(header.timestamp_ms / 1000)

    def _narrow(self, step: FetchRange, exc: RangeRefused) -> None:
        narrower = on_refused(self._span, step)
        if narrower is None:
            raise InconsistentNode(f"the node refuses the logs of a single block: {exc}") from exc
        log.info("listener.range_refused", blocks=step.blocks, next_blocks=narrower.blocks)
        self._span = narrower

    def _after_store(self, fetched: Range, stored: int) -> None:
        end = fetched.end
        self._cursor = end.ref
        self._walker.note_progress()
        self._metrics.cursor_block.set(end.number)
        self._metrics.cursor_timestamp.set(end.timestamp_ms / 1000)
        if end.number >= self._head_number:
            self._see_head(end)
        if stored:
            self._announce()
            for payment in fetched.payments:
                self._tell(payment)

    def _tell(self, payment: ObservedPayment) -> None:
        transfer = payment.log
        log.info(
            "payment.seen",
            tx_hash=transfer.tx_hash,
            log_index=transfer.log_index,
            block_number=transfer.block.number,
            usdc=format_usdc(transfer.units),
            sender=transfer.sender,
            recipient=transfer.recipient,
        )
        self._metrics.payments.labels(status="seen", reason="").inc()
        self._metrics.payments_usdc.labels(status="seen").inc(transfer.units / UNITS_PER_USDC)
        self._metrics.observe_stage("seen", time.time() - payment.block_time.timestamp())


def _retrieve(task: asyncio.Task[Range]) -> None:
    """Look at a failure that nobody may come to ask for, so that it is not reported as lost."""
    if not task.cancelled():
        task.exception()
