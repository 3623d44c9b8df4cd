"""Payments made while the daemon was down, and a daemon that is killed while it catches up."""

import signal

from devchain.wallet import Payment
from tests.acceptance.conftest import NewJob, World

PAYMENTS = 2_000
PER_BLOCK = 5


async def test_a_backlog_of_2000_payments_is_caught_up(world: World) -> None:
    jobs = await _pay_while_down(world)
    async with world.daemon() as daemon:
        await daemon.wait_for("payment.seen", count=PAYMENTS, timeout_s=60)
        await daemon.wait_for("payment.credited", count=PAYMENTS, timeout_s=60)
        metrics = await daemon.metrics()
        assert await daemon.stop() == 0
    await _assert_each_counts_once(world, jobs)
    fetched = [v for k, v in metrics.items() if "rpc_requests_total" in k and "ByHash" in k]
    assert fetched == [PAYMENTS], "one call to the node a payment"


async def test_a_restart_in_the_middle_of_a_backlog_loses_and_doubles_nothing(world: World) -> None:
    jobs = await _pay_while_down(world)
    # Small ranges, so that the kill falls between two of them.
    chain = {"max_range_blocks": 7}
    for kill in (signal.SIGKILL, signal.SIGTERM):
        async with world.daemon("--role", "listener", chain=chain) as daemon:
            await daemon.wait_for("payment.seen", count=80)
            await daemon.stop(kill)
        stored = await world.sql.fetchval("SELECT count(*) FROM payments")
        assert 0 < stored < PAYMENTS
        assert stored == await _paid_up_to_cursor(world)
    async with world.daemon() as daemon:
        await daemon.wait_for("payment.credited", count=PAYMENTS, timeout_s=60)
    await _assert_each_counts_once(world, jobs)


async def _pay_while_down(world: World) -> list[NewJob]:
    await world.first_start_done()
    jobs = await world.insert_jobs(PAYMENTS)
    await world.stack.payers[0].send_many(
        [
            Payment(to=world.stack.merchant, units=job.price_units, tail=job.envelope)
            for job in jobs
        ],
        per_block=PER_BLOCK,
    )
    return jobs


async def _paid_up_to_cursor(world: World) -> int:
    """Count, by the chain, the transfers to us that the cursor claims to cover."""
    cursor = await world.sql.fetchval("SELECT block_number FROM chain_cursor")
    query = {
        "address": world.stack.usdc.address,
        "fromBlock": "0x0",
        "toBlock": hex(cursor),
        "topics": [None, None, "0x" + "0" * 24 + world.stack.merchant[2:].lower()],
    }
    return len(await world.stack.rpc.call("eth_getLogs", query))


async def _assert_each_counts_once(world: World, jobs: list[NewJob]) -> None:
    rows = await world.sql.fetch("SELECT job_id, status, count(*) AS n FROM payments GROUP BY 1, 2")
    assert {row["job_id"] for row in rows} == {job.id for job in jobs}
    assert {(row["status"], row["n"]) for row in rows} == {("credited", 1)}
    paid = await world.sql.fetchval("SELECT count(*) FROM jobs WHERE paid_at IS NOT NULL")
    assert paid == len(jobs)
