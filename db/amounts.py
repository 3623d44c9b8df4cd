"""Unique amounts that no payment in time can carry any more: they are free to be drawn anew."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import asyncpg

from db.pool import HOST_REFUSES, Connection

MAX_ONE_BY_ONE: Final = 1000
"""Jobs that are looked at singly in one call, where a host refuses one of them."""

# For what a database tells who asks for an amount where none is free.
_SET_REST: Final = "UPDATE payment_terms SET amount_rest = $1 WHERE amount_rest IS DISTINCT FROM $1"

# The rest is taken from the block's time, for a host may store an expiry as late as there are any.
# A job without one never expires.
_OVER: Final = """
    SELECT least(block_time, now()) - $2::interval AS since FROM chain_cursor WHERE chain_id = $1
"""
_IS_OVER: Final = """
    amount_is_held AND greatest(latest_expiry, coalesce(expires_at, 'infinity')) < over.since
    AND NOT EXISTS (SELECT FROM payments p
                     WHERE p.status = 'seen' AND p.amount_units = jobs.unique_amount_units)
"""
_RELEASE: Final = f"""
WITH over AS ({_OVER}), free AS (
    SELECT jobs.id FROM jobs, over WHERE {_IS_OVER} AND ($3::bigint IS NULL OR jobs.id = $3)
     ORDER BY jobs.id FOR NO KEY UPDATE OF jobs SKIP LOCKED
)
UPDATE jobs SET amount_is_held = false FROM free WHERE jobs.id = free.id RETURNING jobs.id
"""
# Those that were refused the last time come last, and do not keep the others from their turn.
_DUE: Final = f"""
WITH over AS ({_OVER})
SELECT jobs.id, jobs.job_uuid::text AS job_uuid FROM jobs, over WHERE {_IS_OVER}
 ORDER BY jobs.job_uuid::text = ANY($3::text[]), jobs.id LIMIT $4
"""
_FORGET_RETIRED: Final = f"""
WITH over AS ({_OVER})
DELETE FROM retired_amounts r USING over
 WHERE r.expires_at < over.since
   AND NOT EXISTS (SELECT FROM payments p
                    WHERE p.status = 'seen' AND p.amount_units = r.unique_amount_units)
RETURNING r.unique_amount_units
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """How many amounts are free, and what the host said of each job that it did not let go."""

    count: int
    refused: dict[str, str] = field(default_factory=dict)


async def release(
    connection: Connection, chain_id: int, rest: timedelta, *, refused_before: AbstractSet[str]
) -> Released:
    """Free the amounts whose `rest` after their jobs' expiry is over, by the cursor's block.

    Where a host refuses one of the jobs they are freed one by one. Not for a transaction.
    """
    await connection.execute(_SET_REST, rest)
    # First what no host has a say in.
    forgotten = len(await connection.fetch(_FORGET_RETIRED, chain_id, rest))
    try:
        released = Released(count=len(await connection.fetch(_RELEASE, chain_id, rest, None)))
    except HOST_REFUSES:
        due = await connection.fetch(_DUE, chain_id, rest, list(refused_before), MAX_ONE_BY_ONE)
        released = await _one_by_one(connection, chain_id, rest, due)
    return Released(count=released.count + forgotten, refused=released.refused)


async def _one_by_one(
    connection: Connection, chain_id: int, rest: timedelta, due: list[asyncpg.Record]
) -> Released:
    count, refused = 0, {}
    for job in due:
        try:
            count += len(await connection.fetch(_RELEASE, chain_id, rest, job["id"]))
        except HOST_REFUSES as exc:
            refused[job["job_uuid"]] = str(exc)
    return Released(count=count, refused=refused)
