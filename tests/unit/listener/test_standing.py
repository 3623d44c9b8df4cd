"""How an endpoint stands after what it did, and which one is chosen."""

from collections.abc import Callable
from functools import reduce

import pytest

from listener.standing import (
    DISTRUST_REST_S,
    REFUSED_REST_S,
    RETURN_AFTER_S,
    SLOW_REST_S,
    Standing,
    answered,
    choose,
    distrusted,
    failed,
    healthiest_other,
    left,
    rate_limited,
    refused,
    slowed,
    succeeded,
)

Change = Callable[[Standing], Standing]


def rest_of(*changes: Change) -> float:
    """Return how long an endpoint rests after these, all at second 0."""
    return max(0.0, reduce(lambda one, change: change(one), changes, Standing()).rest_until)


def fails(one: Standing) -> Standing:
    return failed(one, 0.0)


def works(one: Standing) -> Standing:
    return succeeded(one)


def is_refused(one: Standing) -> Standing:
    return refused(one, 0.0)


def is_distrusted(one: Standing) -> Standing:
    return distrusted(one, 0.0)


def is_slow(one: Standing) -> Standing:
    return slowed(one, 0.0)


def limited(seconds: float | None) -> Change:
    return lambda one: rate_limited(one, 0.0, seconds)


RESTS: dict[str, tuple[list[Change], float]] = {
    "new": ([], 0.0),
    "a failure": ([fails], 1.0),
    "three": ([fails] * 3, 4.0),
    "very many": ([fails] * 5_000, 30.0),
    "success ends it": ([fails, fails, works], 0.0),
    "and the doubling": ([fails, fails, works, fails], 1.0),
    "another chain": ([is_refused], REFUSED_REST_S),
    "no more": ([is_refused, works], 0.0),
    "contradictions": ([is_distrusted], DISTRUST_REST_S),
    "are not forgiven": ([is_distrusted, works], DISTRUST_REST_S),
    "nor shortened": ([is_distrusted, fails, works], DISTRUST_REST_S),
    "slow": ([is_slow, works], SLOW_REST_S),
    "rate limit": ([limited(7.0)], 7.0),
    "rate limit without a word": ([limited(None)], 1.0),
    "twice without a word": ([limited(None), limited(None)], 2.0),
    "rate limit of a day": ([limited(86_400.0)], 60.0),
    "rate limit beside others": ([limited(7.0), limited(3.0), fails, is_slow, works], 7.0),
    "rate limit comes first": ([is_slow, limited(3.0)], 3.0),
}


@pytest.mark.parametrize(("changes", "rest_s"), RESTS.values(), ids=RESTS)
def test_rests(changes: list[Change], rest_s: float) -> None:
    assert rest_of(*changes) == rest_s


def test_only_a_rate_limit_keeps_requests_back() -> None:
    assert limited(7.0)(Standing()).is_rate_limited(6.9)
    assert not limited(7.0)(Standing()).is_rate_limited(7.0)
    assert not any(change(Standing()).is_rate_limited(0.1) for change in (fails, is_refused))


def test_up_is_what_answered_last_time() -> None:
    assert Standing().is_up(0.0)
    assert not fails(Standing()).is_up(0.5)
    assert not fails(Standing()).is_up(1e6), "a rest that is over is no answer"
    assert works(fails(Standing())).is_up(0.5)
    assert not is_distrusted(Standing()).is_up(0.5)
    assert is_distrusted(Standing()).is_up(DISTRUST_REST_S)


def test_slow_answers_count_in_a_row() -> None:
    two = reduce(answered, [9.0, 9.0], Standing())
    assert not two.is_slow
    assert answered(two, 5.1).is_slow
    assert not answered(answered(two, 5.0), 9.0).is_slow
    assert not slowed(answered(two, 9.0), 0.0).is_slow, "it gets three again after its rest"


def test_latency_is_a_moving_average() -> None:
    one = answered(Standing(), 1.0)
    assert one.latency_s == 1.0
    latency_s = answered(one, 2.0).latency_s
    assert latency_s is not None
    assert 1.0 < latency_s < 1.5


def test_the_way_back() -> None:
    away = left(fails(Standing()), 0.0)
    assert not away.may_return(RETURN_AFTER_S - 0.1)
    assert away.may_return(RETURN_AFTER_S)
    assert not left(is_refused(Standing()), 0.0).may_return(REFUSED_REST_S - 0.1)


@pytest.mark.parametrize(
    ("standings", "failed", "chosen"),
    [
        ([Standing()], None, 0),
        ([fails(Standing())], 0, 0),
        ([Standing(), Standing()], None, 0),
        ([fails(Standing()), Standing(), Standing()], 0, 1),
        ([is_refused(Standing()), fails(Standing())], 1, 1),
        ([is_refused(Standing()), is_slow(Standing()), limited(3.0)(Standing())], 0, 2),
        ([fails(Standing()), fails(Standing())], 0, 1),
        ([fails(Standing()), fails(Standing())], 1, 0),
    ],
)
def test_choices(standings: list[Standing], failed: int | None, chosen: int) -> None:
    assert choose(standings, 0.5, failed=failed) == chosen


@pytest.mark.parametrize(
    ("standings", "chosen"),
    [
        ([Standing()], 0),
        ([Standing(), fails(Standing())], 1),
        ([Standing(), fails(Standing()), works(Standing())], 2),
        ([Standing(), answered(Standing(), 2.0), answered(Standing(), 0.1)], 2),
        ([Standing(), is_refused(Standing()), fails(fails(Standing()))], 2),
    ],
)
def test_the_healthiest_other(standings: list[Standing], chosen: int) -> None:
    assert healthiest_other(standings, 0, 0.5) == chosen
