"""Payments: one row a `Transfer` log to us, what is known of it and what was decided."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NewType

from oncepaid.domain.chain import Address, BlockRef, TransferLog, TxHash
from oncepaid.domain.jobs import JobId
from oncepaid.domain.memo import Memo, Reference
from oncepaid.domain.money import Units

PaymentId = NewType("PaymentId", int)


class PaymentStatus(StrEnum):
    """Who moves a payment on. A crash leaves behind no more than a step to repeat."""

    SEEN = "seen"
    """Stored with the cursor. The matcher moves it on."""
    MATCHED = "matched"
    """Pays a job once its block is final enough. The settler moves it on."""
    CREDITED = "credited"
    """Counted for its job, in the transaction that made the job `paid`."""
    UNMATCHED = "unmatched"
    """Money that an operator must see; `reason` says why."""
    ORPHANED = "orphaned"
    """Its block left the chain: the money did not arrive, or arrived as another row. Where it was
    `credited`, the reverser takes that back. A block that comes back makes it `seen` again, or
    what it was where that still stands: an operator's decision, a credit not yet reversed."""
    REFUNDED = "refunded"
    """Sent back by the operator."""
    IGNORED = "ignored"
    """The operator decided that nothing is owed for it."""


class Reason(StrEnum):
    """Why a payment is `unmatched`, each with a sentence for the operator."""

    sentence: str

    NO_MEMO = "no_memo", "It carries no memo, and its amount is nobody's unique amount."
    UNKNOWN_MEMO = "unknown_memo", "Its memo names no job of this database."
    WRONG_RECIPIENT = (
        "wrong_recipient",
        "Its memo names a job that is paid at another address, or, where every recipient is"
        " observed, at none.",
    )
    LATE = "late", "Its block is younger than the job's expiry and the grace after it."
    UNDERPAID = (
        "underpaid",
        "It is less than a price; where it names a job, it counts when the rest arrives in time.",
    )
    DUPLICATE = "duplicate", "The job that it is for was paid already, or is no longer open."
    AMBIGUOUS_AMOUNT = (
        "ambiguous_amount",
        "More than one open job waits for exactly this amount, as its unique amount or its price.",
    )
    MEMO_CONFLICT = "memo_conflict", "It carries the memos of different jobs."
    THIRD_PARTY_MEMO = (
        "third_party_memo",
        "Its memo was attached by somebody other than the payer, and amount or company do not fit.",
    )
    SHARED_MEMO = (
        "shared_memo",
        "Its memo stands for several transfers at once: it cannot be told which of them it means.",
    )
    DUST = (
        "dust",
        "Its job has many parts of the price already, and it is too small a part to be kept.",
    )
    OWN_ADDRESS = "own_address", "It was sent from one of our own addresses."
    JOB_NOT_PAYABLE = "job_not_payable", "The job that it names has no price."

    def __new__(cls, value: str, sentence: str = "") -> "Reason":
        member = str.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member


class MemoSource(StrEnum):
    """Where a memo, or another reference to a job, stood."""

    AUTHORIZATION = "authorization"
    """The nonce of the EIP-3009 authorization that made the transfer."""
    CONTRACT = "contract"
    """An event of a contract on the allow-list, bound to the transfer."""
    CALLDATA = "calldata"
    """Behind the arguments of the transferring call."""
    WRAPPER = "wrapper"
    """Behind the arguments of a call around it: the user operation's, the transaction's."""
    SCAN = "scan"
    """Somewhere in the input of a transaction that is not understood."""
    OPERATOR = "operator"
    """An operator assigned the payment to the job."""


class Signer(StrEnum):
    """Who signed the bytes in which a memo stood."""

    PAYER = "payer"
    """The address whose money moved: the memo binds by itself."""
    THIRD_PARTY = "third_party"
    """Somebody else, as a spender by allowance or a relayer: he could attach his memo to another's
    money."""
    OPERATOR = "operator"
    """An operator of this daemon, who decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One memo or reference found with a payment; exactly one of the two is there.

    `by` is the address that signed it, None where that is not known. `company` is the number of
    transfers, or of calls for the same transfer, that it may speak of: with more than 1 it cannot
    be told which it means.
    """

    memo: Memo | None
    source: MemoSource
    signer: Signer
    by: Address | None = None
    reference: Reference | None = None
    company: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedPayment:
    """A transfer to us as the listener hands it over.

    `transfers_in_tx` counts the transfers to us in the same transaction.
    """

    log: TransferLog
    block_time: datetime
    evidence: tuple[Evidence, ...]
    transfers_in_tx: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLog:
    """What a stored payment says of its log: enough to hold it against what a node says now."""

    id: PaymentId
    block: BlockRef
    tx_hash: TxHash
    log_index: int
    sender: Address
    recipient: Address
    units: Units


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanedPayment:
    """A payment whose block has just been found to be gone. `was` is the status it had."""

    id: PaymentId
    tx_hash: TxHash
    units: Units
    was: PaymentStatus
    job_uuid: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenPayment:
    """A stored payment as the matcher decides on it.

    `nearest_above` is the price of the job that waits for the smallest unique amount above its own;
    only looked up where there is no evidence. `is_a_price`: it is exactly the price of a job that
    waits for another amount; only looked up where it is some job's unique amount.
    """

    id: PaymentId
    sender: Address
    recipient: Address
    units: Units
    block_time: datetime
    evidence: tuple[Evidence, ...]
    transfers_in_tx: int
    block_number: int
    nearest_above: Units | None = None
    is_a_price: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedPayment:
    """A payment that waits for its confirmation, with the sum that its job is waiting for.

    `job_units` is the sum of all matched payments of the job: the tier goes by it.
    """

    log: StoredLog
    job_id: JobId
    block_time: datetime
    job_units: Units

    @property
    def id(self) -> PaymentId:
        return self.log.id

    @property
    def block(self) -> BlockRef:
        return self.log.block


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditedPayment:
    """A payment that has just been counted for its job, which is now paid.

    `waited_s` is the time since it was matched.
    """

    id: PaymentId
    job_id: JobId
    tx_hash: TxHash
    units: Units
    job_uuid: str
    service_key: str | None
    waited_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnedPayment:
    """A matched payment that could not be credited and is unmatched again."""

    id: PaymentId
    tx_hash: TxHash
    units: Units
    job_uuid: str
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Crediting:
    """What the settler did. `refused`: jobs by UUID that a host's own rules do not let be paid."""

    credited: list[CreditedPayment]
    returned: list[ReturnedPayment]
    refused: dict[str, str] = field(default_factory=dict)
