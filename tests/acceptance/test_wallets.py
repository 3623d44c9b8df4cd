"""Every wallet pays its job, and nobody pays another's: real wallets' contracts, a real daemon.

All tests share one chain, one database and one daemon: a payment stands among all others.
"""

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from eth_utils.crypto import keccak

from devchain.contracts.authorization import call_with_bytes, call_with_parts, digest_of
from devchain.contracts.delegated import Code, Mode, delegate
from devchain.contracts.entry_point import Version, paymaster_data
from devchain.contracts.multicall import MULTICALL3, multicall
from devchain.contracts.placing import place_paymaster
from devchain.contracts.request_network import FEE_PROXY, pay_with_reference
from devchain.contracts.sending import Call, send, sign_digest, transfer, transfer_from
from oncepaid.domain.memo import NONCE_BYTES
from tests.acceptance.conftest import NewJob
from tests.acceptance.test_verify import verified
from tests.acceptance.wallet_look_alike import look_alike_event, place_look_alike
from tests.acceptance.wallet_till import FUNDS_UNITS, Till, Told, open_till
from tests.acceptance.wallet_ways import WAYS, data_suffix

DOCUMENT = Path(__file__).parents[2] / "docs" / "wallets.md"
LOOK_ALIKE = "0x1892196E80C4c17ea5100Da765Ab48c1fE2FB815"
EMITTER = "0x00000000000000000000000000000000000e7e27"
PAYMASTER = "0x00000000000000000000000000000000000Fa117"

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def till(
    postgres_url: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Till]:
    async with open_till(postgres_url, template, tmp_path_factory.mktemp("till")) as opened:
        yield opened


@pytest.mark.parametrize("name", WAYS)
async def test_a_way_to_pay(till: Till, name: str) -> None:
    way = WAYS[name]
    (job,) = await till.jobs(1)
    told = await till.completed(job, await way.pay(till, job))
    assert (told.source, told.signer) == (way.source, way.signer)
    assert told.memo_source == (None if way.is_bound else way.source)
    assert (told.by == told.sender) == (way.signer == "payer")
    assert len(told.evidence) == 1 + (name == "request-envelope")


async def test_the_document_has_a_row_for_each_way() -> None:
    rows = [line.split("|") for line in DOCUMENT.read_text(encoding="utf-8").splitlines()]
    tests = " ".join(row[5] for row in rows if len(row) == 7)
    assert re.findall("`(.+?)`", tests) == list(WAYS)


async def all_completed(till: Till, tx: str, *jobs: NewJob) -> None:
    """Assert that a transaction's payments pay these jobs, each by the word of its payer."""
    for job in jobs:
        assert (await till.completed(job, tx)).signer == "payer"
    assert [told.job_id for told in await till.told(tx)] == [job.id for job in jobs]


async def test_three_wallets_in_one_bundle_pay_three_jobs(till: Till) -> None:
    first, second, third = await till.jobs(3)
    account, safe = await till.account(Version.V07), await till.safe()
    delegated = await delegate(till.wallet(), Code.METAMASK)
    ops = [
        await account.op([till.call(first)], tail=data_suffix(first)),
        await safe.op(till.call(second), tail=data_suffix(second)),
        await delegated.op([till.call(third)], tail=data_suffix(third)),
    ]
    tx = await account.entry_point.handle_ops(ops, till.relayer)
    await all_completed(till, tx, first, second, third)


@pytest.mark.parametrize("version", Version, ids=lambda one: one.name)
async def test_a_batch_in_one_operation_pays_two_jobs(till: Till, version: Version) -> None:
    jobs = await till.jobs(2)
    account = await till.account(version)
    op = await account.op([till.call(job, job.envelope) for job in jobs])
    await all_completed(till, await account.entry_point.handle_ops([op], till.relayer), *jobs)


@pytest.mark.parametrize("call_only", [True, False])
async def test_a_safe_pays_two_jobs_at_once(till: Till, call_only: bool) -> None:
    jobs = await till.jobs(2)
    safe = await till.safe()
    calls = [till.call(job, job.envelope) for job in jobs]
    await all_completed(till, await safe.pay_many(calls, call_only=call_only), *jobs)


