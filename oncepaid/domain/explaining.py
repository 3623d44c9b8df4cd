"""What was seen of a payment, what was decided and by which rule, and what to do: in sentences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from oncepaid.domain.desk_facts import Clue, Handled, PaymentFacts, ReadChain, SentBack
from oncepaid.domain.finality import (
    Aged,
    Finalized,
    Included,
    Requirement,
    Safe,
    Tier,
    requirement_for,
)
from oncepaid.domain.nearest import NearJob
from oncepaid.domain.payments import MemoSource, PaymentStatus, Reason, Signer
from oncepaid.domain.wording import moment, span, usdc

_PLACES: Final[Mapping[MemoSource, str]] = {
    MemoSource.AUTHORIZATION: "in the authorization that moved the money",
    MemoSource.CONTRACT: "in an event of a contract on the allow-list",
    MemoSource.CALLDATA: "behind the arguments of the call that moved the money",
    MemoSource.WRAPPER: "behind a call around the one that moved the money",
    MemoSource.SCAN: "somewhere in the transaction's input",
    MemoSource.OPERATOR: "by an operator's word",
}

_NEXT: Final[Mapping[Reason, str]] = {
    Reason.NO_MEMO: "Find out from the payer what it is for; then assign it, or send it back.",
    Reason.UNKNOWN_MEMO: "The job may have been deleted, or be another database's: assign the"
    " payment to the job that took its place, or send it back.",
    Reason.WRONG_RECIPIENT: "If the address is ours all the same, assign it to the job; else the"
    " payer must get it back.",
    Reason.LATE: "If the job is still to be done for it, assign it, which overrules the time; else"
    " send it back.",
    Reason.UNDERPAID: "Wait for the rest; or assign it with --accept-short, which lowers the job's"
    " price; or send it back.",
    Reason.DUPLICATE: "Send it back, or assign it to another job of the same payer.",
    Reason.AMBIGUOUS_AMOUNT: "Ask the payer which of these jobs it is for, and assign it.",
    Reason.MEMO_CONFLICT: "Only the payer can say which of the jobs it is for: ask, and assign it.",
    Reason.THIRD_PARTY_MEMO: "If the payer confirms that he meant this job, assign it; else send it"
    " back.",
    Reason.SHARED_MEMO: "Assign one of the payments in this transaction to the job, and the others"
    " to theirs, or send them back.",
    Reason.DUST: "Ignore it, unless its payer says what it is for.",
    Reason.OWN_ADDRESS: "If it was moved between our own addresses, ignore it; if it pays a job all"
    " the same, assign it.",
    Reason.JOB_NOT_PAYABLE: "Give the job a price (jobs.price_usdc), and assign the payment to it.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A payment in sentences, by what they are about."""

    seen: str
    evidence: tuple[str, ...]
    decision: tuple[str, ...]
    handled: tuple[str, ...]
    next_step: str | None
    near: tuple[str, ...]

    def sentences(self) -> Iterator[str]:
        """Yield all of them in the order in which they are read."""
        yield self.seen
        yield from self.evidence
        yield from self.decision
        yield from self.handled
        if self.next_step is not None:
            yield self.next_step
        yield from self.near


def explain_payment(
    facts: PaymentFacts, near: Sequence[NearJob], chain: ReadChain, tiers: Sequence[Tier]
) -> Explained:
    """Say all that there is to say of a payment."""
    handled = [_handled(done) for done in facts.handled]
    if facts.sent_back is not None:
        handled.append(_sent_back(facts, facts.sent_back))
    return Explained(
        seen=_seen(facts, chain),
        evidence=tuple(map(_clue, facts.clues))
        or ("It carries no memo, and no other reference to a job.",),
        decision=(*_decision(facts, chain, tiers),),
        handled=tuple(handled),
        next_step=_next_step(facts),
        near=tuple(found.sentence for found in near),
    )


def _seen(facts: PaymentFacts, chain: ReadChain) -> str:
    log = facts.log
    return (
        f"Payment {log.id}: {usdc(log.units)} from {log.sender} to {log.recipient}, log"
        f" {log.log_index} of block {log.block.number} ({moment(facts.block_time)}),"
        f" {_standing(facts, chain)}."
    )


def _standing(facts: PaymentFacts, chain: ReadChain) -> str:
    number = facts.log.block.number
    if facts.status is PaymentStatus.ORPHANED:
        return "which is no longer on the chain"
    if number <= chain.finalized:
        return "which is final"
    return f"which has {max(chain.cursor - number + 1, 0)} confirmations and is not final"


def _clue(clue: Clue) -> str:
    piece = clue.piece
    job = None if clue.job is None else f"job {clue.job.terms.id}"
    if piece.source is MemoSource.OPERATOR:
        return f"An operator gave it to {job or 'a job that is no longer there'}."
    if piece.reference is not None:
        what = f"A reference of {piece.reference.issuer}, 0x{piece.reference.value.hex()},"
        leads = f"bound to {job}," if job else "bound to no job,"
    else:
        assert piece.memo is not None, "evidence has a memo or a reference"
        what = f"The memo 0x{piece.memo.hex()}"
        leads = f"of {job}" if job else "of no job of this database"
    company = ""
    if piece.company != 1:
        company = f", and may speak of any of {piece.company} transfers"
    return f"{what} {leads} stood {_PLACES[piece.source]}, {_signed(clue)}{company}."


