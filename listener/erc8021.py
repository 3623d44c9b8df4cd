"""ERC-8021 suffixes: what wallets and apps append to calldata to be credited for it.

Pure and bounded; never raises, whatever the bytes are. A memo stands before them.
"""

import re
from io import BytesIO
from typing import Final

import cbor2

_WORD: Final = 32
_MARKER: Final = bytes.fromhex("8021" * 8)
_MAX_SUFFIXES: Final = 8
_MAX_CBOR_BYTES: Final = 1024
"""Real ones have some 20 bytes; one of 64 KiB keeps the decoder busy for a third of a second."""
_CODES: Final = re.compile(rb"[a-z0-9_]+(,[a-z0-9_]+)*\Z")


def strip_suffixes(tail: bytes) -> bytes:
    """Return `tail` without the ERC-8021 suffixes at its end, however many are stacked.

    A suffix that does not parse exactly is left where it is: several published examples have the
    length before the codes instead of behind them, and would make us cut into the memo.
    """
    for _ in range(_MAX_SUFFIXES):
        size = _suffix_bytes(tail)
        if size is None:
            break
        tail = tail[:-size]
    return tail


def _suffix_bytes(tail: bytes) -> int | None:
    """Return the size of the ERC-8021 suffix at the end of `tail`, or None.

    Layouts, read from the end (ERC-8021 draft; `Attribution.ts` of wevm/ox):
    schema 0: codes ‖ n(1) ‖ 00 ‖ marker; schema 1: registry(20) ‖ chain id(k) ‖ k(1) ‖ codes ‖
    n(1) ‖ 01 ‖ marker; schema 2: CBOR map ‖ length(2) ‖ 02 ‖ marker.
    """
    body, schema = tail[: -len(_MARKER) - 1], tail[-len(_MARKER) - 1 : -len(_MARKER)]
    if not tail.endswith(_MARKER) or not schema or not body:
        return None
    fixed = len(_MARKER) + 1
    match schema[0]:
        case 0:
            size = _codes_bytes(body)
        case 1:
            size = _registered_bytes(body)
        case 2:
            size = _cbor_bytes(body)
        case _:
            size = None
    return None if size is None else fixed + size


def _codes_bytes(body: bytes) -> int | None:
    """Return the size of `codes ‖ n(1)` at the end of `body`, or None."""
    length = body[-1]
    codes = body[-1 - length : -1]
    if len(codes) != length or not _CODES.match(codes):
        return None
    return length + 1


def _registered_bytes(body: bytes) -> int | None:
    """Return the size of `registry(20) ‖ chain id(k) ‖ k(1) ‖ codes ‖ n(1)`, or None."""
    codes = _codes_bytes(body)
    if codes is None or len(body) <= codes:
        return None
    id_bytes = body[-codes - 1]
    size = codes + 1 + id_bytes + 20
    return size if 1 <= id_bytes <= _WORD and len(body) >= size else None


def _cbor_bytes(body: bytes) -> int | None:
    """Return the size of `CBOR map ‖ length(2)`, or None unless it is exactly one map."""
    length = int.from_bytes(body[-2:]) if len(body) >= 2 else 0
    encoded = body[-2 - length : -2]
    if not 0 < length <= _MAX_CBOR_BYTES or len(encoded) != length:
        return None
    stream = BytesIO(encoded)
    try:
        # Unlike `loads`, a decoder that reads no further than it must shows what lies behind.
        value = cbor2.CBORDecoder(stream, read_size=1).decode()
    except Exception:  # a decoder fed by strangers: whatever it raises, this is no suffix
        return None
    return length + 2 if isinstance(value, dict) and not stream.read(1) else None
