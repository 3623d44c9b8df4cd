"""An existing database of a host application is adopted as it stands."""

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal

import asyncpg
import pytest

from db.catalogue import CatalogueStore, Destination, Offer
from db.jobs import JobStore
from db.migrate import migrate
from db.orders import OrderStore
from db.payments import PaymentStore
from db.pool import Database
from oncepaid.domain.generation import AnsweredJob, Complete
from oncepaid.domain.jobs import JobId, JobStatus
from oncepaid.domain.money import units_of_price
from tests.integration.db import hub
from tests.integration.db.support import (
    CHAIN,
    MINUTE,
    SHOP,
    START,
    answered,
    execute,
    job_row,
    match,
    observed,
    row,
    rows,
    standing,
)

OLD_INSERT = """
INSERT INTO jobs (job_uuid, skill_id, input_data, price_usdc)
VALUES (gen_random_uuid(), 1, '{"prompt": "a bakery"}', 12.50) RETURNING id
"""


@pytest.fixture(params=hub.SHAPES)
def shape(request: pytest.FixtureRequest) -> hub.Shape:
    return hub.SHAPES[request.param]


@pytest.fixture
async def connection(empty_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the hub's own, without any of our settings."""
    opened = await asyncpg.connect(empty_url)
    yield opened
    await opened.close()


@pytest.fixture
async def database(empty_url: str) -> AsyncIterator[Database]:
    opened = await Database.connect(empty_url, size=1)
    yield opened
    await opened.close()


async def test_old_rows_stay_as_they_are(
    database: Database, connection: asyncpg.Connection, shape: hub.Shape
) -> None:
    await hub.build(connection, shape)
    columns = {t: await hub.columns_of(connection, t) for t in ("skills", "jobs", "agents")}
    before = await hub.contents(connection, columns)
    assert len(before["jobs"]) == 2 * len((*hub.OLD_STATUSES, *shape.more_statuses))

    await migrate(database)

    assert await hub.contents(connection, columns) == before
    keys = await rows(database, "SELECT service_key FROM skills ORDER BY id")
    assert [key["service_key"] for key in keys] == list(hub.SERVICE_KEYS)
    memos = await rows(database, "SELECT DISTINCT memo FROM jobs WHERE octet_length(memo) = 16")
    assert len(memos) == len(before["jobs"])
    # What the hub left as paid or in progress is the hub's to do.
    assert await JobStore(database).claim(1000, MINUTE) == []
    await _statuses_are_wide(database, shape)


async def _statuses_are_wide(database: Database, shape: hub.Shape) -> None:
    for status in (*JobStatus, *shape.more_statuses):
        await execute(database, "UPDATE jobs SET status = $1 WHERE id = 2", status)
    if shape.checks or "CHECK" in shape.status_type + shape.after:
        with pytest.raises(asyncpg.CheckViolationError):
            await execute(database, "UPDATE jobs SET status = 'nonsense' WHERE id = 2")


async def test_new_jobs_are_paid_and_done(
    database: Database, connection: asyncpg.Connection, shape: hub.Shape
) -> None:
    await hub.build(connection, shape)
    await migrate(database)
    await connection.execute("SET timezone TO 'America/Los_Angeles'")
    by_memo = JobId(await connection.fetchval(OLD_INSERT))
    by_amount = JobId(await connection.fetchval(OLD_INSERT))

    await _pay(database, by_memo, by_amount)
    await _do(database, by_memo, by_amount)

    await _pay_old_jobs(database, shape)
    await _start_daemon(database, shape)


async def _pay(database: Database, by_memo: JobId, by_amount: JobId) -> None:
    first, second = await job_row(database, by_memo), await job_row(database, by_amount)
    price = units_of_price(first["price_usdc"])
    assert price == 12_500_000
    assert price < second["unique_amount_units"] < price + 10_000
    expiry = await row(
        database, "SELECT expires_at::timestamptz AS at FROM jobs WHERE id = $1", by_memo
    )
    assert abs(expiry["at"] - START - timedelta(hours=24)) < timedelta(minutes=10)

    payments = (observed(price, first["memo"]), observed(second["unique_amount_units"]))
    ids = await match(database, *payments)
    assert await standing(database, ids) == [("matched", None), ("matched", None)]
    await PaymentStore(database, CHAIN).credit(ids)


async def _do(database: Database, *jobs: JobId) -> None:
    work = JobStore(database)
    claimed = await work.claim(10, MINUTE)
    assert {(job.id, job.service_key) for job in claimed} == {
        (job, "creativeconcept") for job in jobs
    }
    for job in claimed:
        assert job.input_json is not None
        assert "a bakery" in job.input_json
        assert await work.record_if_leased(job.attempt, answered())
    await work.finish_answered(_complete, lambda _: timedelta(0), 10)
    for job_id in jobs:
        finished = await row(
            database, "SELECT status, output_data::jsonb AS out FROM jobs WHERE id = $1", job_id
        )
        assert finished == {"status": "completed", "out": {"title": "Crumbs"}}


async def _pay_old_jobs(database: Database, shape: hub.Shape) -> None:
    pending = await rows(
        database, "SELECT memo FROM jobs WHERE status = 'pending' AND price_usdc > 0"
    )
    ids = await match(database, *(observed(12_250_000, job["memo"]) for job in pending))
    expected: tuple[str, str | None] = ("matched", None)
    if shape is hub.SHAPES["times of its own"]:
        expected = ("unmatched", "late")
    assert await standing(database, ids) == [expected] * len(pending)


async def _start_daemon(database: Database, shape: hub.Shape) -> None:
    """The settings' services become skills where the hub's own constraints allow it."""
    offer = Offer(service_key="new", name="New", description=None, price_usdc=Decimal("0.25"))
    known = Offer(service_key="creativeconcept", name="x", description=None, price_usdc=Decimal(1))
    refused = await CatalogueStore(database).publish(
        job_lifetime=timedelta(hours=1),
        amount_fallback=True,
        destination=Destination(chain_id=CHAIN, token=SHOP, token_name="x", recipient=None),
        offers=[offer, known],
    )
    assert refused == (["new"] if "NOT NULL" in shape.agent_type else [])
    order = await OrderStore(database).create(
        service_key="creativeconcept", input_data={"prompt": "x"}, price_usdc=None, pay_to=None
    )
    assert order is not None
    assert order.price_usdc == Decimal("12.5")
    assert order.expires_at is not None
    assert order.expires_at.tzinfo is not None


@pytest.mark.parametrize("table", ["skills", "jobs"])
async def test_prices_are_widened_where_nothing_depends_on_them(
    database: Database, connection: asyncpg.Connection, table: str
) -> None:
    await hub.build(connection, hub.SHAPES["narrow price"])
    await migrate(database)
    changed = await row(
        database, f"UPDATE {table} SET price_usdc = 0.000123 WHERE id = 1 RETURNING price_usdc"
    )
    assert changed == {"price_usdc": Decimal("0.000123")}


def _complete(job: AnsweredJob) -> Complete:
    assert job.result.output is not None
    return Complete(output=job.result.output)
