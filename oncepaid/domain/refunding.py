"""Refunds: how a transfer of ours names the payment that it sends back, and what makes it one.

The refund envelope is the memo's with a magic of its own, so that neither is taken for the other:

    magic 5c2e1133 ‖ first 16 bytes of the payment's transaction hash ‖ checksum

It names the transaction and no log: a reorganisation may mine the transaction again in another
block, where its logs have other indices, and an envelope that was handed out must still be right.
Which of several payments in one transaction is meant, amount and payer tell; those that are alike
in both may stand for each other. It names no chain: a transaction's hash is of one chain already.
The hash is not hashed again, so that an index finds the payment, and so does anyone who looks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final, NewType

from oncepaid.domain.chain import Address, BlockRef, Header, TransferLog, TxHash
from oncepaid.domain.desk import OPEN, UNCREDITED
from oncepaid.domain.memo import MEMO_BYTES, found_in_tail, sealed
from oncepaid.domain.payments import PaymentId, PaymentStatus, StoredLog
from oncepaid.domain.wording import span

REFUND_MAGIC: Final = bytes.fromhex("5c2e1133")
NAME_HEX: Final = 2 + 2 * MEMO_BYTES
"""So many characters of a transaction's hash, with its 0x, are in a name."""

RefundName = NewType("RefundName", bytes)
"""The first 16 bytes of the hash of the transaction in which a payment came."""

MAX_NAMES: Final = 16
"""Of one transfer; in a batch of refunds that are alike one name is as good as another."""

BUSY_SENDER: Final = 10_000
"""Who sent more transactions than this is hardly a person: often an exchange's hot wallet."""


def refund_envelope(tx_hash: TxHash) -> bytes:
    """Return the 24 bytes to put behind the arguments of the `transfer` that sends a payment back.

    `tx_hash` is the transaction in which the payment came.
    """
    return sealed(REFUND_MAGIC, bytes.fromhex(tx_hash[2:NAME_HEX]))


def refund_names(tail: bytes) -> tuple[RefundName, ...]:
    """Return what the refund envelopes in the bytes behind a call's arguments name, each once."""
    return tuple(map(RefundName, found_in_tail(REFUND_MAGIC, tail)))


class RefundRefusal(StrEnum):
    """Why a transfer does not send a payment back, each with a sentence for the operator."""

    sentence: str

    NOT_MINED = "not_mined", "The node has no such transaction in a block."
    NOT_ON_CHAIN = "not_on_chain", "Its block is not, or not any more, on the chain."
    REVERTED = "reverted", "The transaction failed, and moved nothing."
    NOT_OURS = "not_ours", "It moves none of this token from one of our recipients."
    WRONG_ADDRESS = "wrong_address", "It does not go where the payment is to be sent back to."
    WRONG_AMOUNT = "wrong_amount", "Its amount is not the payment's, to the millionth."
    EARLIER = "earlier", "It was sent before the payment came."
    NOT_SIGNED = "not_signed", "The recipient that paid it did not sign what names the payment."
    TOO_MANY_NAMES = "too_many_names", "It names the payments of too many transactions."
    UNKNOWN_PAYMENT = "unknown_payment", "It names a transaction in which nobody paid us."
    SENT_BACK_BEFORE = "sent_back_before", "Another transfer has sent the payment back before."

    def __new__(cls, value: str, sentence: str = "") -> "RefundRefusal":
        member = str.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member


@dataclass(frozen=True, slots=True, kw_only=True)
class Refunded:
    """The transfer sends the payment back."""

    payment: PaymentId


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundKnown:
    """The transfer is recorded already as the refund of this payment."""

    payment: PaymentId


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundRefused:
    """It does not; `payment` is the one that it comes nearest to, None where there is none."""

    reason: RefundRefusal
    payment: PaymentId | None = None


def names_to_look_for(
    names: Sequence[RefundName], *, is_signed: bool
) -> Sequence[RefundName] | RefundRefused:
    """Return what a transfer of ours is to be judged by; nothing where it names nothing.

    `is_signed`: the recipient whose money it moves signed the names.
    """
    if len(names) > MAX_NAMES:
        return RefundRefused(reason=RefundRefusal.TOO_MANY_NAMES)
    if names and not is_signed:
        return RefundRefused(reason=RefundRefusal.NOT_SIGNED)
    return names


# The nearer a transfer comes to being a refund, the later its refusal stands here.
_NEARNESS: Final = (
    RefundRefusal.NOT_OURS,
    RefundRefusal.WRONG_ADDRESS,
    RefundRefusal.WRONG_AMOUNT,
    RefundRefusal.EARLIER,
    RefundRefusal.SENT_BACK_BEFORE,
)


