"""Waiting times grow, stay within their bounds, and never overflow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncepaid.domain.retrying import GENERATION_BACKOFF, LOOP_BACKOFF, RECONNECT_BACKOFF, Backoff

ALL = [LOOP_BACKOFF, RECONNECT_BACKOFF, GENERATION_BACKOFF]
backoffs = st.sampled_from(ALL)
below_one = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("failures", "ceiling_s"),
    [(-5, 2.0), (0, 2.0), (1, 2.0), (2, 4.0), (3, 8.0), (8, 256.0), (9, 300.0), (10**9, 300.0)],
)
def test_the_ceiling_doubles_up_to_the_cap(failures: int, ceiling_s: float) -> None:
    backoff = Backoff(base_s=2.0, cap_s=300.0)
    assert backoff.delay_s(failures, lambda: 1.0) == ceiling_s
    assert backoff.delay_s(failures, lambda: 0.5) == ceiling_s / 2
    assert backoff.delay_s(failures, lambda: 0.0) == 0.0


@given(backoffs, st.integers(0, 10**12), below_one)
def test_every_delay_lies_between_floor_and_cap(
    backoff: Backoff, failures: int, drawn: float
) -> None:
    assert backoff.floor_s <= backoff.delay_s(failures, lambda: drawn) <= backoff.cap_s


@given(backoffs, st.integers(1, 100), below_one)
def test_another_failure_never_shortens_the_wait(
    backoff: Backoff, failures: int, drawn: float
) -> None:
    sooner = backoff.delay_s(failures, lambda: drawn)
    assert sooner <= backoff.delay_s(failures + 1, lambda: drawn)


@pytest.mark.parametrize("backoff", ALL)
def test_no_backoff_of_ours_can_storm(backoff: Backoff) -> None:
    assert 0 < backoff.floor_s <= backoff.base_s <= backoff.cap_s
    assert backoff.delay_s(1, lambda: 0.0) == backoff.floor_s