async def test_a_part_and_the_rest_come_by_different_wallets(till: Till) -> None:
    (job,) = await till.jobs(1)
    part = job.price_units // 3
    safe, account = await till.safe(), await till.account(Version.V08)
    first = await safe.pay(till.merchant, part, inner_tail=job.envelope)
    (told,) = await till.unmatched(first)
    assert (told.reason, told.job_id) == ("underpaid", job.id)
    rest = await account.pay(till.merchant, job.price_units - part, tail=job.envelope)
    await till.completed(job, rest)
    assert [told.status for told in await till.told(first)] == ["credited"]
    assert (await till.world.job(job))["overpaid_units"] == 0


async def test_what_is_paid_above_the_price_is_recorded(till: Till) -> None:
    (job,) = await till.jobs(1)
    account = await till.account(Version.V06)
    sent = await account.pay(till.merchant, 2 * job.price_units, tail=job.envelope)
    await till.completed(job, sent)
    assert (await till.world.job(job))["overpaid_units"] == job.price_units


async def put_aside(till: Till, tx: str, reason: str, *, count: int = 1) -> list[Told]:
    """Assert that all of a transaction's payments wait for an operator, for this reason."""
    told = await till.unmatched(tx, count=count)
    assert [one.reason for one in told] == [reason] * count
    return told


async def test_attack_relayer_swaps_the_tail(till: Till) -> None:
    own, other = await till.jobs(2)
    payer = till.wallet()
    terms, signature = await till.authorize(payer, own)
    call = call_with_bytes(till.stack.usdc, terms, signature, other.envelope)
    told = await till.completed(own, await send(till.relayer, call.to, call.data))
    assert [(piece["source"], piece["signer"]) for piece in told.evidence] == [
        ("authorization", "payer"),
        ("calldata", "third_party"),
    ]
    await till.untouched(other)


@pytest.mark.parametrize("fits", [True, False])
async def test_attack_relayer_puts_his_memo_behind_a_bare_authorization(
    till: Till, fits: bool
) -> None:
    """The payer's amount is his own job's, even where it is just the price of the relayer's."""
    own, relayers = await till.jobs(2)
    units = own.unique_amount_units
    pricing = "UPDATE jobs SET price_usdc = $2::bigint * 0.000001 WHERE id = $1"
    await till.world.sql.execute(pricing, relayers.id, units if fits else relayers.price_units)
    signed = till.wallet().sign_authorization(till.merchant, units, bytes(NONCE_BYTES))
    tx = await till.relayer.submit_authorization(signed, relayers.envelope)
    (told,) = await put_aside(till, tx, "third_party_memo")
    assert (told.job_id, told.evidence[-1]["by"]) == (relayers.id, till.relayer.address.lower())
    await till.untouched(own, relayers)
    # Else other tests' payments would have a neighbour that they seem to be short of.
    await till.world.sql.execute(pricing, relayers.id, relayers.price_units)


@pytest.mark.parametrize("version", Version, ids=lambda one: one.name)
async def test_attack_bundler_mixes_users_tails(till: Till, version: Version) -> None:
    first, second, bundlers = await till.jobs(3)
    accounts = [await till.account(version) for _ in range(2)]
    entry_point = accounts[0].entry_point
    ops = [
        await account.op([till.call(job)], tail=job.envelope)
        for account, job in zip(accounts, (first, second), strict=True)
    ]
    tx = await entry_point.handle_ops(ops, till.relayer, tail=bundlers.envelope)
    await all_completed(till, tx, first, second)
    bare = [await account.op([till.call(bundlers)]) for account in accounts]
    tx = await entry_point.handle_ops(bare, till.relayer, tail=bundlers.envelope)
    for told in await put_aside(till, tx, "no_memo", count=2):
        assert told.evidence == []
    await till.untouched(bundlers)


