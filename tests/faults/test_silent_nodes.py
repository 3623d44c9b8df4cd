"""The whole daemon with nodes that say nothing, too little, too late, or something else.

The nodes are made up; what they serve and how they fail is decided here.
"""

import json
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from devchain.daemon import Daemon, start_daemon
from oncepaid.domain.memo import Memo
from tests.fakes.blocks import Block, Chain, address, call_through, pay, transfer_log
from tests.fakes.claude_server import ClaudeServer, start_claude_server
from tests.fakes.node import FakeNode, start_node
from tests.fakes.refusals import Page
from tests.faults.at_rest import until

SHOP: Final = address("shop")
PAYER: Final = address("payer")
PRICE_UNITS: Final = 50_000
NOTICED_S: Final = 15.0
AN_HOUR_MS: Final = 3_600_000
A_YEAR_MS: Final = 365 * 24 * AN_HOUR_MS
BROKEN: Final = Page(status=502, body="<h1>Bad gateway</h1>")
FIRST_START_BLOCKS: Final = 20


@dataclass(frozen=True, kw_only=True)
class Play:
    """Two nodes of one chain, a Claude, a database, and what a job needs."""

    chain: Chain
    first: FakeNode
    second: FakeNode
    claude: ClaudeServer
    sql: asyncpg.Connection
    database_url: str
    folder: Path

    def daemon(
        self, *nodes: FakeNode, poll_interval_s: float = 0.2
    ) -> AbstractAsyncContextManager[Daemon]:
        """Run a daemon with these nodes, listening to the first one's websocket."""
        sections: dict[str, dict[str, object]] = {
            "chain": {
                "recipients": [SHOP],
                "http_urls": [node.url for node in nodes],
                "ws_urls": [nodes[0].ws_url],
                "poll_interval_s": poll_interval_s,
            },
            "claude": {"api_key": "test-key", "base_url": self.claude.base_url},
            "database": {"url": self.database_url},
            "http": {"listen": "127.0.0.1:0"},
            "services.echo": {"name": "Echo", "price_usdc": 0.05, "system_prompt": "Say ok."},
        }
        lines = [
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
            for name, keys in sections.items()
        ]
        return start_daemon(self.folder, "\n".join(lines))

    async def paid_job(self, *, step_ms: int = 200) -> tuple[int, Block]:
        """Insert a job and mine a block with its payment, which nobody tells of."""
        row = await self.sql.fetchrow(
            """
            INSERT INTO jobs (job_uuid, skill_id, input_data)
            SELECT gen_random_uuid(), id, '{"prompt": "hello"}' FROM skills
             WHERE service_key = 'echo' RETURNING id, memo
            """
        )
        assert row is not None
        payment = pay(PAYER, SHOP, PRICE_UNITS, memo=Memo(row["memo"]))
        return row["id"], self.chain.add(payment, step_ms=step_ms)

    async def done(self, job: int, timeout_s: float = 30.0) -> None:
        """Wait until a job is completed."""

        async def is_done() -> bool:
            query = "SELECT status = 'completed' FROM jobs WHERE id = $1"
            return bool(await self.sql.fetchval(query, job))

        await until(is_done, f"job {job} is done", timeout_s)

    async def until_read(self, timeout_s: float = 30.0) -> None:
        """Wait until the cursor stands on the chain's head."""

        async def is_read() -> bool:
            row = await self.sql.fetchrow("SELECT block_number, block_hash FROM chain_cursor")
            return row is not None and tuple(row) == (self.chain.head.number, self.chain.head.hash)

        await until(is_read, "the cursor is at the head", timeout_s)

    async def count(self, where: str) -> int:
        """Return the number of payments that fit."""
        return int(await self.sql.fetchval(f"SELECT count(*) FROM payments WHERE {where}"))


@pytest.fixture
async def play(migrated_url: str, tmp_path: Path) -> AsyncIterator[Play]:
    chain = Chain()
    chain.mine(FIRST_START_BLOCKS)
    async with AsyncExitStack() as stack:
        sql = await asyncpg.connect(migrated_url)
        stack.push_async_callback(sql.close)
        yield Play(
            chain=chain,
            first=await stack.enter_async_context(start_node(chain)),
            second=await stack.enter_async_context(start_node(chain)),
            claude=await stack.enter_async_context(start_claude_server()),
            sql=sql,
            database_url=migrated_url,
            folder=tmp_path,
        )


def reorgs(daemon: Daemon) -> int:
    return sum(event["event"] == "chain.reorg" for event in daemon.events)


