"""The settler over a real database and a scriptable node: money counts once its block is final."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from db.payments import PaymentStore
from db.pool import Database
from listener.rpc import ChainReader, HttpRpc
from oncepaid.domain.errors import InconsistentNode, NodeUnavailable, Retryable
from oncepaid.domain.finality import Tier, parse_requirement
from oncepaid.domain.money import UNITS_PER_USDC, Units
from oncepaid.metrics import Metrics
from processors import settler as settler_module
from processors.settler import Settler
from tests.fakes.blocks import CHAIN_ID, TOKEN, Block, Chain, address, hash_of
from tests.fakes.node import FakeNode, start_node
from tests.fakes.refusals import Page, Spoil
from tests.fakes.twists import answers
from tests.integration.processors.rig import add_skill, job_row

USDC: Final = UNITS_PER_USDC
TIERS: Final = (
    Tier(up_to=Units(1 * USDC), require=parse_requirement("included")),
    Tier(up_to=Units(10 * USDC), require=parse_requirement("2s")),
    Tier(up_to=Units(50 * USDC), require=parse_requirement("safe")),
    Tier(up_to=None, require=parse_requirement("finalized")),
)


class Till:
    """A settler, and the rows that it decides on."""

    def __init__(self, database: Database, rpc: HttpRpc, tiers: Sequence[Tier]) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self._database = database
        self._count = 0
        self.settler = Settler(
            PaymentStore(database, CHAIN_ID),
            ChainReader(rpc),
            tiers=tiers,
            services={"write"},
            metrics=self.metrics,
        )

    async def add_job(self, price_usdc: int, *, skill: int | None = None) -> int:
        """Insert a pending job."""
        async with self._database.connection() as connection:
            found = await connection.fetchval(
                "INSERT INTO jobs (price_usdc, skill_id) VALUES ($1, $2) RETURNING id",
                price_usdc,
                skill,
            )
        return int(found)

    async def add_matched(self, job: int, block: Block, units: int) -> int:
        """Insert a payment of a job, in a block, as the matcher leaves it."""
        self._count += 1
        async with self._database.connection() as connection:
            found = await connection.fetchval(
                """
                INSERT INTO payments (chain_id, tx_hash, log_index, block_number, block_hash,
                    block_time, sender, recipient, amount_units, status, job_id, matched_at)
                VALUES ($1, $2, $10, $3, $4, $5, $6, $7, $8, 'matched', $9, now()) RETURNING id
                """,
                CHAIN_ID,
                hash_of("settled", self._count),
                block.number,
                block.hash,
                datetime.fromtimestamp(block.timestamp_ms / 1000, tz=UTC),
                address("payer"),
                address("shop"),
                units,
                job,
                self._count,
            )
        return int(found)

    async def paid_job(self, block: Block, usdc: int) -> int:
        """Insert a job with one payment that matches its price."""
        job = await self.add_job(usdc)
        await self.add_matched(job, block, usdc * USDC)
        return job

    async def statuses(self) -> list[str]:
        """Return the payments' statuses, with the reason where there is one."""
        async with self._database.connection() as connection:
            rows = await connection.fetch("SELECT status, reason FROM payments ORDER BY id")
        return [row["status"] + (f": {row['reason']}" if row["reason"] else "") for row in rows]


@pytest.fixture
def chain() -> Chain:
    """A chain of one block, 1000."""
    chain = Chain(first=1000)
    chain.add()
    return chain


@pytest.fixture
async def node(chain: Chain) -> AsyncIterator[FakeNode]:
    async with start_node(chain) as running:
        yield running


@pytest.fixture
async def till(database: Database, node: FakeNode) -> AsyncIterator[Till]:
    metrics = Metrics(CollectorRegistry())
    async with HttpRpc([node.url], chain_id=CHAIN_ID, token=TOKEN, metrics=metrics) as rpc:
        await rpc.verify()
        node.calls.clear()
        node.posts = 0
        yield Till(database, rpc, TIERS)


async def test_nothing_to_settle_asks_nobody(till: Till, node: FakeNode) -> None:
    assert await till.settler.step() is False
    assert node.posts == 0


