"""What a Claude call costs."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from oncepaid.domain.generation import AttemptResult, Outcome

_MILLION: Final = Decimal(1_000_000)
_MICRO: Final = Decimal("0.000001")


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Dollars for a million tokens, as the provider lists them."""

    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal


DEAREST: Final = Price(input_usd_per_mtok=Decimal(10), output_usd_per_mtok=Decimal(50))
"""What the dearest current model costs (price list of 2026-11): for models without a price, so that
limits hold."""

_MAYBE_BILLED: Final = frozenset({Outcome.TIMED_OUT, Outcome.UNREADABLE})
"""The request was sent, and what came of it is unknown: the provider may have charged for it."""


def cost_of(
    result: AttemptResult, price: Price, *, prompt_bytes: int, max_tokens: int
) -> Decimal | None:
    """Return the dollars of an attempt, to the millionth; None where nothing was charged.

    Cached input is counted at the full price, and a call whose usage is unknown at the most that it
    can have cost (a token has at least a byte): upper bounds, so that limits hold.
    """
    tokens_in, tokens_out = result.input_tokens, result.output_tokens
    if tokens_in is None or tokens_out is None:
        if result.outcome not in _MAYBE_BILLED:
            return None
        tokens_in, tokens_out = prompt_bytes, max_tokens
    dollars = (
        tokens_in * price.input_usd_per_mtok + tokens_out * price.output_usd_per_mtok
    ) / _MILLION
    return dollars.quantize(_MICRO)
