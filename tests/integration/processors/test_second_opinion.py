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
from processors import settler as settler_module
from processors.settler import SecondOpinion, Settler
from tests.fakes.blocks import CHAIN_ID, TOKEN, Chain, Tx, pay
from tests.fakes.node import FakeNode, Twist, start_node
from tests.fakes.refusals import Refusal
from tests.fakes.twists import answers, refuses
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

    ear: Ear

    async def add_large(self, *transactions: Tx) -> None:
        """Mine payments, one a job, and match them."""
        self.chain.add(*transactions)
        await self.ear.catch_up()
        await _match_all(self.database)

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
            yield Shop(
                chain=chain,
                first=first,
                second=second,
                database=database,
                settler=settler,
                ear=ear,
            )


async def _match_all(database: Database) -> None:
    """As the matcher does it, each to a job of its own."""
    async with database.connection() as connection:
        await connection.execute(
            """
            WITH new AS (
                INSERT INTO jobs (price_usdc)
                SELECT amount_units / 1000000 FROM payments WHERE status = 'seen' ORDER BY id
                RETURNING id, price_usdc)
            UPDATE payments p SET status = 'matched', matched_at = now(), job_id = new.id
              FROM new WHERE p.amount_units = new.price_usdc * 1000000 AND p.status = 'seen'
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


TOO_LARGE = Refusal(code=-32020, text="backend response too large", status=500)
REFUSALS = {
    "proxyd": TOO_LARGE,
    "too big": Refusal(code=-32008, text="Response is too big"),
    "own words": Refusal(code=-32000, text="internal error"),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
async def test_a_receipt_that_is_refused_keeps_nobody_else_waiting(
    shop: Shop, refusal: Refusal
) -> None:
    await shop.add_large(*[pay(PAYER, SHOP, LARGE + n) for n in range(1, 9)])
    poison = shop.chain.head.transactions[3]["hash"]
    shop.second.twist("eth_getTransactionReceipt", of_one(poison, refuses(refusal)))
    with capture_logs() as logs:
        await shop.settler.step()
    waiting = {units for units, status in (await shop.statuses()).items() if status == "matched"}
    assert waiting == {LARGE + 4}
    told = [entry for entry in logs if entry["event"] == "payment.not_confirmed_elsewhere"]
    assert len(told) == 1
    shop.second.straighten()
    await shop.settler.step()
    assert set((await shop.statuses()).values()) == {"credited"}


def of_one(tx_hash: str, twist: Twist) -> Twist:
    """Twist the answer to calls about one transaction alone."""
    return lambda params, result: twist(params, result) if params[0] == tx_hash else result


async def test_one_that_makes_the_witness_fail_keeps_nobody_else_waiting(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that breaks off over one receipt, whatever stands beside it in the question."""
    monkeypatch.setattr(settler_module, "MAX_ASKED_JOBS", 4)
    await shop.add_large(*[pay(PAYER, SHOP, LARGE + n) for n in range(1, 12)])
    poisons = [shop.chain.head.transactions[n]["hash"] for n in (1, 2, 9)]
    for poison in poisons:
        shop.second.twist("eth_getTransactionReceipt", of_one(poison, answers(5)))
    with capture_logs() as logs:
        for _ in range(12):
            await shop.settler.step()
    waiting = {units for units, status in (await shop.statuses()).items() if status == "matched"}
    assert waiting == {LARGE + 2, LARGE + 3, LARGE + 10}
    failures = [entry for entry in logs if entry["event"] == "settler.no_second_opinion"]
    assert len(failures) == 12, "one a round, for it may take its time"
    await shop.add_large(pay(PAYER, SHOP, LARGE + 50))
    await shop.settler.step()
    assert (await shop.statuses())[LARGE + 50] == "credited"
    shop.second.straighten()
    await shop.settler.step()
    assert set((await shop.statuses()).values()) == {"credited"}


async def test_how_many_are_asked_about_alone_is_bounded(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settler_module, "MAX_SET_BACK", 2)
    await shop.add_large(*[pay(PAYER, SHOP, LARGE + n) for n in range(1, 6)])
    shop.second.twist("eth_getTransactionReceipt", answers(5), times=1)
    await shop.settler.step()
    before = shop.second.posts
    await shop.settler.step()
    assert set((await shop.statuses()).values()) == {"credited"}
    assert shop.second.posts - before == 1 + 2, "all but two in one question, and those alone"


async def test_a_conflict_stops_the_settler_loudly(shop: Shop) -> None:
    await RangeStore(shop.database, CHAIN_ID).declare_conflict("block 7 was final", epoch=1)
    with pytest.raises(ChainConflict, match="block 7 was final"):
        await shop.settler.step()
    assert await shop.statuses() == {LARGE - 1: "matched", LARGE: "matched"}
