"""Memos in a transaction's calldata. Pure and bounded; never raises, whatever the bytes are."""

import re
from io import BytesIO
from typing import Final

import cbor2

from oncepaid.domain.chain import Address, Transaction, TransferLog
from oncepaid.domain.memo import memos_of_tail
from oncepaid.domain.payments import Evidence, MemoSource, Signer

MAX_CALLDATA_BYTES: Final = 128 * 1024
"""Geth's limit of a transaction's size; longer calldata is not read."""

TRANSFER: Final = bytes.fromhex("a9059cbb")
"""transfer(address to, uint256 value)"""
TRANSFER_FROM: Final = bytes.fromhex("23b872dd")
"""transferFrom(address from, address to, uint256 value)"""
_ARGUMENT_BYTES: Final = {TRANSFER: 64, TRANSFER_FROM: 96}
_SELECTOR_BYTES: Final = 4
_WORD: Final = 32

_MARKER: Final = bytes.fromhex("8021" * 8)
_MAX_SUFFIXES: Final = 8
_MAX_CBOR_BYTES: Final = 1024
"""Real ones have some 20 bytes; one of 64 KiB keeps the decoder busy for a third of a second."""
_CODES: Final = re.compile(rb"[a-z0-9_]+(,[a-z0-9_]+)*\Z")


def is_direct_call(transaction: Transaction, token: Address) -> bool:
    """Say whether the transaction itself calls the token's `transfer` or `transferFrom`."""
    return transaction.to == token and transaction.calldata[:_SELECTOR_BYTES] in _ARGUMENT_BYTES


def evidence_of_call(
    transaction: Transaction, log: TransferLog, token: Address
) -> tuple[Evidence, ...]:
    """Return the memos behind the arguments of the direct token call that made `log`.

    Solidity ignores bytes behind the arguments, so wallets can append them. They are signed by
    the transaction's sender: the payer, or with `transferFrom` possibly a spender.
    """
    calldata = transaction.calldata
    if not is_direct_call(transaction, token) or len(calldata) > MAX_CALLDATA_BYTES:
        return ()
    selector = calldata[:_SELECTOR_BYTES]
    arguments_end = _SELECTOR_BYTES + _ARGUMENT_BYTES[selector]
    if not _made(calldata[_SELECTOR_BYTES:arguments_end], selector, transaction, log):
        return ()
    signer = Signer.PAYER if transaction.sender == log.sender else Signer.THIRD_PARTY
    tail = calldata[arguments_end:]
    # Before the ERC-8021 suffixes if it is there; else what looks like one may hold it.
    memos = memos_of_tail(strip_suffixes(tail)) or memos_of_tail(tail)
    return tuple(Evidence(memo=memo, source=MemoSource.CALLDATA, signer=signer) for memo in memos)


def _made(arguments: bytes, selector: bytes, transaction: Transaction, log: TransferLog) -> bool:
    """Say whether these arguments are those of the transfer that `log` tells of."""
    words = [arguments[at : at + _WORD] for at in range(0, len(arguments), _WORD)]
    if len(words) != _ARGUMENT_BYTES[selector] // _WORD or len(words[-1]) != _WORD:
        return False
    sender = transaction.sender if selector == TRANSFER else _address(words[0])
    return (
        sender == log.sender
        and _address(words[-2]) == log.recipient
        and int.from_bytes(words[-1]) == log.units
    )


def _address(word: bytes) -> str:
    return "0x" + word[-20:].hex()


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
