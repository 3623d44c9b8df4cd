"""Reorganisations: back to the common ancestor in one transaction, and nothing counts twice."""

from typing import Any

import pytest

from db.pool import Database
from db.ranges import RangeStore
from listener.reorg import LOOKS_BEFORE_CONFLICT
from listener.rpc import HttpRpc
from listener.second_look import FinalityMark
from oncepaid.domain.chain import BlockHash, BlockRef
from oncepaid.domain.errors import ChainConflict, InconsistentNode, NodeBehind, NotLeading
from tests.fakes.blocks import CHAIN_ID, Chain, pay
from tests.fakes.node import FakeNode, start_node
from tests.integration.listener.rig import PAYER, SHOP, STRANGER, Ear, rpc_for, units_of

pytestmark = pytest.mark.fault("F15")


async def live(ear: Ear) -> list[int]:
    """Return the amounts of the payments that count."""
    return units_of([row for row in await ear.payments() if row["status"] != "orphaned"])


async def orphaned(ear: Ear) -> list[int]:
    return units_of([row for row in await ear.payments() if row["status"] == "orphaned"])


def samples(ear: Ear, name: str) -> float:
    return ear.metrics.registry.get_sample_value(name) or 0.0


@pytest.mark.parametrize("depth", [1, 3, 12, 36, 80])
async def test_the_paying_block_is_replaced(chain: Chain, ear: Ear, depth: int) -> None:
    """The cursor goes back, the payment is orphaned, and what is there instead is read."""
    chain.add(pay(PAYER, SHOP, 1))
    chain.mine(depth - 1)
    await ear.catch_up()
    assert await live(ear) == [1]
    chain.reorg(depth, pay(STRANGER, SHOP, 2))
    chain.mine(2)
    await ear.catch_up()
    assert (await live(ear), await orphaned(ear)) == ([2], [1])
    assert await ear.cursor() == (chain.head.number, chain.head.hash)
    assert samples(ear, "oncepaid_reorgs_total") == 1
    assert samples(ear, "oncepaid_reorg_depth_blocks_sum") >= depth


async def test_a_fork_at_the_very_cursor(chain: Chain, ear: Ear) -> None:
    """The head has another hash at the same height."""
    chain.add(pay(PAYER, SHOP, 1))
    await ear.catch_up()
    chain.reorg(1, pay(STRANGER, SHOP, 2))
    await ear.catch_up()
    assert (await live(ear), await orphaned(ear)) == ([2], [1])


async def test_payments_below_the_fork_are_left_alone(chain: Chain, ear: Ear) -> None:
    """They lie above the last checkpoint, but their block is still there: the same rows stay."""
    chain.add(pay(PAYER, SHOP, 1))
    chain.mine(5)
    await ear.catch_up()
    before = await ear.payments()
    chain.reorg(3)
    chain.mine(1)
    await ear.catch_up()
    assert await ear.payments() == before


async def test_a_transaction_that_is_mined_again(chain: Chain, ear: Ear) -> None:
    """In another block and at another index: one row counts, the other one is orphaned."""
    paid = chain.add(pay(PAYER, SHOP, 1))
    await ear.catch_up()
    chain.remine(1, paid, blocks_later=2, at_index=7)
    await ear.catch_up()
    first, second = await ear.payments()
    assert first["tx_hash"] == second["tx_hash"]
    assert [first["status"], second["status"]] == ["orphaned", "seen"]
    assert second["log_index"] == 7


async def test_the_old_chain_comes_back(chain: Chain, ear: Ear) -> None:
    """A row whose block returns counts again, and it is the same row."""
    chain.add(pay(PAYER, SHOP, 1))
    await ear.catch_up()
    old = list(chain.blocks)
    chain.reorg(1)
    chain.mine(1)
    await ear.catch_up()
    assert await orphaned(ear) == [1]
    chain.blocks[:] = old
    chain.mine(2)
    await ear.catch_up()
    (row,) = await ear.payments()
    assert (row["status"], row["orphaned_from"]) == ("seen", None)


async def test_a_chain_that_became_shorter(chain: Chain, ear: Ear) -> None:
    """Six blocks give way to three: nothing is done until the new chain is past the cursor."""
    chain.add(pay(PAYER, SHOP, 1))
    chain.mine(5)
    await ear.catch_up()
    cursor = await ear.cursor()
    chain.reorg(6)
    chain.cut(3)
    assert await ear.listener.step() is False
    assert await ear.cursor() == cursor
    chain.mine(4)
    await ear.catch_up()
    assert (await live(ear), await orphaned(ear)) == ([], [1])


