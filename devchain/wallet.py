"""Payers: wallets of the dev chain's own accounts, and a fast path for thousands of payments."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from eth_account import Account
from eth_account.hdaccount import key_from_seed, seed_from_mnemonic

from devchain.anvil import BASE_CHAIN_ID, MNEMONIC
from devchain.rpc import Rpc
from devchain.usdc import UINT256_MAX, Usdc, call_data

_GAS = 150_000
# The highest price of a byte of call data (EIP-7623), so that a tail may be of any length.
_GAS_PER_BYTE = 40
_MAX_BATCH = 500
_AUTHORIZATION_TYPE = {
    "TransferWithAuthorization": [
        {"name": "from", "type": "address"},
        {"name": "to", "type": "address"},
        {"name": "value", "type": "uint256"},
        {"name": "validAfter", "type": "uint256"},
        {"name": "validBefore", "type": "uint256"},
        {"name": "nonce", "type": "bytes32"},
    ]
}
_WITH_AUTHORIZATION = (
    "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,"
    "uint8,bytes32,bytes32)"
)


@dataclass(frozen=True, kw_only=True)
class Payment:
    """One transfer to make: `units` of 10^-6 USDC, `tail` appended to the call's data."""

    to: str
    units: int
    tail: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Authorization:
    """An EIP-3009 transfer that its payer has signed and anybody may submit (times in Unix s)."""

    payer: str
    to: str
    units: int
    valid_after: int
    valid_before: int
    nonce: bytes
    v: int
    r: bytes
    s: bytes


@dataclass(frozen=True, kw_only=True)
class Wallet:
    """One unlocked account; every method that pays returns the transaction's hash, unmined."""

    usdc: Usdc
    address: str
    index: int
    chain_id: int = BASE_CHAIN_ID
    # The node picks the nonce of a single transaction, and would give two at once the same one.
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False, compare=False)

    @property
    def rpc(self) -> Rpc:
        return self.usdc.rpc

    @property
    def private_key(self) -> bytes:
        """The account's key, derived from the dev chain's public mnemonic."""
        return key_from_seed(seed_from_mnemonic(MNEMONIC, ""), f"m/44'/60'/0'/0/{self.index}")

    async def transfer(self, to: str, units: int, tail: bytes = b"") -> str:
        """Pay `units` to `to`, with `tail` after the call's arguments."""
        return await self.send(_transfer_data(to, units) + tail)

    async def approve(self, spender: str, units: int) -> str:
        """Let `spender` take up to `units`."""
        return await self.send(call_data("approve(address,uint256)", spender, units))

    async def transfer_from(self, owner: str, to: str, units: int, tail: bytes = b"") -> str:
        """Move `units` of an owner that has approved this wallet."""
        signature = "transferFrom(address,address,uint256)"
        return await self.send(call_data(signature, owner, to, units) + tail)

    def sign_authorization(
        self,
        to: str,
        units: int,
        nonce: bytes,
        *,
        valid_after: int = 0,
        valid_before: int = UINT256_MAX,
    ) -> Authorization:
        """Sign an EIP-3009 transfer; `nonce` has 32 bytes and is free for a memo."""
        terms = (self.address, to, units, valid_after, valid_before, nonce)
        names = [entry["name"] for entry in _AUTHORIZATION_TYPE["TransferWithAuthorization"]]
        message = dict(zip(names, terms, strict=True))
        signed = Account.sign_typed_data(
            self.private_key, self._domain(), _AUTHORIZATION_TYPE, message
        )
        return Authorization(
            payer=self.address,
            to=to,
            units=units,
            valid_after=valid_after,
            valid_before=valid_before,
            nonce=nonce,
            v=signed.v,
            r=signed.r.to_bytes(32, "big"),
            s=signed.s.to_bytes(32, "big"),
        )

    def _domain(self) -> dict[str, object]:
        return {
            "name": "USD Coin",
            "version": "2",
            "chainId": self.chain_id,
            "verifyingContract": self.usdc.address,
        }

    async def submit_authorization(self, signed: Authorization, tail: bytes = b"") -> str:
        """Relay a payer's authorization from this wallet."""
        terms = (signed.payer, signed.to, signed.units, signed.valid_after, signed.valid_before)
        proof = (signed.nonce, signed.v, signed.r, signed.s)
        return await self.send(call_data(_WITH_AUTHORIZATION, *terms, *proof) + tail)

    async def send(self, data: bytes, to: str | None = None) -> str:
        """Send any call, to the token unless `to` says otherwise."""
        async with self._turn:
            sent = await self.rpc.call("eth_sendTransaction", self._transaction(data, to))
        return str(sent)

    async def send_many(
        self, payments: Sequence[Payment], *, per_block: int | None = 50
    ) -> list[str]:
        """Pay all of `payments` fast, in their order; returns the hashes in the same order.

        Each block mined holds `per_block` of them, and all are mined at return; with None, mining
        is left to a node that has a block time. Wallets that do this side by side share blocks.
        """
        hashes: list[str] = []
        async with self._turn, _manual_mining(self.rpc, enabled=per_block is not None):
            count = await self.rpc.call("eth_getTransactionCount", self.address, "pending")
            nonce = int(count, 16)
            for part in _parts(payments, per_block or _MAX_BATCH):
                hashes += await self._send_part(part, nonce + len(hashes))
                if per_block is not None:
                    await self.rpc.call("evm_mine")
        return hashes

    async def _send_part(self, part: Sequence[Payment], first_nonce: int) -> list[str]:
        calls = []
        for nonce, payment in enumerate(part, first_nonce):
            data = _transfer_data(payment.to, payment.units) + payment.tail
            transaction = self._transaction(data) | {"nonce": hex(nonce)}
            calls.append(("eth_sendTransaction", [transaction]))
        return await self.rpc.batch(calls)

    def _transaction(self, data: bytes, to: str | None = None) -> dict[str, str]:
        return {
            "from": self.address,
            "to": to or self.usdc.address,
            "data": "0x" + data.hex(),
            "gas": hex(_GAS + _GAS_PER_BYTE * len(data)),
            "gasPrice": "0x0",
        }


@asynccontextmanager
async def _manual_mining(rpc: Rpc, *, enabled: bool) -> AsyncIterator[None]:
    automine = enabled and await rpc.call("anvil_getAutomine")
    if automine:
        await rpc.call("evm_setAutomine", False)
    try:
        yield
    finally:
        if automine:
            await rpc.call("evm_setAutomine", True)


def _parts(payments: Sequence[Payment], size: int) -> Iterator[Sequence[Payment]]:
    return (payments[start : start + size] for start in range(0, len(payments), size))


def _transfer_data(to: str, units: int) -> bytes:
    return call_data("transfer(address,uint256)", to, units)
