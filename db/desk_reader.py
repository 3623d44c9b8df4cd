"""What the operator's desk shows of payments: their facts, and the jobs that are near them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

from db.chain_state import ChainState, chain_state_of
from db.desk_rows import jobs_of, logs_of_transaction
from db.payment_rows import LOG_COLUMNS, evidence_of, stored_log_of
from db.pool import Connection, Database
from oncepaid.domain.chain import Address, TxHash
from oncepaid.domain.desk import DeskJob, Twins, twins_in
from oncepaid.domain.desk_facts import Clue, Handled, PaymentFacts, SentBack
from oncepaid.domain.jobs import JobId
from oncepaid.domain.memo import Reference
from oncepaid.domain.money import Units
from oncepaid.domain.nearest import MAX_NEAREST, Nearness
from oncepaid.domain.payments import (
    Evidence,
    PaymentId,
    PaymentStatus,
    Reason,
    StoredLog,
)

MAX_SHOWN: Final = 50
"""Payments of one transaction, each with its facts; the newest notes of one payment."""
RECENT_JOBS: Final = 1000
"""So many jobs that were pending before a payment are looked through for one of its price."""

_PAYMENT: Final = f"""
SELECT {LOG_COLUMNS}, chain_id, block_time, status, reason, transfers_in_tx, job_id, evidence,
       matched_at, orphaned_from, reversed_at IS NOT NULL AS is_reversed,
       EXISTS (SELECT FROM losses l WHERE l.payment_id = p.id AND l.made_good_at IS NULL) AS is_lost
  FROM payments p WHERE id = $1
"""

# What is named by a memo, and what a host or an operator bound to a reference.
_NAMED: Final = """
SELECT id AS job_id, memo, NULL AS issuer, NULL AS reference, NULL AS bound_at FROM jobs
 WHERE memo = ANY($1::bytea[])
UNION ALL
SELECT b.job_id, NULL, b.issuer, b.reference, b.created_at FROM job_bindings b
  JOIN unnest($2::text[], $3::bytea[]) AS r (issuer, reference)
    ON b.issuer = r.issuer AND b.reference = r.reference
"""

# A host's `pay_to` may be null or of any case; an amount is wider than any job's may be.
_BY_AMOUNT: Final = """
(SELECT id FROM jobs
  WHERE amount_is_held AND unique_amount_units >= $1 AND coalesce(lower(pay_to), $2) = $2
  ORDER BY unique_amount_units LIMIT $3)
UNION
(SELECT id FROM jobs
  WHERE amount_is_held AND unique_amount_units < $1 AND coalesce(lower(pay_to), $2) = $2
  ORDER BY unique_amount_units DESC LIMIT $3)
UNION
(SELECT id FROM jobs
  WHERE unique_amount_units = $1 AND coalesce(lower(pay_to), $2) = $2 ORDER BY id DESC LIMIT $3)
"""

# The clocks of the chain and of the database need not agree to the minute.
_BY_PRICE: Final = """
SELECT id FROM (
    SELECT id, price_usdc FROM jobs
     WHERE status = 'pending' AND created_at <= $1::timestamptz + interval '1 minute'
       AND coalesce(lower(pay_to), $2) = $2
     ORDER BY created_at DESC LIMIT $5) recent
 WHERE price_usdc IS NOT NULL
 ORDER BY abs(price_usdc::numeric * 1000000 - $3), id LIMIT $4
