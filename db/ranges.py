"""What a listener writes: ranges of payments, the cursor, and where it may be rolled back to.

Every write moves or touches the cursor's row `WHERE epoch = …`: a listener that no longer leads can
write nothing, however late it comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg

from db.chain_state import ChainState, Checkpoint, chain_state_of
from db.payment_rows import (
    BARE,
    INSERT_PAYMENTS,
    LOG_COLUMNS,
    columns_of,
    insert_payments,
    orphan,
    stored_log_of,
)
from db.pool import Connection, Database
from oncepaid.domain.chain import BlockHash, BlockRef, Header, TxHash
from oncepaid.domain.errors import InconsistentNode, NotLeading
from oncepaid.domain.payments import ObservedPayment, OrphanedPayment, PaymentId, StoredLog

LATEST: Final = datetime.max.replace(tzinfo=UTC)

# What stands in the tables and cannot be, if what was fetched is true: a payment in the range that
# was not fetched, or a transaction that counts in another block. In another one its logs may have
# other numbers, so that no unique index would see it.
_STORE_RANGE = f"""
WITH contradicted AS (
    (SELECT 1 FROM payments q
      WHERE q.chain_id = $1 AND q.tx_hash = ANY($2::text[]) AND q.status <> 'orphaned'
        AND q.id <> ALL($20::bigint[])
        AND NOT EXISTS (SELECT FROM unnest($2::text[], $5::text[]) AS p (tx_hash, block_hash)
                         WHERE p.tx_hash = q.tx_hash AND p.block_hash = q.block_hash)
      LIMIT 1)
    UNION ALL
    (SELECT 1 FROM payments q
      WHERE q.chain_id = $1 AND q.block_number > $14 AND q.block_number <= $16
        AND q.status <> 'orphaned' AND q.id <> ALL($20::bigint[])
        AND NOT EXISTS (SELECT FROM unnest($5::text[], $3::bigint[]) AS p (block_hash, log_index)
                         WHERE p.block_hash = q.block_hash AND p.log_index = q.log_index)
      LIMIT 1)
), moved AS (
    UPDATE chain_cursor
       SET block_number = $16, block_hash = $17, block_time = $18, updated_at = now()
     WHERE chain_id = $1 AND block_number = $14 AND block_hash = $15
       AND epoch = $19 AND NOT EXISTS (SELECT FROM contradicted)
 RETURNING 1
), checkpoint AS (
    INSERT INTO chain_checkpoints (chain_id, block_number, block_hash, block_time)
    SELECT $1, $16, $17, $18 WHERE EXISTS (SELECT FROM moved)
    ON CONFLICT (chain_id, block_number)
       DO UPDATE SET block_hash = excluded.block_hash, block_time = excluded.block_time,
                     stored_at = clock_timestamp()
), stored AS ({INSERT_PAYMENTS.format(condition="EXISTS (SELECT FROM moved)")})
SELECT (SELECT count(*) FROM moved) AS moved, (SELECT count(*) FROM stored) AS stored,
       EXISTS (SELECT FROM contradicted) AS is_contradicted
"""

_LIVE_LOGS = f"""
SELECT {LOG_COLUMNS} FROM payments
 WHERE chain_id = $1 AND status <> 'orphaned' AND block_number BETWEEN $2 AND $3
UNION
SELECT {LOG_COLUMNS} FROM payments
 WHERE chain_id = $1 AND status <> 'orphaned' AND tx_hash = ANY($4::text[])
 ORDER BY block_number, log_index
"""

_REWIND = """
UPDATE chain_cursor
   SET block_number = $4, block_hash = $5, block_time = $6, updated_at = now(),
       checked_number = least(checked_number, $4), start_number = least(start_number, $4)
 WHERE chain_id = $1 AND block_number = $2 AND block_hash = $3 AND epoch = $7
RETURNING 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRange:
    """What became of a range.

    `moved` False: another listener moved the cursor first, or what the tables hold contradicts the
    range (`is_contradicted`); nothing was stored.
    """

    moved: bool
    stored: int
    is_contradicted: bool = False
    orphaned: tuple[OrphanedPayment, ...] = ()


class _NothingStored(Exception):
    """Rolls back what was orphaned for a range that was then not stored."""

    def __init__(self, stored: StoredRange) -> None:
        super().__init__()
        self.stored = stored


