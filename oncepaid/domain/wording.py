"""Amounts, times and names as an operator reads them in a sentence."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from oncepaid.domain.money import format_usdc

_FEWEST_DECIMALS: Final = 2
_STEPS: Final = (("d", 86_400), ("h", 3_600), ("min", 60))


def usdc(units: int) -> str:
    """Return `250000` as `"0.25 USDC"`: as many decimals as it takes, and two at least."""
    whole, _, decimals = format_usdc(units).partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(_FEWEST_DECIMALS, '0')} USDC"


def span(time: timedelta) -> str:
    """Return `"42 s"`, `"3 min 5 s"`, `"2 h 1 min"`: the two largest units, cut below a second."""
    rest = int(abs(time).total_seconds())
    parts = []
    for unit, seconds in _STEPS:
        count, rest = divmod(rest, seconds)
        if count:
            parts.append(f"{count} {unit}")
    if rest or not parts:
        parts.append(f"{rest} s")
    return " ".join(parts[:2])


def moment(time: datetime) -> str:
    """Return a time that is in UTC."""
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def listed(names: Sequence[str]) -> str:
    """Return `"a"`, `"a and b"`, `"a, b and c"`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
