"""Several processes on one database: one of them reads the chain, all of them work."""

import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import pytest

from devchain.daemon import Daemon
from devchain.processes import LOOPBACK
from devchain.wallet import Payment
from tests.acceptance.conftest import World, world
from tests.fakes.database_proxy import start_database_proxy
from tests.fakes.tcp_proxy import start_tcp_proxy
from tests.faults.at_rest import check_at_rest, cursor_of, until, until_done

__all__ = ["world"]

CHAIN: Final = {"poll_interval_s": 0.2}
TAKE_OVER_S: Final = 10.0
JOBS: Final = 30
WORKERS: Final = 3


@asynccontextmanager
async def pair(world: World) -> AsyncIterator[tuple[Daemon, Daemon]]:
    """Two whole daemons; the first one leads, the second one stands by."""
    async with world.daemon(chain=CHAIN) as first:
        await first.wait_for("leader.taken")
        async with world.daemon(chain=CHAIN) as second:
            assert await leads(first)
            assert not await leads(second)
            yield first, second


async def leads(daemon: Daemon) -> bool:
    return (await daemon.metrics())["oncepaid_listener_is_leader"] == 1


async def is_paid_and_done(world: World, by: Daemon) -> None:
    """Pay a job now and see that daemon do it."""
    job = await world.insert_job()
    await world.pay(job)
    await by.wait_for("job.completed", job_uuid=job.uuid)


async def rows_of(world: World, tx_hash: str) -> int:
    found = await world.sql.fetchval("SELECT count(*) FROM payments WHERE tx_hash = $1", tx_hash)
    return int(found)


@pytest.mark.fault("F21")
async def test_the_lead_is_handed_over(world: World) -> None:
    """At SIGTERM at once; after SIGKILL as soon as the next one looks."""
    async with pair(world) as (first, second):
        assert await first.stop(signal.SIGTERM) == 0
        stopped_at = time.monotonic()
        taken = await second.wait_for("leader.taken")
        assert time.monotonic() - stopped_at < 2
        assert (taken["because"], taken["epoch"]) == ("gone", 2)
        await is_paid_and_done(world, second)
        async with world.daemon(chain=CHAIN) as third:
            assert not await leads(third)
            await second.stop(signal.SIGKILL)
            # Paid while nobody leads.
            job = await world.insert_job()
            killed_at = time.monotonic()
            tx_hash = await world.pay(job)
            await third.wait_for("leader.taken", timeout_s=TAKE_OVER_S, epoch=3)
            assert time.monotonic() - killed_at < TAKE_OVER_S
            await third.wait_for("job.completed", job_uuid=job.uuid)
            await check_at_rest(world)
    assert await rows_of(world, tx_hash) == 1


@pytest.mark.fault("F21")
async def test_a_leader_that_slept_writes_nothing(world: World) -> None:
    """Its lease is ended here by hand; the slow test waits for it."""
    async with pair(world) as (first, second):
        await sleeping_leader(world, first, second, lease_over=True)


@pytest.mark.slow
@pytest.mark.fault("F21")
async def test_a_leader_that_sleeps_for_long(world: World) -> None:
    """Twice, with the other one asleep the second time: who slept may lead again later."""
    async with pair(world) as (first, second):
        await sleeping_leader(world, first, second, lease_over=False)
        await sleeping_leader(world, second, first, lease_over=False)


