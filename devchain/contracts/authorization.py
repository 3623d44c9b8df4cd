"""EIP-3009 as calls: both kinds and both forms of signature, for any caller and any signer."""

from dataclasses import dataclass
from enum import StrEnum

from eth_abi.abi import encode
from eth_utils.crypto import keccak

from devchain.contracts.sending import Call, encode_call, read
from devchain.usdc import UINT256_MAX, Usdc

_FIELDS = ("address", "address", "uint256", "uint256", "uint256", "bytes32")


class Kind(StrEnum):
    """What is authorized."""

    TRANSFER = "transferWithAuthorization"
    """Anybody may submit it."""
    RECEIVE = "receiveWithAuthorization"
    """Only the recipient may submit it."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a payer signs; `nonce` has 32 bytes and may be a memo."""

    kind: Kind
    payer: str
    to: str
    units: int
    nonce: bytes
    valid_after: int = 0
    valid_before: int = UINT256_MAX

    @property
    def values(self) -> tuple[object, ...]:
        """The arguments in the order of the call and of the signed struct."""
        limits = (self.valid_after, self.valid_before)
        return (self.payer, self.to, self.units, *limits, self.nonce)


async def digest_of(usdc: Usdc, terms: Terms) -> bytes:
    """Return what the payer signs (EIP-712)."""
    domain = await read(usdc.rpc, usdc.address, "bytes32", "DOMAIN_SEPARATOR()")
    name = terms.kind.value[0].upper() + terms.kind.value[1:]
    kind = keccak(
        text=f"{name}(address from,address to,uint256 value,uint256 validAfter,"
        "uint256 validBefore,bytes32 nonce)"
    )
    return keccak(
        b"\x19\x01" + domain + keccak(encode(("bytes32", *_FIELDS), (kind, *terms.values)))
    )


def call_with_parts(usdc: Usdc, terms: Terms, signature: bytes, tail: bytes = b"") -> Call:
    """Return the call with v, r, s, which only an account with a key can sign for."""
    types = ",".join((*_FIELDS, "uint8", "bytes32", "bytes32"))
    r, s, v = signature[:32], signature[32:64], signature[64]
    data = encode_call(f"{terms.kind}({types})", *terms.values, v, r, s)
    return Call(to=usdc.address, data=data + tail)


def call_with_bytes(usdc: Usdc, terms: Terms, signature: bytes, tail: bytes = b"") -> Call:
    """Return the call with the signature as bytes, which a wallet's code may verify (ERC-1271)."""
    types = ",".join((*_FIELDS, "bytes"))
    data = encode_call(f"{terms.kind}({types})", *terms.values, signature)
    return Call(to=usdc.address, data=data + tail)
