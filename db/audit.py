"""What an audit reads of the tables, and what an operator changes: each with a line in the log."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import asyncpg

from db.payment_rows import LOG_COLUMNS, insert_payments, orphan, stored_log_of
from db.pool import Connection, Database
from oncepaid.domain.auditing import AttemptFacts, DoubledTransaction, JobFacts
from oncepaid.domain.chain import BlockRef, TxHash
from oncepaid.domain.errors import NotLeading
from oncepaid.domain.jobs import JobId
from oncepaid.domain.money import Units
from oncepaid.domain.payments import ObservedPayment, OrphanedPayment, PaymentId, StoredLog

MAX_FOUND: Final = 100
"""So many transactions, or payments above the cursor, are named at most."""
JOBS_A_PAGE: Final = 1000

_DOUBLED: Final = """
SELECT tx_hash, array_agg(id ORDER BY id) AS payments FROM payments
 WHERE chain_id = $1 AND status <> 'orphaned'
   AND ($3 < 0 OR tx_hash IN (SELECT tx_hash FROM payments
                               WHERE chain_id = $1 AND status <> 'orphaned' AND block_number > $3))
 GROUP BY tx_hash
HAVING count(*) <> count(DISTINCT log_index) OR count(DISTINCT block_hash) > 1
 ORDER BY tx_hash LIMIT $2
"""

_ABOVE: Final = f"""
SELECT {LOG_COLUMNS} FROM payments
 WHERE chain_id = $1 AND status <> 'orphaned'
   AND block_number > (SELECT block_number FROM chain_cursor WHERE chain_id = $1)
 ORDER BY block_number, log_index LIMIT $2
"""

# The output is turned into the column's own type, as it was when it was written: a hub's may be
# json or text.
_JOBS: Final = """
WITH ours AS (
    SELECT id, job_uuid::text AS job_uuid, status, credited_units, is_unbacked, attempt_id,
           output_data
      FROM jobs
     WHERE id > $1
       AND ($3 < 0 OR is_unbacked
            OR id IN (SELECT job_id FROM payments
                       WHERE chain_id = $4 AND status <> 'orphaned' AND block_number > $3))
       AND (credited_units > 0 OR is_unbacked
            OR EXISTS (SELECT FROM payments p WHERE p.job_id = jobs.id AND p.status = 'credited')
            OR EXISTS (SELECT FROM losses l WHERE l.job_id = jobs.id AND l.made_good_at IS NULL))
     ORDER BY id LIMIT $2
)
SELECT ours.id, ours.job_uuid, ours.status, ours.credited_units, ours.is_unbacked, ours.attempt_id,
       money.credited, money.unreversed, money.settled, money.first_credited_at,
       lost.losses, lost.open_losses,
       a.id AS found_attempt, a.job_id = ours.id AS is_its_own, a.outcome, a.started_at,
       a.finished_at,
       coalesce((jsonb_populate_record(
           NULL::jobs, jsonb_build_object('output_data', a.output_data))).output_data::text
           = ours.output_data::text, false) AS output_is_attempts
  FROM ours
  LEFT JOIN generation_attempts a ON a.id = ours.attempt_id
 CROSS JOIN LATERAL (
    SELECT coalesce(sum(amount_units) FILTER (WHERE status = 'credited'), 0) AS credited,
           coalesce(sum(amount_units) FILTER (
               WHERE status = 'orphaned' AND orphaned_from = 'credited' AND reversed_at IS NULL),
               0) AS unreversed,
           coalesce(sum(amount_units) FILTER (
               WHERE coalesce(orphaned_from, status) IN ('refunded', 'ignored')
                 AND credited_at IS NOT NULL), 0) AS settled,
           min(credited_at) FILTER (WHERE status = 'credited') AS first_credited_at
      FROM payments WHERE job_id = ours.id) AS money
 CROSS JOIN LATERAL (
    SELECT count(*) AS losses, count(*) FILTER (WHERE made_good_at IS NULL) AS open_losses
      FROM losses WHERE job_id = ours.id) AS lost
 ORDER BY ours.id
"""

# The block that the chain was read by must still be one that we go by: else what was read belongs
# to a fork that was left meanwhile. Below the final mark checkpoints are pruned.
_LOCK_CURSOR: Final = """
SELECT block_number >= $2 AND (
           finalized_number > $3
           OR EXISTS (SELECT FROM chain_checkpoints
                       WHERE chain_id = $1 AND block_number = $3 AND block_hash = $4))
  FROM chain_cursor WHERE chain_id = $1 FOR NO KEY UPDATE
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A line of the audit log: who did what. `details` come with what was done."""

    who: str
    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """The chain's contradiction of what was final. `what` None: there is none."""

    what: str | None
    since: datetime | None
    cursor: BlockRef
    finalized: int


