"""Calls of contracts: how they are encoded, signed and sent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.grammar import TupleType, parse
from eth_account import Account
from eth_account.datastructures import SignedSetCodeAuthorization
from eth_account.messages import encode_defunct
from eth_utils.abi import function_signature_to_4byte_selector

from devchain.rpc import Rpc
from devchain.usdc import Usdc
from devchain.wallet import Wallet

DEFAULT_GAS = 1_500_000
# The highest price of a byte of call data (EIP-7623), so that a tail may be of any length.
_GAS_PER_BYTE = 40


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call that a wallet is asked to make; `data` may end in anything."""

    to: str
    data: bytes
    value: int = 0


def transfer(usdc: Usdc, to: str, units: int, tail: bytes = b"") -> Call:
    """Return the call that pays from whoever makes it, with `tail` behind its arguments."""
    data = encode_call("transfer(address,uint256)", to, units)
    return Call(to=usdc.address, data=data + tail)


def transfer_from(usdc: Usdc, owner: str, to: str, units: int, tail: bytes = b"") -> Call:
    """Return the call that moves units of an owner who has approved the caller."""
    data = encode_call("transferFrom(address,address,uint256)", owner, to, units)
    return Call(to=usdc.address, data=data + tail)


def encode_call(signature: str, *arguments: object) -> bytes:
    """ABI-encode a call; `signature` may have tuples, like "f((address,bytes)[],uint256)"."""
    selector = function_signature_to_4byte_selector(signature)
    if not arguments:
        return selector
    parsed = parse(signature[signature.index("(") :])
    assert isinstance(parsed, TupleType)
    types = [component.to_type_str() for component in parsed.components]
    return selector + encode(types, arguments)


async def read(rpc: Rpc, to: str, returns: str, signature: str, *arguments: object) -> Any:
    """Return the only result, of type `returns`, of a call that changes nothing."""
    call = {"to": to, "data": hex_of(encode_call(signature, *arguments))}
    (value,) = decode([returns], bytes.fromhex((await rpc.call("eth_call", call, "latest"))[2:]))
    return value


async def has_code(rpc: Rpc, address: str) -> bool:
    """Say whether there is a contract, or a delegated account, at `address`."""
    return bool((await rpc.call("eth_getCode", address, "latest")) != "0x")


async def send(sender: Wallet, to: str, data: bytes, *, gas: int = DEFAULT_GAS) -> str:
    """Send a call and return its hash, unmined; one at a time for each sender.

    `gas` is for what the call does; that of its data is added.
    """
    transaction = {
        "from": sender.address,
        "to": to,
        "data": hex_of(data),
        "gas": hex(gas + _GAS_PER_BYTE * len(data)),
        "gasPrice": "0x0",
    }
    return str(await sender.rpc.call("eth_sendTransaction", transaction))


async def send_delegating(
    sender: Wallet,
    to: str,
    data: bytes,
    authorizations: Sequence[SignedSetCodeAuthorization],
    *,
    gas: int = DEFAULT_GAS,
) -> str:
    """Send a call whose transaction first sets the code of accounts (EIP-7702, type 4)."""
    transaction = {
        "type": 4,
        "chainId": sender.chain_id,
        "nonce": await transaction_count(sender),
        "gas": gas + _GAS_PER_BYTE * len(data),
        "maxFeePerGas": 0,
        "maxPriorityFeePerGas": 0,
        "to": to,
        "value": 0,
        "data": data,
        "authorizationList": list(authorizations),
    }
    signed = Account.sign_transaction(transaction, sender.private_key)
    return str(await sender.rpc.call("eth_sendRawTransaction", hex_of(signed.raw_transaction)))


async def transaction_count(wallet: Wallet) -> int:
    """Return the nonce that the wallet's next transaction takes."""
    return int(await wallet.rpc.call("eth_getTransactionCount", wallet.address, "pending"), 16)


def sign_digest(wallet: Wallet, digest: bytes) -> bytes:
    """Sign 32 bytes as they are, as r ‖ s ‖ v."""
    return bytes(Account.unsafe_sign_hash(digest, wallet.private_key).signature)


def sign_personal(wallet: Wallet, digest: bytes) -> bytes:
    """Sign 32 bytes as a personal message (EIP-191), as r ‖ s ‖ v."""
    message = encode_defunct(primitive=digest)
    return bytes(Account.sign_message(message, wallet.private_key).signature)


def hex_of(data: bytes) -> str:
    """Return JSON-RPC's form of bytes."""
    return "0x" + data.hex()


def packed(address: str) -> bytes:
    """Return the 20 bytes of an address."""
    return bytes.fromhex(address.removeprefix("0x"))