async def test_included(database: Database, till: Till, node: FakeNode, chain: Chain) -> None:
    job = await till.add_job(1, skill=await add_skill(database))
    await till.add_matched(job, chain.add(), 1 * USDC)
    with capture_logs() as logs:
        await till.settler.step()
    assert await till.statuses() == ["credited"]
    assert (await job_row(database, job)).status == "paid"
    # No head is asked for that no payment waits for: one request, for the block's own hash.
    assert (node.posts, node.calls["eth_getBlockByNumber"]) == (1, 1)
    (told,) = logs
    assert (told["event"], told["usdc"]) == ("payment.credited", "1.000000")
    assert told["job_uuid"]
    value = till.metrics.registry.get_sample_value
    assert value("oncepaid_revenue_usdc_total", {"service": "write"}) == 1
    assert value("oncepaid_payments_total", {"status": "credited", "reason": ""}) == 1
    assert value("oncepaid_payments_usdc_total", {"status": "credited"}) == 1
    await till.settler.step()
    assert value("oncepaid_revenue_usdc_total", {"service": "write"}) == 1
    assert node.posts == 1, "what is credited is not looked at again"


async def test_seconds_on_top(till: Till, chain: Chain) -> None:
    """By the chain's own time: a chain that stands still makes nothing final."""
    await till.paid_job(chain.add(), 10)
    chain.mine(9)
    await till.settler.step()
    assert await till.statuses() == ["matched"]
    chain.mine(1)
    await till.settler.step()
    assert await till.statuses() == ["credited"]


@pytest.mark.parametrize(("usdc", "lag"), [(11, 5), (51, 10)], ids=["safe", "finalized"])
async def test_heads(till: Till, chain: Chain, usdc: int, lag: int) -> None:
    await till.paid_job(chain.add(), usdc)
    chain.mine(lag - 1)
    await till.settler.step()
    assert await till.statuses() == ["matched"]
    chain.mine(1)
    await till.settler.step()
    assert await till.statuses() == ["credited"]


@pytest.mark.parametrize("usdc", [11, 51])
async def test_a_node_without_such_a_head(
    till: Till, node: FakeNode, chain: Chain, usdc: int
) -> None:
    await till.paid_job(chain.add(), usdc)
    chain.mine(20)
    node.twist(
        "eth_getBlockByNumber", lambda p, h: None if p[0] in ("safe", "finalized") else h, times=1
    )
    await till.settler.step()
    assert await till.statuses() == ["matched"]
    await till.settler.step()
    assert await till.statuses() == ["credited"]


async def test_each_waits_for_its_own(till: Till, node: FakeNode, chain: Chain) -> None:
    block = chain.add()
    for usdc in (1, 50, 51, 10):
        await till.paid_job(block, usdc)
    for later, credited in ((0, "c..."), (4, "c..."), (1, "cc.."), (5, "cccc")):
        chain.mine(later)
        node.posts = 0
        await till.settler.step()
        assert "".join(s[0] for s in await till.statuses()).replace("m", ".") == credited
        # One request for all the heads that are waited for, one for the hashes.
        assert node.posts <= 2


async def test_the_tier_goes_by_the_sum(till: Till, chain: Chain) -> None:
    """Splitting a payment does not make it safe sooner; the youngest part decides."""
    job = await till.add_job(12)
    await till.add_matched(job, chain.add(), 11 * USDC)
    chain.mine(3)
    await till.add_matched(job, chain.add(), 1 * USDC)
    chain.mine(4)
    await till.settler.step()
    assert await till.statuses() == ["matched", "matched"]
    chain.mine(1)
    await till.settler.step()
    assert await till.statuses() == ["credited", "credited"]


async def test_a_block_that_left_the_chain(database: Database, till: Till, chain: Chain) -> None:
    job = await till.paid_job(chain.add(), 1)
    sound = await till.paid_job(chain.blocks[0], 1)
    chain.reorg(1)
    with capture_logs() as logs:
        await till.settler.step()
    assert await till.statuses() == ["matched", "credited"]
    assert (await job_row(database, job)).status == "pending"
    assert (await job_row(database, sound)).status == "paid"
    lost = [entry for entry in logs if entry["event"] == "payment.block_not_found"]
    assert [entry["log_level"] for entry in lost] == ["warning"]
    with capture_logs() as again:
        await till.settler.step()
    assert again == [], "it is said once"


