"""The payment ledger: deciding what was seen, crediting what is final."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import asyncpg

from db.bindings import reconsider_bound
from db.deciding import lock_named_jobs, with_nearest, with_prices, write_decisions
from db.payment_rows import LOG_COLUMNS, evidence_of, stored_log_of
from db.pool import HOST_REFUSES, Connection, Database
from db.reversals import HAS_UNREVERSED, overpaid
from oncepaid.domain.jobs import JobId, JobTerms
from oncepaid.domain.matching import DecidedPayment, Decision
from oncepaid.domain.money import Units
from oncepaid.domain.payments import (
    CreditedPayment,
    Crediting,
    MatchedPayment,
    PaymentId,
    Reason,
    ReturnedPayment,
    SeenPayment,
)

DecideAll = Callable[[Sequence[SeenPayment], Sequence[JobTerms]], Mapping[PaymentId, Decision]]

_SEEN = """
SELECT id, sender, recipient, amount_units, block_number, block_time, evidence, transfers_in_tx,
       tx_hash,
       extract(epoch FROM clock_timestamp() - seen_at)::float8 AS waited_s
  FROM payments WHERE status = 'seen' AND chain_id = $2 AND id > $3 ORDER BY id LIMIT $1
   FOR UPDATE SKIP LOCKED
"""

_MATCHED = f"""
SELECT {LOG_COLUMNS}, job_id, block_time,
       sum(amount_units) OVER (PARTITION BY job_id) AS job_units
  FROM payments
 WHERE status = 'matched' AND chain_id = $3 AND job_id IN (
       SELECT DISTINCT job_id FROM payments
        WHERE status = 'matched' AND chain_id = $3 AND job_id > $1 ORDER BY job_id LIMIT $2)
 ORDER BY job_id, id
"""

# Of the payments that could not be credited: a host closed the job, or raised its price, or a
# reorganisation took a part of the sum.
_UNMATCH = f"""
WITH sums AS (
    SELECT job_id, sum(amount_units) AS units FROM payments
     WHERE id = ANY($1::bigint[]) AND status = 'matched' GROUP BY job_id
), j AS (
    SELECT jobs.id, jobs.job_uuid, jobs.price_usdc,
           jobs.status = 'pending' OR jobs.is_unbacked AS awaits_payment,
           sums.units + CASE WHEN jobs.is_unbacked THEN jobs.credited_units ELSE 0 END AS units
      FROM jobs JOIN sums ON sums.job_id = jobs.id
     WHERE NOT {HAS_UNREVERSED} ORDER BY jobs.id
       FOR NO KEY UPDATE OF jobs SKIP LOCKED
)
UPDATE payments p
   SET status = 'unmatched',
       reason = CASE WHEN NOT j.awaits_payment THEN 'duplicate'
                     WHEN j.price_usdc IS NULL THEN 'job_not_payable' ELSE 'underpaid' END
  FROM j
 WHERE p.id = ANY($1::bigint[]) AND p.status = 'matched' AND j.id = p.job_id
   AND (NOT j.awaits_payment OR j.price_usdc IS NULL OR j.units < j.price_usdc * 1000000)
RETURNING p.id, p.tx_hash, p.amount_units, p.reason, j.job_uuid::text AS job_uuid
"""

# Locks payments before jobs, and both in order, as `_SEEN` and `_LOCK_JOBS` do. A job whose work
# was begun for money that left the chain takes new money in the state that it is in.
_CREDIT = f"""
WITH due AS (
    SELECT id, job_id, amount_units FROM payments
     WHERE id = ANY($1::bigint[]) AND status = 'matched' ORDER BY id FOR UPDATE
), sums AS (
    SELECT job_id, sum(amount_units) AS units FROM due GROUP BY job_id
), open AS (
    SELECT jobs.id,
           sums.units + CASE WHEN jobs.is_unbacked THEN jobs.credited_units ELSE 0 END AS units
      FROM jobs JOIN sums ON sums.job_id = jobs.id
     WHERE (jobs.status = 'pending' OR jobs.is_unbacked) AND NOT {HAS_UNREVERSED}
       AND sums.units + CASE WHEN jobs.is_unbacked THEN jobs.credited_units ELSE 0 END
           >= jobs.price_usdc * 1000000
       AND NOT EXISTS (SELECT FROM chain_cursor WHERE chain_id = $2 AND conflict IS NOT NULL)
     ORDER BY jobs.id FOR NO KEY UPDATE OF jobs SKIP LOCKED
), paid AS (
    UPDATE jobs j
       SET status = CASE WHEN j.status = 'pending' THEN 'paid' ELSE j.status END,
           paid_at = clock_timestamp(), credited_units = open.units, is_unbacked = false,
           overpaid_units = {overpaid("open.units", "j")}
      FROM open WHERE j.id = open.id
    RETURNING j.id, j.job_uuid, j.skill_id
), made_good AS (
    UPDATE losses SET made_good_at = clock_timestamp()
      FROM paid WHERE losses.job_id = paid.id AND made_good_at IS NULL
)
UPDATE payments p SET status = 'credited', credited_at = clock_timestamp()
  FROM due JOIN paid ON paid.id = due.job_id LEFT JOIN skills s ON s.id = paid.skill_id
 WHERE p.id = due.id
