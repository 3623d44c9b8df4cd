"""The payment ledger: storing ranges, deciding what was seen, crediting what is final."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import orjson

from db.pool import Connection, Database
from oncepaid.domain.chain import Address, BlockHash, BlockRef, Header
from oncepaid.domain.errors import InconsistentNode
from oncepaid.domain.jobs import JobId, JobStatus, JobTerms
from oncepaid.domain.matching import DecidedPayment, Decision, Matched, Unmatched
from oncepaid.domain.memo import Memo
from oncepaid.domain.money import Units, units_of_price
from oncepaid.domain.payments import (
    CreditedPayment,
    Crediting,
    Evidence,
    MatchedPayment,
    MemoSource,
    ObservedPayment,
    PaymentId,
    Reason,
    ReturnedPayment,
    SeenPayment,
    Signer,
)

DecideAll = Callable[[Sequence[SeenPayment], Sequence[JobTerms]], Mapping[PaymentId, Decision]]

# A transaction counts in one block only. In another one its logs may have other numbers, so that
# no unique index would see it.
_STORE_RANGE = """
WITH elsewhere AS (
    SELECT p.tx_hash FROM unnest($7::text[], $10::text[]) AS p (tx_hash, block_hash)
      JOIN payments q ON q.chain_id = $1 AND q.tx_hash = p.tx_hash
                     AND q.block_hash <> p.block_hash AND q.status <> 'orphaned'
     LIMIT 1
), moved AS (
    UPDATE chain_cursor
       SET block_number = $4, block_hash = $5, block_time = $6, updated_at = now()
     WHERE chain_id = $1 AND block_number = $2 AND block_hash = $3
       AND NOT EXISTS (SELECT FROM elsewhere)
 RETURNING 1
), stored AS (
    INSERT INTO payments (chain_id, tx_hash, log_index, block_number, block_hash, block_time,
                          sender, recipient, amount_units, memo, memo_source, evidence,
                          transfers_in_tx)
    SELECT $1, p.tx_hash, p.log_index, p.block_number, p.block_hash, p.block_time, p.sender,
           p.recipient, p.amount_units, p.memo, p.memo_source, p.evidence::jsonb,
           p.transfers_in_tx
      FROM unnest($7::text[], $8::bigint[], $9::bigint[], $10::text[],
                               $11::timestamptz[], $12::text[], $13::text[], $14::numeric[],
                               $15::bytea[], $16::text[], $17::text[], $18::int[])
           AS p (tx_hash, log_index, block_number, block_hash, block_time, sender, recipient,
                 amount_units, memo, memo_source, evidence, transfers_in_tx)
     WHERE EXISTS (SELECT FROM moved)
    ON CONFLICT (chain_id, block_hash, log_index) DO NOTHING
    RETURNING 1
)
SELECT (SELECT count(*) FROM moved) AS moved, (SELECT count(*) FROM stored) AS stored,
       (SELECT tx_hash FROM elsewhere) AS elsewhere
"""

_SEEN = """
SELECT id, sender, recipient, amount_units, block_time, evidence, transfers_in_tx, tx_hash,
       extract(epoch FROM clock_timestamp() - seen_at)::float8 AS waited_s
  FROM payments WHERE status = 'seen' AND chain_id = $2 ORDER BY id LIMIT $1
   FOR UPDATE SKIP LOCKED
"""

# Ordered, so that two transactions never wait for each other's jobs crosswise. The expiry is cut to
# what `datetime` can hold: a host may store `infinity`, or null in a column of its own.
_JOBS_NAMED = """
SELECT id, job_uuid::text AS job_uuid, status, memo, price_usdc, pay_to,
       CASE WHEN amount_is_held THEN unique_amount_units END AS unique_amount,
       least(greatest(coalesce(expires_at, 'infinity'), '0001-01-02 UTC'), '9999-12-30 UTC')
           ::timestamptz AS expires_at
  FROM jobs
 WHERE memo = ANY($1::bytea[])
    OR (amount_is_held AND unique_amount_units = ANY($2::bigint[]))
 ORDER BY id FOR NO KEY UPDATE
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

