"""What a Claude call costs."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from oncepaid.domain.generation import AttemptResult

_MILLION: Final = Decimal(1_000_000)
_MICRO: Final = Decimal("0.000001")


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Dollars for a million tokens, as the provider lists them."""

    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal


def cost_of(result: AttemptResult, price: Price) -> Decimal | None:
    """Return the dollars of an attempt, to the millionth; None where no usage is known.

    Cached input is counted at the full price: an upper bound.
    """
    if result.input_tokens is None or result.output_tokens is None:
        return None
    dollars = (
        result.input_tokens * price.input_usd_per_mtok
        + result.output_tokens * price.output_usd_per_mtok
    ) / _MILLION
    return dollars.quantize(_MICRO)
