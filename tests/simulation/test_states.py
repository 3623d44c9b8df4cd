"""One job and its payments under any order of steps, found and shrunk by Hypothesis."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from oncepaid.domain.chain import BlockRef
from oncepaid.domain.generation import AttemptResult, Outcome
from oncepaid.domain.jobs import ClaimedJob, JobId
from oncepaid.domain.money import Units
from oncepaid.domain.payments import ObservedPayment
from oncepaid.domain.reversal import reverse
from tests.integration.db.support import DECIDE, START, header, observed
from tests.simulation.daemon import drive
from tests.simulation.memory import ChainSide
from tests.simulation.memory_money import MoneySide
from tests.simulation.memory_rows import JobRow, Tables
from tests.simulation.memory_work import WorkSide
from tests.simulation.orders import memo_of
from tests.simulation.reference import may_be_credited
from tests.simulation.twin import LEASE, verdict_of

PRICE = 1_000
PARTS = st.sampled_from((PRICE, 400, 600, 2 * PRICE))


class OneJob(RuleBasedStateMachine):
    """The job's block may leave the chain and come back; its payments come in parts or twice."""

    @initialize()
    def begin(self) -> None:
        self.tables = Tables(now=START)
        self.chain, self.money = ChainSide(self.tables), MoneySide(self.tables)
        self.work, self.held = WorkSide(self.tables), list[ClaimedJob]()
        self.paid, self.numbers = list[ObservedPayment](), 0
        self.job = JobRow(
            id=JobId(1),
            memo=memo_of(1),
            price=Units(PRICE),
            unique_amount=None,
            pay_to=None,
            expires_at=START + LEASE,
        )
        self.tables.jobs[self.job.id] = self.job
        self.epoch = self.tables.take_over()
        drive(self.chain.start_at(header(0), epoch=self.epoch))

    @rule(parts=st.lists(PARTS, max_size=2))
    def read(self, parts: list[int]) -> None:
        block = header(self.cursor.number + 1)
        for units in parts:
            self.numbers += 1
            self.paid.append(observed(units, self.job.memo, block=block, log_index=self.numbers))
        again = [payment for payment in self.paid if payment.log.block == block.ref]
        drive(self.chain.store_range(self.cursor, block, again, epoch=self.epoch))

    @rule(depth=st.integers(1, 3))
    def fork(self, depth: int) -> None:
        """The blocks come back with the next reads: they are the same ones."""
        to = header(max(0, self.cursor.number - depth))
        gone = [row.id for row in self.tables.live() if row.log.block.number > to.number]
        drive(self.chain.rewind(self.cursor, to, gone, epoch=self.epoch))

    @rule()
    def match(self) -> None:
        drive(self.money.decide_seen(DECIDE, 100))

    @rule()
    def settle(self) -> None:
        matched = drive(self.money.load_matched(JobId(0), 100))
        drive(self.money.credit([payment.id for payment in matched]))

    @rule()
    def reverse(self) -> None:
        drive(self.money.reverse_orphaned(reverse, 100))

    @rule()
    def sweep(self) -> None:
        drive(self.money.reconsider())

    @rule()
    def claim(self) -> None:
        self.held += drive(self.work.claim(1, LEASE))

    @rule(outcome=st.sampled_from((Outcome.SUCCEEDED, Outcome.OVERLOADED, Outcome.REFUSED)))
    def answer(self, outcome: Outcome) -> None:
        if self.held:
            output = {"title": "Crumbs"} if outcome is Outcome.SUCCEEDED else None
            result = AttemptResult(outcome=outcome, message=str(outcome), output=output)
            drive(self.work.record_if_leased(self.held.pop().attempt, result))
        drive(self.work.finish_answered(verdict_of, lambda _: LEASE * 0, 10))

    @rule()
    def lose_the_lease(self) -> None:
        if self.job.lease_until is not None:
            self.tables.now = self.job.lease_until + LEASE

    @property
    def cursor(self) -> BlockRef:
        assert self.tables.cursor is not None
        return self.tables.cursor.block

    @invariant()
    def money_is_what_work_stands_on(self) -> None:
        rows = list(self.tables.payments.values())
        credited = [row.log.units for row in rows if row.status == "credited"]
        unreversed = any(
            row.orphaned_from == "credited" and row.status == "orphaned" and not row.is_reversed
            for row in rows
        )
        if self.job.status == "pending":
            assert not credited
        elif not unreversed and not self.job.is_unbacked:
            assert may_be_credited(PRICE, credited)
        assert self.job.completed <= 1
        open_losses = [loss for loss in self.tables.losses if not loss.is_made_good]
        assert bool(open_losses) == self.job.is_unbacked


TestOneJob = pytest.mark.fault("F16")(OneJob.TestCase)
TestOneJob.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)
