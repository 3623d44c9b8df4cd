"""A subscription under test: quick timers, its wakes to wait for, payments as a reconcile tells."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final

from prometheus_client import CollectorRegistry

from listener.decode import decode_transfer
from listener.subscription import OnWake, Subscription, Timing
from oncepaid.domain.chain import TRANSFER_TOPIC, BlockHash, BlockRef
from oncepaid.domain.payments import ObservedPayment
from oncepaid.domain.retrying import Backoff
from oncepaid.metrics import Metrics
from tests.fakes.blocks import TOKEN, Block, word
from tests.integration.listener.rig import SHOP

WAIT_S: Final = 10.0
FILTER: Final = {"address": TOKEN, "topics": [TRANSFER_TOPIC, None, [word(SHOP)]]}
BACKOFF: Final = Backoff(base_s=0.005, cap_s=0.01)
QUICK: Final = Timing(backoff=BACKOFF)
SHORT_OF_HEARING: Final = Timing(backoff=BACKOFF, missed_after_s=0.3)
"""Long enough for a push over the loopback to arrive, short enough to wait for."""


class Wakes:
    """Collects what a subscription calls out."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[BlockRef | None] = asyncio.Queue()
        self.metrics = Metrics(CollectorRegistry())

    def note(self, block: BlockRef | None) -> None:
        self._queue.put_nowait(block)

    async def next(self) -> BlockRef | None:
        async with asyncio.timeout(WAIT_S):
            return await self._queue.get()

    @property
    def waiting(self) -> int:
        """How many were called out and not taken yet."""
        return self._queue.qsize()

    def reconnects(self, reason: str) -> float:
        return self._sample("subscription_reconnects_total", reason=reason)

    @property
    def missed(self) -> float:
        return self._sample("subscription_missed_logs_total")

    @property
    def is_up(self) -> bool:
        return self._sample("subscription_up") == 1

    def _sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"oncepaid_{name}", labels) or 0


@asynccontextmanager
async def subscribed(
    wakes: Wakes, *urls: str, on_wake: OnWake | None = None, timing: Timing = QUICK
) -> AsyncIterator[Subscription]:
    """Run a subscription until the block ends; it must live as long."""
    subscription = Subscription(
        urls, FILTER, on_wake=on_wake or wakes.note, metrics=wakes.metrics, timing=timing
    )
    task = asyncio.create_task(subscription.run())
    try:
        yield subscription
        assert not task.done(), "it must never end by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def ref(block: Block) -> BlockRef:
    """Return a block as the listener knows it."""
    return BlockRef(number=block.number, hash=BlockHash(block.hash))


def payments_of(block: Block) -> list[ObservedPayment]:
    """Return a block's transfers as a reconcile hands them over."""
    found = [decode_transfer(log, TOKEN) for log in block.logs]
    return [
        ObservedPayment(log=log, block_time=datetime.now(UTC), evidence=(), transfers_in_tx=1)
        for log in found
        if log is not None
    ]
