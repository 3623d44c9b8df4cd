"""Every range is asked again: a short answer loses no money, and a phantom does not stay."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from db.pool import Database
from db.ranges import ChainState, RangeStore
from listener.rpc import HttpRpc
from listener.second_look import AFTER, FinalityMark, SecondLook
from oncepaid.domain.errors import NotLeading
from tests.fakes.blocks import (
    CHAIN_ID,
    Chain,
    Log,
    authorization_log,
    call_through,
    nonce_of,
    pay,
    transfer_log,
)
from tests.fakes.node import FakeNode
from tests.fakes.refusals import RANGE_REFUSALS
from tests.fakes.twists import changed_logs
from tests.integration.listener.rig import MEMO, PAYER, SHOP, STRANGER, Ear, memos_of, rpc_for
from tests.integration.listener.test_reorgs import live, orphaned, samples

pytestmark = pytest.mark.fault("F13")

NOW = timedelta(0)


@dataclass(kw_only=True)
class Pair:
    """A listener on the first of two endpoints, and a second look that asks the other one."""

    ear: Ear
    rpc: HttpRpc
    store: RangeStore
    second_look: SecondLook
    repaired: list[None]

    async def look(self) -> None:
        """Look again until nothing is left to look at."""
        while await self.second_look.step():
            pass

    def second_look_of_store(self) -> SecondLook:
        """Return another second look, over `store` as it is now."""
        return SecondLook(
            self.rpc,
            self.store,
            lead=self.ear.lead,
            watch=self.ear.watch,
            metrics=self.ear.metrics,
            after=NOW,
        )

    async def state(self) -> ChainState:
        state = await self.store.state()
        assert state is not None
        return state


def second_look_of(ear: Ear, rpc: HttpRpc, repaired: list[None], after: timedelta) -> SecondLook:
    return SecondLook(
        rpc,
        RangeStore(ear.database, CHAIN_ID),
        lead=ear.lead,
        watch=ear.watch,
        metrics=ear.metrics,
        announce=lambda: repaired.append(None),
        after=after,
    )


@pytest.fixture
async def pair(database: Database, node: FakeNode, second_node: FakeNode) -> AsyncIterator[Pair]:
    async with rpc_for(node.url, second_node.url) as rpc:
        ear = Ear(database=database, rpc=rpc)
        await ear.catch_up()
        repaired: list[None] = []
        yield Pair(
            ear=ear,
            rpc=rpc,
            store=RangeStore(database, CHAIN_ID),
            second_look=second_look_of(ear, rpc, repaired, NOW),
            repaired=repaired,
        )


async def test_what_agrees_is_marked_and_nothing_else(
    chain: Chain, second_node: FakeNode, pair: Pair
) -> None:
    chain.add(pay(PAYER, SHOP, 1, memo=MEMO))
    chain.mine(3)
    await pair.ear.catch_up()
    before = await pair.ear.payments()
    assert (await pair.state()).checked == 1010
    await pair.look()
    assert (await pair.state()).checked == chain.head.number
    assert second_node.calls["eth_getLogs"] == 1
    assert second_node.calls["eth_getTransactionByHash"] == 0
    assert await pair.ear.payments() == before
    assert (pair.repaired, samples(pair.ear, "oncepaid_provider_disagreements_total")) == ([], 0)


async def test_an_empty_answer_is_repaired_with_its_memo(
    chain: Chain, node: FakeNode, pair: Pair
) -> None:
    """The node in use lags, or its backend does: `[]`, and no error."""
    chain.add(pay(PAYER, SHOP, 5, memo=MEMO))
    chain.mine(2)
    node.twist("eth_getLogs", lambda _, __: [])
    await pair.ear.catch_up()
    assert await live(pair.ear) == []
    await pair.look()
    (row,) = await pair.ear.payments()
    assert (row["amount_units"], row["status"], row["block_number"]) == (5, "seen", 1011)
    assert memos_of([row]) == [(MEMO.hex(), "calldata", "payer")]
    assert samples(pair.ear, "oncepaid_provider_disagreements_total") == 1
    assert len(pair.repaired) == 1


async def test_a_part_of_an_answer_is_repaired(chain: Chain, node: FakeNode, pair: Pair) -> None:
    for units in (1, 2, 3):
        chain.add(pay(PAYER, SHOP, units))
    node.twist("eth_getLogs", lambda _, logs: logs[1:2])
    await pair.ear.catch_up()
    assert await live(pair.ear) == [2]
    await pair.look()
    assert await live(pair.ear) == [1, 2, 3]


async def test_the_other_endpoint_may_be_the_one_that_is_short(
    chain: Chain, second_node: FakeNode, pair: Pair
) -> None:
    """What has a receipt stays, and the difference is told."""
    chain.add(pay(PAYER, SHOP, 1))
    await pair.ear.catch_up()
    second_node.twist("eth_getLogs", lambda _, __: [])
    await pair.look()
    assert await live(pair.ear) == [1]
    assert samples(pair.ear, "oncepaid_provider_disagreements_total") == 1
    assert (await pair.state()).checked == chain.head.number


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


async def test_a_phantom_is_taken_out(chain: Chain, node: FakeNode, pair: Pair) -> None:
    chain.add(pay(PAYER, SHOP, 1))

    def invented(_: Any, logs: Any) -> Any:
        return [*logs, {**logs[0], "logIndex": "0x63"}]

    node.twist("eth_getLogs", invented)
    await pair.ear.catch_up()
    assert await live(pair.ear) == [1, 1]
    await pair.look()
    assert (await live(pair.ear), await orphaned(pair.ear)) == ([1], [1])


async def test_a_log_of_a_fork_in_the_middle_is_replaced(
    chain: Chain, node: FakeNode, pair: Pair
) -> None:
    """The end of a range cannot tell that a log inside it came from a backend on a fork."""
    paid = chain.add(pay(PAYER, SHOP, 1))
    chain.mine(3)
    fork = "0x" + "ab" * 32
    node.twist("eth_getLogs", changed_logs(blockHash=fork), times=1)
    node.twist("eth_getTransactionByHash", lambda _, t: {**t, "blockHash": fork}, times=1)
    await pair.ear.catch_up()
    await pair.look()
    rows = {row["block_hash"]: row["status"] for row in await pair.ear.payments()}
    assert rows == {fork: "orphaned", paid.hash: "seen"}


async def test_a_lone_endpoint_is_asked_again_itself(
    database: Database, chain: Chain, node: FakeNode, rpc: HttpRpc
) -> None:
    ear = Ear(database=database, rpc=rpc)
    await ear.catch_up()
    chain.add(pay(PAYER, SHOP, 1))
    node.twist("eth_getLogs", lambda _, __: [], times=1)
    await ear.catch_up()
    assert await live(ear) == []
    second_look = second_look_of(ear, rpc, [], NOW)
    assert await second_look.step()
    assert await live(ear) == [1]


async def test_the_last_seconds_are_left_alone(
    database: Database, chain: Chain, rpc: HttpRpc
) -> None:
    """A node that lags must have had the time to catch up."""
    ear = Ear(database=database, rpc=rpc)
    await ear.catch_up()
    chain.mine(3)
    await ear.catch_up()
    second_look = second_look_of(ear, rpc, [], AFTER)
    assert await second_look.step() is False
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE chain_checkpoints SET stored_at = stored_at - $1::interval", AFTER
        )
    assert await second_look.step() is True
    assert await second_look.step() is False


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


async def test_altered_facts_are_told_and_the_row_stays(
    chain: Chain, second_node: FakeNode, pair: Pair
) -> None:
    chain.add(pay(PAYER, SHOP, 1))
    await pair.ear.catch_up()
    second_node.twist("eth_getLogs", changed_logs(data="0x" + "00" * 31 + "07"))
    await pair.look()
    assert await live(pair.ear) == [1]
    assert samples(pair.ear, "oncepaid_provider_disagreements_total") == 1


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


async def test_a_memo_that_a_short_answer_left_out_is_found(
    chain: Chain, node: FakeNode, pair: Pair
) -> None:
    """The transfers came, and not the authorizations that name their jobs."""
    nonce = authorization_log(PAYER, nonce_of(MEMO))
    chain.add(call_through(STRANGER, nonce, transfer_log(PAYER, SHOP, 5)))
    chain.add(pay(PAYER, SHOP, 6))
    node.twist("eth_getLogs", lambda p, logs: [] if _is_of(p, nonce) else logs)
    await pair.ear.catch_up()
    assert memos_of(await pair.ear.payments()) == []
    async with pair.ear.database.connection() as connection:
        await connection.execute("UPDATE payments SET status = 'unmatched', reason = 'no_memo'")
    await pair.look()
    authorized, bare = await pair.ear.payments()
    assert memos_of([authorized]) == [(MEMO.hex(), "authorization", "payer")]
    assert (authorized["status"], authorized["reason"]) == ("seen", None)
    assert bytes(authorized["memo"]) == MEMO
    assert (bare["status"], bare["reason"]) == ("unmatched", "no_memo")
    assert samples(pair.ear, "oncepaid_provider_disagreements_total") == 1


def _is_of(params: Any, log: Log) -> bool:
    return bool(params[0]["topics"][0] == log.topics[0])


async def test_company_in_a_transaction_is_counted_also_where_a_part_was_missing(
    chain: Chain, node: FakeNode, pair: Pair
) -> None:
    chain.add(call_through(STRANGER, *(transfer_log(PAYER, SHOP, units) for units in (1, 2))))
    node.twist("eth_getLogs", lambda _, logs: logs[:1])
    await pair.ear.catch_up()
    await pair.look()
    assert [row["transfers_in_tx"] for row in await pair.ear.payments()][1:] == [2]


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
