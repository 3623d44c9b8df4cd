"""ERC-4337: user operations and the EntryPoint, in the three versions that Base has."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from eth_account.datastructures import SignedSetCodeAuthorization

from devchain.contracts.sending import encode_call, packed, read, send, send_delegating
from devchain.rpc import Rpc
from devchain.wallet import Wallet

# An operation may create its account, which costs most; thirteen of them fit into a transaction.
_VERIFICATION_GAS = 600_000
_CALL_GAS = 400_000
# Before it executes an operation, EntryPoint 0.6 wants its verification gas a second time.
_BUNDLE_GAS = 200_000 + _VERIFICATION_GAS
_GAS_PER_BYTE = 100


class Version(StrEnum):
    """An EntryPoint's address on Base; versions differ in what they take and what is signed."""

    V06 = "0x5FF137D4b0FDCD49DcA30c7CF57E578a026d2789"
    """Gas limits in words of their own; the operation's hash is signed as a personal message."""
    V07 = "0x0000000071727De22E5E9d8BAf0edAc6f37da032"
    """Packed gas limits; the hash is signed as a personal message."""
    V08 = "0x4337084D9E255Ff0702461CF8895CE9E3b5Ff108"
    """Packed as in 0.7; the hash is EIP-712's, and accounts may be delegated (EIP-7702)."""


@dataclass(frozen=True, kw_only=True)
class UserOp:
    """A user operation; gas costs nothing on the dev chain, so it needs no deposit.

    All but `signature` is covered by the account's signature, `call_data` with any tail.
    """

    sender: str
    nonce: int
    call_data: bytes
    init_code: bytes = b""
    paymaster_and_data: bytes = b""
    signature: bytes = b""

    def packed(self, version: Version) -> tuple[object, ...]:
        """Return the fields as `handleOps` of that version takes them."""
        head = (self.sender, self.nonce, self.init_code, self.call_data)
        tail = (self.paymaster_and_data, self.signature)
        if version is Version.V06:
            return (*head, self._call_gas, _VERIFICATION_GAS, 0, 0, 0, *tail)
        limits = _VERIFICATION_GAS.to_bytes(16) + self._call_gas.to_bytes(16)
        return (*head, limits, 0, bytes(32), *tail)

    @property
    def gas(self) -> int:
        """All gas that the operation may use."""
        return self._call_gas + _VERIFICATION_GAS

    @property
    def _call_gas(self) -> int:
        return _CALL_GAS + _GAS_PER_BYTE * len(self.call_data)


_UNPACKED = "(address,uint256,bytes,bytes,uint256,uint256,uint256,uint256,uint256,bytes,bytes)"
_PACKED = "(address,uint256,bytes,bytes,bytes32,uint256,bytes32,bytes,bytes)"


@dataclass(frozen=True, kw_only=True)
class EntryPoint:
    """One version's EntryPoint, at its address."""

    rpc: Rpc
    version: Version

    @property
    def address(self) -> str:
        return self.version.value

    @property
    def op_type(self) -> str:
        """The ABI type of an operation."""
        return _UNPACKED if self.version is Version.V06 else _PACKED

    async def nonce(self, sender: str) -> int:
        """Return the nonce of the account's next operation."""
        signature = "getNonce(address,uint192)"
        return int(await read(self.rpc, self.address, "uint256", signature, sender, 0))

    async def hash(self, op: UserOp) -> bytes:
        """Return the operation's hash as the contract computes it; 0.8 hashes by EIP-712."""
        signature = f"getUserOpHash({self.op_type})"
        packed = op.packed(self.version)
        return bytes(await read(self.rpc, self.address, "bytes32", signature, packed))

    def bundle(self, ops: Sequence[UserOp], beneficiary: str) -> bytes:
        """Return the call data of `handleOps`."""
        packed = [op.packed(self.version) for op in ops]
        return encode_call(f"handleOps({self.op_type}[],address)", packed, beneficiary)

    async def handle_ops(
        self,
        ops: Sequence[UserOp],
        bundler: Wallet,
        *,
        tail: bytes = b"",
        authorizations: Sequence[SignedSetCodeAuthorization] = (),
    ) -> str:
        """Send operations in one transaction, in their order, with the bundler's own `tail`."""
        data = self.bundle(ops, bundler.address) + tail
        gas = _BUNDLE_GAS + sum(op.gas for op in ops)
        if authorizations:
            return await send_delegating(bundler, self.address, data, authorizations, gas=gas)
        return await send(bundler, self.address, data, gas=gas)


def paymaster_data(version: Version, paymaster: str, data: bytes = b"") -> bytes:
    """Return `paymasterAndData` that names a paymaster, with `data` for it to read or not."""
    limits = b"" if version is Version.V06 else _VERIFICATION_GAS.to_bytes(16) + bytes(16)
    return packed(paymaster) + limits + data
