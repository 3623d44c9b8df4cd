"""Payments as rows: how they are inserted, and how they come back as facts."""

from collections.abc import Sequence
from typing import Any, Final

import asyncpg
import orjson

from db.pool import Connection
from oncepaid.domain.chain import Address, BlockHash, BlockRef, TxHash
from oncepaid.domain.errors import InconsistentNode
from oncepaid.domain.memo import Memo
from oncepaid.domain.money import Units
from oncepaid.domain.payments import (
    Evidence,
    MemoSource,
    ObservedPayment,
    OrphanedPayment,
    PaymentId,
    PaymentStatus,
    Signer,
    StoredLog,
)

# A payment whose block came back is what it was where that still stands: an operator's decision,
# or a credit that was not reversed yet. Else it is seen anew.
_STANDS: Final = (
    "q.orphaned_from IN ('refunded', 'ignored')"
    " OR (q.orphaned_from = 'credited' AND q.reversed_at IS NULL)"
)

BARE: Final = """(q.evidence = '[]' AND (
    q.status = 'seen' OR (q.status = 'unmatched' AND q.reason = 'no_memo')))"""
"""A payment without a memo that was not counted: it may have one that a node did not tell of."""

INSERT_PAYMENTS: Final = f"""
    INSERT INTO payments AS q (chain_id, tx_hash, log_index, block_number, block_hash, block_time,
                               sender, recipient, amount_units, memo, memo_source, evidence,
                               transfers_in_tx)
    SELECT $1, p.tx_hash, p.log_index, p.block_number, p.block_hash, p.block_time, p.sender,
           p.recipient, p.amount_units, p.memo, p.memo_source, p.evidence::jsonb,
           p.transfers_in_tx
      FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::timestamptz[],
                  $7::text[], $8::text[], $9::numeric[], $10::bytea[], $11::text[], $12::text[],
                  $13::int[])
           AS p (tx_hash, log_index, block_number, block_hash, block_time, sender, recipient,
                 amount_units, memo, memo_source, evidence, transfers_in_tx)
     WHERE {{condition}}
    ON CONFLICT (chain_id, block_hash, log_index) DO UPDATE
       SET status = CASE WHEN {_STANDS} THEN q.orphaned_from ELSE 'seen' END,
           job_id = CASE WHEN {_STANDS} THEN q.job_id END,
           reason = CASE WHEN {_STANDS} THEN q.reason END,
           orphaned_from = NULL, orphaned_at = NULL, reversed_at = NULL,
           memo = coalesce(q.memo, excluded.memo),
           memo_source = coalesce(q.memo_source, excluded.memo_source),
           evidence = CASE WHEN q.evidence = '[]' THEN excluded.evidence ELSE q.evidence END,
           transfers_in_tx = greatest(q.transfers_in_tx, excluded.transfers_in_tx)
     WHERE q.status = 'orphaned' OR ({BARE} AND excluded.evidence <> '[]')
    RETURNING 1
"""
"""Takes the chain's id and the twelve columns of `columns_of`.

A payment whose block came back counts again; one whose memo a short answer had left out is decided
anew. Every other row that is there already stays as it is.
"""


async def insert_payments(
    connection: Connection, chain_id: int, payments: Sequence[ObservedPayment]
) -> int:
    """Store payments; returns how many were new, or came back from being orphaned."""
    sql = INSERT_PAYMENTS.format(condition="true")
    try:
        return len(await connection.fetch(sql, chain_id, *columns_of(payments)))
    except asyncpg.UniqueViolationError as exc:
        raise InconsistentNode(f"a payment is there twice: {exc.detail}") from exc


def columns_of(payments: Sequence[ObservedPayment]) -> list[list[Any]]:
    """Return the columns of payments, as arrays for `unnest`."""
    columns = [list(column) for column in zip(*map(_row_of, payments), strict=True)]
    return columns or [[] for _ in range(12)]


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


def evidence_of(value: Any) -> tuple[Evidence, ...]:
    """Return the memos that were found with a payment."""
    return tuple(
        Evidence(
            memo=Memo(bytes.fromhex(piece["memo"])),
            source=MemoSource(piece["source"]),
            signer=Signer(piece["signer"]),
        )
        for piece in value
    )


LOG_COLUMNS: Final = (
    "id, block_number, block_hash, tx_hash, log_index, sender, recipient, amount_units"
)
"""What `stored_log_of` reads."""


def stored_log_of(row: asyncpg.Record) -> StoredLog:
    """Return what a payment's row says of its log."""
    return StoredLog(
        id=PaymentId(row["id"]),
        block=BlockRef(number=row["block_number"], hash=BlockHash(row["block_hash"])),
        tx_hash=TxHash(row["tx_hash"]),
        log_index=row["log_index"],
        sender=Address(row["sender"]),
        recipient=Address(row["recipient"]),
        units=Units(int(row["amount_units"])),
    )


# Locks payments in order, before any job, as the matcher and the settler do.
_ORPHAN: Final = """
WITH gone AS (
    SELECT id, status FROM payments
     WHERE id = ANY($1::bigint[]) AND status <> 'orphaned' ORDER BY id FOR UPDATE
)
UPDATE payments p
   SET status = 'orphaned', orphaned_from = gone.status, orphaned_at = clock_timestamp(),
       reversed_at = NULL
  FROM gone WHERE p.id = gone.id
RETURNING p.id, p.tx_hash, p.amount_units, p.orphaned_from, p.job_id,
          (SELECT j.job_uuid::text FROM jobs j WHERE j.id = p.job_id) AS job_uuid
"""


_DECIDE_DUPLICATES_ANEW: Final = """
UPDATE payments SET status = 'seen', job_id = NULL, reason = NULL
 WHERE job_id = ANY($1::bigint[]) AND status = 'unmatched' AND reason = 'duplicate'
"""


async def orphan(connection: Connection, payments: Sequence[PaymentId]) -> list[OrphanedPayment]:
    """Orphan payments whose block is gone. What that means for their jobs, the reverser decides."""
    if not payments:
        return []
    rows = await connection.fetch(_ORPHAN, list(payments))
    # Who had paid a second time may pay the job now after all.
    await connection.execute(_DECIDE_DUPLICATES_ANEW, [row["job_id"] for row in rows])
    return [
        OrphanedPayment(
            id=PaymentId(row["id"]),
            tx_hash=TxHash(row["tx_hash"]),
            units=Units(int(row["amount_units"])),
            was=PaymentStatus(row["orphaned_from"]),
            job_uuid=row["job_uuid"],
        )
        for row in rows
    ]
