"""Which endpoint is tried next, and how soon."""

import pytest

from listener.reconnecting import STEADY_AFTER_S, UNSUPPORTED_FOR_S, Down, Rota
from oncepaid.domain.retrying import Backoff

NOW = 1_000.0
STEADY = STEADY_AFTER_S + 0.1
BACKOFF = Backoff(base_s=1.0, cap_s=8.0)


class Endings:
    """A rota of `count` endpoints whose connections end one after the other."""

    def __init__(self, count: int) -> None:
        self.rota = Rota(count, BACKOFF)

    def end(self, reason: Down, lasted_s: float = 0.0, now: float = NOW) -> tuple[int, float]:
        """Return the next place and the wait before it, without its jitter."""
        delay_s = self.rota.ended(reason, lasted_s=lasted_s, now=now, uniform=lambda: 1.0)
        return self.rota.place, delay_s


def test_failures_go_round_with_growing_waits() -> None:
    endings = Endings(3)
    assert endings.rota.place == 0
    told = [endings.end(Down.UNREACHABLE) for _ in range(5)]
    assert told == [(1, 1.0), (2, 2.0), (0, 4.0), (1, 8.0), (2, 8.0)]


@pytest.mark.parametrize("reason", [Down.CLOSED, Down.LOST, Down.GARBAGE])
def test_after_a_steady_connection_the_first_is_next(reason: Down) -> None:
    endings = Endings(3)
    endings.end(Down.UNREACHABLE)
    endings.end(Down.REFUSED)
    assert endings.end(reason, lasted_s=STEADY) == (0, 1.0)
    assert endings.end(reason, lasted_s=STEADY) == (0, 1.0), "also from the first itself"


def test_a_mute_one_is_left_however_long_it_lasted() -> None:
    endings = Endings(3)
    assert endings.end(Down.MUTE, lasted_s=STEADY) == (1, 1.0)
    assert endings.end(Down.MUTE, lasted_s=1) == (2, 2.0)
    assert endings.end(Down.MUTE, lasted_s=STEADY) == (0, 1.0)


def test_one_that_supports_nothing_is_left_out_for_a_while() -> None:
    endings = Endings(2)
    assert endings.end(Down.UNSUPPORTED) == (1, 1.0)
    assert endings.end(Down.LOST, lasted_s=STEADY) == (1, 1.0), "not the preferred one"
    assert endings.end(Down.LOST, now=NOW + UNSUPPORTED_FOR_S) == (0, 2.0)


def test_where_none_supports_anything_the_first_that_opens_is_waited_for() -> None:
    endings = Endings(2)
    endings.end(Down.UNSUPPORTED)
    assert endings.end(Down.UNSUPPORTED, now=NOW + 10) == (0, UNSUPPORTED_FOR_S - 10)
    assert endings.end(Down.UNSUPPORTED, now=NOW + 300) == (1, 10.0)


def test_a_single_endpoint() -> None:
    endings = Endings(1)
    assert endings.end(Down.MUTE) == (0, 1.0)
    assert endings.end(Down.CLOSED) == (0, 2.0)
    assert endings.end(Down.UNSUPPORTED) == (0, UNSUPPORTED_FOR_S)