_MATCHED = """
SELECT id, job_id, block_number, block_hash, block_time, amount_units,
       sum(amount_units) OVER (PARTITION BY job_id) AS job_units
  FROM payments
 WHERE status = 'matched' AND chain_id = $3 AND job_id IN (
       SELECT DISTINCT job_id FROM payments
        WHERE status = 'matched' AND chain_id = $3 AND job_id > $1 ORDER BY job_id LIMIT $2)
 ORDER BY job_id, id
"""

# Of the payments that could not be credited: a host closed the job, or raised its price.
_UNMATCH = """
UPDATE payments p
   SET status = 'unmatched',
       reason = CASE WHEN j.status <> 'pending' THEN 'duplicate'
                     WHEN j.price_usdc IS NULL THEN 'job_not_payable' ELSE 'underpaid' END
  FROM jobs j
 WHERE p.id = ANY($1::bigint[]) AND p.status = 'matched' AND j.id = p.job_id
RETURNING p.id, p.tx_hash, p.amount_units, p.reason, j.job_uuid::text AS job_uuid
"""

# Locks payments before jobs, and both in order, as `_SEEN` and `_JOBS_NAMED` do.
_CREDIT = """
WITH due AS (
    SELECT id, job_id, amount_units FROM payments
     WHERE id = ANY($1::bigint[]) AND status = 'matched' ORDER BY id FOR UPDATE
), sums AS (
    SELECT job_id, sum(amount_units) AS units FROM due GROUP BY job_id
), open AS (
    SELECT j.id, s.units FROM jobs j JOIN sums s ON s.job_id = j.id
     WHERE j.status = 'pending' AND s.units >= j.price_usdc * 1000000
     ORDER BY j.id FOR NO KEY UPDATE OF j
), paid AS (
    UPDATE jobs j SET status = 'paid', paid_at = clock_timestamp(), credited_units = open.units
      FROM open WHERE j.id = open.id
    RETURNING j.id, j.job_uuid, j.skill_id
)
UPDATE payments p SET status = 'credited', credited_at = clock_timestamp()
  FROM due JOIN paid ON paid.id = due.job_id LEFT JOIN skills s ON s.id = paid.skill_id
 WHERE p.id = due.id
RETURNING p.id, p.job_id, p.tx_hash, p.amount_units, paid.job_uuid::text AS job_uuid,
       oncepaid_service_key(s.service_key, s.name)
           AS service_key,
       extract(epoch FROM p.credited_at - p.matched_at)::float8 AS waited_s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRange:
    """`moved` False: another listener moved the cursor first, and nothing was stored."""

    moved: bool
    stored: int


class PaymentStore:
    """The `payments` rows of one chain."""

    def __init__(self, database: Database, chain_id: int) -> None:
        self._database = database
        self._chain_id = chain_id

    async def store_range(
        self, cursor: BlockRef, end: Header, payments: Sequence[ObservedPayment]
    ) -> StoredRange:
        """Store a range's payments and move the cursor from `cursor` to `end`, or do neither.

        A payment that is stored already is left alone. Raises `InconsistentNode` where a
        transaction that counts in one block is reported in another one.
        """
        columns = [list(column) for column in zip(*map(_row_of, payments), strict=True)]
        try:
            async with self._database.connection() as connection:
                row = await connection.fetchrow(
                    _STORE_RANGE,
                    self._chain_id,
                    cursor.number,
                    cursor.hash,
                    end.number,
                    end.hash,
                    end.time,
                    *(columns or [[]] * 12),
                )
        except asyncpg.UniqueViolationError as exc:
            raise InconsistentNode(f"a payment moved to another block: {exc.detail}") from exc
        assert row is not None
        if row["elsewhere"] is not None:
            raise InconsistentNode(f"transaction {row['elsewhere']} counts in another block")
        return StoredRange(moved=row["moved"] == 1, stored=row["stored"])

    async def decide_seen(self, decide_all: DecideAll, limit: int) -> list[DecidedPayment]:
        """Decide up to `limit` seen payments in one transaction, under locks on their jobs."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch(_SEEN, limit, self._chain_id)
            if not rows:
                return []
            payments = [_seen_of(row) for row in rows]
            jobs, uuids = await _jobs_named_by(connection, payments)
            decisions = decide_all(payments, jobs)
            await _write_decisions(connection, decisions)
        return [
            DecidedPayment(
                payment=payment,
                tx_hash=row["tx_hash"],
                decision=decisions[payment.id],
                job_uuid=uuids.get(decisions[payment.id].job_id),
                waited_s=row["waited_s"],
            )
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
        job or raised its price meanwhile, they become `unmatched` again, with the reason.
        """
        async with self._database.transaction() as connection:
            rows = await connection.fetch(_CREDIT, payments)
            credited = {row["id"] for row in rows}
            rest = [payment for payment in payments if payment not in credited]
            returned = await connection.fetch(_UNMATCH, rest) if rest else []
        return Crediting(
            credited=[_credited_of(row) for row in rows],
            returned=[_returned_of(row) for row in returned],
        )


def _row_of(payment: ObservedPayment) -> tuple[Any, ...]:
    log, evidence = payment.log, payment.evidence
    first = evidence[0] if evidence else None
    return (
        log.tx_hash,
        log.log_index,
        log.block.number,
        log.block.hash,
        payment.block_time,
        log.sender,
        log.recipient,
        log.units,
        first.memo if first else None,
        first.source if first else None,
        _json_of(evidence),
        payment.transfers_in_tx,
    )


def _json_of(evidence: tuple[Evidence, ...]) -> str:
    found = [{"memo": e.memo.hex(), "source": e.source, "signer": e.signer} for e in evidence]
    return orjson.dumps(found).decode()


def _evidence_of(value: Any) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(
            memo=Memo(bytes.fromhex(piece["memo"])),
            source=MemoSource(piece["source"]),
            signer=Signer(piece["signer"]),
        )
        for piece in value
    )


def _seen_of(row: asyncpg.Record) -> SeenPayment:
    return SeenPayment(
        id=row["id"],
        sender=row["sender"],
        recipient=row["recipient"],
        units=Units(int(row["amount_units"])),
        block_time=row["block_time"],
        evidence=_evidence_of(row["evidence"]),
        transfers_in_tx=row["transfers_in_tx"],
    )


async def _jobs_named_by(
    connection: Connection, payments: Sequence[SeenPayment]
) -> tuple[list[JobTerms], dict[JobId | None, str]]:
    memos = {piece.memo for payment in payments for piece in payment.evidence}
    # Wider amounts than bigint are nobody's unique amount.
    amounts = {payment.units for payment in payments if payment.units < 2**63}
    rows = await connection.fetch(_JOBS_NAMED, list(memos), list(amounts))
    sums = {row["job_id"]: row for row in await connection.fetch(_SUMS, [r["id"] for r in rows])}
    jobs = [_terms_of(row, sums.get(row["id"])) for row in rows]
    return jobs, {row["id"]: row["job_uuid"] for row in rows}


def _terms_of(row: asyncpg.Record, sums: asyncpg.Record | None) -> JobTerms:
    amount = row["unique_amount"]
    return JobTerms(
        id=row["id"],
        is_pending=row["status"] == JobStatus.PENDING,
        memo=Memo(row["memo"]),
        price=units_of_price(row["price_usdc"]),
        pay_to=None if row["pay_to"] is None else Address(row["pay_to"]),
        unique_amount=None if amount is None else Units(amount),
        expires_at=row["expires_at"],
        covered=Units(int(sums["covered"] or 0) if sums else 0),
        partial=Units(int(sums["partial"] or 0) if sums else 0),
    )


async def _write_decisions(connection: Connection, decisions: Mapping[PaymentId, Decision]) -> None:
    status = ["matched" if isinstance(d, Matched) else "unmatched" for d in decisions.values()]
    reasons = [d.reason if isinstance(d, Unmatched) else None for d in decisions.values()]
    jobs = [d.job_id for d in decisions.values()]
    await connection.execute(_DECIDE, list(decisions), status, reasons, jobs)
    paid = [d.job_id for d in decisions.values() if isinstance(d, Matched)]
    if paid:
        await connection.execute(_MATCH_WAITING_PARTIALS, paid)


def _matched_of(row: asyncpg.Record) -> MatchedPayment:
    return MatchedPayment(
        id=row["id"],
        job_id=row["job_id"],
        block=BlockRef(number=row["block_number"], hash=BlockHash(row["block_hash"])),
        block_time=row["block_time"],
        units=Units(int(row["amount_units"])),
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
