"""Amounts survive text both ways, and what is no amount of USDC is refused."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncepaid.domain.money import (
    MAX_UNITS,
    UNITS_PER_USDC,
    Units,
    format_usdc,
    parse_usdc,
    units_of_price,
)


@given(st.integers(0, MAX_UNITS) | st.integers(0, 10**9))
def test_a_formatted_amount_parses_back(units: int) -> None:
    text = format_usdc(units)
    assert parse_usdc(text) == units
    assert parse_usdc(Decimal(text)) == units
    assert len(text.partition(".")[2]) == 6


@given(st.integers(0, 10**30), st.integers(0, 6), st.data())
def test_up_to_six_decimals_are_read_exactly(whole: int, places: int, data: st.DataObject) -> None:
    fraction = data.draw(st.text("0123456789", min_size=places, max_size=places))
    text = f"{whole}.{fraction}"
    assert Fraction(parse_usdc(text), UNITS_PER_USDC) == Fraction(text.rstrip("."))


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("0", 0),
        ("-0", 0),
        ("1", 1_000_000),
        ("1.50", 1_500_000),
        ("0.1", 100_000),
        ("0.000001", 1),
        ("1.0000000", 1_000_000),
        ("1e3", 1_000_000_000),
        ("1E-6", 1),
        (Decimal("2.5"), 2_500_000),
        (format_usdc(MAX_UNITS), MAX_UNITS),
    ],
)
def test_amounts(text: str | Decimal, units: int) -> None:
    assert parse_usdc(text) == units


@pytest.mark.parametrize(
    "text",
    [
        "",
        "one",
        "1,5",
        "$1",
        "0x10",
        "1.2.3",
        "nan",
        "sNaN",
        "inf",
        "-Infinity",
        "-1",
        "-0.000001",
        "0.0000001",
        "1.2345678",
        "1e-7",
        "0.30000000000000004",
        Decimal.from_float(0.1),
        Decimal("NaN"),
        "1e999999",
        "1e-999999",
        "1e999999999999",
        "1e-999999999999",
        "1e99999999999999999999",
        "9" * 100_000,
        "0." + "9" * 100_000,
        format_usdc(MAX_UNITS + 1),
    ],
    ids=lambda text: str(text)[:24],
)
def test_what_is_no_amount_is_refused(text: str | Decimal) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any sentence will do
        parse_usdc(text)


@given(st.text())
def test_any_text_is_an_amount_or_a_value_error(text: str) -> None:
    try:
        units = parse_usdc(text)
    except ValueError:
        return
    assert 0 <= units <= MAX_UNITS


@pytest.mark.parametrize(
    ("price", "units"),
    [
        (None, None),
        (Decimal("NaN"), None),
        (Decimal("sNaN"), None),
        (Decimal("Infinity"), None),
        (Decimal("-Infinity"), None),
        (Decimal("-0.01"), None),
        (Decimal("1e15"), None),
        (Decimal("1e999999"), None),
        (Decimal(0), 0),
        (Decimal("0.50"), 500_000),
        (Decimal("1.000000"), 1_000_000),
        (Decimal("1.0000001"), 1_000_001),
        (Decimal("1.0000009"), 1_000_001),
        (Decimal("0.0000001"), 1),
        (Decimal("1e-100000"), 1),
        (Decimal("999999999999999.999999"), 10**21 - 1),
        (Decimal("999999999999999.9999999"), 10**21),
    ],
    ids=str,
)
def test_prices_of_a_hub(price: Decimal | None, units: int | None) -> None:
    assert units_of_price(price) == units


@given(st.decimals(min_value=0, max_value=10**15 - 1, allow_nan=False, allow_infinity=False))
def test_a_price_is_rounded_up_by_less_than_one_unit(price: Decimal) -> None:
    units = units_of_price(price)
    assert units is not None
    exact = Fraction(price) * UNITS_PER_USDC
    assert units - 1 < exact <= units


@pytest.mark.parametrize(
    ("units", "text"),
    [
        (0, "0.000000"),
        (1, "0.000001"),
        (1_500_000, "1.500000"),
        (-1, "-0.000001"),
        (-1_500_000, "-1.500000"),
    ],
)
def test_formatting(units: int, text: str) -> None:
    assert format_usdc(Units(units)) == text
