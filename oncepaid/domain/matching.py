"""Which job a payment pays: one pure decision with a name for every outcome."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import assert_never

from oncepaid.domain.chain import ZERO_ADDRESS, Address, TxHash
from oncepaid.domain.jobs import JobId, JobTerms
from oncepaid.domain.memo import Memo
from oncepaid.domain.money import Units
from oncepaid.domain.payments import Evidence, PaymentId, Reason, SeenPayment, Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchingRules:
    """What an operator set for matching."""

    recipients: frozenset[Address] | None
    """Our addresses; None observes every recipient."""
    late_grace: timedelta
    """How long after a job's expiry a payment still counts, by its block's time."""
    amount_fallback: bool
    """Whether a payment without a memo may be matched by its unique amount."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """The payment, together with the job's waiting partial payments, pays the job."""

    job_id: JobId


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmatched:
    """The payment pays no job. `job_id` is the job that it speaks of, where it speaks of one."""

    reason: Reason
    job_id: JobId | None = None


Decision = Matched | Unmatched


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidedPayment:
    """A payment whose decision has just been stored; None: its job is locked by somebody else.

    `waited_s` is the time since it was seen.
    """

    payment: SeenPayment
    tx_hash: TxHash
    decision: Decision | None
    job_uuid: str | None
    waited_s: float


class OpenJobs:
    """The jobs that a batch of payments may speak of, as the batch itself changes them.

    Payments of one batch are decided one after the other, each seeing what the ones before it
    did, so that a batch decides exactly as its payments would one by one.
    """

    def __init__(self, jobs: Collection[JobTerms]) -> None:
        self._by_id = {job.id: job for job in jobs}
        self._id_by_memo = {job.memo: job.id for job in jobs}
        self._ids_by_amount: dict[Units, list[JobId]] = {}
        for job in jobs:
            if job.unique_amount is not None:
                self._ids_by_amount.setdefault(job.unique_amount, []).append(job.id)

    def by_memo(self, memo: Memo) -> JobTerms | None:
        job_id = self._id_by_memo.get(memo)
        return None if job_id is None else self._by_id[job_id]

    def by_amount(self, units: Units) -> list[JobTerms]:
        return [self._by_id[job_id] for job_id in self._ids_by_amount.get(units, ())]

    def apply(self, payment: SeenPayment, decision: Decision) -> None:
        """Remember what a decision did to its job."""
        if decision.job_id is None:
            return
        job = self._by_id.get(decision.job_id)
        if job is None:
            return
        match decision:
            case Matched():
                covered = Units(job.covered + job.partial + payment.units)
                self._by_id[job.id] = replace(job, covered=covered, partial=Units(0))
            case Unmatched(reason=Reason.UNDERPAID):
                partial = Units(job.partial + payment.units)
                self._by_id[job.id] = replace(job, partial=partial)
            case Unmatched():
                pass
            case _:
                assert_never(decision)


def decide_all(
    payments: Sequence[SeenPayment], jobs: Collection[JobTerms], rules: MatchingRules
) -> dict[PaymentId, Decision]:
    """Decide a batch of payments, in the order given, against the jobs that they speak of.

    A payment that is listed twice is decided once.
    """
    open_jobs = OpenJobs(jobs)
    decisions: dict[PaymentId, Decision] = {}
    for payment in payments:
        if payment.id in decisions:
            continue
        decision = decide(payment, open_jobs, rules)
        open_jobs.apply(payment, decision)
        decisions[payment.id] = decision
    return decisions


def decide(payment: SeenPayment, jobs: OpenJobs, rules: MatchingRules) -> Decision:
    """Decide one payment.

    A memo is looked at first, and whatever it leads to is final: money that names one job never
    falls through to another one's amount.
    """
    ours = rules.recipients or frozenset()
    if payment.sender == payment.recipient or payment.sender in ours:
        return Unmatched(reason=Reason.OWN_ADDRESS)
    evidence = _strongest(payment.evidence)
    if not evidence:
        return _decide_by_amount(payment, jobs, rules)
    if len({piece.memo for piece in evidence}) > 1:
        return Unmatched(reason=Reason.MEMO_CONFLICT)
    return _decide_by_memo(payment, evidence[0], jobs, rules)


def _strongest(evidence: Sequence[Evidence]) -> Sequence[Evidence]:
    """Return what the payer signed, if there is any; else what somebody else did."""
    return [piece for piece in evidence if piece.signer is Signer.PAYER] or evidence


def _decide_by_memo(
    payment: SeenPayment, evidence: Evidence, jobs: OpenJobs, rules: MatchingRules
) -> Decision:
    job = jobs.by_memo(evidence.memo)
    if job is None:
        return Unmatched(reason=Reason.UNKNOWN_MEMO)
    refusal = _refusal(payment, job, rules)
    if refusal is not None:
        return Unmatched(reason=refusal, job_id=job.id)
    assert job.price is not None  # `_refusal` names a job without a price
    if evidence.signer is Signer.THIRD_PARTY:
        exact = payment.units in (job.price, job.unique_amount)
        if not exact or payment.transfers_in_tx != 1:
            return Unmatched(reason=Reason.THIRD_PARTY_MEMO, job_id=job.id)
    # What is matched already counts too: a reorganisation may have taken the rest of its sum.
    if payment.units + job.partial + job.covered < job.price:
        return Unmatched(reason=Reason.UNDERPAID, job_id=job.id)
    return Matched(job_id=job.id)


def _decide_by_amount(payment: SeenPayment, jobs: OpenJobs, rules: MatchingRules) -> Decision:
    # Minted money (a bridge, say) is nobody's transfer: its amount is no statement of a payer.
    if not rules.amount_fallback or payment.sender == ZERO_ADDRESS:
        return Unmatched(reason=Reason.NO_MEMO)
    fitting = [job for job in jobs.by_amount(payment.units) if _fits_recipient(payment, job)]
    match fitting:
        case []:
            return Unmatched(reason=Reason.NO_MEMO)
        case [job]:
            refusal = _refusal(payment, job, rules)
            if refusal is not None:
                return Unmatched(reason=refusal, job_id=job.id)
            # A host may have raised the price above the amount that was drawn for it.
            sum_units = payment.units + job.partial + job.covered
            if job.price is None or sum_units < job.price:
                return Unmatched(reason=Reason.UNDERPAID, job_id=job.id)
            return Matched(job_id=job.id)
        case _:
            return Unmatched(reason=Reason.AMBIGUOUS_AMOUNT)


def _refusal(payment: SeenPayment, job: JobTerms, rules: MatchingRules) -> Reason | None:
    """Return why this job cannot take this payment, whatever its amount."""
    if not _fits_recipient(payment, job):
        return Reason.WRONG_RECIPIENT
    if job.price is None:
        return Reason.JOB_NOT_PAYABLE
    if not job.awaits_payment or job.covered >= max(job.price, 1):
        return Reason.DUPLICATE
    # A difference cannot overflow; a host may store an expiry of `infinity`.
    if payment.block_time - job.expires_at > rules.late_grace:
        return Reason.LATE
    return None


def _fits_recipient(payment: SeenPayment, job: JobTerms) -> bool:
    return job.pay_to is None or job.pay_to == payment.recipient