class RangeStore:
    """The listener's side of `payments`, `chain_cursor` and `chain_checkpoints` of one chain."""

    def __init__(self, database: Database, chain_id: int) -> None:
        self._database = database
        self._chain_id = chain_id

    async def store_range(
        self,
        cursor: BlockRef,
        end: Header,
        payments: Sequence[ObservedPayment],
        *,
        epoch: int,
        gone: Sequence[PaymentId] = (),
        kept: Sequence[PaymentId] = (),
    ) -> StoredRange:
        """Store a range's payments and move the cursor from `cursor` to `end`, or do neither.

        A payment that is stored already is left alone; one whose block came back counts again.
        `gone` are rows that are orphaned with it, `kept` such as contradict the range and stay.
        Raises `NotLeading` where `epoch` is over.
        """
        arguments = (
            self._chain_id,
            *columns_of(payments),
            *(cursor.number, cursor.hash, end.number, end.hash, end.time),
            *(epoch, list(kept)),
        )
        if not gone:
            async with self._database.connection() as connection:
                stored = await _stored(connection, arguments)
        else:
            try:
                async with self._database.transaction() as connection:
                    # First the cursor's row: a late listener waits for it, and changes nothing.
                    await self._lock_cursor(connection, epoch)
                    orphaned = await orphan(connection, gone)
                    stored = await _stored(connection, arguments)
                    if not stored.moved:
                        raise _NothingStored(stored)
            except _NothingStored as exc:
                return exc.stored
            return replace(stored, orphaned=tuple(orphaned))
        if not stored.moved and not stored.is_contradicted:
            await self._check_lead(epoch)
        return stored

    async def live_logs(
        self, first: int, last: int, tx_hashes: Sequence[TxHash] = ()
    ) -> list[StoredLog]:
        """Return the payments that count in these blocks, or are of these transactions."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_LIVE_LOGS, self._chain_id, first, last, list(tx_hashes))
        return [stored_log_of(row) for row in rows]

    async def bare_logs(self, first: int, last: int) -> list[StoredLog]:
        """Return the payments of these blocks that have no memo and were not counted."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""
                SELECT {LOG_COLUMNS} FROM payments q
                 WHERE chain_id = $1 AND status <> 'orphaned' AND block_number BETWEEN $2 AND $3
                   AND {BARE}
                """,
                *(self._chain_id, first, last),
            )
        return [stored_log_of(row) for row in rows]

    async def newest_logs(self, *, below: int, limit: int) -> list[StoredLog]:
        """Return the payments that count below a height, the highest first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""
                SELECT {LOG_COLUMNS} FROM payments
                 WHERE chain_id = $1 AND status <> 'orphaned' AND block_number < $2
                 ORDER BY block_number DESC, log_index DESC LIMIT $3
                """,
                *(self._chain_id, below, limit),
            )
        return [stored_log_of(row) for row in rows]

    async def state(self) -> ChainState | None:
        """Return how far the chain was read, and how far that was confirmed."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                """
                SELECT block_number, block_hash, start_number, checked_number, finalized_number,
                       conflict
                  FROM chain_cursor WHERE chain_id = $1
                """,
                self._chain_id,
            )
        return None if row is None else chain_state_of(row)

    async def checkpoints(
        self,
        *,
        limit: int,
        below: int | None = None,
        min_age: timedelta = timedelta(0),
        until: datetime | None = None,
    ) -> list[Checkpoint]:
        """Return the newest checkpoints, the highest first.

        Only such as lie `below` a height, were stored `min_age` ago, and have a block time `until`
        then.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """
                SELECT block_number, block_hash, block_time, clock_timestamp() - stored_at AS age
                  FROM chain_checkpoints
                 WHERE chain_id = $1 AND block_number < $2
                   AND stored_at <= clock_timestamp() - $3::interval AND block_time <= $4
                 ORDER BY block_number DESC LIMIT $5
                """,
                *(self._chain_id, 2**63 - 1 if below is None else below),
                *(min_age, until or LATEST, limit),
            )
        return [
            Checkpoint(
                block=BlockRef(number=row["block_number"], hash=BlockHash(row["block_hash"])),
                time=row["block_time"],
                age=row["age"],
            )
            for row in rows
        ]

    async def rewind(
        self, cursor: BlockRef, to: Header, gone: Sequence[PaymentId], *, epoch: int
    ) -> list[OrphanedPayment] | None:
        """Take the cursor back to a common ancestor and orphan payments, in one transaction.

        None: the cursor is not there any more. Raises `NotLeading` where `epoch` is over.
        """
        async with self._database.transaction() as connection:
            await self._lock_cursor(connection, epoch)
            moved = await connection.fetchval(
                _REWIND,
                *(self._chain_id, cursor.number, cursor.hash),
                *(to.number, to.hash, to.time, epoch),
            )
            if moved is None:
                return None
            await connection.execute(
                "DELETE FROM chain_checkpoints WHERE chain_id = $1 AND block_number >= $2",
                self._chain_id,
                to.number,
            )
            await add_checkpoints(connection, self._chain_id, [to])
            return await orphan(connection, gone)

    async def repair(
        self,
        last: int,
        missing: Sequence[ObservedPayment],
        gone: Sequence[PaymentId],
        *,
        epoch: int,
        checked: int,
        anchor: BlockRef,
    ) -> list[OrphanedPayment]:
        """Store what was missing up to block `last` and orphan what is gone, in one transaction.

        `checked` moves the mark of what was asked twice. `anchor` is a checkpoint of the chain that
        was compared. Raises `NotLeading`, also where `anchor` was rolled back.
        """
        async with self._database.transaction() as connection:
            await self._lock_cursor(connection, epoch, at_least=last)
            await self._require_checkpoint(connection, anchor)
            orphaned = await orphan(connection, gone)
            if missing:
                await insert_payments(connection, self._chain_id, missing)
            await connection.execute(
                """
                UPDATE chain_cursor SET checked_number = greatest(checked_number, $2)
                 WHERE chain_id = $1
                """,
                *(self._chain_id, checked),
            )
        return orphaned

    async def mark_finalized(self, block: Header, *, anchor: BlockRef, epoch: int) -> None:
        """Note that a block is final, which was read and asked twice; it becomes a checkpoint.

        Forgets the checkpoints below it. Nothing happens where the mark is higher already. `anchor`
        is a checkpoint on the chain that `block` was read from. Raises `NotLeading` where that was
        rolled back.
        """
        async with self._database.transaction() as connection:
            await self._lock_cursor(connection, epoch, at_least=block.number)
            await self._require_checkpoint(connection, anchor)
            moved = await connection.fetchval(
                """
                UPDATE chain_cursor SET finalized_number = $2
                 WHERE chain_id = $1 AND finalized_number < $2
                   AND coalesce(checked_number, block_number) >= $2
                RETURNING 1
                """,
                *(self._chain_id, block.number),
            )
            if moved is not None:
                await add_checkpoints(connection, self._chain_id, [block])
                await connection.execute(
                    "DELETE FROM chain_checkpoints WHERE chain_id = $1 AND block_number < $2",
                    *(self._chain_id, block.number),
                )

    async def declare_conflict(self, what: str, *, epoch: int) -> None:
        """Stop all crediting, in every process, until an operator acts; says it once."""
        async with self._database.transaction() as connection:
            await self._lock_cursor(connection, epoch)
            await connection.execute(
                """
                UPDATE chain_cursor SET conflict = $2, conflict_at = clock_timestamp()
                 WHERE chain_id = $1 AND conflict IS NULL
                """,
                self._chain_id,
                what,
            )

    async def _lock_cursor(self, connection: Connection, epoch: int, at_least: int = 0) -> None:
        row = await connection.fetchrow(
            """
            SELECT epoch, block_number FROM chain_cursor WHERE chain_id = $1 FOR NO KEY UPDATE
            """,
            self._chain_id,
        )
        if row is None or row["epoch"] != epoch:
            raise NotLeading("another daemon reads the chain now")
        if row["block_number"] < at_least:
            raise NotLeading(f"the cursor was taken back below block {at_least}")

    async def _require_checkpoint(self, connection: Connection, block: BlockRef) -> None:
        stands = await connection.fetchval(
            """
            SELECT EXISTS (SELECT FROM chain_checkpoints
                            WHERE chain_id = $1 AND block_number = $2 AND block_hash = $3)
            """,
            *(self._chain_id, block.number, block.hash),
        )
        if not stands:
            raise NotLeading(f"block {block} was rolled back meanwhile")

    async def _check_lead(self, epoch: int) -> None:
        async with self._database.connection() as connection:
            now = await connection.fetchval(
                "SELECT epoch FROM chain_cursor WHERE chain_id = $1", self._chain_id
            )
        if now != epoch:
            raise NotLeading("another daemon reads the chain now")


async def _stored(connection: Connection, arguments: tuple[Any, ...]) -> StoredRange:
    try:
        row = await connection.fetchrow(_STORE_RANGE, *arguments)
    except asyncpg.UniqueViolationError as exc:
        raise InconsistentNode(f"a payment is there twice: {exc.detail}") from exc
    assert row is not None
    return StoredRange(
        moved=row["moved"] == 1, stored=row["stored"], is_contradicted=row["is_contradicted"]
    )


async def add_checkpoints(connection: Connection, chain_id: int, headers: Sequence[Header]) -> None:
    """Remember blocks as places where the chain may be rolled back to."""
    await connection.executemany(
        """
        INSERT INTO chain_checkpoints (chain_id, block_number, block_hash, block_time)
        VALUES ($1, $2, $3, $4) ON CONFLICT (chain_id, block_number) DO NOTHING
        """,
        [(chain_id, header.number, header.hash, header.time) for header in headers],
    )
