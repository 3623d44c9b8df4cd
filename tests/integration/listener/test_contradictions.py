"""Nodes that change their mind, lie or break off: nothing is stored until the answers agree."""

from typing import Any, Final

import pytest

from db.pool import Database
from listener import exchange
from oncepaid.domain.errors import (
    InconsistentNode,
    NodeUnavailable,
    RangeRefused,
)
from tests.fakes.blocks import Chain, pay
from tests.fakes.node import FakeNode, Twist
from tests.fakes.refusals import Page, Spoil
from tests.fakes.twists import answers, changed_logs
from tests.integration.listener.rig import (
    PAYER,
    SHOP,
    STRANGER,
    Ear,
    rpc_for,
    units_of,
)

pytestmark = pytest.mark.fault("F12", "F13")


async def test_an_end_that_changes_between_two_looks(
    chain: Chain, node: FakeNode, ear: Ear
) -> None:
    """The logs come from a fork that is gone when its end is looked at again."""
    before = await ear.cursor()
    chain.add(pay(PAYER, SHOP, 1))

    def reorg_behind(_: object, result: Any) -> Any:
        chain.reorg(1, pay(STRANGER, SHOP, 2))
        return result

    node.twist("eth_getLogs", reorg_behind, times=1)
    with pytest.raises(InconsistentNode, match="was replaced while"):
        await ear.catch_up()
    assert (await ear.payments(), await ear.cursor()) == ([], before)
    await ear.catch_up()
    assert units_of(await ear.payments()) == [2]
    assert await ear.cursor() == (1011, chain.head.hash)


@pytest.mark.parametrize("number", ["0x3e8", "0x7d0"])
async def test_logs_of_other_blocks_are_refused(
    chain: Chain, node: FakeNode, ear: Ear, number: str
) -> None:
    before = await ear.cursor()
    chain.add(pay(PAYER, SHOP, 1))
    node.twist("eth_getLogs", changed_logs(blockNumber=number), times=1)
    with pytest.raises(InconsistentNode, match="returned a log of block"):
        await ear.catch_up()
    assert (await ear.payments(), await ear.cursor()) == ([], before)


@pytest.mark.parametrize("is_at_end", [True, False])
async def test_logs_of_a_fork_are_refused(
    chain: Chain, node: FakeNode, ear: Ear, is_at_end: bool
) -> None:
    """Backends of one endpoint stand on different forks: logs and transactions from the other."""
    before = await ear.cursor()
    chain.add(pay(PAYER, SHOP, 1))
    if not is_at_end:
        chain.mine(3)
    fork = "0x" + "ab" * 32
    node.twist("eth_getLogs", changed_logs(blockHash=fork), times=1)
    node.twist("eth_getTransactionByHash", lambda _, t: {**t, "blockHash": fork}, times=1)
    if is_at_end:
        with pytest.raises(InconsistentNode, match="of another block"):
            await ear.catch_up()
        assert (await ear.payments(), await ear.cursor()) == ([], before)
    else:
        # Nothing in the middle of a range can be told by its end; settling looks again.
        await ear.catch_up()
        assert [row["block_hash"] for row in await ear.payments()] == [fork]


async def test_odd_answers_to_get_logs(chain: Chain, node: FakeNode, ear: Ear) -> None:
    before = await ear.cursor()
    chain.add(pay(PAYER, SHOP, 1))
    odd: list[Any] = [None, {}, "logs", [None], [5]]
    for answer in odd:
        node.twist("eth_getLogs", answers(answer), times=1)
        with pytest.raises(InconsistentNode):
            await ear.catch_up()
        assert (await ear.payments(), await ear.cursor()) == ([], before), answer
    await ear.catch_up()
    assert units_of(await ear.payments()) == [1]


ODD_TRANSACTIONS: Final[dict[str, Twist]] = {
    "null": answers(None),
    "a number": answers(5),
    "pending": lambda _, t: {**t, "blockHash": None},
    "in another block": lambda _, t: {**t, "blockHash": "0x" + "ab" * 32},
    "bad hex": lambda _, t: {**t, "input": "0xzz"},
    "a list": lambda _, t: {**t, "input": [1]},
    "a short hash": lambda _, t: {**t, "hash": "0x12"},
}


