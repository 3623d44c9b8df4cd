"""One payment, and a fork that takes it away, in each phase of its job's life."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from devchain.anvil import Placed, mine, reorg
from devchain.daemon import Daemon
from tests.acceptance.conftest import NewJob, World
from tests.faults.at_rest import until

SAFE_AGE_S: Final = 60
LARGE_USDC: Final = "5.00"
"""Waits until its block is `SAFE_AGE_S` old; the usual price counts as soon as it is in a block."""
LATE_S: Final = 15.0

CHAIN: Final[Mapping[str, object]] = {
    "finality_tags": False,
    "safe_age_s": SAFE_AGE_S,
    # Further back than all scenes of a test together: here nothing is ever final.
    "finalized_age_s": 86_400,
    "poll_interval_s": 0.2,
}
CLAUDE: Final[Mapping[str, object]] = {"concurrency": 1}


class Phase(StrEnum):
    """What the job has come to when its money goes."""

    BEFORE_CREDIT = "before_credit"
    BEFORE_GENERATION = "before_generation"
    DURING_GENERATION = "during_generation"
    AFTER_COMPLETION = "after_completion"

    @property
    def has_begun(self) -> bool:
        """Whether work was begun, so that a result is kept and money can be lost."""
        return self in (Phase.DURING_GENERATION, Phase.AFTER_COMPLETION)


class Fate(StrEnum):
    """What becomes of the paying transaction."""

    DROPPED = "dropped"
    MOVED = "moved"
    """The same transaction is mined again, in another block where the fork has several."""
    REPLACED = "replaced"
    """Another one with its nonce is mined instead, which pays for another job."""


@dataclass(frozen=True, kw_only=True)
class Paid:
    """A job, the transaction that paid it, and the job that one with its nonce may pay instead."""

    job: NewJob
    tx_hash: str
    other: NewJob


class Scene:
    """The steps that scenes are made of. One daemon may play many of them, one after the other."""

    def __init__(self, world: World, daemon: Daemon) -> None:
        self.world = world
        self.daemon = daemon
        self.rpc = world.stack.rpc

    async def play(self, phase: Phase, fate: Fate, depth: int) -> None:
        """Bring a job to a phase, fork the chain, and check what is promised for it."""
        async with asyncio.timeout(90):
            blocker = await self._busy() if phase is Phase.BEFORE_GENERATION else None
            paid = await self.bring_to(phase)
            await mine(self.rpc, depth - 1)
            await self.fork(paid, fate, depth)
            await self._sees_it_go(phase, paid)
            if fate is not Fate.MOVED:
                await self.check_gone(phase, paid)
            self.world.claude.release()
            if blocker is not None:
                await self.done(blocker)
            await self._end(phase, fate, paid)

    async def insert(self, phase: Phase) -> NewJob:
        """Insert a job of the size that the phase needs."""
        job = await self.world.insert_job()
        if phase is Phase.BEFORE_CREDIT:
            await self.world.sql.execute(
                "UPDATE jobs SET price_usdc = $2::text::numeric WHERE id = $1", job.id, LARGE_USDC
            )
            return NewJob(**{**vars(job), "price_units": 5_000_000})
        return job

    async def pay(self, job: NewJob) -> str:
        """Pay a job in a block of its own."""
        tx_hash = await self.world.pay(job)
        await self.rpc.receipt(tx_hash)
        return tx_hash

    async def _busy(self) -> NewJob:
        """Let another job have the only worker, so that the next one stays paid."""
        blocker = await self.world.insert_job()
        self.world.claude.hold()
        await self.pay(blocker)
        await self.daemon.wait_for("ai_processing_start", job_uuid=blocker.uuid)
        return blocker

    async def bring_to(self, phase: Phase) -> Paid:
        """Pay a new job and wait until it has come to a phase."""
        job, other = await self.insert(phase), await self.insert(phase)
        if phase is Phase.DURING_GENERATION:
            self.world.claude.hold()
        tx_hash = await self.pay(job)
        event = {
            Phase.BEFORE_CREDIT: "payment.matched",
            Phase.BEFORE_GENERATION: "payment.credited",
            Phase.DURING_GENERATION: "ai_processing_start",
            Phase.AFTER_COMPLETION: "job.completed",
        }[phase]
        await self.daemon.wait_for(event, job_uuid=job.uuid, timeout_s=LATE_S)
        return Paid(job=job, tx_hash=tx_hash, other=other)

    async def fork(self, paid: Paid, fate: Fate, depth: int) -> None:
        """Fork below the payment; a transfer to somebody else shifts the index of its log."""
        top = depth - 1
        match fate:
            case Fate.DROPPED:
                await reorg(self.rpc, depth)
            case Fate.MOVED:
                raw = await self.rpc.call("eth_getRawTransactionByHash", paid.tx_hash)
                ahead = await self.transfer_between_strangers()
                placed = [
                    Placed(transaction=ahead, block=top),
                    Placed(transaction=raw, block=top),
                ]
                await reorg(self.rpc, depth, placed)
                receipt = await self.rpc.receipt(paid.tx_hash)
                assert receipt["logs"][0]["logIndex"] == "0x1"
            case Fate.REPLACED:
                old = await self.rpc.call("eth_getTransactionByHash", paid.tx_hash)
                calldata = bytes.fromhex(old["input"][2:])
                data = calldata[: -len(paid.job.envelope)] + paid.other.envelope
                fields = {key: old[key] for key in ("from", "to", "nonce", "gas", "gasPrice")}
                new = Placed(transaction={**fields, "data": "0x" + data.hex()}, block=top)
                await reorg(self.rpc, depth, [new])

    async def transfer_between_strangers(self) -> Mapping[str, str]:
        _, one, another = self.world.stack.payers
        data = bytes.fromhex("a9059cbb") + bytes(12) + bytes.fromhex(another.address[2:])
        return {
            "from": one.address,
            "to": self.world.stack.usdc.address,
            "data": "0x" + (data + (1).to_bytes(32, "big")).hex(),
            "gas": hex(150_000),
            "gasPrice": "0x0",
        }

    async def _sees_it_go(self, phase: Phase, paid: Paid) -> None:
        orphaned = await self.daemon.wait_for(
            "payment.orphaned", tx_hash=paid.tx_hash, timeout_s=LATE_S
        )
        assert orphaned["was"] == ("matched" if phase is Phase.BEFORE_CREDIT else "credited")

    async def check_gone(self, phase: Phase, paid: Paid) -> None:
        """Check what is left of a job whose money does not come back by itself."""
        job = paid.job
        if phase.has_begun:
            lost = await self.daemon.wait_for(
                "payment.lost", tx_hash=paid.tx_hash, timeout_s=LATE_S
            )
            assert lost["level"] == "error"
            metrics = await self.daemon.metrics()
            assert metrics["oncepaid_lost_usdc"] == job.price_units / 1e6
        elif phase is Phase.BEFORE_GENERATION:
            await self.daemon.wait_for("job.reopened", job_uuid=job.uuid, timeout_s=LATE_S)
        row = await self.world.job(job)
        kept = {Phase.DURING_GENERATION: "in_progress", Phase.AFTER_COMPLETION: "completed"}
        assert row["status"] == kept.get(phase, "pending")
        assert row["is_unbacked"] is phase.has_begun

    async def _end(self, phase: Phase, fate: Fate, paid: Paid) -> None:
        """Pay again what was not, let the chain grow, and see each job done once."""
        if phase.has_begun:
            await self.done(paid.job)
        if fate is not Fate.MOVED:
            await self.pay(paid.job)
        jobs = [paid.job, paid.other] if fate is Fate.REPLACED else [paid.job]
        if phase is Phase.BEFORE_CREDIT:
            await self.ripen(*jobs)
        await self.all_sound(*jobs)

    async def ripen(self, *jobs: NewJob) -> None:
        """Let the chain's time pass until large payments count, once all of these are there."""

        async def are_matched() -> bool:
            found = await self.world.sql.fetchval(
                "SELECT count(*) FROM payments WHERE status = 'matched' AND job_id = ANY($1)",
                [job.id for job in jobs],
            )
            return bool(found == len(jobs))

        await until(are_matched, "the payments are matched")
        await mine(self.rpc, 1, seconds_later=SAFE_AGE_S + 1)

    async def all_sound(self, *jobs: NewJob) -> None:
        """Wait until each of these is done once and paid once, with nothing lost."""
        for job in jobs:
            await self.done(job)
            await self.until_sound(job)
        assert (await self.daemon.metrics())["oncepaid_lost_usdc"] == 0

    async def until_sound(self, job: NewJob, *, calls: int = 1) -> None:
        """Wait until a job has one result and one payment, and no loss, after so many calls."""

        async def is_sound() -> bool:
            return await self._is_sound(job, calls)

        await until(is_sound, f"{job.uuid} is sound")

    async def done(self, job: NewJob) -> None:
        """Return once the job is completed."""
        await self.daemon.wait_for("job.completed", job_uuid=job.uuid, timeout_s=LATE_S)

    async def _is_sound(self, job: NewJob, calls: int) -> bool:
        row = await self.world.sql.fetchrow(
            """
            SELECT status, is_unbacked, credited_units,
                   (SELECT count(*) FROM payments p
                     WHERE p.job_id = j.id AND p.status = 'credited') AS credits,
                   (SELECT count(*) FROM losses l
                     WHERE l.job_id = j.id AND made_good_at IS NULL) AS open_losses,
                   (SELECT count(*) FROM generation_attempts a WHERE a.job_id = j.id) AS calls
              FROM jobs j WHERE id = $1
            """,
            job.id,
        )
        assert row is not None
        assert row["calls"] <= calls, "Claude was asked too often"
        return tuple(row)[:5] == ("completed", False, job.price_units, 1, 0)
