"""Which job a payment pays: one pure decision with a name for every outcome."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final, assert_never

from oncepaid.domain.chain import ZERO_ADDRESS, Address, TxHash
from oncepaid.domain.jobs import JobId, JobTerms
from oncepaid.domain.memo import Memo
from oncepaid.domain.money import Units
from oncepaid.domain.payments import Evidence, PaymentId, Reason, SeenPayment, Signer

MOST_PARTIALS: Final = 20
"""So many parts of a price are kept for their job whatever they are; more only if so many of them
make the price. Strangers who send dust cannot fill a job's books, nor keep its payer's part out."""
SHORT_PART: Final = 10
"""A payment without a memo that misses a price by up to this part of it is taken for one that an
exchange has shortened by its fee. An operator sees it beside that job; it never counts for it."""


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
        self._id_by_reference = {name: job.id for job in jobs for name in job.references}
        self._ids_by_amount: dict[Units, list[JobId]] = {}
        for job in jobs:
            if job.unique_amount is not None:
                self._ids_by_amount.setdefault(job.unique_amount, []).append(job.id)

    def named_by(self, evidence: Evidence) -> JobTerms | None:
        if evidence.reference is not None:
            job_id = self._id_by_reference.get(evidence.reference)
        else:
            assert evidence.memo is not None, "evidence has a memo or a reference"
            job_id = self._id_by_memo.get(evidence.memo)
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
                covered = Units(job.gathered + payment.units)
                self._by_id[job.id] = replace(job, covered=covered, partial=Units(0), parts=0)
            case Unmatched(reason=Reason.UNDERPAID):
                partial = Units(job.partial + payment.units)
                self._by_id[job.id] = replace(job, partial=partial, parts=job.parts + 1)
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

    What names a job is looked at first, and whatever it leads to is final: money that names one job
    never falls through to another one's amount.
    """
    named = _named(payment.evidence, jobs)
    assigned = [naming.job for naming in named if naming.piece.signer is Signer.OPERATOR]
    if assigned:
        return _decide_assigned(payment, assigned[-1])
    ours = rules.recipients or frozenset()
    if payment.sender == payment.recipient or payment.sender in ours:
        return Unmatched(reason=Reason.OWN_ADDRESS)
    strongest = [naming for naming in named if naming.piece.signer is Signer.PAYER] or named
    if not strongest or _is_foreign_envelope(strongest, payment, jobs, rules):
        return _decide_by_amount(payment, jobs, rules)
    if len({naming.name for naming in strongest}) > 1:
        return Unmatched(reason=Reason.MEMO_CONFLICT)
    return _decide_by_name(payment, strongest, jobs, rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Naming:
    """A piece of evidence and the job that it names; None for a memo of no job."""

    piece: Evidence
    job: JobTerms | None

    @property
    def name(self) -> JobId | Memo | None:
        return self.piece.memo if self.job is None else self.job.id


def _named(evidence: Sequence[Evidence], jobs: OpenJobs) -> list[_Naming]:
    """Return what names a job or claims to; a reference that nobody bound says nothing."""
    found = [_Naming(piece=piece, job=jobs.named_by(piece)) for piece in evidence]
    return [naming for naming in found if naming.job is not None or naming.piece.memo is not None]


def _is_foreign_envelope(
    named: Sequence[_Naming], payment: SeenPayment, jobs: OpenJobs, rules: MatchingRules
) -> bool:
    """Say whether it is bytes of a relayer that mean nothing to us, around an amount that does."""
    means_nothing = all(n.job is None and n.piece.signer is Signer.THIRD_PARTY for n in named)
    if not means_nothing or not _may_speak_by_amount(payment, rules):
        return False
    return len(_waiting_for(payment, jobs, rules)) == 1


def _decide_assigned(payment: SeenPayment, job: JobTerms | None) -> Decision:
    """An operator's word overrules time, sender and recipient, and not what a job costs."""
    if job is None:
        return Unmatched(reason=Reason.UNKNOWN_MEMO)
    if job.price is None:
        return Unmatched(reason=Reason.JOB_NOT_PAYABLE, job_id=job.id)
    if job.is_paid:
        return Unmatched(reason=Reason.DUPLICATE, job_id=job.id)
    return _decide_by_sum(payment, job, job.price, keep_any_part=True)


def _decide_by_name(
    payment: SeenPayment, named: Sequence[_Naming], jobs: OpenJobs, rules: MatchingRules
) -> Decision:
    """Decide by evidence that names one job and was signed by one kind of signer."""
    job = named[0].job
    if job is None:
        return Unmatched(reason=Reason.UNKNOWN_MEMO)
    refusal = _refusal(payment, job, rules)
    if refusal is not None:
        return Unmatched(reason=refusal, job_id=job.id)
    assert job.price is not None  # `_refusal` names a job without a price
    company = min(naming.piece.company for naming in named)
    # An amount is the payer's own word, and may name another job.
    is_contradicted = any(other.id != job.id for other in _waiting_for(payment, jobs, rules))
    if named[0].piece.signer is not Signer.PAYER:
        is_exact = payment.units in (job.price, job.unique_amount)
        is_alone = company == 1 and payment.transfers_in_tx == 1
        if is_contradicted or not (is_exact and is_alone):
            return Unmatched(reason=Reason.THIRD_PARTY_MEMO, job_id=job.id)
    # Where amount and memo name the same job, nothing is left to be told apart.
    elif company != 1 and (is_contradicted or payment.units != job.unique_amount):
        return Unmatched(reason=Reason.SHARED_MEMO, job_id=job.id)
    return _decide_by_sum(payment, job, job.price)


def _decide_by_sum(
    payment: SeenPayment, job: JobTerms, price: Units, *, keep_any_part: bool = False
) -> Decision:
    # What is matched already counts too: a reorganisation may have taken the rest of its sum.
    if payment.units + job.gathered >= price:
        return Matched(job_id=job.id)
    is_small = payment.units * MOST_PARTIALS < price
    if is_small and job.parts >= MOST_PARTIALS and not keep_any_part:
        return Unmatched(reason=Reason.DUST, job_id=job.id)
    return Unmatched(reason=Reason.UNDERPAID, job_id=job.id)


def _decide_by_amount(payment: SeenPayment, jobs: OpenJobs, rules: MatchingRules) -> Decision:
    if not _may_speak_by_amount(payment, rules):
        return Unmatched(reason=Reason.NO_MEMO)
    match _waiting_for(payment, jobs, rules):
        case [] if _is_short(payment):
            return Unmatched(reason=Reason.UNDERPAID)
        case []:
            return Unmatched(reason=Reason.NO_MEMO)
        # Who pays the other job may have left out its millionths.
        case [_] if payment.is_a_price:
            return Unmatched(reason=Reason.AMBIGUOUS_AMOUNT)
        case [job]:
            refusal = _refusal(payment, job, rules)
            if refusal is not None:
                return Unmatched(reason=refusal, job_id=job.id)
            assert job.price is not None  # `_refusal` names a job without a price
            # A host may have raised the price above the amount that was drawn for it.
            return _decide_by_sum(payment, job, job.price)
        case _:
            return Unmatched(reason=Reason.AMBIGUOUS_AMOUNT)


def _may_speak_by_amount(payment: SeenPayment, rules: MatchingRules) -> bool:
    # Minted money (a bridge, say) is nobody's transfer: its amount is no statement of a payer.
    return rules.amount_fallback and payment.sender != ZERO_ADDRESS


def _waiting_for(payment: SeenPayment, jobs: OpenJobs, rules: MatchingRules) -> list[JobTerms]:
    """Return the jobs whose unique amount it is, and was when it was paid."""
    return [
        job
        for job in jobs.by_amount(payment.units)
        if _fits_recipient(payment, job, rules) and payment.block_number > job.amount_after_block
    ]


def _is_short(payment: SeenPayment) -> bool:
    """Say whether an exchange's fee may have made it of a unique amount. No job is guessed.

    Who paid the price and left out the millionths is no candidate: nothing was taken from him.
    """
    price = payment.nearest_above
    return price is not None and 0 < (price - payment.units) * SHORT_PART <= price


def _refusal(payment: SeenPayment, job: JobTerms, rules: MatchingRules) -> Reason | None:
    """Return why this job cannot take this payment, whatever its amount."""
    if not _fits_recipient(payment, job, rules):
        return Reason.WRONG_RECIPIENT
    if job.price is None:
        return Reason.JOB_NOT_PAYABLE
    if job.is_paid:
        return Reason.DUPLICATE
    # A difference cannot overflow; a host may store an expiry of `infinity`.
    if payment.block_time - job.expires_at > rules.late_grace:
        return Reason.LATE
    return None


def _fits_recipient(payment: SeenPayment, job: JobTerms, rules: MatchingRules) -> bool:
    """Say whether the money went where the job wants it: to `pay_to`, else to any address of ours.

    Who observes every recipient has named none of his own: then everybody could pay himself.
    """
    if job.pay_to is None:
        return rules.recipients is not None
    return job.pay_to == payment.recipient
