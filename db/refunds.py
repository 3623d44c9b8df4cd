"""What a watch over our own transfers reads and writes: its mark, and the payments they name."""

from collections.abc import Sequence
from typing import Final

import asyncpg

from db.audit import Note
from db.desk import DeskStore
from db.payment_rows import LOG_COLUMNS, stored_log_of
from db.pool import Database
from oncepaid.domain.chain import BlockHash, BlockRef, TransferLog, TxHash
from oncepaid.domain.desk import RefundRuling
from oncepaid.domain.errors import NotLeading
from oncepaid.domain.payments import PaymentId, PaymentStatus
from oncepaid.domain.refunding import NamedPayment, RefundMark, RefundName

WATCHER: Final = Note(who="oncepaid", action="payment.refund")
MAX_NAMED: Final = 500
"""Payments of one transaction, and again so many orphaned ones; a block has room for more."""

# A range of hashes of one length is the same in every collation. Two looks, each at an index of
# its own.
_OF_TRANSACTION: Final = f"""
    SELECT {LOG_COLUMNS}, status FROM payments
     WHERE chain_id = $1 AND tx_hash BETWEEN n.prefix || repeat('0', 32)
                                         AND n.prefix || repeat('f', 32)
"""
_NAMED: Final = f"""
SELECT p.*, r.tx_hash AS sent_back_by, r.log_index AS sent_back_at
  FROM unnest($2::text[]) AS n (prefix)
 CROSS JOIN LATERAL (
    ({_OF_TRANSACTION} AND status <> 'orphaned' ORDER BY id LIMIT $3)
     UNION ALL
    ({_OF_TRANSACTION} AND status = 'orphaned' ORDER BY id LIMIT $3)) AS p
  LEFT JOIN payment_refunds r ON r.payment_id = p.id
 ORDER BY p.id
"""


class RefundStore:
    """Refunds of one chain, as they are recognised by themselves."""

    def __init__(self, database: Database, chain_id: int) -> None:
        self._database = database
        self._chain_id = chain_id
        self._desk = DeskStore(database, chain_id)

    async def refund_mark(self) -> RefundMark | None:
        """Return up to where our transfers were looked at, and may be; None before a first start.

        A chain that was never looked at is looked at from where its payments begin.
        """
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                """
                SELECT coalesce(c.refunds_number, c.start_number, c.block_number) AS looked_at,
                       c.conflict IS NOT NULL AS is_in_conflict, p.block_number, p.block_hash
                  FROM chain_cursor c
                  LEFT JOIN chain_checkpoints p
                    ON p.chain_id = c.chain_id AND p.block_number = c.finalized_number
                 WHERE c.chain_id = $1
                """,
                self._chain_id,
            )
        if row is None:
            return None
        final = None
        if row["block_hash"] is not None:
            final = BlockRef(number=row["block_number"], hash=BlockHash(row["block_hash"]))
        return RefundMark(
            looked_at=row["looked_at"], final=final, is_in_conflict=row["is_in_conflict"]
        )

    async def named(self, names: Sequence[RefundName]) -> list[NamedPayment]:
        """Return the payments of the transactions that are named, the orphaned ones among them."""
        prefixes = [f"0x{name.hex()}" for name in names]
        async with self._database.connection() as connection:
            rows = await connection.fetch(_NAMED, self._chain_id, prefixes, MAX_NAMED)
        return [_named_of(row) for row in rows]

    async def record(self, payment: PaymentId, sent: TransferLog, *, why: str) -> RefundRuling:
        """Record a transfer that names the payment which it sends back, and close that if it may.

        Doing it again changes nothing.
        """
        return await self._desk.record_refund(payment, sent, why=why, note=WATCHER, is_watched=True)

    async def move_refund_mark(self, block_number: int, *, epoch: int) -> None:
        """Note that our transfers were looked at up to a block. Raises `NotLeading`."""
        async with self._database.connection() as connection:
            moved = await connection.fetchval(
                """
                UPDATE chain_cursor SET refunds_number = greatest(refunds_number, $2)
                 WHERE chain_id = $1 AND epoch = $3 RETURNING 1
                """,
                *(self._chain_id, block_number, epoch),
            )
        if moved is None:
            raise NotLeading("another daemon reads the chain now")


def _named_of(row: asyncpg.Record) -> NamedPayment:
    sent_back = None
    if row["sent_back_by"] is not None:
        sent_back = TxHash(row["sent_back_by"]), int(row["sent_back_at"])
    return NamedPayment(
        log=stored_log_of(row), status=PaymentStatus(row["status"]), sent_back=sent_back
    )
