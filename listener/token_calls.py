"""The token's own functions that move money: what a call of one says, and what stands behind it."""

from dataclasses import dataclass
from typing import Final

from eth_hash.auto import keccak

from listener.abi import AbiType, Malformed, Steps, decode, parse_type
from oncepaid.domain.chain import Address

SELECTOR_BYTES: Final = 4
_ADDRESS_MASK: Final = 2**160 - 1

_TRANSFERS: Final = ("transfer(address,uint256)", "transferFrom(address,address,uint256)")
_AUTHORIZED: Final = tuple(
    f"{name}WithAuthorization(address,address,uint256,uint256,uint256,bytes32,{signature})"
    for name in ("transfer", "receive")
    for signature in ("uint8,bytes32,bytes32", "bytes")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCall:
    """A call that moves money. `payer` is None where it is whoever makes a call nobody knows."""

    payer: Address | None
    recipient: Address
    units: int
    tail: memoryview


def selector_of(signature: str) -> bytes:
    return keccak(signature.encode())[:SELECTOR_BYTES]


def arguments_of(signature: str) -> AbiType:
    return parse_type(signature[signature.index("(") :])


TRANSFER: Final = selector_of(_TRANSFERS[0])
TRANSFER_FROM: Final = selector_of(_TRANSFERS[1])
AUTHORIZED: Final = frozenset(map(selector_of, _AUTHORIZED))
"""EIP-3009: transferWithAuthorization and receiveWithAuthorization, each with both signatures."""
_ARGUMENTS: Final = {selector_of(text): arguments_of(text) for text in (*_TRANSFERS, *_AUTHORIZED)}


def read_token_call(data: memoryview, caller: Address | None, steps: Steps) -> TokenCall | None:
    """Return what a call of the token moves, or None where it moves nothing or is no call at all.

    `transfer` moves the caller's money; the other functions name whose it is.
    """
    selector = bytes(data[:SELECTOR_BYTES])
    arguments = _ARGUMENTS.get(selector)
    if arguments is None:
        return None
    body = data[SELECTOR_BYTES:]
    try:
        found = decode(arguments, body, steps)
    except Malformed:
        return None
    words = found.values if selector != TRANSFER else (None, *found.values)
    return TokenCall(
        payer=caller if words[0] is None else address_of(words[0]),
        recipient=address_of(words[1]),
        units=words[2],
        tail=body[found.end :],
    )


def address_of(word: int) -> Address:
    """Return the address in a word. As the token does, it ignores the 12 bytes before it."""
    return Address(f"0x{word & _ADDRESS_MASK:040x}")
