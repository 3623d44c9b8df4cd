"""The view `job_payment_terms` tells host applications what `oncepaid job create` prints."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Final

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from db.catalogue import CatalogueStore, Destination
from db.migrate import migrate
from db.orders import OrderStore
from db.pool import Database
from oncepaid.domain.chain import Address
from oncepaid.domain.errors import NoFreeAmount
from oncepaid.domain.memo import Memo, envelope_of
from oncepaid.domain.money import units_of_price
from oncepaid.offers import publish_offers
from oncepaid.paying import PayingTerms, instructions
from oncepaid.settings import ChainSettings, Settings
from tests.integration.db import hub
from tests.integration.db.support import SHOP, add_job, add_skill, execute, row, rows

USDC: Final = Address("0x833589fcd6edb6e08f4c7c32d4f71b54bda02913")
OTHER: Final = Address("0x" + "0d" * 20)
BASE: Final = Destination(chain_id=8453, token=USDC, token_name="USD Coin", recipient=SHOP)
SEPOLIA: Final = Destination(
    chain_id=84532,
    token=Address("0x036cbd53842c5426634e7929541ec2318f3dcf7e"),
    token_name="USDC",
    recipient=OTHER,
)
PAYABLE: Final = (
    "recipient", "calldata", "eip681_uri", "eth_send_transaction", "wallet_send_calls",
    "typed_data",
)  # fmt: skip

VIEW: Final = "SELECT * FROM job_payment_terms WHERE job_id = $1"
IN_HOST_TIME: Final = "SET timezone TO 'America/Los_Angeles'"


async def publish(database: Database, destination: Destination = BASE) -> None:
    await CatalogueStore(database).publish(
        job_lifetime=timedelta(hours=1),
        amount_fallback=True,
        destination=destination,
        offers=[],
    )


async def told(database: Database, job_id: int) -> dict[str, Any]:
    return await row(database, VIEW, job_id)


def expected(job: dict[str, Any], destination: Destination) -> dict[str, Any]:
    """What `job create` would print of a row of `jobs` that can be paid."""
    price = units_of_price(job["price_usdc"])
    recipient: Address | None = job["pay_to"] or destination.recipient
    assert price is not None
    assert recipient is not None
    return instructions(
        PayingTerms(
            chain_id=destination.chain_id,
            token=destination.token,
            recipient=recipient,
            price=price,
            memo=Memo(job["memo"]),
            unique_amount=job["unique_amount"],
            expires_at=job["expires_at"],
        )
    )


async def job_as_stored(database: Database, job_id: int) -> dict[str, Any]:
    return await row(
        database,
        """
        SELECT price_usdc, lower(pay_to) AS pay_to, memo,
               CASE WHEN amount_is_held THEN unique_amount_units END AS unique_amount,
               nullif(expires_at::timestamptz, 'infinity') AS expires_at
          FROM jobs WHERE id = $1
        """,
        job_id,
    )


async def agrees(database: Database, job_id: int, destination: Destination = BASE) -> None:
    view = await told(database, job_id)
    job = await job_as_stored(database, job_id)
    names = await row(database, "SELECT id, job_uuid, status FROM jobs WHERE id = $1", job_id)
    assert view == expected(job, destination) | {
        "job_id": names["id"],
        "job_uuid": names["job_uuid"],
        "status": names["status"],
    }


prices = st.decimals(0, 10**9, places=6)
times = st.datetimes(datetime(1960, 1, 1), datetime(9999, 12, 30), timezones=st.just(UTC))
addresses = st.sampled_from([None, SHOP, OTHER, "0x" + "Ab" * 20])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prices, addresses, times, st.booleans(), st.sampled_from([BASE, SEPOLIA]))
async def test_a_row_is_what_job_create_prints(
    database: Database,
    price: Decimal,
    pay_to: str | None,
    expires_at: datetime,
    is_held: bool,
    destination: Destination,
) -> None:
    await publish(database, destination)
    job = await add_job(database, price=str(price), pay_to=pay_to, expires_at=expires_at)
    if not is_held:
        await execute(database, "UPDATE jobs SET amount_is_held = false WHERE id = $1", job.id)
    await agrees(database, job.id, destination)


async def test_an_order_is_told_alike(database: Database) -> None:
    await publish(database)
    await add_skill(database)
    order = await OrderStore(database).create(
        service_key="creativeconcept",
        input_data={"prompt": "a bakery"},
        price_usdc=Decimal("0.50"),
        pay_to=None,
    )
    assert order is not None
    assert order.unique_amount_units is not None
    view = await told(database, order.id)
    assert view["memo_envelope"] == "0x" + envelope_of(order.memo).hex()
    assert view["unique_amount_units"] == order.unique_amount_units
    assert view["expires_at"] == order.expires_at
    assert view["amount_usdc"] == "0.500000"
    await agrees(database, order.id)


async def test_an_order_that_gets_no_unique_amount(database: Database) -> None:
    await publish(database)
    await add_skill(database)
    await execute(
        database,
        """
        INSERT INTO retired_amounts (unique_amount_units, pay_to, expires_at)
        SELECT 500000 + n, '', now() FROM generate_series(1, 9999) n
        """,
    )
    order = partial(
        OrderStore(database).create,
        service_key="creativeconcept",
        input_data={"prompt": "a bakery"},
        pay_to=None,
    )
    with pytest.raises(NoFreeAmount, match=r"^no unique amount is free .* 9999 of 9999 .*$"):
        await order(price_usdc=Decimal("0.5"))
    assert await rows(database, "SELECT id FROM jobs") == []
    assert await order(price_usdc=Decimal("0.6")) is not None


@pytest.mark.parametrize("price", [None, "NaN", "Infinity", "-0.000001", "1000000000000000"])
async def test_a_job_without_a_price_has_no_way_to_be_paid(
    own_database: Database, price: str | None
) -> None:
    await publish(own_database)
    await execute(own_database, "ALTER TABLE jobs ALTER COLUMN price_usdc TYPE numeric")
    job = await add_job(own_database)
    new_price = None if price is None else Decimal(price)
    await execute(own_database, "UPDATE jobs SET price_usdc = $1", new_price)
    assert units_of_price(new_price) is None
    view = await told(own_database, job.id)
    assert {view[name] for name in PAYABLE[1:]} == {None}
    assert (view["amount_units"], view["amount_usdc"]) == (None, None)
    assert view["memo_envelope"] == "0x" + envelope_of(Memo(job.memo)).hex()


@pytest.mark.parametrize("price", ["999999999999999.9999995", "18446744073709.551616", "0.0000001"])
async def test_a_price_wider_or_finer_than_usual(own_database: Database, price: str) -> None:
    await publish(own_database)
    await execute(own_database, "ALTER TABLE jobs ALTER COLUMN price_usdc TYPE numeric")
    job = await add_job(own_database, price=price)
    await agrees(own_database, job.id)


@pytest.mark.parametrize("pay_to", ["", "0x", "me", "0x" + "g" * 40, " " + SHOP, "0x" + "a" * 41])
async def test_a_recipient_that_is_no_address_is_not_told(database: Database, pay_to: str) -> None:
    await publish(database)
    job = await add_job(database, pay_to=pay_to)
    view = await told(database, job.id)
    assert {view[name] for name in PAYABLE} == {None}


async def test_without_a_recipient_of_ours_only_jobs_that_name_one_are_told(
    database: Database,
) -> None:
    nobody = replace(BASE, recipient=None)
    await publish(database, nobody)
    named = await add_job(database, pay_to=OTHER)
    unnamed = await add_job(database)
    view = await told(database, unnamed.id)
    assert {view[name] for name in PAYABLE} == {None}
    await agrees(database, named.id, nobody)


@pytest.mark.parametrize(
    ("recipients", "first"), [((SHOP, OTHER), SHOP), (("*",), None), ((), None)]
)
async def test_the_settings_say_where_to(
    database: Database, recipients: tuple[str, ...], first: str | None
) -> None:
    chain = ChainSettings(chain_id=84532, token=SEPOLIA.token, recipients=recipients)
    await publish_offers(database, Settings(chain=chain), {})
    job = await add_job(database)
    view = await told(database, job.id)
    assert (view["chain_id"], view["token"], view["recipient"]) == (84532, SEPOLIA.token, first)
    if first is not None:
        assert view["typed_data"]["domain"]["name"] == "USDC"


async def test_before_a_daemon_has_started_nothing_is_told(database: Database) -> None:
    job = await add_job(database, pay_to=OTHER)
    view = await told(database, job.id)
    assert {view[name] for name in ("token", "chain_id", *PAYABLE[2:])} == {None}
    assert view["memo_envelope"] == "0x" + envelope_of(Memo(job.memo)).hex()


async def test_a_job_that_never_expires(own_database: Database) -> None:
    await publish(own_database)
    job = await add_job(own_database)
    await execute(own_database, "ALTER TABLE jobs ALTER COLUMN expires_at DROP NOT NULL")
    await execute(own_database, "UPDATE jobs SET expires_at = NULL")
    await agrees(own_database, job.id)
    await execute(own_database, "UPDATE jobs SET expires_at = 'infinity'")
    view = await told(own_database, job.id)
    assert view["typed_data"]["message"]["validBefore"] == str(2**256 - 1)


@pytest.fixture(params=hub.SHAPES)
def shape(request: pytest.FixtureRequest) -> hub.Shape:
    return hub.SHAPES[request.param]


@pytest.fixture
async def adopted(empty_url: str, shape: hub.Shape) -> AsyncIterator[Database]:
    """A hub's database after its adoption, with its old rows and one new one."""
    connection = await asyncpg.connect(empty_url)
    await hub.build(connection, shape)
    opened = await Database.connect(empty_url, size=1)
    await migrate(opened)
    await publish(opened)
    await connection.execute(
        "INSERT INTO jobs (job_uuid, skill_id, input_data) VALUES (gen_random_uuid(), 1, '{}')"
    )
    await connection.close()
    yield opened
    await opened.close()


