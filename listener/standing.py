"""How an endpoint stands, and which one to use: rules without I/O. Times are a clock's seconds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

FIRST_REST_S: Final = 1.0
LONGEST_REST_S: Final = 30.0
LONGEST_RATE_LIMIT_S: Final = 60.0
REFUSED_REST_S: Final = 60.0
DISTRUST_REST_S: Final = 5.0
SLOW_REST_S: Final = 30.0
SLOW_S: Final = 5.0
SLOW_IN_ROW: Final = 3
RETURN_AFTER_S: Final = 20.0
"""At least this long after an endpoint was left; a node that comes and goes would be ping-pong."""
_NEW_SHARE: Final = 0.2
"""Weight of the newest answer in the average latency."""
_NEVER: Final = float("-inf")


class Rest(StrEnum):
    """Why an endpoint rests."""

    FAILED = "failed"
    """It did not answer, or not usefully. Each failure in a row doubles the rest."""
    RATE_LIMITED = "rate_limited"
    """It asked for fewer requests: none is made while it rests."""
    REFUSED = "refused"
    """It serves another chain, or one without the token."""
    DISTRUSTED = "distrusted"
    """Its answers contradicted each other."""
    SLOW = "slow"
    """Its answers took too long while another endpoint was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is remembered of an endpoint. `away_since` is when it was left or found unfit last."""

    rest: Rest | None = None
    rest_until: float = _NEVER
    failures: int = 0
    slow_in_row: int = 0
    latency_s: float | None = None
    away_since: float = _NEVER

    def rests(self, now: float) -> bool:
        """Say whether another endpoint is to be preferred."""
        return now < self.rest_until

    def is_rate_limited(self, now: float) -> bool:
        """Say whether no request may be made."""
        return self.rest is Rest.RATE_LIMITED and self.rests(now)

    def is_up(self, now: float) -> bool:
        """Say whether it is trusted: it answered last time, and does not rest."""
        return not self.failures and not self.rests(now)

    @property
    def is_slow(self) -> bool:
        """Whether its last answers are a reason to leave."""
        return self.slow_in_row >= SLOW_IN_ROW

    def may_return(self, now: float) -> bool:
        """Say whether it may be tried again, though another endpoint works."""
        return not self.rests(now) and now >= self.away_since + RETURN_AFTER_S


def answered(standing: Standing, seconds: float) -> Standing:
    """Return the standing after an answer without an error, and the time it took."""
    old = standing.latency_s
    return replace(
        standing,
        slow_in_row=standing.slow_in_row + 1 if seconds > SLOW_S else 0,
        latency_s=seconds if old is None else old + _NEW_SHARE * (seconds - old),
    )


def succeeded(standing: Standing) -> Standing:
    """Return the standing after all that was asked: failures are forgiven, other rests go on."""
    if standing.rest in (Rest.FAILED, Rest.REFUSED):
        return replace(standing, failures=0, rest=None, rest_until=_NEVER)
    return replace(standing, failures=0)


def failed(standing: Standing, now: float) -> Standing:
    """Return the standing after a failure; a rate limit under way goes on."""
    pause = _pause_after(standing.failures + 1)
    return _resting(standing, Rest.FAILED, now, now + pause, failures=standing.failures + 1)


def rate_limited(standing: Standing, now: float, retry_after_s: float | None) -> Standing:
    """Return the standing after a refusal for too many requests."""
    failures = standing.failures + 1
    pause = _pause_after(failures) if retry_after_s is None else retry_after_s
    until = now + min(pause, LONGEST_RATE_LIMIT_S)
    if standing.is_rate_limited(now):
        until = max(until, standing.rest_until)
    return replace(standing, rest=Rest.RATE_LIMITED, rest_until=until, failures=failures)


def refused(standing: Standing, now: float) -> Standing:
    """Return the standing of an endpoint of another chain."""
    failures = standing.failures + 1
    return _resting(standing, Rest.REFUSED, now, now + REFUSED_REST_S, failures=failures)


def distrusted(standing: Standing, now: float) -> Standing:
    """Return the standing of an endpoint whose answers contradict each other."""
    until = now + DISTRUST_REST_S
    return _resting(standing, Rest.DISTRUSTED, now, until, failures=standing.failures)


def slowed(standing: Standing, now: float) -> Standing:
    """Return the standing of an endpoint that is left because it is slow."""
    until = now + SLOW_REST_S
    return _resting(standing, Rest.SLOW, now, until, failures=standing.failures)


def left(standing: Standing, now: float) -> Standing:
    """Return the standing of an endpoint that is not in use any more."""
    return replace(standing, away_since=now)


def _pause_after(failures: int) -> float:
    return min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** min(failures - 1, 16))


def _resting(
    standing: Standing, rest: Rest, now: float, until: float, *, failures: int
) -> Standing:
    # The longer rest stands; and a rate limit, for it alone keeps requests back.
    if standing.is_rate_limited(now) or (standing.rests(now) and standing.rest_until >= until):
        return replace(standing, failures=failures)
    return replace(standing, rest=rest, rest_until=until, failures=failures, slow_in_row=0)


def choose(standings: Sequence[Standing], now: float, *, failed: int | None = None) -> int:
    """Return the endpoint to use: the first that does not rest, else whose rest ends first.

    `failed` is the one that failed just now, if any.
    """
    indexes = range(len(standings))
    awake = [index for index in indexes if not standings[index].rests(now)]
    if awake:
        return awake[0]
    return min(indexes, key=lambda index: (standings[index].rest_until, index == failed))


def healthiest_other(standings: Sequence[Standing], current: int, now: float) -> int:
    """Return the best endpoint but the one in use, or that one where there is no other."""
    others = [index for index in range(len(standings)) if index != current]
    if not others:
        return current

    def rank(index: int) -> tuple[bool, float, int, float, int]:
        one = standings[index]
        rests = one.rests(now)
        until = one.rest_until if rests else _NEVER
        return rests, until, one.failures, one.latency_s or 0.0, index

    return min(others, key=rank)
