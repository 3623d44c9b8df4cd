"""paid → in_progress: claims jobs, asks Claude, and stores what came of it for the finisher."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Final, Protocol

import structlog

from oncepaid.domain.errors import Retryable
from oncepaid.domain.generation import AttemptResult, Outcome
from oncepaid.domain.jobs import AttemptId, ClaimedJob, PromptRefused, prompt_of
from oncepaid.domain.pricing import DEAREST, Price, cost_of
from oncepaid.metrics import Metrics
from processors.services import Service, label_of

log = structlog.get_logger()

LEASE: Final = timedelta(seconds=60)
"""How long a dead worker's job stays claimed. Heartbeats extend it, so calls may be longer."""
HEARTBEAT_S: Final = LEASE.total_seconds() / 4
MAX_LOST_ATTEMPTS: Final = 5
"""A job during which so many workers died is taken for the cause."""
RELEASE_TIMEOUT_S: Final = 5.0
STORE_RETRY_S: Final = 1.0


class Work(Protocol):
    async def claim(self, limit: int, lease: timedelta) -> list[ClaimedJob]: ...
    async def keep_leases(
        self, attempts: Sequence[AttemptId], lease: timedelta
    ) -> set[AttemptId]: ...
    async def record_if_leased(self, attempt: AttemptId, result: AttemptResult) -> bool: ...
    async def release(self, attempts: Sequence[AttemptId]) -> int: ...
    async def spent_today_usd(self) -> float: ...


class Model(Protocol):
    async def generate(self, service: Service, prompt: str) -> AttemptResult: ...


class Announce(Protocol):
    def __call__(self) -> None: ...


