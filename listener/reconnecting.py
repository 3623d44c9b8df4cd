"""Which websocket endpoint is tried next, and when. Pure: the caller brings time and chance."""

from collections.abc import Callable
from enum import StrEnum
from typing import Final

from oncepaid.domain.retrying import Backoff

STEADY_AFTER_S: Final = 30.0
"""A connection that lasted this long starts back-off and preference afresh when it drops."""
UNSUPPORTED_FOR_S: Final = 300.0
"""How long an endpoint is left alone that serves no subscription at all."""


class Down(StrEnum):
    """Why a subscription ended or did not come about; a metric's label."""

    CLOSED = "closed"
    """The other side closed it, with whatever code."""
    LOST = "lost"
    """The transport broke, or no pong came."""
    UNREACHABLE = "unreachable"
    """There was no connection, or no answer in time."""
    REFUSED = "refused"
    """The websocket's handshake was refused."""
    UNSUPPORTED = "unsupported"
    """The node subscribes neither to logs nor to heads."""
    GARBAGE = "garbage"
    """What came is not what a node may send."""
    MUTE = "mute"
    """It lives, and does not tell of what the reconcile finds."""


class Rota:
    """Whose turn it is among `count` endpoints in order of preference."""

    def __init__(self, count: int, backoff: Backoff) -> None:
        self._shut_until = [0.0] * count
        self._backoff = backoff
        self._failures = 0
        self.place = 0

    def ended(
        self, reason: Down, *, lasted_s: float, now: float, uniform: Callable[[], float]
    ) -> float:
        """Move on after a connection and return the seconds to wait before the next one.

        After a steady connection the preferred endpoint is next. One that turned out mute is left
        for the next in any case: a new connection to it may be as mute.
        """
        was_steady = lasted_s > STEADY_AFTER_S
        self._failures = 1 if was_steady else self._failures + 1
        if reason is Down.UNSUPPORTED:
            self._shut_until[self.place] = now + UNSUPPORTED_FOR_S
        first = 0 if was_steady and reason is not Down.MUTE else self.place + 1
        count = len(self._shut_until)
        turns = [(first + turn) % count for turn in range(count)]
        self.place = min(turns, key=lambda place: max(now, self._shut_until[place]))
        shut_for_s = self._shut_until[self.place] - now
        return max(shut_for_s, self._backoff.delay_s(self._failures, uniform))
