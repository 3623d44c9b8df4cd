"""Calls that hang, workers that stop or die, leases that move on, a database that goes away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
from structlog.testing import capture_logs

from db.pool import Database
from oncepaid.domain.errors import DatabaseUnavailable
from oncepaid.health import Health
from oncepaid.loops import Bell, Driver
from processors import generator as generator_module
from processors.claude import Claude
from processors.generator import MAX_LOST_ATTEMPTS
from tests.fakes.claude_server import ClaudeServer, error, message, prompts_of
from tests.fakes.database_proxy import DatabaseProxy, start_database_proxy
from tests.integration.processors.rig import (
    WAIT_S,
    Limits,
    Rig,
    add_paid_job,
    attempt_rows,
    expire_lease,
    job_row,
    make_due,
    outcomes_of,
)

HEARTBEAT_S: Final = 0.01
GOOD: Final = {"ok": True}
LATE: Final = {"ok": False}
TRIES: Final = 5
"""More connections than the driver tries within one call: so many show that it was called again."""


@asynccontextmanager
async def in_background(generator: generator_module.Generator) -> AsyncIterator[None]:
    driving = Driver(Health(())).drive(
        "leases", generator.keep_leases, bell=Bell(), poll_s=HEARTBEAT_S
    )
    task = asyncio.create_task(driving)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def quick_storing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator_module, "STORE_RETRY_S", 0.01)


@pytest.fixture
async def proxy(migrated_url: str) -> AsyncIterator[DatabaseProxy]:
    async with start_database_proxy(migrated_url) as running:
        yield running


@pytest.fixture
async def far_database(proxy: DatabaseProxy) -> AsyncIterator[Database]:
    """The test's database, reached through a proxy that can be cut."""
    pool = await Database.connect(proxy.url, size=5)
    yield pool
    await pool.close()


async def arrived(server: ClaudeServer, count: int) -> None:
    async with asyncio.timeout(WAIT_S):
        await server.wait_for(arrived=count)


async def abandoned(server: ClaudeServer, count: int) -> None:
    async with asyncio.timeout(WAIT_S):
        await server.wait_for(abandoned=count)


async def test_the_attempt_is_written_before_the_call(
    database: Database, rig: Rig, server: ClaudeServer, skill: int
) -> None:
    job = await add_paid_job(database, skill=skill)
    server.hold()
    await rig.generator.step()
    await arrived(server, 1)
    (attempt,) = await attempt_rows(database, job)
    assert (attempt["outcome"], attempt["finished_at"]) == (None, None)
    assert (await job_row(database, job)).status == "in_progress"
    await rig.finisher.step()
    assert (await job_row(database, job)).status == "in_progress", "nothing is answered yet"


async def test_stop_gives_jobs_back(
    database: Database, rig: Rig, server: ClaudeServer, skill: int
) -> None:
    jobs = [await add_paid_job(database, skill=skill) for _ in range(3)]
    server.hold()
    await rig.generator.step()
    await arrived(server, 3)
    async with asyncio.timeout(WAIT_S):
        await rig.generator.stop()
    await abandoned(server, 3)
    for job in jobs:
        row = await job_row(database, job)
        assert (row.status, row.attempts) == ("paid", 0)
        assert row.due_at is None, "another worker may take it at once"
        assert await outcomes_of(database, job) == ["cancelled"]
    await rig.ended(3)
    server.release()
    await rig.round(3)
    assert [(await job_row(database, job)).status for job in jobs] == ["completed"] * 3
    await rig.generator.stop()
    await rig.generator.stop()


async def test_stop_without_work(rig: Rig) -> None:
    await rig.generator.stop()


async def test_stop_while_the_database_is_away(
    far_database: Database,
    database: Database,
    proxy: DatabaseProxy,
    claude: Claude,
    server: ClaudeServer,
    skill: int,
) -> None:
    rig = Rig(far_database, claude)
    job = await add_paid_job(database, skill=skill)
    server.hold()
    await rig.generator.step()
    await arrived(server, 1)
    proxy.cut()
    with capture_logs() as logs:
        async with asyncio.timeout(WAIT_S):
            await rig.generator.stop()
    assert "generation.release_failed" in {entry["event"] for entry in logs}
    await expire_lease(database, job)
    server.release()
    other = Rig(database, claude)
    await other.round()
    assert (await job_row(database, job)).status == "completed"
    assert await outcomes_of(database, job) == ["lost", "succeeded"]