def judge_refund(
    payment: StoredLog,
    transfer: TransferLog,
    *,
    ours: frozenset[Address] | None,
    to: Address | None = None,
) -> Refunded | RefundRefused:
    """Say whether a transfer that is final sends a payment back.

    `ours` are our recipients, None where every one is observed: then it must be the payment's own.
    `to` is the address that the operator states, None: the payer.
    """
    senders = (ours or frozenset()) | {payment.recipient}
    reason: RefundRefusal | None = None
    if transfer.sender not in senders:
        reason = RefundRefusal.NOT_OURS
    elif transfer.recipient != (to or payment.sender):
        reason = RefundRefusal.WRONG_ADDRESS
    elif transfer.units != payment.units:
        reason = RefundRefusal.WRONG_AMOUNT
    elif _place(transfer) <= _place(payment):
        reason = RefundRefusal.EARLIER
    if reason is None:
        return Refunded(payment=payment.id)
    return RefundRefused(reason=reason, payment=payment.id)


def _place(log: TransferLog | StoredLog) -> tuple[int, int]:
    return log.block.number, log.log_index


def nearest_refusal(refusals: Sequence[RefundRefused]) -> RefundRefused:
    """Return the refusal that says most; of a transfer that was judged at least once."""
    return max(refusals, key=lambda refused: _NEARNESS.index(refused.reason))


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPayment:
    """A payment of the transaction that a refund names.

    `sent_back` is the transaction and log index of its refund, where one is recorded.
    """

    log: StoredLog
    status: PaymentStatus
    sent_back: tuple[TxHash, int] | None = None


def find_refunded(
    named: Sequence[NamedPayment], transfer: TransferLog, *, ours: frozenset[Address] | None
) -> Refunded | RefundKnown | RefundRefused:
    """Say which payment a transfer sends back, of those in the transactions that it names.

    Of several that fit: one that is open, else one that is not credited yet, else one that is,
    else one that was orphaned.
    """
    if not named:
        return RefundRefused(reason=RefundRefusal.UNKNOWN_PAYMENT)
    for one in named:
        if one.sent_back == (transfer.tx_hash, transfer.log_index):
            return RefundKnown(payment=one.log.id)
    refusals = []
    for one in sorted(named, key=_rank):
        judged = judge_refund(one.log, transfer, ours=ours)
        if isinstance(judged, Refunded) and one.sent_back is None:
            return judged
        before = RefundRefused(reason=RefundRefusal.SENT_BACK_BEFORE, payment=one.log.id)
        refusals.append(before if isinstance(judged, Refunded) else judged)
    return nearest_refusal(refusals)


def _rank(payment: NamedPayment) -> tuple[bool, bool, bool, PaymentId]:
    is_gone = payment.status is PaymentStatus.ORPHANED
    return is_gone, payment.status not in UNCREDITED, payment.status not in OPEN, payment.log.id


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundMark:
    """How far our own transfers were looked at, and may be: up to the block that is `final`.

    `final` None: none is yet. While the chain contradicts itself nothing is looked at.
    """

    looked_at: int
    final: BlockRef | None
    is_in_conflict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFinalYet:
    """A reorganisation could still take the refund back.

    `wait` is about how long, None where the node names no final block.
    """

    block_number: int
    wait: timedelta | None

    @property
    def sentence(self) -> str:
        name = f"block {self.block_number}, in which it was sent,"
        if self.wait is None:
            return f"{name} is not final, and the node tells of no final block: try again later"
        return f"{name} is not final yet: try again in about {span(self.wait)}"


def final_or_wait(
    block: Header, *, latest: Header, finalized: Header | None, age: timedelta | None
) -> NotFinalYet | None:
    """Return None for a block that is final, by the chain's own time and not by a clock.

    `age` stands for the node's `finalized` where its tags mean nothing.
    """
    if age is not None:
        left = age - (latest.time - block.time)
        is_final = left <= timedelta(0)
    elif finalized is None:
        return NotFinalYet(block_number=block.number, wait=None)
    else:
        left = block.time - finalized.time
        is_final = block.number <= finalized.number
    # Several blocks share a second: what is still to come takes some time at least.
    wait = max(left, timedelta(seconds=1))
    return None if is_final else NotFinalYet(block_number=block.number, wait=wait)


@dataclass(frozen=True, slots=True, kw_only=True)
class Payee:
    """Where a refund goes: whether a contract is there, and how many transactions it has sent."""

    address: Address
    is_contract: bool
    sent: int


def warnings_of(payee: Payee, *, payer: Address) -> tuple[str, ...]:
    """Return what an operator should think of before, or know after, money went there."""
    found = []
    if payee.address != payer:
        found.append(f"{payee.address} is not the payer, {payer}")
    if payee.is_contract:
        found.append(
            f"{payee.address} is a contract: a smart wallet takes money back, a router or an"
            " exchange's contract may keep it; ask the payer where to send it"
        )
    elif payee.sent > BUSY_SENDER:
        found.append(
            f"{payee.address} has sent {payee.sent} transactions and looks like an exchange's hot"
            " wallet, which credits nobody for what comes back: ask the payer where to send it"
        )
    return tuple(found)
