"""What an operator asks: counts for metrics, lists and single rows for the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from db.pool import Database

Row = Mapping[str, Any]
"""A row for display: column names to JSON-like values, datetimes and Decimals."""

MAX_ROWS: Final = 1000

_SERVICE: Final = "oncepaid_service_key(s.service_key, s.name)"
_JOB_COLUMNS: Final = f"""
       j.id, j.job_uuid::text AS job_uuid, {_SERVICE} AS service_key, j.status, j.price_usdc,
       j.pay_to, j.memo, j.unique_amount_units, j.overpaid_units AS overpaid_amount_units,
       j.attempts, j.created_at, j.expires_at, j.paid_at, j.started_at, j.completed_at
"""
_PAYMENT_COLUMNS: Final = """
       p.id, p.chain_id, p.tx_hash, p.log_index, p.block_number, p.block_hash, p.block_time,
       p.sender, p.recipient, p.amount_units, p.memo, p.memo_source, p.job_id,
       j.job_uuid::text AS job_uuid, p.status, p.reason, p.seen_at, p.matched_at, p.credited_at
"""

_AUDIT_COLUMNS: Final = "at, who, action, details"

_LOSS_COLUMNS: Final = "l.payment_id, l.job_status, l.lost_at, l.made_good_at"

_OF_A_JOB: Final = {
    "bindings": """
        SELECT issuer, reference, created_at FROM job_bindings
         WHERE job_id = $1 ORDER BY created_at, issuer LIMIT $2
    """,
    "audit": f"""
        SELECT {_AUDIT_COLUMNS} FROM audit_log
         WHERE details ->> 'job_id' = $1::bigint::text ORDER BY id LIMIT $2
    """,
    "losses": f"SELECT {_LOSS_COLUMNS} FROM losses l WHERE l.job_id = $1 ORDER BY l.id LIMIT $2",
    "payments": f"""
        SELECT {_PAYMENT_COLUMNS} FROM payments p JOIN jobs j ON j.id = p.job_id
         WHERE p.job_id = $1 ORDER BY p.id LIMIT $2
    """,
    "attempts": """
        SELECT id, attempt_no, model, started_at, finished_at, outcome, message, stop_reason,
               request_id, input_tokens, output_tokens, cost_usd
          FROM generation_attempts WHERE job_id = $1 ORDER BY attempt_no LIMIT $2
    """,
}
"""Lists that are shown with a job, in this order; $1 is its number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The tables in numbers. Amounts are units; ages are seconds, of jobs that are ours."""

    jobs: Mapping[str, int]
    oldest_job_age_s: Mapping[str, float]
    unmatched_units: Mapping[str, int]
    payments: Mapping[str, int]
    lost_units: int
    cursors: Sequence[Row]


class Reports:
    """Read-only views. Nothing here changes a row."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def server(self) -> tuple[str, datetime]:
        """Return the server's version and its clock."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                "SELECT current_setting('server_version') AS version, clock_timestamp() AS now"
            )
        assert row is not None
        return row["version"], row["now"]

    async def snapshot(self) -> Snapshot:
        """Count everything that `status` and the gauges show."""
        async with self._database.transaction() as connection:
            jobs = await connection.fetch(
                """
                SELECT status, count(*) AS n,
                       coalesce(extract(epoch FROM now() - min(coalesce(paid_at, created_at))
                           FILTER (WHERE status = 'pending' OR credited_units > 0)), 0)::float8
                           AS age
                  FROM jobs GROUP BY status
                """
            )
            unmatched = await connection.fetch(
                """
                SELECT reason, sum(amount_units) AS units FROM payments
                 WHERE status = 'unmatched' GROUP BY reason
                """
            )
            payments = await connection.fetch(
                "SELECT status, count(*) AS n FROM payments GROUP BY status"
            )
            lost = await connection.fetchval(
                "SELECT coalesce(sum(amount_units), 0) FROM losses WHERE made_good_at IS NULL"
            )
            cursors = await connection.fetch(
                """
                SELECT chain_id, block_number, block_hash, block_time, updated_at, checked_number,
                       finalized_number, conflict,
                       extract(epoch FROM now() - block_time)::float8 AS lag_s
                  FROM chain_cursor ORDER BY chain_id
                """
            )
        return Snapshot(
            jobs={row["status"]: row["n"] for row in jobs},
            oldest_job_age_s={row["status"]: row["age"] for row in jobs},
            unmatched_units={row["reason"]: int(row["units"]) for row in unmatched},
            payments={row["status"]: row["n"] for row in payments},
            lost_units=int(lost),
            cursors=[dict(row) for row in cursors],
        )

    async def jobs(self, status: str | None, limit: int) -> list[Row]:
        """Return the newest jobs, of one status or of all."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""
                SELECT {_JOB_COLUMNS} FROM jobs j LEFT JOIN skills s ON s.id = j.skill_id
                 WHERE $1::text IS NULL OR j.status = $1 ORDER BY j.id DESC LIMIT $2
                """,
                status,
                min(limit, MAX_ROWS),
            )
        return [dict(row) for row in rows]

    async def job(self, name: str) -> Row | None:
        """Return one job by its number or UUID, with all that belongs to it."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                f"""
                SELECT {_JOB_COLUMNS}, j.input_data, j.output_data
                  FROM jobs j LEFT JOIN skills s ON s.id = j.skill_id
                 WHERE j.job_uuid::text = lower($1) OR j.id::text = $1
                """,
                name,
            )
            if row is None:
                return None
            belonging = {
                what: [dict(found) for found in await connection.fetch(of_job, row["id"], MAX_ROWS)]
                for what, of_job in _OF_A_JOB.items()
            }
        return {**dict(row), **belonging}

    async def losses(self) -> list[Row]:
        """Return what was credited, left the chain and was not made good, newest first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""
                SELECT {_LOSS_COLUMNS}, p.tx_hash, p.amount_units, j.job_uuid::text AS job_uuid
                  FROM losses l JOIN payments p ON p.id = l.payment_id
                  JOIN jobs j ON j.id = l.job_id
                 WHERE l.made_good_at IS NULL ORDER BY l.id DESC LIMIT $1
                """,
                MAX_ROWS,
            )
        return [dict(row) for row in rows]

    async def payments(
        self, status: str | None, limit: int, reason: str | None = None
    ) -> list[Row]:
        """Return the newest payments, of one status or reason or of all."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""
                SELECT {_PAYMENT_COLUMNS} FROM payments p LEFT JOIN jobs j ON j.id = p.job_id
                 WHERE ($1::text IS NULL OR p.status = $1) AND ($3::text IS NULL OR p.reason = $3)
                 ORDER BY p.id DESC LIMIT $2
                """,
                status,
                min(limit, MAX_ROWS),
                reason,
            )
        return [dict(row) for row in rows]

    async def payment_totals(self, status: str | None, reason: str | None) -> list[Row]:
        """Count all payments of one status or reason or of all, with their sums."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """
                SELECT status, reason, count(*) AS payments, sum(amount_units) AS amount_units
                  FROM payments
                 WHERE ($1::text IS NULL OR status = $1) AND ($2::text IS NULL OR reason = $2)
                 GROUP BY status, reason ORDER BY status, sum(amount_units) DESC, reason
                """,
                *(status, reason),
            )
        return [dict(row) for row in rows]

    async def payment(self, name: str) -> list[Row]:
        """Return the payment of a number, or all those of a transaction hash."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""
                SELECT {_PAYMENT_COLUMNS}, p.evidence
                  FROM payments p LEFT JOIN jobs j ON j.id = p.job_id
                 WHERE p.id::text = $1 OR p.tx_hash = lower($1) ORDER BY p.id LIMIT $2
                """,
                *(name, MAX_ROWS),
            )
            audit = await connection.fetch(
                f"""
                SELECT details ->> 'payment_id' AS payment_id, {_AUDIT_COLUMNS} FROM audit_log
                 WHERE details ->> 'payment_id' = ANY($1::text[]) ORDER BY id LIMIT $2
                """,
                *([str(row["id"]) for row in rows], MAX_ROWS),
            )
        notes: dict[str, list[Row]] = {}
        for note in map(dict, audit):
            notes.setdefault(note.pop("payment_id"), []).append(note)
        return [{**dict(row), "audit": notes.get(str(row["id"]), [])} for row in rows]
