"""The websocket: a wake-up that may break in every way, and a listener that is woken by it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import pytest
from structlog.testing import capture_logs

from listener import reconnecting
from listener import subscription as subscription_module
from listener.service import HEARD_TRIES
from oncepaid.domain.chain import BlockRef
from oncepaid.domain.errors import NodeBehind
from oncepaid.health import Health
from oncepaid.loops import Bell, Driver
from tests.fakes.blocks import Chain, pay
from tests.fakes.loopback import LOOPBACK, unused_port
from tests.fakes.node import FakeNode
from tests.fakes.refusals import SocketEnd
from tests.integration.listener.rig import PAYER, SHOP, STRANGER, Ear, units_of
from tests.integration.listener.sockets import FILTER, QUICK, WAIT_S, Wakes, ref, subscribed

pytestmark = pytest.mark.fault("F8", "F10")

Break = Callable[[FakeNode], Awaitable[None]]


@pytest.fixture
def wakes() -> Wakes:
    return Wakes()


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
        (SocketEnd.GARBAGE, "garbage"),
        (SocketEnd.A_LIST, "garbage"),
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


def _close(code: int) -> Break:
    return lambda node: node.close_sockets(code)


def _say(text: str) -> Break:
    return lambda node: node.say(text)


def _say_log(fields: str) -> Break:
    block_hash = '"blockHash": "0x' + "1" * 64 + '"'
    return _say('{"params": {"result": {' + block_hash + ", " + fields + "}}}")


async def _drop(node: FakeNode) -> None:
    node.drop_sockets()


MANY_BYTES: Final = 1_500_000
BREAKS: Final = {
    "1000": (_close(1000), "closed"),
    "1001": (_close(1001), "closed"),
    "1006, which is none": (_drop, "lost"),
    "1009": (_close(1009), "closed"),
    "1011": (_close(1011), "closed"),
    "1013": (_close(1013), "closed"),
    "garbage": (_say("<html>"), "garbage"),
    "nothing": (_say(""), "garbage"),
    "a NUL": (_say('{"id": "\0"}'), "garbage"),
    "nested": (_say('{"params":' * 100_000), "garbage"),
    "nested and closed": (_say('{"a":' * 5000 + "1" + "}" * 5000), "garbage"),
    "half a character": (_say('{"a": "\\ud800"}'), "garbage"),
    "no log index": (_say_log('"blockNumber": "0x1"'), "garbage"),
    "no number": (_say_log('"blockNumber": "many", "logIndex": "0x1"'), "garbage"),
    "a huge number": (_say_log('"blockNumber": 1e999, "logIndex": "0x1"'), "garbage"),
    "a long number": (_say_log('"blockNumber": %s, "logIndex": "0x1"' % ("9" * 9999)), "garbage"),
    "a long quantity": (
        _say_log('"blockNumber": "0x1", "logIndex": "0x%s"' % ("f" * 9999)),
        "garbage",
    ),
    "a message beyond all bounds": (_say('"' + "x" * MANY_BYTES + '"'), "garbage"),
}


@pytest.mark.parametrize("name", BREAKS)
async def test_it_comes_back_and_wakes(
    chain: Chain, node: FakeNode, wakes: Wakes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription_module, "MAX_MESSAGE_BYTES", MANY_BYTES)
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


async def test_a_subscription_that_is_not_answered(node: FakeNode, wakes: Wakes) -> None:
    node.socket_script.append(SocketEnd.SILENT)
    async with subscribed(wakes, node.ws_url, timing=replace(QUICK, open_s=0.2)):
        assert await wakes.next() is None
    assert wakes.reconnects("unreachable") >= 1


async def test_a_socket_that_falls_silent(node: FakeNode, wakes: Wakes) -> None:
    """Open, but nobody reads at the other end: only the missing pong tells."""
    timing = replace(QUICK, ping_s=0.2, pong_s=0.2, close_s=0.1)
    async with subscribed(wakes, node.ws_url, timing=timing):
        await wakes.next()
        node.freeze_sockets()
        assert await wakes.next() is None
    assert wakes.reconnects("lost") >= 1


def test_a_dead_transport_is_noticed_within_fifteen_seconds() -> None:
    usual = subscription_module.TIMING
    assert usual.ping_s + usual.pong_s + usual.close_s <= 15
    assert 2 * usual.open_s <= 15, "connecting, and subscribing"


async def test_a_quiet_chain_is_no_reason_to_reconnect(
    chain: Chain, node: FakeNode, wakes: Wakes
) -> None:
    timing = replace(QUICK, ping_s=0.01, missed_after_s=0.01)
    async with subscribed(wakes, node.ws_url, timing=timing) as subscription:
        await wakes.next()
        for pings in range(1, 20):
            subscription.reconciled(ref(chain.head), [])
            async with asyncio.timeout(WAIT_S):
                await node.pinged(pings)
        assert node.socket_attempts == 1
        ours = chain.add(pay(PAYER, SHOP, 1))
        await node.announce(ours)
        assert await wakes.next() == ref(ours)


async def test_it_goes_on_to_the_next_url(node: FakeNode, wakes: Wakes) -> None:
    dead = f"ws://{LOOPBACK}:{unused_port()}/secret-key"
    with capture_logs() as logs:
        async with subscribed(wakes, dead, node.ws_url):
            assert await wakes.next() is None
    assert wakes.reconnects("unreachable") == 1
    assert "secret-key" not in str(logs)


async def test_it_returns_to_the_preferred_url(
    node: FakeNode, second_node: FakeNode, wakes: Wakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.socket_script.append(SocketEnd.REFUSED)
    async with subscribed(wakes, node.ws_url, second_node.ws_url):
        await wakes.next()
        assert (len(node.filters), len(second_node.filters)) == (0, 1)
        # From here on every connection counts as steady.
        monkeypatch.setattr(reconnecting, "STEADY_AFTER_S", 0.0)
        second_node.drop_sockets()
        await wakes.next()
        node.drop_sockets()
        await wakes.next()
        assert (len(node.filters), len(second_node.filters)) == (2, 1)


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