RETURNING p.id, p.job_id, p.tx_hash, p.amount_units, paid.job_uuid::text AS job_uuid,
       oncepaid_service_key(s.service_key, s.name)
           AS service_key,
       extract(epoch FROM p.credited_at - p.matched_at)::float8 AS waited_s
"""

# What a host that changes prices or statuses, or a reorganisation between a matcher's look and its
# decision, can leave behind: money for a job that waits for it, and nobody who looks. It is decided
# anew: what was too small and is enough together, and what was one too many and is not. One that
# was known by its amount only where that is still its job's, and not another's by now.
_RECONSIDER = """
WITH waiting AS (
    SELECT j.id, j.price_usdc, j.amount_is_held,
           coalesce(sum(p.amount_units) FILTER (WHERE p.reason = 'underpaid'), 0) AS partial
      FROM payments p JOIN jobs j ON j.id = p.job_id
     WHERE p.status = 'unmatched' AND p.reason IN ('underpaid', 'duplicate') AND p.chain_id = $1
       AND (p.evidence <> '[]' OR j.amount_is_held)
       AND (j.status = 'pending' OR j.is_unbacked) AND j.price_usdc IS NOT NULL
     GROUP BY j.id
), enough AS (
    SELECT w.id, w.partial, w.amount_is_held, w.price_usdc * 1000000 AS price,
           (SELECT coalesce(sum(amount_units), 0) FROM payments
             WHERE job_id = w.id AND status IN ('matched', 'credited')) AS covered
      FROM waiting w
), again AS (
    SELECT p.id FROM payments p JOIN enough e ON e.id = p.job_id
     WHERE p.status = 'unmatched' AND e.covered < greatest(e.price, 1)
       AND (p.evidence <> '[]' OR e.amount_is_held)
       AND (p.reason = 'duplicate'
            OR (p.reason = 'underpaid' AND e.partial + e.covered >= e.price))
     ORDER BY p.id LIMIT 500 FOR UPDATE OF p SKIP LOCKED
)
UPDATE payments SET status = 'seen', job_id = NULL, reason = NULL
  FROM again WHERE payments.id = again.id
RETURNING payments.id
"""


_JOBS_OF = """
SELECT j.job_uuid::text AS job_uuid, array_agg(p.id ORDER BY p.id) AS payments
  FROM payments p JOIN jobs j ON j.id = p.job_id
 WHERE p.id = ANY($1::bigint[]) GROUP BY j.id ORDER BY j.id
