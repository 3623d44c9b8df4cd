"""The ledger in memory, the side of the work: claims, leases, results."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import assert_never

from oncepaid.domain.generation import (
    AnsweredJob,
    AttemptResult,
    Complete,
    Fail,
    FinishedJob,
    Finishing,
    Outcome,
    TryAgain,
    Verdict,
    failure_output,
)
from oncepaid.domain.jobs import AttemptId, ClaimedJob
from tests.simulation.memory_money import Side
from tests.simulation.memory_rows import Attempt, JobRow


class WorkSide(Side):
    """Fits `db.jobs.JobStore`, as far as the claims and results go."""

    async def claim(self, limit: int, lease: timedelta) -> list[ClaimedJob]:
        due = [job for job in self._t.jobs.values() if self._is_due(job)][:limit]
        return [self._claim(job, lease) for job in due]

    def _is_due(self, job: JobRow) -> bool:
        now = self._t.now
        is_waiting = job.status == "paid" and job.next_attempt_at <= now
        is_over = job.lease_until is not None and job.lease_until < now
        return (
            job.credited_units > 0
            and not job.completed
            and not job.is_unbacked
            and (is_waiting or (job.status == "in_progress" and is_over))
            and not self.has_unreversed(job.id)
        )

    def _claim(self, job: JobRow, lease: timedelta) -> ClaimedJob:
        is_lost = job.status == "in_progress"
        if is_lost and job.attempt is not None:
            before = self._t.attempts[job.attempt]
            if not before.is_finished:
                before.is_finished, before.outcome = True, "lost"
        mine = [a for a in self._t.attempts.values() if a.job == job.id]
        number = 1 + max((a.number for a in mine), default=0)
        attempt = Attempt(
            id=len(self._t.attempts) + 1, job=job.id, number=number, started_at=self._t.now
        )
        self._t.attempts[attempt.id] = attempt
        job.status, job.attempt, job.lease_until = "in_progress", attempt.id, self._t.now + lease
        job.attempts += 0 if is_lost else 1
        return ClaimedJob(
            id=job.id,
            uuid=job.uuid,
            attempt=AttemptId(attempt.id),
            attempt_no=number,
            lost_attempts=sum(a.outcome == "lost" for a in mine),
            waited_s=0.0,
            service_key=None,
            skill_is_active=True,
            input_json="{}",
            input_bytes=2,
        )

    async def record_if_leased(self, attempt: AttemptId, result: AttemptResult) -> bool:
        row = self._t.attempts[attempt]
        if row.is_finished:
            return False
        row.is_finished, row.outcome, row.output = True, result.outcome, result.output
        job = self._held_by(attempt)
        if job is None:
            return False
        job.lease_until = None
        return True

    async def release(self, attempts: Sequence[AttemptId]) -> int:
        released = 0
        for attempt in attempts:
            job, row = self._held_by(attempt), self._t.attempts[attempt]
            if job is not None and not row.is_finished:
                row.is_finished, row.outcome = True, "cancelled"
                job.status, job.attempt, job.lease_until = "paid", None, None
                job.attempts -= 1
                released += 1
        return released

    def _held_by(self, attempt: AttemptId) -> JobRow | None:
        job = self._t.jobs[self._t.attempts[attempt].job]
        holds = job.attempt == attempt and job.lease_until is not None
        return job if holds and job.status == "in_progress" else None

    async def finish_answered(
        self,
        decide: Callable[[AnsweredJob], Verdict],
        delay: Callable[[AnsweredJob], timedelta],
        limit: int,
    ) -> Finishing:
        finished: list[FinishedJob] = []
        for job in self._t.jobs.values():
            row = None if job.attempt is None else self._t.attempts[job.attempt]
            is_answered = job.status == "in_progress" and job.lease_until is None
            if row is None or not is_answered or not row.is_finished or job.completed:
                continue
            answered = _answered_of(job, row)
            verdict = decide(answered)
            self._write(job, verdict, delay(answered))
            finished.append(FinishedJob(job=answered, verdict=verdict))
        return Finishing(finished=finished, refused=[])

    def _write(self, job: JobRow, verdict: Verdict, delay: timedelta) -> None:
        match verdict:
            case Complete(output=output):
                job.status, job.output, job.failures_in_row = "completed", output, 0
                job.completed += 1
            case Fail(message=message):
                job.status, job.output, job.failures_in_row = "failed", failure_output(message), 0
                job.completed += 1
            case TryAgain(uses_attempt=uses_attempt):
                job.status, job.attempt = "paid", None
                job.next_attempt_at = self._t.now + delay
                job.attempts -= 0 if uses_attempt else 1
                job.failures_in_row += 1
            case _:
                assert_never(verdict)


def _answered_of(job: JobRow, row: Attempt) -> AnsweredJob:
    assert isinstance(row.output, dict | None)
    return AnsweredJob(
        id=job.id,
        uuid=job.uuid,
        attempt=AttemptId(row.id),
        attempts=job.attempts,
        failures_in_row=job.failures_in_row,
        service_key=None,
        cost_usd=Decimal(0),
        paid_block_time=None,
        generating_s=0.0,
        waited_s=0.0,
        result=AttemptResult(
            outcome=Outcome(row.outcome or ""), message=str(row.outcome), output=row.output
        ),
    )