class Generator:
    """Keeps up to `concurrency` calls in flight. Several may run: jobs are claimed by leases."""

    def __init__(
        self,
        work: Work,
        model: Model,
        *,
        services: Mapping[str, Service],
        prices: Mapping[str, Price],
        concurrency: int,
        max_cost_usd_per_day: Decimal,
        announce: Announce,
        metrics: Metrics,
    ) -> None:
        """`announce` is called when an answer was stored and when a place became free."""
        self._work = work
        self._model = model
        self._services = services
        self._prices = prices
        self._concurrency = concurrency
        self._max_cost_usd_per_day = max_cost_usd_per_day
        self._announce = announce
        self._metrics = metrics
        self._running: dict[AttemptId, asyncio.Task[None]] = {}
        self._storing: set[AttemptId] = set()
        self._claiming: asyncio.Task[list[ClaimedJob]] | None = None
        self._is_over_budget = False

    async def step(self) -> bool:
        """Claim as many jobs as there are free places; `announce` tells when to come again."""
        free = self._concurrency - len(self._running)
        if free <= 0 or await self._budget_is_spent():
            return False
        # A claim that a stop cuts off half-way may be done all the same: `stop` waits for it.
        self._claiming = asyncio.create_task(self._work.claim(free, LEASE), name="claim")
        for job in await asyncio.shield(self._claiming):
            task = asyncio.create_task(self._do(job), name=f"generate-{job.uuid}")
            self._running[job.attempt] = task
            task.add_done_callback(partial(self._ended, job.attempt))
        return False

    async def keep_leases(self) -> bool:
        """Extend the leases of the running calls, and cut off those calls that lost theirs."""
        held = list(self._running)
        kept = await self._work.keep_leases(held, LEASE) if held else set()
        for attempt in set(held) - kept:
            task = self._running.get(attempt)
            if task is not None and attempt not in self._storing:
                log.warning("generation.lease_lost", attempt_id=attempt)
                task.cancel()
        return False

    async def stop(self) -> None:
        """Give the running jobs back, within twice `RELEASE_TIMEOUT_S`.

        Calls under way are cut short; answers that have come are stored first.
        """
        for attempt, task in self._running.items():
            if attempt not in self._storing:
                task.cancel()
        if storing := [self._running[attempt] for attempt in self._storing]:
            await asyncio.wait(storing, timeout=RELEASE_TIMEOUT_S)
        attempts, tasks = list(self._running), list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                attempts += await self._claimed_last()
                if attempts:
                    released = await self._work.release(attempts)
                    log.info("generation.released", count=released)
        except (Retryable, TimeoutError) as exc:
            # Nothing is lost: the leases run out by themselves.
            log.warning("generation.release_failed", error=str(exc))

    async def _claimed_last(self) -> list[AttemptId]:
        """Return what a claim got that the stop cut off half-way."""
        if self._claiming is None:
            return []
        try:
            return [job.attempt for job in await self._claiming]
        except Retryable:
            return []

    def _ended(self, attempt: AttemptId, _: asyncio.Task[None]) -> None:
        self._running.pop(attempt, None)
        self._storing.discard(attempt)
        self._announce()

    async def _budget_is_spent(self) -> bool:
        spent = await self._work.spent_today_usd()
        is_over = spent >= float(self._max_cost_usd_per_day)
        if is_over and not self._is_over_budget:
            log.error("generation.daily_budget_spent", spent_usd=spent)
        self._is_over_budget = is_over
        return is_over

    async def _do(self, job: ClaimedJob) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        log.info(
            "ai_processing_start",
            job_uuid=job.uuid,
            service_key=job.service_key,
            input_length=job.input_bytes,
            attempt_no=job.attempt_no,
        )
        try:
            self._metrics.observe_stage("started", job.waited_s)
            result = await self._generate(job)
        except Exception as exc:
            # A bug of ours must not leave the job in the air: it ends as an outcome too.
            log.exception("generation.bug", job_uuid=job.uuid)
            result = _internal_error(exc)
        self._count(job, result, loop.time() - started)
        await self._store(job, result)

    async def _generate(self, job: ClaimedJob) -> AttemptResult:
        service = self._services.get(job.service_key or "")
        if job.lost_attempts > MAX_LOST_ATTEMPTS:
            return AttemptResult(
                outcome=Outcome.LOST, message="the work on this job was interrupted too often"
            )
        if not job.skill_is_active:
            return AttemptResult(
                outcome=Outcome.INACTIVE_SKILL, message="the skill is inactive or gone"
            )
        if service is None:
            return AttemptResult(
                outcome=Outcome.UNKNOWN_SERVICE, message=f"unknown service {job.service_key!r}"
            )
        prompt = prompt_of(job.input_json, job.input_bytes)
        if isinstance(prompt, PromptRefused):
            return AttemptResult(outcome=Outcome.BAD_INPUT, message=prompt.message)
        result = await self._model.generate(service, prompt.text)
        price = self._prices.get(service.model, DEAREST)
        sent_bytes = len(service.system_prompt.encode()) + len(prompt.text.encode())
        cost = cost_of(result, price, prompt_bytes=sent_bytes, max_tokens=service.max_tokens)
        return replace(result, cost_usd=cost)

    async def _store(self, job: ClaimedJob, result: AttemptResult) -> None:
        """Store the result, however long the database is away: the answer is paid for."""
        self._storing.add(job.attempt)
        is_reduced = False
        while True:
            try:
                if not await self._work.record_if_leased(job.attempt, result):
                    log.warning("generation.result_too_late", job_uuid=job.uuid)
                return
            except Retryable as exc:
                log.warning("generation.store_failed", job_uuid=job.uuid, error=str(exc))
                await asyncio.sleep(STORE_RETRY_S)
            except Exception as exc:
                # Waiting for the lease to run out would only ask and pay again.
                log.exception("generation.bug", job_uuid=job.uuid)
                if is_reduced:
                    return
                result, is_reduced = _internal_error(exc, result), True

    def _count(self, job: ClaimedJob, result: AttemptResult, took_s: float) -> None:
        service = label_of(job.service_key, self._services)
        if result.outcome is not Outcome.SUCCEEDED:
            log.warning(
                "ai_processing_error",
                job_uuid=job.uuid,
                error=result.message,
                outcome=result.outcome,
                request_id=result.request_id,
            )
        known = self._services.get(job.service_key or "")
        if known is not None and result.model is not None:
            self._count_call(known.model, result)
        self._metrics.claude_cost_usd.labels(service=service).inc(float(result.cost_usd or 0))
        self._metrics.observe_stage("generated", took_s)

    def _count_call(self, model: str, result: AttemptResult) -> None:
        """Labelled by the configured name: the API may answer with a dated one."""
        self._metrics.claude_requests.labels(model=model, outcome=result.outcome).inc()
        for kind, count in (("input", result.input_tokens), ("output", result.output_tokens)):
            self._metrics.claude_tokens.labels(model=model, kind=kind).inc(count or 0)


def _internal_error(exc: Exception, spent: AttemptResult | None = None) -> AttemptResult:
    """Return the end of an attempt that a bug of ours spoiled; what it cost stays counted."""
    return AttemptResult(
        outcome=Outcome.INTERNAL_ERROR,
        message=f"internal error: {type(exc).__name__}",
        cost_usd=spent.cost_usd if spent else None,
    )
