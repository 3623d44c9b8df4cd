"""Under the operator's desk: jobs, and the payments of a transaction, locked or only looked at."""

from collections.abc import Sequence
from typing import Any, Final

import asyncpg

from db.payment_rows import LOG_COLUMNS, stored_log_of
from db.pool import Connection
from db.reversals import HAS_UNREVERSED
from oncepaid.domain.chain import Address, TxHash
from oncepaid.domain.desk import DeskJob
from oncepaid.domain.jobs import JobId, JobTerms
from oncepaid.domain.memo import Memo
from oncepaid.domain.money import Units, units_of_price
from oncepaid.domain.payments import PaymentId, StoredLog

MAX_PAYMENTS: Final = 500
"""Of one transaction; a block has room for more, and nobody reads so many."""
MAX_PAYERS: Final = 10
"""Payments that are named as those that pay a job."""

# As the matcher reads them: the expiry is cut to what `datetime` can hold.
_JOBS: Final = f"""
SELECT id, job_uuid::text AS job_uuid, status::text AS status, memo,
       status = 'pending' OR is_unbacked OR {HAS_UNREVERSED} AS awaits_payment,
       price_usdc::numeric AS price_usdc, lower(pay_to) AS pay_to,
       unique_amount_units, amount_is_held,
       least(greatest(coalesce(expires_at, 'infinity'), '0001-01-02 UTC'), '9999-12-30 UTC')
           ::timestamptz AS expires_at
  FROM jobs WHERE id = ANY($1::bigint[]) ORDER BY id
"""
_LOCKED: Final = f"{_JOBS} FOR NO KEY UPDATE"

_SUMS: Final = """
SELECT job_id,
       coalesce(sum(amount_units) FILTER (WHERE status IN ('matched', 'credited')), 0) AS covered,
       coalesce(sum(amount_units) FILTER (WHERE status = 'unmatched'), 0) AS partial,
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
    amount = None if drawn is None else Units(drawn)
    return DeskJob(
        terms=JobTerms(
            id=JobId(row["id"]),
            awaits_payment=row["awaits_payment"],
            memo=Memo(row["memo"]),
            price=units_of_price(row["price_usdc"]),
            pay_to=None if row["pay_to"] is None else Address(row["pay_to"]),
            unique_amount=amount if row["amount_is_held"] else None,
            expires_at=row["expires_at"],
            covered=Units(int(sums["covered"]) if sums else 0),
            partial=Units(int(sums["partial"]) if sums else 0),
        ),
        uuid=row["job_uuid"],
        status=row["status"],
        paid_by=tuple(map(PaymentId, sums["paid_by"])) if sums else (),
        other_chain=sums["other_chain"] if sums else None,
        drawn_amount=amount,
    )


async def logs_of_transaction(
    connection: Connection, chain_id: int, tx_hash: TxHash
) -> list[tuple[StoredLog, Any]]:
    """Return the payments of a transaction with their states, the orphaned ones among them."""
    rows = await connection.fetch(_OF_TRANSACTION, chain_id, tx_hash, MAX_PAYMENTS)
    return [(stored_log_of(row), row["status"]) for row in rows]
