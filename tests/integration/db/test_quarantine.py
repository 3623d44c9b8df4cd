"""An amount never pays another job than the one that it was told for, whatever happens between.

Random hosts, payers and sweeps, in the chain's time. A payer may pay until his job's latest expiry,
the grace and the quarantine are over, and his payment may be decided much later still.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Final

import asyncpg
import pytest

from db.jobs import JobStore
from db.payments import PaymentStore
from db.pool import Database
from db.ranges import RangeStore
from oncepaid.domain.chain import BlockHash, Header
from tests.integration.db.support import (
    CHAIN,
    DECIDE,
    EPOCH,
    SHOP,
    START,
    add_job,
    add_skill,
    execute,
    first_cursor,
    hash_of,
    observed,
    rows,
)

GRACE: Final = timedelta(hours=1)
QUARANTINE: Final = timedelta(hours=3)
AMOUNTS: Final = (1_000_001, 1_000_002)
PAYEES: Final = (None, SHOP)
STEPS: Final = 60
SEEDS: Final = 25
MOMENTS: Final = tuple(timedelta(minutes=m) for m in (0, 5, 61, 200, 241, 600))


@dataclass(kw_only=True)
class Told:
    """What a payer was told; `until` is when the last of those who were told may still pay.

    `pay_to` None: at any of our addresses. All of them pay the same one here.
    """

    job: int
    amount: int
    pay_to: str | None
    until: datetime


class Shop:
    """A host that names the amounts of its jobs, from as few as make them meet."""

    def __init__(self, database: Database, skill: int, random: Random) -> None:
        self._database = database
        self._skill = skill
        self._random = random
        self._now = START - timedelta(days=400)
        self._block = 0
        self._told: list[Told] = []
        self._meant: dict[str, Told] = {}
        self._steps: dict[Callable[[], Awaitable[None]], int] = {
            self.order: 8,
            self.pay: 8,
            self.wait: 6,
            self.decide: 6,
            self.release: 6,
            self.forget: 2,
            self.move_expiry: 3,
            self.rename: 4,
            self.close: 2,
            self.open_again: 2,
            self.rescan: 2,
        }

    async def play(self) -> None:
        steps, weights = list(self._steps), list(self._steps.values())
        for step in self._random.choices(steps, weights=weights, k=STEPS):
            await step()
        await self.decide()
        await self.check()

    async def order(self) -> None:
        amount, payee = self._random.choice(AMOUNTS), self._random.choice(PAYEES)
        expiry = self._now + self._random.choice(MOMENTS)
        try:
            job = await add_job(
                self._database,
                skill_id=self._skill,
                unique_amount_units=amount,
                pay_to=payee,
                expires_at=expiry,
            )
        except asyncpg.UniqueViolationError:
            return
        self._tell(job.id, amount, payee, expiry + GRACE + QUARANTINE)

    def _tell(self, job: int, amount: int, payee: str | None, until: datetime) -> None:
        """Two jobs may wait for one amount at addresses that overlap: then it pays neither."""
        theirs = [
            told
            for told in self._told
            if (told.amount, told.pay_to) == (amount, payee)
            and told.until >= self._now
            and told.job != job
        ]
        assert not theirs, f"{amount} was given away while {theirs} may still pay"
        self._told.append(Told(job=job, amount=amount, pay_to=payee, until=until))

    async def pay(self) -> None:
        """Somebody pays as he was told, in time or in the quarantine."""
        open_ = [told for told in self._told if told.until >= self._now]
        if open_:
            await self._mine(self._random.choice(open_))

    async def _mine(self, told: Told) -> None:
        cursor = await first_cursor(self._database)
        self._block = cursor.number + 1
        header = Header(
            number=self._block,
            hash=BlockHash(hash_of(f"block {self._block}")),
            parent_hash=cursor.hash,
            timestamp_ms=int(self._now.timestamp() * 1000),
        )
        paid = observed(told.amount, block=header)
        self._meant[paid.log.tx_hash] = told
        ranges = RangeStore(self._database, CHAIN)
        moved = await ranges.store_range(cursor, header, [paid], epoch=EPOCH)
        assert moved.moved

    async def wait(self) -> None:
        """The chain goes on, and what was is final."""
        self._now += self._random.choice(MOMENTS)
        await first_cursor(self._database)
        await execute(
            self._database,
            "UPDATE chain_cursor SET block_time = $1, finalized_number = block_number",
            self._now,
        )

    async def decide(self) -> None:
        await PaymentStore(self._database, CHAIN).decide_seen(DECIDE, 1000)

    async def release(self) -> None:
        await JobStore(self._database).release_amounts(CHAIN, GRACE, QUARANTINE)
        await PaymentStore(self._database, CHAIN).reconsider()

    async def forget(self) -> None:
        """The host deletes a job that nobody paid."""
        await execute(
            self._database,
            "DELETE FROM jobs WHERE id = $1"
            " AND NOT EXISTS (SELECT FROM payments WHERE job_id = jobs.id)",
            self._any_job(),
        )

    async def move_expiry(self) -> None:
        job, expiry = self._any_job(), self._now + self._random.choice(MOMENTS)
        changed = await rows(
            self._database,
            "UPDATE jobs SET expires_at = $2 WHERE id = $1 RETURNING amount_is_held",
            *(job, expiry),
        )
        for told in self._told:
            # A job whose amount is free again is told without it.
            if changed and changed[0]["amount_is_held"] and told.job == job:
                told.until = max(told.until, expiry + GRACE + QUARANTINE)

    async def rename(self) -> None:
        """The host gives a job another amount and recipient; who was told the old ones may pay."""
        job = self._any_job()
        amount, payee = self._random.choice(AMOUNTS), self._random.choice(PAYEES)
        try:
            changed = await rows(
                self._database,
                "UPDATE jobs SET unique_amount_units = $2, pay_to = $3"
                " WHERE id = $1 AND amount_is_held RETURNING id",
                *(job, amount, payee),
            )
        except asyncpg.UniqueViolationError:
            return
        if changed:
            self._tell(job, amount, payee, max(t.until for t in self._told if t.job == job))

    async def close(self) -> None:
        await execute(
            self._database, "UPDATE jobs SET status = 'refunded' WHERE id = $1", self._any_job()
        )

    async def open_again(self) -> None:
        """A host opens a job again; what was one too many is decided anew."""
        await execute(
            self._database, "UPDATE jobs SET status = 'pending' WHERE id = $1", self._any_job()
        )

    async def rescan(self) -> None:
        """Payments are read as if for the first time."""
        await execute(
            self._database,
            "UPDATE payments SET status = 'seen', job_id = NULL, reason = NULL, matched_at = NULL"
            " WHERE status = 'unmatched' AND reason IN ('late', 'no_memo', 'duplicate')",
        )

    async def check(self) -> None:
        found = await rows(self._database, "SELECT tx_hash, job_id, reason FROM payments")
        for payment in found:
            told = self._meant[payment["tx_hash"]]
            assert payment["job_id"] in (None, told.job), f"{told} paid {payment}"

    def _any_job(self) -> int:
        return self._random.choice(self._told).job if self._told else 0


@pytest.mark.timeout(120)
async def test_amounts_never_match_across_quarantine(database: Database) -> None:
    skill = await add_skill(database)
    for seed in range(SEEDS):
        await execute(database, "TRUNCATE jobs, payments, chain_cursor, retired_amounts CASCADE")
        try:
            await Shop(database, skill, Random(seed)).play()
        except AssertionError as exc:
            raise AssertionError(f"seed {seed}: {exc}") from exc
