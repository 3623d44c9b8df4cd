"""What an operator says of a refund, held against a real node with Circle's own USDC."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from devchain.anvil import mine
from devchain.stack import Stack, start_stack
from listener.decode import decode_receipt
from listener.refunds import RefundReader, VerifiedRefund
from listener.rpc import HttpRpc
from oncepaid.domain.chain import Address, BlockHash, BlockRef, TransferLog, TxHash, parse_address
from oncepaid.domain.errors import InconsistentNode
from oncepaid.domain.money import Units
from oncepaid.domain.payments import PaymentId, StoredLog
from oncepaid.domain.refunding import (
    BUSY_SENDER,
    NotFinalYet,
    RefundRefusal,
    RefundRefused,
)
from oncepaid.metrics import Metrics
from tests.fakes.blocks import TOKEN, Chain, call_through, pay, transfer_log
from tests.fakes.node import FakeNode
from tests.integration.listener.rig import PAYER, SHOP, STRANGER

PAID = 2_500_000
FINAL_AFTER = 4
"""Blocks, of this node."""
Verdict = VerifiedRefund | NotFinalYet | RefundRefused


class Shop:
    """A dev chain on which a payment came, and what verifies a refund of it."""

    def __init__(self, stack: Stack, rpc: HttpRpc) -> None:
        self.stack = stack
        self.token = parse_address(stack.usdc.address)
        self.merchant = stack.merchant_wallet
        self.ours = frozenset({parse_address(stack.merchant)})
        self.payer = parse_address(stack.payers[0].address)
        self.reader = RefundReader(rpc)
        self.payment: StoredLog

    async def begin(self) -> None:
        await self.stack.usdc.mint(self.stack.merchant, 10 * PAID)
        tx_hash = await self.stack.payers[0].transfer(self.stack.merchant, PAID)
        answer = await self.stack.rpc.receipt(tx_hash)
        receipt = decode_receipt(answer, self.token)
        assert receipt is not None
        (log,) = receipt.transfers
        self.payment = stored(log)

    async def verify(
        self, tx_hash: str, *, to: Address | None = None, age: timedelta | None = None
    ) -> Verdict:
        return await self.reader.verify(
            TxHash(tx_hash), self.payment, token=self.token, ours=self.ours, to=to, age=age
        )

    async def finalize(self) -> None:
        await mine(self.stack.rpc, FINAL_AFTER)

    async def final(self, tx_hash: str, *, to: Address | None = None) -> Verdict:
        await self.finalize()
        return await self.verify(tx_hash, to=to)


def stored(log: TransferLog) -> StoredLog:
    return StoredLog(
        id=PaymentId(1),
        block=log.block,
        tx_hash=log.tx_hash,
        log_index=log.log_index,
        sender=log.sender,
        recipient=log.recipient,
        units=log.units,
    )


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    async with start_stack() as stack:
        metrics = Metrics(CollectorRegistry())
        async with HttpRpc(
            [stack.anvil.http_url],
            chain_id=stack.anvil.chain_id,
            token=parse_address(stack.usdc.address),
            metrics=metrics,
        ) as rpc:
            shop = Shop(stack, rpc)
            await shop.begin()
            yield shop


def reason_of(verdict: Verdict) -> RefundRefusal:
    assert isinstance(verdict, RefundRefused)
    return verdict.reason


async def test_a_refund_counts_once_it_is_final(shop: Shop) -> None:
    sent = await shop.merchant.transfer(shop.payer, PAID)
    early = await shop.verify(sent)
    assert isinstance(early, NotFinalYet)
    assert early.wait is not None
    await mine(shop.stack.rpc, FINAL_AFTER - 1)
    assert isinstance(await shop.verify(sent), NotFinalYet)
    await mine(shop.stack.rpc, 1)
    found = await shop.verify(sent)
    assert isinstance(found, VerifiedRefund)
    (transfer,) = found.transfers
    assert (transfer.tx_hash, transfer.units, transfer.recipient) == (sent, PAID, shop.payer)
    payee = await shop.reader.payee(shop.payer)
    assert (payee.address, payee.is_contract, payee.sent) == (shop.payer, False, 1)
    assert found.warnings == ()


async def test_where_tags_mean_nothing_age_decides(shop: Shop) -> None:
    sent = await shop.merchant.transfer(shop.payer, PAID)
    await shop.finalize()
    await mine(shop.stack.rpc, 1, seconds_later=100)
    early = await shop.verify(sent, age=timedelta(hours=1))
    assert isinstance(early, NotFinalYet)
    assert early.wait is not None
    assert timedelta(minutes=50) < early.wait < timedelta(minutes=59)
    await mine(shop.stack.rpc, 1, seconds_later=3600)
    assert isinstance(await shop.verify(sent, age=timedelta(hours=1)), VerifiedRefund)


async def test_what_is_no_refund_of_it(shop: Shop) -> None:
    stranger = shop.stack.payers[1]
    assert reason_of(await shop.verify("0x" + "9" * 64)) is RefundRefusal.NOT_MINED
    short = await shop.merchant.transfer(shop.payer, PAID - 1)
    elsewhere = await shop.merchant.transfer(stranger.address, PAID)
    gift = await stranger.transfer(shop.payer, PAID)
    failed = await shop.merchant.transfer(shop.payer, 10**15)
    nothing = await shop.merchant.approve(shop.payer, PAID)
    await shop.finalize()
    assert reason_of(await shop.verify(short)) is RefundRefusal.WRONG_AMOUNT
    assert reason_of(await shop.verify(elsewhere)) is RefundRefusal.WRONG_ADDRESS
    assert reason_of(await shop.verify(gift)) is RefundRefusal.NOT_OURS
    assert reason_of(await shop.verify(failed)) is RefundRefusal.REVERTED
    assert reason_of(await shop.verify(nothing)) is RefundRefusal.NOT_OURS
    assert reason_of(await shop.verify(shop.payment.tx_hash)) is RefundRefusal.NOT_OURS


async def test_a_stated_address_is_warned_of(shop: Shop) -> None:
    stranger = parse_address(shop.stack.payers[1].address)
    sent = await shop.merchant.transfer(stranger, PAID)
    found = await shop.final(sent, to=stranger)
    assert isinstance(found, VerifiedRefund)
    (warning,) = found.warnings
    assert warning == f"{stranger} is not the payer, {shop.payer}"


async def test_contracts_exchanges_and_wallets_that_borrow_code(shop: Shop) -> None:
    rpc = shop.stack.rpc
    sent = await shop.merchant.transfer(shop.payer, PAID)
    await rpc.call("anvil_setNonce", shop.payer, hex(BUSY_SENDER + 1))
    found = await shop.final(sent)
    assert isinstance(found, VerifiedRefund)
    assert [f"has sent {BUSY_SENDER + 1} transactions" in one for one in found.warnings] == [True]
    delegated = "0xef0100" + "ab" * 20
    await rpc.call("anvil_setCode", shop.payer, delegated)
    assert not (await shop.reader.payee(shop.payer)).is_contract
    await rpc.call("anvil_setCode", shop.payer, "0x6080")
    found = await shop.verify(sent)
    assert isinstance(found, VerifiedRefund)
    assert [f"{shop.payer} is a contract" in one for one in found.warnings] == [True]


async def verify_on(rpc: HttpRpc, tx_hash: str) -> Verdict:
    """Verify a refund on a made-up chain, of a payment in its first block."""
    payment = StoredLog(
        id=PaymentId(1),
        block=BlockRef(number=1000, hash=BlockHash("0x" + "2" * 64)),
        tx_hash=TxHash("0x" + "1" * 64),
        log_index=0,
        sender=PAYER,
        recipient=SHOP,
        units=Units(PAID),
    )
    ours = frozenset({SHOP})
    return await RefundReader(rpc).verify(TxHash(tx_hash), payment, token=TOKEN, ours=ours)


async def test_a_batch_holds_several_refunds_alike(
    chain: Chain, node: FakeNode, rpc: HttpRpc
) -> None:
    alike = [transfer_log(SHOP, PAYER, PAID)] * 2
    batch = chain.add(call_through(SHOP, *alike, transfer_log(SHOP, PAYER, 1)))
    chain.mine(10)
    found = await verify_on(rpc, batch.transactions[0]["hash"])
    assert isinstance(found, VerifiedRefund)
    assert [transfer.log_index for transfer in found.transfers] == [0, 1]


async def test_a_node_that_contradicts_itself_proves_nothing(
    chain: Chain, node: FakeNode, rpc: HttpRpc
) -> None:
    sent = chain.add(pay(SHOP, PAYER, PAID), pay(SHOP, STRANGER, PAID))
    chain.mine(10)
    first, second = (one["hash"] for one in sent.transactions)
    node.twist("eth_getTransactionReceipt", lambda _, told: {**told, "blockHash": "0x" + "7" * 64})
    assert reason_of(await verify_on(rpc, first)) is RefundRefusal.NOT_ON_CHAIN
    node.straighten()
    node.twist("eth_getTransactionReceipt", lambda _, __: chain.receipt(first))
    with pytest.raises(InconsistentNode, match="another transaction"):
        await verify_on(rpc, second)
    node.straighten()
    node.twist("eth_getCode", lambda _, code: None if code == "0x" else code)
    with pytest.raises(InconsistentNode, match="eth_getCode"):
        await verify_on(rpc, first)
