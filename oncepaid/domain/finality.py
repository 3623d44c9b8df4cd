"""When a payment's block is final enough for its amount."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, assert_never

from oncepaid.domain.money import Units
from oncepaid.domain.payments import MatchedPayment

_SECONDS = re.compile(r"(\d{1,7})s\Z")


@dataclass(frozen=True, slots=True)
class Included:
    """The block is on the node's chain: about 0.2 s on Base; only the sequencer vouches for it."""


@dataclass(frozen=True, slots=True)
class Aged:
    """That many seconds of chain time lie on top of the block."""

    age: timedelta


@dataclass(frozen=True, slots=True)
class Safe:
    """The node's `safe` head has reached it: its batch is on L1, about 2 minutes on Base."""


@dataclass(frozen=True, slots=True)
class Finalized:
    """The node's `finalized` head has reached it: L1 finality, about 20 minutes on Base."""


Requirement = Included | Aged | Safe | Finalized


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Payments of up to `up_to` units (None: of any size) need `require`."""

    up_to: Units | None
    require: Requirement


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainHeads:
    """How far the node's chain reaches. None where it was not asked or has none yet."""

    latest_time: datetime | None = None
    safe_number: int | None = None
    finalized_number: int | None = None


INCLUDED: Final = Included()


def parse_requirement(text: str) -> Requirement:
    """Return the requirement for `included`, `"<n>s"`, `safe` or `finalized`; else `ValueError`."""
    if seconds := _SECONDS.match(text):
        return Aged(timedelta(seconds=int(seconds[1])))
    match text:
        case "included":
            return INCLUDED
        case "safe":
            return Safe()
        case "finalized":
            return Finalized()
        case _:
            raise ValueError(f'{text!r} is none of "included", "<seconds>s", "safe", "finalized"')


def requirement_for(units: int, tiers: Sequence[Tier]) -> Requirement:
    """Return what an amount needs: the first tier that reaches it, else finality."""
    for tier in tiers:
        if tier.up_to is None or units <= tier.up_to:
            return tier.require
    return Finalized()


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalityAges:
    """What `safe` and `finalized` mean on a chain whose node's tags mean nothing."""

    safe: timedelta
    finalized: timedelta


def by_age(tiers: Sequence[Tier], ages: FinalityAges) -> list[Tier]:
    """Return tiers that ask for ages where they asked for the node's tags."""
    aged: list[Tier] = []
    for tier in (*tiers, Tier(up_to=None, require=Finalized())):
        match tier.require:
            case Safe():
                require: Requirement = Aged(ages.safe)
            case Finalized():
                require = Aged(ages.finalized)
            case Included() | Aged():
                require = tier.require
            case _:
                assert_never(tier.require)
        aged.append(Tier(up_to=tier.up_to, require=require))
    return aged


def is_final_enough(
    require: Requirement, *, block_number: int, block_time: datetime, heads: ChainHeads
) -> bool:
    """Say whether a block that is on the chain satisfies a requirement, by the chain's own time."""
    match require:
        case Included():
            return True
        case Aged(age=age):
            # A difference cannot overflow; a block's time is clamped to the last that there is.
            return heads.latest_time is not None and heads.latest_time - block_time >= age
        case Safe():
            return heads.safe_number is not None and block_number <= heads.safe_number
        case Finalized():
            return heads.finalized_number is not None and block_number <= heads.finalized_number
        case _:
            assert_never(require)


def select_ready(
    matched: Sequence[MatchedPayment], tiers: Sequence[Tier], heads: ChainHeads
) -> list[MatchedPayment]:
    """Return the payments of those jobs of which every payment is final enough.

    `matched` holds all matched payments of each job that it speaks of; the tier goes by their sum.
    """
    waiting = {
        payment.job_id
        for payment in matched
        if not is_final_enough(
            requirement_for(payment.job_units, tiers),
            block_number=payment.block.number,
            block_time=payment.block_time,
            heads=heads,
        )
    }
    return [payment for payment in matched if payment.job_id not in waiting]
