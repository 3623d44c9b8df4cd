"""The websocket: a wake-up that may break in every way, and a listener that is woken by it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from listener import subscription as subscription_module
from listener.service import HEARD_TRIES
from listener.subscription import OnWake, Subscription
from oncepaid.domain.chain import TRANSFER_TOPIC, BlockHash, BlockRef
from oncepaid.domain.errors import NodeBehind
from oncepaid.domain.retrying import Backoff
from oncepaid.health import Health
from oncepaid.loops import Bell, Driver
from oncepaid.metrics import Metrics
from tests.fakes.blocks import TOKEN, Block, Chain, pay, word
from tests.fakes.loopback import LOOPBACK, unused_port
from tests.fakes.node import FakeNode
from tests.fakes.refusals import SocketEnd
from tests.integration.listener.rig import PAYER, SHOP, STRANGER, Ear, units_of

WAIT_S: Final = 10.0
FILTER: Final = {"address": TOKEN, "topics": [TRANSFER_TOPIC, None, [word(SHOP)]]}


@pytest.fixture(autouse=True)
def _quick_reconnects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription_module, "RECONNECT_BACKOFF", Backoff(base_s=0.005, cap_s=0.01))


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

    def reconnects(self, reason: str) -> float:
        value = self.metrics.registry.get_sample_value(
            "oncepaid_subscription_reconnects_total", {"reason": reason}
        )
        return value or 0

    @property
    def is_up(self) -> bool:
        return self.metrics.registry.get_sample_value("oncepaid_subscription_up") == 1


@pytest.fixture
def wakes() -> Wakes:
    return Wakes()


@asynccontextmanager
async def subscribed(
    wakes: Wakes, *urls: str, on_wake: OnWake | None = None
) -> AsyncIterator[None]:
    subscription = Subscription(urls, FILTER, on_wake=on_wake or wakes.note, metrics=wakes.metrics)
    task = asyncio.create_task(subscription.run())
    try:
        yield
        assert not task.done(), "it must never end by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def ref(block: Block) -> BlockRef:
    return BlockRef(number=block.number, hash=BlockHash(block.hash))


async def test_it_wakes_for_our_logs_only(chain: Chain, node: FakeNode, wakes: Wakes) -> None:
    async with subscribed(wakes, node.ws_url):
        assert await wakes.next() is None
        assert wakes.is_up
        assert node.filters == [FILTER]
        await node.announce(chain.add(pay(PAYER, STRANGER, 1)))
        ours = chain.add(pay(PAYER, SHOP, 1))
        await node.announce(ours)
        assert await wakes.next() == ref(ours)


async def test_a_removed_log_asks_for_the_head(chain: Chain, node: FakeNode, wakes: Wakes) -> None:
    async with subscribed(wakes, node.ws_url):
        await wakes.next()
        block = chain.add(pay(PAYER, SHOP, 1))
        await node.announce(block)
        await node.announce(block, removed=True)
        assert [await wakes.next(), await wakes.next()] == [ref(block), None]


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (SocketEnd.REFUSED, "refused"),
        (SocketEnd.NO_SUBSCRIPTION, "refused"),
        (SocketEnd.GARBAGE, "refused"),
        (SocketEnd.A_LIST, "refused"),
        (SocketEnd.CLOSED, "closed"),
        (SocketEnd.DROPPED, "lost"),
    ],
)
async def test_it_tries_again_until_it_is_subscribed(
    node: FakeNode, wakes: Wakes, end: SocketEnd, reason: str
) -> None:
    node.socket_script.extend([end] * 3)
    async with subscribed(wakes, node.ws_url):
        assert await wakes.next() is None
        assert wakes.reconnects(reason) == 3
        assert wakes.is_up
        assert len(node.filters) == 1


async def _close_normally(node: FakeNode) -> None:
    await node.close_sockets(1000)


async def _close_for_a_restart(node: FakeNode) -> None:
    await node.close_sockets(1001)


async def _close_for_an_error(node: FakeNode) -> None:
    await node.close_sockets(1011)


async def _drop(node: FakeNode) -> None:
    node.drop_sockets()


async def _garbage(node: FakeNode) -> None:
    await node.say("<html>")


async def _bad_log(node: FakeNode) -> None:
    await node.say('{"params": {"result": {"blockNumber": "many", "blockHash": "0x"}}}')


async def _huge(node: FakeNode) -> None:
    await node.say('"' + "x" * (subscription_module.MAX_MESSAGE_BYTES + 1) + '"')


BREAKS: Final = {
    "1000": (_close_normally, "closed"),
    "1001": (_close_for_a_restart, "closed"),
    "1011": (_close_for_an_error, "closed"),
    "dropped": (_drop, "lost"),
    "garbage": (_garbage, "refused"),
    "a bad log": (_bad_log, "refused"),
    "a message beyond all bounds": (_huge, "lost"),
}


@pytest.mark.parametrize("name", BREAKS)
async def test_it_comes_back_and_wakes(
    chain: Chain, node: FakeNode, wakes: Wakes, name: str
) -> None:
    break_it, reason = BREAKS[name]
    with capture_logs() as logs:
        async with subscribed(wakes, node.ws_url):
            await wakes.next()
            await break_it(node)
            assert await wakes.next() is None, "anything may have been missed"
            assert wakes.reconnects(reason) == 1
            block = chain.add(pay(PAYER, SHOP, 1))
            await node.announce(block)
            assert await wakes.next() == ref(block)
    told = [(entry["event"], entry["log_level"]) for entry in logs]
    up, down = ("subscription.up", "info"), ("subscription.down", "warning")
    assert told == [up, down, up]
    assert logs[1]["reason"] == reason
    assert logs[1]["endpoint"] == node.ws_url.removeprefix("ws://").rstrip("/")


async def test_messages_that_tell_nothing_are_passed_over(
    chain: Chain, node: FakeNode, wakes: Wakes
) -> None:
    async with subscribed(wakes, node.ws_url):
        await wakes.next()
        for text in ("{}", '{"params": 5}', '{"params": {"result": "0x1"}}', '{"id": 7}'):
            await node.say(text)
        block = chain.add(pay(PAYER, SHOP, 1))
        await node.announce(block)
        assert await wakes.next() == ref(block)
        assert len(node.filters) == 1


async def test_it_is_down_until_it_is_subscribed_again(node: FakeNode, wakes: Wakes) -> None:
    node.socket_script.extend([None, *[SocketEnd.REFUSED] * 1000])
    async with subscribed(wakes, node.ws_url), asyncio.timeout(WAIT_S):
        await wakes.next()
        assert wakes.is_up
        node.drop_sockets()
        await node.connected(2)
        assert not wakes.is_up


async def test_a_subscription_that_is_not_answered(
    node: FakeNode, wakes: Wakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription_module, "OPEN_TIMEOUT_S", 0.2)
    node.socket_script.append(SocketEnd.SILENT)
    async with subscribed(wakes, node.ws_url):
        assert await wakes.next() is None
    assert wakes.reconnects("unreachable") >= 1


async def test_a_socket_that_falls_silent(
    node: FakeNode, wakes: Wakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open, but nobody reads at the other end: only the missing pong tells."""
    monkeypatch.setattr(subscription_module, "PING_S", 0.2)
    monkeypatch.setattr(subscription_module, "CLOSE_TIMEOUT_S", 0.1)
    async with subscribed(wakes, node.ws_url):
        await wakes.next()
        node.freeze_sockets()
        assert await wakes.next() is None
    assert wakes.reconnects("lost") >= 1


