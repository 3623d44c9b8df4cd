"""What the tables tell of a payment, for the sentences that explain it."""

from dataclasses import dataclass
from datetime import datetime

from oncepaid.domain.chain import Address, TxHash
from oncepaid.domain.desk import DeskJob, is_open, is_waiting_part
from oncepaid.domain.money import Units
from oncepaid.domain.payments import Evidence, PaymentId, PaymentStatus, Reason, StoredLog


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadChain:
    """How far the chain was read. `finalized` -1: nothing was final yet."""

    cursor: int
    finalized: int
    conflict: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clue:
    """A piece of evidence and the job that it leads to, None where it leads to none.

    `bound_at` is when its reference was bound to that; None for a memo, which is the job's own.
    """

    piece: Evidence
    job: DeskJob | None
    bound_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SentBack:
    """The transfer by which a payment went back, and who found that out."""

    tx_hash: TxHash
    recipient: Address
    units: Units
    recognised_by: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Handled:
    """What an operator did to a payment."""

    at: datetime
    who: str
    action: str
    why: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentFacts:
    """All that the tables tell of a payment. The sums of jobs leave out the payment itself.

    `was` is the status that an orphaned one had; `is_reversed`: its credit was taken back;
    `is_lost`: after its job had been begun. `job` is the one that was decided on.
    """

    log: StoredLog
    chain_id: int
    block_time: datetime
    status: PaymentStatus
    reason: Reason | None
    transfers_in_tx: int
    matched_at: datetime | None = None
    job: DeskJob | None = None
    clues: tuple[Clue, ...] = ()
    was: PaymentStatus | None = None
    is_reversed: bool = False
    is_lost: bool = False
    came_again: PaymentId | None = None
    sent_back: SentBack | None = None
    handled: tuple[Handled, ...] = ()

    @property
    def is_short_of_an_amount(self) -> bool:
        """Whether it is taken for a unique amount, of which job nobody knows, less some fee."""
        return self.reason is Reason.UNDERPAID and self.job is None

    @property
    def is_open(self) -> bool:
        """Whether it may be given to a job or sent back."""
        return is_open(self.status, is_sent_back=self.sent_back is not None)

    @property
    def is_waiting_part(self) -> bool:
        """Whether it counts for its job as soon as the rest arrives."""
        return is_waiting_part(self.status, self.reason, has_job=self.job is not None)