async def test_a_stolen_lease_drops_the_result(
    database: Database, claude: Claude, server: ClaudeServer, skill: int
) -> None:
    """The first worker's call outlives its lease; a second one does the job meanwhile."""
    first, second = Rig(database, claude), Rig(database, claude)
    job = await add_paid_job(database, skill=skill)
    server.script(message(LATE), message(GOOD))
    server.hold()
    await first.generator.step()
    await arrived(server, 1)
    await expire_lease(database, job)
    await second.generator.step()
    await arrived(server, 2)
    with capture_logs() as logs:
        server.release()
        await first.ended()
        await second.ended()
    assert [e["event"] for e in logs].count("generation.result_too_late") == 1
    await first.finisher.step()
    await second.finisher.step()
    row = await job_row(database, job)
    assert (row.status, row.output, row.attempts) == ("completed", GOOD, 1)
    assert await outcomes_of(database, job) == ["lost", "succeeded"]


async def test_an_old_answer_does_not_touch_a_job_given_back(
    database: Database, claude: Claude, server: ClaudeServer, skill: int
) -> None:
    first, second = Rig(database, claude), Rig(database, claude)
    job = await add_paid_job(database, skill=skill)
    server.hold()
    server.script(message(LATE))
    await first.generator.step()
    await arrived(server, 1)
    await expire_lease(database, job)
    server.script(message(GOOD))
    await second.generator.step()
    await arrived(server, 2)
    # The job is `paid` again, under nobody's lease, when the first worker hears its answer.
    await second.generator.stop()
    server.release()
    await first.ended()
    await first.finisher.step()
    assert (await job_row(database, job)).status == "paid"
    await second.ended()
    await second.round()
    row = await job_row(database, job)
    assert (row.status, row.output) == ("completed", GOOD)
    assert await outcomes_of(database, job) == ["lost", "cancelled", "succeeded"]


async def test_a_lost_lease_cuts_the_call_off(
    database: Database, rig: Rig, server: ClaudeServer, skill: int
) -> None:
    job = await add_paid_job(database, skill=skill)
    server.hold()
    await rig.generator.step()
    await arrived(server, 1)
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE jobs SET status = 'disputed', attempt_id = NULL, lease_until = NULL"
        )
    async with in_background(rig.generator):
        await abandoned(server, 1)
        await rig.ended()
    assert (await job_row(database, job)).status == "disputed"


async def test_heartbeats_keep_the_lease(
    database: Database, rig: Rig, server: ClaudeServer, skill: int
) -> None:
    job = await add_paid_job(database, skill=skill)
    server.hold()
    await rig.generator.step()
    await arrived(server, 1)
    await expire_lease(database, job)
    async with database.connection() as connection, in_background(rig.generator):
        async with asyncio.timeout(WAIT_S):
            while not await connection.fetchval("SELECT bool_and(lease_until > now()) FROM jobs"):
                pass
    await rig.generator.step()
    assert len(server.requests) == 1, "nobody else may claim it"


async def test_heartbeats_survive_a_database_that_is_away(
    far_database: Database,
    database: Database,
    proxy: DatabaseProxy,
    claude: Claude,
    server: ClaudeServer,
    skill: int,
) -> None:
    rig = Rig(far_database, claude)
    job = await add_paid_job(database, skill=skill)
    server.hold()
    await rig.generator.step()
    await arrived(server, 1)
    async with in_background(rig.generator), asyncio.timeout(WAIT_S):
        proxy.cut()
        await proxy.refused(TRIES)
        proxy.restore()
        await expire_lease(database, job)
        async with database.connection() as connection:
            while not await connection.fetchval("SELECT bool_and(lease_until > now()) FROM jobs"):
                pass
    server.release()
    await rig.ended()
    await rig.finisher.step()
    assert (await job_row(database, job)).status == "completed"