async def test_it_goes_on_to_the_next_url(node: FakeNode, wakes: Wakes) -> None:
    dead = f"ws://{LOOPBACK}:{unused_port()}/secret-key"
    with capture_logs() as logs:
        async with subscribed(wakes, dead, node.ws_url):
            assert await wakes.next() is None
    assert wakes.reconnects("unreachable") == 1
    assert "secret-key" not in str(logs)


async def test_it_waits_for_a_node_that_is_away(node: FakeNode, wakes: Wakes) -> None:
    """Three rounds over a dead URL and a node that refuses, then that node serves."""
    node.socket_script.extend([SocketEnd.REFUSED] * 3)
    dead = f"ws://{LOOPBACK}:{unused_port()}/"
    with capture_logs() as logs:
        async with subscribed(wakes, dead, node.ws_url):
            assert await wakes.next() is None
    assert (wakes.reconnects("unreachable"), wakes.reconnects("refused")) == (4, 3)
    delays = [entry["retry_in_s"] for entry in logs if entry["event"] == "subscription.down"]
    assert len(delays) == 7
    assert max(delays) <= 0.01


async def test_a_node_behind_its_own_websocket(chain: Chain, node: FakeNode, ear: Ear) -> None:
    """The push comes from one backend, the logs from another one that is not there yet."""
    before = await ear.cursor()
    block = chain.add(pay(PAYER, SHOP, 1))
    node.head_lag = 1
    ear.listener.hear(ref(block))
    with pytest.raises(NodeBehind):
        await ear.listener.step()
    assert (await ear.payments(), await ear.cursor()) == ([], before)
    node.head_lag = 0
    await ear.listener.step()
    assert units_of(await ear.payments()) == [1], "without waiting for a tick"


