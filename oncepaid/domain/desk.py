"""What an operator may decide about a payment: facts read under locks in, a named outcome out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, assert_never

from oncepaid.domain.chain import TxHash
from oncepaid.domain.jobs import JobId, JobTerms
from oncepaid.domain.money import Units
from oncepaid.domain.payments import PaymentId, PaymentStatus, Reason, StoredLog
from oncepaid.domain.wording import listed, usdc

OPEN: Final = (PaymentStatus.UNMATCHED, PaymentStatus.IGNORED)
"""Only such payments are an operator's: the others count for a job, or may yet."""

UNCREDITED: Final = (PaymentStatus.SEEN, PaymentStatus.MATCHED, *OPEN)
"""What money that went back closes: no job has it yet, and none may get it any more."""


def is_open(status: PaymentStatus, *, is_sent_back: bool) -> bool:
    """Say whether a payment may be given to a job or sent back."""
    return status in OPEN and not is_sent_back


def is_waiting_part(status: PaymentStatus, reason: Reason | None, *, has_job: bool) -> bool:
    """Say whether a payment becomes its job's as soon as the rest of the price arrives."""
    return status is PaymentStatus.UNMATCHED and reason is Reason.UNDERPAID and has_job


class Obstacle(StrEnum):
    """Why an operator's command is refused. The sentence that goes with it names what is meant."""

    UNKNOWN = "unknown"
    """There is no such payment or job."""
    UNDECIDED = "undecided"
    """The payment is `seen`: the daemon decides it, and may be at it."""
    PAYS_A_JOB = "pays_a_job"
    """It is `matched` or `credited`: money that counts is not an operator's to move. What is only
    `matched` is closed where it went back all the same."""
    ORPHANED = "orphaned"
    """Its block left the chain."""
    SENT_BACK = "sent_back"
    """It is `refunded`, or a transfer that sent it back is known."""
    SETTLED = "settled"
    """It is `ignored` where that does not fit."""
    JOB_TAKES_NOTHING = "job_takes_nothing"
    """The job is paid, or in a state of the host's that waits for no money."""
    JOB_NOT_PAYABLE = "job_not_payable"
    """The job has no price."""
    OTHER_CHAIN = "other_chain"
    """The payment is on another chain than the settings name, or money on another one counts for
    the job already: sums of two chains are no sum."""
    SHORT = "short"
    """All that there is for the job is less than its price."""
    TRANSFER_TAKEN = "transfer_taken"
    """The transfer that sent money back did so for another payment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskPayment:
    """A payment as the desk finds it, locked.

    `assigned_to` is the job that an operator gave it to last, whatever became of that; `sent_back`
    the transaction that refunded it; `came_again` the payment that its transfer became after its
    own block had left the chain.
    """

    id: PaymentId
    units: Units
    status: PaymentStatus
    job_id: JobId | None = None
    assigned_to: JobId | None = None
    sent_back: TxHash | None = None
    came_again: PaymentId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskJob:
    """A job as the desk finds it, locked; the sums in `terms` leave out the payment in question.

    `paid_by` are the payments that count for it; `other_chain` is a chain other than the payment's
    on which some of its money is; `drawn_amount` its unique amount, whether that is still reserved
    for it or not.
    """

    terms: JobTerms
    uuid: str
    status: str
    paid_by: tuple[PaymentId, ...] = ()
    other_chain: int | None = None
    drawn_amount: Units | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Twins:
    """All rows of a payment's transfer, itself among them: a reorganisation may have left some.

    `came_again` is another one than the payment that is on the chain.
    """

    ids: tuple[PaymentId, ...]
    came_again: PaymentId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """To be done. `lower_price_to` is what the job shall cost from now on, None: as before.

    `is_recorded`: the transfer that sent the payment back is known already.
    """

    lower_price_to: Units | None = None
    is_recorded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Already:
    """The same was done before; nothing is left to do."""

    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Nothing is done; `sentence` is for the operator."""

    obstacle: Obstacle
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The transfer is to be recorded, for the money did go back; the payment stays as it is.

    `obstacle` is what forbids to close it.
    """

    obstacle: Obstacle
    sentence: str


Ruling = Allowed | Already | Refused
RefundRuling = Ruling | Recorded


def decide_assignment(payment: DeskPayment, job: DeskJob, *, accept_short: bool) -> Ruling:
    """Decide whether a payment may be given to a job.

    Time, sender, recipient and signer are the operator's to overrule; what a job costs is not,
    unless he accepts less for it.
    """
    wanted = job.terms.id
    counts = payment.status in (PaymentStatus.MATCHED, PaymentStatus.CREDITED)
    was_given = payment.status is PaymentStatus.SEEN and payment.assigned_to == wanted
    if was_given or (counts and payment.job_id == wanted):
        return Already(sentence=f"payment {payment.id} is given to job {wanted} already")
    refused = _closed(payment, ignored_is_open=True)
    return refused or _decide_for_job(payment, job, accept_short=accept_short)


def decide_ignoring(payment: DeskPayment) -> Ruling:
    """Decide whether a payment may be closed with nothing owed for it."""
    if payment.status is PaymentStatus.IGNORED:
        return Already(sentence=f"payment {payment.id} is ignored already")
    return _closed(payment, ignored_is_open=False) or Allowed()


def decide_refund(
    payment: DeskPayment,
    tx_hash: TxHash,
    *,
    serves: PaymentId | None = None,
    is_watched: bool = False,
) -> RefundRuling:
    """Decide whether a payment may be closed as sent back by a transfer of a transaction.

    The money is gone: what is not credited yet must never be. `serves` is another payment that
    this transfer sent back. `is_watched`: the transfer itself names the payment, and is recorded
    also where that forbids to close it.
    """
    if serves is not None:
        return Refused(
            obstacle=Obstacle.TRANSFER_TAKEN,
            sentence=f"{tx_hash} sent back payment {serves}: it cannot be payment {payment.id}'s",
        )
    is_recorded = payment.sent_back == tx_hash
    if is_recorded:
        if payment.status is PaymentStatus.REFUNDED:
            return Already(sentence=f"payment {payment.id} is closed as sent back by it already")
        # It was recognised while the payment counted for a job, or was off the chain.
        payment = replace(payment, sent_back=None)
    is_uncredited = payment.status in UNCREDITED and payment.sent_back is None
    closed = None if is_uncredited else _closed(payment, ignored_is_open=True)
    if closed is None:
        return Allowed(is_recorded=is_recorded)
    if is_watched and not is_recorded and payment.sent_back is None:
        return Recorded(obstacle=closed.obstacle, sentence=closed.sentence)
    return closed


def twins_in(known: Sequence[tuple[StoredLog, PaymentStatus]]) -> dict[PaymentId, Twins]:
    """Return for each payment of one transaction which of them are the same transfer.

    A reorganisation that mines the transaction again makes a new payment of each of its transfers,
    in another block and perhaps at another log index. What stays is the transfer, and which of
    several alike in its block it is.
    """
    before: Counter[tuple[object, ...]] = Counter()
    same: dict[tuple[object, ...], list[tuple[PaymentId, PaymentStatus]]] = {}
    for log, status in sorted(known, key=lambda found: found[0].log_index):
        what = (log.tx_hash, log.sender, log.recipient, log.units)
        same.setdefault((*what, before[log.block, *what]), []).append((log.id, status))
        before[log.block, *what] += 1
    return {one: _twins_of(one, rows) for rows in same.values() for one, _ in rows}


def _twins_of(one: PaymentId, rows: Sequence[tuple[PaymentId, PaymentStatus]]) -> Twins:
    again = [id_ for id_, status in rows if status is not PaymentStatus.ORPHANED and id_ != one]
    return Twins(ids=tuple(sorted(id_ for id_, _ in rows)), came_again=min(again, default=None))


def _closed(payment: DeskPayment, *, ignored_is_open: bool) -> Refused | None:
    """Return why a payment is not an operator's to decide, None where it is."""
    name = f"payment {payment.id}"
    if payment.sent_back is not None:
        return Refused(
            obstacle=Obstacle.SENT_BACK, sentence=f"{name} was sent back by {payment.sent_back}"
        )
    match payment.status:
        case PaymentStatus.UNMATCHED:
            return None
        case PaymentStatus.IGNORED:
            closed = Refused(obstacle=Obstacle.SETTLED, sentence=f"{name} is ignored")
            return None if ignored_is_open else closed
        case PaymentStatus.SEEN:
            return Refused(
                obstacle=Obstacle.UNDECIDED,
                sentence=f"{name} is not decided yet: it waits for the daemon, or for a job that"
                " somebody holds locked",
            )
        case PaymentStatus.MATCHED | PaymentStatus.CREDITED:
            return Refused(
                obstacle=Obstacle.PAYS_A_JOB,
                sentence=f"{name} is {payment.status}: it pays job {payment.job_id}",
            )
        case PaymentStatus.ORPHANED:
            again = payment.came_again
            where = "" if again is None else f"; its transfer is payment {again} now"
            return Refused(
                obstacle=Obstacle.ORPHANED,
                sentence=f"{name} is orphaned, its block left the chain{where}",
            )
        case PaymentStatus.REFUNDED:
            return Refused(obstacle=Obstacle.SENT_BACK, sentence=f"{name} was sent back")
        case _:
            assert_never(payment.status)


