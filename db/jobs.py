"""Jobs under work: claiming, keeping the lease, finishing. Leases run on the database's clock."""

from collections.abc import Callable, Sequence, Set
from datetime import timedelta
from typing import Any, Final

import asyncpg
import structlog

from db.amounts import release
from db.pool import HOST_REFUSES, Connection, Database
from db.reversals import HAS_UNREVERSED
from oncepaid.domain.generation import (
    AnsweredJob,
    AttemptResult,
    Complete,
    Fail,
    FinishedJob,
    Finishing,
    Outcome,
    RefusedJob,
    TryAgain,
    Verdict,
    failure_output,
)
from oncepaid.domain.jobs import MAX_INPUT_BYTES, AttemptId, ClaimedJob, JobId
from oncepaid.domain.text import storable_text

log = structlog.get_logger()

Decide = Callable[[AnsweredJob], Verdict]

# `now()` may be older than a credit that the statement sees: what is started is timed by the clock.
# A job without credited units is not ours to do (ADR 3), whatever its status says; nor is one whose
# credited money left the chain.
_CLAIM = f"""
WITH due AS (
    SELECT id, attempt_id, status = 'in_progress' AS is_lost,
           coalesce(extract(epoch FROM clock_timestamp() - greatest(paid_at, nullif(
               next_attempt_at, '-infinity')))::float8, 0) AS waited_s
      FROM jobs
     WHERE credited_units > 0 AND completed_at IS NULL
       AND NOT is_unbacked AND NOT {HAS_UNREVERSED}
       AND (status = 'paid' AND next_attempt_at <= now()
            OR status = 'in_progress' AND lease_until < now())
       AND ($4::bigint IS NULL OR id = $4)
     ORDER BY id LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
), lost AS (
    UPDATE generation_attempts a
       SET finished_at = now(), outcome = 'lost', message = 'its worker stopped without a word'
      FROM due WHERE due.is_lost AND a.id = due.attempt_id AND a.finished_at IS NULL
), begun AS (
    INSERT INTO generation_attempts (job_id, attempt_no, started_at)
    SELECT due.id, 1 + coalesce(
               (SELECT max(attempt_no) FROM generation_attempts WHERE job_id = due.id), 0),
           clock_timestamp()
      FROM due
    RETURNING id, job_id, attempt_no
)
UPDATE jobs j
   SET status = 'in_progress', attempt_id = begun.id, lease_until = now() + $2,
       started_at = coalesce(j.started_at, clock_timestamp()),
       attempts = coalesce(j.attempts, 0) + CASE WHEN due.is_lost THEN 0 ELSE 1 END
  FROM begun JOIN due ON due.id = begun.job_id
 WHERE j.id = begun.job_id
RETURNING j.id, j.job_uuid::text AS job_uuid, begun.id AS attempt_id, begun.attempt_no,
          CASE WHEN octet_length(j.input_data::text) <= $3 THEN j.input_data::text END
              AS input_json,
          coalesce(octet_length(j.input_data::text), 0) AS input_bytes, due.waited_s,
          (SELECT count(*) FROM generation_attempts a
            WHERE a.job_id = j.id AND (a.outcome = 'lost' OR a.id = due.attempt_id AND due.is_lost))
              AS lost_attempts,
          (SELECT oncepaid_service_key(s.service_key, s.name)
             FROM skills s WHERE s.id = j.skill_id) AS service_key,
          coalesce((SELECT coalesce(s.is_active, true) FROM skills s WHERE s.id = j.skill_id),
                   false) AS is_active
"""

_DUE = """
SELECT id, job_uuid::text AS job_uuid FROM jobs
 WHERE credited_units > 0 AND completed_at IS NULL AND NOT is_unbacked
   AND (status = 'paid' AND next_attempt_at <= now()
        OR status = 'in_progress' AND lease_until < now())
 ORDER BY id LIMIT $1
"""

MOST_REFUSED: Final = 100
"""Jobs that a host's rules may refuse before those behind them have to wait."""

# A job that a host holds locked keeps the lease that it has; the others must not wait for it. One
# whose answer is stored meanwhile has none, and must not get one: its state is looked at again.
_KEEP_LEASES = """
WITH held AS (
    SELECT id, attempt_id FROM jobs
     WHERE attempt_id = ANY($1::bigint[]) AND status = 'in_progress' AND lease_until IS NOT NULL
), free AS (
    SELECT id FROM jobs
     WHERE id IN (SELECT id FROM held) AND status = 'in_progress' AND lease_until IS NOT NULL
       FOR NO KEY UPDATE SKIP LOCKED
), kept AS (
    UPDATE jobs SET lease_until = now() + $2
      FROM free WHERE jobs.id = free.id AND jobs.attempt_id = ANY($1::bigint[])
)
SELECT attempt_id FROM held
"""