async def test_odd_transactions_are_waited_out(chain: Chain, node: FakeNode, ear: Ear) -> None:
    """Never stored without its memo, which a retry finds: the memo decides whose job is paid."""
    before = await ear.cursor()
    chain.add(pay(PAYER, SHOP, 1))
    for name, change in ODD_TRANSACTIONS.items():
        node.twist("eth_getTransactionByHash", change, times=1)
        with pytest.raises(InconsistentNode):
            await ear.catch_up()
        assert (await ear.payments(), await ear.cursor()) == ([], before), name
    await ear.catch_up()
    assert units_of(await ear.payments()) == [1]


async def test_a_head_that_goes_backwards_is_a_lagging_node(
    chain: Chain, node: FakeNode, ear: Ear
) -> None:
    chain.add(pay(PAYER, SHOP, 1))
    await ear.catch_up()
    before = await ear.cursor()
    node.head_lag = 7
    assert await ear.listener.step() is False
    assert await ear.cursor() == before
    node.head_lag = 0
    chain.add(pay(PAYER, SHOP, 2))
    await ear.catch_up()
    assert units_of(await ear.payments()) == [1, 2]


async def test_a_node_without_the_block_of_the_cursor(
    chain: Chain, node: FakeNode, ear: Ear
) -> None:
    """A gap in a node's memory is no fork."""
    before = await ear.cursor()
    chain.add(pay(PAYER, SHOP, 1))
    chain.mine(3)
    node.twist("eth_getBlockByNumber", lambda p, h: None if p[0] == hex(1010) else h, times=2)
    with pytest.raises(InconsistentNode, match="and not 1010"):
        await ear.catch_up()
    assert (await ear.payments(), await ear.cursor()) == ([], before)
    await ear.catch_up()
    assert units_of(await ear.payments()) == [1]


async def test_a_paying_block_that_moved_is_noticed_by_its_time(
    chain: Chain, node: FakeNode, ear: Ear
) -> None:
    chain.add(pay(PAYER, SHOP, 1))
    chain.mine(2)
    node.twist("eth_getLogs", changed_logs(blockTimestamp=None, blockTimestampMs=None))
    odd = {"hash": "0x" + "ab" * 32}
    node.twist(
        "eth_getBlockByNumber", lambda p, h: {**h, **odd} if p[0] == hex(1011) else h, times=None
    )
    with pytest.raises(InconsistentNode, match="paying block"):
        await ear.catch_up()
    assert await ear.payments() == []


@pytest.mark.parametrize("page", [Page(status=502, body="<html>"), Spoil.TRUNCATED, Spoil.CUT])
async def test_a_fault_at_any_call_is_made_good(
    chain: Chain, node: FakeNode, ear: Ear, page: Page | Spoil
) -> None:
    for at in range(3):
        before, count = await ear.cursor(), len(await ear.payments())
        chain.add(pay(PAYER, SHOP, at + 1))
        node.next_http(*[None] * at, page)
        with pytest.raises(NodeUnavailable):
            await ear.catch_up()
        assert (len(await ear.payments()), await ear.cursor()) == (count, before)
        await ear.catch_up()
        assert units_of(await ear.payments()) == [number + 1 for number in range(at + 1)]


async def test_a_node_that_contradicts_itself_is_left(
    database: Database, chain: Chain, node: FakeNode, second_node: FakeNode
) -> None:
    async with rpc_for(node.url, second_node.url) as pair:
        ear = Ear(database=database, rpc=pair)
        await ear.catch_up()
        chain.add(pay(PAYER, SHOP, 1))
        node.twist("eth_getTransactionByHash", lambda _, __: None)
        assert await ear.insist() == 1
        assert units_of(await ear.payments()) == [1]
        assert second_node.calls["eth_getLogs"] == 1


async def test_a_large_header_answer_is_no_reason_to_stop(
    chain: Chain, node: FakeNode, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.add(pay(PAYER, SHOP, 1))
    monkeypatch.setattr(exchange, "MAX_BODY_BYTES", 5_000)
    node.twist("eth_getBlockByNumber", lambda _, h: {**h, "extraData": "0" * 9_000}, times=1)
    with pytest.raises(RangeRefused):
        await ear.catch_up()
    await ear.catch_up()
    assert units_of(await ear.payments()) == [1]
