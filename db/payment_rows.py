"""Payments as rows: how they are inserted, and how they come back as facts."""

from collections.abc import Sequence
from typing import Any, Final

import asyncpg
import orjson

from db.pool import Connection
from oncepaid.domain.chain import Address, BlockHash, BlockRef, TxHash
from oncepaid.domain.errors import InconsistentNode
from oncepaid.domain.memo import Memo, Reference
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

BARE: Final = """(q.evidence = '[]' AND (
    q.status = 'seen'
    OR (q.status = 'unmatched' AND (q.reason = 'no_memo'
                                    OR (q.reason = 'underpaid' AND q.job_id IS NULL)))))"""
"""A payment without a memo that was not counted: it may have one that a node did not tell of."""

_OPERATORS: Final = """'$[*] ? (@.signer == "operator")'"""
_NOT_OPERATORS: Final = """'$[*] ? (@.signer != "operator")'"""

# What was decided of an orphaned payment, and holds wherever it comes back. Null: nothing was.
_BECOMES: Final = f"""
    CASE WHEN o.status <> 'orphaned' THEN NULL
         WHEN o.orphaned_from = 'refunded'
              OR EXISTS (SELECT FROM payment_refunds r WHERE r.payment_id = o.id) THEN 'refunded'
         WHEN o.orphaned_from = 'ignored' THEN 'ignored'
         WHEN o.evidence @? {_OPERATORS} THEN 'seen' END"""

# A payment whose block came back, or whose transaction was mined again in another one, is still
# what was decided of it: what went back is `refunded`, else the newest decision holds. In another
# block its log may have another number: it is known by its place among the equal transfers of its
# transaction. Of these there may be thousands, orphaned several times. So places are counted for
# blocks where something was decided only, and by sorting: a join of so many may be planned as if
# they were few.
_LAST_TIME: Final = f"""
    decided AS MATERIALIZED (
        SELECT DISTINCT o.tx_hash, o.block_hash FROM payments o
         WHERE o.chain_id = $1 AND o.tx_hash = ANY($2::text[]) AND o.status = 'orphaned'
           AND {_BECOMES} IS NOT NULL
    ), equals AS (
        SELECT n, tx_hash, block_hash, log_index, sender, recipient, amount_units,
               NULL AS becomes, NULL::timestamptz AS orphaned_at, NULL::bigint AS job_id,
               NULL AS reason, NULL::jsonb AS words
          FROM told WHERE tx_hash = ANY(ARRAY(SELECT tx_hash FROM decided))
         UNION ALL
        SELECT NULL, o.tx_hash, o.block_hash, o.log_index, o.sender, o.recipient, o.amount_units,
               {_BECOMES}, o.orphaned_at, o.job_id, o.reason,
               jsonb_path_query_array(o.evidence, {_OPERATORS})
          FROM payments o
         WHERE o.chain_id = $1 AND o.tx_hash = ANY(ARRAY(SELECT tx_hash FROM decided))
           AND o.block_hash = ANY(ARRAY(
                   SELECT block_hash FROM decided UNION SELECT block_hash FROM told
                    WHERE tx_hash = ANY(ARRAY(SELECT tx_hash FROM decided))))
    ), placed AS (
        SELECT *, dense_rank() OVER (
                   PARTITION BY tx_hash, block_hash, sender, recipient, amount_units
                   ORDER BY log_index) AS place
          FROM equals
    ), was AS (
        SELECT n, first_value(becomes) OVER decisions AS becomes,
               first_value(job_id) OVER decisions AS job_id,
               first_value(reason) OVER decisions AS reason,
               first_value(words) OVER decisions AS words
          FROM placed
        WINDOW decisions AS (
               PARTITION BY tx_hash, sender, recipient, amount_units, place
               ORDER BY becomes IS DISTINCT FROM 'refunded', becomes IS NULL, orphaned_at DESC)
    )"""

# A credit that was not reversed yet stands; so does what was decided.
_STILL_CREDITED: Final = "q.orphaned_from = 'credited' AND q.reversed_at IS NULL"