"""

_FIRST: Final = PaymentId(0)


class PaymentStore:
    """The `payments` rows of one chain."""

    def __init__(self, database: Database, chain_id: int) -> None:
        self._database = database
        self._chain_id = chain_id

    async def decide_seen(
        self, decide_all: DecideAll, limit: int, after: PaymentId = _FIRST
    ) -> list[DecidedPayment]:
        """Decide up to `limit` seen payments in one transaction, under locks on their jobs.

        Returns them in the order of their ids, which are above `after`. Those whose job somebody
        else holds locked are among them, undecided.
        """
        async with self._database.transaction() as connection:
            rows = await connection.fetch(_SEEN, limit, self._chain_id, after)
            if not rows:
                return []
            payments = await with_nearest(connection, [_seen_of(row) for row in rows])
            named = await lock_named_jobs(connection, payments)
            payments = await with_prices(connection, payments, named.jobs)
            free = [payment for payment in payments if not named.is_busy(payment)]
            decisions = decide_all(free, named.jobs)
            await write_decisions(connection, decisions)
        return [
            _decided_of(row, payment, decisions.get(payment.id), named.uuids)
            for payment, row in zip(payments, rows, strict=True)
        ]

    async def load_matched(self, after: JobId, limit: int) -> list[MatchedPayment]:
        """Return the matched payments of the next `limit` jobs above `after`, by job."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_MATCHED, after, limit, self._chain_id)
        return [_matched_of(row) for row in rows]

    async def credit(self, payments: Sequence[PaymentId]) -> Crediting:
        """Credit payments and make their jobs `paid`, in one transaction.

        `payments` holds all matched payments of each job it speaks of. Where a host closed the
        job or raised its price meanwhile, they become `unmatched` again, with the reason. While the
        chain is in conflict with what was final, nothing is credited.
        """
        try:
            async with self._database.transaction() as connection:
                return await self._credit(connection, payments)
        except HOST_REFUSES:
            return await self._credit_one_by_one(payments)

    async def _credit(self, connection: Connection, payments: Sequence[PaymentId]) -> Crediting:
        rows = await connection.fetch(_CREDIT, payments, self._chain_id)
        credited = {row["id"] for row in rows}
        rest = [payment for payment in payments if payment not in credited]
        returned = await connection.fetch(_UNMATCH, rest) if rest else []
        return Crediting(
            credited=[_credited_of(row) for row in rows],
            returned=[_returned_of(row) for row in returned],
        )

    async def _credit_one_by_one(self, payments: Sequence[PaymentId]) -> Crediting:
        """Credit job by job: the host's own constraints or triggers refuse one of them."""
        async with self._database.connection() as connection:
            jobs = await connection.fetch(_JOBS_OF, payments)
        done = Crediting(credited=[], returned=[])
        for job in jobs:
            try:
                async with self._database.transaction() as connection:
                    one = await self._credit(connection, job["payments"])
            except HOST_REFUSES as exc:
                done.refused[job["job_uuid"]] = str(exc)
                continue
            done.credited.extend(one.credited)
            done.returned.extend(one.returned)
        return done

    async def reconsider(self) -> int:
        """Have money decided anew that its job waits for after all; returns how many payments."""
        async with self._database.connection() as connection:
            again = await connection.fetch(_RECONSIDER, self._chain_id)
            bound = await reconsider_bound(connection, self._chain_id)
        return len(again) + bound

    async def conflict(self) -> str | None:
        """Return what of the chain contradicts what was final, if anything does."""
        async with self._database.connection() as connection:
            found: str | None = await connection.fetchval(
                "SELECT conflict FROM chain_cursor WHERE chain_id = $1", self._chain_id
            )
        return found


def _seen_of(row: asyncpg.Record) -> SeenPayment:
    return SeenPayment(
        id=row["id"],
        sender=row["sender"],
        recipient=row["recipient"],
        units=Units(int(row["amount_units"])),
        block_time=row["block_time"],
        evidence=evidence_of(row["evidence"]),
        transfers_in_tx=row["transfers_in_tx"],
        block_number=row["block_number"],
    )


def _decided_of(
    row: asyncpg.Record,
    payment: SeenPayment,
    decision: Decision | None,
    uuids: Mapping[JobId | None, str],
) -> DecidedPayment:
    return DecidedPayment(
        payment=payment,
        tx_hash=row["tx_hash"],
        decision=decision,
        job_uuid=uuids.get(decision.job_id) if decision else None,
        waited_s=row["waited_s"],
    )


def _matched_of(row: asyncpg.Record) -> MatchedPayment:
    return MatchedPayment(
        log=stored_log_of(row),
        job_id=row["job_id"],
        block_time=row["block_time"],
        job_units=Units(int(row["job_units"])),
    )


def _credited_of(row: asyncpg.Record) -> CreditedPayment:
    return CreditedPayment(
        id=row["id"],
        job_id=row["job_id"],
        tx_hash=row["tx_hash"],
        units=Units(int(row["amount_units"])),
        job_uuid=row["job_uuid"],
        service_key=row["service_key"],
        waited_s=row["waited_s"],
    )


def _returned_of(row: asyncpg.Record) -> ReturnedPayment:
    return ReturnedPayment(
        id=row["id"],
        tx_hash=row["tx_hash"],
        units=Units(int(row["amount_units"])),
        job_uuid=row["job_uuid"],
        reason=Reason(row["reason"]),
    )
