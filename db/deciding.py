"""Under the matcher: locking the jobs that payments speak of, and writing what was decided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from db.pool import Connection
from db.reversals import HAS_UNREVERSED
from oncepaid.domain.chain import Address
from oncepaid.domain.jobs import JobId, JobTerms
from oncepaid.domain.matching import Decision, Matched, Unmatched
from oncepaid.domain.memo import Memo
from oncepaid.domain.money import Units, units_of_price
from oncepaid.domain.payments import PaymentId, SeenPayment

_JOBS_NAMED = """
SELECT id, memo, CASE WHEN amount_is_held THEN unique_amount_units END AS unique_amount
  FROM jobs
 WHERE memo = ANY($1::bytea[])
    OR (amount_is_held AND unique_amount_units = ANY($2::bigint[]))
"""

# A job that a host holds locked is passed over: nobody else may wait for it. Ordered, so that two
# transactions never wait crosswise. The expiry is cut to what `datetime` can hold: a host may store
# `infinity`, or null in a column of its own; its price may be of another numeric type.
_LOCK_JOBS = f"""
SELECT id, job_uuid::text AS job_uuid, memo,
       status = 'pending' OR is_unbacked OR {HAS_UNREVERSED} AS awaits_payment,
       price_usdc::numeric AS price_usdc, lower(pay_to) AS pay_to,
       CASE WHEN amount_is_held THEN unique_amount_units END AS unique_amount,
       least(greatest(coalesce(expires_at, 'infinity'), '0001-01-02 UTC'), '9999-12-30 UTC')
           ::timestamptz AS expires_at
  FROM jobs WHERE id = ANY($1::bigint[]) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
"""

_SUMS = """
SELECT job_id,
       sum(amount_units) FILTER (WHERE status IN ('matched', 'credited')) AS covered,
       sum(amount_units) FILTER (WHERE status = 'unmatched' AND reason = 'underpaid') AS partial
  FROM payments WHERE job_id = ANY($1::bigint[]) GROUP BY job_id
"""

_DECIDE = """
UPDATE payments p
   SET status = d.status, reason = d.reason, job_id = d.job_id,
       matched_at = CASE WHEN d.status = 'matched' THEN clock_timestamp() END
  FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[])
       AS d (id, status, reason, job_id)
 WHERE p.id = d.id AND p.status = 'seen'
"""

_MATCH_WAITING_PARTIALS = """
UPDATE payments SET status = 'matched', reason = NULL, matched_at = clock_timestamp()
 WHERE job_id = ANY($1::bigint[]) AND status = 'unmatched' AND reason = 'underpaid'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedJobs:
    """The jobs that payments speak of: those that we locked, and what names the others."""

    jobs: list[JobTerms]
    uuids: dict[JobId | None, str]
    busy_memos: set[bytes]
    busy_amounts: set[int]

    def is_busy(self, payment: SeenPayment) -> bool:
        if payment.evidence:
            return any(piece.memo in self.busy_memos for piece in payment.evidence)
        return payment.units in self.busy_amounts


async def lock_named_jobs(connection: Connection, payments: Sequence[SeenPayment]) -> NamedJobs:
    memos = {piece.memo for payment in payments for piece in payment.evidence}
    # Wider amounts than bigint are nobody's unique amount.
    amounts = {payment.units for payment in payments if payment.units < 2**63}
    named = await connection.fetch(_JOBS_NAMED, list(memos), list(amounts))
    rows = await connection.fetch(_LOCK_JOBS, [row["id"] for row in named])
    uuids = {row["id"]: row["job_uuid"] for row in rows}
    sums = {row["job_id"]: row for row in await connection.fetch(_SUMS, list(uuids))}
    busy = [row for row in named if row["id"] not in uuids]
    return NamedJobs(
        jobs=[_terms_of(row, sums.get(row["id"])) for row in rows],
        uuids=uuids,
        busy_memos={row["memo"] for row in busy},
        busy_amounts={row["unique_amount"] for row in busy},
    )


def _terms_of(row: asyncpg.Record, sums: asyncpg.Record | None) -> JobTerms:
    amount = row["unique_amount"]
    return JobTerms(
        id=row["id"],
        awaits_payment=row["awaits_payment"],
        memo=Memo(row["memo"]),
        price=units_of_price(row["price_usdc"]),
        pay_to=None if row["pay_to"] is None else Address(row["pay_to"]),
        unique_amount=None if amount is None else Units(amount),
        expires_at=row["expires_at"],
        covered=Units(int(sums["covered"] or 0) if sums else 0),
        partial=Units(int(sums["partial"] or 0) if sums else 0),
    )


async def write_decisions(connection: Connection, decisions: Mapping[PaymentId, Decision]) -> None:
    status = ["matched" if isinstance(d, Matched) else "unmatched" for d in decisions.values()]
    reasons = [d.reason if isinstance(d, Unmatched) else None for d in decisions.values()]
    jobs = [d.job_id for d in decisions.values()]
    await connection.execute(_DECIDE, list(decisions), status, reasons, jobs)
    paid = [d.job_id for d in decisions.values() if isinstance(d, Matched)]
    if paid:
        await connection.execute(_MATCH_WAITING_PARTIALS, paid)
