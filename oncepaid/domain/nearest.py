"""Which jobs a payment may have been meant for, and by how much it misses them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, assert_never

from oncepaid.domain.chain import Address
from oncepaid.domain.desk import DeskJob
from oncepaid.domain.jobs import JobId
from oncepaid.domain.matching import MatchingRules
from oncepaid.domain.money import Units
from oncepaid.domain.wording import listed, moment, span, usdc

MAX_NEAREST: Final = 5


class Nearness(StrEnum):
    """By what a job is near, the strongest first."""

    NAMED = "named"
    """Something in the transaction, or an operator, names it."""
    AMOUNT = "amount"
    """It waits, or waited, for a unique amount that is like this one."""
    PRICE = "price"
    """It was pending then, at a price that is like this amount."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """What of a payment counts here."""

    units: Units
    recipient: Address
    block_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NearJob:
    """A job beside a payment; `sentence` says what is between them.

    `difference` is by how many units the payment is more than what was looked for, negative: less.
    """

    job: DeskJob
    by: Nearness
    difference: int
    sentence: str


def nearest_jobs(
    money: Money,
    candidates: Mapping[Nearness, Collection[DeskJob]],
    rules: MatchingRules,
) -> list[NearJob]:
    """Return at most `MAX_NEAREST` jobs, each once: the named ones, then by difference.

    The sums in the jobs' terms leave out the payment itself.
    """
    best: dict[JobId, tuple[tuple[int, int, int], NearJob]] = {}
    for rank, by in enumerate(Nearness):
        for job in candidates.get(by, ()):
            key = (min(rank, 1), abs(_difference(money, job, by)), rank)
            if job.terms.id not in best or key < best[job.terms.id][0]:
                best[job.terms.id] = (key, _near_job(money, job, by, rules))
    ordered = sorted(best.values(), key=lambda found: (found[0], found[1].job.terms.id))
    return [found for _, found in ordered[:MAX_NEAREST]]


def missing(job: DeskJob) -> Units | None:
    """Return what a job still waits for; None where it has no price."""
    if job.terms.price is None:
        return None
    return Units(max(job.terms.price - job.terms.gathered, 0))


def _difference(money: Money, job: DeskJob, by: Nearness) -> int:
    """Return by how much the payment is too large, negative: too small."""
    wanted = _wanted(job, by)
    return 0 if wanted is None else money.units - wanted


def _wanted(job: DeskJob, by: Nearness) -> Units | None:
    match by:
        case Nearness.AMOUNT:
            return job.drawn_amount
        case Nearness.NAMED | Nearness.PRICE:
            return missing(job)
        case _:
            assert_never(by)


def _near_job(money: Money, job: DeskJob, by: Nearness, rules: MatchingRules) -> NearJob:
    name = f"Job {job.terms.id} ({job.uuid}, {job.status})"
    found = [_amount(money, job, by), *_state(money, job), *_lateness(money, job, rules)]
    return NearJob(
        job=job,
        by=by,
        difference=_difference(money, job, by),
        sentence=f"{name}: {'; '.join(found)}.",
    )


def _amount(money: Money, job: DeskJob, by: Nearness) -> str:
    wanted = _wanted(job, by)
    if wanted is None:
        return "it has no price"
    if wanted == 0 and job.terms.price:
        return f"it has all of its {usdc(job.terms.price)}"
    what = _unique(job, wanted) if by is Nearness.AMOUNT else _open_part(job)
    difference = money.units - wanted
    if difference == 0:
        return f"exactly {what}"
    if difference < 0:
        return f"short by {usdc(-difference)} of {what}"
    return f"{usdc(difference)} more than {what}"


def _unique(job: DeskJob, amount: Units) -> str:
    which = "its unique amount" if job.terms.unique_amount else "the unique amount that it once had"
    return f"{which}, {usdc(amount)}"


def _open_part(job: DeskJob) -> str:
    price, rest = job.terms.price, missing(job)
    assert price is not None  # a job without a price is told of before
    assert rest is not None
    if rest == price:
        return f"its price of {usdc(price)}"
    return f"what it waits for, {usdc(rest)} of {usdc(price)}"


def _state(money: Money, job: DeskJob) -> list[str]:
    terms, found = job.terms, []
    if job.paid_by:
        found.append(f"already paid by {listed([f'payment {payer}' for payer in job.paid_by])}")
    elif not terms.awaits_payment:
        found.append(f"it is {job.status} and waits for no money")
    if terms.pay_to is not None and terms.pay_to != money.recipient:
        found.append(f"it is paid at {terms.pay_to}")
    return found


def _lateness(money: Money, job: DeskJob, rules: MatchingRules) -> list[str]:
    # A difference cannot overflow; a host may store an expiry of `infinity`.
    over = money.block_time - job.terms.expires_at
    if over <= rules.late_grace:
        return []
    grace = f" and {span(rules.late_grace)} of grace" if rules.late_grace else ""
    return [f"late by {span(over - rules.late_grace)}, after {moment(job.terms.expires_at)}{grace}"]
