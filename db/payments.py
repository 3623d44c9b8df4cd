"""The payment ledger: storing ranges, deciding what was seen, crediting what is final."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import orjson

from db.deciding import lock_named_jobs, write_decisions
from db.pool import Database
from oncepaid.domain.chain import BlockHash, BlockRef, Header
from oncepaid.domain.errors import InconsistentNode
from oncepaid.domain.jobs import JobId, JobTerms
from oncepaid.domain.matching import DecidedPayment, Decision
from oncepaid.domain.memo import Memo
from oncepaid.domain.money import Units
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
    SELECT q.tx_hash FROM payments q
     WHERE q.chain_id = $1 AND q.tx_hash = ANY($7::text[]) AND q.status <> 'orphaned'
       AND NOT EXISTS (SELECT FROM unnest($7::text[], $10::text[]) AS p (tx_hash, block_hash)
                        WHERE p.tx_hash = q.tx_hash AND p.block_hash = q.block_hash)
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
  FROM payments WHERE status = 'seen' AND chain_id = $2 AND id > $3 ORDER BY id LIMIT $1
   FOR UPDATE SKIP LOCKED
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
WITH sums AS (
    SELECT job_id, sum(amount_units) AS units FROM payments
     WHERE id = ANY($1::bigint[]) AND status = 'matched' GROUP BY job_id
), j AS (
    SELECT jobs.id, jobs.job_uuid, jobs.status, jobs.price_usdc, sums.units
      FROM jobs JOIN sums ON sums.job_id = jobs.id ORDER BY jobs.id
       FOR NO KEY UPDATE OF jobs SKIP LOCKED
)
UPDATE payments p
   SET status = 'unmatched',
       reason = CASE WHEN j.status <> 'pending' THEN 'duplicate'
                     WHEN j.price_usdc IS NULL THEN 'job_not_payable' ELSE 'underpaid' END
  FROM j
 WHERE p.id = ANY($1::bigint[]) AND p.status = 'matched' AND j.id = p.job_id
   AND (j.status <> 'pending' OR j.price_usdc IS NULL OR j.units < j.price_usdc * 1000000)
RETURNING p.id, p.tx_hash, p.amount_units, p.reason, j.job_uuid::text AS job_uuid
"""

# Locks payments before jobs, and both in order, as `_SEEN` and `_LOCK_JOBS` do.
_CREDIT = """
WITH due AS (
    SELECT id, job_id, amount_units FROM payments
     WHERE id = ANY($1::bigint[]) AND status = 'matched' ORDER BY id FOR UPDATE
), sums AS (
    SELECT job_id, sum(amount_units) AS units FROM due GROUP BY job_id
), open AS (
    SELECT j.id, s.units FROM jobs j JOIN sums s ON s.job_id = j.id
     WHERE j.status = 'pending' AND s.units >= j.price_usdc * 1000000
     ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
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


_FIRST: Final = PaymentId(0)


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
            payments = [_seen_of(row) for row in rows]
            named = await lock_named_jobs(connection, payments)
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
