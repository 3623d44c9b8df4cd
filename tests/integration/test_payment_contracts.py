"""Contracts between a payer and the token: batches, delegates, proxies and authorizations."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from eth_utils.crypto import keccak

from devchain.contracts.authorization import (
    Kind,
    Terms,
    call_with_bytes,
    call_with_parts,
    digest_of,
)
from devchain.contracts.delegated import Code, delegate
from devchain.contracts.delegation import redeem
from devchain.contracts.multicall import MULTICALL3, Form, multicall
from devchain.contracts.placing import place_contracts
from devchain.contracts.request_network import FEE_PROXY, pay_with_reference
from devchain.contracts.safe import create_safe
from devchain.contracts.sending import (
    send,
    sign_digest,
    transfer,
    transfer_from,
)
from devchain.rpc import RpcError
from devchain.stack import Stack, start_stack
from devchain.wallet import Wallet
from tests.integration.mined import TRANSFER, mined, paid

FUNDS = 1_000
AUTHORIZATION_USED = "0x" + keccak(text="AuthorizationUsed(address,bytes32)").hex()
WITH_REFERENCE = "0x9f16cbcc523c67a60c450e5ffe4f3b7b6dbe772e7abcadb2686ce029a9a0a2b6"


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def placed() -> AsyncIterator[Stack]:
    async with start_stack(payers=4, funds_units=FUNDS) as running:
        await place_contracts(running.rpc)
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def stack(placed: Stack) -> AsyncIterator[Stack]:
    """The same chain for each test, as it was before the others."""
    before = await placed.rpc.call("evm_snapshot")
    yield placed
    assert await placed.rpc.call("evm_revert", before)


@pytest.mark.parametrize("form", Form, ids=lambda one: one.name)
async def test_multicall_by_a_spender(stack: Stack, form: Form) -> None:
    owner = stack.payers[0]
    await stack.rpc.receipt(await owner.approve(MULTICALL3, FUNDS))
    calls = [
        transfer_from(stack.usdc, owner.address, stack.merchant, units, b"%d" % units)
        for units in (3, 4)
    ]
    found = await mined(stack, await multicall(stack.relayer, calls, form=form, tail=b"outer"))
    assert found.transfers == [paid(owner, stack.merchant, 3), paid(owner, stack.merchant, 4)]
    selectors = {
        Form.AGGREGATE: "252dba42",
        Form.TRY_AGGREGATE: "bce38bd7",
        Form.AGGREGATE3: "82ad56cb",
        Form.AGGREGATE3_VALUE: "174dea71",
    }
    assert found.data[:4].hex() == selectors[form]


@pytest.mark.parametrize("form", [*Form][1:], ids=lambda one: one.name)
async def test_multicall_goes_on_after_a_call_that_fails(stack: Stack, form: Form) -> None:
    owner = stack.payers[0]
    await stack.rpc.receipt(await owner.approve(MULTICALL3, 3))
    calls = [
        transfer_from(stack.usdc, owner.address, stack.merchant, units, b"%d" % units)
        for units in (4, 3)
    ]
    with pytest.raises(RpcError, match="reverted"):
        await stack.rpc.receipt(await multicall(stack.relayer, calls, form=form))
    found = await mined(stack, await multicall(stack.relayer, calls, form=form, may_fail=True))
    assert found.transfers == [paid(owner, stack.merchant, 3)]


async def test_delegate_chooses_the_bytes_of_a_payment(stack: Stack) -> None:
    payer = await delegate(stack.payers[0], Code.METAMASK)
    call = transfer(stack.usdc, stack.merchant, 7, b"the delegate's")
    found = await mined(stack, await redeem(payer, stack.relayer, call, tail=b"outer"))
    assert found.transfers == [paid(payer, stack.merchant, 7)]
    assert found.data[:4].hex() == "cef6d209"


async def test_fee_proxy_tells_of_its_reference_behind_both_transfers(stack: Stack) -> None:
    payer, reference = stack.payers[0], bytes.fromhex("8899aabbccddeeff")
    await stack.rpc.receipt(await payer.approve(FEE_PROXY, FUNDS))
    sent = await pay_with_reference(
        payer, stack.merchant, 7, reference, fee_units=1, fee_to=stack.relayer.address
    )
    found = await mined(stack, sent)
    assert found.transfers == [
        paid(payer, stack.merchant, 7),
        paid(payer, stack.relayer.address, 1),
    ]
    event = found.logs[-1]
    assert event["address"] == FEE_PROXY.lower()
    assert event["topics"] == [WITH_REFERENCE, "0x" + keccak(reference).hex()]


def authorized(stack: Stack, payer: str, kind: Kind = Kind.TRANSFER) -> Terms:
    return Terms(kind=kind, payer=payer, to=stack.merchant, units=7, nonce=bytes(range(32)))


async def check_authorized(stack: Stack, sent: str, payer: str) -> None:
    found = await mined(stack, sent)
    assert found.transfers == [(payer.lower(), stack.merchant.lower(), 7)]
    at = found.topics.index(AUTHORIZATION_USED)
    assert found.topics[at + 1] == TRANSFER
    assert found.logs[at]["topics"][2] == "0x" + bytes(range(32)).hex()


@pytest.mark.parametrize("kind", Kind, ids=lambda one: one.name)
@pytest.mark.parametrize("form", [call_with_parts, call_with_bytes])
async def test_authorizations_of_an_account_with_a_key(stack: Stack, kind: Kind, form: Any) -> None:
    payer = stack.payers[0]
    terms = authorized(stack, payer.address, kind)
    call = form(stack.usdc, terms, sign_digest(payer, await digest_of(stack.usdc, terms)), b"tail")
    selectors = {
        (Kind.TRANSFER, call_with_parts): "e3ee160e",
        (Kind.TRANSFER, call_with_bytes): "cf092995",
        (Kind.RECEIVE, call_with_parts): "ef55bec6",
        (Kind.RECEIVE, call_with_bytes): "88b7ab63",
    }
    assert call.data[:4].hex() == selectors[kind, form]
    if kind is Kind.RECEIVE:
        with pytest.raises(RpcError, match="reverted"):
            await stack.rpc.receipt(await send(stack.relayer, call.to, call.data))
    sender = stack.relayer if kind is Kind.TRANSFER else merchant_of(stack)
    await check_authorized(stack, await send(sender, call.to, call.data), payer.address)


def merchant_of(stack: Stack) -> Wallet:
    return stack.merchant_wallet


async def test_authorization_inside_a_multicall(stack: Stack) -> None:
    payer = stack.payers[0]
    terms = authorized(stack, payer.address)
    signature = sign_digest(payer, await digest_of(stack.usdc, terms))
    call = call_with_bytes(stack.usdc, terms, signature, b"the relayer's")
    await check_authorized(stack, await multicall(stack.relayer, [call]), payer.address)


async def test_authorizations_that_a_wallets_code_verifies(stack: Stack) -> None:
    owner = stack.payers[0]
    safe = await create_safe(stack.usdc, owner, stack.relayer, funds_units=FUNDS)
    terms = authorized(stack, safe.address)
    signature = await safe.sign_message(await digest_of(stack.usdc, terms))
    call = call_with_bytes(stack.usdc, terms, signature)
    await check_authorized(stack, await send(stack.relayer, call.to, call.data), safe.address)
    for code in Code:
        payer = await delegate(owner, code)
        terms = Terms(
            kind=Kind.TRANSFER,
            payer=payer.address,
            to=stack.merchant,
            units=7,
            nonce=keccak(text=code),
        )
        signature = sign_digest(owner, await digest_of(stack.usdc, terms))
        call = call_with_bytes(stack.usdc, terms, signature)
        found = await mined(stack, await send(stack.relayer, call.to, call.data))
        assert found.transfers == [paid(payer, stack.merchant, 7)]


async def test_zero_units_of_a_stranger_can_be_moved_by_anybody(stack: Stack) -> None:
    victim = stack.payers[0].address
    call = transfer_from(stack.usdc, victim, stack.merchant, 0, b"tail")
    found = await mined(stack, await send(stack.relayer, call.to, call.data))
    assert found.transfers == [(victim.lower(), stack.merchant.lower(), 0)]