def _signed(clue: Clue) -> str:
    by = clue.piece.by
    match clue.piece.signer:
        case Signer.PAYER:
            return "signed by the payer" + ("" if by is None else f" {by}")
        case Signer.THIRD_PARTY:
            return f"attached by {by or 'somebody'}, who is not the payer"
        case Signer.OPERATOR:
            return "set by an operator"
        case _:
            assert_never(clue.piece.signer)


def _decision(facts: PaymentFacts, chain: ReadChain, tiers: Sequence[Tier]) -> Iterator[str]:
    match facts.status:
        case PaymentStatus.SEEN:
            yield "Nothing is decided about it yet."
        case PaymentStatus.UNMATCHED:
            yield from _refusal(facts)
        case PaymentStatus.MATCHED:
            yield _rule(facts)
            yield from _waiting(facts, chain, tiers)
        case PaymentStatus.CREDITED:
            yield _rule(facts)
            yield f"It was credited to {_job(facts)}."
        case PaymentStatus.ORPHANED:
            yield from _orphaned(facts)
        case PaymentStatus.REFUNDED:
            yield "It was sent back; nothing is owed for it."
        case PaymentStatus.IGNORED:
            yield "An operator decided that nothing is owed for it."
        case _:
            assert_never(facts.status)


def _refusal(facts: PaymentFacts) -> Iterator[str]:
    assert facts.reason is not None, "the table knows no unmatched payment without a reason"
    speaks = "" if facts.job is None else f" It speaks of {_job(facts)}."
    yield f"It pays no job, {facts.reason}: {facts.reason.sentence}{speaks}"
    if facts.reason is Reason.UNDERPAID and facts.job is None:
        yield "It misses a job's unique amount by little, as where an exchange has taken its fee."
    if facts.reason is Reason.THIRD_PARTY_MEMO and facts.transfers_in_tx != 1:
        yield f"It is one of {facts.transfers_in_tx} transfers to this address in its transaction."


def _rule(facts: PaymentFacts) -> str:
    """Say which of the matcher's rules led to the payment's job."""
    ours = [
        clue.piece
        for clue in facts.clues
        if clue.job is not None
        and facts.job is not None
        and clue.job.terms.id == facts.job.terms.id
    ]
    signers = {piece.signer for piece in ours}
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
        why = "no other job waits for exactly this amount"
    return f"It pays {_job(facts)}: {why}."


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
        yield f"It had been credited to {_job(facts)}, which is about to be taken back."
    elif facts.is_lost:
        yield f"It had been credited to {_job(facts)}, whose work was begun: that is a loss."
    else:
        yield f"It had been credited to {_job(facts)}, which was taken back."


def _next_step(facts: PaymentFacts) -> str | None:
    """Say what an operator may do now; None where nothing is left to him."""
    if facts.sent_back is not None:
        return _next_step_after_refund(facts)
    match facts.status:
        case PaymentStatus.SEEN:
            return (
                "The daemon decides it next. Where it stays so, the daemon is down, or somebody"
                " holds its job locked."
            )
        case PaymentStatus.UNMATCHED:
            assert facts.reason is not None, "the table knows no unmatched payment without a reason"
            return _NEXT[facts.reason]
        case PaymentStatus.IGNORED:
            return "It can still be assigned or sent back."
        case PaymentStatus.ORPHANED if facts.is_lost:
            return "Ask the payer to pay again."
        case (
            PaymentStatus.MATCHED
            | PaymentStatus.CREDITED
            | PaymentStatus.ORPHANED
            | PaymentStatus.REFUNDED
        ):
            return None
        case _:
            assert_never(facts.status)


def _next_step_after_refund(facts: PaymentFacts) -> str | None:
    match facts.status:
        case PaymentStatus.UNMATCHED | PaymentStatus.IGNORED:
            return "Close it by `oncepaid payment refund` with that transaction."
        case PaymentStatus.SEEN | PaymentStatus.MATCHED | PaymentStatus.CREDITED:
            return "It went back and counts for a job all the same: stop the job, or bill it anew."
        case PaymentStatus.ORPHANED | PaymentStatus.REFUNDED:
            return None
        case _:
            assert_never(facts.status)


def _handled(done: Handled) -> str:
    why = "" if done.why is None else f": {done.why}"
    return f"{moment(done.at)}, {done.who}: {done.action}{why}"


def _sent_back(facts: PaymentFacts, sent: SentBack) -> str:
    odd = "".join(f" Note: {warning}." for warning in sent.warnings)
    return (
        f"{usdc(sent.units)} went back to {sent.recipient} in {sent.tx_hash}, recognised by"
        f" {sent.recognised_by}.{odd}"
    )


def _job(facts: PaymentFacts) -> str:
    if facts.job is None:
        return "a job that is no longer there"
    return f"job {facts.job.terms.id} ({facts.job.uuid}, {facts.job.status})"