INSERT_PAYMENTS: Final = f"""
    WITH told AS (
        SELECT * FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::text[],
                             $6::timestamptz[], $7::text[], $8::text[], $9::numeric[],
                             $10::bytea[], $11::text[], $12::text[], $13::int[]) WITH ORDINALITY
            AS p (tx_hash, log_index, block_number, block_hash, block_time, sender, recipient,
                  amount_units, memo, memo_source, evidence, transfers_in_tx, n)
    ), {_LAST_TIME}
    INSERT INTO payments AS q (chain_id, tx_hash, log_index, block_number, block_hash, block_time,
                               sender, recipient, amount_units, memo, memo_source, evidence,
                               transfers_in_tx, status, job_id, reason)
    SELECT $1, p.tx_hash, p.log_index, p.block_number, p.block_hash, p.block_time, p.sender,
           p.recipient, p.amount_units, p.memo, p.memo_source,
           CASE WHEN was.words IS NULL THEN p.evidence::jsonb
                ELSE p.evidence::jsonb || was.words END,
           p.transfers_in_tx, coalesce(was.becomes, 'seen'),
           CASE WHEN was.becomes <> 'seen' THEN was.job_id END,
           CASE WHEN was.becomes <> 'seen' THEN was.reason END
      FROM told p LEFT JOIN was ON was.n = p.n AND was.becomes IS NOT NULL
     WHERE {{condition}} ORDER BY p.n
    ON CONFLICT (chain_id, block_hash, log_index) DO UPDATE
       SET status = CASE WHEN q.status <> 'orphaned' THEN 'seen'
                         WHEN {_STILL_CREDITED} THEN 'credited' ELSE excluded.status END,
           job_id = CASE WHEN q.status <> 'orphaned' THEN NULL
                         WHEN {_STILL_CREDITED} THEN q.job_id ELSE excluded.job_id END,
           reason = CASE WHEN q.status <> 'orphaned' OR {_STILL_CREDITED} THEN NULL
                         ELSE excluded.reason END,
           orphaned_from = NULL, orphaned_at = NULL, reversed_at = NULL,
           memo = coalesce(q.memo, excluded.memo),
           memo_source = coalesce(q.memo_source, excluded.memo_source),
           evidence = CASE WHEN q.evidence = '[]' THEN excluded.evidence
                           WHEN excluded.evidence @? {_OPERATORS}
                           THEN jsonb_path_query_array(q.evidence, {_NOT_OPERATORS})
                             || jsonb_path_query_array(excluded.evidence, {_OPERATORS})
                           ELSE q.evidence END,
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
    log = payment.log
    first = next((piece for piece in payment.evidence if piece.memo is not None), None)
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
        orjson.dumps([_json_of(piece) for piece in payment.evidence]).decode(),
        payment.transfers_in_tx,
    )


def _json_of(piece: Evidence) -> dict[str, Any]:
    """What is usual is left out: most payments have one memo, which their payer signed."""
    found: dict[str, Any] = {"source": piece.source, "signer": piece.signer}
    if piece.memo is not None:
        found["memo"] = piece.memo.hex()
    if piece.reference is not None:
        reference = piece.reference
        found["reference"] = {"issuer": reference.issuer, "value": reference.value.hex()}
    if piece.by is not None:
        found["by"] = piece.by
    if piece.company != 1:
        found["company"] = piece.company
    return found


def evidence_of(value: Any) -> tuple[Evidence, ...]:
    """Return what was found with a payment, from its column `evidence`."""
    return tuple(_piece_of(piece) for piece in value)


def _piece_of(piece: dict[str, Any]) -> Evidence:
    memo, reference = piece.get("memo"), piece.get("reference")
    return Evidence(
        memo=None if memo is None else Memo(bytes.fromhex(memo)),
        source=MemoSource(piece["source"]),
        signer=Signer(piece["signer"]),
        by=piece.get("by"),
        reference=None
        if reference is None
        else Reference(issuer=reference["issuer"], value=bytes.fromhex(reference["value"])),
        company=piece.get("company", 1),
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


# One that was known by its amount only where that is still its job's, and not another's by now.
_DECIDE_DUPLICATES_ANEW: Final = """
UPDATE payments p SET status = 'seen', job_id = NULL, reason = NULL
  FROM jobs j
 WHERE j.id = ANY($1::bigint[]) AND p.job_id = j.id AND p.status = 'unmatched'
   AND p.reason = 'duplicate' AND (p.evidence <> '[]' OR j.amount_is_held)
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
