"""Payments that are credited and then leave the chain."""

from typing import Any

from db.payments import PaymentStore
from db.pool import Database
from db.ranges import RangeStore
from oncepaid.domain.payments import PaymentId
from tests.integration.db.support import (
    CHAIN,
    EPOCH,
    Job,
    cursor_at,
    header,
    job_row,
    match,
    observed,
    row,
)

PRICE = 1_000_000
LIMIT = 100


async def credit(database: Database, job: Job, *units: int) -> list[PaymentId]:
    """Pay a job with these amounts and credit it."""
    ids = await match(database, *(observed(one, job.memo) for one in units))
    crediting = await PaymentStore(database, CHAIN).credit(ids)
    assert len(crediting.credited) == len(ids)
    return ids


async def cursor_number(database: Database) -> int:
    return int((await row(database, "SELECT block_number FROM chain_cursor"))["block_number"])


async def orphan(database: Database, *ids: PaymentId) -> None:
    """Take these payments off the chain, as a second look does."""
    last = await cursor_number(database)
    await RangeStore(database, CHAIN).repair(
        last, [], ids, epoch=EPOCH, checked=0, anchor=cursor_at(last)
    )


async def rewind(database: Database, *ids: PaymentId) -> None:
    """Take the cursor back to block 0, and these payments off the chain."""
    cursor = cursor_at(await cursor_number(database))
    assert await RangeStore(database, CHAIN).rewind(cursor, header(0), ids, epoch=EPOCH)


async def state(database: Database, job: Job) -> dict[str, Any]:
    found = await job_row(database, job.id)
    return {key: found[key] for key in ("status", "credited_units", "is_unbacked")}
