"""Kills at random moments, under load and reorganisations: nothing is lost and nothing doubled."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from devchain.anvil import reorg
from devchain.daemon import Daemon
from devchain.processes import DevToolError
from devchain.stack import start_stack
from tests.fakes.claude_server import start_claude_server
from tests.faults.cast import Cast, Job
from tests.faults.forking import Zygote, zygote
from tests.faults.soundness import assert_at_rest

__all__ = ["zygote"]

SEED = 20261123
PAYMENTS_AT_ONCE = 4
MOST_UNFINISHED = 80
"""A chain that runs away from a slow machine shows nothing more."""
REORG_EVERY = 12
MAX_DEPTH = 6
CHECK_EVERY = 10
LONGEST_LIFE_S = 1.5
EVENT_TIMEOUT_S = 2.0
EVENTS = (
    *("payment.seen", "payment.credited", "ai_processing_start", "ai_processing_complete"),
    *("payment.orphaned", "chain.reorg", "leader.taken", "daemon.ready"),
)


@dataclass(kw_only=True)
class Customers:
    """They pay one job after the other, and pay again what a reorganisation took from them."""

    cast: Cast
    chance: random.Random
    jobs: int = 0
    reorgs: int = 0
    still: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by who wants no block to be mined."""
    _paid: list[tuple[int, Job]] = field(default_factory=list)

    async def pay_for_ever(self) -> None:
        while True:
            async with self.still:
                is_crowded = await self._unfinished() > MOST_UNFINISHED
                count = 0 if is_crowded else PAYMENTS_AT_ONCE
                for job in await self.cast.insert_jobs(count):
                    await self._pay(job)
                    self.jobs += 1
                if self.chance.randrange(REORG_EVERY) == 0:
                    await self._reorg(self.chance.randint(1, MAX_DEPTH))
            # Half of the time nothing happens: a daemon must also catch up.
            await asyncio.sleep(self.chance.uniform(0, 0.4))

    async def _unfinished(self) -> int:
        query = "SELECT count(*) FROM jobs WHERE status <> 'completed'"
        return int(await self.cast.sql.fetchval(query))

    async def _pay(self, job: Job) -> None:
        tx_hash = await self.cast.pay(job)
        receipt = await self.cast.stack.rpc.receipt(tx_hash)
        self._paid = [*self._paid[-2 * MAX_DEPTH :], (int(receipt["blockNumber"], 16), job)]

    async def _reorg(self, depth: int) -> None:
        """With the same nonces, payments made again in their order are the same transactions."""
        head = int(await self.cast.stack.rpc.call("eth_blockNumber"), 16)
        gone = [job for number, job in self._paid if number > head - depth]
        self._paid = [(number, job) for number, job in self._paid if number <= head - depth]
        await reorg(self.cast.stack.rpc, depth)
        self.reorgs += 1
        if self.chance.random() < 0.5:
            self.chance.shuffle(gone)
        for job in gone:
            await self._pay(job)


@asynccontextmanager
async def _paying(customers: Customers) -> AsyncIterator[None]:
    paying = asyncio.create_task(customers.pay_for_ever(), name="customers")
    try:
        yield
    finally:
        async with customers.still:
            paying.cancel()
        with suppress(asyncio.CancelledError):
            await paying


async def _some_moment(daemon: Daemon, chance: random.Random) -> str:
    """Wait for a random moment of a daemon's life; returns which it was."""
    match chance.choice(["event", "event", "starting", "process"]):
        case "event":
            event, delay_s = chance.choice(EVENTS), chance.choice([0.0, chance.uniform(0, 0.05)])
            try:
                await daemon.wait_for(event, count=chance.randint(1, 3), timeout_s=EVENT_TIMEOUT_S)
            except DevToolError:  # there may be no other, without a payment
                event = f"no {event}"
        case "starting":
            event, delay_s = "daemon.starting", chance.uniform(0.05, LONGEST_LIFE_S)
            await daemon.wait_for(event)
        case _:
            event, delay_s = "its start", chance.uniform(0.05, LONGEST_LIFE_S)
    await asyncio.sleep(delay_s)
    return f"{delay_s:.3f} s after {event}"


async def _kill_again_and_again(cast: Cast, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    customers = Customers(cast=cast, chance=random.Random(seed + 1))
    async with cast.one_daemon(cast.request()) as daemon:
        await daemon.wait_for("daemon.ready")
    async with _paying(customers):
        for number in range(kills):
            async with cast.one_daemon(cast.request()) as daemon:
                moment = f"kill {number} {await _some_moment(daemon, chance)}"
                assert daemon.process.returncode is None, (moment, daemon.other_output)
                daemon.process.kill()
            if number % CHECK_EVERY == CHECK_EVERY - 1:
                async with customers.still:
                    await cast.assert_sound(moment)
                await cast.end_leases()
    await cast.end_leases()
    print(f"seed {seed}: {kills} kills, {customers.jobs} jobs, {customers.reorgs} reorgs")
    async with cast.one_daemon(cast.request()) as daemon:
        await daemon.wait_for("daemon.ready")
        await cast.until_head()
        await cast.until_rest()
        assert await daemon.stop() == 0
    await assert_at_rest(cast.sql)
    await cast.assert_sound("the end")
    states = await cast.sql.fetch(
        "SELECT status, is_unbacked, count(*) FROM jobs GROUP BY status, is_unbacked"
    )
    assert [tuple(row) for row in states] == [("completed", False, customers.jobs)]


@asynccontextmanager
async def _cast(zygote: Zygote, url: str, folder: Path) -> AsyncIterator[Cast]:
    async with (
        start_stack() as stack,
        start_claude_server() as claude,
        Cast(zygote, stack, claude, url, folder).alone() as cast,
    ):
        yield cast


@pytest.mark.fault("F1")
async def test_some_kills(zygote: Zygote, migrated_url: str, tmp_path: Path) -> None:
    """A slice."""
    async with _cast(zygote, migrated_url, tmp_path) as cast:
        await _kill_again_and_again(cast, 5, SEED)


@pytest.mark.slow
@pytest.mark.fault("F1")
@pytest.mark.parametrize("seed", [SEED + 100, SEED + 200])
async def test_random_kills_under_load(
    zygote: Zygote, migrated_url: str, tmp_path: Path, seed: int
) -> None:
    """The campaign: 2 x 110 kills."""
    async with _cast(zygote, migrated_url, tmp_path) as cast:
        await _kill_again_and_again(cast, 110, seed)
