"""One payment, the jobs that it meets, and the one decision that must follow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

from oncepaid.domain.jobs import JobId, JobTerms
from oncepaid.domain.matching import Decision, Matched, MatchingRules, Unmatched
from oncepaid.domain.money import Units
from oncepaid.domain.payments import Reason, SeenPayment, Signer
from tests.unit.samples import RULES, evidence, job, payment

SECOND: Final = timedelta(seconds=1)
THIRD: Final = Signer.THIRD_PARTY
EVERY_RECIPIENT: Final = replace(RULES, recipients=None)
NO_FALLBACK: Final = replace(RULES, amount_fallback=False)
MATCHED: Final = Matched(job_id=JobId(1))
BY_MEMO: Final = evidence(1)
BY_THIRD: Final = evidence(1, THIRD)
AMOUNT_JOB: Final = job(unique_amount=Units(13))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One payment, what it meets and what must follow."""

    name: str
    paid: SeenPayment
    jobs: Sequence[JobTerms] = (job(),)
    rules: MatchingRules = RULES
    then: Decision


def unmatched(reason: Reason, job: int | None = None) -> Unmatched:
    return Unmatched(reason=reason, job_id=None if job is None else JobId(job))


def of(units: int, *pieces: Any, **changed: Any) -> SeenPayment:
    return payment(1, units, *pieces, **changed)
