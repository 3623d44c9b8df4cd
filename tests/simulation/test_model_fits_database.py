"""The ledger in memory is the one in PostgreSQL: the same calls, the same answers and rows.

Without this the simulation would say nothing about the statements that run in production.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Final

import pytest

from db.audit import Note
from db.pool import Database
from oncepaid.domain.chain import Address, BlockRef, Header
from oncepaid.domain.generation import AttemptResult, Outcome
from oncepaid.domain.jobs import AttemptId, JobId
from oncepaid.domain.memo import Reference
from oncepaid.domain.money import Units
from oncepaid.domain.payments import Evidence, MemoSource, ObservedPayment, PaymentId, Signer
from oncepaid.domain.reversal import reverse
from tests.integration.db.support import PAYER, SHOP, START, header, observed
from tests.simulation.memory_rows import JobRow
from tests.simulation.orders import memo_of
from tests.simulation.test_simulation import seeds_of
from tests.simulation.twin import DECIDE, LEASE, Twin, verdict_of

CALLS: Final = 25
A_FEW: Final = 60
MANY: Final = 1_000
PRICE: Final = 1_000
OUTCOMES: Final = (Outcome.SUCCEEDED, Outcome.OVERLOADED, Outcome.TRUNCATED, Outcome.REFUSED)


class Calls:
    """Random calls that make sense where the ledger stands, and some that come too late."""

    def __init__(self, twin: Twin, random: Random) -> None:
        self._twin, self._tables, self._random = twin, twin.tables, random
        self._told: list[ObservedPayment] = []
        self._logs = 0
        self._calls: dict[Callable[[], Awaitable[None]], int] = {
            self.store: 10,
            self.rewind: 4,
            self.repair: 4,
            self.mark: 1,
            self.take_over: 1,
            self.decide: 8,
            self.credit: 8,
            self.reverse: 5,
            self.reconsider: 2,
            self.bind: 3,
            self.settle: 3,
            self.assign: 2,
            self.claim: 4,
            self.record: 3,
            self.finish: 3,
            self.release: 1,
            self.lose_leases: 1,
            self.conflict: 1,
        }

    async def play(self) -> None:
        await self._twin.empty()
        await self._twin.take_over()
        for number in (1, 2, 3):
            await self._twin.add_job(_job(number))
        await self._twin.call("start_at", header(0), epoch=self._tables.leader_epoch - 1)
        await self._twin.call("start_at", header(0), epoch=self._tables.leader_epoch)
        calls, weights = list(self._calls), list(self._calls.values())
        for call in self._random.choices(calls, weights=weights, k=CALLS):
            await call()
            await self.look()

    async def look(self) -> None:
        """What is only read agrees, too."""
        first = self._random.randrange(5)
        match self._random.randrange(4):
            case 0:
                await self._twin.ask("state")
            case 1:
                await self._twin.ask("live_logs", first, first + 3)
            case 2:
                await self._twin.ask("checkpoints", limit=3, below=self._random.choice((None, 3)))
            case _:
                await self._twin.ask("load_matched", JobId(0), 500)

    async def store(self) -> None:
        cursor, fork = self._cursor(), self._random.choice(("", "", "b"))
        length = self._random.randint(1, 3)
        numbers = range(cursor.number + 1, cursor.number + length + 1)
        payments = self._payments([header(number, fork) for number in numbers])
        end = header(numbers[-1], fork)
        stale = self._random.random() < 0.1
        at = replace(cursor, number=cursor.number + 1) if stale else cursor
        epoch = self._epoch()
        await self._twin.call("store_range", at, end, payments, epoch=epoch)
        if self._tables.cursor is not None and self._tables.cursor.block == cursor:
            live = [r.id for r in self._tables.live() if r.log.block.number > cursor.number]
            kept = [row for row in live if self._random.random() < 0.3]
            gone = [row for row in live if row not in kept and self._random.random() < 0.9]
            lists = {"gone": gone, "kept": kept}
            await self._twin.call(
                "store_range", cursor, end, payments, epoch=epoch, ids=tuple(lists), **lists
            )

    async def rewind(self) -> None:
        cursor = self._cursor()
        to = header(self._random.randint(0, cursor.number), self._random.choice(("", "b")))
        gone = self._some_live(above=to.number)
        await self._gone_call("rewind", cursor, to, gone, epoch=self._epoch())

    async def repair(self) -> None:
        cursor = self._cursor()
        last = self._random.randint(0, cursor.number + 1)
        gone = self._some_live(above=-1, share=0.2)
        live = {(r.log.tx_hash, r.log.log_index) for r in self._tables.live()}
        blocks = [header(number) for number in range(1, last + 1)][-2:]
        missing = [
            p for p in self._payments(blocks) if (p.log.tx_hash, p.log.log_index) not in live
        ]
        anchors = [place[0] for place in self._tables.checkpoints.values()]
        anchor = self._random.choice([*anchors, header(last, "c").ref])
        await self._gone_call(
            "repair", last, missing, gone, epoch=self._epoch(), checked=last, anchor=anchor
        )

    async def mark(self) -> None:
        number = self._random.randint(0, self._cursor().number + 1)
        anchors = [place[0] for place in self._tables.checkpoints.values()]
        anchor = self._random.choice([*anchors, header(number, "c").ref])
        await self._twin.call("mark_finalized", header(number), anchor=anchor, epoch=self._epoch())

    async def take_over(self) -> None:
        await self._twin.take_over()

    async def decide(self) -> None:
        await self._twin.call("decide_seen", DECIDE, 1000)

    async def credit(self) -> None:
        matched = [r.id for r in self._tables.payments.values() if r.status == "matched"]
        jobs = {self._tables.payments[row].job_id for row in matched}
        job = self._random.choice([*jobs, None])
        rows = [r for r in matched if job in (None, self._tables.payments[r].job_id)]
        await self._twin.call("credit", payments=rows, ids=("payments",))

    async def reverse(self) -> None:
        await self._twin.call("reverse_orphaned", reverse, self._random.choice((1, 200)))

    async def reconsider(self) -> None:
        await self._twin.call("reconsider")

    async def bind(self) -> None:
        job = JobId(self._random.randint(1, 4))
        nonce = reference_of(self._random.randint(1, 3))
        note = Note(who="a test", action="job.bind")
        await self._twin.call("bind", job, nonce, why="a test", note=note)

    async def settle(self) -> None:
        if rows := [r.id for r in self._tables.payments.values() if r.status == "unmatched"]:
            status = self._random.choice(("refunded", "ignored"))
            await self._twin.settle(self._random.choice(rows), status)

    async def assign(self) -> None:
        if rows := [r.id for r in self._tables.payments.values() if r.status == "unmatched"]:
            job = self._random.choice(list(self._tables.jobs.values()))
            await self._twin.assign(self._random.choice(rows), job)

    async def claim(self) -> None:
        await self._twin.call("claim", self._random.choice((1, 5)), LEASE)

    async def record(self) -> None:
        if self._tables.attempts:
            attempt = AttemptId(self._random.choice(list(self._tables.attempts)))
            outcome = self._random.choice(OUTCOMES)
            output = {"attempt": attempt} if outcome is Outcome.SUCCEEDED else None
            result = AttemptResult(outcome=outcome, message=str(outcome), output=output)
            await self._twin.call("record_if_leased", attempt, result)

    async def finish(self) -> None:
        await self._twin.call("finish_answered", verdict_of, lambda _: timedelta(0), 100)

    async def release(self) -> None:
        attempts = [AttemptId(attempt) for attempt in self._tables.attempts]
        await self._twin.call("release", attempts)

    async def lose_leases(self) -> None:
        await self._twin.let_leases_run_out()

    async def conflict(self) -> None:
        await self._twin.call("declare_conflict", "it is not what it was", epoch=self._epoch())

    async def _gone_call(
        self,
        name: str,
        first: object,
        second: object,
        gone: Sequence[PaymentId],
        **kwargs: object,
    ) -> None:
        names = {"rewind": ("cursor", "to"), "repair": ("last", "missing")}[name]
        given = dict(zip(names, (first, second), strict=True))
        await self._twin.call(name, **given, gone=gone, ids=("gone",), **kwargs)

    def _epoch(self) -> int:
        """Mostly the one that leads."""
        return self._tables.leader_epoch - (self._random.random() < 0.05)

    def _cursor(self) -> BlockRef:
        assert self._tables.cursor is not None
        return self._tables.cursor.block

    def _some_live(self, *, above: int, share: float = 0.7) -> list[PaymentId]:
        rows = [row for row in self._tables.live() if row.log.block.number > above]
        return [row.id for row in rows if self._random.random() < share]

    def _payments(self, blocks: Sequence[Header]) -> list[ObservedPayment]:
        """Some new ones, some told before, and some of their transactions in another block."""
        found = {}
        for block in blocks:
            for _ in range(self._random.choice((0, 1, 1, 2))):
                payment = self._payment(block)
                found[payment.log.block.hash, payment.log.log_index] = payment
        again = {block.hash for block in blocks}
        for payment in self._told:
            if payment.log.block.hash in again and self._random.random() < 0.8:
                found[payment.log.block.hash, payment.log.log_index] = payment
        by_tx = {(p.log.tx_hash, p.log.log_index): p for p in found.values()}
        self._told += by_tx.values()
        return list(by_tx.values())

    def _payment(self, block: Header) -> ObservedPayment:
        number = self._random.randint(1, 4)
        memo = memo_of(number) if self._random.random() < 0.9 else None
        units = self._random.choice((PRICE, PRICE, 2 * PRICE, 400, 600, 40, 950, PRICE + number))
        self._logs += 1
        payment = observed(
            units,
            memo,
            block=block,
            sender=SHOP if self._random.random() < 0.05 else PAYER,
            tx=f"transaction {self._logs}",
            log_index=self._logs,
        )
        if self._random.random() < 0.3:
            pieces = (*payment.evidence, self._nonce(payment.log.sender))
            payment = replace(payment, evidence=pieces)
        if self._told and self._random.random() < 0.2:
            before = self._random.choice(self._told).log
            index = before.log_index + self._random.choice((0, 0, 100))
            log = replace(payment.log, tx_hash=before.tx_hash, log_index=index)
            if self._random.random() < 0.7:
                log = replace(log, sender=before.sender, units=before.units)
            payment = replace(payment, log=log)
        return payment

    def _nonce(self, sender: Address) -> Evidence:
        number = self._random.randint(1, 3)
        signer = Signer.PAYER if sender == PAYER else Signer.THIRD_PARTY
        nonce = reference_of(number)
        return Evidence(memo=None, source=MemoSource.AUTHORIZATION, signer=signer, reference=nonce)


def reference_of(number: int) -> Reference:
    return Reference(issuer=PAYER, value=number.to_bytes(32))


def _job(number: int) -> JobRow:
    return JobRow(
        id=JobId(number),
        memo=memo_of(number),
        # The last one's price is the first one's unique amount.
        price=Units(PRICE + 1 if number == 3 else PRICE),
        unique_amount=Units(PRICE + number),
        pay_to=SHOP if number == 1 else None,
        expires_at=START + timedelta(seconds=6 if number == 3 else 9_000),
    )


async def _play(database: Database, seeds: range) -> None:
    for seed in seeds:
        try:
            await Calls(Twin(database), Random(seed)).play()
        except AssertionError as exc:
            raise AssertionError(f"seed {seed}: {exc}") from exc


async def test_the_same_calls(database: Database, pytestconfig: pytest.Config) -> None:
    """Every call has the same outcome in memory and in PostgreSQL, and leaves the same rows."""
    await _play(database, seeds_of(pytestconfig, range(A_FEW)))


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_many_of_the_same_calls(database: Database, pytestconfig: pytest.Config) -> None:
    await _play(database, seeds_of(pytestconfig, range(A_FEW, A_FEW + MANY)))
