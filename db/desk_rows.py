"""Under the operator's desk: jobs, and the payments of a transaction, locked or only looked at."""

from collections.abc import Sequence
from typing import Final

import asyncpg

from db.deciding import TERMS, terms_of
from db.payment_rows import LOG_COLUMNS, stored_log_of
from db.pool import Connection
from oncepaid.domain.chain import TxHash
from oncepaid.domain.desk import DeskJob
from oncepaid.domain.jobs import JobId
from oncepaid.domain.money import Units
from oncepaid.domain.payments import PaymentId, PaymentStatus, StoredLog

MAX_PAYMENTS: Final = 500
"""Of one transaction; a block has room for more, and nobody reads so many."""
MAX_PAYERS: Final = 10
"""Payments that are named as those that pay a job."""

_JOBS: Final = f"""
SELECT {TERMS}, job_uuid::text AS job_uuid, status::text AS status, unique_amount_units
  FROM jobs WHERE id = ANY($1::bigint[]) ORDER BY id
"""
_LOCKED: Final = f"{_JOBS} FOR NO KEY UPDATE"

_SUMS: Final = """
SELECT job_id,
       sum(amount_units) FILTER (WHERE status IN ('matched', 'credited')) AS covered,
       sum(amount_units) FILTER (WHERE status = 'unmatched') AS partial,
       count(*) FILTER (WHERE status = 'unmatched') AS parts,
       coalesce((array_agg(id ORDER BY id) FILTER (WHERE status IN ('matched', 'credited')))[:$4],
                '{}') AS paid_by,
       min(chain_id) FILTER (WHERE chain_id <> $3) AS other_chain
  FROM payments
 WHERE job_id = ANY($1::bigint[]) AND id IS DISTINCT FROM $2
   AND (status IN ('matched', 'credited') OR (status = 'unmatched' AND reason = 'underpaid'))
 GROUP BY job_id
"""

# Two looks, each at an index of its own.
_OF_TRANSACTION: Final = f"""
(SELECT {LOG_COLUMNS}, status FROM payments
  WHERE chain_id = $1 AND tx_hash = $2 AND status <> 'orphaned' ORDER BY id LIMIT $3)
 UNION ALL
(SELECT {LOG_COLUMNS}, status FROM payments
  WHERE chain_id = $1 AND tx_hash = $2 AND status = 'orphaned' ORDER BY id LIMIT $3)
 ORDER BY id
"""


async def jobs_of(
    connection: Connection,
    ids: Sequence[JobId],
    *,
    chain_id: int,
    without: PaymentId | None = None,
    lock: bool = False,
) -> dict[JobId, DeskJob]:
    """Return jobs by id; the sums of one leave out the payment `without`.

    With `lock` the sums are of after the jobs were locked.
    """
    rows = await connection.fetch(_LOCKED if lock else _JOBS, ids)
    sums = await connection.fetch(_SUMS, ids, without, chain_id, MAX_PAYERS)
    by_job = {row["job_id"]: row for row in sums}
    return {row["id"]: _job_of(row, by_job.get(row["id"])) for row in rows}


def _job_of(row: asyncpg.Record, sums: asyncpg.Record | None) -> DeskJob:
    drawn = row["unique_amount_units"]
    return DeskJob(
        # What a host bound to a job, the desk reads from the payment's side.
        terms=terms_of(row, sums, references=()),
        uuid=row["job_uuid"],
        status=row["status"],
        paid_by=tuple(map(PaymentId, sums["paid_by"])) if sums else (),
        other_chain=sums["other_chain"] if sums else None,
        drawn_amount=None if drawn is None else Units(drawn),
    )


async def logs_of_transaction(
    connection: Connection, chain_id: int, tx_hash: TxHash
) -> list[tuple[StoredLog, PaymentStatus]]:
    """Return the payments of a transaction with their states, the orphaned ones among them."""
    rows = await connection.fetch(_OF_TRANSACTION, chain_id, tx_hash, MAX_PAYMENTS)
    return [(stored_log_of(row), PaymentStatus(row["status"])) for row in rows]