async def test_every_row_of_a_hub_is_told(adopted: Database, empty_url: str) -> None:
    jobs = await rows(adopted, "SELECT id, price_usdc FROM jobs")
    priced = [job["id"] for job in jobs if job["price_usdc"] is not None]
    assert 0 < len(priced) < len(jobs)
    for job_id in priced:
        await agrees(adopted, job_id)
    sql = "SELECT job_id, typed_data::text, expires_at FROM job_payment_terms ORDER BY job_id"
    connection = await asyncpg.connect(empty_url)
    await connection.execute(IN_HOST_TIME)
    assert [dict(row) for row in await connection.fetch(sql)] == await rows(adopted, sql)
    await connection.close()
    unpriced = await rows(adopted, "SELECT * FROM job_payment_terms WHERE amount_units IS NULL")
    assert len(unpriced) == len(jobs) - len(priced)
    assert {row[name] for row in unpriced for name in PAYABLE[1:]} == {None}


async def test_a_host_may_still_change_its_columns(own_database: Database) -> None:
    await publish(own_database)
    job = await add_job(own_database)
    await execute(
        own_database,
        """
        ALTER TABLE jobs ALTER COLUMN status TYPE varchar(40), ALTER COLUMN pay_to TYPE varchar(99),
            ALTER COLUMN price_usdc TYPE numeric(30, 8), ALTER COLUMN expires_at TYPE timestamp
        """,
    )
    await agrees(own_database, job.id)


