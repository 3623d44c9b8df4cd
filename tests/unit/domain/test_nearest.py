"""Which jobs stand beside a payment, in which order, and what is said to be between them."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from oncepaid.domain.desk import DeskJob
from oncepaid.domain.matching import MatchingRules
from oncepaid.domain.money import Units
from oncepaid.domain.nearest import MAX_NEAREST, Money, Nearness, nearest_jobs
from tests.unit.samples import GRACE, NOON, OTHER_SHOP, RULES, SHOP, job

USDC = 1_000_000
NO_GRACE = replace(RULES, late_grace=timedelta(0))


def near(number: int = 3, *, drawn: int | None = None, **changed: Any) -> DeskJob:
    """A pending job of 1 USDC; `drawn` is its unique amount, which is reserved."""
    desk = {name: changed.pop(name) for name in ("status", "paid_by") if name in changed}
    amount = None if drawn is None else Units(drawn)
    terms = job(number, **{"price": Units(USDC), "unique_amount": amount, **changed})
    made = DeskJob(terms=terms, uuid=f"uuid-{number}", status="pending", drawn_amount=amount)
    return replace(made, **desk)


def money(units: int, **changed: Any) -> Money:
    return replace(Money(units=Units(units), recipient=SHOP, block_time=NOON), **changed)


@pytest.mark.parametrize(
    ("units", "by", "terms", "words"),
    [
        (990_000, "price", {}, "short by 0.01 USDC of its price of 1.00 USDC"),
        (1_002_000, "price", {}, "0.002 USDC more than its price of 1.00 USDC"),
        (USDC, "price", {}, "exactly its price of 1.00 USDC"),
        (
            240_000,
            "named",
            {"partial": Units(750_000)},
            "short by 0.01 USDC of what it waits for, 0.25 USDC of 1.00 USDC",
        ),
        (
            1_000_100,
            "amount",
            {"drawn": 1_000_123},
            "short by 0.000023 USDC of its unique amount, 1.000123 USDC",
        ),
        (
            1_000_123,
            "amount",
            {"drawn": 1_000_123, "unique_amount": None},
            "exactly the unique amount that it once had, 1.000123 USDC",
        ),
        (
            USDC,
            "named",
            {"paid_by": (7,), "covered": Units(USDC), "status": "paid", "awaits_payment": False},
            "it has all of its 1.00 USDC; already paid by payment 7",
        ),
        (
            USDC,
            "named",
            {"awaits_payment": False, "status": "failed"},
            "exactly its price of 1.00 USDC; it is failed and waits for no money",
        ),
        (USDC, "named", {"price": None}, "it has no price"),
        (
            USDC,
            "named",
            {"pay_to": OTHER_SHOP},
            f"exactly its price of 1.00 USDC; it is paid at {OTHER_SHOP}",
        ),
    ],
)
def test_the_difference_in_words(units: int, by: str, terms: dict[str, Any], words: str) -> None:
    (found,) = nearest_jobs(money(units), {Nearness(by): [near(**terms)]}, RULES)
    status = terms.get("status", "pending")
    assert found.sentence == f"Job 3 (uuid-3, {status}): {words}."


@pytest.mark.parametrize(
    ("rules", "late", "words"),
    [
        (RULES, GRACE + timedelta(seconds=42),
         "; late by 42 s, after 2026-11-23 12:00:00 UTC and 1 h of grace."),
        (NO_GRACE, timedelta(seconds=42), "; late by 42 s, after 2026-11-23 12:00:00 UTC."),
        (RULES, GRACE, "exactly its price of 1.00 USDC."),
    ],
)  # fmt: skip
def test_lateness(rules: MatchingRules, late: timedelta, words: str) -> None:
    came = money(USDC, block_time=NOON + late)
    (found,) = nearest_jobs(came, {Nearness.NAMED: [near()]}, rules)
    assert found.sentence.endswith(words)


def test_the_nearest_come_first_and_each_once() -> None:
    """What is named comes before all; then the smaller difference, by amount or by price."""
    named = near(1, price=Units(9 * USDC))
    both = near(2, drawn=1_000_400)
    closer = near(4, drawn=1_000_010, price=Units(900_000))
    candidates = {
        Nearness.PRICE: [both, named, near(5, price=Units(999_950)), near(6), near(7), near(8)],
        Nearness.AMOUNT: [both, closer],
        Nearness.NAMED: [named],
    }
    found = nearest_jobs(money(USDC), candidates, RULES)
    assert len(found) == MAX_NEAREST
    assert [(one.job.terms.id, one.by, one.difference) for one in found] == [
        (1, "named", -8 * USDC),
        (2, "price", 0),
        (6, "price", 0),
        (7, "price", 0),
        (8, "price", 0),
    ]
    found = nearest_jobs(money(1_000_020), {**candidates, Nearness.PRICE: [both]}, RULES)
    assert [(one.job.terms.id, one.by) for one in found] == [
        *((1, "named"), (4, "amount"), (2, "price"))
    ]


def test_nothing_is_near() -> None:
    assert nearest_jobs(money(USDC), {}, RULES) == []
