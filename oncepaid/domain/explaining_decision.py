"""What was decided about a payment and by which rule, in sentences."""

from collections.abc import Iterator, Sequence
from typing import assert_never

from oncepaid.domain.desk import DeskJob
from oncepaid.domain.desk_facts import Clue, PaymentFacts, ReadChain
from oncepaid.domain.finality import (
    Aged,
    Finalized,
    Included,
    Requirement,
    Safe,
    Tier,
    requirement_for,
)
from oncepaid.domain.jobs import JobTerms
from oncepaid.domain.nearest import NearJob
from oncepaid.domain.payments import PaymentStatus, Reason, Signer
from oncepaid.domain.wording import span


def decision_sentences(
    facts: PaymentFacts, near: Sequence[NearJob], chain: ReadChain, tiers: Sequence[Tier]
) -> Iterator[str]:
    """Yield what was decided and why; `near` are the jobs beside the payment."""
    match facts.status:
        case PaymentStatus.SEEN:
            yield "Nothing is decided about it yet."
        case PaymentStatus.UNMATCHED:
            yield from _refusal(facts, near)
        case PaymentStatus.MATCHED:
            yield _rule(facts)
            yield from _waiting(facts, chain, tiers)
        case PaymentStatus.CREDITED:
            yield _rule(facts)
            yield f"It was credited to {_job(facts.job)}."
        case PaymentStatus.ORPHANED:
            yield from _orphaned(facts)
        case PaymentStatus.REFUNDED:
            yield "It was sent back; nothing is owed for it."
        case PaymentStatus.IGNORED:
            yield "An operator decided that nothing is owed for it."
        case _:
            assert_never(facts.status)


def _refusal(facts: PaymentFacts, near: Sequence[NearJob]) -> Iterator[str]:
    assert facts.reason is not None, "the table knows no unmatched payment without a reason"
    speaks = "" if facts.job is None else f" It speaks of {_job(facts.job)}."
    yield f"It pays no job, {facts.reason}: {facts.reason.sentence}{speaks}"
    if facts.is_short_of_an_amount:
        yield "It misses a job's unique amount by little, as where an exchange has taken its fee."
    if facts.reason is Reason.THIRD_PARTY_MEMO:
        yield from list(_why_not_bound(facts, near)) or [
            "What did not fit when it was decided fits now: a price or an amount has changed since."
        ]


def _why_not_bound(facts: PaymentFacts, near: Sequence[NearJob]) -> Iterator[str]:
    """Say which of the matcher's conditions for a memo that is not the payer's does not hold."""
    job, units = facts.job, facts.log.units
    if job is not None and units not in (job.terms.price, job.terms.unique_amount):
        yield f"Its amount is not exactly what {_job(job)} costs, nor that job's unique amount."
    if facts.transfers_in_tx != 1:
        yield f"It is one of {facts.transfers_in_tx} transfers to us in its transaction."
    company = min((clue.piece.company for clue in _leading_to(job, facts)), default=1)
    if company != 1:
        yield f"Its memo may speak of any of {company} transfers."
    for other in (found.job for found in near if found.job != job):
        if _is_amount_of(facts, other.terms):
            yield f"Its amount, the payer's own word, is the unique amount of {_job(other)}."


def _is_amount_of(facts: PaymentFacts, terms: JobTerms) -> bool:
    log = facts.log
    is_for_it = (
        terms.pay_to in (None, log.recipient) and log.block.number > terms.amount_after_block
    )
    return is_for_it and log.units == terms.unique_amount


def _leading_to(job: DeskJob | None, facts: PaymentFacts) -> list[Clue]:
    """Return the clues that led to a job when it was decided, not those that do so only by now."""
    return [
        clue
        for clue in facts.clues
        if clue.job is not None
        and job is not None
        and clue.job.terms.id == job.terms.id
        and not _is_bound_later(clue, facts)
    ]


def _is_bound_later(clue: Clue, facts: PaymentFacts) -> bool:
    if clue.bound_at is None or facts.matched_at is None:
        return False
    return clue.bound_at > facts.matched_at


def _rule(facts: PaymentFacts) -> str:
    """Say which of the matcher's rules led to the payment's job."""
    signers = {clue.piece.signer for clue in _leading_to(facts.job, facts)}
    if Signer.OPERATOR in signers:
        why = "an operator gave it to that job, which overrules everything but the price"
    elif Signer.PAYER in signers:
        why = "what the payer signed names that job, which binds by itself"
    elif signers:
        why = (
            "somebody else attached that job's memo, which binds with the exact amount, a single"
            " transfer and no contradiction"
        )
    else:
        why = "by its amount, for which no other job waited"
    return f"It pays {_job(facts.job)}: {why}."


def _waiting(facts: PaymentFacts, chain: ReadChain, tiers: Sequence[Tier]) -> Iterator[str]:
    if chain.conflict is not None:
        yield f"Nothing is credited while the chain is in conflict: {chain.conflict}."
        return
    together = facts.log.units + (facts.job.terms.covered if facts.job else 0)
    yield f"It is credited once {_required(requirement_for(together, tiers))}."


def _required(require: Requirement) -> str:
    match require:
        case Included():
            return "its block is read, which is now"
        case Aged(age=age):
            return f"{span(age)} of the chain's time lie on top of its block"
        case Safe():
            return "its block is safe, which takes about 2 minutes"
        case Finalized():
            return "its block is finalized, which takes about 20 minutes"
        case _:
            assert_never(require)


def _orphaned(facts: PaymentFacts) -> Iterator[str]:
    yield (
        "Its block left the chain: the money did not arrive"
        if facts.came_again is None
        else f"Its block left the chain; its transfer was mined again and is payment"
        f" {facts.came_again} now"
    ) + "."
    if facts.was is not PaymentStatus.CREDITED:
        return
    if not facts.is_reversed:
        yield f"It had been credited to {_job(facts.job)}, which is about to be taken back."
    elif facts.is_lost:
        yield f"It had been credited to {_job(facts.job)}, whose work was begun: that is a loss."
    else:
        yield f"It had been credited to {_job(facts.job)}, which was taken back."


def _job(job: DeskJob | None) -> str:
    if job is None:
        return "a job that is no longer there"
    return f"job {job.terms.id} ({job.uuid}, {job.status})"