# The attempt's row says what happened in any case; the job is touched only under its own lease.
# Locks the job before the attempt, as `_CLAIM` does.
_RECORD = """
WITH held AS (
    SELECT id FROM jobs
     WHERE attempt_id = $1 AND status = 'in_progress' AND lease_until IS NOT NULL
       FOR NO KEY UPDATE
), told AS (
    UPDATE generation_attempts
       SET finished_at = clock_timestamp(), outcome = $2, message = $3, model = $4,
           stop_reason = $5, request_id = $6, input_tokens = $7, output_tokens = $8,
           cost_usd = $9, output_data = $10, retry_after_s = $11
     WHERE id = $1 AND finished_at IS NULL AND (SELECT count(*) FROM held) >= 0
    RETURNING id
)
UPDATE jobs SET lease_until = NULL
 WHERE id IN (SELECT id FROM held) AND EXISTS (SELECT FROM told)
RETURNING id
"""

_RELEASE = """
WITH held AS (
    SELECT id, attempt_id FROM jobs
     WHERE attempt_id = ANY($1::bigint[]) AND status = 'in_progress' AND lease_until IS NOT NULL
     ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
), told AS (
    UPDATE generation_attempts
       SET finished_at = clock_timestamp(), outcome = 'cancelled', message = 'the worker stopped'
     WHERE id IN (SELECT attempt_id FROM held) AND finished_at IS NULL
    RETURNING id
)
UPDATE jobs SET status = 'paid', attempt_id = NULL, lease_until = NULL, attempts = attempts - 1
 WHERE id IN (SELECT id FROM held) AND attempt_id IN (SELECT id FROM told)
RETURNING id
"""

_ANSWERED = """
SELECT j.id, j.job_uuid::text AS job_uuid, coalesce(j.attempts, 0) AS attempts,
       j.failures_in_row, j.attempt_id,
       a.outcome, a.message, a.model, a.stop_reason, a.request_id, a.input_tokens,
       a.output_tokens, a.cost_usd, a.output_data, a.retry_after_s,
       (SELECT coalesce(sum(b.cost_usd), 0) FROM generation_attempts b WHERE b.job_id = j.id)
           AS job_cost_usd,
       (SELECT oncepaid_service_key(s.service_key, s.name)
          FROM skills s WHERE s.id = j.skill_id) AS service_key,
       (SELECT max(p.block_time) FROM payments p WHERE p.job_id = j.id AND p.status = 'credited')
           AS paid_block_time,
       extract(epoch FROM a.finished_at - a.started_at)::float8 AS generating_s,
       extract(epoch FROM clock_timestamp() - a.finished_at)::float8 AS waited_s
  FROM jobs j JOIN generation_attempts a ON a.id = j.attempt_id
 WHERE j.status = 'in_progress' AND j.lease_until IS NULL AND a.finished_at IS NOT NULL
   AND j.completed_at IS NULL
 ORDER BY j.id LIMIT $1 FOR NO KEY UPDATE OF j SKIP LOCKED
"""

# A hub's `output_data` may be json or text: the record turns the value into the column's own type.
_FINISH_IF_CURRENT = """
UPDATE jobs SET status = $3, completed_at = clock_timestamp(), failures_in_row = 0,
       output_data = (jsonb_populate_record(
           NULL::jobs, jsonb_build_object('output_data', $4::jsonb))).output_data
 WHERE id = $1 AND attempt_id = $2 AND status = 'in_progress' AND lease_until IS NULL
RETURNING id
"""

_TRY_AGAIN_IF_CURRENT = """
UPDATE jobs SET status = 'paid', attempt_id = NULL, next_attempt_at = now() + $3,
       attempts = attempts - $4, failures_in_row = failures_in_row + 1
 WHERE id = $1 AND attempt_id = $2 AND status = 'in_progress' AND lease_until IS NULL
RETURNING id
"""