async def test_the_right_to_read_the_view_is_enough(database: Database) -> None:
    await publish(database)
    job = await add_job(database)
    async with database.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(
            """
            CREATE ROLE shop_window;
            GRANT SELECT ON job_payment_terms TO shop_window;
            SET LOCAL ROLE shop_window
            """
        )
        found = await connection.fetchrow(VIEW, job.id)
        await transaction.rollback()
    assert found is not None
    assert found["calldata"] is not None


@pytest.mark.parametrize(
    ("sql", "hashes"),
    [
        ("SELECT * FROM job_payment_terms", 3),
        ("SELECT * FROM job_payment_terms WHERE job_id = 2", 1),
        ("SELECT calldata, typed_data FROM job_payment_terms WHERE status = 'paid'", 1),
        ("SELECT * FROM job_payment_terms WHERE status = 'failed'", None),
        ("SELECT recipient, unique_amount_usdc, eip681_uri FROM job_payment_terms", None),
    ],
)
async def test_one_hash_a_row_and_none_where_it_is_not_needed(
    database: Database, sql: str, hashes: int | None
) -> None:
    await publish(database)
    for status in ("pending", "paid", "pending"):
        await add_job(database, status=status)
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL track_functions = 'pl'")
        await connection.fetch(sql)
        calls = await connection.fetchval(
            "SELECT calls FROM pg_stat_xact_user_functions WHERE funcname = 'oncepaid_keccak256'"
        )
    assert calls == hashes


@pytest.mark.parametrize(
    ("condition", "column"),
    [
        ("job_id = 5", "id"),
        ("job_uuid = '00000000-0000-0000-0000-000000000000'", "job_uuid"),
        ("status = 'x'", "status"),
    ],
)
async def test_the_indexes_of_jobs_are_used(
    database: Database, condition: str, column: str
) -> None:
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL enable_seqscan = off")
        plan = await connection.fetch(f"EXPLAIN SELECT * FROM job_payment_terms WHERE {condition}")
    lines = [line["QUERY PLAN"].strip() for line in plan]
    assert any(line.startswith(f"Index Cond: ({column} = ") for line in lines), lines
