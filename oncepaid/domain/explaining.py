"""What was seen of a payment, what was decided, and what to do: in sentences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from oncepaid.domain.desk import UNCREDITED
from oncepaid.domain.desk_facts import Clue, Handled, PaymentFacts, ReadChain, SentBack
from oncepaid.domain.explaining_decision import decision_sentences
from oncepaid.domain.finality import Tier
from oncepaid.domain.nearest import NearJob
from oncepaid.domain.payments import MemoSource, PaymentStatus, Reason, Signer
from oncepaid.domain.wording import moment, usdc

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
    " price; or ignore it, and send it back.",
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
_SHORT: Final = (
    "Ask the payer whether it is for one of the nearest jobs; then assign it with --accept-short,"
    " which lowers the job's price, or send it back."
)


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
        decision=(*decision_sentences(facts, near, chain, tiers),),
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
            return _SHORT if facts.is_short_of_an_amount else _NEXT[facts.reason]
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
    if facts.status in UNCREDITED:
        return "Close it by `oncepaid payment refund` with that transaction."
    if facts.status in (PaymentStatus.ORPHANED, PaymentStatus.REFUNDED):
        return None
    return "It went back and counts for a job all the same: stop the job, or bill it anew."


def _handled(done: Handled) -> str:
    why = "" if done.why is None else f": {done.why}"
    return f"{moment(done.at)}, {done.who}: {done.action}{why}"


def _sent_back(facts: PaymentFacts, sent: SentBack) -> str:
    odd = "".join(f" Note: {warning}." for warning in sent.warnings)
    return (
        f"{usdc(sent.units)} went back to {sent.recipient} in {sent.tx_hash}, recognised by"
        f" {sent.recognised_by}.{odd}"
    )