@pytest.mark.fault("F12", "F17", "F19", "F23")
async def test_a_daemon_lives_through_what_a_node_tells(play: Play) -> None:
    """Times that jump, a head that goes back, logs twice and out of order, very much, nothing."""
    async with play.daemon(play.first) as daemon:
        await play.first.subscribed(1)
        job, block = await play.paid_job()
        for removed in (True, False, False):
            await play.first.announce(block, removed=removed)
        await play.done(job)

        for step_ms in (-AN_HOUR_MS, -A_YEAR_MS):
            job, block = await play.paid_job(step_ms=step_ms)
            await play.first.announce(block)
            await play.done(job)

        await _head_goes_back(play)
        assert reorgs(daemon) == 0
        await _much_and_nothing(play, daemon, logs=500)

        job, gone = await play.paid_job()
        await play.first.announce(gone)
        await play.done(job)
        play.chain.remine(1, gone, blocks_later=1, at_index=5)
        await play.first.announce(gone, removed=True)
        await play.first.announce(play.chain.head)
        await play.until_read()
        assert reorgs(daemon) == 1

        async def is_credited_again() -> bool:
            return await play.count(f"job_id = {job} AND status = 'credited' AND log_index = 5") > 0

        await until(is_credited_again, "the payment that moved is credited again")
        assert await play.count("status = 'orphaned'") == 1
        assert len(play.claude.requests) == 6
        assert (await daemon.get("/readyz"))[0] == 200
    assert await play.sql.fetchval("SELECT count(*) FROM losses WHERE made_good_at IS NULL") == 0


async def _head_goes_back(play: Play) -> None:
    """By three blocks: that is a node that lags."""
    play.chain.mine(5)
    await play.until_read()
    play.first.head_lag = 3
    asked = play.first.calls["eth_getBlockByNumber"]

    async def has_asked() -> bool:
        return play.first.calls["eth_getBlockByNumber"] >= asked + 3

    await until(has_asked, "the lower head was seen")
    job, _ = await play.paid_job()
    play.first.head_lag = 0
    await play.done(job)


async def _much_and_nothing(play: Play, daemon: Daemon, *, logs: int) -> None:
    """500 empty blocks, and one with very many payments, each of them a row."""
    play.chain.mine(500)
    before = await play.count("true")
    transfers = [transfer_log(PAYER, SHOP, 1 + number) for number in range(logs)]
    play.chain.add(call_through(PAYER, *transfers))
    job, _ = await play.paid_job()
    await play.done(job)
    assert await play.count("true") == before + logs + 1
    await daemon.wait_for("payment.unmatched", count=logs)


@pytest.mark.fault("F18")
async def test_an_endpoint_of_another_chain_is_not_used(play: Play) -> None:
    """The first endpoint fails, the second one has become one of another chain: it waits."""
    async with play.daemon(play.first, play.second) as daemon:
        await daemon.wait_for("daemon.ready")
        play.second.chain_id = 1
        play.first.always_http = BROKEN
        job, _ = await play.paid_job()
        await daemon.wait_for("endpoint.wrong_chain")
        assert json.loads((await daemon.get("/readyz"))[1])["reasons"].keys() == {"node"}
        assert play.second.calls["eth_getLogs"] == 0
        play.first.straighten()
        await play.done(job)
        assert play.second.calls["eth_getLogs"] == 0


@pytest.mark.slow
@pytest.mark.fault("F9")
async def test_a_subscription_that_is_mute(play: Play) -> None:
    """Pings are answered, and no log comes. What the reconcile finds tells that one is missing."""
    async with play.daemon(play.first, poll_interval_s=1.0) as daemon:
        await play.first.subscribed(1)
        for _ in range(2):
            play.chain.mine(1)
            await play.until_read()
        job, _ = await play.paid_job()
        paid_at = time.monotonic()
        await play.done(job)
        await daemon.wait_for("subscription.missed", timeout_s=NOTICED_S)
        assert time.monotonic() - paid_at < NOTICED_S
        assert (await daemon.metrics())["oncepaid_subscription_missed_logs_total"] == 1
        await daemon.wait_for("subscription.down", reason="mute")
        await daemon.wait_for("subscription.up", count=2)
        job, block = await play.paid_job()
        await play.first.announce(block)
        await play.done(job)


@pytest.mark.slow
@pytest.mark.fault("F11")
async def test_a_chain_that_halts(play: Play) -> None:
    """Neither the subscription nor the endpoint is to blame; then 3,600 blocks come at once."""
    async with play.daemon(play.first, play.second) as daemon:
        await play.first.subscribed(1)
        await daemon.wait_for("chain.halted", timeout_s=60)
        ready, text = await daemon.get("/readyz")
        assert (ready, "chain" in json.loads(text)["notes"]) == (200, True)
        assert (await daemon.metrics())["oncepaid_chain_halted"] == 1
        play.chain.mine(3_600)
        job, block = await play.paid_job()
        await play.first.announce(block)
        await play.done(job)
        await daemon.wait_for("chain.resumed")
        assert play.first.socket_attempts == 1
        assert not [event for event in daemon.events if event["event"] == "endpoint.switched"]


@pytest.mark.slow
@pytest.mark.fault("F23")
async def test_ten_thousand_logs_in_one_block(play: Play) -> None:
    async with play.daemon(play.first) as daemon:
        await _much_and_nothing(play, daemon, logs=10_000)
        memory = (await daemon.metrics())["process_resident_memory_bytes"]
    assert memory < 500 * 1024**2
