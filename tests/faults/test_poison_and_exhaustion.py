"""What comes back at each restart, and what a process runs out of: nobody else waits for it."""

import resource
import signal

import pytest

from tests.acceptance.conftest import NewJob, World, world
from tests.faults.at_rest import check_at_rest

__all__ = ["world"]


@pytest.mark.fault("F24")
async def test_a_job_that_its_host_refuses_at_each_restart(world: World) -> None:
    """Its payment is there again after each kill, named, and in nobody's way."""
    await world.first_start_done()
    poisoned = await world.insert_job()
    await world.sql.execute(
        f"ALTER TABLE jobs ADD CONSTRAINT never_paid CHECK (id <> {poisoned.id} OR paid_at IS NULL)"
    )
    await world.pay(poisoned)
    for _ in range(2):
        job = await world.insert_job()
        await world.pay(job)
        async with world.daemon() as daemon:
            refused = await daemon.wait_for("job.refused", job_uuid=poisoned.uuid)
            assert (refused["level"], "never_paid" in refused["problem"]) == ("error", True)
            await daemon.wait_for("job.completed", job_uuid=job.uuid)
            assert await daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    await world.sql.execute("ALTER TABLE jobs DROP CONSTRAINT never_paid")
    async with world.daemon() as daemon:
        await daemon.wait_for("job.completed", job_uuid=poisoned.uuid)
        await check_at_rest(world)


@pytest.mark.fault("F25")
async def test_a_process_without_free_descriptors_waits_for_some(world: World) -> None:
    """All database connections are gone, and no new one can be opened for a while."""
    await world.first_start_done()
    job: NewJob = await world.insert_job()
    async with world.daemon() as daemon:
        pid = daemon.process.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
        await world.sql.execute(
            """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()
            """
        )
        await world.pay(job)
        waiting = await daemon.wait_for("stage.waiting", part="database")
        assert "away" in waiting["reason"] or "Connection" in waiting["reason"]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        await daemon.wait_for("job.completed", job_uuid=job.uuid)
        await check_at_rest(world)
