"""Large payments count only once another endpoint has them; nobody else waits for that."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from db.payments import PaymentStore
from db.pool import Database
from db.ranges import RangeStore
from listener.rpc import ChainReader, HttpRpc
from listener.witness import Witness
from oncepaid.domain.errors import ChainConflict
from oncepaid.domain.finality import INCLUDED, Tier
from oncepaid.domain.money import Units
from oncepaid.metrics import Metrics
from processors.settler import SecondOpinion, Settler
from tests.fakes.blocks import CHAIN_ID, TOKEN, Chain, pay
from tests.fakes.node import FakeNode, start_node
from tests.integration.listener.rig import PAYER, SHOP, Ear

pytestmark = pytest.mark.fault("F13")

LARGE = 100


@dataclass(kw_only=True)
class Shop:
    """A ledger with a small and a large payment, both matched, and a settler with two endpoints."""

    chain: Chain
    first: FakeNode
    second: FakeNode
    database: Database
    settler: Settler

    async def statuses(self) -> dict[int, str]:
        async with self.database.connection() as connection:
            rows: list[asyncpg.Record] = await connection.fetch(
                "SELECT amount_units, status FROM payments WHERE status <> 'orphaned'"
            )
        return {int(row["amount_units"]): row["status"] for row in rows}


@pytest.fixture
async def shop(database: Database) -> AsyncIterator[Shop]:
    chain = Chain(first=1000)
    chain.mine(3)
    metrics = Metrics(CollectorRegistry())
    async with start_node(chain) as first, start_node(chain) as second:
        urls = [first.url, second.url]
        async with HttpRpc(urls, chain_id=CHAIN_ID, token=TOKEN, metrics=metrics) as rpc:
            ear = Ear(database=database, rpc=rpc)
            await ear.catch_up()
            chain.add(pay(PAYER, SHOP, LARGE - 1), pay(PAYER, SHOP, LARGE))
            await ear.catch_up()
            await _match_all(database)
            settler = Settler(
                PaymentStore(database, CHAIN_ID),
                ChainReader(rpc),
                tiers=[Tier(up_to=None, require=INCLUDED)],
                services=(),
                metrics=metrics,
                second=SecondOpinion(witness=Witness(rpc, TOKEN), from_units=Units(LARGE)),
            )
            yield Shop(chain=chain, first=first, second=second, database=database, settler=settler)


async def _match_all(database: Database) -> None:
    """As the matcher does it, each to a job of its own."""
    async with database.connection() as connection:
        await connection.execute(
            """
            WITH new AS (
                INSERT INTO jobs (price_usdc)
                SELECT amount_units / 1000000 FROM payments ORDER BY id RETURNING id, price_usdc)
            UPDATE payments p SET status = 'matched', matched_at = now(), job_id = new.id
              FROM new WHERE p.amount_units = new.price_usdc * 1000000
            """
        )


async def test_both_endpoints_have_it(shop: Shop) -> None:
    await shop.settler.step()
    assert await shop.statuses() == {LARGE - 1: "credited", LARGE: "credited"}
    assert shop.second.calls["eth_getTransactionReceipt"] == 1


def _other_log(_: object, receipt: Any) -> Any:
    return {
        **receipt,
        "logs": [{**log, "data": "0x" + "00" * 31 + "07"} for log in receipt["logs"]],
    }


@pytest.mark.parametrize(
    "receipt",
    [
        lambda _, __: None,
        _other_log,
        lambda _, r: {**r, "status": "0x0"},
        lambda _, r: {**r, "blockHash": "0x" + "ab" * 32},
        lambda _, r: {**r, "logs": []},
    ],
    ids=["none", "other amount", "reverted", "other block", "no logs"],
)
async def test_what_the_other_one_does_not_have_waits_alone(shop: Shop, receipt: Any) -> None:
    shop.second.twist("eth_getTransactionReceipt", receipt, times=2)
    with capture_logs() as logs:
        for _ in range(2):
            await shop.settler.step()
    assert await shop.statuses() == {LARGE - 1: "credited", LARGE: "matched"}
    told = [entry for entry in logs if entry["event"] == "payment.not_confirmed_elsewhere"]
    assert len(told) == 1
    await shop.settler.step()
    assert await shop.statuses() == {LARGE - 1: "credited", LARGE: "credited"}


async def test_another_endpoint_that_lags_or_is_away_is_waited_for(shop: Shop) -> None:
    shop.second.head_lag = 2
    await shop.settler.step()
    assert await shop.statuses() == {LARGE - 1: "credited", LARGE: "matched"}
    shop.second.head_lag = 0
    shop.second.twist("eth_getTransactionReceipt", lambda _, __: 5, times=1)
    with capture_logs() as logs:
        await shop.settler.step()
    assert "settler.no_second_opinion" in [entry["event"] for entry in logs]
    await shop.settler.step()
    assert await shop.statuses() == {LARGE - 1: "credited", LARGE: "credited"}


async def test_a_conflict_stops_the_settler_loudly(shop: Shop) -> None:
    await RangeStore(shop.database, CHAIN_ID).declare_conflict("block 7 was final", epoch=1)
    with pytest.raises(ChainConflict, match="block 7 was final"):
        await shop.settler.step()
    assert await shop.statuses() == {LARGE - 1: "matched", LARGE: "matched"}
