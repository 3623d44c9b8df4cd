"""The operator's desk: what he decides about payments, each in one transaction with its note."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final, assert_never

import asyncpg

from db.audit import Note, write_note
from db.desk_rows import MAX_PAYMENTS, jobs_of, logs_of_transaction
from db.payment_rows import LOG_COLUMNS, stored_log_of
from db.pool import HOST_REFUSES, Connection, Database
from oncepaid.domain.chain import TransferLog
from oncepaid.domain.desk import (
    OPEN,
    UNCREDITED,
    Allowed,
    Already,
    DeskJob,
    DeskPayment,
    Obstacle,
    Recorded,
    RefundRuling,
    Refused,
    Ruling,
    Twins,
    decide_assignment,
    decide_ignoring,
    decide_refund,
    twins_in,
)
from oncepaid.domain.errors import Permanent, Retryable
from oncepaid.domain.jobs import JobId
from oncepaid.domain.money import Units, format_usdc, units_of_price
from oncepaid.domain.payments import MemoSource, PaymentId, PaymentStatus, StoredLog

LOCK_TIMEOUT_S: Final = 3
"""A host that holds a job locked longer than this is told of, and not waited for."""
MAX_DIGITS: Final = 19
"""A bigint has so many; none of ours comes near."""

_LOCK_PAYMENT: Final = f"""
SELECT {LOG_COLUMNS}, chain_id, status, job_id, reason, evidence FROM payments
 WHERE id = $1 FOR UPDATE
"""

# The matcher takes the last operator's word of several: only one is kept.
_ASSIGN: Final = """
UPDATE payments
   SET status = 'seen', job_id = NULL, reason = NULL, matched_at = NULL,
       evidence = jsonb_path_query_array(evidence, '$[*] ? (@.source != "operator")')
           || jsonb_build_object('memo', encode($2::bytea, 'hex'), 'source', 'operator',
                                 'signer', 'operator')
 WHERE id = $1 AND status IN ('unmatched', 'ignored')
"""

_SETTLE: Final = """
UPDATE payments SET status = $2 WHERE id = $1 AND status = ANY($3::text[])
"""

_RECORD_REFUND: Final = """
INSERT INTO payment_refunds (payment_id, chain_id, tx_hash, log_index, recipient, amount_units,
                             recognised_by, warnings)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT DO NOTHING RETURNING 1
"""


class DeskBusy(Retryable):
    """Somebody else holds the payment or the job locked; nothing was changed."""


class HostRefuses(Permanent):
    """The host's own rules or columns do not let a job be changed; nothing was."""


