"""Safe 1.4.1: its own transactions, batches by MultiSend, and operations by its 4337 module."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from eth_utils.address import to_checksum_address

from devchain.contracts.entry_point import EntryPoint, UserOp, Version
from devchain.contracts.sending import (
    Call,
    encode_call,
    packed,
    read,
    send,
    sign_digest,
    transfer,
)
from devchain.usdc import Usdc
from devchain.wallet import Wallet

SINGLETON = "0x41675C099F32341bf84BFc5382aF534df5C7461a"
PROXY_FACTORY = "0x4e1DCf7AD4e460CfD30791CCC4F9c8a4f820ec67"
MULTI_SEND = "0x38869bf66a61cF6bDB996A6aE40D5853Fd43B526"
MULTI_SEND_CALL_ONLY = "0x9641d764fc13c8B624c04430C7356C1C7C8102e2"
# The package's module is not the code that Safe has deployed, so it has an address of its own.
MODULE = "0xDBE027F6a41aF5cFF83799669348079d574FaeCE"
MODULE_SETUP = "0x179D495Ba379Ec6eE559cbeDD4511FA52976a02A"
_NOBODY = "0x0000000000000000000000000000000000000000"
_TERMS = "address,uint256,bytes,uint8,uint256,uint256,uint256,address,address"
# validAfter and validUntil, both without a limit, before the owners' signatures.
_ALWAYS_VALID = bytes(12)


class Operation(IntEnum):
    """How a Safe makes a call."""

    CALL = 0
    """As any account does."""
    DELEGATE_CALL = 1
    """With the target's code in the Safe's place: how it makes several calls at once."""


@dataclass(frozen=True, kw_only=True)
class Safe:
    """A Safe with one owner and the 4337 module; `executor` sends what the owner signed."""

    usdc: Usdc
    owner: Wallet
    executor: Wallet
    address: str

    async def pay(self, to: str, units: int, *, inner_tail: bytes = b"", tail: bytes = b"") -> str:
        """Pay by `execTransaction`; the owner signs the inner tail, the executor adds `tail`."""
        return await self.execute(transfer(self.usdc, to, units, inner_tail), tail=tail)

    async def pay_many(
        self, calls: Sequence[Call], *, call_only: bool = True, data_tail: bytes = b""
    ) -> str:
        """Make several calls by MultiSend; `data_tail` is behind its arguments, and signed."""
        to = MULTI_SEND_CALL_ONLY if call_only else MULTI_SEND
        call = Call(to=to, data=multi_send_data(calls) + data_tail)
        return await self.execute(call, operation=Operation.DELEGATE_CALL)

    async def execute(
        self,
        call: Call,
        *,
        operation: Operation = Operation.CALL,
        tail: bytes = b"",
        signature_tail: bytes = b"",
        may_fail: bool = False,
    ) -> str:
        """Make one call by `execTransaction`; both tails are the executor's to choose.

        With `may_fail` the transaction succeeds even if its call does not.
        """
        gas = 300_000 if may_fail else 0
        terms = (call.to, call.value, call.data, operation, gas, 0, 0, _NOBODY, _NOBODY)
        rpc, nonce = self.usdc.rpc, await self._nonce()
        hashing = f"getTransactionHash({_TERMS},uint256)"
        digest = await read(rpc, self.address, "bytes32", hashing, *terms, nonce)
        signature = sign_digest(self.owner, digest) + signature_tail
        data = encode_call(f"execTransaction({_TERMS},bytes)", *terms, signature)
        return await send(self.executor, self.address, data + tail)

    async def op(
        self,
        call: Call,
        *,
        operation: Operation = Operation.CALL,
        tail: bytes = b"",
        signature_tail: bytes = b"",
        with_error: bool = False,
    ) -> UserOp:
        """Return the signed operation that makes one call through the module (EntryPoint 0.7)."""
        name = "executeUserOpWithErrorString" if with_error else "executeUserOp"
        signature = f"{name}(address,uint256,bytes,uint8)"
        data = encode_call(signature, call.to, call.value, call.data, operation)
        op = UserOp(
            sender=self.address,
            nonce=await self.entry_point.nonce(self.address),
            call_data=data + tail,
            signature=_ALWAYS_VALID,
        )
        hashing = f"getOperationHash({self.entry_point.op_type})"
        fields = op.packed(self.entry_point.version)
        digest = await read(self.usdc.rpc, MODULE, "bytes32", hashing, fields)
        proof = _ALWAYS_VALID + sign_digest(self.owner, digest) + signature_tail
        return UserOp(sender=op.sender, nonce=op.nonce, call_data=op.call_data, signature=proof)

    @property
    def entry_point(self) -> EntryPoint:
        """The EntryPoint that the module obeys."""
        return EntryPoint(rpc=self.usdc.rpc, version=Version.V07)

    async def sign_message(self, digest: bytes) -> bytes:
        """Sign for the Safe (ERC-1271), for instance an authorization of the token."""
        asked = ("getMessageHash(bytes)", digest)
        return sign_digest(self.owner, await read(self.usdc.rpc, self.address, "bytes32", *asked))

    async def _nonce(self) -> int:
        return int(await read(self.usdc.rpc, self.address, "uint256", "nonce()"))


def multi_send_data(calls: Sequence[Call]) -> bytes:
    """Return `multiSend` of these calls: operation ‖ to ‖ value ‖ length ‖ data, one by one."""
    entries = [
        bytes([Operation.CALL])
        + packed(call.to)
        + call.value.to_bytes(32)
        + len(call.data).to_bytes(32)
        + call.data
        for call in calls
    ]
    return encode_call("multiSend(bytes)", b"".join(entries))


async def create_safe(
    usdc: Usdc, owner: Wallet, executor: Wallet, *, funds_units: int, salt: int = 0
) -> Safe:
    """Create a Safe by its factory, with the 4337 module enabled, and fund it."""
    enabling = encode_call("enableModules(address[])", [MODULE])
    setup = encode_call(
        "setup(address[],uint256,address,bytes,address,address,uint256,address)",
        *([owner.address], 1, MODULE_SETUP, enabling, MODULE, _NOBODY, 0, _NOBODY),
    )
    creating = ("createProxyWithNonce(address,bytes,uint256)", SINGLETON, setup, salt)
    address = await read(usdc.rpc, PROXY_FACTORY, "address", *creating)
    created = await send(executor, PROXY_FACTORY, encode_call(*creating))
    await usdc.rpc.receipt(created)
    await usdc.mint(address, funds_units)
    found = to_checksum_address(address)
    return Safe(usdc=usdc, owner=owner, executor=executor, address=found)
