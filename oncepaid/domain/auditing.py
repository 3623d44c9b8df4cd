"""What must always hold, recomputed: facts of chain and tables in, violations out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from oncepaid.domain.chain import Address, BlockRef, TransferLog, TxHash
from oncepaid.domain.generation import Outcome
from oncepaid.domain.jobs import JobStatus
from oncepaid.domain.money import Units, format_usdc
from oncepaid.domain.payments import PaymentId, StoredLog

CLOCK_STEP: Final = timedelta(seconds=1)
"""So far two readings of the database's clock may stand crosswise."""


class Invariant(StrEnum):
    """What is checked, each with the sentence that must be true."""

    sentence: str

    COMPLETENESS = (
        "completeness",
        "Every transfer to us is exactly one payment that counts, and each of those is one.",
    )
    SUMS = "sums", "A payment says of its log what the chain says: amount, sender, recipient."
    BALANCE = (
        "balance",
        "What an address of ours has gained is what came in less what went out.",
    )
    DOUBLE_CREDIT = "double_credit", "No log is more than one payment that counts."
    CREDIT_OF_JOB = "credit_of_job", "A job has been credited what its credited payments come to."
    CREDIT_ON_CHAIN = "credit_on_chain", "The block of every credited payment is on the chain."
    CURSOR = "cursor", "The cursor is on the chain, and nothing that counts lies above it."
    ONE_RESULT = "one_result", "A job that is done has one result: that of its own paid attempt."

    def __new__(cls, value: str, sentence: str = "") -> "Invariant":
        member = str.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One thing that must never be. `subject` names it the same way each time that it is found."""

    invariant: Invariant
    subject: str
    text: str
    block: int | None = None

    @property
    def key(self) -> tuple[Invariant, str]:
        return self.invariant, self.subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What became of one invariant. `not_checked` says why it could not be looked at."""

    invariant: Invariant
    checked: str
    violations: tuple[Violation, ...] = ()
    not_checked: str | None = None

    @property
    def state(self) -> str:
        if self.violations:
            return "violated"
        return "ok" if self.not_checked is None else "not checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Altered:
    """A payment that says otherwise than its log."""

    row: StoredLog
    log: TransferLog


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeFacts:
    """Some blocks of the chain held against the tables.

    `gone` count and are not on the chain, `off_chain` are credited in a block that is not there.
    `came` and `went` are units by our address, as the chain has them.
    """

    first: int
    last: int
    rows: int
    credited: int
    missing: Sequence[TransferLog] = ()
    gone: Sequence[StoredLog] = ()
    altered: Sequence[Altered] = ()
    off_chain: Sequence[StoredLog] = ()
    came: Mapping[Address, int]
    went: Mapping[Address, int]


def judge_range(facts: RangeFacts) -> list[Violation]:
    """Say what is wrong with the payments of some blocks."""
    off_chain = {row.id for row in facts.off_chain}
    return [
        *(_missing(log) for log in facts.missing),
        *(_row(Invariant.COMPLETENESS, r) for r in facts.gone if r.id not in off_chain),
        *(_altered(one) for one in facts.altered),
        *(_row(Invariant.CREDIT_ON_CHAIN, row) for row in facts.off_chain),
    ]


def _missing(log: TransferLog) -> Violation:
    return Violation(
        invariant=Invariant.COMPLETENESS,
        subject=f"log {log.block.hash}:{log.log_index}",
        text=f"{format_usdc(log.units)} USDC to {log.recipient} in {log.tx_hash},"
        f" block {log.block}, are no payment",
        block=log.block.number,
    )


def _row(invariant: Invariant, row: StoredLog) -> Violation:
    counts = "counts" if invariant is Invariant.COMPLETENESS else "is credited"
    return Violation(
        invariant=invariant,
        subject=f"payment {row.id}",
        text=f"payment {row.id} of {format_usdc(row.units)} USDC in {row.tx_hash} {counts}, and is"
        f" not on the chain (it names block {row.block})",
        block=row.block.number,
    )


