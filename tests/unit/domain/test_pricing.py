"""What a call costs, in exact decimals."""

from decimal import Decimal

import pytest

from oncepaid.domain.generation import AttemptResult, Outcome
from oncepaid.domain.pricing import Price, cost_of

SONNET = Price(input_usd_per_mtok=Decimal(2), output_usd_per_mtok=Decimal(10))


@pytest.mark.parametrize(
    ("input_tokens", "output_tokens", "price", "cost"),
    [
        (None, None, SONNET, None),
        (100, None, SONNET, None),
        (None, 100, SONNET, None),
        (0, 0, SONNET, Decimal(0)),
        (1_000_000, 0, SONNET, Decimal(2)),
        (0, 1_000_000, SONNET, Decimal(10)),
        (1, 0, SONNET, Decimal("0.000002")),
        (1234, 567, SONNET, Decimal("0.008138")),
        (
            3,
            0,
            Price(input_usd_per_mtok=Decimal("0.25"), output_usd_per_mtok=Decimal(0)),
            Decimal("0.000001"),
        ),
        (200_000, 21_333, SONNET, Decimal("0.61333")),
        (10**12, 10**12, SONNET, Decimal(12_000_000)),
        (5, 5, Price(input_usd_per_mtok=Decimal(0), output_usd_per_mtok=Decimal(0)), Decimal(0)),
    ],
)
def test_costs(
    input_tokens: int | None, output_tokens: int | None, price: Price, cost: Decimal | None
) -> None:
    result = AttemptResult(
        outcome=Outcome.SUCCEEDED,
        message="done",
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )
    assert cost_of(result, price, prompt_bytes=7, max_tokens=9) == cost


@pytest.mark.parametrize(
    ("outcome", "cost"),
    [
        (Outcome.TIMED_OUT, Decimal("0.0204")),
        (Outcome.UNREADABLE, Decimal("0.0204")),
        (Outcome.RATE_LIMITED, None),
        (Outcome.NO_CONNECTION, None),
        (Outcome.REFUSED, None),
    ],
)
def test_a_call_that_may_have_been_billed_is_booked_at_the_most_that_it_can_cost(
    outcome: Outcome, cost: Decimal | None
) -> None:
    result = AttemptResult(outcome=outcome, message="no usage is known")
    assert cost_of(result, SONNET, prompt_bytes=200, max_tokens=2000) == cost