async def test_attack_event_of_a_look_alike(till: Till) -> None:
    """The proxy's own code at another address: the same event, from nobody whom we trust."""
    (job,) = await till.jobs(1)
    rpc, payer, reference = till.stack.rpc, till.wallet(), bytes.fromhex("8899aabbccddeeff")
    await rpc.call("anvil_setCode", LOOK_ALIKE, await rpc.call("eth_getCode", FEE_PROXY, "latest"))
    await till.bind(FEE_PROXY, keccak(reference), job)
    for proxy in (LOOK_ALIKE, FEE_PROXY):
        await rpc.receipt(await payer.approve(proxy, job.price_units))
    paying = (payer, till.merchant, job.price_units, reference)
    (told,) = await put_aside(till, await pay_with_reference(*paying, proxy=LOOK_ALIKE), "no_memo")
    assert told.evidence == []
    await till.untouched(job)
    # The same words of the contract that was meant.
    await till.completed(job, await pay_with_reference(*paying))


async def test_attack_event_behind_the_money_of_another(till: Till) -> None:
    """A relayer has his contract say, right behind a payer's transfer, that it is for his job."""
    own, relayers = await till.jobs(2)
    await place_look_alike(till.stack.rpc, EMITTER)
    usdc, payer, units = till.stack.usdc, till.wallet(), own.unique_amount_units
    terms = replace(till.terms(payer.address, own), units=units, nonce=keccak(text="bare"))
    signature = sign_digest(payer, await digest_of(usdc, terms))
    event = look_alike_event(usdc.address, till.merchant, units, relayers.envelope)
    calls = [call_with_parts(usdc, terms, signature), Call(to=EMITTER, data=event)]
    tx = await multicall(till.relayer, calls, tail=relayers.envelope)
    (told,) = await put_aside(till, tx, "third_party_memo")
    assert {piece["source"] for piece in told.evidence} == {"authorization", "wrapper"}
    await till.untouched(own, relayers)


async def test_attack_zero_units_of_a_forged_sender(till: Till) -> None:
    (job,) = await till.jobs(1)
    victim = till.wallet().address
    call = transfer_from(till.stack.usdc, victim, till.merchant, 0, job.envelope)
    direct = await send(till.relayer, call.to, call.data)
    await till.nothing_of(direct, await multicall(till.relayer, [call]))
    await till.untouched(job)


async def test_attack_memo_in_a_call_that_a_multicall_lets_fail(till: Till) -> None:
    (job,) = await till.jobs(1)
    payer = till.wallet()
    await till.stack.rpc.receipt(await payer.approve(MULTICALL3, job.price_units))
    calls = [
        transfer_from(till.stack.usdc, payer.address, till.merchant, units, tail)
        for units, tail in ((2 * job.price_units, job.envelope), (job.price_units, b""))
    ]
    tx = await multicall(payer, calls, may_fail=True)
    (told,) = await put_aside(till, tx, "no_memo")
    assert told.evidence == []
    await till.untouched(job)


async def test_attack_memo_in_a_call_that_fails_before_an_equal_one(till: Till) -> None:
    """Nobody can tell which of the two moved the money: what one of them says is not believed."""
    (job,) = await till.jobs(1)
    usdc, friend, wallet = till.stack.usdc, till.wallet(), till.wallet()
    payer = await delegate(wallet, Code.METAMASK)
    await till.stack.rpc.receipt(await friend.approve(payer.address, job.price_units))
    calls = [
        transfer(usdc, friend.address, FUNDS_UNITS),
        till.call(job, job.envelope),
        transfer_from(usdc, friend.address, payer.address, job.price_units),
        till.call(job),
    ]
    tx = await payer.call(calls, mode=Mode.TRY_BATCH)
    (told,) = await put_aside(till, tx, "shared_memo")
    assert told.evidence[0]["company"] == 2
    await till.untouched(job)


