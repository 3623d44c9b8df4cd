"""What a daemon lives through on its ways to the database and to the node, without a restart."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import pytest

from devchain.daemon import Daemon
from devchain.processes import LOOPBACK
from tests.acceptance.conftest import World, world
from tests.fakes.database_proxy import start_database_proxy
from tests.fakes.tcp_proxy import TcpProxy, start_tcp_proxy
from tests.faults.at_rest import check_at_rest, cursor_of, new_paid_job, until_done
from tests.faults.readiness import NOTICED_S, stops_in_time, until_ready, until_reason

__all__ = ["world"]

CHAIN: Final = {"poll_interval_s": 0.2}


@pytest.mark.fault("F3", "F5", "F6", "F7")
async def test_a_daemon_lives_through_what_its_database_does(world: World) -> None:
    """Away, its connections ended one by one, answers lost, slow, read-only: one process."""
    async with (
        start_database_proxy(world.database_url) as proxy,
        world.daemon(chain=CHAIN, database={"url": proxy.url}) as daemon,
    ):
        proxy.cut()
        away = await new_paid_job(world)
        await until_reason(daemon, "database")
        proxy.restore()
        await until_done(world, away)
        await until_ready(daemon)

        proxy.cut_answer_of("INSERT INTO payments")
        await until_done(world, await new_paid_job(world))
        proxy.cut_after_commit("UPDATE payments")
        await until_done(world, await new_paid_job(world))
        assert proxy.lost_answers == 2

        proxy.slow(0.1)
        await until_done(world, await new_paid_job(world))
        proxy.restore()

        await _end_each_connection(world)
        await until_done(world, await new_paid_job(world))
        await _is_read_only(world, daemon)
        await until_ready(daemon)
        await check_at_rest(world)
        assert daemon.process.returncode is None
        assert len(await world.claude.requests()) == 7


async def _end_each_connection(world: World) -> None:
    """Terminate the daemon's sessions, the leader's too, while a job is under way."""
    job = await new_paid_job(world)
    for pid in await sessions(world):
        await world.sql.execute("SELECT pg_terminate_backend($1)", pid)
    await until_done(world, job)


async def sessions(world: World) -> list[int]:
    """Return the server's processes that serve the daemon."""
    rows = await world.sql.fetch(
        """
        SELECT pid FROM pg_stat_activity
         WHERE datname = current_database() AND backend_type = 'client backend'
           AND pid <> pg_backend_pid()
        """
    )
    return [row["pid"] for row in rows]


async def _is_read_only(world: World, daemon: Daemon) -> None:
    """As a standby that took over: nothing moves, and nothing has to be started again."""
    name = await world.sql.fetchval("SELECT quote_ident(current_database())")
    await world.sql.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        for pid in await sessions(world):
            await world.sql.execute("SELECT pg_terminate_backend($1)", pid)
        await until_reason(daemon, "database")
        before = await cursor_of(world)
        job = await new_paid_job(world)
        await daemon.wait_until(
            lambda event: "read-only" in str(event.get("reason")), what="a refused write"
        )
        assert await cursor_of(world) == before
    finally:
        await world.sql.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    await until_done(world, job)


@pytest.mark.fault("F2", "F4")
async def test_sigterm_while_nothing_comes_back_from_the_database(world: World) -> None:
    """With connections that stay open."""
    async with (
        start_database_proxy(world.database_url) as proxy,
        world.daemon(chain=CHAIN, database={"url": proxy.url}) as daemon,
    ):
        proxy.black_hole()
        await stops_in_time(daemon)


@pytest.mark.slow
@pytest.mark.fault("F2", "F4")
async def test_sigterm_in_a_generation_whose_end_cannot_be_told(world: World) -> None:
    async with (
        start_database_proxy(world.database_url) as proxy,
        world.daemon(chain=CHAIN, database={"url": proxy.url}) as daemon,
    ):
        world.claude.hold()
        job = await new_paid_job(world)
        await world.claude.wait_for_requests(1)
        proxy.black_hole()
        await stops_in_time(daemon)
    row = await world.job(job)
    assert row["status"] == "in_progress", "its lease ends by itself"
    attempt = await world.sql.fetchrow("SELECT outcome FROM generation_attempts")
    assert attempt is not None
    assert attempt["outcome"] is None, "nobody could say how it ended"


