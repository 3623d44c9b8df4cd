"""Amounts and times in sentences."""

from datetime import UTC, datetime, timedelta

import pytest

from oncepaid.domain.wording import listed, moment, span, usdc


@pytest.mark.parametrize(
    ("units", "text"),
    [
        (0, "0.00 USDC"),
        (10_000, "0.01 USDC"),
        (2_000, "0.002 USDC"),
        (1_000_000, "1.00 USDC"),
        (1_000_001, "1.000001 USDC"),
        (1_230_000_000, "1230.00 USDC"),
        (-250_000, "-0.25 USDC"),
    ],
)
def test_amounts(units: int, text: str) -> None:
    assert usdc(units) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.9, "0 s"),
        (42, "42 s"),
        (-42, "42 s"),
        (60, "1 min"),
        (185, "3 min 5 s"),
        (3600, "1 h"),
        (7265, "2 h 1 min"),
        (86_400 * 3 + 7200, "3 d 2 h"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(timedelta(seconds=seconds)) == text


def test_lists_and_moments() -> None:
    assert [listed(["a", "b", "c"][:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
    assert moment(datetime(2026, 11, 23, 12, tzinfo=UTC)) == "2026-11-23 12:00:00 UTC"
