"""How stages are driven: a step, again while there is more, else at the bell or the next tick."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from oncepaid.domain.errors import DatabaseUnavailable, NotLeading, Permanent, Retryable
from oncepaid.domain.retrying import LOOP_BACKOFF
from oncepaid.health import Health

log = structlog.get_logger()

T = TypeVar("T")
Step = Callable[[], Awaitable[bool]]

PERMANENT_RETRY_S: Final = 10.0
"""For what only an operator can mend: said again at this pace, and noticed when mended."""


class Bell:
    """A wake-up that is remembered until somebody waits for it. One waiter at a time."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        self._event.set()

    async def wait(self, timeout_s: float) -> None:
        """Return when the bell was rung since the last wait, or after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            pass
        self._event.clear()


def then(step: Step, ring: Callable[[], None]) -> Step:
    """Return a step that rings after each time that it was done."""

    async def step_and_ring() -> bool:
        more = await step()
        ring()
        return more

    return step_and_ring


class Driver:
    """Drives stages and turns their errors into waiting, log lines and `/readyz` reasons."""

    def __init__(self, health: Health) -> None:
        self.health = health

    async def drive(
        self,
        name: str,
        step: Step,
        *,
        bell: Bell,
        poll_s: float,
        retry_cap_s: float = PERMANENT_RETRY_S,
    ) -> None:
        """Run `step` until cancelled, after a `Retryable` again within `retry_cap_s`.

        This is the top of every loop: whatever a step raises, the loop goes on.
        """
        failures = 0
        while True:
            try:
                more = await step()
            except Exception as exc:
                failures += 1
                delay_s = self._failed(name, exc, failures)
                if isinstance(exc, Retryable):
                    delay_s = min(delay_s, retry_cap_s)
                await asyncio.sleep(delay_s)
                continue
            if failures:
                log.info("stage.recovered", stage=name, after_failures=failures)
            failures = 0
            self.health.clear(name)
            if not more:
                await bell.wait(poll_s)

    async def until_done(self, name: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat an attempt while it raises `Retryable`; anything else is the caller's."""
        failures = 0
        while True:
            try:
                result = await attempt()
            except Retryable as exc:
                failures += 1
                await asyncio.sleep(self._failed(name, exc, failures))
            else:
                self.health.clear(name)
                return result

    def _failed(self, name: str, exc: Exception, failures: int) -> float:
        """Note a failure and return how long to wait, in seconds."""
        match exc:
            case DatabaseUnavailable():
                part, trouble = "database", str(exc)
            case NotLeading():
                part, trouble = "lead", str(exc)
            case Retryable():
                part, trouble = "node", str(exc)
            case Permanent():
                part, trouble = name, str(exc)
            case _:
                part, trouble = name, f"internal error: {type(exc).__name__}"
        # A stage has one trouble at a time: what it met before, of another part, is over.
        self.health.clear(name, but=part)
        is_news = self.health.report(part, name, trouble)
        if isinstance(exc, Retryable):
            delay_s = LOOP_BACKOFF.delay_s(failures, random.random)
            if is_news:
                log.warning("stage.waiting", stage=name, part=part, reason=trouble)
            return delay_s
        log.error(
            "stage.failing", stage=name, reason=trouble, exc_info=not isinstance(exc, Permanent)
        )
        return PERMANENT_RETRY_S