async def test_a_lone_endpoint_on_a_fork_is_left(
    database: Database, chain: Chain, node: FakeNode
) -> None:
    """Another endpoint still has the cursor's block: nothing is rewound."""
    other_chain = Chain(first=chain.first, blocks=list(chain.blocks))
    async with start_node(other_chain) as other, rpc_for(other.url, node.url) as pair:
        ear = Ear(database=database, rpc=pair)
        await ear.catch_up()
        other_chain.reorg(2)
        other_chain.mine(1)
        before = await ear.cursor()
        with pytest.raises(InconsistentNode, match="still has block"):
            await ear.catch_up()
        assert await ear.cursor() == before
        assert samples(ear, "oncepaid_provider_disagreements_total") == 1
        chain.add(pay(PAYER, SHOP, 5))
        await ear.catch_up()
        assert await live(ear) == [5]


async def test_a_fork_below_what_was_final(
    database: Database, chain: Chain, node: FakeNode, ear: Ear
) -> None:
    """Nothing is changed and a conflict is declared, which stops all crediting."""
    chain.mine(20)
    await ear.catch_up()
    store = RangeStore(database, CHAIN_ID)
    head = BlockRef(number=chain.head.number, hash=BlockHash(chain.head.hash))
    await store.repair(head.number, [], [], epoch=1, checked=head.number, anchor=head)
    mark = FinalityMark(ear.rpc, store, lead=ear.lead)
    node.finalized_lag = 2
    await mark.step()
    chain.add(pay(PAYER, SHOP, 1))
    await ear.catch_up()
    before = await ear.cursor()
    chain.reorg(15)
    chain.mine(1)
    for _ in range(LOOKS_BEFORE_CONFLICT - 1):
        with pytest.raises(InconsistentNode, match="was final"):
            await ear.listener.step()
    state = await store.state()
    assert state is not None
    assert state.conflict is None
    for _ in range(2):
        with pytest.raises(ChainConflict, match="was final"):
            await ear.listener.step()
    assert (await ear.cursor(), await live(ear)) == (before, [1])
    state = await store.state()
    assert state is not None
    assert state.conflict is not None


async def test_a_reorg_below_the_first_cursor(
    database: Database, chain: Chain, rpc: HttpRpc
) -> None:
    """Young ledgers have no checkpoint of their own below: the first start left some."""
    ear = Ear(database=database, rpc=rpc)
    await ear.catch_up()
    chain.reorg(5, pay(PAYER, SHOP, 9))
    chain.mine(1)
    await ear.catch_up()
    assert await live(ear) == [9]


async def test_a_listener_that_no_longer_leads_rewinds_nothing(chain: Chain, ear: Ear) -> None:
    chain.add(pay(PAYER, SHOP, 1))
    await ear.catch_up()
    before = await ear.cursor()
    ear.lead.epoch = 0
    chain.reorg(1)
    chain.mine(1)
    with pytest.raises(NotLeading):
        await ear.listener.step()
    assert (await ear.cursor(), await live(ear)) == (before, [1])


async def test_a_short_answer_after_a_rewind_orphans_nothing(
    chain: Chain, node: FakeNode, ear: Ear
) -> None:
    """A row whose block stands and whose receipt has the log stays, whatever the logs leave out."""
    chain.add(pay(PAYER, SHOP, 1))
    chain.mine(5)
    await ear.catch_up()
    chain.reorg(3)
    chain.mine(1)
    # Before it sees that its cursor is gone it has asked once.
    node.twist("eth_getLogs", lambda _, __: [], times=2)
    await ear.catch_up()
    assert await live(ear) == [1]
    assert samples(ear, "oncepaid_provider_disagreements_total") == 1


async def test_a_phantom_is_orphaned(chain: Chain, node: FakeNode, ear: Ear) -> None:
    """A log of a proper block that nobody has a receipt of was never there."""
    chain.add(pay(PAYER, SHOP, 1))
    chain.mine(5)

    def invented(_: Any, logs: Any) -> Any:
        return [*logs, {**logs[0], "logIndex": "0x63"}]

    node.twist("eth_getLogs", invented, times=1)
    await ear.catch_up()
    assert await live(ear) == [1, 1]
    chain.reorg(3)
    chain.mine(1)
    await ear.catch_up()
    assert (await live(ear), await orphaned(ear)) == ([1], [1])


