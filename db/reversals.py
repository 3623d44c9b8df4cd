"""Taking back what credited payments did to their jobs once their blocks are gone."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Final, assert_never

import asyncpg

from db.pool import HOST_REFUSES, Connection, Database
from oncepaid.domain.chain import TxHash
from oncepaid.domain.jobs import JobId
from oncepaid.domain.money import Units, units_of_price
from oncepaid.domain.payments import PaymentId
from oncepaid.domain.reversal import (
    Covered,
    Lose,
    RefusedReversal,
    Reopen,
    Reversal,
    ReversedCredit,
    ReversedPayment,
    Reversing,
)

HAS_UNREVERSED: Final = """EXISTS (
    SELECT FROM payments gone
     WHERE gone.job_id = jobs.id AND gone.status = 'orphaned'
       AND gone.orphaned_from = 'credited' AND gone.reversed_at IS NULL)"""
"""True of a row of `jobs` that was credited for money which left the chain since."""


def overpaid(units: str, job: str) -> str:
    """Return SQL for `oncepaid.domain.money.excess` of a sum for a job."""
    return f"""CASE WHEN {units} = {job}.unique_amount_units THEN 0
        ELSE greatest({units} - ceil({job}.price_usdc * 1000000), 0) END"""


# Whether there is anything to do, cheaply: it is asked every second.
_IS_NEEDED: Final = """
SELECT EXISTS (SELECT FROM payments
                WHERE status = 'orphaned' AND orphaned_from = 'credited' AND reversed_at IS NULL)
    OR EXISTS (SELECT FROM jobs WHERE is_unbacked AND status IN ('paid', 'in_progress'))
"""

# Shared with the listener's lock, so that no range is half-way to bring a block back.
_LOCK_CURSOR: Final = "SELECT FROM chain_cursor WHERE chain_id = $1 FOR SHARE"

_LOCK_JOBS: Final = """
SELECT id, job_uuid::text AS job_uuid, status, price_usdc::numeric AS price_usdc
  FROM jobs
 WHERE id IN (SELECT job_id FROM payments
               WHERE status = 'orphaned' AND orphaned_from = 'credited' AND reversed_at IS NULL
                 AND chain_id = $2)
 ORDER BY id LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
"""

# Read after the jobs are locked: nothing that changes them is under way any more.
_UNREVERSED: Final = """
SELECT id, job_id, tx_hash, amount_units FROM payments
 WHERE job_id = ANY($1::bigint[]) AND status = 'orphaned' AND orphaned_from = 'credited'
   AND reversed_at IS NULL
 ORDER BY id FOR UPDATE
"""

_REST: Final = """
SELECT job_id, sum(amount_units) AS units FROM payments
 WHERE job_id = ANY($1::bigint[]) AND status = 'credited' GROUP BY job_id
"""

# Work that was begun for money that is gone, and that ended without a result: nothing was lost.
_LOCK_GIVEN_UP: Final = f"""
SELECT id, job_uuid::text AS job_uuid, attempt_id FROM jobs
 WHERE is_unbacked AND NOT {HAS_UNREVERSED}
   AND (status = 'paid' OR (status = 'in_progress' AND lease_until < now()))
 ORDER BY id LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
"""

_COVER: Final = f"""
UPDATE jobs SET credited_units = $2, overpaid_units = {overpaid("$2::numeric", "jobs")}
 WHERE id = $1
"""

_LOSE: Final = """
UPDATE jobs SET is_unbacked = true, credited_units = $2, overpaid_units = 0 WHERE id = $1
"""

_REOPEN: Final = """
UPDATE jobs SET status = 'pending', paid_at = NULL, credited_units = 0, overpaid_units = 0,
       is_unbacked = false, attempt_id = NULL, lease_until = NULL
 WHERE id = $1