def _decide_for_job(payment: DeskPayment, job: DeskJob, *, accept_short: bool) -> Ruling:
    terms = job.terms
    name = f"job {terms.id}"
    if job.other_chain is not None:
        return Refused(
            obstacle=Obstacle.OTHER_CHAIN,
            sentence=f"{name} has money on chain {job.other_chain} already",
        )
    if terms.price is None:
        return Refused(obstacle=Obstacle.JOB_NOT_PAYABLE, sentence=f"{name} has no price")
    if terms.is_paid:
        return Refused(obstacle=Obstacle.JOB_TAKES_NOTHING, sentence=_why_it_takes_nothing(job))
    together = Units(payment.units + terms.gathered)
    if together >= terms.price:
        return Allowed()
    if accept_short:
        return Allowed(lower_price_to=together)
    also = f" with the {usdc(terms.gathered)} that wait on it" if terms.gathered else ""
    return Refused(
        obstacle=Obstacle.SHORT,
        sentence=f"payment {payment.id} has {usdc(payment.units)}: for {name}, which costs"
        f" {usdc(terms.price)}, it is{also} short by {usdc(terms.price - together)}"
        " (--accept-short lowers the job's price)",
    )


def _why_it_takes_nothing(job: DeskJob) -> str:
    name = f"job {job.terms.id}"
    if job.paid_by:
        payers = listed([f"payment {payer}" for payer in job.paid_by])
        return f"{name} is {job.status} and already paid by {payers}"
    return f"{name} is {job.status}: it takes no money"
