"""Kills at random moments, under load, on real parts: nothing is lost and nothing doubled."""

import asyncio
import random
import signal

import pytest

from devchain.wallet import Payment
from tests.acceptance.conftest import World, world

__all__ = ["world"]

KILLS = 20
PAYMENTS_A_ROUND = 25
SEED = 20261123


@pytest.mark.slow
async def test_random_kills_under_load(world: World) -> None:
    """Each round pays jobs, kills the daemon somewhere in the middle, and starts it again."""
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    await world.first_start_done()
    for number in range(KILLS):
        jobs = await world.insert_jobs(PAYMENTS_A_ROUND)
        payments = [
            Payment(to=world.stack.merchant, units=job.price_units, tail=job.envelope)
            for job in jobs
        ]
        async with world.daemon() as daemon:
            paying = asyncio.create_task(world.stack.payers[0].send_many(payments, per_block=3))
            event = chance.choice(["payment.seen", "payment.credited", "ai_processing_start"])
            await daemon.wait_for(event, count=chance.randint(1, 5))
            await daemon.stop(signal.SIGKILL)
            await paying
        await assert_sound(world, f"kill {number} after {event}")
    # A killed worker's lease runs on the database's clock: move the leases, not the clock.
    await world.sql.execute("UPDATE jobs SET lease_until = now() WHERE lease_until > now()")
    async with world.daemon() as daemon:
        await daemon.wait_until(
            lambda _: sum(e["event"] == "job.completed" for e in daemon.events) > 0,
            what="the rest finished",
        )
        await until_all_are_done(world)
    await assert_sound(world, "the end")
    statuses = await world.sql.fetch("SELECT status, count(*) FROM jobs GROUP BY status")
    assert [tuple(row) for row in statuses] == [("completed", KILLS * PAYMENTS_A_ROUND)]


async def until_all_are_done(world: World) -> None:
    """Wait until no job is left to do; the rows are the only signal that survives kills."""
    async with asyncio.timeout(120):
        while await world.sql.fetchval("SELECT count(*) FROM jobs WHERE status <> 'completed'"):
            await asyncio.to_thread(lambda: None)


async def assert_sound(world: World, moment: str) -> None:
    """The invariants that can be seen in the tables and on the chain at any time."""
    cursor = await world.sql.fetchval("SELECT block_number FROM chain_cursor")
    query = {
        "address": world.stack.usdc.address,
        "fromBlock": "0x0",
        "toBlock": hex(cursor),
        "topics": [None, None, "0x" + "0" * 24 + world.stack.merchant[2:].lower()],
    }
    logs = await world.stack.rpc.call("eth_getLogs", query)
    on_chain = {(log["transactionHash"], int(log["logIndex"], 16)) for log in logs}
    rows = await world.sql.fetch("SELECT tx_hash, log_index FROM payments")
    assert {(row["tx_hash"], row["log_index"]) for row in rows} == on_chain, moment
    assert len(rows) == len(on_chain), moment
    doubled = await world.sql.fetchval(
        """
        SELECT count(*) FROM (SELECT job_id FROM payments WHERE status = 'credited'
                               GROUP BY job_id HAVING count(*) > 1) AS twice
        """
    )
    unpaid = await world.sql.fetchval(
        """
        SELECT count(*) FROM jobs j WHERE status <> 'pending' AND NOT EXISTS (
            SELECT FROM payments p WHERE p.job_id = j.id AND p.status = 'credited')
        """
    )
    without_row = await world.sql.fetchval(
        """
        SELECT count(*) FROM jobs j WHERE status = 'completed' AND 1 <> (
            SELECT count(*) FROM generation_attempts a
             WHERE a.job_id = j.id AND a.outcome = 'succeeded')
        """
    )
    assert (doubled, unpaid, without_row) == (0, 0, 0), moment
