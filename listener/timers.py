"""Timers of the subscription on the event loop's clock; none of them is a task."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from listener.hearing import Hearing, MissedHeads, MissedLogs
from oncepaid.domain.chain import BlockRef
from oncepaid.domain.payments import ObservedPayment

STALLED_AFTER_S: Final = 1.0
"""A timer that rings so late tells that this process stood still, not that the node was mute."""


class MuteAlarm:
    """Cuts a connection by its time limit when its hearing says that something was missed."""

    def __init__(
        self,
        hearing: Hearing,
        limit: asyncio.Timeout,
        tell: Callable[[MissedLogs | MissedHeads], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._hearing = hearing
        self._limit = limit
        self._tell = tell
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False

    def reconciled(self, head: BlockRef, payments: Sequence[ObservedPayment]) -> None:
        """Take in what a reconcile found."""
        self._hearing.reconciled(head, payments, self._loop.time())
        self._arm()

    def cancel(self) -> None:
        """Ring no more."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        due = self._hearing.due
        if self._timer is None and not self._is_over and due is not None:
            self._timer = self._loop.call_at(due, self._ring, due)

    def _ring(self, due: float) -> None:
        now = self._loop.time()
        self._timer = None
        if now - due > STALLED_AFTER_S:
            # What came meanwhile still waits in the socket: let the reader have it first.
            again = now + STALLED_AFTER_S
            self._timer = self._loop.call_at(again, self._ring, again)
            return
        missed = self._hearing.missed(now)
        if missed is None:
            self._arm()
            return
        self._is_over = True
        self._tell(missed)
        self._limit.reschedule(now)


class Throttle:
    """Calls at most once in `every_s`. A ring in between is kept, so that the last one counts."""

    def __init__(self, call: Callable[[], None], every_s: float) -> None:
        self._call = call
        self._every_s = every_s
        self._free_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def ring(self) -> None:
        """Call now, or as soon as it may be."""
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self._free_at:
            self._fire()
        else:
            self._timer = loop.call_at(self._free_at, self._fire)

    def cancel(self) -> None:
        """Forget what was rung and not called yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        self._free_at = asyncio.get_running_loop().time() + self._every_s
        self._call()
