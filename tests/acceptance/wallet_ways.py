"""The ways in which wallets pay one job each, through the code that they have on Base."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from eth_utils.crypto import keccak

from devchain.contracts.authorization import (
    Kind,
    call_with_bytes,
    call_with_parts,
    digest_of,
)
from devchain.contracts.delegated import Code, Delegated, Mode, authorize, delegate
from devchain.contracts.delegation import redeem
from devchain.contracts.entry_point import Version
from devchain.contracts.multicall import MULTICALL3, multicall
from devchain.contracts.request_network import FEE_PROXY, pay_with_reference
from devchain.contracts.sending import Call, send, transaction_count, transfer, transfer_from
from devchain.wallet import Wallet
from oncepaid.domain.payments import MemoSource, Signer
from tests.acceptance.conftest import NewJob
from tests.acceptance.wallet_till import Till

Pay = Callable[[Till, NewJob], Awaitable[str]]
_MARKER: Final = bytes.fromhex("8021" * 8)
APP_SUFFIX: Final = b"baseapp,morpho\x0e\x00" + _MARKER
"""ERC-8021, schema 0: which apps are to be credited."""
WALLET_SUFFIX: Final = b"\xa1\x61w\x6acdp_facil1\x00\x0e\x02" + _MARKER
"""ERC-8021, schema 2, as seen on Base."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a payment is made, and what must be found with it. `is_bound`: it carries no memo, but a
    reference that the host has bound."""

    pay: Pay
    source: MemoSource
    signer: Signer = Signer.PAYER
    is_bound: bool = False


def data_suffix(job: NewJob) -> bytes:
    """Return what an app asks a wallet to append, with the wallet's and another app's around it."""
    return APP_SUFFIX + job.envelope + WALLET_SUFFIX


async def _eoa(till: Till, job: NewJob) -> str:
    return await till.wallet().transfer(till.merchant, job.price_units, data_suffix(job))


async def _eoa_doubled(till: Till, job: NewJob) -> str:
    tail = (job.envelope + APP_SUFFIX) * 2
    return await till.wallet().transfer(till.merchant, job.price_units, tail)


def _operation(version: Version, *, inner: bool = False, batch: bool = False) -> Pay:
    """The memo stands behind the transfer's arguments, or else behind the operation's callData."""

    async def pay(till: Till, job: NewJob) -> str:
        account = await till.account(version)
        calls = [till.call(job, job.envelope if inner else b"")]
        if batch:
            calls.insert(0, _aside(till))
        op = await account.op(calls, tail=b"" if inner else data_suffix(job))
        return await account.entry_point.handle_ops([op], till.relayer)

    return pay


def _aside(till: Till) -> Call:
    """Return the call that pays somebody else."""
    return transfer(till.stack.usdc, till.relayer.address, 1)


async def _safe_inner(till: Till, job: NewJob) -> str:
    safe = await till.safe()
    return await safe.pay(till.merchant, job.price_units, inner_tail=job.envelope)


async def _safe_executor(till: Till, job: NewJob) -> str:
    safe = await till.safe()
    return await safe.pay(till.merchant, job.price_units, tail=job.envelope)


def _safe_operation(*, inner: bool, with_error: bool) -> Pay:
    async def pay(till: Till, job: NewJob) -> str:
        safe = await till.safe()
        op = await safe.op(
            till.call(job, job.envelope if inner else b""),
            tail=b"" if inner else data_suffix(job),
            with_error=with_error,
        )
        return await safe.entry_point.handle_ops([op], till.relayer)

    return pay


def _delegating(code: Code, *, inner: bool) -> Pay:
    """By the type 4 transaction that delegates the account."""

    async def pay(till: Till, job: NewJob) -> str:
        payer = Delegated(wallet=till.wallet(), code=code)
        calls = [till.call(job, job.envelope if inner else b"")]
        return await payer.delegate_and_call(calls, tail=b"" if inner else data_suffix(job))

    return pay


def _modular(mode: Mode, *, bundled: bool, inner: bool) -> Pay:
    """By ERC-7579's `execute(mode, …)`: a call to itself, or an operation."""

    async def pay(till: Till, job: NewJob) -> str:
        payer = await delegate(till.wallet(), Code.METAMASK)
        calls = [till.call(job, job.envelope if inner else b"")]
        if mode is Mode.BATCH:
            calls.append(_aside(till))
        tail = b"" if inner else data_suffix(job)
        if not bundled:
            return await payer.call(calls, mode=mode, tail=tail)
        op = await payer.op(calls, mode=mode, tail=tail)
        return await payer.entry_point.handle_ops([op], till.relayer)

    return pay


async def _first_operation(till: Till, job: NewJob) -> str:
    """Delegated in the very transaction that bundles its operation."""
    wallet = till.wallet()
    payer = Delegated(wallet=wallet, code=Code.SIMPLE)
    op = await payer.op([till.call(job)], tail=data_suffix(job))
    signed = authorize(wallet, Code.SIMPLE, await transaction_count(wallet))
    return await payer.entry_point.handle_ops([op], till.relayer, authorizations=[signed])


async def _redeemed(till: Till, job: NewJob) -> str:
    payer = await delegate(till.wallet(), Code.METAMASK)
    return await redeem(payer, till.relayer, till.call(job, job.envelope))


