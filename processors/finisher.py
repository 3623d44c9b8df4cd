"""in_progress → completed | failed | paid again: writes what an answer means, exactly once."""

import json
import random
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, Protocol, assert_never

import structlog

from oncepaid.domain.generation import (
    AnsweredJob,
    Budget,
    Complete,
    Fail,
    FinishedJob,
    Finishing,
    TryAgain,
    Verdict,
    decide_verdict,
)
from oncepaid.domain.retrying import GENERATION_BACKOFF
from oncepaid.metrics import Metrics
from processors.services import label_of

log = structlog.get_logger()

BATCH: Final = 100


class Work(Protocol):
    async def finish_answered(
        self,
        decide: Callable[[AnsweredJob], Verdict],
        delay: Callable[[AnsweredJob], timedelta],
        limit: int,
    ) -> Finishing: ...


class Finisher:
    """Finishes answered jobs. Several may run: each job is locked and its attempt checked."""

    def __init__(
        self,
        work: Work,
        *,
        budget: Budget,
        services: Collection[str],
        metrics: Metrics,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._work = work
        self._services = services
        self._metrics = metrics
        self._refused: set[str] = set()
        self._decide = partial(_verdict_of, budget=budget)
        self._delay = partial(retry_delay, uniform=uniform)

    async def step(self) -> bool:
        """Finish one batch; True when more may be waiting."""
        finishing = await self._work.finish_answered(self._decide, self._delay, BATCH)
        for job in finishing.finished:
            self._tell(job)
        for refused in finishing.refused:
            if refused.job.uuid not in self._refused:
                log.error("job.refused", job_uuid=refused.job.uuid, problem=refused.problem)
        self._refused = {refused.job.uuid for refused in finishing.refused}
        return len(finishing.finished) == BATCH

    def _tell(self, finished: FinishedJob) -> None:
        job = finished.job
        match finished.verdict:
            case Complete(output=output):
                log.info(
                    "ai_processing_complete",
                    job_uuid=job.uuid,
                    duration_ms=round(job.generating_s * 1000),
                    output_size=len(json.dumps(output)),
                )
                log.info("job.completed", job_uuid=job.uuid)
            case Fail(message=message):
                log.warning(
                    "job.failed",
                    job_uuid=job.uuid,
                    message=message,
                    outcome=job.result.outcome,
                    request_id=job.result.request_id,
                )
            case TryAgain():
                log.info(
                    "job.will_be_retried",
                    job_uuid=job.uuid,
                    outcome=job.result.outcome,
                    attempts=job.attempts,
                )
                return
            case _:
                assert_never(finished.verdict)
        self._metrics.observe_stage("finished", job.waited_s)
        if job.paid_block_time is not None:
            took = datetime.now(UTC) - job.paid_block_time
            self._metrics.paid_to_result.labels(
                service=label_of(job.service_key, self._services)
            ).observe(max(0.0, took.total_seconds()))


def _verdict_of(job: AnsweredJob, budget: Budget) -> Verdict:
    return decide_verdict(
        job.result, attempts=job.attempts, job_cost_usd=job.cost_usd, budget=budget
    )


def retry_delay(job: AnsweredJob, uniform: Callable[[], float]) -> timedelta:
    """Return when to try again: after the provider's `retry-after`, with jitter on top."""
    backoff_s = GENERATION_BACKOFF.delay_s(job.failures_in_row + 1, uniform)
    return timedelta(seconds=backoff_s + (job.result.retry_after_s or 0.0))
