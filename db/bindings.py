"""Names by which the payment of a job will be known, bound to it beforehand or afterwards.

A host application does the same with a plain INSERT into `job_bindings`.
"""

from dataclasses import dataclass
from typing import Final

import asyncpg

from db.audit import Note, write_note
from db.pool import Database
from oncepaid.domain.jobs import JobId
from oncepaid.domain.memo import Reference
from oncepaid.domain.payments import PaymentId

_BIND: Final = """
INSERT INTO job_bindings (issuer, reference, job_id) VALUES ($1, $2, $3)
ON CONFLICT (issuer, reference) DO NOTHING
RETURNING job_id
"""

_HOLDER: Final = "SELECT job_id FROM job_bindings WHERE issuer = $1 AND reference = $2"

# After the binding's trigger: what could be decided anew is seen by now.
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

    async def bind(self, job: JobId, reference: Reference, *, note: Note) -> Binding:
        """Bind a reference to a job, with a note in the audit log; safe to repeat."""
        issuer, value = reference.issuer.lower(), reference.value
        try:
            async with self._database.transaction() as connection:
                if await connection.fetchval(_BIND, issuer, value, job) is not None:
                    details = {"job_id": job, "issuer": issuer, "reference": "0x" + value.hex()}
                    await write_note(connection, note, details)
                    rows = await connection.fetch(_WAITING, issuer, value)
                    return Bound(waiting=tuple(PaymentId(row["id"]) for row in rows))
                holder = await connection.fetchval(_HOLDER, issuer, value)
        except asyncpg.ForeignKeyViolationError:
            return NoSuchJob()
        return AlreadyBound() if holder == job else BoundToAnother(job=JobId(holder))