async def _authorization_in_parts(till: Till, job: NewJob) -> str:
    terms, signature = await till.authorize(till.wallet(), job)
    call = call_with_parts(till.stack.usdc, terms, signature)
    return await multicall(till.relayer, [call])


async def _authorization_in_bytes(till: Till, job: NewJob) -> str:
    terms, signature = await till.authorize(till.wallet(), job)
    call = call_with_bytes(till.stack.usdc, terms, signature, WALLET_SUFFIX)
    return await send(till.relayer, call.to, call.data)


async def _authorization_to_merchant(till: Till, job: NewJob) -> str:
    terms, signature = await till.authorize(till.wallet(), job, Kind.RECEIVE)
    call = call_with_parts(till.stack.usdc, terms, signature)
    merchant = Wallet(usdc=till.stack.usdc, address=till.merchant, index=2)
    return await send(merchant, call.to, call.data)


async def _authorization_of_a_safe(till: Till, job: NewJob) -> str:
    safe = await till.safe()
    terms = till.terms(safe.address, job)
    signature = await safe.sign_message(await digest_of(till.stack.usdc, terms))
    call = call_with_bytes(till.stack.usdc, terms, signature)
    return await send(till.relayer, call.to, call.data)


async def _multicall_by_the_payer(till: Till, job: NewJob) -> str:
    usdc, payer = till.stack.usdc, till.wallet()
    await till.stack.rpc.receipt(await payer.approve(MULTICALL3, job.price_units))
    call = transfer_from(usdc, payer.address, till.merchant, job.price_units, job.envelope)
    return await multicall(payer, [call])


def _request(*, bound: bool) -> Pay:
    async def pay(till: Till, job: NewJob) -> str:
        payer = till.wallet()
        reference = job.envelope
        if bound:
            reference = keccak(job.envelope)[-8:]
            await till.bind(FEE_PROXY, keccak(reference), job)
        await till.stack.rpc.receipt(await payer.approve(FEE_PROXY, 2 * job.price_units))
        paying = (payer, till.merchant, job.price_units, reference)
        return await pay_with_reference(*paying, fee_units=1, fee_to=till.relayer.address)

    return pay


def _behind_transfer(pay: Pay) -> Way:
    return Way(pay=pay, source=MemoSource.CALLDATA)


def _behind_wrapper(pay: Pay) -> Way:
    return Way(pay=pay, source=MemoSource.WRAPPER)


def _in_nonce(pay: Pay) -> Way:
    return Way(pay=pay, source=MemoSource.AUTHORIZATION)


WAYS: Final[dict[str, Way]] = {
    "eoa-data-suffix": _behind_transfer(_eoa),
    "eoa-doubled-suffix": _behind_transfer(_eoa_doubled),
    **{
        name: way
        for version, tag in zip(Version, ("0.6", "0.7", "0.8"), strict=True)
        for name, way in (
            (f"operation-{tag}-inner", _behind_transfer(_operation(version, inner=True))),
            (f"operation-{tag}-tail", _behind_wrapper(_operation(version))),
            (f"operation-{tag}-batch", _behind_wrapper(_operation(version, batch=True))),
        )
    },
    "safe-inner": _behind_transfer(_safe_inner),
    "safe-executor": Way(pay=_safe_executor, source=MemoSource.WRAPPER, signer=Signer.THIRD_PARTY),
    "safe-4337-inner": _behind_transfer(_safe_operation(inner=True, with_error=False)),
    "safe-4337-tail": _behind_wrapper(_safe_operation(inner=False, with_error=True)),
    "7702-simple-inner": _behind_transfer(_delegating(Code.SIMPLE, inner=True)),
    "7702-simple-tail": _behind_wrapper(_delegating(Code.SIMPLE, inner=False)),
    "7702-first-operation": _behind_wrapper(_first_operation),
    "7702-7579-single": _behind_wrapper(_delegating(Code.METAMASK, inner=False)),
    "7579-single-call": _behind_wrapper(_modular(Mode.SINGLE, bundled=False, inner=False)),
    "7579-batch-call": _behind_wrapper(_modular(Mode.BATCH, bundled=False, inner=False)),
    "7579-single-operation": _behind_transfer(_modular(Mode.SINGLE, bundled=True, inner=True)),
    "7579-batch-operation": _behind_transfer(_modular(Mode.BATCH, bundled=True, inner=True)),
    "7710-delegate": Way(pay=_redeemed, source=MemoSource.CALLDATA, signer=Signer.THIRD_PARTY),
    "multicall-authorization": _in_nonce(_authorization_in_parts),
    "authorization-in-bytes": _in_nonce(_authorization_in_bytes),
    "authorization-to-merchant": _in_nonce(_authorization_to_merchant),
    "authorization-of-a-safe": _in_nonce(_authorization_of_a_safe),
    "multicall-transfer-from": _behind_transfer(_multicall_by_the_payer),
    "request-envelope": Way(pay=_request(bound=False), source=MemoSource.CONTRACT),
    "request-bound": Way(pay=_request(bound=True), source=MemoSource.CONTRACT, is_bound=True),
}