"""

Decide = Callable[[ReversedCredit], Reversal]


class ReversalStore:
    """The orphaned credits of one chain. Several may work: rows that are locked are passed over."""

    def __init__(self, database: Database, chain_id: int) -> None:
        self._database = database
        self._chain_id = chain_id

    async def reverse_orphaned(self, decide: Decide, limit: int) -> Reversing:
        """Reverse the orphaned credits of up to `limit` jobs, and reopen jobs that were given up.

        One transaction. A job that a host holds locked is passed over; one whose change its own
        constraints or triggers refuse is told of and left. Nothing is generated for either.
        """
        if not await self._is_needed():
            return Reversing(reversed=[], reopened=[], refused=[], is_full=False)
        async with self._database.transaction() as connection:
            await connection.execute(_LOCK_CURSOR, self._chain_id)
            jobs = await connection.fetch(_LOCK_JOBS, limit, self._chain_id)
            ids = [job["id"] for job in jobs]
            gone = await connection.fetch(_UNREVERSED, ids)
            rest = {row["job_id"]: row["units"] for row in await connection.fetch(_REST, ids)}
            done: list[ReversedPayment] = []
            refused: list[RefusedReversal] = []
            for job in jobs:
                rows = [row for row in gone if row["job_id"] == job["id"]]
                credit = _credit_of(job, rows, rest.get(job["id"], 0))
                reversal = decide(credit)
                problem = await _write_unless_refused(connection, job, credit, reversal, rows)
                if problem is None:
                    done += [_reversed_of(row, job, reversal) for row in rows]
                else:
                    refused.append(RefusedReversal(job_uuid=job["job_uuid"], problem=problem))
            reopened = await _reopen_given_up(connection, limit, refused)
        return Reversing(
            reversed=done, reopened=reopened, refused=refused, is_full=len(jobs) == limit
        )

    async def _is_needed(self) -> bool:
        async with self._database.connection() as connection:
            return bool(await connection.fetchval(_IS_NEEDED))


def _credit_of(
    job: asyncpg.Record, gone: Sequence[asyncpg.Record], rest: Decimal | int
) -> ReversedCredit:
    return ReversedCredit(
        status=job["status"],
        price=units_of_price(job["price_usdc"]),
        gone=Units(sum(int(row["amount_units"]) for row in gone)),
        rest=Units(int(rest)),
    )


def _reversed_of(row: asyncpg.Record, job: asyncpg.Record, reversal: Reversal) -> ReversedPayment:
    return ReversedPayment(
        id=PaymentId(row["id"]),
        tx_hash=TxHash(row["tx_hash"]),
        units=Units(int(row["amount_units"])),
        job_uuid=job["job_uuid"],
        job_status=job["status"],
        reversal=reversal,
    )


async def _write_unless_refused(
    connection: Connection,
    job: asyncpg.Record,
    credit: ReversedCredit,
    reversal: Reversal,
    gone: Sequence[asyncpg.Record],
) -> str | None:
    """Return what the host's own constraints or triggers say against it."""
    try:
        async with connection.transaction():
            await _write(connection, job["id"], credit, reversal, gone)
    except HOST_REFUSES as exc:
        return str(exc)
    return None


async def _write(
    connection: Connection,
    job: JobId,
    credit: ReversedCredit,
    reversal: Reversal,
    gone: Sequence[asyncpg.Record],
) -> None:
    await connection.execute(
        "UPDATE payments SET reversed_at = clock_timestamp() WHERE id = ANY($1::bigint[])",
        [row["id"] for row in gone],
    )
    match reversal:
        case Covered():
            await connection.execute(_COVER, job, credit.rest)
        case Reopen():
            await _reopen(connection, job)
        case Lose():
            await connection.execute(_LOSE, job, credit.rest)
            await connection.executemany(
                """
                INSERT INTO losses (payment_id, job_id, amount_units, job_status)
                VALUES ($1, $2, $3, $4)
                """,
                [(row["id"], job, row["amount_units"], credit.status) for row in gone],
            )
        case _:
            assert_never(reversal)


async def _reopen(connection: Connection, job: JobId) -> None:
    await connection.execute(_REOPEN, job)
    # What went back while it was credited is nobody's money any more.
    await connection.execute(
        """
        UPDATE payments p
           SET credited_at = NULL,
               status = CASE WHEN EXISTS (SELECT FROM payment_refunds WHERE payment_id = p.id)
                             THEN 'refunded' ELSE 'matched' END
         WHERE job_id = $1 AND status = 'credited'
        """,
        job,
    )
    # Nothing was delivered for what was lost before.
    await connection.execute(
        "UPDATE losses SET made_good_at = clock_timestamp()"
        " WHERE job_id = $1 AND made_good_at IS NULL",
        job,
    )


async def _reopen_given_up(
    connection: Connection, limit: int, refused: list[RefusedReversal]
) -> list[str]:
    """Reopen jobs that were given up, and add to `refused` those whose host forbids it."""
    rows = await connection.fetch(_LOCK_GIVEN_UP, limit)
    reopened = []
    for row in rows:
        try:
            async with connection.transaction():
                await connection.execute(
                    """
                    UPDATE generation_attempts
                       SET finished_at = now(), outcome = 'lost',
                           message = 'its worker stopped without a word'
                     WHERE id = $1 AND finished_at IS NULL
                    """,
                    row["attempt_id"],
                )
                await _reopen(connection, row["id"])
        except HOST_REFUSES as exc:
            refused.append(RefusedReversal(job_uuid=row["job_uuid"], problem=str(exc)))
            continue
        reopened.append(row["job_uuid"])
    return reopened
