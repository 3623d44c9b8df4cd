"""Other people's wallets pay for real on the dev chain, and can be made to pay oddly."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from devchain.contracts.delegated import Code, Delegated, Mode, authorize, delegate
from devchain.contracts.entry_point import Version, paymaster_data
from devchain.contracts.placing import place_contracts, place_paymaster
from devchain.contracts.safe import MULTI_SEND, Operation, Safe, create_safe, multi_send_data
from devchain.contracts.sending import (
    Call,
    transaction_count,
    transfer,
)
from devchain.contracts.simple_account import SimpleAccount, simple_account
from devchain.rpc import RpcError
from devchain.stack import Stack, start_stack
from tests.integration.mined import OPERATION, TRANSFER, address_in, mined, paid

FUNDS = 1_000
PAYMASTER = "0x00000000000000000000000000000000000Fa117"
BEFORE_EXECUTION = "0xbb47ee3e183a558b1a2ff0874b079f3fc5478b7454eacf2bfc5af2ff5878f972"


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


async def account(stack: Stack, version: Version, owner: int = 0) -> SimpleAccount:
    payer = stack.payers[owner]
    return await simple_account(stack.usdc, version, payer, stack.relayer, funds_units=FUNDS)


async def safe_of(stack: Stack) -> Safe:
    return await create_safe(stack.usdc, stack.payers[0], stack.relayer, funds_units=FUNDS)


@pytest.mark.parametrize("version", Version, ids=lambda one: one.name)
async def test_account_is_created_and_pays_in_one_operation(stack: Stack, version: Version) -> None:
    payer = await account(stack, version)
    sent = await payer.pay(stack.merchant, 7, inner_tail=b"inner", tail=b"outer")
    found = await mined(stack, sent)
    assert found.transfers == [paid(payer, stack.merchant, 7)]
    assert found.outcomes == [(payer.address.lower(), True)]
    assert found.topics.index(BEFORE_EXECUTION) < found.topics.index(TRANSFER)
    assert found.to == version.lower()
    assert b"inner" in found.data
    assert b"outer" in found.data
    assert await stack.usdc.balance(stack.merchant) == 7
    # The second time there is nothing to create.
    again = await mined(stack, await payer.pay(stack.merchant, 8))
    assert again.transfers == [paid(payer, stack.merchant, 8)]
    assert len(again.logs) == len(found.logs) - 4


@pytest.mark.parametrize("version", Version, ids=lambda one: one.name)
async def test_batch_of_an_account(stack: Stack, version: Version) -> None:
    payer = await account(stack, version)
    calls = [transfer(stack.usdc, stack.merchant, units, b"%d" % units) for units in (3, 4)]
    sent = await payer.entry_point.handle_ops([await payer.op(calls)], payer.bundler)
    found = await mined(stack, sent)
    assert found.transfers == [paid(payer, stack.merchant, 3), paid(payer, stack.merchant, 4)]


async def test_selectors_are_those_seen_on_base(stack: Stack) -> None:
    calls = [transfer(stack.usdc, stack.merchant, 1)] * 2
    selectors = []
    for version in Version:
        payer = await account(stack, version)
        op = await payer.op(calls)
        one = await payer.op(calls[:1])
        bundle = payer.entry_point.bundle([op], stack.merchant)
        selectors.append([data[:4].hex() for data in (bundle, op.call_data, one.call_data)])
    assert selectors == [
        ["1fad948c", "18dfb3c7", "b61d27f6"],
        ["765e827f", "47e1da2a", "b61d27f6"],
        ["765e827f", "34fcd5be", "b61d27f6"],
    ]


@pytest.mark.parametrize("version", Version, ids=lambda one: one.name)
async def test_bundle_of_several_accounts_one_of_which_fails(
    stack: Stack, version: Version
) -> None:
    first, broke, last = [await account(stack, version, owner) for owner in range(3)]
    ops = [
        await one.op([transfer(stack.usdc, stack.merchant, units)], tail=b"mine")
        for one, units in ((first, 1), (broke, FUNDS + 1), (last, 3))
    ]
    ops.append(await last.op([transfer(stack.usdc, stack.merchant, 4)], nonces_ahead=1))
    sent = await first.entry_point.handle_ops(ops, stack.relayer, tail=b"the bundler's")
    found = await mined(stack, sent)
    assert found.transfers == [
        paid(first, stack.merchant, 1),
        paid(last, stack.merchant, 3),
        paid(last, stack.merchant, 4),
    ]
    outcomes = [(first, True), (broke, False), (last, True), (last, True)]
    assert found.outcomes == [(one.address.lower(), success) for one, success in outcomes]
    assert found.data.endswith(b"the bundler's")


@pytest.mark.parametrize("version", Version, ids=lambda one: one.name)
async def test_bytes_that_no_call_carries(stack: Stack, version: Version) -> None:
    await place_paymaster(stack.rpc, PAYMASTER)
    payer = await account(stack, version)
    op = await payer.op(
        [transfer(stack.usdc, stack.merchant, 5)],
        init_tail=b"in initCode",
        paymaster_and_data=paymaster_data(version, PAYMASTER, b"for the paymaster"),
    )
    found = await mined(stack, await payer.entry_point.handle_ops([op], payer.bundler))
    assert found.transfers == [paid(payer, stack.merchant, 5)]
    (event,) = [log for log in found.logs if log["topics"][0] == OPERATION]
    assert address_in(event["topics"][3]) == PAYMASTER.lower()
    assert b"in initCode" in found.data
    assert b"for the paymaster" in found.data


async def test_an_operation_is_refused_if_its_bytes_are_changed(stack: Stack) -> None:
    payer = await account(stack, Version.V07)
    op = await payer.op([transfer(stack.usdc, stack.merchant, 5)], tail=b"mine")
    changed = replace(op, call_data=op.call_data.replace(b"mine", b"your"))
    sent = await payer.entry_point.handle_ops([changed], payer.bundler)
    with pytest.raises(RpcError, match="reverted"):
        await stack.rpc.receipt(sent)


async def test_safe_pays_by_its_own_transaction(stack: Stack) -> None:
    payer = await safe_of(stack)
    sent = await payer.pay(stack.merchant, 7, inner_tail=b"signed", tail=b"executor's")
    found = await mined(stack, sent)
    assert found.transfers == [paid(payer, stack.merchant, 7)]
    assert found.data[:4].hex() == "6a761202"
    assert found.data.endswith(b"executor's")
    assert "0x442e715f" in {topic[:10] for topic in found.topics}
    assert await stack.usdc.balance(stack.merchant) == 7


async def test_safe_pays_with_bytes_behind_its_signature(stack: Stack) -> None:
    payer = await safe_of(stack)
    call = transfer(stack.usdc, stack.merchant, 7)
    found = await mined(stack, await payer.execute(call, signature_tail=b"not signed"))
    assert found.transfers == [paid(payer, stack.merchant, 7)]
    assert b"not signed" in found.data


async def test_safe_makes_a_call_that_fails(stack: Stack) -> None:
    payer = await safe_of(stack)
    call = transfer(stack.usdc, stack.merchant, FUNDS + 1, b"tail")
    found = await mined(stack, await payer.execute(call, may_fail=True))
    assert found.transfers == []
    with pytest.raises(RpcError, match="reverted"):
        await stack.rpc.receipt(await payer.execute(call))


@pytest.mark.parametrize("call_only", [True, False])
async def test_safe_pays_several_at_once(stack: Stack, call_only: bool) -> None:
    payer = await safe_of(stack)
    calls = [transfer(stack.usdc, stack.merchant, units, b"%d" % units) for units in (3, 4)]
    found = await mined(stack, await payer.pay_many(calls, call_only=call_only, data_tail=b"both"))
    assert found.transfers == [paid(payer, stack.merchant, 3), paid(payer, stack.merchant, 4)]
    assert bytes.fromhex("8d80ff0a") in found.data


@pytest.mark.parametrize("with_error", [True, False])
async def test_safe_pays_by_operations_of_its_module(stack: Stack, with_error: bool) -> None:
    payer = await safe_of(stack)
    one = await payer.op(
        transfer(stack.usdc, stack.merchant, 7),
        tail=b"outer",
        signature_tail=b"not signed",
        with_error=with_error,
    )
    assert one.call_data[:4].hex() == ("541d63c8" if with_error else "7bb37428")
    found = await mined(stack, await payer.entry_point.handle_ops([one], stack.relayer))
    assert found.transfers == [paid(payer, stack.merchant, 7)]
    assert found.outcomes == [(payer.address.lower(), True)]
    data = multi_send_data([transfer(stack.usdc, stack.merchant, units) for units in (3, 4)])
    many = await payer.op(
        Call(to=MULTI_SEND, data=data), operation=Operation.DELEGATE_CALL, with_error=with_error
    )
    found = await mined(stack, await payer.entry_point.handle_ops([many], stack.relayer))
    assert found.transfers == [paid(payer, stack.merchant, 3), paid(payer, stack.merchant, 4)]


@pytest.mark.parametrize("code", Code, ids=lambda one: one.name)
async def test_delegated_account_calls_itself(stack: Stack, code: Code) -> None:
    payer = await delegate(stack.payers[0], code)
    sent = await payer.pay(stack.merchant, 7, inner_tail=b"inner", tail=b"outer")
    found = await mined(stack, sent)
    assert found.transfers == [paid(payer, stack.merchant, 7)]
    assert found.to == payer.address.lower()
    assert found.kind != 4
    assert found.data.endswith(b"outer")
    assert found.data[:4].hex() == ("b61d27f6" if code is Code.SIMPLE else "e9ae5c53")
    # This one delegates and pays at once.
    other = Delegated(wallet=stack.payers[1], code=code)
    calls = [transfer(stack.usdc, stack.merchant, units) for units in (3, 4)]
    found = await mined(stack, await other.delegate_and_call(calls, tail=b"outer"))
    assert found.transfers == [paid(other, stack.merchant, 3), paid(other, stack.merchant, 4)]
    assert found.kind == 4
    assert found.data[:4].hex() == ("34fcd5be" if code is Code.SIMPLE else "e9ae5c53")


@pytest.mark.parametrize("code", Code, ids=lambda one: one.name)
async def test_first_operation_delegates_its_account(stack: Stack, code: Code) -> None:
    wallet = stack.payers[0]
    # MetaMask's code says what to sign, so it must be there to be asked.
    payer = Delegated(wallet=wallet, code=code)
    if code is Code.METAMASK:
        payer = await delegate(wallet, code)
    op = await payer.op([transfer(stack.usdc, stack.merchant, 7)], tail=b"outer")
    signed = authorize(wallet, code, await transaction_count(wallet))
    sent = await payer.entry_point.handle_ops([op], stack.relayer, authorizations=[signed])
    found = await mined(stack, sent)
    assert found.kind == 4
    assert found.transfers == [paid(payer, stack.merchant, 7)]
    assert found.outcomes == [(payer.address.lower(), True)]


@pytest.mark.parametrize("mode", Mode, ids=lambda one: one.name)
@pytest.mark.parametrize("bundled", [True, False])
async def test_modes_of_an_erc_7579_account(stack: Stack, mode: Mode, bundled: bool) -> None:
    payer = await delegate(stack.payers[0], Code.METAMASK)
    calls = [transfer(stack.usdc, stack.merchant, 7, b"inner")]
    if mode in (Mode.BATCH, Mode.TRY_BATCH):
        calls.append(transfer(stack.usdc, stack.merchant, 8))
    if mode is Mode.TRY_BATCH:
        calls.insert(0, transfer(stack.usdc, stack.merchant, FUNDS + 1, b"fails"))
    if bundled:
        op = await payer.op(calls, mode=mode, tail=b"outer")
        sent = await payer.entry_point.handle_ops([op], stack.relayer)
    else:
        sent = await payer.call(calls, mode=mode, tail=b"outer")
    found = await mined(stack, sent)
    expected = [7, 8] if len(calls) > 1 else [7]
    assert found.transfers == [paid(payer, stack.merchant, units) for units in expected]
