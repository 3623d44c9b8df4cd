"""The rows of a ledger in memory."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from oncepaid.domain.chain import Address, BlockRef, TransferLog
from oncepaid.domain.jobs import JobId
from oncepaid.domain.memo import Memo, Reference
from oncepaid.domain.money import Units
from oncepaid.domain.payments import (
    Evidence,
    ObservedPayment,
    PaymentId,
    Signer,
    StoredLog,
)

LONG_AGO: Final = datetime(2020, 1, 1, tzinfo=UTC)
BARE: Final = (("seen", None), ("unmatched", "no_memo"))
"""And what is underpaid for no job in particular."""


@dataclass(slots=True, kw_only=True, eq=False)
class PaymentRow:
    id: PaymentId
    log: TransferLog
    stored: StoredLog
    block_time: datetime
    evidence: tuple[Evidence, ...]
    transfers_in_tx: int
    status: str = "seen"
    reason: str | None = None
    job_id: JobId | None = None
    orphaned_from: str | None = None
    orphaned_at: int = 0
    is_reversed: bool = False

    @property
    def key(self) -> tuple[str, int]:
        return self.log.block.hash, self.log.log_index

    @property
    def equals(self) -> tuple[object, ...]:
        """The same in each of the transfers that only their order in a transaction tells apart."""
        return self.log.tx_hash, self.log.sender, self.log.recipient, self.log.units

    @property
    def is_bare(self) -> bool:
        is_short = (self.status, self.reason, self.job_id) == ("unmatched", "underpaid", None)
        return not self.evidence and (is_short or (self.status, self.reason) in BARE)

    @property
    def is_decided(self) -> bool:
        """It left the chain, and an operator's decision about it holds wherever it comes back."""
        is_settled = self.orphaned_from in ("refunded", "ignored")
        return self.status == "orphaned" and (is_settled or bool(operators_of(self)))

    def see_again(self) -> None:
        self.status, self.job_id, self.reason = "seen", None, None


@dataclass(slots=True, kw_only=True, eq=False)
class JobRow:
    id: JobId
    memo: Memo
    price: Units
    unique_amount: Units | None
    pay_to: Address | None
    expires_at: datetime
    status: str = "pending"
    credited_units: int = 0
    overpaid_units: int = 0
    is_unbacked: bool = False
    attempt: int | None = None
    attempts: int = 0
    failures_in_row: int = 0
    lease_until: datetime | None = None
    next_attempt_at: datetime = LONG_AGO
    completed: int = 0
    output: object = None

    @property
    def uuid(self) -> str:
        return f"job {self.id}"


@dataclass(slots=True, kw_only=True)
class Attempt:
    id: int
    job: JobId
    number: int
    started_at: datetime
    is_finished: bool = False
    outcome: str | None = None
    output: object = None


@dataclass(slots=True, kw_only=True)
class Loss:
    job: JobId
    units: int
    job_status: str
    is_made_good: bool = False


@dataclass(slots=True, kw_only=True)
class CursorRow:
    block: BlockRef
    epoch: int
    start: int
    checked: int
    finalized: int = -1
    conflict: str | None = None


@dataclass(slots=True)
class Tables:
    """All rows, and the database's clock."""

    now: datetime = LONG_AGO
    leader_epoch: int = 0
    cursor: CursorRow | None = None
    checkpoints: dict[int, tuple[BlockRef, datetime, datetime]] = field(default_factory=dict)
    payments: dict[PaymentId, PaymentRow] = field(default_factory=dict)
    by_key: dict[tuple[str, int], PaymentRow] = field(default_factory=dict)
    jobs: dict[JobId, JobRow] = field(default_factory=dict)
    bindings: dict[Reference, JobId] = field(default_factory=dict)
    attempts: dict[int, Attempt] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    orphanings: int = 0

    def live(self) -> list[PaymentRow]:
        return [row for row in self.payments.values() if row.status != "orphaned"]

    def take_over(self) -> int:
        """Lead under a new epoch, as `db.leader` does."""
        self.leader_epoch += 1
        if self.cursor is not None:
            self.cursor.epoch = self.leader_epoch
        return self.leader_epoch


def row_of(number: PaymentId, payment: ObservedPayment) -> PaymentRow:
    log = payment.log
    stored = StoredLog(
        id=number,
        block=log.block,
        tx_hash=log.tx_hash,
        log_index=log.log_index,
        sender=log.sender,
        recipient=log.recipient,
        units=log.units,
    )
    return PaymentRow(
        id=number,
        log=replace(log),
        stored=stored,
        block_time=payment.block_time,
        evidence=payment.evidence,
        transfers_in_tx=payment.transfers_in_tx,
    )


def operators_of(row: PaymentRow) -> tuple[Evidence, ...]:
    return tuple(piece for piece in row.evidence if piece.signer is Signer.OPERATOR)


def chains_of(row: PaymentRow) -> tuple[Evidence, ...]:
    return tuple(piece for piece in row.evidence if piece.signer is not Signer.OPERATOR)


def revive(row: PaymentRow, last: PaymentRow) -> None:
    """Make a row count whose block came back; `last` is what the transfer was last of all."""
    if row.orphaned_from == "credited" and not row.is_reversed:
        row.status = "credited"
    else:
        inherit(row, last)
    row.orphaned_from, row.is_reversed = None, False


def inherit(row: PaymentRow, last: PaymentRow) -> None:
    """Let what an operator decided stand, in whatever block its transaction was then."""
    if last.orphaned_from in ("refunded", "ignored"):
        row.status, row.job_id, row.reason = last.orphaned_from, last.job_id, last.reason
    else:
        row.see_again()