def _altered(one: Altered) -> Violation:
    told = {
        name: (getattr(one.row, name), getattr(one.log, name))
        for name in ("block", "tx_hash", "sender", "recipient", "units")
    }
    differ = [
        f"{name} {ours}, not {theirs}" for name, (ours, theirs) in told.items() if ours != theirs
    ]
    return Violation(
        invariant=Invariant.SUMS,
        subject=f"payment {one.row.id}",
        text=f"payment {one.row.id} has {'; '.join(differ)}",
        block=one.log.block.number,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """An address of ours over some blocks, in units. None: the node has no state of that block."""

    address: Address
    before: int | None
    after: int | None
    came: int
    went: int


def judge_balance(balance: Balance, first: int, last: int) -> Violation | None:
    """Say whether a balance moved otherwise than the transfers say; unknown ones are no answer."""
    if balance.before is None or balance.after is None:
        return None
    gained, moved = balance.after - balance.before, balance.came - balance.went
    if gained == moved:
        return None
    return Violation(
        invariant=Invariant.BALANCE,
        subject=f"address {balance.address}",
        text=f"{balance.address} gained {format_usdc(gained)} USDC in blocks {first} to {last}, but"
        f" {format_usdc(balance.came)} came in and {format_usdc(balance.went)} went out:"
        f" {format_usdc(gained - moved)} are unexplained",
        block=last,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CursorFacts:
    """The cursor beside the chain. `found` is the block that now stands at its height.

    `above` count and lie above it, `strayed` are checkpoints that are not on the chain.
    """

    cursor: BlockRef
    found: BlockRef
    checked: int | None
    finalized: int
    above: Sequence[StoredLog]
    strayed: Sequence[BlockRef]


def judge_cursor(facts: CursorFacts) -> list[Violation]:
    """Say what is wrong with how far the chain was read.

    For a moment, between a reorganisation and the reading that follows, payments above the cursor
    are in order: their subject names the cursor, so that it tells whether it has moved since.
    """
    cursor = facts.cursor
    found = []
    if facts.found != cursor:
        found.append((f"cursor {cursor}", f"the chain has {facts.found} where the cursor stands"))
    found += [
        (
            f"payment {row.id} above {cursor}",
            f"payment {row.id} in block {row.block} counts, and the cursor stands on {cursor}",
        )
        for row in facts.above
    ]
    found += [
        (f"checkpoint {block}", f"checkpoint {block} is not on the chain")
        for block in facts.strayed
        if block != cursor
    ]
    for name, number in (("checked", facts.checked), ("finalized", facts.finalized)):
        if number is not None and number > cursor.number:
            text = f"block {number} is noted as {name}, above the cursor {cursor}"
            found.append((f"{name} above {cursor}", text))
    return [
        Violation(invariant=Invariant.CURSOR, subject=subject, text=text, block=cursor.number)
        for subject, text in found
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubledTransaction:
    """A transaction with a log that is more than one payment, or that counts in two blocks."""

    tx_hash: TxHash
    payments: Sequence[PaymentId]


def judge_doubled(doubled: DoubledTransaction) -> Violation:
    """Say that a transaction's money counts twice."""
    ids = ", ".join(map(str, doubled.payments))
    return Violation(
        invariant=Invariant.DOUBLE_CREDIT,
        subject=f"transaction {doubled.tx_hash}",
        text=f"{doubled.tx_hash} counts more than once: payments {ids}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFacts:
    """The attempt that a job names. `is_its_own`: the attempt's row names the job, too."""

    is_its_own: bool
    outcome: str | None
    started_at: datetime
    is_finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """A job that money was ever counted for, with its payments.

    `counted` is what the job says. Of its payments, `credited` are so now, `unreversed` were and
    left the chain since, which the job is not yet told; `settled` were and an operator has decided
    on them. `losses`: how many of it were ever noted, `open_losses` how many stand.
    """

    uuid: str
    status: str
    counted: Units
    is_unbacked: bool
    credited: Units
    unreversed: Units
    settled: Units
    losses: int
    open_losses: int
    first_credited_at: datetime | None
    names_attempt: bool
    attempt: AttemptFacts | None
    output_is_attempts: bool


def judge_job(job: JobFacts) -> list[Violation]:
    """Say what is wrong with a job: its money, and its result."""
    money = [(Invariant.CREDIT_OF_JOB, text) for text in _money_of(job)]
    result = [(Invariant.ONE_RESULT, text) for text in _result_of(job)]
    return [
        Violation(invariant=invariant, subject=f"job {job.uuid}", text=f"job {job.uuid} {text}")
        for invariant, text in (*money, *result)
    ]


def _money_of(job: JobFacts) -> list[str]:
    least = job.credited + job.unreversed
    wrong = []
    if not least <= job.counted <= least + job.settled:
        wrong.append(
            f"was credited {format_usdc(job.counted)} USDC, its payments come to"
            f" {format_usdc(least)}"
        )
    if job.status == JobStatus.PENDING and job.counted > 0:
        wrong.append(f"is pending, although {format_usdc(job.counted)} USDC are credited to it")
    if job.is_unbacked != (job.open_losses > 0):
        state = "is" if job.is_unbacked else "is not"
        wrong.append(f"{state} unbacked, with {job.open_losses} losses that are not made good")
    return wrong


def _result_of(job: JobFacts) -> list[str]:
    """Only of jobs that are ours to do: what a host did with its own is its own."""
    if job.counted <= 0 and not job.is_unbacked:
        return []
    attempt = job.attempt
    if job.names_attempt and (attempt is None or not attempt.is_its_own):
        return ["names an attempt that is not one of its own"]
    if attempt is None:
        if job.status in (JobStatus.IN_PROGRESS, JobStatus.COMPLETED):
            return [f"is {job.status} without an attempt"]
        return []
    wrong = []
    if job.status == JobStatus.COMPLETED:
        if attempt.outcome != Outcome.SUCCEEDED:
            wrong.append(f"is completed by an attempt that ended as {attempt.outcome}")
        elif not job.output_is_attempts:
            wrong.append("has another output than its attempt")
    if job.status == JobStatus.FAILED and not attempt.is_finished:
        wrong.append("has failed, and its attempt has not ended")
    if _began_too_early(job, attempt):
        wrong.append("was begun before it was credited")
    return wrong


def _began_too_early(job: JobFacts, attempt: AttemptFacts) -> bool:
    """Whose money was lost and made good is credited later than it was begun, in order."""
    if job.first_credited_at is None or job.losses:
        return False
    return attempt.started_at + CLOCK_STEP < job.first_credited_at