class AuditStore:
    """Reads what the invariants speak of, on one chain; jobs know of no chain."""

    def __init__(self, database: Database, chain_id: int) -> None:
        self._database = database
        self._chain_id = chain_id

    async def credited_in(self, first: int, last: int) -> set[PaymentId]:
        """Return the payments of these blocks that are credited."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """
                SELECT id FROM payments
                 WHERE chain_id = $1 AND status = 'credited' AND block_number BETWEEN $2 AND $3
                """,
                *(self._chain_id, first, last),
            )
        return {PaymentId(row["id"]) for row in rows}

    async def doubled(self, above: int = -1) -> list[DoubledTransaction]:
        """Return transactions that count more than once, at most `MAX_FOUND`.

        Only such as have a payment above a block; -1 looks at all.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(_DOUBLED, self._chain_id, MAX_FOUND, above)
        return [
            DoubledTransaction(tx_hash=TxHash(row["tx_hash"]), payments=tuple(row["payments"]))
            for row in rows
        ]

    async def above_cursor(self) -> list[StoredLog]:
        """Return payments that count above the cursor, at most `MAX_FOUND`."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_ABOVE, self._chain_id, MAX_FOUND)
        return [stored_log_of(row) for row in rows]

    async def jobs(self, after: JobId, above: int = -1) -> tuple[list[JobFacts], JobId | None]:
        """Return a page of the jobs that money was counted for, and where the next one begins.

        Only such as have a payment above a block, or are unbacked; -1 looks at all.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(_JOBS, after, JOBS_A_PAGE, above, self._chain_id)
        more = JobId(rows[-1]["id"]) if len(rows) == JOBS_A_PAGE else None
        return [_job_of(row) for row in rows], more


class OperatorStore:
    """An operator's changes of what is known of one chain, in one transaction with their note."""

    def __init__(self, database: Database, chain_id: int) -> None:
        self._database = database
        self._chain_id = chain_id

    async def repair(
        self,
        first: int,
        last: int,
        missing: Sequence[ObservedPayment],
        gone: Sequence[PaymentId],
        *,
        anchor: BlockRef,
        note: Note,
    ) -> list[OrphanedPayment]:
        """Store what was missing in these blocks and orphan what is gone.

        Raises `NotLeading` where a daemon has taken the cursor back below `last`, or off the chain
        of `anchor`, by which they were read: the blocks must be read again.
        """
        async with self._database.transaction() as connection:
            stands = await connection.fetchval(
                _LOCK_CURSOR, self._chain_id, last, anchor.number, anchor.hash
            )
            if not stands:
                raise NotLeading("a daemon has taken the cursor back meanwhile")
            orphaned = await orphan(connection, gone)
            added = await insert_payments(connection, self._chain_id, missing) if missing else 0
            if added or orphaned:
                details = {
                    "chain_id": self._chain_id,
                    "first_block": first,
                    "last_block": last,
                    "added": [f"{p.log.tx_hash}:{p.log.log_index}" for p in missing],
                    "orphaned": [payment.id for payment in orphaned],
                }
                await write_note(connection, note, details)
        return orphaned

    async def conflict(self) -> Conflict | None:
        """Return what stands in the way of crediting; None while the chain was never read."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                """
                SELECT conflict, conflict_at, block_number, block_hash, finalized_number
                  FROM chain_cursor WHERE chain_id = $1
                """,
                self._chain_id,
            )
        if row is None:
            return None
        return Conflict(
            what=row["conflict"],
            since=row["conflict_at"],
            cursor=BlockRef(number=row["block_number"], hash=row["block_hash"]),
            finalized=row["finalized_number"],
        )

    async def resolve_conflict(self, *, accept: bool, why: str, note: Note) -> str | None:
        """Clear a conflict and return what it was; None where there was none.

        `accept` also forgets what was final: a listener may go back below it.
        """
        async with self._database.transaction() as connection:
            before = await connection.fetchrow(
                """
                SELECT conflict, finalized_number FROM chain_cursor
                 WHERE chain_id = $1 AND conflict IS NOT NULL FOR NO KEY UPDATE
                """,
                self._chain_id,
            )
            if before is None:
                return None
            await connection.execute(
                """
                UPDATE chain_cursor
                   SET conflict = NULL, conflict_at = NULL,
                       finalized_number = CASE WHEN $2 THEN -1 ELSE finalized_number END
                 WHERE chain_id = $1
                """,
                *(self._chain_id, accept),
            )
            details = {
                "chain_id": self._chain_id,
                "conflict": before["conflict"],
                "finalized_number": before["finalized_number"],
                "accepted": accept,
                "why": why,
            }
            await write_note(connection, note, details)
        found: str = before["conflict"]
        return found


async def write_note(connection: Connection, note: Note, details: dict[str, Any]) -> None:
    """Write a line of the audit log in the transaction of what it tells of."""
    await connection.execute(
        "INSERT INTO audit_log (who, action, details) VALUES ($1, $2, $3)",
        *(note.who, note.action, details),
    )


def _job_of(row: asyncpg.Record) -> JobFacts:
    attempt = None
    if row["found_attempt"] is not None:
        attempt = AttemptFacts(
            is_its_own=row["is_its_own"],
            outcome=row["outcome"],
            started_at=row["started_at"],
            is_finished=row["finished_at"] is not None,
        )
    return JobFacts(
        uuid=row["job_uuid"],
        status=row["status"],
        counted=Units(int(row["credited_units"])),
        is_unbacked=row["is_unbacked"],
        credited=Units(int(row["credited"])),
        unreversed=Units(int(row["unreversed"])),
        settled=Units(int(row["settled"])),
        losses=row["losses"],
        open_losses=row["open_losses"],
        first_credited_at=row["first_credited_at"],
        names_attempt=row["attempt_id"] is not None,
        attempt=attempt,
        output_is_attempts=row["output_is_attempts"],
    )
