"""Nodes, websockets and databases that are away, at start and later."""

import json
import signal
from pathlib import Path

from db.embedded import EmbeddedPostgres
from devchain.daemon import config_of, start_daemon
from devchain.processes import free_port
from tests.acceptance.conftest import World
from tests.fakes.tcp_proxy import start_tcp_proxy


async def test_without_any_websocket_it_polls(world: World) -> None:
    await world.first_start_done()
    job = await world.insert_job()
    async with world.daemon(chain={"ws_urls": [], "poll_interval_s": 0.2}) as daemon:
        await world.pay(job)
        await daemon.wait_for("job.completed", job_uuid=job.uuid)
        metrics = await daemon.metrics()
    assert metrics["oncepaid_subscription_up"] == 0


async def test_a_dropped_websocket_is_connected_again(world: World) -> None:
    await world.first_start_done()
    async with start_tcp_proxy(world.stack.anvil.port) as proxy:
        chain = {"ws_urls": [f"ws://127.0.0.1:{proxy.port}"], "poll_interval_s": 3600}
        async with world.daemon(chain=chain) as daemon:
            await daemon.wait_for("subscription.up")
            proxy.cut()
            down = await daemon.wait_for("subscription.down")
            # Paid while nobody listens: the reconnect must find it, long before the next tick.
            job = await world.insert_job()
            await world.pay(job)
            await daemon.wait_for("subscription.up", count=2)
            await daemon.wait_for("job.completed", job_uuid=job.uuid)
            metrics = await daemon.metrics()
    assert 0 < down["retry_in_s"] <= 10
    reconnects = [v for k, v in metrics.items() if "subscription_reconnects_total" in k]
    assert sum(reconnects) >= 1


async def test_it_waits_for_a_node_that_is_away_at_start(world: World) -> None:
    port = free_port()
    chain = {"http_urls": [f"http://127.0.0.1:{port}"], "ws_urls": [], "poll_interval_s": 0.2}
    async with world.daemon(chain=chain, wait_for="stage.waiting") as daemon:
        status, text = await daemon.get("/readyz")
        assert status == 503
        assert list(json.loads(text)["reasons"]) == ["node"]
        assert await daemon.get("/livez") == (200, '{"live": true}')
        async with start_tcp_proxy(world.stack.anvil.port, port=port):
            await daemon.wait_for("daemon.ready")
            await daemon.wait_for("listener.first_start")
            assert (await daemon.get("/readyz"))[0] == 200


async def test_it_waits_for_a_database_that_is_away_at_start(world: World, tmp_path: Path) -> None:
    data = tmp_path / "late"
    # The folder decides the socket's place, so the URL is known before the server is up.
    server = EmbeddedPostgres(f"embedded:{data}")
    url = server.start()
    server.close()
    config = config_of(world.stack, url)
    async with start_daemon(tmp_path, config, wait_for="stage.waiting") as daemon:
        status, text = await daemon.get("/readyz")
        assert status == 503
        assert "database" in json.loads(text)["reasons"]
        again = EmbeddedPostgres(f"embedded:{data}")
        try:
            assert again.start() == url
            await daemon.wait_for("daemon.ready")
            assert await daemon.stop() == 0
        finally:
            again.close()


async def test_sigterm_ends_it_even_before_anything_could_be_reached(
    world: World, tmp_path: Path
) -> None:
    nowhere = f"postgresql://postgres@127.0.0.1:{free_port()}/nothing"
    config = config_of(world.stack, nowhere)
    async with start_daemon(tmp_path, config, wait_for="stage.waiting") as daemon:
        assert await daemon.stop(signal.SIGTERM) == 0


async def test_it_refuses_a_node_of_another_chain(world: World) -> None:
    async with world.daemon(chain={"chain_id": 84532}, wait_for=None) as daemon:
        assert await daemon.process.wait() == 2
    assert any(line.startswith("oncepaid: chain.chain_id: ") for line in daemon.other_output)


async def test_it_refuses_a_token_without_code(world: World) -> None:
    nobody = "0x" + "12" * 20
    async with world.daemon(chain={"token": nobody}, wait_for=None) as daemon:
        assert await daemon.process.wait() == 2
    assert any(line.startswith("oncepaid: chain.token: ") for line in daemon.other_output)