async def test_attack_memo_in_an_operation_that_fails(till: Till) -> None:
    first, second, third = await till.jobs(3)
    broke, honest = await till.account(Version.V07, funds_units=1), await till.account(Version.V07)
    broke_safe = await till.safe(funds_units=1)
    ops = [
        await broke.op([till.call(first, first.envelope)], tail=second.envelope),
        await broke_safe.op(till.call(third, third.envelope)),
        await honest.op([till.call(first)]),
    ]
    tx = await honest.entry_point.handle_ops(ops, till.relayer)
    (told,) = await put_aside(till, tx, "no_memo")
    assert (told.sender, told.evidence) == (honest.address.lower(), [])
    alone = await broke_safe.execute(till.call(third, third.envelope), may_fail=True)
    await till.nothing_of(alone)
    await till.untouched(first, second, third)


@pytest.mark.parametrize("version", Version, ids=lambda one: one.name)
async def test_attack_memo_in_init_code_or_for_the_paymaster(till: Till, version: Version) -> None:
    first, second = await till.jobs(2)
    await place_paymaster(till.stack.rpc, PAYMASTER)
    account = await till.account(version)
    op = await account.op(
        [till.call(first)],
        init_tail=first.envelope,
        paymaster_and_data=paymaster_data(version, PAYMASTER, second.envelope),
    )
    tx = await account.entry_point.handle_ops([op], till.relayer)
    (told,) = await put_aside(till, tx, "no_memo")
    assert told.evidence == []
    await till.untouched(first, second)


async def test_attack_memo_in_a_signature(till: Till) -> None:
    (job,) = await till.jobs(1)
    safe = await till.safe()
    executed = await safe.execute(till.call(job), signature_tail=job.envelope)
    op = await safe.op(till.call(job), signature_tail=job.envelope)
    bundled = await safe.entry_point.handle_ops([op], till.relayer)
    for tx in (executed, bundled):
        (told,) = await put_aside(till, tx, "no_memo")
        assert told.evidence == []
    await till.untouched(job)


async def test_attack_nonce_of_another_payer(till: Till) -> None:
    (job,) = await till.jobs(1)
    payer, copycat, nonce = till.wallet(), till.wallet(), keccak(text="one order")
    await till.bind(payer.address, nonce, job)
    signed = [
        one.sign_authorization(till.merchant, job.price_units, nonce) for one in (copycat, payer)
    ]
    copied = await till.relayer.submit_authorization(signed[0])
    await put_aside(till, copied, "no_memo")
    await till.untouched(job)
    await till.completed(job, await till.relayer.submit_authorization(signed[1]))


async def test_one_tail_for_two_transfers_pays_nothing(till: Till) -> None:
    (job,) = await till.jobs(1)
    calls = [till.call(job), till.call(job)]
    account = await till.account(Version.V08)
    payer = await delegate(till.wallet(), Code.SIMPLE)
    op = await account.op(calls, tail=job.envelope)
    bundled = await account.entry_point.handle_ops([op], till.relayer)
    for tx in (bundled, await payer.call(calls, tail=job.envelope)):
        for told in await put_aside(till, tx, "shared_memo", count=2):
            assert (told.signer, told.evidence[0]["company"]) == ("payer", 2)
    await till.untouched(job)


async def test_two_memos_that_the_payer_signed_are_a_conflict(till: Till) -> None:
    first, second = await till.jobs(2)
    account = await till.account(Version.V07)
    tx = await account.pay(
        till.merchant, first.price_units, inner_tail=first.envelope, tail=second.envelope
    )
    await put_aside(till, tx, "memo_conflict")
    both = first.envelope + second.envelope
    tx = await till.wallet().transfer(till.merchant, first.price_units, both)
    await put_aside(till, tx, "memo_conflict")
    await till.untouched(first, second)


async def test_all_the_money_is_in_the_books(till: Till) -> None:
    """Stands last: what holds must hold with the payments of all tests."""
    told = await till.world.sql.fetchval("SELECT sum(amount_units) FROM payments")
    assert told == await till.stack.usdc.balance(till.merchant)
    assert await verified(till.world) == {}