async def test_one_lost_part_holds_back_the_other(
    database: Database, till: Till, chain: Chain
) -> None:
    job = await till.add_job(1)
    await till.add_matched(job, chain.blocks[0], USDC // 2)
    await till.add_matched(job, chain.add(), USDC // 2)
    chain.reorg(1)
    await till.settler.step()
    assert await till.statuses() == ["matched", "matched"]
    assert (await job_row(database, job)).status == "pending"


async def test_a_block_that_the_node_does_not_have_yet(
    till: Till, node: FakeNode, chain: Chain
) -> None:
    await till.paid_job(chain.add(), 1)
    node.head_lag = 1
    await till.settler.step()
    assert await till.statuses() == ["matched"]
    node.head_lag = 0
    await till.settler.step()
    assert await till.statuses() == ["credited"]


@pytest.mark.parametrize("at", [0, 1])
async def test_a_node_that_is_away(till: Till, node: FakeNode, chain: Chain, at: int) -> None:
    await till.paid_job(chain.add(), 10)
    chain.mine(10)
    for spoil in (Page(status=502, body="<html>"), Spoil.CUT, Spoil.TRUNCATED):
        node.next_http(*[None] * at, spoil)
        with pytest.raises(NodeUnavailable):
            await till.settler.step()
        assert await till.statuses() == ["matched"]
    await till.settler.step()
    assert await till.statuses() == ["credited"]
    assert issubclass(NodeUnavailable, Retryable)


async def test_a_node_that_answers_nonsense(till: Till, node: FakeNode, chain: Chain) -> None:
    await till.paid_job(chain.add(), 1)
    odd: list[Any] = [5, {}, {**chain.head.header, "number": "0x1"}]
    for answer in odd:
        node.twist("eth_getBlockByNumber", answers(answer), times=1)
        with pytest.raises(InconsistentNode):
            await till.settler.step()
        assert await till.statuses() == ["matched"]
    await till.settler.step()
    assert await till.statuses() == ["credited"]


@pytest.mark.parametrize(
    ("change", "status", "left"),
    [
        ("status = 'refunded'", "refunded", "unmatched: duplicate"),
        ("price_usdc = 2", "pending", "unmatched: underpaid"),
    ],
    ids=["closed", "dearer"],
)
async def test_a_job_that_the_host_changed_meanwhile(
    database: Database, till: Till, chain: Chain, change: str, status: str, left: str
) -> None:
    job = await till.paid_job(chain.add(), 1)
    async with database.connection() as connection:
        await connection.execute(f"UPDATE jobs SET {change}")
    await till.settler.step()
    assert await till.statuses() == [left]
    assert (await job_row(database, job)).status == status


async def test_every_page_is_looked_at(
    till: Till, node: FakeNode, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page full of payments that wait does not hide those behind it."""
    monkeypatch.setattr(settler_module, "JOBS_PER_PAGE", 2)
    block = chain.add()
    for usdc in (51, 51, 1, 51, 1):
        await till.paid_job(block, usdc)
    await till.settler.step()
    assert await till.statuses() == ["matched", "matched", "credited", "matched", "credited"]


async def test_two_settlers_credit_once(
    database: Database, till: Till, node: FakeNode, chain: Chain
) -> None:
    jobs = [await till.paid_job(chain.add(), 1) for _ in range(10)]
    metrics = Metrics(CollectorRegistry())
    async with HttpRpc([node.url], chain_id=CHAIN_ID, token=TOKEN, metrics=metrics) as rpc:
        other = Till(database, rpc, TIERS)
        with capture_logs() as logs:
            await asyncio.gather(till.settler.step(), other.settler.step())
    assert await till.statuses() == ["credited"] * 10
    assert [entry["event"] for entry in logs].count("payment.credited") == 10
    assert {(await job_row(database, job)).status for job in jobs} == {"paid"}