class JobStore:
    """The work side of `jobs`, with `generation_attempts` beside it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._amounts_refused: Set[str] = frozenset()

    async def claim(self, limit: int, lease: timedelta) -> list[ClaimedJob]:
        """Claim up to `limit` jobs that are paid or whose lease ran out; writes their attempts."""
        try:
            async with self._database.connection() as connection:
                rows = await connection.fetch(_CLAIM, limit, lease, MAX_INPUT_BYTES, None)
        except HOST_REFUSES:
            rows = await self._claim_one_by_one(limit, lease)
        return [_claimed_of(row) for row in rows]

    async def _claim_one_by_one(self, limit: int, lease: timedelta) -> list[asyncpg.Record]:
        """Claim job by job: the host's own constraints or triggers refuse one, and no other."""
        claimed: list[asyncpg.Record] = []
        async with self._database.connection() as connection:
            for job in await connection.fetch(_DUE, MOST_REFUSED + limit):
                try:
                    claimed += await connection.fetch(_CLAIM, 1, lease, MAX_INPUT_BYTES, job["id"])
                except HOST_REFUSES as exc:
                    log.error("job.refused", job_uuid=job["job_uuid"], problem=str(exc))
                if len(claimed) == limit:
                    break
        return claimed

    async def keep_leases(self, attempts: Sequence[AttemptId], lease: timedelta) -> set[AttemptId]:
        """Extend the leases that these attempts still hold, and return which they are."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_KEEP_LEASES, attempts, lease)
        return {row["attempt_id"] for row in rows}

    async def record_if_leased(self, attempt: AttemptId, result: AttemptResult) -> bool:
        """Store what an attempt ended in; False if its lease was lost and the job left alone."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                _RECORD,
                attempt,
                result.outcome,
                storable_text(result.message),
                _storable(result.model),
                _storable(result.stop_reason),
                _storable(result.request_id),
                result.input_tokens,
                result.output_tokens,
                result.cost_usd,
                result.output,
                result.retry_after_s,
            )
        return row is not None

    async def release(self, attempts: Sequence[AttemptId]) -> int:
        """Give jobs back whose calls were cut short by a stop; returns how many were still ours."""
        async with self._database.connection() as connection:
            return len(await connection.fetch(_RELEASE, attempts))

    async def finish_answered(
        self, decide: Decide, delay: Callable[[AnsweredJob], timedelta], limit: int
    ) -> Finishing:
        """Decide up to `limit` answered jobs and write what follows, in one transaction.

        A job that the host's own constraints or triggers refuse is left; the others go on.
        """
        async with self._database.transaction() as connection:
            answered = [_answered_of(row) for row in await connection.fetch(_ANSWERED, limit)]
            finished: list[FinishedJob] = []
            refused: list[RefusedJob] = []
            for job in answered:
                verdict = decide(job)
                try:
                    async with connection.transaction():
                        is_written = await _write_verdict(connection, job, verdict, delay)
                except HOST_REFUSES as exc:
                    refused.append(RefusedJob(job=job, problem=str(exc)))
                    continue
                if is_written:
                    finished.append(FinishedJob(job=job, verdict=verdict))
        return Finishing(finished=finished, refused=refused)

    async def spent_today_usd(self) -> float:
        """Return the dollars spent on attempts since midnight UTC."""
        async with self._database.connection() as connection:
            value = await connection.fetchval(
                """
                SELECT coalesce(sum(cost_usd), 0)::float8 FROM generation_attempts
                 WHERE started_at >= date_trunc('day', now())
                """
            )
        return float(value)

    async def release_amounts(self, chain_id: int, grace: timedelta, quarantine: timedelta) -> int:
        """Free the unique amounts that no payment in time can carry any more.

        Judged by the time of the cursor's block: what has not been read yet may still hold one, and
        so may a payment that waits for its decision. A job that the host refuses keeps its amount,
        which is said once. Returns how many were free to be drawn anew.
        """
        async with self._database.connection() as connection:
            released = await release(
                connection,
                chain_id,
                grace + quarantine,
                refused_before=self._amounts_refused,
            )
        for job_uuid, problem in released.refused.items():
            if job_uuid not in self._amounts_refused:
                log.error("job.refused", job_uuid=job_uuid, problem=problem)
        self._amounts_refused = released.refused.keys()
        return released.count


async def _write_verdict(
    connection: Connection,
    job: AnsweredJob,
    verdict: Verdict,
    delay: Callable[[AnsweredJob], timedelta],
) -> bool:
    match verdict:
        case Complete(output=output):
            arguments: tuple[Any, ...] = ("completed", output)
        case Fail(message=message):
            arguments = ("failed", failure_output(message))
        case TryAgain(uses_attempt=uses_attempt):
            row = await connection.fetchrow(
                _TRY_AGAIN_IF_CURRENT, job.id, job.attempt, delay(job), 0 if uses_attempt else 1
            )
            return row is not None
    row = await connection.fetchrow(_FINISH_IF_CURRENT, job.id, job.attempt, *arguments)
    return row is not None


def _storable(text: str | None) -> str | None:
    return None if text is None else storable_text(text)


def _claimed_of(row: asyncpg.Record) -> ClaimedJob:
    return ClaimedJob(
        id=JobId(row["id"]),
        uuid=row["job_uuid"],
        attempt=AttemptId(row["attempt_id"]),
        attempt_no=row["attempt_no"],
        lost_attempts=row["lost_attempts"],
        waited_s=row["waited_s"],
        service_key=row["service_key"],
        skill_is_active=row["is_active"],
        input_json=row["input_json"],
        input_bytes=row["input_bytes"],
    )


def _answered_of(row: asyncpg.Record) -> AnsweredJob:
    return AnsweredJob(
        id=JobId(row["id"]),
        uuid=row["job_uuid"],
        attempt=AttemptId(row["attempt_id"]),
        attempts=row["attempts"],
        failures_in_row=row["failures_in_row"],
        service_key=row["service_key"],
        cost_usd=row["job_cost_usd"],
        paid_block_time=row["paid_block_time"],
        generating_s=row["generating_s"],
        waited_s=row["waited_s"],
        result=AttemptResult(
            outcome=Outcome(row["outcome"]),
            message=row["message"] or "",
            output=row["output_data"],
            model=row["model"],
            stop_reason=row["stop_reason"],
            request_id=row["request_id"],
            input_tokens=row["input_tokens"],
            output_tokens=row["output_tokens"],
            cost_usd=row["cost_usd"],
            retry_after_s=row["retry_after_s"],
        ),
    )
