"""The audit: all invariants recomputed from chain and tables, by a command and as a slow stage."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import structlog

from listener.audit_report import (
    Seen,
    balance_violations,
    checks_of,
    confirmed,
    violations_of,
)
from listener.chain_audit import Books as ChainBooks
from listener.chain_audit import ChainAudit, Ledger
from listener.ledger import ChainState
from listener.ranges import Watch
from listener.rpc import HttpRpc
from oncepaid.domain.auditing import (
    Check,
    CursorFacts,
    DoubledTransaction,
    Invariant,
    JobFacts,
    RangeFacts,
    Violation,
    judge_job,
    judge_range,
)
from oncepaid.domain.errors import Retryable
from oncepaid.domain.jobs import JobId
from oncepaid.metrics import Metrics

log = structlog.get_logger()

AUDIT_S: Final = 300.0
"""How often the stage looks."""
ALL_CHECKPOINTS: Final = 1_000_000
CHECKPOINTS_A_STEP: Final = 100
MAX_WINDOW_BLOCKS: Final = 5_000
"""What the stage looks at in one step: of a backlog only the end. 17 minutes of Base."""
LOOK_AGAIN_AFTER_S: Final = 2.0
"""What a daemon is in the middle of, a reorganisation or a reversal, is over by then."""
HOUR_BLOCKS: Final = 18_000
"""An hour of Base: the stage looks at the jobs of so many blocks below its window, too."""
POSTPONED_OFTEN: Final = 3
MAX_TOLD: Final = 10_000


class Books(ChainBooks, Protocol):
    async def doubled(self, above: int = -1) -> list[DoubledTransaction]: ...
    async def jobs(self, after: JobId, above: int = -1) -> tuple[list[JobFacts], JobId | None]: ...


class Lead(Protocol):
    @property
    def epoch(self) -> int | None: ...


def _nothing(_: int) -> None:
    pass


async def _once(read: Callable[[], Awaitable[None]]) -> None:
    await read()


class Audit:
    """Checks every invariant. It writes nothing and is safe beside a running daemon.

    What looks wrong is looked at again after a moment: a daemon may have been in the middle of it.
    """

    def __init__(
        self,
        rpc: HttpRpc,
        ledger: Ledger,
        books: Books,
        watch: Watch,
        *,
        pause: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(LOOK_AGAIN_AFTER_S),
        patiently: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]] = _once,
    ) -> None:
        """`patiently` runs each reading, and may repeat one that raised a `Retryable`."""
        self._chain = ChainAudit(rpc, ledger, books, watch)
        self.ledger = ledger
        self._books = books
        self._pause = pause
        self._patiently = patiently

    async def run(
        self,
        state: ChainState,
        first: int,
        last: int,
        *,
        checkpoints: int = ALL_CHECKPOINTS,
        rows_above: int = -1,
        on_progress: Callable[[int], None] = _nothing,
    ) -> list[Check]:
        """Check the blocks `first` to `last`, none where that is less, and the tables.

        Of the tables what belongs to payments above block `rows_above`; -1 is all of them.
        `state` is where the cursor stood before; `last` is not above it. `on_progress` gets the
        number of blocks each time that some were read.
        """
        seen = Seen(cursor=await self._cursor(state, checkpoints))
        await self._read_blocks(seen, first, last, on_progress)
        await self._read_tables(seen, rows_above)
        if not violations_of(seen, first, last):
            return checks_of(seen, first, last)
        await self._pause()
        suspected = {violation.key for violation in violations_of(seen, first, last)}
        state = await self.ledger.state() or state
        again = Seen(cursor=await self._cursor(state, checkpoints))
        await self._read_again(again, seen, first, last)
        await self._read_tables(again, rows_above)
        return [confirmed(check, suspected) for check in checks_of(again, first, last)]

    async def _cursor(self, state: ChainState, checkpoints: int) -> CursorFacts:
        found: list[CursorFacts] = []

        async def read() -> None:
            found.append(await self._chain.cursor(state, checkpoints))

        await self._patiently(read)
        return found[-1]

    async def _read_blocks(
        self, seen: Seen, first: int, last: int, on_progress: Callable[[int], None] = _nothing
    ) -> None:
        """A chain that has another block at the cursor is not the one that was stored."""
        at = first
        while seen.is_on_chain and at <= last:
            facts = await self._range(at, last)
            seen.ranges.append(facts)
            on_progress(facts.last - facts.first + 1)
            at = facts.last + 1
        await self._read_balances(seen, first, last)

    async def _read_again(self, again: Seen, seen: Seen, first: int, last: int) -> None:
        """Read again what looked wrong; all of it where a balance did, which says not where."""
        if not again.is_on_chain:
            return
        is_anywhere = not seen.is_on_chain or any(balance_violations(seen, first, last))
        if is_anywhere:
            await self._read_blocks(again, first, last)
            return
        for facts in seen.ranges:
            if not judge_range(facts):
                again.ranges.append(facts)
                continue
            at = facts.first
            while at <= facts.last:
                again.ranges.append(await self._range(at, facts.last))
                at = again.ranges[-1].last + 1
        await self._read_balances(again, first, last)

    async def _range(self, first: int, last: int) -> RangeFacts:
        found: list[RangeFacts] = []

        async def read() -> None:
            found.append(await self._chain.next_range(first, last))

        await self._patiently(read)
        return found[-1]

    async def _read_balances(self, seen: Seen, first: int, last: int) -> None:
        async def read() -> None:
            seen.balances = await self._chain.balances(first, last, seen.ranges)

        if seen.is_on_chain and first <= last:
            await self._patiently(read)

    async def _read_tables(self, seen: Seen, above: int) -> None:
        async def read_doubled() -> None:
            seen.doubled = await self._books.doubled(above)

        await self._patiently(read_doubled)
        after: JobId | None = JobId(0)

        async def read_page() -> None:
            nonlocal after
            assert after is not None
            jobs, after = await self._books.jobs(after, above)
            seen.jobs += len(jobs)
            for job in jobs:
                seen.violations += judge_job(job)

        while after is not None:
            await self._patiently(read_page)


class Auditor:
    """The audit as a stage of the daemon that leads: `step` looks at what came since the last."""

    def __init__(self, audit: Audit, *, lead: Lead, metrics: Metrics) -> None:
        self._audit = audit
        self._lead = lead
        self._metrics = metrics
        self._done: int | None = None
        self._postponed = 0
        self._told: set[tuple[Invariant, str]] = set()
        for invariant in Invariant:
            metrics.violations.labels(invariant=invariant)

    async def step(self) -> bool:
        """Audit once; tells of each violation when it is new. Nothing of it is ever urgent.

        A node or database in trouble postpones it: others tell of that.
        """
        try:
            await self._step()
        except Retryable as exc:
            self._postponed += 1
            tell = log.warning if self._postponed >= POSTPONED_OFTEN else log.info
            tell("audit.postponed", reason=str(exc), times=self._postponed)
        else:
            self._postponed = 0
        return False

    async def _step(self) -> None:
        state = await self._audit.ledger.state() if self._lead.epoch is not None else None
        # A conflict is named already; nothing more is to be said of such a chain.
        if state is None or state.conflict is not None:
            return
        last = state.cursor.number if state.checked is None else state.checked
        # A rewind may have replaced blocks that were looked at before.
        done = min(self._done or 0, last)
        first = (
            max(last - MAX_WINDOW_BLOCKS, last if state.start is None else state.start, done) + 1
        )
        checks = await self._audit.run(
            state,
            min(first, last + 1),
            last,
            checkpoints=CHECKPOINTS_A_STEP,
            # What a payment leads to takes its time.
            rows_above=max(-1, first - 1 - HOUR_BLOCKS),
        )
        self._done = last
        for check in checks:
            for violation in check.violations:
                self._tell(violation)

    def _tell(self, violation: Violation) -> None:
        if violation.key in self._told:
            return
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        self._told.add(violation.key)
        self._metrics.violations.labels(invariant=violation.invariant).inc()
        log.error(
            "invariant.violated",
            invariant=violation.invariant,
            must_be=violation.invariant.sentence,
            found=violation.text,
            block_number=violation.block,
        )
