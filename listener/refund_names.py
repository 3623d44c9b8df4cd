"""What the calldata of a transfer of ours says that it sends back. Pure, bounded, never raises."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from listener.abi import Steps
from listener.operations import Bundle, log_ranges, operation_at, read_bundle
from listener.tails import Tail
from listener.walk import MAX_CALLDATA_BYTES, walk
from oncepaid.domain.chain import Address, Receipt, Transaction, TransferLog
from oncepaid.domain.refunding import RefundName, refund_names

MAX_TAILS: Final = 64
"""Of one transfer; a relayer may put a call with many hostile ones beside what we signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A transfer of ours with what it names. `is_signed`: by the recipient whose money moved."""

    transfer: TransferLog
    names: tuple[RefundName, ...]
    is_signed: bool


def needs_receipt(transaction: Transaction) -> bool:
    """Say whether the logs of a transaction tell which of its calls made a transfer."""
    return read_bundle(transaction, Steps()) is not None


def named_by(
    transfer: TransferLog, transaction: Transaction, receipt: Receipt | None, token: Address
) -> Named:
    """Return what stands behind the calls that may have made a transfer, or around them.

    What its payer signed, if there is any; of calls alike, what all of them name: they sent the
    same amount to the same address. `receipt` is needed for user operations only.
    """
    tails = list(_tails(transfer, transaction, receipt, token))
    signed = _names([tail for tail in tails if tail.by == transfer.sender])
    return Named(transfer=transfer, names=signed or _names(tails), is_signed=bool(signed))


def _names(tails: Sequence[Tail]) -> tuple[RefundName, ...]:
    found = (name for tail in tails[:MAX_TAILS] for name in refund_names(bytes(tail.data)))
    return tuple(dict.fromkeys(found))


def _tails(
    transfer: TransferLog, transaction: Transaction, receipt: Receipt | None, token: Address
) -> Iterator[Tail]:
    if transaction.to is None or len(transaction.calldata) > MAX_CALLDATA_BYTES:
        return
    steps = Steps()
    bundle = read_bundle(transaction, steps)
    operation = _operation(transfer, transaction, receipt, bundle)
    moving = [] if operation is None else [operation]
    found = walk(transaction, token, bundle, moving, steps)
    # A tail around several calls stands with each of them.
    tails = (tail for leaf in found.leaves if leaf.may_have_made(transfer) for tail in leaf.tails)
    yield from dict.fromkeys(tails)


def _operation(
    transfer: TransferLog, transaction: Transaction, receipt: Receipt | None, bundle: Bundle | None
) -> int | None:
    """Return the user operation that made a transfer; None also for one that failed."""
    if bundle is None:
        return None
    ranges = log_ranges(bundle, transaction.to, receipt) or ()
    at = operation_at(ranges, transfer.log_index)
    return at if at is not None and ranges[at].succeeded else None