class DeskStore:
    """An operator's decisions about the payments of one chain.

    Each method changes all or nothing and may be repeated; each change leaves a line in the audit
    log. Raises `DeskBusy` where a lock is not to be had in time.
    """

    def __init__(self, database: Database, chain_id: int) -> None:
        self._database = database
        self._chain_id = chain_id

    async def find_payments(self, name: str) -> list[PaymentId]:
        """Return the payment of a number, or those of a transaction that are not orphaned."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """
                SELECT id FROM payments WHERE id = $1
                UNION SELECT id FROM payments
                       WHERE chain_id = $2 AND tx_hash = $3 AND status <> 'orphaned'
                ORDER BY id LIMIT $4
                """,
                *(_number_of(name), self._chain_id, name.lower(), MAX_PAYMENTS),
            )
        return [PaymentId(row["id"]) for row in rows]

    async def find_job(self, name: str) -> JobId | None:
        """Return the job of a number or a UUID."""
        async with self._database.connection() as connection:
            found: int | None = await connection.fetchval(
                "SELECT id FROM jobs WHERE id = $1 OR job_uuid::text = lower($2)",
                *(_number_of(name), name),
            )
        return None if found is None else JobId(found)

    async def log_of(self, payment: PaymentId) -> StoredLog | None:
        """Return the log of a payment of this chain."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"SELECT {LOG_COLUMNS} FROM payments WHERE id = $1 AND chain_id = $2",
                *(payment, self._chain_id),
            )
        return None if row is None else stored_log_of(row)

    async def assign(
        self, payment: PaymentId, job: JobId, *, accept_short: bool, why: str, note: Note
    ) -> Ruling:
        """Give a payment to a job: the operator's word joins its evidence; the matcher decides.

        `accept_short` lowers the job's price to what there is, where that is less.
        """
        async with self._desk() as connection:
            found = await self._lock_payment(connection, payment)
            if isinstance(found, Refused):
                return found
            facts = found.facts
            jobs = await jobs_of(
                connection, [job], chain_id=self._chain_id, without=payment, lock=True
            )
            if job not in jobs:
                return Refused(obstacle=Obstacle.UNKNOWN, sentence=f"there is no job {job}")
            known = jobs[job]
            if _assigned_memo(found.row["evidence"]) == known.terms.memo:
                facts = replace(facts, assigned_to=job)
            ruling = decide_assignment(facts, known, accept_short=accept_short)
            if isinstance(ruling, Allowed):
                details = {"job_id": job, "job_uuid": known.uuid, "why": why}
                if ruling.lower_price_to is not None:
                    details |= await _lower_price(connection, known, ruling.lower_price_to)
                await connection.execute(_ASSIGN, payment, known.terms.memo)
                await write_note(connection, note, _details(found, **details))
        return ruling

    async def ignore(self, payment: PaymentId, *, why: str, note: Note) -> Ruling:
        """Close a payment with nothing owed for it."""
        async with self._desk() as connection:
            found = await self._lock_payment(connection, payment)
            if isinstance(found, Refused):
                return found
            ruling = decide_ignoring(found.facts)
            if isinstance(ruling, Allowed):
                await connection.execute(_SETTLE, payment, PaymentStatus.IGNORED, OPEN)
                await write_note(connection, note, _details(found, why=why))
        return ruling

    async def record_refund(
        self,
        payment: PaymentId,
        sent: TransferLog,
        *,
        why: str,
        note: Note,
        warnings: Sequence[str] = (),
        is_watched: bool = False,
    ) -> RefundRuling:
        """Close a payment as sent back by a transfer that was verified and is final.

        One that is `matched` leaves its job: the settler decides about the rest by its own sum.
        `is_watched`: the transfer itself names the payment, whichever row that is by now.
        """
        async with self._desk() as connection:
            found = await self._lock_payment(connection, payment)
            if is_watched and isinstance(found, _Found) and found.facts.came_again is not None:
                found = await self._lock_payment(connection, found.facts.came_again)
            if isinstance(found, Refused):
                return found
            serves = await self._served_by(connection, sent, found.twins)
            ruling = decide_refund(found.facts, sent.tx_hash, serves=serves, is_watched=is_watched)
            match ruling:
                case Already() | Refused():
                    return ruling
                case Recorded() | Allowed(is_recorded=False):
                    await self._record(connection, found.facts.id, sent, warnings, note.who)
                case Allowed():
                    pass
                case _:
                    assert_never(ruling)
            is_closed = isinstance(ruling, Allowed)
            if is_closed:
                await connection.execute(
                    _SETTLE, found.facts.id, PaymentStatus.REFUNDED, UNCREDITED
                )
            details = _of_refund(sent, warnings) | {"is_closed": is_closed, "why": why}
            await write_note(connection, note, _details(found, **details))
        return ruling

    @asynccontextmanager
    async def _desk(self) -> AsyncIterator[Connection]:
        try:
            async with self._database.transaction() as connection:
                await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")
                with _told_of_locks():
                    yield connection
        except HOST_REFUSES as exc:
            raise HostRefuses(f"the host's own rules refuse the change: {exc}") from exc

    async def _lock_payment(self, connection: Connection, payment: PaymentId) -> "_Found | Refused":
        """Lock a payment, before any job, as the matcher does, and read what is known of it."""
        row = await connection.fetchrow(_LOCK_PAYMENT, payment)
        if row is None:
            return Refused(obstacle=Obstacle.UNKNOWN, sentence=f"there is no payment {payment}")
        if row["chain_id"] != self._chain_id:
            return Refused(
                obstacle=Obstacle.OTHER_CHAIN,
                sentence=f"payment {payment} is on chain {row['chain_id']}, and chain.chain_id is"
                f" {self._chain_id}",
            )
        log = stored_log_of(row)
        known = await logs_of_transaction(connection, self._chain_id, log.tx_hash)
        twins = twins_in(known).get(payment, Twins(ids=(payment,)))
        sent_back = await connection.fetchval(
            """
            SELECT tx_hash FROM payment_refunds WHERE payment_id = ANY($1::bigint[])
             ORDER BY id LIMIT 1
            """,
            twins.ids,
        )
        facts = DeskPayment(
            id=payment,
            units=log.units,
            status=PaymentStatus(row["status"]),
            job_id=row["job_id"],
            sent_back=sent_back,
            came_again=twins.came_again,
        )
        return _Found(row=row, facts=facts, twins=twins)

    async def _served_by(
        self, connection: Connection, sent: TransferLog, twins: Twins
    ) -> PaymentId | None:
        found: int | None = await connection.fetchval(
            """
            SELECT payment_id FROM payment_refunds
             WHERE chain_id = $1 AND tx_hash = $2 AND log_index = $3
               AND payment_id <> ALL($4::bigint[])
            """,
            *(self._chain_id, sent.tx_hash, sent.log_index, twins.ids),
        )
        return None if found is None else PaymentId(found)

    async def _record(
        self,
        connection: Connection,
        payment: PaymentId,
        sent: TransferLog,
        warnings: Sequence[str],
        who: str,
    ) -> None:
        done = await connection.fetchval(
            _RECORD_REFUND,
            *(payment, self._chain_id, sent.tx_hash, sent.log_index, sent.recipient),
            *(sent.units, who, list(warnings)),
        )
        if done is None:
            raise DeskBusy("somebody else has just recorded this refund: look again")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A payment under its lock."""

    row: asyncpg.Record
    facts: DeskPayment
    twins: Twins


@contextmanager
def _told_of_locks() -> Iterator[None]:
    try:
        yield
    except asyncpg.LockNotAvailableError as exc:
        raise DeskBusy(
            f"somebody has held the payment or the job locked for {LOCK_TIMEOUT_S} s: nothing was"
            " changed, try again"
        ) from exc


async def _lower_price(connection: Connection, job: DeskJob, price: Units) -> dict[str, Any]:
    """Set what a job costs; returns what to note of it."""
    text = await connection.fetchval(
        "UPDATE jobs SET price_usdc = $2::numeric WHERE id = $1 RETURNING price_usdc::numeric",
        *(job.terms.id, Decimal(format_usdc(price))),
    )
    stored = units_of_price(text)
    if stored is None or stored > price:
        raise HostRefuses(
            f"the column jobs.price_usdc made {text} of {format_usdc(price)}: it keeps too few"
            " decimals to lower the price so"
        )
    return {"price_units_before": job.terms.price, "price_units": stored}


def _details(found: _Found, **more: Any) -> dict[str, Any]:
    row = found.row
    return {
        "payment_id": row["id"],
        "chain_id": row["chain_id"],
        "tx_hash": row["tx_hash"],
        "was": row["status"],
        "reason": row["reason"],
        **more,
    }


def _of_refund(sent: TransferLog, warnings: Sequence[str]) -> dict[str, Any]:
    return {
        "refund_tx_hash": sent.tx_hash,
        "refund_log_index": sent.log_index,
        "to": sent.recipient,
        "warnings": list(warnings),
    }


def _assigned_memo(evidence: Sequence[dict[str, Any]]) -> bytes | None:
    """Return the memo of the job that an operator gave a payment to last."""
    words = [piece["memo"] for piece in evidence if piece["source"] == MemoSource.OPERATOR]
    return bytes.fromhex(words[-1]) if words else None


def _number_of(name: str) -> int | None:
    return int(name) if name.isascii() and name.isdigit() and len(name) < MAX_DIGITS else None
