"""Under the matcher: locking the jobs that payments speak of, and writing what was decided."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import asyncpg

from db.pool import Connection
from db.reversals import HAS_UNREVERSED
from oncepaid.domain.chain import Address
from oncepaid.domain.jobs import JobId, JobTerms
from oncepaid.domain.matching import Decision, Matched, Unmatched
from oncepaid.domain.memo import Memo, Reference
from oncepaid.domain.money import Units, units_of_price
from oncepaid.domain.payments import PaymentId, SeenPayment

_JOBS_NAMED = """
SELECT id, memo, CASE WHEN amount_is_held THEN unique_amount_units END AS unique_amount
  FROM jobs
 WHERE memo = ANY($1::bytea[]) OR id = ANY($3::bigint[])
    OR (amount_is_held AND unique_amount_units = ANY($2::bigint[]))
"""

_BINDINGS = """
SELECT b.issuer, b.reference, b.job_id
  FROM job_bindings b
  JOIN unnest($1::text[], $2::bytea[]) AS r (issuer, reference) USING (issuer, reference)
"""

# Two probes of an index for each payment: jobs of its recipient, and of any of ours.
_NEAREST_ABOVE = """
SELECT p.id, n.price_usdc
  FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS p (id, units, recipient)
 CROSS JOIN LATERAL (
    SELECT j.* FROM unnest(ARRAY['', p.recipient]) AS payee
     CROSS JOIN LATERAL (
        SELECT unique_amount_units, price_usdc::numeric AS price_usdc FROM jobs
         WHERE amount_is_held AND status = 'pending' AND lower(coalesce(pay_to, '')) = payee
           AND unique_amount_units > p.units
         ORDER BY unique_amount_units LIMIT 1) j
     ORDER BY j.unique_amount_units LIMIT 1) n
"""

# Of a job that waits for another amount than its price, in a block that may be meant for it. A
# hub's price may be finer than a unit, and is rounded up.
PRICES = """
SELECT p.id
  FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[]) AS p (id, units, payee, block)
 WHERE EXISTS (
       SELECT FROM jobs
        WHERE amount_is_held AND status = 'pending'
          AND price_usdc::numeric > (p.units - 1) * 0.000001
          AND price_usdc::numeric <= p.units * 0.000001
          AND lower(coalesce(pay_to, '')) IN ('', p.payee)
          AND unique_amount_units <> p.units AND amount_after_block < p.block)
"""

TERMS: Final = f"""
       id, memo, status = 'pending' OR is_unbacked OR {HAS_UNREVERSED} AS awaits_payment,
       price_usdc::numeric AS price_usdc, lower(pay_to) AS pay_to,
       CASE WHEN amount_is_held
                 AND NOT EXISTS (SELECT FROM oncepaid_resting(unique_amount_units, pay_to, id))
            THEN unique_amount_units END AS unique_amount,
       least(greatest(coalesce(expires_at, 'infinity'), '0001-01-02 UTC'), '9999-12-30 UTC')
           ::timestamptz AS expires_at, amount_after_block
"""
"""What `terms_of` reads of `jobs`.

The expiry is cut to what `datetime` can hold: a host may store `infinity`, or null in a column of
its own; its price may be of another numeric type.
"""

# A job that a host holds locked is passed over: nobody else may wait for it. Ordered, so that two
# transactions never wait crosswise.
_LOCK_JOBS = f"""
SELECT {TERMS}, job_uuid::text AS job_uuid
  FROM jobs WHERE id = ANY($1::bigint[]) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
"""

_SUMS = """
SELECT job_id,
       sum(amount_units) FILTER (WHERE status IN ('matched', 'credited')) AS covered,
       sum(amount_units) FILTER (WHERE status = 'unmatched' AND reason = 'underpaid') AS partial,
       count(*) FILTER (WHERE status = 'unmatched' AND reason = 'underpaid') AS parts
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


Name = Memo | Reference | Units
"""What a payment names a job by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedJobs:
    """The jobs that payments speak of: those that we locked, and what names the others."""

    jobs: list[JobTerms]
    uuids: dict[JobId | None, str]
    busy_names: set[Name]

    def is_busy(self, payment: SeenPayment) -> bool:
        """Say whether a job that it may speak of is somebody else's at the moment."""
        return not self.busy_names.isdisjoint(_names_of(payment))