async def test_an_endpoint_that_stopped_on_a_dead_branch_holds_nobody_there(
    database: Database, chain: Chain, node: FakeNode, second_node: FakeNode
) -> None:
    """It still has the cursor's block, and its own head is old: its word does not count."""
    async with rpc_for(node.url, second_node.url) as pair:
        ear = Ear(database=database, rpc=pair)
        chain.add(pay(PAYER, SHOP, 1))
        await ear.catch_up()
        second_node.chain = Chain(first=chain.first, blocks=list(chain.blocks))
        chain.add(pay(PAYER, SHOP, 2))
        second_node.chain.blocks.append(chain.head)
        await ear.catch_up()
        chain.reorg(1)
        chain.mine(30)
        await ear.catch_up()
        assert (await live(ear), await orphaned(ear)) == ([], [2])
        assert await ear.cursor() == (chain.head.number, chain.head.hash)


@pytest.mark.parametrize("finalized", [False, True])
async def test_a_backend_without_the_blocks_of_a_fork_is_waited_for(
    database: Database, chain: Chain, node: FakeNode, ear: Ear, finalized: bool
) -> None:
    """A sibling of the head came from one backend, and nothing below it from another one."""
    chain.add(pay(PAYER, SHOP, 1))
    await ear.catch_up()
    if finalized:
        async with database.connection() as connection:
            await connection.execute("UPDATE chain_cursor SET finalized_number = block_number")
    before = await ear.cursor()
    sibling = {"hash": "0x" + "ab" * 32}
    node.twist(
        "eth_getBlockByNumber",
        lambda p, h: {**h, **sibling} if p[0] == "latest" else None if p[0] != "0x0" else h,
    )
    with pytest.raises(NodeBehind):
        await ear.listener.step()
    state = await RangeStore(database, CHAIN_ID).state()
    assert state is not None
    assert (state.conflict, await ear.cursor(), await live(ear)) == (None, before, [1])


async def test_a_reorg_below_the_start_is_ours_to_know_from_there_on(
    database: Database, chain: Chain, ear: Ear
) -> None:
    chain.reorg(5)
    chain.mine(1)
    await ear.catch_up()
    state = await RangeStore(database, CHAIN_ID).state()
    assert state is not None
    assert state.start is not None
    assert state.start < 1006


async def test_a_contradiction_that_passes_is_no_conflict(
    database: Database, chain: Chain, node: FakeNode, ear: Ear
) -> None:
    """A node that is on another fork for a moment must not stop all crediting."""
    chain.mine(3)
    await ear.catch_up()
    async with database.connection() as connection:
        await connection.execute("UPDATE chain_cursor SET finalized_number = block_number")
    true = chain.blocks
    for units in range(1, 2 * LOOKS_BEFORE_CONFLICT):
        chain.blocks = list(true)
        chain.reorg(chain.head.number - 1012)
        chain.mine(1)
        with pytest.raises(InconsistentNode, match="was final"):
            await ear.listener.step()
        chain.blocks = true
        chain.add(pay(PAYER, SHOP, units))
        await ear.catch_up()
    state = await RangeStore(database, CHAIN_ID).state()
    assert state is not None
    assert state.conflict is None


async def test_a_ledger_without_checkpoints_finds_back_by_its_payments(
    database: Database, chain: Chain, ear: Ear
) -> None:
    """As after an upgrade, or once an operator has accepted a chain below what was final."""
    for units in (1, 2, 3):
        chain.add(pay(PAYER, SHOP, units))
        chain.mine(3)
        await ear.catch_up()
    async with database.connection() as connection:
        await connection.execute(
            "DELETE FROM chain_checkpoints WHERE block_number < $1", chain.head.number
        )
    chain.reorg(9, pay(STRANGER, SHOP, 9))
    chain.mine(1)
    await ear.catch_up()
    assert (sorted(await live(ear)), await orphaned(ear)) == ([1, 9], [2, 3])
    assert await ear.cursor() == (chain.head.number, chain.head.hash)


async def test_a_dead_node_with_a_time_in_the_future_holds_nobody(
    database: Database, chain: Chain, node: FakeNode, second_node: FakeNode
) -> None:
    async with rpc_for(node.url, second_node.url) as pair:
        ear = Ear(database=database, rpc=pair)
        await ear.catch_up()
        second_node.chain = Chain(first=chain.first, blocks=list(chain.blocks))
        far = {"timestamp": hex(2**33), "timestampMs": hex(2**33 * 1000)}
        second_node.twist("eth_getBlockByNumber", lambda _, h: {**h, **far} if h else h)
        chain.reorg(1)
        chain.mine(40)
        await ear.catch_up()
        assert await ear.cursor() == (chain.head.number, chain.head.hash)