"""


_SENT_BACK: Final = """
SELECT payment_id, tx_hash, recipient, amount_units, recognised_by, warnings FROM payment_refunds
 WHERE payment_id = ANY($1::bigint[]) ORDER BY id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A payment with the jobs that may be near it."""

    facts: PaymentFacts
    candidates: Mapping[Nearness, Sequence[DeskJob]]


class DeskReader:
    """Reads facts of the payments of one chain. Nothing here changes a row."""

    def __init__(self, database: Database, chain_id: int) -> None:
        self._database = database
        self._chain_id = chain_id

    async def chain_state(self) -> ChainState | None:
        """Return how far the chain was read; None while it never was."""
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

    async def transaction(self, tx_hash: TxHash) -> list[Shown]:
        """Return the payments of a transaction by log index, at most `MAX_SHOWN`."""
        async with self._database.transaction() as connection:
            known = await logs_of_transaction(connection, self._chain_id, tx_hash)
            known.sort(key=lambda found: (found[0].block.number, found[0].log_index))
            twins = twins_in(known)
            return [
                await self._shown(connection, log.id, twins[log.id]) for log, _ in known[:MAX_SHOWN]
            ]

    async def payment(self, payment: PaymentId) -> Shown | None:
        """Return one payment of this chain."""
        async with self._database.transaction() as connection:
            tx_hash = await connection.fetchval(
                "SELECT tx_hash FROM payments WHERE id = $1 AND chain_id = $2",
                *(payment, self._chain_id),
            )
            if tx_hash is None:
                return None
            known = await logs_of_transaction(connection, self._chain_id, TxHash(tx_hash))
            alone = Twins(ids=(payment,))
            return await self._shown(connection, payment, twins_in(known).get(payment, alone))

    async def sent_back(self, tx_hash: TxHash) -> dict[PaymentId, SentBack]:
        """Return what went back of a transaction's payments, whichever row of a transfer says so.

        Cheaper than all facts of each.
        """
        async with self._database.transaction() as connection:
            known = await logs_of_transaction(connection, self._chain_id, tx_hash)
            found = await _sent_back(connection, [log.id for log, _ in known])
        twins = twins_in(known)
        return {twin: sent for payment, sent in found.items() for twin in twins[payment].ids}

    async def _shown(self, connection: Connection, payment: PaymentId, twins: Twins) -> Shown:
        row = await connection.fetchrow(_PAYMENT, payment)
        assert row is not None, "payments are never deleted"
        log = stored_log_of(row)
        evidence = evidence_of(row["evidence"])
        sent_back = await _sent_back(connection, twins.ids)
        named = await _named_by(connection, evidence)
        near = await _near(connection, log, row, self._chain_id)
        ids = {job for job, _ in named.values()}.union(*near.values()) | {row["job_id"]} - {None}
        jobs = await jobs_of(connection, sorted(ids), chain_id=self._chain_id, without=payment)
        facts = PaymentFacts(
            log=log,
            chain_id=row["chain_id"],
            block_time=row["block_time"],
            status=PaymentStatus(row["status"]),
            reason=None if row["reason"] is None else Reason(row["reason"]),
            transfers_in_tx=row["transfers_in_tx"],
            matched_at=row["matched_at"],
            job=jobs.get(row["job_id"]),
            clues=tuple(_clue(piece, named, jobs) for piece in evidence),
            was=None if row["orphaned_from"] is None else PaymentStatus(row["orphaned_from"]),
            is_reversed=row["is_reversed"],
            is_lost=row["is_lost"],
            came_again=twins.came_again,
            sent_back=next(iter(sent_back.values()), None),
            handled=await _handled(connection, payment),
        )
        by_name = [job for job in (facts.job, *(clue.job for clue in facts.clues)) if job]
        candidates = {by: [jobs[id_] for id_ in ids if id_ in jobs] for by, ids in near.items()}
        return Shown(facts=facts, candidates={Nearness.NAMED: by_name, **candidates})


def _clue(
    piece: Evidence,
    named: Mapping[object, tuple[JobId, datetime | None]],
    jobs: Mapping[JobId, DeskJob],
) -> Clue:
    found = named.get(piece.memo if piece.reference is None else piece.reference)
    if found is None:
        return Clue(piece=piece, job=None)
    job, bound_at = found
    return Clue(piece=piece, job=jobs.get(job), bound_at=bound_at)


async def _named_by(
    connection: Connection, evidence: Sequence[Evidence]
) -> dict[object, tuple[JobId, datetime | None]]:
    """Return the jobs that memos and references name, by those, and when those were bound."""
    memos = [piece.memo for piece in evidence if piece.memo is not None]
    references = [piece.reference for piece in evidence if piece.reference is not None]
    rows = await connection.fetch(
        _NAMED,
        memos,
        [reference.issuer for reference in references],
        [reference.value for reference in references],
    )
    return {_name_of(row): (JobId(row["job_id"]), row["bound_at"]) for row in rows}


def _name_of(row: asyncpg.Record) -> object:
    if row["issuer"] is None:
        return row["memo"]
    return Reference(issuer=Address(row["issuer"]), value=row["reference"])


async def _near(
    connection: Connection, log: StoredLog, row: asyncpg.Record, chain_id: int
) -> dict[Nearness, list[JobId]]:
    units = min(log.units, 2**63 - 1)
    by_amount = await connection.fetch(_BY_AMOUNT, units, log.recipient, MAX_NEAREST)
    by_price = await connection.fetch(
        _BY_PRICE, row["block_time"], log.recipient, units, MAX_NEAREST, RECENT_JOBS
    )
    return {
        Nearness.AMOUNT: [JobId(found["id"]) for found in by_amount],
        Nearness.PRICE: [JobId(found["id"]) for found in by_price],
    }


async def _sent_back(
    connection: Connection, payments: Sequence[PaymentId]
) -> dict[PaymentId, SentBack]:
    rows = await connection.fetch(_SENT_BACK, payments)
    return {
        PaymentId(row["payment_id"]): SentBack(
            tx_hash=TxHash(row["tx_hash"]),
            recipient=Address(row["recipient"]),
            units=Units(int(row["amount_units"])),
            recognised_by=row["recognised_by"],
            warnings=tuple(row["warnings"]),
        )
        for row in rows
    }


async def _handled(connection: Connection, payment: PaymentId) -> tuple[Handled, ...]:
    rows = await connection.fetch(
        """
        SELECT at, who, action, details ->> 'why' AS why FROM audit_log
         WHERE details ->> 'payment_id' = $1 ORDER BY id DESC LIMIT $2
        """,
        *(str(payment), MAX_SHOWN),
    )
    return tuple(
        Handled(at=row["at"], who=row["who"], action=row["action"], why=row["why"])
        for row in reversed(rows)
    )
