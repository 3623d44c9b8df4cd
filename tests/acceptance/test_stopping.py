"""SIGTERM at bad moments: bounded in time, exit 0, nothing lost."""

import asyncio
import signal
import time

from tests.acceptance.conftest import World

STOP_LIMIT_S = 15.0


async def test_sigterm_in_the_middle_of_a_generation_gives_the_job_back(world: World) -> None:
    await world.first_start_done()
    job = await world.insert_job()
    world.claude.hold()
    async with world.daemon() as daemon:
        await world.pay(job)
        await world.claude.wait_for_requests(1)
        started = time.monotonic()
        assert await daemon.stop(signal.SIGTERM) == 0
        assert time.monotonic() - started < STOP_LIMIT_S
    row = await world.job(job)
    assert (row["status"], row["lease_until"], row["attempts"]) == ("paid", None, 0)
    attempt = await world.sql.fetchrow("SELECT outcome FROM generation_attempts")
    assert attempt is not None
    assert attempt["outcome"] == "cancelled"

    world.claude.release()
    async with world.daemon() as daemon:
        await daemon.wait_for("job.completed", job_uuid=job.uuid)


async def test_a_second_sigterm_changes_nothing(world: World) -> None:
    async with world.daemon() as daemon:
        daemon.send(signal.SIGTERM)
        daemon.send(signal.SIGINT)
        daemon.send(signal.SIGTERM)
        async with asyncio.timeout(STOP_LIMIT_S):
            assert await daemon.process.wait() == 0


async def test_a_killed_worker_is_replaced_when_its_lease_is_over(world: World) -> None:
    await world.first_start_done()
    job = await world.insert_job()
    world.claude.hold()
    async with world.daemon() as daemon:
        await world.pay(job)
        await world.claude.wait_for_requests(1)
        await daemon.stop(signal.SIGKILL)
    assert (await world.job(job))["status"] == "in_progress"
    world.claude.release()
    # Leases run on the database's clock: move the lease, not the clock.
    await world.sql.execute("UPDATE jobs SET lease_until = now() - interval '1 second'")
    async with world.daemon() as daemon:
        await daemon.wait_for("job.completed", job_uuid=job.uuid)
    outcomes = await world.sql.fetch("SELECT outcome FROM generation_attempts ORDER BY id")
    assert [row["outcome"] for row in outcomes] == ["lost", "succeeded"]


async def test_roles_in_two_processes_do_the_whole_job_together(world: World) -> None:
    await world.first_start_done()
    job = await world.insert_job()
    async with world.daemon("--role", "listener"), world.daemon("--role", "worker") as worker:
        await world.pay(job)
        await worker.wait_for("job.completed", job_uuid=job.uuid)
