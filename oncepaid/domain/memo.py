"""The memo envelope: 24 bytes that name one job and can be told from any other bytes.

    magic 5c2e1132 ‖ memo (16 random bytes of the job) ‖ first 4 bytes of keccak256(magic ‖ memo)

It is self-delimiting and checksummed, so a tail of another protocol (a relay's bare order id, an
ERC-8021 suffix, ABI padding) is not mistaken for it: 8 of its 24 bytes are fixed by the others.
"""

from dataclasses import dataclass
from typing import Final, NewType

from eth_hash.auto import keccak

from oncepaid.domain.chain import Address

Memo = NewType("Memo", bytes)
"""16 bytes, unique to one job."""

MAGIC: Final = bytes.fromhex("5c2e1132")
MEMO_BYTES: Final = 16
CHECKSUM_BYTES: Final = 4
ENVELOPE_BYTES: Final = len(MAGIC) + MEMO_BYTES + CHECKSUM_BYTES
NONCE_BYTES: Final = 32
"""An EIP-3009 nonce: the envelope and 8 bytes that the payer may choose freely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What somebody else chose to name a payment by; a host application binds it to a job.

    `issuer` is the payer for an EIP-3009 nonce (32 bytes, unique only to him), else the contract.
    """

    issuer: Address
    value: bytes


MAX_TAIL_BYTES: Final = 128 * 1024
"""As long as a transaction can be: looking for the magic is cheap, and missing a memo is not."""
MAX_LOOKS: Final = 256
"""How many places with the magic are looked at; the bound keeps a hostile tail cheap."""


def envelope_of(memo: Memo) -> bytes:
    """Return the 24-byte envelope of a memo. Raises `ValueError` unless `memo` has 16 bytes."""
    return sealed(MAGIC, memo)


def read_envelope(data: bytes) -> Memo | None:
    """Return the memo of an envelope at the start of `data`, or None; the rest is ignored."""
    memo = unsealed(MAGIC, data)
    return None if memo is None else Memo(memo)


def sealed(magic: bytes, name: bytes) -> bytes:
    """Return 16 bytes in an envelope of a kind that `magic` tells from every other.

    Raises `ValueError` for another number of bytes.
    """
    if len(name) != MEMO_BYTES:
        raise ValueError(f"a memo has {MEMO_BYTES} bytes, not {len(name)}")
    body = magic + name
    return body + keccak(body)[:CHECKSUM_BYTES]


def unsealed(magic: bytes, data: bytes) -> bytes | None:
    """Return what an envelope of this kind at the start of `data` holds, or None."""
    if len(data) < ENVELOPE_BYTES or not data.startswith(magic):
        return None
    name = data[len(magic) : len(magic) + MEMO_BYTES]
    return name if sealed(magic, name) == data[:ENVELOPE_BYTES] else None


def memo_of_nonce(nonce: bytes) -> Memo | None:
    """Return the memo that an EIP-3009 nonce (32 bytes) starts with, or None."""
    return read_envelope(nonce) if len(nonce) == NONCE_BYTES else None


def memos_of_tail(tail: bytes) -> tuple[Memo, ...]:
    """Return the distinct memos in the bytes behind a call's arguments, in their order.

    An ERC-8021 suffix should be cut off first.
    """
    return tuple(map(Memo, found_in_tail(MAGIC, tail)))


def found_in_tail(magic: bytes, tail: bytes) -> tuple[bytes, ...]:
    """Return what the envelopes of a kind in a tail hold, each once, in their order.

    Wallets put their own bytes before or behind the application's, so the envelope is looked for at
    every offset of the first `MAX_TAIL_BYTES`; its magic and checksum make 64 bits that other bytes
    do not have by chance.
    """
    found: dict[bytes, None] = {}
    window = tail[:MAX_TAIL_BYTES]
    at = window.find(magic)
    for _ in range(MAX_LOOKS):
        if at < 0:
            break
        name = unsealed(magic, window[at:])
        if name is not None:
            found[name] = None
        at = window.find(magic, at + 1)
    return tuple(found)
