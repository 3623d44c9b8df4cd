"""EIP-7702: an account with a key that runs a wallet's code, here Simple7702Account or MetaMask's.

MetaMask's is an ERC-7579 account, so its `execute(mode, calldata)` shows that form too.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, StrEnum

from eth_abi.abi import encode
from eth_account import Account
from eth_account.datastructures import SignedSetCodeAuthorization

from devchain.contracts.entry_point import EntryPoint, UserOp, Version
from devchain.contracts.sending import (
    Call,
    encode_call,
    packed,
    read,
    send,
    send_delegating,
    sign_digest,
    transaction_count,
    transfer,
)
from devchain.contracts.simple_account import batch_data
from devchain.wallet import Wallet

_COUNT_TIMEOUT_S = 15.0
_COUNT_POLL_S = 0.005


class Code(StrEnum):
    """The code that an account is delegated to, by its address on Base."""

    SIMPLE = "0xe6Cae83BdE06E4c305530e199D7217f42808555B"
    """Simple7702Account of ERC-4337's authors: `execute`, `executeBatch`; EntryPoint 0.8."""
    METAMASK = "0x63c0c19a282a1B52b07dD5a65b58948A07DAE32B"
    """EIP7702StatelessDeleGator: ERC-7579 and ERC-7710; EntryPoint 0.7."""


class Mode(Enum):
    """The first two bytes of an ERC-7579 mode; the other thirty are zero."""

    SINGLE = b"\x00\x00"
    """One call, packed."""
    BATCH = b"\x01\x00"
    """Calls in an ABI-encoded list, all or nothing."""
    TRY_BATCH = b"\x01\x01"
    """Each call may fail by itself."""


@dataclass(frozen=True, kw_only=True)
class Delegated:
    """A wallet with delegated code; it calls itself, or others bundle its operations."""

    wallet: Wallet
    code: Code

    @property
    def address(self) -> str:
        return self.wallet.address

    @property
    def entry_point(self) -> EntryPoint:
        """The EntryPoint that the code obeys."""
        version = Version.V08 if self.code is Code.SIMPLE else Version.V07
        return EntryPoint(rpc=self.wallet.rpc, version=version)

    async def pay(self, to: str, units: int, *, inner_tail: bytes = b"", tail: bytes = b"") -> str:
        """Pay by a self-call; the one signature of the transaction covers both tails."""
        return await self.call([transfer(self.wallet.usdc, to, units, inner_tail)], tail=tail)

    async def call(
        self, calls: Sequence[Call], *, mode: Mode | None = None, tail: bytes = b""
    ) -> str:
        """Make calls by a transaction to itself, of an ordinary type."""
        return await send(self.wallet, self.address, self.data(calls, mode) + tail)

    async def delegate_and_call(
        self, calls: Sequence[Call], *, mode: Mode | None = None, tail: bytes = b""
    ) -> str:
        """Make calls by a type 4 transaction that sets the account's code (again)."""
        nonce = await transaction_count(self.wallet)
        # The sender's own nonce is counted up before its authorization is looked at.
        signed = authorize(self.wallet, self.code, nonce + 1)
        data = self.data(calls, mode) + tail
        return await send_delegating(self.wallet, self.address, data, [signed])

    def data(self, calls: Sequence[Call], mode: Mode | None = None) -> bytes:
        """Return the code's own call for these; `mode` is for MetaMask's only."""
        if self.code is Code.SIMPLE:
            return batch_data(Version.V08, calls)
        return execute_data(calls, mode or (Mode.SINGLE if len(calls) == 1 else Mode.BATCH))

    async def op(
        self, calls: Sequence[Call], *, mode: Mode | None = None, tail: bytes = b""
    ) -> UserOp:
        """Return the signed operation that makes these calls."""
        op = UserOp(
            sender=self.address,
            nonce=await self.entry_point.nonce(self.address),
            call_data=self.data(calls, mode) + tail,
        )
        return replace(op, signature=sign_digest(self.wallet, await self._digest(op)))

    async def _digest(self, op: UserOp) -> bytes:
        if self.code is Code.SIMPLE:
            return await self.entry_point.hash(op)
        hashing = f"getPackedUserOperationTypedDataHash({self.entry_point.op_type})"
        fields = op.packed(self.entry_point.version)
        return bytes(await read(self.wallet.rpc, self.address, "bytes32", hashing, fields))


def authorize(wallet: Wallet, code: Code, nonce: int) -> SignedSetCodeAuthorization:
    """Sign the delegation of an account, valid while its nonce is `nonce`."""
    terms = {"chainId": wallet.chain_id, "address": code.value, "nonce": nonce}
    signed: SignedSetCodeAuthorization = Account.sign_authorization(terms, wallet.private_key)
    return signed


async def delegate(wallet: Wallet, code: Code) -> Delegated:
    """Set the account's code; returns once mined, and once the node counts on from there.

    The transaction takes two nonces, its own and its authorization's. anvil (1.7.1) shows it mined
    a moment before it leaves the pool, and until then counts on from its own one alone: what it
    sends for the account in that moment, it refuses itself as "nonce too low".
    """
    nonce = await transaction_count(wallet)
    signed = authorize(wallet, code, nonce + 1)
    await wallet.rpc.receipt(await send_delegating(wallet, wallet.address, b"", [signed]))
    async with asyncio.timeout(_COUNT_TIMEOUT_S):
        while await transaction_count(wallet) < nonce + 2:
            await asyncio.sleep(_COUNT_POLL_S)
    return Delegated(wallet=wallet, code=code)


def execute_data(calls: Sequence[Call], mode: Mode) -> bytes:
    """Return ERC-7579's `execute` of these calls; raises ValueError: one mode takes one call."""
    word = mode.value.ljust(32, b"\0")
    if mode in (Mode.BATCH, Mode.TRY_BATCH):
        triples = [(call.to, call.value, call.data) for call in calls]
        inside = encode(["(address,uint256,bytes)[]"], [triples])
    else:
        (call,) = calls
        inside = packed(call.to) + call.value.to_bytes(32) + call.data
    return encode_call("execute(bytes32,bytes)", word, inside)