async def test_a_node_that_stays_behind_is_asked_for_its_own_head(
    chain: Chain, node: FakeNode, ear: Ear
) -> None:
    block = chain.add(pay(PAYER, SHOP, 1))
    node.head_lag = 1
    ear.listener.hear(ref(block))
    for _ in range(HEARD_TRIES):
        with pytest.raises(NodeBehind):
            await ear.listener.step()
    assert await ear.listener.step() is False


async def test_what_was_heard_below_the_cursor_hides_nothing(chain: Chain, ear: Ear) -> None:
    ear.listener.hear(ref(chain.blocks[3]))
    chain.add(pay(PAYER, SHOP, 1))
    assert await ear.listener.step() is False
    assert units_of(await ear.payments()) == [1]


async def test_the_highest_of_what_was_heard_counts(chain: Chain, ear: Ear) -> None:
    first = chain.add(pay(PAYER, SHOP, 1))
    second = chain.add(pay(PAYER, SHOP, 2))
    for block in (second, first):
        ear.listener.hear(ref(block))
    await ear.listener.step()
    assert units_of(await ear.payments()) == [1, 2]


async def test_a_push_of_a_block_that_is_gone(chain: Chain, node: FakeNode, ear: Ear) -> None:
    gone = ref(chain.add(pay(PAYER, SHOP, 1)))
    chain.reorg(1, pay(PAYER, SHOP, 2))
    ear.listener.hear(gone)
    assert await ear.insist() == 1
    assert units_of(await ear.payments()) == [2]


async def test_a_push_is_stored_without_waiting_for_a_tick(
    chain: Chain, node: FakeNode, ear: Ear, wakes: Wakes
) -> None:
    """Subscription, bell, driver and listener as the daemon joins them; the next tick is far."""
    bell, rounds = Bell(), asyncio.Semaphore(0)

    def wake(block: BlockRef | None) -> None:
        ear.listener.hear(block)
        bell.ring()

    async def step() -> bool:
        more = await ear.listener.step()
        rounds.release()
        return more

    driving = asyncio.create_task(Driver(Health(())).drive("listen", step, bell=bell, poll_s=3600))
    async with subscribed(wakes, node.ws_url, on_wake=wake), asyncio.timeout(WAIT_S):
        await node.subscribed(1)
        for number in range(3):
            await node.announce(chain.add(pay(PAYER, SHOP, number + 1)))
            while len(await ear.payments()) <= number:
                await rounds.acquire()
        # What is missed while the connection is down is found when it is back.
        node.drop_sockets()
        chain.add(pay(PAYER, SHOP, 4))
        while len(await ear.payments()) < 4:
            await rounds.acquire()
    driving.cancel()
    await asyncio.gather(driving, return_exceptions=True)
    assert units_of(await ear.payments()) == [1, 2, 3, 4]