def _names_of(payment: SeenPayment) -> Iterator[Name]:
    yield payment.units
    for piece in payment.evidence:
        if piece.memo is not None:
            yield piece.memo
        if piece.reference is not None:
            yield piece.reference


async def lock_named_jobs(connection: Connection, payments: Sequence[SeenPayment]) -> NamedJobs:
    """Lock what is free of the jobs that payments name by a memo, a reference or an amount."""
    names = {name for payment in payments for name in _names_of(payment)}
    bound = await _bindings_of(connection, [n for n in names if isinstance(n, Reference)])
    memos = [name for name in names if isinstance(name, bytes)]
    # Wider amounts than bigint are nobody's unique amount.
    amounts = [name for name in names if isinstance(name, int) and name < 2**63]
    named = await connection.fetch(_JOBS_NAMED, memos, amounts, list(bound))
    rows = await connection.fetch(_LOCK_JOBS, [row["id"] for row in named])
    uuids = {row["id"]: row["job_uuid"] for row in rows}
    sums = {row["job_id"]: row for row in await connection.fetch(_SUMS, list(uuids))}
    busy: set[Name] = set()
    for row in named:
        if row["id"] not in uuids:
            busy |= {row["memo"], *bound.get(row["id"], ())}
            if row["unique_amount"] is not None:
                busy.add(Units(row["unique_amount"]))
    return NamedJobs(
        jobs=[terms_of(row, sums.get(row["id"]), bound.get(row["id"], ())) for row in rows],
        uuids=uuids,
        busy_names=busy,
    )


async def _bindings_of(
    connection: Connection, references: Sequence[Reference]
) -> dict[JobId, list[Reference]]:
    """Return those of the references that are bound, by job."""
    if not references:
        return {}
    issuers, values = zip(*((r.issuer, r.value) for r in references), strict=True)
    found: dict[JobId, list[Reference]] = {}
    for row in await connection.fetch(_BINDINGS, list(issuers), list(values)):
        reference = Reference(issuer=row["issuer"], value=row["reference"])
        found.setdefault(row["job_id"], []).append(reference)
    return found


async def with_nearest(
    connection: Connection, payments: Sequence[SeenPayment]
) -> list[SeenPayment]:
    """Fill in `nearest_above` where there is no evidence."""
    bare = [p for p in payments if not p.evidence and p.units < 2**63]
    if not bare:
        return list(payments)
    rows = await connection.fetch(
        _NEAREST_ABOVE, [p.id for p in bare], [p.units for p in bare], [p.recipient for p in bare]
    )
    nearest = {row["id"]: units_of_price(row["price_usdc"]) for row in rows}
    return [replace(p, nearest_above=nearest.get(p.id)) for p in payments]


async def with_prices(
    connection: Connection, payments: Sequence[SeenPayment], jobs: Sequence[JobTerms]
) -> list[SeenPayment]:
    """Fill in `is_a_price` where the amount is the unique one of any of the jobs."""
    amounts = {job.unique_amount for job in jobs}
    asked = [payment for payment in payments if payment.units in amounts]
    if not asked:
        return list(payments)
    rows = await connection.fetch(
        PRICES,
        [p.id for p in asked],
        [p.units for p in asked],
        [p.recipient for p in asked],
        [p.block_number for p in asked],
    )
    found = {row["id"] for row in rows}
    return [replace(p, is_a_price=True) if p.id in found else p for p in payments]


def terms_of(
    row: asyncpg.Record, sums: asyncpg.Record | None, references: Iterable[Reference]
) -> JobTerms:
    """Return the terms of a job; `sums` are `covered` and `partial` of its payments, if any."""
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
        parts=sums["parts"] if sums else 0,
        references=frozenset(references),
        amount_after_block=row["amount_after_block"],
    )


async def write_decisions(connection: Connection, decisions: Mapping[PaymentId, Decision]) -> None:
    """Store decisions about payments that the transaction holds locked, with their jobs.

    Parts that wait on a job that is paid now are matched with it.
    """
    status = ["matched" if isinstance(d, Matched) else "unmatched" for d in decisions.values()]
    reasons = [d.reason if isinstance(d, Unmatched) else None for d in decisions.values()]
    jobs = [d.job_id for d in decisions.values()]
    await connection.execute(_DECIDE, list(decisions), status, reasons, jobs)
    paid = [d.job_id for d in decisions.values() if isinstance(d, Matched)]
    if paid:
        await connection.execute(_MATCH_WAITING_PARTIALS, paid)