@pytest.mark.fault("F10", "F13")
async def test_a_daemon_lives_through_what_its_nodes_do(world: World) -> None:
    """Two ways to one node, cut in turn, and a websocket that is reset and slow."""
    async with (
        node_ways(world) as (socket, first, second),
        world.daemon(chain=chain_of(socket, first, second)) as daemon,
    ):
        await daemon.wait_for("subscription.up")
        socket.reset()
        await until_done(world, await new_paid_job(world))
        await daemon.wait_for("subscription.up", count=2)
        socket.slow(0.3)
        first.slow(0.1)
        await until_done(world, await new_paid_job(world))
        socket.restore()
        first.restore()

        first.refuse()
        await until_done(world, await new_paid_job(world))
        switched = await daemon.wait_for("endpoint.switched", reason="failed")
        assert switched["endpoint"] == f"{LOOPBACK}:{second.port}"
        second.refuse()
        job = await new_paid_job(world)
        await until_reason(daemon, "node")
        assert json.loads((await daemon.get("/livez"))[1]) == {"live": True}
        second.restore()
        await until_done(world, job)
        await until_ready(daemon)
        await check_at_rest(world)
        assert len(await world.claude.requests()) == 4


@asynccontextmanager
async def node_ways(world: World) -> AsyncIterator[tuple[TcpProxy, TcpProxy, TcpProxy]]:
    """Ways to the node: for the websocket, and two for HTTP."""
    async with AsyncExitStack() as stack:
        one, two, three = [
            await stack.enter_async_context(start_tcp_proxy(world.stack.anvil.port))
            for _ in range(3)
        ]
        yield one, two, three


def chain_of(socket: TcpProxy, *ways: TcpProxy, poll_interval_s: float = 0.2) -> dict[str, Any]:
    """Return the settings that lead there."""
    return {
        "ws_urls": [f"ws://{LOOPBACK}:{socket.port}"],
        "http_urls": [f"http://{LOOPBACK}:{way.port}" for way in ways],
        "poll_interval_s": poll_interval_s,
    }


@pytest.mark.slow
@pytest.mark.fault("F8")
async def test_a_websocket_from_which_nothing_comes(world: World) -> None:
    """TCP is alive. Without it the next look at the chain would be in an hour."""
    async with node_ways(world) as (socket, first, second):
        chain = chain_of(socket, first, second, poll_interval_s=3600)
        async with world.daemon(chain=chain) as daemon:
            await daemon.wait_for("subscription.up")
            await until_done(world, await new_paid_job(world))
            socket.black_hole()
            began = time.monotonic()
            job = await new_paid_job(world)
            await daemon.wait_for("subscription.down", timeout_s=NOTICED_S)
            assert time.monotonic() - began < NOTICED_S
            socket.restore()
            await until_done(world, job)
            await check_at_rest(world)


@pytest.mark.slow
@pytest.mark.fault("F10")
async def test_a_websocket_that_flaps(world: World) -> None:
    """Reset every 2 s for 20 s, while payments come."""
    async with node_ways(world) as (socket, first, second):
        chain = chain_of(socket, first, second, poll_interval_s=3600)
        async with world.daemon(chain=chain) as daemon:
            jobs = []
            for _ in range(10):
                jobs.append(await new_paid_job(world))
                await asyncio.to_thread(time.sleep, 1.0)
                jobs.append(await new_paid_job(world))
                socket.reset()
                await asyncio.to_thread(time.sleep, 1.0)
            await until_done(world, *jobs)
            await check_at_rest(world)
            reconnects = sum(
                value
                for name, value in (await daemon.metrics()).items()
                if name.startswith("oncepaid_subscription_reconnects_total")
            )
            assert 3 <= reconnects <= 12


@pytest.mark.slow
@pytest.mark.fault("F13")
async def test_an_endpoint_that_swallows_everything(world: World) -> None:
    """Its connections stay open: only time tells. The other endpoint takes over."""
    async with (
        node_ways(world) as (socket, first, second),
        world.daemon(chain=chain_of(socket, first, second)) as daemon,
    ):
        await until_done(world, await new_paid_job(world))
        first.black_hole()
        job = await new_paid_job(world)
        await daemon.wait_for("endpoint.switched", timeout_s=NOTICED_S + 5)
        await until_done(world, job)
        await until_ready(daemon)
        second.black_hole()
        job = await new_paid_job(world)
        await until_reason(daemon, "node", NOTICED_S + 15)
        first.restore()
        second.restore()
        await until_done(world, job)
        await until_ready(daemon)
        await check_at_rest(world)
