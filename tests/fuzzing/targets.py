"""What a fuzzer feeds with bytes of strangers. Each target raises where something is broken."""

import json
from collections.abc import Callable
from typing import Any, Final

from listener.abi import Steps
from listener.calldata import calldata_evidence
from listener.decode import (
    decode_authorization,
    decode_contents,
    decode_header,
    decode_receipt,
    decode_transaction,
    decode_transfer,
)
from listener.erc8021 import strip_suffixes
from listener.operations import ENTRY_POINTS, USER_OPERATION_EVENT, read_bundle
from listener.references import contract_evidence
from listener.walk import walk
from oncepaid.domain.chain import (
    Address,
    BlockHash,
    BlockRef,
    EventLog,
    Receipt,
    Transaction,
    TransferLog,
    TxHash,
)
from oncepaid.domain.errors import InconsistentNode
from oncepaid.domain.memo import envelope_of
from oncepaid.domain.money import Units
from oncepaid.domain.payments import Evidence, Signer
from tests.fuzzing.receipts import EMITTERS, unpacked
from tests.unit.listener.contract_logs import CONTRACTS
from tests.unit.samples import SHOP, STRANGER, USDC

TOKEN: Final = USDC
SENDER: Final = Address("0x" + "5e" * 20)
OTHER: Final = Address("0x" + "07" * 20)
BLOCK: Final = BlockRef(number=1, hash=BlockHash("0x" + "11" * 32))
TX_HASH: Final = TxHash("0x" + "22" * 32)
LOGS_OF_ONE: Final = 1000
"""Log numbers between one operation and the next; the walk sees 256 calls."""
PIECES_OF_ONE: Final = 6
"""What events can say of one transfer: the token one thing, each of three contracts two at most."""
TRUSTED: Final = frozenset(EMITTERS) - {STRANGER}


def fuzz_calldata(data: bytes) -> None:
    """Walk any input; what it says happened did happen, but for one transfer that did not.

    Input: a byte for the contract that is called, one for the transfer that is missing, the
    calldata. Evidence must be of bytes that are there, and say who signed them.
    """
    if len(data) < 2:
        return
    to = (TOKEN, SENDER, OTHER, None, *sorted(ENTRY_POINTS))[data[0] % 8]
    transaction = Transaction(
        hash=TX_HASH, block_hash=BLOCK.hash, sender=SENDER, to=to, calldata=data[2:]
    )
    transfers, events = _told_by(transaction)
    transfers = without_one(transfers, data[1])
    receipt = Receipt(block=BLOCK, succeeded=True, transfers=tuple(transfers), events=events)
    found = calldata_evidence(transaction, transfers, receipt, TOKEN)
    assert found.keys() == {transfer.log_index for transfer in transfers}
    for transfer in transfers:
        for piece in found[transfer.log_index]:
            _check(piece, transaction.calldata, transfer.sender)


def without_one(transfers: list[TransferLog], number: int) -> list[TransferLog]:
    """Leave one out, or none of them, by any number."""
    at = number % (len(transfers) + 1)
    return transfers[:at] + transfers[at + 1 :]


def _told_by(transaction: Transaction) -> tuple[list[TransferLog], tuple[EventLog, ...]]:
    """Return the logs that a transaction would have if all that its calldata says were done."""
    bundle = read_bundle(transaction, Steps())
    count = len(bundle.operations) if bundle else 0
    found = walk(transaction, TOKEN, bundle, range(count), Steps())
    transfers = [
        TransferLog(
            block=BLOCK,
            timestamp_ms=None,
            tx_hash=TX_HASH,
            log_index=LOGS_OF_ONE * (leaf.operation or 0) + index,
            sender=leaf.payer or OTHER,
            recipient=leaf.recipient,
            units=Units(leaf.units),
        )
        for index, leaf in enumerate(found.leaves)
    ]
    events = tuple(
        EventLog(
            log_index=LOGS_OF_ONE * (index + 1) - 1,
            address=transaction.to or OTHER,
            topics=(USER_OPERATION_EVENT, bytes(32), _topic(operation.sender), bytes(32)),
            data=bytes(63) + b"\1" + bytes(64),
        )
        for index, operation in enumerate(bundle.operations if bundle else ())
    )
    return transfers, events


def _topic(address: Address) -> bytes:
    return bytes.fromhex(address[2:]).rjust(32, b"\0")


def _check(piece: Evidence, calldata: bytes, payer: Address) -> None:
    assert piece.memo is not None
    assert envelope_of(piece.memo) in calldata, "a memo that nobody wrote"
    assert (piece.signer is Signer.PAYER) == (piece.by == payer), "signed by another"
    assert piece.company >= 1


def fuzz_references(data: bytes) -> None:
    """Read any events: what they say stands in them, and who is not on the list says nothing."""
    calldata, receipt = unpacked(data)
    transaction = Transaction(
        hash=TX_HASH, block_hash=BLOCK.hash, sender=SENDER, to=OTHER, calldata=calldata
    )
    ours = [log for log in receipt.transfers if log.recipient == SHOP]
    found = contract_evidence(transaction, ours, receipt, token=TOKEN, contracts=CONTRACTS)
    assert found.keys() <= {log.log_index for log in ours}
    told = (part for event in receipt.events for part in (*event.topics, event.data))
    written = b"".join((calldata, *told))
    for pieces in found.values():
        assert len(pieces) <= PIECES_OF_ONE
        for piece in pieces:
            _check_event(piece, written)


def _check_event(piece: Evidence, written: bytes) -> None:
    assert (piece.memo is None) != (piece.reference is None)
    if piece.memo is not None:
        assert envelope_of(piece.memo) in written, "a memo that nobody wrote"
    if piece.reference is not None:
        assert piece.reference.issuer in TRUSTED, "a stranger is believed"
        assert piece.reference.value in written, "a reference that nobody wrote"
    assert piece.company >= 1
    assert piece.company == 1 or piece.signer is Signer.THIRD_PARTY, "who pays two at once"


def fuzz_suffixes(data: bytes) -> None:
    """Strip ERC-8021 suffixes off any bytes: what is left is how they begin."""
    assert data.startswith(strip_suffixes(data))


_DECODERS: Final[tuple[Callable[[Any], object], ...]] = (
    decode_header,
    decode_contents,
    decode_transaction,
    lambda value: decode_transfer(value, TOKEN),
    lambda value: decode_authorization(value, TOKEN),
    lambda value: decode_receipt(value, TOKEN, (TOKEN, *ENTRY_POINTS)),
)


def fuzz_answers(data: bytes) -> None:
    """Decode any JSON as each of a node's answers: a fact, none, or `InconsistentNode`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    for decode in _DECODERS:
        try:
            decode(value)
        except InconsistentNode:
            continue


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "calldata": fuzz_calldata,
    "references": fuzz_references,
    "suffixes": fuzz_suffixes,
    "answers": fuzz_answers,
}