async def sleeping_leader(world: World, leader: Daemon, other: Daemon, *, lease_over: bool) -> None:
    """Stop the leader's process, let the other one take over and work, and wake it up again."""
    epoch = await world.sql.fetchval("SELECT epoch FROM chain_leader")
    leader.send(signal.SIGSTOP)
    slept_at = time.monotonic()
    try:
        job = await world.insert_job()
        tx_hash = await world.pay(job)
        if lease_over:
            await world.sql.execute("UPDATE chain_leader SET lease_until = now()")
        taken = await other.wait_for("leader.taken", timeout_s=TAKE_OVER_S, epoch=epoch + 1)
        assert taken["because"] == "lease over"
        assert time.monotonic() - slept_at < TAKE_OVER_S
        await other.wait_for("job.completed", job_uuid=job.uuid)
        cursor_epoch = await world.sql.fetchval("SELECT epoch FROM chain_cursor")
        assert cursor_epoch == epoch + 1
    finally:
        leader.send(signal.SIGCONT)
    await leader.wait_for("leader.lost", epoch=epoch)
    assert not await leads(leader)
    later = await world.insert_job()
    later_tx = await world.pay(later)
    await until_done(world, later)
    assert [await rows_of(world, tx) for tx in (tx_hash, later_tx)] == [1, 1]
    seen = [e["tx_hash"] for e in leader.events if e["event"] == "payment.seen"]
    assert later_tx not in seen
    assert tx_hash not in seen
    await check_at_rest(world)


@pytest.mark.slow
@pytest.mark.fault("F21")
async def test_a_write_that_comes_too_late(world: World) -> None:
    """It hung on its way to the database while another daemon took over, which then stood still.

    Nothing but the epoch tells that it is too late: the cursor is where it was.
    """
    async with (
        start_database_proxy(world.database_url) as late,
        start_tcp_proxy(world.stack.anvil.port) as blind,
        world.daemon(chain=CHAIN, database={"url": late.url}) as first,
    ):
        chain = {"http_urls": [f"http://{LOOPBACK}:{blind.port}"], "ws_urls": [], **CHAIN}
        async with world.daemon(chain=chain) as second:
            await first.wait_for("leader.taken")
            cursor, asked = await cursor_of(world), await log_requests(first)
            late.black_hole()
            blind.refuse()
            job = await world.insert_job()
            tx_hash = await world.pay(job)

            async def has_read() -> bool:
                return await log_requests(first) > asked

            await until(has_read, "the first daemon has the payment in its hands")
            await world.sql.execute("UPDATE chain_leader SET lease_until = now()")
            await second.wait_for("leader.taken", timeout_s=TAKE_OVER_S)
            late.restore()
            await first.wait_for("leader.lost")
            refused = await first.wait_for("stage.waiting", stage="listen")
            assert refused["part"] == "lead"
            assert (await cursor_of(world), await rows_of(world, tx_hash)) == (cursor, 0)
            blind.restore()
            await until_done(world, job)
            await check_at_rest(world)
    assert await rows_of(world, tx_hash) == 1


async def log_requests(daemon: Daemon) -> float:
    """Return how often a daemon has asked a node for logs."""
    return sum(
        value
        for name, value in (await daemon.metrics()).items()
        if name.startswith("oncepaid_rpc_requests_total") and "eth_getLogs" in name
    )


@pytest.mark.slow
@pytest.mark.fault("F21")
async def test_workers_share_the_jobs(world: World) -> None:
    """Each job is done once, by one of them, and none of them does all."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(world.daemon("--role", "listener", chain=CHAIN))
        few = {"concurrency": 4}
        daemons = [
            await stack.enter_async_context(
                world.daemon("--role", "worker", chain=CHAIN, claude=few)
            )
            for _ in range(WORKERS)
        ]
        jobs = await world.insert_jobs(JOBS)
        await world.claude.delay_all(0.2)
        payments = [
            Payment(to=world.stack.merchant, units=job.price_units, tail=job.envelope)
            for job in jobs
        ]
        await world.stack.payers[0].send_many(payments, per_block=10)
        await until_done(world, *jobs)
        await check_at_rest(world)
        counts = [Counter(e["event"] for e in daemon.events) for daemon in daemons]
    assert sum(count["job.completed"] for count in counts) == JOBS
    assert sum(count["ai_processing_start"] for count in counts) == JOBS
    assert max(count["ai_processing_start"] for count in counts) < JOBS, counts
    assert len(await world.claude.requests()) == JOBS
    attempts = await world.sql.fetch("SELECT job_id, outcome FROM generation_attempts")
    assert Counter(row["job_id"] for row in attempts) == Counter(job.id for job in jobs)
    assert {row["outcome"] for row in attempts} == {"succeeded"}
