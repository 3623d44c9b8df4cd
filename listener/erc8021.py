"""ERC-8021 suffixes: what wallets and apps append to calldata to be credited for it.

Pure and bounded; never raises, whatever the bytes are. A memo stands before them.
"""

import re
from typing import Final

_WORD: Final = 32
_MARKER: Final = bytes.fromhex("8021" * 8)
_MAX_SUFFIXES: Final = 8
_MAX_CBOR_BYTES: Final = 1024
_MAX_CBOR_ITEMS: Final = 128
_MAX_CBOR_DEPTH: Final = 4
"""Real ones have some 20 bytes, five items, and a list inside of the map."""
_ARGUMENT_BYTES: Final = {24: 1, 25: 2, 26: 4, 27: 8}
"""How many bytes behind an item's first one hold its argument; below 24 it is in that one."""
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
    return length + 2 if _is_one_map(encoded) else None


def _is_one_map(encoded: bytes) -> bool:
    """Say whether these bytes are one CBOR map (RFC 8949), by lengths alone.

    No value is ever made: tags let strangers have a decoder compile regular expressions and build
    huge numbers. They are refused, and so are indefinite lengths; the reference implementation
    (`Cbor.ts` of wevm/ox) writes neither. Text need not be UTF-8.
    """
    if not encoded or encoded[0] >> 5 != 5:
        return False
    at = 0
    open_items = [1]
    for _ in range(_MAX_CBOR_ITEMS):
        head = _head_at(encoded, at)
        if head is None:
            return False
        major, argument, at = head
        open_items[-1] -= 1
        if major in (2, 3):
            at += argument
        elif major in (4, 5):
            open_items.append(argument * (major - 3))
        if len(open_items) > 1 + _MAX_CBOR_DEPTH:
            return False
        while open_items and not open_items[-1]:
            open_items.pop()
        if not open_items:
            return at == len(encoded)
    return False


def _head_at(encoded: bytes, at: int) -> tuple[int, int, int] | None:
    """Return an item's major type, its argument, and where its head ends; None where refused."""
    if at >= len(encoded):
        return None
    major, short = encoded[at] >> 5, encoded[at] & 31
    if short < 24:
        return None if major == 6 else (major, short, at + 1)
    size = _ARGUMENT_BYTES.get(short)
    if major == 6 or size is None or at + 1 + size > len(encoded):
        return None
    argument = int.from_bytes(encoded[at + 1 : at + 1 + size])
    # Simple values below 32 have no second byte.
    is_false = major == 7 and short == 24 and argument < 32
    return None if is_false else (major, argument, at + 1 + size)
