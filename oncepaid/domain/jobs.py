"""Jobs: what a customer ordered, and the states it goes through."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NewType

from oncepaid.domain.chain import Address
from oncepaid.domain.memo import Memo, Reference
from oncepaid.domain.money import Units
from oncepaid.domain.text import storable_text

JobId = NewType("JobId", int)
AttemptId = NewType("AttemptId", int)
"""Names one claim of one job. It is the fencing token of every write that follows the claim."""

MAX_PROMPT_BYTES: Final = 256 * 1024
"""UTF-8 bytes of a job's prompt; about 64,000 tokens. Longer input fails the job by name."""


MAX_INPUT_BYTES: Final = 1024 * 1024
"""Bytes of `input_data` as JSON that are read from the database at all."""


class JobStatus(StrEnum):
    """Who moves a job on, and what a crash leaves behind."""

    PENDING = "pending"
    """Waits for money. The settler moves it on. A crash leaves it as it is."""
    PAID = "paid"
    """Credited in full. The generator claims it; the reverser takes it back to `pending` where
    its money left the chain. A crash leaves it for the next claim."""
    IN_PROGRESS = "in_progress"
    """Claimed until `lease_until`, or answered and waiting for the finisher (`lease_until` null).
    After a crash the lease runs out and the job is claimed again under a new attempt."""
    COMPLETED = "completed"
    """`output_data` holds the result. Ours no longer."""
    FAILED = "failed"
    """`output_data` holds the error and its message. Only an operator moves it on."""
    DELIVERED = "delivered"
    """Set by the host application."""
    DISPUTED = "disputed"
    """Set by the host application."""
    REFUNDED = "refunded"
    """Set by the host application."""


LEGAL_MOVES: Final[Mapping[JobStatus, frozenset[JobStatus]]] = {
    JobStatus.PENDING: frozenset({JobStatus.PAID}),
    JobStatus.PAID: frozenset({JobStatus.IN_PROGRESS, JobStatus.PENDING}),
    JobStatus.IN_PROGRESS: frozenset(
        {JobStatus.PAID, JobStatus.PENDING, JobStatus.COMPLETED, JobStatus.FAILED}
    ),
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.DELIVERED: frozenset(),
    JobStatus.DISPUTED: frozenset(),
    JobStatus.REFUNDED: frozenset(),
}
"""The moves that this daemon makes. A host application may make others, after `completed`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTerms:
    """What matching needs to know of a job, read under a row lock.

    `awaits_payment`: it is pending, or its work was begun for money that left the chain. `pay_to`
    None means any of our recipients. `price` None means that the job was stored without a usable
    one and cannot be paid. `covered` is the sum of the payments already matched to it or credited;
    `partial` that of the `parts` that came earlier, were too small and wait on it. `references` are
    what a host application or an operator bound to it. `amount_after_block` was final when its
    unique amount was drawn: who paid in a block up to there meant another job, of before.
    """

    id: JobId
    awaits_payment: bool
    memo: Memo
    price: Units | None
    pay_to: Address | None
    unique_amount: Units | None
    expires_at: datetime
    covered: Units
    partial: Units
    parts: int
    references: frozenset[Reference]
    amount_after_block: int

    @property
    def gathered(self) -> Units:
        """What there is for it: what counts already, and what waits for the rest."""
        return Units(self.covered + self.partial)

    @property
    def is_paid(self) -> bool:
        """Whether it takes no more money. One without a price is never paid by any."""
        is_covered = self.price is not None and self.covered >= max(self.price, 1)
        return is_covered or not self.awaits_payment


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedJob:
    """A paid job under a lease: what to do, and the attempt that holds it.

    `lost_attempts` counts earlier ones whose worker died without a word. `input_json` is None where
    there is none or where its `input_bytes` are more than `MAX_INPUT_BYTES`.
    """

    id: JobId
    uuid: str
    attempt: AttemptId
    attempt_no: int
    lost_attempts: int
    waited_s: float
    service_key: str | None
    skill_is_active: bool
    input_json: str | None
    input_bytes: int


_NOT_ALPHANUMERIC = re.compile(r"[^a-zA-Z0-9]")


def service_key_of(skill_name: str) -> str:
    """Return the service key of a skill that has none of its own.

    Same rule as in the migration: `"Creative Concept"` → `"creativeconcept"`.
    """
    return _NOT_ALPHANUMERIC.sub("", skill_name).lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the customer asked for, ready to send."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRefused:
    """The input cannot be sent; `message` is a sentence for the customer."""

    message: str


def prompt_of(input_json: str | None, input_bytes: int) -> Prompt | PromptRefused:
    """Return the prompt of a job: `input_data.prompt`, else `.input`, else the object as JSON.

    `input_json` is what a host stored, None where it is missing or longer than we read;
    `input_bytes` is its size. Any JSON is accepted.
    """
    if input_json is None and input_bytes:
        return _too_long(input_bytes)
    try:
        value = json.loads(input_json or "null")
    except (ValueError, RecursionError):
        return PromptRefused(message="the input is not readable JSON")
    chosen = _chosen(value) if isinstance(value, dict) else value
    if not chosen:
        return PromptRefused(message="the job has no input")
    as_text = chosen if isinstance(chosen, str) else json.dumps(chosen, ensure_ascii=False)
    text = storable_text(as_text)
    if not text.strip():
        return PromptRefused(message="the job has no input")
    size = len(text.encode())
    return _too_long(size) if size > MAX_PROMPT_BYTES else Prompt(text=text)


def _chosen(value: dict[str, Any]) -> object:
    """The hub's rule: the prompt, else the input, else all of it; None where all of it is empty."""
    has_more = any(
        item not in (None, "", [], {})
        for key, item in value.items()
        if key not in ("prompt", "input")
    )
    return value.get("prompt") or value.get("input") or (value if has_more else None)


def _too_long(size: int) -> PromptRefused:
    return PromptRefused(
        message=f"the input is {size} bytes long; at most {MAX_PROMPT_BYTES} are accepted"
    )
