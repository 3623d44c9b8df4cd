"""What came in above a price is recorded, and forgotten with the money that it came from."""

from decimal import Decimal
from typing import Final

import pytest

from db.payments import PaymentStore
from db.pool import Database
from db.reversals import ReversalStore
from db.reversals import overpaid as overpaid_sql
from oncepaid.domain.money import Units, excess, units_of_price
from oncepaid.domain.reversal import reverse
from tests.integration.db.credits import LIMIT, PRICE, credit, orphan
from tests.integration.db.support import (
    CHAIN,
    Job,
    add_job,
    execute,
    job_row,
    match,
    observed,
    rows,
)

HALF: Final = PRICE // 2


async def overpaid(database: Database, job: Job) -> int:
    return int((await job_row(database, job.id))["overpaid_units"])


@pytest.mark.parametrize(
    ("parts", "above"),
    [
        ((PRICE,), 0),
        ((PRICE + 1,), 1),
        ((3 * PRICE,), 2 * PRICE),
        ((HALF, HALF), 0),
        ((HALF, HALF - 1, HALF), HALF - 1),
    ],
)
async def test_the_sum_of_the_parts_counts(
    database: Database, parts: tuple[int, ...], above: int
) -> None:
    job = await add_job(database)
    await credit(database, job, *parts)
    assert await overpaid(database, job) == above


@pytest.mark.parametrize("with_memo", [True, False])
async def test_the_unique_amount_is_what_was_asked_for(database: Database, with_memo: bool) -> None:
    job = await add_job(database)
    assert job.unique_amount is not None
    ids = await match(database, observed(job.unique_amount, job.memo if with_memo else None))
    assert len((await PaymentStore(database, CHAIN).credit(ids)).credited) == 1
    assert await overpaid(database, job) == 0


async def test_a_price_that_is_no_whole_unit_is_rounded_up(database: Database) -> None:
    job = await add_job(database, price="0.0000015")
    await credit(database, job, 5)
    assert await overpaid(database, job) == 3


async def test_sql_and_the_domain_say_the_same(database: Database) -> None:
    prices = [Decimal(text) for text in ("0", "0.000001", "0.0000015", "0.000002", "1", "999.5")]
    cases = [
        (Units(units), price, None if amount is None else Units(amount))
        for price in prices
        for amount in (None, 1, 3, PRICE + 7)
        for units in (0, 1, 2, 3, PRICE - 1, PRICE, PRICE + 1, PRICE + 7, 2**200)
    ]
    found = await rows(
        database,
        f"""
        SELECT {overpaid_sql("j.units", "j")} AS above
          FROM unnest($1::numeric[], $2::numeric[], $3::bigint[])
               WITH ORDINALITY AS j (units, price_usdc, unique_amount_units, n) ORDER BY n
        """,
        *map(list, zip(*cases, strict=True)),
    )
    for case, answer in zip(cases, found, strict=True):
        units, price_usdc, amount = case
        price = units_of_price(price_usdc)
        assert price is not None
        assert int(answer["above"]) == excess(units, price=price, unique_amount=amount), case


async def test_a_second_payment_is_no_excess(database: Database) -> None:
    job = await add_job(database)
    await credit(database, job, PRICE)
    await match(database, observed(PRICE, job.memo))
    assert await overpaid(database, job) == 0


@pytest.mark.parametrize(
    ("gone", "status", "above"), [(0, "paid", 0), (1, "pending", 0), (1, "completed", 0)]
)
async def test_with_the_money_goes_its_excess(
    database: Database, gone: int, status: str, above: int
) -> None:
    """What is left covers the price; the job is open again; its work was done for nothing."""
    job = await add_job(database)
    ids = await credit(database, job, HALF, PRICE)
    assert await overpaid(database, job) == HALF
    if status == "completed":
        await execute(database, "UPDATE jobs SET status = 'completed', completed_at = now()")
    await orphan(database, ids[gone])
    await ReversalStore(database, CHAIN).reverse_orphaned(reverse, LIMIT)
    stored = await job_row(database, job.id)
    assert (stored["status"], stored["overpaid_units"]) == (status, above)


async def test_money_that_makes_a_loss_good_counts_with_what_is_left(database: Database) -> None:
    job = await add_job(database)
    ids = await credit(database, job, HALF, PRICE)
    await execute(database, "UPDATE jobs SET status = 'completed', completed_at = now()")
    await orphan(database, ids[1])
    await ReversalStore(database, CHAIN).reverse_orphaned(reverse, LIMIT)
    again = await match(database, observed(PRICE, job.memo))
    assert len((await PaymentStore(database, CHAIN).credit(again)).credited) == 1
    assert await overpaid(database, job) == HALF
