"""Endpoints that lag, refuse or stand on forks hold up no second look, and spoil none."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from db.pool import Database
from listener.rpc import HttpRpc
from listener.second_look import FinalityMark
from oncepaid.domain.errors import NotLeading
from tests.fakes.blocks import GENESIS_MS, Chain, pay
from tests.fakes.node import FakeNode
from tests.fakes.refusals import RANGE_REFUSALS
from tests.fakes.twists import changed_logs
from tests.integration.listener.pairs import NOW, Pair, second_look_of
from tests.integration.listener.rig import PAYER, SHOP, STRANGER, Ear, times_of
from tests.integration.listener.test_reorgs import live, orphaned

pytestmark = pytest.mark.fault("F13")


async def test_what_a_backend_has_not_indexed_yet_proves_nothing(
    chain: Chain, second_node: FakeNode, pair: Pair
) -> None:
    """It has the block, and neither its logs nor its receipts: nothing is orphaned for that."""
    chain.add(pay(PAYER, SHOP, 1))
    await pair.ear.catch_up()
    second_node.twist("eth_getLogs", lambda _, __: [])
    second_node.twist("eth_getTransactionReceipt", lambda _, __: None)
    await pair.look()
    assert (await live(pair.ear), await orphaned(pair.ear)) == ([1], [])
    assert (await pair.state()).checked == chain.head.number, "the one in use was asked again"


async def test_a_lone_endpoint_that_has_indexed_nothing_yet_is_waited_for(
    database: Database, chain: Chain, node: FakeNode, rpc: HttpRpc
) -> None:
    ear = Ear(database=database, rpc=rpc)
    await ear.catch_up()
    chain.add(pay(PAYER, SHOP, 1))
    await ear.catch_up()
    node.twist("eth_getLogs", lambda _, __: [], times=1)
    node.twist("eth_getTransactionReceipt", lambda _, __: None, times=1)
    second_look = second_look_of(ear, rpc, [], NOW)
    assert await second_look.step() is False
    assert await live(ear) == [1]
    assert await second_look.step() is True
    assert await live(ear) == [1]


async def test_a_narrow_endpoint_is_asked_in_pieces(
    chain: Chain, second_node: FakeNode, pair: Pair
) -> None:
    """One stored range may be wider than what the other endpoint serves."""
    chain.add(pay(PAYER, SHOP, 1))
    chain.mine(60)
    await pair.ear.catch_up()
    second_node.max_blocks = (10, RANGE_REFUSALS["Alchemy blocks"])
    await pair.look()
    assert (await pair.state()).checked == chain.head.number
    assert await live(pair.ear) == [1]
    assert all(last - first < 10 for first, last in second_node.ranges)


async def test_an_endpoint_that_is_always_behind_does_not_hold_up_the_mark(
    chain: Chain, node: FakeNode, second_node: FakeNode, pair: Pair
) -> None:
    chain.add(pay(PAYER, SHOP, 1))
    await pair.ear.catch_up()
    second_node.head_lag = 3
    asked = node.calls["eth_getLogs"]
    await pair.look()
    assert (await pair.state()).checked == chain.head.number
    assert node.calls["eth_getLogs"] == asked + 1
    # The other one is tried again each time.
    second_node.head_lag = 0
    chain.add(pay(PAYER, SHOP, 2))
    await pair.ear.catch_up()
    before = second_node.calls["eth_getLogs"]
    await pair.look()
    assert second_node.calls["eth_getLogs"] == before + 1


async def test_a_time_that_only_a_log_tells_is_asked_for(
    chain: Chain, node: FakeNode, second_node: FakeNode, pair: Pair
) -> None:
    """A second look knows the end of its range, and not when the block before it was."""
    block = chain.add(pay(PAYER, SHOP, 1))
    chain.mine(2)
    node.twist("eth_getLogs", lambda _, __: [])
    second_node.twist("eth_getLogs", changed_logs(blockTimestampMs=hex(GENESIS_MS)))
    await pair.ear.catch_up()
    await pair.look()
    assert times_of(await pair.ear.payments()) == [block.timestamp_ms]


async def test_an_endpoint_on_a_fork_changes_nothing(
    chain: Chain, second_node: FakeNode, pair: Pair
) -> None:
    chain.add(pay(PAYER, SHOP, 1))
    await pair.ear.catch_up()
    fork = Chain(first=chain.first, blocks=list(chain.blocks))
    fork.reorg(1, pay(STRANGER, SHOP, 7))
    second_node.chain = fork
    await pair.look()
    assert (await live(pair.ear), await orphaned(pair.ear)) == ([1], [])


async def test_who_leads_no_more_repairs_nothing(chain: Chain, node: FakeNode, pair: Pair) -> None:
    chain.add(pay(PAYER, SHOP, 1))
    node.twist("eth_getLogs", lambda _, __: [])
    await pair.ear.catch_up()
    pair.ear.lead.epoch = 0
    with pytest.raises(NotLeading):
        await pair.look()
    assert await live(pair.ear) == []
    pair.ear.lead.epoch = None
    assert await pair.second_look.step() is False


async def test_what_is_final_is_marked_no_further_than_it_was_checked(
    chain: Chain, node: FakeNode, pair: Pair
) -> None:
    chain.mine(30)
    await pair.ear.catch_up()
    node.finalized_lag = 4
    mark = FinalityMark(pair.rpc, pair.store, lead=pair.ear.lead)
    await mark.step()
    assert (await pair.state()).finalized == 1010
    await pair.look()
    await mark.step()
    assert (await pair.state()).finalized == chain.head.number - 4
    kept = await pair.store.checkpoints(limit=10)
    assert [c.block.number for c in kept] == [chain.head.number, chain.head.number - 4]
    # A node that says less later moves nothing back.
    node.finalized_lag = 20
    await mark.step()
    assert (await pair.state()).finalized == chain.head.number - 4


async def test_finality_by_age_where_tags_mean_nothing(
    chain: Chain, node: FakeNode, pair: Pair
) -> None:
    node.finalized_lag = 0
    for _ in range(4):
        chain.mine(5)
        await pair.ear.catch_up()
    await pair.look()
    mark = FinalityMark(pair.rpc, pair.store, lead=pair.ear.lead, age=timedelta(seconds=2))
    await mark.step()
    # Ten blocks of 200 ms are two seconds.
    assert (await pair.state()).finalized == chain.head.number - 10


async def test_a_look_that_ends_after_a_rewind_writes_nothing(
    chain: Chain, node: FakeNode, second_node: FakeNode, pair: Pair
) -> None:
    """What another endpoint told of a chain that is gone meanwhile must not be stored."""
    chain.add(pay(PAYER, SHOP, 1))
    node.twist("eth_getLogs", lambda _, __: [], times=1)
    await pair.ear.catch_up()
    second_node.chain = Chain(first=chain.first, blocks=list(chain.blocks))
    reached, go_on = asyncio.Event(), asyncio.Event()
    repair = pair.store.repair

    async def held(*arguments: Any, **named: Any) -> Any:
        reached.set()
        await go_on.wait()
        return await repair(*arguments, **named)

    pair.store.repair = held  # type: ignore[method-assign]
    look = asyncio.create_task(pair.second_look_of_store().step())
    await reached.wait()
    chain.reorg(1)
    chain.mine(3)
    second_node.chain = chain
    await pair.ear.catch_up()
    go_on.set()
    with pytest.raises(NotLeading, match="rolled back"):
        await look
    assert await live(pair.ear) == []


async def test_an_endpoint_that_refuses_even_one_block_does_not_hold_up_the_mark(
    chain: Chain, second_node: FakeNode, pair: Pair
) -> None:
    chain.add(pay(PAYER, SHOP, 1))
    await pair.ear.catch_up()
    second_node.max_blocks = (0, RANGE_REFUSALS["Infura results"])
    await pair.look()
    assert (await pair.state()).checked == chain.head.number


async def test_a_header_of_another_backend_orphans_nothing(
    chain: Chain, node: FakeNode, database: Database, rpc: HttpRpc
) -> None:
    """One backend of a balancer is on a dead branch: it lacks the end of the range."""
    ear = Ear(database=database, rpc=rpc)
    await ear.catch_up()
    chain.add(pay(PAYER, SHOP, 1))
    chain.mine(2)
    await ear.catch_up()
    node.twist("eth_getLogs", lambda _, __: [], times=1)
    asked: list[str] = []

    def stale(params: Any, header: Any) -> Any:
        """The range's end is looked at twice by who reads it, and then by the judge."""
        asked.append(params[0])
        is_dead = params[0] == hex(1011) or asked.count(hex(1013)) > 2
        return {**header, "hash": "0x" + "ab" * 32} if is_dead else header

    node.twist("eth_getBlockByNumber", stale)
    second_look = second_look_of(ear, rpc, [], NOW)
    assert await second_look.step() is False
    assert (await live(ear), await orphaned(ear)) == ([1], [])