@pytest.mark.usefixtures("quick_storing")
async def test_an_answer_is_stored_when_the_database_is_back(
    far_database: Database,
    database: Database,
    proxy: DatabaseProxy,
    claude: Claude,
    server: ClaudeServer,
    skill: int,
) -> None:
    rig = Rig(far_database, claude)
    job = await add_paid_job(database, skill=skill)
    server.hold()
    await rig.generator.step()
    await arrived(server, 1)
    proxy.cut()
    with capture_logs() as logs:
        server.release()
        async with asyncio.timeout(WAIT_S):
            await proxy.refused(TRIES)
        with pytest.raises(DatabaseUnavailable):
            await rig.finisher.step()
        proxy.restore()
        await rig.ended()
    assert "generation.store_failed" in {entry["event"] for entry in logs}
    await rig.finisher.step()
    assert (await job_row(database, job)).status == "completed"
    assert await outcomes_of(database, job) == ["succeeded"]
    assert len(server.requests) == 1, "a paid answer is not asked for twice"


async def test_what_the_database_refuses_ends_as_an_outcome(
    database: Database, rig: Rig, server: ClaudeServer, skill: int
) -> None:
    """A bug of ours, played by a constraint: the job must not hang until its lease runs out."""
    async with database.connection() as connection:
        await connection.execute("ALTER TABLE generation_attempts ADD CHECK (output_data IS NULL)")
    job = await add_paid_job(database, skill=skill)
    with capture_logs() as logs:
        await rig.round()
    assert "generation.bug" in {entry["event"] for entry in logs}
    assert await outcomes_of(database, job) == ["internal_error"]
    assert (await job_row(database, job)).status == "paid"
    (attempt,) = await attempt_rows(database, job)
    assert attempt["cost_usd"] > 0, "what was spent stays counted"


async def test_a_job_that_kills_workers_is_given_up(
    database: Database, claude: Claude, server: ClaudeServer, skill: int
) -> None:
    job = await add_paid_job(database, skill=skill)
    server.hold()
    workers = [Rig(database, claude) for _ in range(MAX_LOST_ATTEMPTS + 2)]
    for count, worker in enumerate(workers[:-1], start=1):
        await worker.generator.step()
        await arrived(server, count)
        await expire_lease(database, job)
    await workers[-1].round()
    row = await job_row(database, job)
    assert (row.status, row.attempts) == ("failed", 1)
    assert await outcomes_of(database, job) == ["lost"] * (MAX_LOST_ATTEMPTS + 2)
    assert len(server.requests) == MAX_LOST_ATTEMPTS + 1
    for worker in workers:
        await worker.generator.stop()


async def test_concurrency_is_bounded(
    database: Database, claude: Claude, server: ClaudeServer, skill: int
) -> None:
    rig = Rig(database, claude, limits=Limits(concurrency=3))
    for number in range(10):
        await add_paid_job(database, skill=skill, text=f"job {number}")
    server.hold()
    for _ in range(5):
        await rig.generator.step()
    await arrived(server, 3)
    assert server.in_flight == 3
    server.release()
    ended = 0
    while ended < 10:
        await rig.ended()
        ended += 1
        await rig.generator.step()
    assert server.most_in_flight == 3
    assert sorted(prompts_of(server.requests)) == [f"job {number}" for number in range(10)]


async def test_two_workers_do_each_job_once(
    database: Database, claude: Claude, server: ClaudeServer, skill: int
) -> None:
    rigs = [Rig(database, claude, limits=Limits(concurrency=10)) for _ in range(2)]
    jobs = [await add_paid_job(database, skill=skill, text=f"job {n}") for n in range(20)]
    async with asyncio.TaskGroup() as group:
        for rig in rigs:
            group.create_task(rig.generator.step())
    for rig in rigs:
        await rig.ended(10)
    async with asyncio.TaskGroup() as group:
        for rig in rigs:
            group.create_task(rig.finisher.step())
    assert {(await job_row(database, job)).status for job in jobs} == {"completed"}
    assert len(server.requests) == 20


async def test_a_failure_does_not_hold_up_others(
    database: Database, rig: Rig, server: ClaudeServer, skill: int
) -> None:
    """The oldest job waits for its time; younger ones are done meanwhile."""
    first = await add_paid_job(database, skill=skill)
    server.script(error(529, retry_after="600"))
    await rig.round()
    second = await add_paid_job(database, skill=skill)
    await rig.round()
    assert (await job_row(database, second)).status == "completed"
    assert (await job_row(database, first)).status == "paid"
    await make_due(database, first)
    await rig.round()
    assert (await job_row(database, first)).status == "completed"
