"""The reference account of ERC-4337's authors, for each EntryPoint.

It stands in for Coinbase's smart wallet, of which no package carries the code: `execute` is the
same call in all versions, and `executeBatch` in 0.8 has the selector that Coinbase's has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from eth_utils.address import to_checksum_address

from devchain.contracts.entry_point import EntryPoint, UserOp, Version
from devchain.contracts.sending import (
    Call,
    encode_call,
    has_code,
    packed,
    read,
    sign_digest,
    sign_personal,
    transfer,
)
from devchain.usdc import Usdc
from devchain.wallet import Wallet

FACTORIES = {
    Version.V06: "0x9406Cc6185a346906296840746125a0E44976454",
    Version.V07: "0x91E60e0613810449d098b0b5Ec8b51A0FE8c8985",
    Version.V08: "0x13E9ed32155810FDbd067D4522C492D6f68E5944",
}
"""Where the accounts' factories stand on every chain."""


@dataclass(frozen=True, kw_only=True)
class SimpleAccount:
    """An account with one owner; its first operation creates it."""

    usdc: Usdc
    entry_point: EntryPoint
    owner: Wallet
    bundler: Wallet
    address: str
    creation: bytes

    async def pay(self, to: str, units: int, *, inner_tail: bytes = b"", tail: bytes = b"") -> str:
        """Pay in a bundle of one; `tail` is that of the operation's callData."""
        op = await self.op([transfer(self.usdc, to, units, inner_tail)], tail=tail)
        return await self.entry_point.handle_ops([op], self.bundler)

    async def op(
        self,
        calls: Sequence[Call],
        *,
        tail: bytes = b"",
        init_tail: bytes = b"",
        paymaster_and_data: bytes = b"",
        nonces_ahead: int = 0,
    ) -> UserOp:
        """Return the signed operation that makes one call, or several as a batch.

        `nonces_ahead` is for a second operation of this account in one bundle.
        """
        address, rpc = self.address, self.usdc.rpc
        created = nonces_ahead > 0 or await has_code(rpc, address)
        unsigned = UserOp(
            sender=address,
            nonce=await self.entry_point.nonce(address) + nonces_ahead,
            call_data=batch_data(self.entry_point.version, calls) + tail,
            init_code=b"" if created else self.creation + init_tail,
            paymaster_and_data=paymaster_and_data,
        )
        return await self.sign(unsigned)

    async def sign(self, op: UserOp) -> UserOp:
        """Return the operation with its owner's signature, whatever it says."""
        digest = await self.entry_point.hash(op)
        sign = sign_digest if self.entry_point.version is Version.V08 else sign_personal
        return replace(op, signature=sign(self.owner, digest))


async def simple_account(
    usdc: Usdc, version: Version, owner: Wallet, bundler: Wallet, *, funds_units: int
) -> SimpleAccount:
    """Return an account that holds `funds_units` and does not exist yet."""
    factory = FACTORIES[version]
    address = await read(
        usdc.rpc, factory, "address", "getAddress(address,uint256)", owner.address, 0
    )
    await usdc.mint(address, funds_units)
    creation = encode_call("createAccount(address,uint256)", owner.address, 0)
    return SimpleAccount(
        usdc=usdc,
        entry_point=EntryPoint(rpc=usdc.rpc, version=version),
        owner=owner,
        bundler=bundler,
        address=to_checksum_address(address),
        creation=packed(factory) + creation,
    )


def batch_data(version: Version, calls: Sequence[Call]) -> bytes:
    """Return `execute` for one call and the version's `executeBatch` for more."""
    if len(calls) == 1:
        (call,) = calls
        return encode_call("execute(address,uint256,bytes)", call.to, call.value, call.data)
    targets, values = [call.to for call in calls], [call.value for call in calls]
    bodies = [call.data for call in calls]
    match version:
        case Version.V06:
            return encode_call("executeBatch(address[],bytes[])", targets, bodies)
        case Version.V07:
            signature = "executeBatch(address[],uint256[],bytes[])"
            return encode_call(signature, targets, values, bodies)
        case Version.V08:
            triples = list(zip(targets, values, bodies, strict=True))
            return encode_call("executeBatch((address,uint256,bytes)[])", triples)
