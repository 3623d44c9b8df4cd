"""Does a subscription tell of what the reconcile finds? Pure: the caller brings the time.

A log and the reconcile that finds it come in either order, so what is found and was not heard may
still be heard for some seconds. One hearing belongs to one connection. Times are the event loop's.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from oncepaid.domain.chain import BlockHash, BlockRef
from oncepaid.domain.payments import ObservedPayment

MAX_REMEMBERED: Final = 10_000
"""How many logs are remembered as heard, and how many are waited for."""
RECONCILES_BEFORE: Final = 2
"""The first reconcile of a connection may have begun before it was subscribed; the head of the
second is one from which on everything must be told."""

LogKey = tuple[BlockHash, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class MissedLogs:
    """So many payments were stored and not told of, the lowest of them in `first_block`."""

    count: int
    first_block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MissedHeads:
    """The reconcile saw `head`, and the last head that was told of is `heard`, if any."""

    head: int
    heard: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Awaited:
    due: float
    number: int


@dataclass(slots=True)
class _Line:
    """What lies at or below `number` is not judged."""

    number: int = 0
    _reconciles: int = field(default=0, init=False)

    def is_drawn_before(self, head: BlockRef) -> bool:
        """Say whether the line stood before this reconcile, whose head may draw it."""
        if self._reconciles == RECONCILES_BEFORE:
            return True
        self._reconciles += 1
        self.number = max(self.number, head.number)
        return False


class LogHearing:
    """The cross-check of `eth_subscribe logs`: every payment found must be heard, too."""

    def __init__(self, *, missed_after_s: float) -> None:
        self._missed_after_s = missed_after_s
        self._line = _Line()
        self._heard: OrderedDict[LogKey, int] = OrderedDict()
        self._awaited: OrderedDict[LogKey, _Awaited] = OrderedDict()

    @property
    def due(self) -> float | None:
        """When to ask `missed` next; None while nothing is waited for."""
        return next((awaited.due for awaited in self._awaited.values()), None)

    def heard(self, block: BlockRef, log_index: int) -> None:
        """Note a log that the subscription told of, not one that it told to be removed."""
        key = (block.hash, log_index)
        self._awaited.pop(key, None)
        self._heard[key] = block.number
        if len(self._heard) > MAX_REMEMBERED:
            # What is forgotten may have been heard: nobody can say any more that it was not.
            _, number = self._heard.popitem(last=False)
            self._line.number = max(self._line.number, number)

    def reconciled(self, head: BlockRef, payments: Sequence[ObservedPayment], now: float) -> None:
        """Note what a reconcile found, and the head that it knew."""
        if not self._line.is_drawn_before(head):
            return
        for payment in payments:
            block, key = payment.log.block, (payment.log.block.hash, payment.log.log_index)
            if block.number <= self._line.number or key in self._heard or key in self._awaited:
                continue
            if len(self._awaited) < MAX_REMEMBERED:
                due = now + self._missed_after_s
                self._awaited[key] = _Awaited(due=due, number=block.number)

    def missed(self, now: float) -> MissedLogs | None:
        """Return what should have been heard by now."""
        overdue = [awaited.number for awaited in self._awaited.values() if awaited.due <= now]
        return MissedLogs(count=len(overdue), first_block=min(overdue)) if overdue else None


class HeadHearing:
    """The cross-check of `eth_subscribe newHeads`: no reconcile may stay above the last head."""

    def __init__(self, *, missed_after_s: float) -> None:
        self._missed_after_s = missed_after_s
        self._line = _Line()
        self._last: int | None = None
        self._awaited: _Awaited | None = None

    @property
    def due(self) -> float | None:
        """When to ask `missed` next; None while nothing is waited for."""
        return None if self._awaited is None else self._awaited.due

    def heard(self, number: int) -> None:
        """Note a head that the subscription told of."""
        self._last = number
        if self._awaited is not None and number >= self._awaited.number:
            self._awaited = None

    def reconciled(self, head: BlockRef, payments: Sequence[ObservedPayment], now: float) -> None:
        """Note the head that a reconcile knew; `payments` tell nothing more here."""
        if not self._line.is_drawn_before(head):
            return
        if head.number <= max(self._line.number, self._last or 0):
            # Also where the head went back: what was waited for may never come.
            self._awaited = None
        elif self._awaited is None:
            self._awaited = _Awaited(due=now + self._missed_after_s, number=head.number)

    def missed(self, now: float) -> MissedHeads | None:
        """Return what should have been heard by now."""
        if self._awaited is None or self._awaited.due > now:
            return None
        return MissedHeads(head=self._awaited.number, heard=self._last)


Hearing = LogHearing | HeadHearing
