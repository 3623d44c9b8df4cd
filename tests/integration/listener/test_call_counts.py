"""How many calls the listener makes: nodes are paid by the call, and each one is latency.

A request is one HTTP exchange; it may hold several calls.
"""

from collections.abc import Mapping
from typing import Final

from db.pool import Database
from listener.rpc import ChainReader, HttpRpc
from oncepaid.domain.chain import BlockHash, BlockRef
from tests.fakes.blocks import (
    Chain,
    authorization_log,
    call_through,
    call_token,
    nonce_of,
    pay,
    transfer_log,
)
from tests.fakes.node import FakeNode
from tests.fakes.twists import changed_logs
from tests.integration.listener.rig import MEMO, PAYER, SHOP, STRANGER, Ear

VERIFY: Final = {"eth_chainId": 1, "eth_getCode": 1}
BLOCK: Final = "eth_getBlockByNumber"
LOGS: Final = "eth_getLogs"
TRANSACTION: Final = "eth_getTransactionByHash"
RECEIPT: Final = "eth_getTransactionReceipt"
AUTHORIZED: Final = (authorization_log(PAYER, nonce_of(MEMO)), transfer_log(PAYER, SHOP, 5))


def reset(node: FakeNode) -> None:
    node.calls.clear()
    node.posts = 0


def counted(node: FakeNode) -> tuple[int, Mapping[str, int]]:
    return node.posts, dict(node.calls)


async def test_a_first_start(database: Database, node: FakeNode, rpc: HttpRpc) -> None:
    await Ear(database=database, rpc=rpc).catch_up()
    # The genesis, the head twice, and ten blocks further and further below it.
    assert counted(node) == (4, {**VERIFY, BLOCK: 1 + 2 + 10})


async def test_an_idle_tick(node: FakeNode, ear: Ear) -> None:
    reset(node)
    await ear.listener.step()
    assert counted(node) == (1, {BLOCK: 1})


async def test_a_tick_with_new_empty_blocks(chain: Chain, node: FakeNode, ear: Ear) -> None:
    """The head, the logs, and both ends of the range in one request."""
    chain.mine(25)
    reset(node)
    await ear.catch_up()
    assert counted(node) == (3, {BLOCK: 3, LOGS: 1})


async def test_a_payment_found_by_a_tick(chain: Chain, node: FakeNode, ear: Ear) -> None:
    chain.add(pay(PAYER, SHOP, 5, memo=MEMO))
    reset(node)
    await ear.catch_up()
    assert counted(node) == (3, {BLOCK: 2, LOGS: 1, TRANSACTION: 1})


async def test_a_payment_that_was_pushed(chain: Chain, node: FakeNode, ear: Ear) -> None:
    """Two requests between the push and the stored row, one after the other."""
    block = chain.add(pay(PAYER, SHOP, 5, memo=MEMO))
    reset(node)
    ear.listener.hear(BlockRef(number=block.number, hash=BlockHash(block.hash)))
    await ear.listener.step()
    assert counted(node) == (2, {BLOCK: 1, LOGS: 1, TRANSACTION: 1})
    assert len(await ear.payments()) == 1


async def test_an_authorized_payment_that_was_pushed(
    chain: Chain, node: FakeNode, ear: Ear
) -> None:
    block = chain.add(call_token(STRANGER, *AUTHORIZED))
    reset(node)
    ear.listener.hear(BlockRef(number=block.number, hash=BlockHash(block.hash)))
    await ear.listener.step()
    assert counted(node) == (3, {BLOCK: 1, LOGS: 2, TRANSACTION: 1})


async def test_a_payment_through_a_contract_that_was_pushed(
    chain: Chain, node: FakeNode, ear: Ear
) -> None:
    """Its receipt tells of authorizations too."""
    block = chain.add(call_through(STRANGER, *AUTHORIZED))
    reset(node)
    ear.listener.hear(BlockRef(number=block.number, hash=BlockHash(block.hash)))
    await ear.listener.step()
    assert counted(node) == (3, {BLOCK: 1, LOGS: 1, TRANSACTION: 1, RECEIPT: 1})


async def test_payments_of_all_kinds_in_one_range(chain: Chain, node: FakeNode, ear: Ear) -> None:
    """Authorizations and receipts are asked for in one request, whatever their number."""
    for _ in range(10):
        chain.add(pay(PAYER, SHOP, 5), call_token(STRANGER, *AUTHORIZED))
        chain.add(call_through(STRANGER, *AUTHORIZED), call_through(STRANGER, *AUTHORIZED))
    reset(node)
    await ear.catch_up()
    assert counted(node) == (4, {BLOCK: 3, LOGS: 2, TRANSACTION: 40, RECEIPT: 20})
    assert len(await ear.payments()) == 40


async def test_a_hundred_payments(chain: Chain, node: FakeNode, ear: Ear) -> None:
    """102 calls, the range's ends and the transactions, are two batches."""
    for number in range(50):
        chain.add(pay(PAYER, SHOP, 2 * number + 1), pay(PAYER, SHOP, 2 * number + 2))
    reset(node)
    await ear.catch_up()
    assert counted(node) == (4, {BLOCK: 3, LOGS: 1, TRANSACTION: 100})
    assert len(await ear.payments()) == 100


async def test_payments_in_three_blocks_without_timestamps(
    chain: Chain, node: FakeNode, ear: Ear
) -> None:
    for number in range(3):
        chain.add(pay(PAYER, SHOP, number + 1))
    node.twist("eth_getLogs", changed_logs(blockTimestamp=None, blockTimestampMs=None))
    reset(node)
    await ear.catch_up()
    # Besides head and ends, two of the three blocks; the last one is the range's end.
    assert counted(node) == (4, {BLOCK: 5, LOGS: 1, TRANSACTION: 3})


async def test_several_payments_of_one_transaction(chain: Chain, node: FakeNode, ear: Ear) -> None:
    one = transfer_log(PAYER, SHOP, 5)
    chain.add(call_through(STRANGER, one, one, one))
    reset(node)
    await ear.catch_up()
    assert counted(node) == (4, {BLOCK: 2, LOGS: 1, TRANSACTION: 1, RECEIPT: 1})


async def test_settling_asks_for_hashes_in_one_request(node: FakeNode, rpc: HttpRpc) -> None:
    await rpc.verify()
    reset(node)
    await ChainReader(rpc).hashes([1000, 1001, 1002])
    assert counted(node) == (1, {BLOCK: 3})


async def test_a_backlog_of_three_ranges(
    database: Database, chain: Chain, node: FakeNode, rpc: HttpRpc
) -> None:
    """Each range costs its logs, two looks at its end and one at its start, besides the head."""
    await rpc.verify()
    ear = Ear(database=database, rpc=rpc, start_block=1011, max_range_blocks=20)
    chain.mine(60)
    reset(node)
    await ear.catch_up()
    # The first cursor and ten blocks below it; three heads; two ends, the last one being the head;
    # both ends again.
    assert counted(node) == (13, {BLOCK: 1 + 10 + 3 + 2 + 3 * 2, LOGS: 3})
