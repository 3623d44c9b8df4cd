"""What becomes of a job whose credited payment left the chain."""

from dataclasses import dataclass
from typing import Final

from oncepaid.domain.chain import TxHash
from oncepaid.domain.jobs import JobStatus
from oncepaid.domain.money import Units
from oncepaid.domain.payments import PaymentId


@dataclass(frozen=True, slots=True, kw_only=True)
class ReversedCredit:
    """Credited payments of one job that are orphaned and not yet reversed, under its row lock.

    `gone` is their sum, `rest` what is still credited to the job. `price` None: it has none now.
    The status may be one that only the host knows.
    """

    status: str
    price: Units | None
    gone: Units
    rest: Units


@dataclass(frozen=True, slots=True)
class Covered:
    """What is left pays the job all the same."""


@dataclass(frozen=True, slots=True)
class Reopen:
    """No work was begun: the job is `pending` again; what is left of its money waits with it."""


@dataclass(frozen=True, slots=True)
class Lose:
    """Work was begun or done: it is kept, and the money is a loss until the job is paid again."""


Reversal = Covered | Reopen | Lose

COVERED: Final = Covered()
REOPEN: Final = Reopen()
LOSE: Final = Lose()


def reverse(credit: ReversedCredit) -> Reversal:
    """Say what an orphaned credit does to its job.

    A result is never taken back: the customer may have it already. A job whose call is under way
    keeps it: the call is paid for whether or not its answer is used.
    """
    if credit.price is not None and credit.rest >= max(credit.price, 1):
        return COVERED
    if credit.status in (JobStatus.PENDING, JobStatus.PAID):
        return REOPEN
    return LOSE


@dataclass(frozen=True, slots=True, kw_only=True)
class ReversedPayment:
    """A credit that has just been reversed. `job_status` is the one that its job had before."""

    id: PaymentId
    tx_hash: TxHash
    units: Units
    job_uuid: str
    job_status: str
    reversal: Reversal


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedReversal:
    """A job whose host's own constraints or triggers do not let it be taken back."""

    job_uuid: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reversing:
    """What one transaction did: credits reversed, and jobs given up that nobody paid after all."""

    reversed: list[ReversedPayment]
    reopened: list[str]
    refused: list[RefusedReversal]
    is_full: bool
