"""Whether the chain moves, and whether our endpoint moves with it: rules without I/O.

`now` is any clock's seconds. The times of blocks are compared with each other only, never with a
clock: a chain's time may lag by seconds or by years.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from oncepaid.domain.chain import Header

STILL_S: Final = 8.0
"""A head that stands for so long is suspicious: that is forty blocks of Base since Denim."""
LOOK_EVERY_S: Final = 60.0
HALTED_S: Final = 30.0
BEHIND_S: Final = 5.0
"""By so much newer, another endpoint's head shows that ours lags; less is the way of the news."""
FORGET_S: Final = 30.0
"""A height that was not told again for so long was a lie, or is gone with a reorg."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The highest head of an endpoint: when it came, was last told, and was last asked for."""

    header: Header
    grew_at: float
    reached_at: float
    looked_at: float

    @property
    def still_s(self) -> float:
        """How long it stood for certain: up to the last look, not up to now."""
        return self.looked_at - self.grew_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Lagging:
    """Endpoint `other` is ahead of the one in use."""

    other: int
    blocks: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Halted:
    """No endpoint has had a new block for so long."""

    head: Header
    idle_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """Nothing is wrong, or nobody looked."""


Verdict = Lagging | Halted | Steady


class Pulse:
    """Remembers what heads were seen of each endpoint."""

    def __init__(self) -> None:
        self._seen: dict[int, Seen] = {}
        self._all_looked_at = float("-inf")

    def head(self, index: int) -> Header | None:
        """Return the highest head that an endpoint told of lately."""
        seen = self._seen.get(index)
        return seen.header if seen else None

    def saw(self, index: int, header: Header, now: float) -> None:
        """Note the head that an endpoint told of."""
        self._seen[index] = next_seen(self._seen.get(index), header, now, self._seen)

    def is_look_due(self, current: int, now: float) -> bool:
        """Say whether all endpoints are to be asked for their heads."""
        ours = self._seen.get(current)
        is_suspicious = ours is not None and now - ours.grew_at >= STILL_S
        return is_suspicious or now - self._all_looked_at >= LOOK_EVERY_S

    def looked(self, now: float) -> None:
        """Note that all endpoints were asked."""
        self._all_looked_at = now

    def verdict(self, current: int, now: float, able: Collection[int]) -> Verdict:
        """Say how things stand; only the `able` endpoints can show that the one in use lags."""
        return judge(self._seen, current, now, able)


def next_seen(seen: Seen | None, header: Header, now: float, all_seen: Mapping[int, Seen]) -> Seen:
    """Return what is known of an endpoint after it told of a head."""
    if seen is None:
        # A block that is new from this endpoint only is no sign that the chain moves.
        known = [one for one in all_seen.values() if one.header.number >= header.number]
        grew_at = max((one.grew_at for one in known), default=now)
        return Seen(header=header, grew_at=grew_at, reached_at=now, looked_at=now)
    if header.number > seen.header.number:
        return Seen(header=header, grew_at=now, reached_at=now, looked_at=now)
    if header.number == seen.header.number:
        return replace(seen, header=header, reached_at=now, looked_at=now)
    # Lower: one of several backends that lags, unless it stays so.
    if now - seen.reached_at >= FORGET_S:
        return replace(seen, header=header, reached_at=now, looked_at=now)
    return replace(seen, looked_at=now)


def judge(seen: Mapping[int, Seen], current: int, now: float, able: Collection[int]) -> Verdict:
    """Compare the head of the endpoint in use with those of the others."""
    ours = seen.get(current)
    if ours is not None:
        ahead = [
            index
            for index in sorted(able)
            if index != current and index in seen and _shows_lag(ours, seen[index])
        ]
        if ahead:
            best = max(ahead, key=lambda index: seen[index].header.number)
            return Lagging(
                other=best,
                blocks=seen[best].header.number - ours.header.number,
                seconds=(seen[best].header.timestamp_ms - ours.header.timestamp_ms) / 1000,
            )
    if seen and _is_halted(seen, now):
        head = max((one.header for one in seen.values()), key=lambda header: header.number)
        return Halted(head=head, idle_s=now - max(one.grew_at for one in seen.values()))
    return Steady()


def _shows_lag(ours: Seen, other: Seen) -> bool:
    newer_s = (other.header.timestamp_ms - ours.header.timestamp_ms) / 1000
    is_ahead = other.header.number > ours.header.number
    return is_ahead and (newer_s > BEHIND_S or ours.still_s >= STILL_S)


def _is_halted(seen: Mapping[int, Seen], now: float) -> bool:
    """Nobody's head grew, and somebody looked: a database that is away keeps us from looking."""
    return all(now - one.grew_at >= HALTED_S for one in seen.values()) and any(
        one.still_s >= HALTED_S for one in seen.values()
    )
