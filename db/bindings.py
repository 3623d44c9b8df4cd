"""Names by which the payment of a job will be known, bound to it beforehand or afterwards.

A host application does the same with a plain INSERT into `job_bindings`.
"""

from dataclasses import dataclass
from typing import Final

import asyncpg

from db.audit import Note, write_note
from db.pool import Connection, Database
from oncepaid.domain.jobs import JobId
from oncepaid.domain.memo import Reference
from oncepaid.domain.payments import PaymentId

_BIND: Final = """
INSERT INTO job_bindings (issuer, reference, job_id) VALUES ($1, $2, $3)
ON CONFLICT (issuer, reference) DO NOTHING
RETURNING job_id
"""

_HOLDER: Final = "SELECT job_id FROM job_bindings WHERE issuer = $1 AND reference = $2"

# The payments that could be decided with one binding. By an index of the evidence.
_CARRIES: Final = """
 l.evidence @> jsonb_build_array(jsonb_build_object(
       'reference', jsonb_build_object('issuer', {0}, 'value', encode({1}, 'hex'))))
   AND l.issuer = {0} AND l.reference = {1}
"""

_RECONSIDER: Final = f"""
UPDATE payments SET status = 'seen', job_id = NULL, reason = NULL
 WHERE status = 'unmatched' AND id IN (
       SELECT l.payment_id FROM oncepaid_bound_late l
        WHERE {_CARRIES.format("$1::text", "$2::bytea")})
RETURNING id
"""

# A binding of a transaction that ends after the payment was decided. One that is open for more than
# an hour is not waited for. A payment that somebody else has locked is for the next sweep.
_RECONSIDER_LAST: Final = """
UPDATE payments SET status = 'seen', job_id = NULL, reason = NULL
 WHERE id IN (
       SELECT id FROM payments WHERE status = 'unmatched' AND id IN (
              SELECT payment_id FROM oncepaid_bound_late
               WHERE seen_at > now() - interval '1 hour' AND chain_id = $1 LIMIT 500)
        ORDER BY id FOR UPDATE SKIP LOCKED)
RETURNING id
"""

_NEW: Final = """
SELECT issuer, reference, job_id FROM job_bindings WHERE is_new ORDER BY created_at LIMIT $1
"""

# Not one that its host has given to another job meanwhile.
_NO_LONGER_NEW: Final = """
UPDATE job_bindings b SET is_new = false
  FROM unnest($1::text[], $2::bytea[], $3::bigint[]) AS n (issuer, reference, job_id)
 WHERE (b.issuer, b.reference, b.job_id) = (n.issuer, n.reference, n.job_id)
"""

MOST_NEW: Final = 1_000
"""So many new bindings are looked at in one sweep."""

_WAITING: Final = """
SELECT id FROM payments
 WHERE status = 'seen' AND evidence @> jsonb_build_array(jsonb_build_object(
       'reference', jsonb_build_object('issuer', $1::text, 'value', encode($2, 'hex'))))
 ORDER BY id LIMIT 100
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The reference is the job's now. `waiting` are payments with it, which are decided next."""

    waiting: tuple[PaymentId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlreadyBound:
    """It was bound to this job before; nothing changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundToAnother:
    """It names another job already; nothing changed."""

    job: JobId


@dataclass(frozen=True, slots=True, kw_only=True)
class NoSuchJob:
    """There is no job of this number; nothing changed."""


Binding = Bound | AlreadyBound | BoundToAnother | NoSuchJob


class BindingStore:
    """The `job_bindings` of all chains: a nonce or an id is random enough to be of one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def bind(self, job: JobId, reference: Reference, *, why: str, note: Note) -> Binding:
        """Bind a reference to a job, with a note in the audit log; safe to repeat.

        A payment that was decided without it is decided anew, at every repetition.
        """
        issuer, value = reference.issuer.lower(), reference.value
        try:
            async with self._database.transaction() as connection:
                is_new = await connection.fetchval(_BIND, issuer, value, job) is not None
                if is_new:
                    named = {"issuer": issuer, "reference": "0x" + value.hex()}
                    await write_note(connection, note, {"job_id": job, **named, "why": why})
                else:
                    holder = await connection.fetchval(_HOLDER, issuer, value)
        except asyncpg.ForeignKeyViolationError:
            return NoSuchJob()
        if not is_new and holder != job:
            return BoundToAnother(job=JobId(holder))
        waiting = await self._reconsider(issuer, value)
        return Bound(waiting=waiting) if is_new else AlreadyBound()

    async def _reconsider(self, issuer: str, value: bytes) -> tuple[PaymentId, ...]:
        """After the binding's commit: nobody waits for its transaction, and the matcher knows it.

        A payment that the matcher decides at this moment without it is found by the sweep.
        """
        async with self._database.connection() as connection:
            await connection.execute(_RECONSIDER, issuer, value)
            rows = await connection.fetch(_WAITING, issuer, value)
        return tuple(PaymentId(row["id"]) for row in rows)


async def reconsider_bound(connection: Connection, chain_id: int) -> int:
    """Have payments decided anew that were decided without their binding; returns how many.

    A host's own bindings are looked at one by one, once each: so no plan reads all that is
    unmatched for them, and no payment is locked for longer than a statement.
    """
    again = await connection.fetch(_RECONSIDER_LAST, chain_id)
    new = await connection.fetch(_NEW, MOST_NEW)
    for row in new:
        again += await connection.fetch(_RECONSIDER, row["issuer"], row["reference"])
    if new:
        columns = ("issuer", "reference", "job_id")
        named = ([row[column] for row in new] for column in columns)
        await connection.execute(_NO_LONGER_NEW, *named)
    return len(again)
