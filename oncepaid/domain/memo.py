"""The memo envelope: 24 bytes that name one job and can be told from any other bytes.

    magic 5c2e1132 ‖ memo (16 random bytes of the job) ‖ first 4 bytes of keccak256(magic ‖ memo)

It is self-delimiting and checksummed, so a tail of another protocol (a relay's bare order id, an
ERC-8021 suffix, ABI padding) is not mistaken for it: 8 of its 24 bytes are fixed by the others.
"""

from typing import Final, NewType

from eth_hash.auto import keccak

Memo = NewType("Memo", bytes)
"""16 bytes, unique to one job."""

MAGIC: Final = bytes.fromhex("5c2e1132")
MEMO_BYTES: Final = 16
CHECKSUM_BYTES: Final = 4
ENVELOPE_BYTES: Final = len(MAGIC) + MEMO_BYTES + CHECKSUM_BYTES
NONCE_BYTES: Final = 32
"""An EIP-3009 nonce: the envelope and 8 bytes that the payer may choose freely."""


MAX_TAIL_BYTES: Final = 128 * 1024
"""As long as a transaction can be: looking for the magic is cheap, and missing a memo is not."""
MAX_LOOKS: Final = 256
"""How many places with the magic are looked at; the bound keeps a hostile tail cheap."""


def envelope_of(memo: Memo) -> bytes:
    """Return the 24-byte envelope of a memo. Raises `ValueError` unless `memo` has 16 bytes."""
    if len(memo) != MEMO_BYTES:
        raise ValueError(f"a memo has {MEMO_BYTES} bytes, not {len(memo)}")
    body = MAGIC + memo
    return body + keccak(body)[:CHECKSUM_BYTES]


def read_envelope(data: bytes) -> Memo | None:
    """Return the memo of an envelope at the start of `data`, or None; the rest is ignored."""
    if len(data) < ENVELOPE_BYTES or not data.startswith(MAGIC):
        return None
    body_end = len(MAGIC) + MEMO_BYTES
    body = data[:body_end]
    if keccak(body)[:CHECKSUM_BYTES] != data[body_end:ENVELOPE_BYTES]:
        return None
    return Memo(body[len(MAGIC) :])


def memo_of_nonce(nonce: bytes) -> Memo | None:
    """Return the memo that an EIP-3009 nonce (32 bytes) starts with, or None."""
    return read_envelope(nonce) if len(nonce) == NONCE_BYTES else None


def memos_of_tail(tail: bytes) -> tuple[Memo, ...]:
    """Return the distinct memos in the bytes behind a call's arguments, in their order.

    An ERC-8021 suffix should be cut off first. Wallets put their own bytes before or behind the
    application's, so the envelope is looked for at every offset of the first `MAX_TAIL_BYTES`;
    its magic and checksum make 64 bits that other bytes do not have by chance.
    """
    found: dict[Memo, None] = {}
    window = tail[:MAX_TAIL_BYTES]
    at = window.find(MAGIC)
    for _ in range(MAX_LOOKS):
        if at < 0:
            break
        memo = read_envelope(window[at:])
        if memo is not None:
            found[memo] = None
        at = window.find(MAGIC, at + 1)
    return tuple(found)
