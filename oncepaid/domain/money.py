"""Amounts of USDC as integers of base units: the token has 6 decimals, 1 USDC is 10^6 units."""

from decimal import ROUND_UP, Decimal, InvalidOperation
from typing import Final, NewType

Units = NewType("Units", int)

USDC_DECIMALS: Final = 6
UNITS_PER_USDC: Final = 10**USDC_DECIMALS
MAX_UNITS: Final = 2**256 - 1
"""A `uint256` can hold no more; a hostile token contract can emit it."""


def parse_usdc(text: str | Decimal) -> Units:
    """Return the units of a decimal amount of USDC, `"1.50"` → `1500000`.

    Raises `ValueError` for what is not a finite, non-negative number of at most 6 decimals.
    """
    try:
        amount = Decimal(text)
    except (InvalidOperation, TypeError) as exc:
        raise ValueError(f"{text!r} is not a decimal amount of USDC") from exc
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{text!r} is not a finite, non-negative amount of USDC")
    # `Decimal` arithmetic rounds to 28 digits; shifting the exponent by hand does not.
    _, digits, exponent = amount.as_tuple()
    assert isinstance(exponent, int), "a finite Decimal has a numeric exponent"
    shift = exponent + USDC_DECIMALS
    significand = int("".join(map(str, digits)) or "0")
    if shift >= 0:
        units = significand * 10**shift if shift < 100 else MAX_UNITS + 1
    else:
        units, rest = divmod(significand, 10**-shift) if shift > -100 else (0, significand)
        if rest:
            raise ValueError(f"{text!r} has more than {USDC_DECIMALS} decimals")
    if units > MAX_UNITS:
        raise ValueError(f"{text!r} is more than a uint256 can hold")
    return Units(units)


def units_of_price(price_usdc: Decimal | None) -> Units | None:
    """Return the units of a price from the database, rounded up to the next unit.

    A hub's column may carry more than 6 decimals; rounding up never sells below the price. None
    for what is no price: null, NaN, an infinity, a negative or an absurdly large number.
    """
    if price_usdc is None or not price_usdc.is_finite() or not 0 <= price_usdc < 10**15:
        return None
    return parse_usdc(price_usdc.quantize(Decimal(1).scaleb(-USDC_DECIMALS), rounding=ROUND_UP))


def excess(units: Units, *, price: Units, unique_amount: Units | None) -> Units:
    """Return what a sum is above a price; a job's unique amount is what we asked for."""
    return Units(0 if units == unique_amount else max(units - price, 0))


def format_usdc(units: int) -> str:
    """Return `1500000` as `"1.500000"`: always 6 decimals, no separators, `-` for a negative."""
    whole, fraction = divmod(abs(units), UNITS_PER_USDC)
    return f"{'-' if units < 0 else ''}{whole}.{fraction:0{USDC_DECIMALS}d}"
