"""Every range is asked again: a short answer loses no money, and a phantom does not stay."""

from typing import Any

import pytest

from db.pool import Database
from listener.rpc import HttpRpc
from listener.second_look import AFTER
from tests.fakes.blocks import (
    Chain,
    Log,
    authorization_log,
    call_through,
    nonce_of,
    pay,
    transfer_log,
)
from tests.fakes.node import FakeNode
from tests.fakes.refusals import Refusal
from tests.fakes.twists import changed_logs, refuses
from tests.integration.listener.pairs import NOW, Pair, second_look_of
from tests.integration.listener.rig import MEMO, PAYER, SHOP, STRANGER, Ear, memos_of
from tests.integration.listener.test_reorgs import live, orphaned, samples

pytestmark = pytest.mark.fault("F13")


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


async def test_altered_facts_are_told_and_the_row_stays(
    chain: Chain, second_node: FakeNode, pair: Pair
) -> None:
    chain.add(pay(PAYER, SHOP, 1))
    await pair.ear.catch_up()
    second_node.twist("eth_getLogs", changed_logs(data="0x" + "00" * 31 + "07"))
    await pair.look()
    assert await live(pair.ear) == [1]
    assert samples(pair.ear, "oncepaid_provider_disagreements_total") == 1


async def test_a_memo_that_a_short_answer_left_out_is_found(
    chain: Chain, node: FakeNode, pair: Pair
) -> None:
    """The transfers came, without the receipt and the authorization that names a job."""
    nonce = authorization_log(PAYER, nonce_of(MEMO))
    chain.add(call_through(STRANGER, nonce, transfer_log(PAYER, SHOP, 5)))
    chain.add(pay(PAYER, SHOP, 6))
    too_large = Refusal(code=-32020, text="backend response too large", status=500)
    node.twist("eth_getTransactionReceipt", refuses(too_large))
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
