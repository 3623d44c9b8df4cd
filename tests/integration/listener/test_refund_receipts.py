"""Refunds out of user operations: the receipt tells which of them made a transfer."""

import pytest

from listener.refund_watch import MAX_REFUSALS
from oncepaid.domain.chain import TxHash
from oncepaid.domain.errors import CallFailed, InconsistentNode
from oncepaid.domain.refunding import refund_envelope
from tests.fakes.blocks import TOKEN, Chain, Log, Tx, pay, transfer_log
from tests.fakes.node import FakeNode
from tests.fakes.refusals import Refusal
from tests.fakes.twists import refuses
from tests.integration.listener.rig import PAYER, SHOP, STRANGER, Ear
from tests.integration.listener.test_refunds import PAID, Desk, hash_in
from tests.unit.listener.calls import (
    ENTRY_POINT_V7,
    execute,
    handle_ops,
    operation_event,
    operation_v7,
    transfer,
)


@pytest.fixture
def desk(ear: Ear, chain: Chain) -> Desk:
    return Desk(ear=ear, chain=chain)


def wallets_refund(paid_in: TxHash) -> Tx:
    """A refund out of a smart wallet, by a user operation."""
    call = execute(TOKEN, transfer(PAID, PAYER) + refund_envelope(paid_in))
    told = operation_event(1, SHOP)
    end = Log(
        topics=tuple("0x" + topic.hex() for topic in told.topics),
        data="0x" + told.data.hex(),
        address=told.address,
    )
    return Tx(
        sender=STRANGER,
        to=ENTRY_POINT_V7,
        input="0x" + handle_ops(operation_v7(SHOP, call)).hex(),
        logs=(transfer_log(SHOP, PAYER, PAID), end),
    )


@pytest.mark.parametrize("is_too_large", [False, True])
async def test_a_receipt_that_is_too_large_does_not_stop_the_watch(
    desk: Desk, node: FakeNode, is_too_large: bool
) -> None:
    paid = hash_in(desk.chain.add(pay(PAYER, SHOP, PAID)))
    sent = hash_in(desk.chain.add(wallets_refund(paid)))
    if is_too_large:
        refusal = Refusal(code=-32020, text="backend response too large", status=500)
        node.twist("eth_getTransactionReceipt", refuses(refusal))
    await desk.settle()
    assert await desk.refunds() == ([] if is_too_large else [(sent, PAID, "oncepaid")])
    assert await desk.mark() is not None


async def test_a_receipt_that_a_node_never_gives(desk: Desk, node: FakeNode) -> None:
    """It is asked for a few times, since most nodes get well; then the watch goes on without."""
    paid = hash_in(desk.chain.add(pay(PAYER, SHOP, PAID)))
    await desk.settle()
    before = await desk.mark()
    desk.chain.add(wallets_refund(paid))
    refusal = Refusal(code=-32000, text="internal error")
    node.twist("eth_getTransactionReceipt", refuses(refusal))
    for _ in range(MAX_REFUSALS - 1):
        with pytest.raises(CallFailed, match="internal error"):
            await desk.settle()
        assert await desk.mark() == before
    await desk.settle()
    assert [one["reason"] for one in desk.told("refund.refused")] == ["no_receipt"]
    assert await desk.mark() != before
    assert await desk.refunds() == []


async def test_a_receipt_that_a_node_gives_later(desk: Desk, node: FakeNode) -> None:
    paid = hash_in(desk.chain.add(pay(PAYER, SHOP, PAID)))
    sent = hash_in(desk.chain.add(wallets_refund(paid)))
    refusal = Refusal(code=-32000, text="internal error")
    node.twist("eth_getTransactionReceipt", refuses(refusal), times=1)
    with pytest.raises(CallFailed, match="internal error"):
        await desk.settle()
    await desk.settle()
    assert await desk.refunds() == [(sent, PAID, "oncepaid")]


async def test_a_receipt_of_another_block_is_not_believed(desk: Desk, node: FakeNode) -> None:
    paid = hash_in(desk.chain.add(pay(PAYER, SHOP, PAID)))
    desk.chain.add(wallets_refund(paid))
    node.twist("eth_getTransactionReceipt", lambda _, told: {**told, "blockNumber": "0x1"})
    with pytest.raises(InconsistentNode, match=r"receipt of .* is not where its log says"):
        await desk.settle()
    assert await desk.refunds() == []
