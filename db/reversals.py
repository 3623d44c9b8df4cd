"""Taking back what credited payments did to their jobs once their blocks are gone."""

from collections.abc import Callable, Sequence
from typing import Final, assert_never

import asyncpg

from db.pool import Connection, Database
from oncepaid.domain.chain import TxHash
from oncepaid.domain.jobs import JobId
from oncepaid.domain.money import Units, units_of_price
from oncepaid.domain.payments import PaymentId
from oncepaid.domain.reversal import (
    Covered,
    Lose,
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

_UNREVERSED: Final = """
SELECT id, job_id, tx_hash, amount_units FROM payments
 WHERE chain_id = $1 AND status = 'orphaned' AND orphaned_from = 'credited' AND reversed_at IS NULL
 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
"""

_LOCK_JOBS: Final = """
SELECT id, job_uuid::text AS job_uuid, status, price_usdc::numeric AS price_usdc,
       (SELECT coalesce(sum(p.amount_units), 0) FROM payments p
         WHERE p.job_id = jobs.id AND p.status = 'credited') AS rest
  FROM jobs WHERE id = ANY($1::bigint[]) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
"""

# Work that was begun for money that is gone, and that ended without a result: nothing was lost.
_LOCK_GIVEN_UP: Final = """
SELECT id, job_uuid::text AS job_uuid, attempt_id FROM jobs
 WHERE is_unbacked
   AND (status = 'paid' OR (status = 'in_progress' AND lease_until < now()))
 ORDER BY id LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
"""

_REOPEN: Final = """
UPDATE jobs SET status = 'pending', paid_at = NULL, credited_units = 0, is_unbacked = false,
       attempt_id = NULL, lease_until = NULL
 WHERE id = $1
"""

_HOST_REFUSES: Final = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    asyncpg.PLPGSQLError,
)

Decide = Callable[[ReversedCredit], Reversal]


class ReversalStore:
    """The orphaned credits of one chain. Several may work: rows that are locked are passed over."""

    def __init__(self, database: Database, chain_id: int) -> None:
        self._database = database
        self._chain_id = chain_id

    async def reverse_orphaned(self, decide: Decide, limit: int) -> Reversing:
        """Reverse up to `limit` orphaned credits, and reopen jobs that were given up meanwhile.

        One transaction. A job that a host holds locked, or whose change its own constraints or
        triggers refuse, is left; nothing is generated for it until then.
        """
        async with self._database.transaction() as connection:
            rows = await connection.fetch(_UNREVERSED, self._chain_id, limit)
            jobs = await connection.fetch(_LOCK_JOBS, [row["job_id"] for row in rows])
            done: list[ReversedPayment] = []
            for job in jobs:
                gone = [row for row in rows if row["job_id"] == job["id"]]
                done += await _reverse_job(connection, job, gone, decide)
            reopened = await _reopen_given_up(connection, limit)
        return Reversing(reversed=done, reopened=reopened, is_full=len(rows) == limit)


async def _reverse_job(
    connection: Connection, job: asyncpg.Record, gone: Sequence[asyncpg.Record], decide: Decide
) -> list[ReversedPayment]:
    credit = ReversedCredit(
        status=job["status"],
        price=units_of_price(job["price_usdc"]),
        gone=Units(sum(int(row["amount_units"]) for row in gone)),
        rest=Units(int(job["rest"])),
    )
    reversal = decide(credit)
    try:
        async with connection.transaction():
            await _write(connection, job["id"], credit, reversal, gone)
    except _HOST_REFUSES:
        return []
    return [
        ReversedPayment(
            id=PaymentId(row["id"]),
            tx_hash=TxHash(row["tx_hash"]),
            units=Units(int(row["amount_units"])),
            job_uuid=job["job_uuid"],
            job_status=credit.status,
            reversal=reversal,
        )
        for row in gone
    ]


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
            await connection.execute(
                "UPDATE jobs SET credited_units = $2 WHERE id = $1", job, credit.rest
            )
            return
        case Reopen():
            await _reopen(connection, job)
        case Lose():
            await connection.execute(
                "UPDATE jobs SET is_unbacked = true, credited_units = $2 WHERE id = $1",
                *(job, credit.rest),
            )
            await connection.executemany(
                """
                INSERT INTO losses (payment_id, job_id, amount_units, job_status)
                VALUES ($1, $2, $3, $4)
                """,
                [(row["id"], job, row["amount_units"], credit.status) for row in gone],
            )
        case _:
            assert_never(reversal)
    # Who had paid a second time pays it now after all.
    await connection.execute(
        """
        UPDATE payments SET status = 'seen', job_id = NULL, reason = NULL
         WHERE job_id = $1 AND status = 'unmatched' AND reason = 'duplicate'
        """,
        job,
    )


async def _reopen(connection: Connection, job: JobId) -> None:
    await connection.execute(_REOPEN, job)
    await connection.execute(
        "UPDATE payments SET status = 'matched', credited_at = NULL"
        " WHERE job_id = $1 AND status = 'credited'",
        job,
    )
    # Nothing was delivered for what was lost before.
    await connection.execute(
        "UPDATE losses SET made_good_at = clock_timestamp()"
        " WHERE job_id = $1 AND made_good_at IS NULL",
        job,
    )


async def _reopen_given_up(connection: Connection, limit: int) -> list[str]:
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
        except _HOST_REFUSES:
            continue
        reopened.append(row["job_uuid"])
    return reopened
