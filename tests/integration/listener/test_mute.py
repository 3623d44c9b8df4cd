"""A websocket that lives and tells nothing, tells of heads only, or serves no subscription."""

import asyncio
import time
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from listener import reconnecting, timers
from listener.subscription import Subscription
from tests.fakes.blocks import Block, Chain, pay
from tests.fakes.node import FakeNode
from tests.fakes.refusals import SocketEnd
from tests.integration.listener.rig import PAYER, SHOP
from tests.integration.listener.sockets import (
    FILTER,
    QUICK,
    SHORT_OF_HEARING,
    WAIT_S,
    Wakes,
    payments_of,
    ref,
    subscribed,
)

pytestmark = pytest.mark.fault("F9")


@pytest.fixture
def wakes() -> Wakes:
    return Wakes()


def reconcile(subscription: Subscription, *blocks: Block) -> None:
    """Tell of blocks as the listener does: the head, and what was found."""
    found = [payment for block in blocks for payment in payments_of(block)]
    subscription.reconciled(ref(blocks[-1]), found)


def hold_the_process() -> None:
    """Stand still as after a SIGSTOP: time passes, and nothing runs."""
    time.sleep(2 * SHORT_OF_HEARING.missed_after_s)


async def draw_the_line(subscription: Subscription, chain: Chain, wakes: Wakes) -> None:
    """Wait for the connection and do the two reconciles that judge nothing."""
    assert await wakes.next() is None
    for _ in range(2):
        reconcile(subscription, chain.head)


async def test_a_mute_subscription_is_replaced(chain: Chain, node: FakeNode, wakes: Wakes) -> None:
    with capture_logs() as logs:
        async with subscribed(wakes, node.ws_url, timing=SHORT_OF_HEARING) as subscription:
            await draw_the_line(subscription, chain, wakes)
            silent = chain.add(pay(PAYER, SHOP, 1), pay(PAYER, SHOP, 2))
            reconcile(subscription, silent)
            assert await wakes.next() is None, "without a further reconcile"
            assert (wakes.missed, wakes.reconnects("mute")) == (2, 1)
            assert wakes.is_up
            heard = chain.add(pay(PAYER, SHOP, 3))
            await node.announce(heard)
            assert await wakes.next() == ref(heard)
    told = next(entry for entry in logs if entry["event"] == "subscription.missed")
    assert (told["log_level"], told["logs"], told["first_block"]) == ("warning", 2, silent.number)


async def test_a_mute_node_is_left_for_the_next(
    chain: Chain, node: FakeNode, second_node: FakeNode, wakes: Wakes
) -> None:
    urls = (node.ws_url, second_node.ws_url)
    async with subscribed(wakes, *urls, timing=SHORT_OF_HEARING) as subscription:
        await draw_the_line(subscription, chain, wakes)
        reconcile(subscription, chain.add(pay(PAYER, SHOP, 1)))
        assert await wakes.next() is None
        assert (len(node.filters), len(second_node.filters)) == (1, 1)


async def test_logs_may_come_before_or_after_the_reconcile(
    chain: Chain, node: FakeNode, wakes: Wakes
) -> None:
    async with subscribed(wakes, node.ws_url, timing=SHORT_OF_HEARING) as subscription:
        await draw_the_line(subscription, chain, wakes)
        before = chain.add(pay(PAYER, SHOP, 1))
        await node.announce(before)
        assert await wakes.next() == ref(before)
        after = chain.add(pay(PAYER, SHOP, 2))
        reconcile(subscription, before, after)
        await node.announce(after)
        assert await wakes.next() == ref(after)
        # The one that never comes is the only one that counts.
        reconcile(subscription, chain.add(pay(PAYER, SHOP, 3)))
        assert await wakes.next() is None
        assert (wakes.missed, wakes.reconnects("mute")) == (1, 1)


async def test_a_log_that_comes_too_late(chain: Chain, node: FakeNode, wakes: Wakes) -> None:
    timing = replace(QUICK, missed_after_s=0.0)
    async with subscribed(wakes, node.ws_url, timing=timing) as subscription:
        await draw_the_line(subscription, chain, wakes)
        throttled = chain.add(pay(PAYER, SHOP, 1))
        reconcile(subscription, throttled)
        assert await wakes.next() is None
        await node.announce(throttled)
        assert await wakes.next() == ref(throttled)
        assert (wakes.missed, wakes.reconnects("mute")) == (1, 1)


async def test_a_process_that_stood_still_reads_its_socket_first(
    chain: Chain, node: FakeNode, wakes: Wakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "STALLED_AFTER_S", 0.1)
    async with subscribed(wakes, node.ws_url, timing=SHORT_OF_HEARING) as subscription:
        await draw_the_line(subscription, chain, wakes)
        told = chain.add(pay(PAYER, SHOP, 1))
        reconcile(subscription, told)
        # The push is written, then nothing runs: it lies in the socket when the timer is overdue.
        pushing = asyncio.create_task(node.announce(told))
        asyncio.get_running_loop().call_soon(hold_the_process)
        assert await wakes.next() == ref(told)
        assert wakes.missed == 0
        reconcile(subscription, chain.add(pay(PAYER, SHOP, 2)))
        assert await wakes.next() is None
        assert (wakes.missed, wakes.reconnects("mute")) == (1, 1)
        await pushing


async def test_a_removed_log_is_not_heard(chain: Chain, node: FakeNode, wakes: Wakes) -> None:
    async with subscribed(wakes, node.ws_url, timing=SHORT_OF_HEARING) as subscription:
        await draw_the_line(subscription, chain, wakes)
        block = chain.add(pay(PAYER, SHOP, 1))
        await node.announce(block, removed=True)
        assert await wakes.next() is None
        reconcile(subscription, block)
        assert await wakes.next() is None
        assert (wakes.missed, wakes.reconnects("mute")) == (1, 1)


async def test_each_connection_is_judged_afresh(chain: Chain, node: FakeNode, wakes: Wakes) -> None:
    """What was paid around a drop is nobody's fault: the second reconcile draws a new line."""
    timing = replace(QUICK, missed_after_s=0.0)
    async with subscribed(wakes, node.ws_url, timing=timing) as subscription:
        await draw_the_line(subscription, chain, wakes)
        node.drop_sockets()
        assert await wakes.next() is None
        for _ in range(2):
            reconcile(subscription, chain.add(pay(PAYER, SHOP, 1)))
        reconcile(subscription, chain.add(pay(PAYER, SHOP, 1)))
        assert await wakes.next() is None
        assert (wakes.missed, wakes.reconnects("mute")) == (1, 1)


async def test_a_reconcile_without_a_connection(chain: Chain, wakes: Wakes) -> None:
    subscription = Subscription(
        ["ws://127.0.0.1:9/"], FILTER, on_wake=wakes.note, metrics=wakes.metrics
    )
    reconcile(subscription, chain.add(pay(PAYER, SHOP, 1)))
    assert (wakes.missed, wakes.waiting) == (0, 0)


async def test_heads_instead_of_logs(chain: Chain, node: FakeNode, wakes: Wakes) -> None:
    node.socket_script.append(SocketEnd.NO_LOGS)
    with capture_logs() as logs:
        async with subscribed(wakes, node.ws_url):
            assert await wakes.next() is None
            assert wakes.is_up
            await node.announce_head(chain.mine(1))
            assert await wakes.next() is None
            # The next connection is asked for logs again.
            node.drop_sockets()
            assert await wakes.next() is None
            ours = chain.add(pay(PAYER, SHOP, 1))
            await node.announce(ours)
            assert await wakes.next() == ref(ours)
    ups = [entry["told_of"] for entry in logs if entry["event"] == "subscription.up"]
    assert ups == ["heads", "logs"]
    assert node.calls["eth_subscribe"] == 3


async def test_heads_wake_now_and_then_and_the_last_is_not_lost(
    chain: Chain, node: FakeNode, wakes: Wakes
) -> None:
    node.socket_script.append(SocketEnd.NO_LOGS)
    every_s, loop = 0.5, asyncio.get_running_loop()
    async with subscribed(wakes, node.ws_url, timing=replace(QUICK, heads_every_s=every_s)):
        await wakes.next()
        started = loop.time()
        for _ in range(20):
            await node.announce_head(chain.mine(1))
        assert await wakes.next() is None
        assert await wakes.next() is None, "the trailing one"
        waited_s = loop.time() - started
        assert waited_s >= every_s * 0.9
        assert wakes.waiting <= waited_s / every_s, "twenty heads, and hardly more than two wakes"


async def test_a_wake_is_not_lost_with_its_connection(
    chain: Chain, node: FakeNode, wakes: Wakes
) -> None:
    node.socket_script.append(SocketEnd.NO_LOGS)
    node.socket_script.extend([SocketEnd.REFUSED] * 1000)
    async with subscribed(wakes, node.ws_url, timing=replace(QUICK, heads_every_s=0.2)):
        await wakes.next()
        await node.announce_head(chain.mine(1))
        await wakes.next()
        await node.announce_head(chain.mine(1))
        await node.close_sockets(1001)
        assert await wakes.next() is None
        assert not wakes.is_up


async def test_mute_heads_are_replaced(chain: Chain, node: FakeNode, wakes: Wakes) -> None:
    node.socket_script.append(SocketEnd.NO_LOGS)
    timing = replace(SHORT_OF_HEARING, heads_every_s=0.0)
    with capture_logs() as logs:
        async with subscribed(wakes, node.ws_url, timing=timing) as subscription:
            await draw_the_line(subscription, chain, wakes)
            told = chain.mine(1)
            reconcile(subscription, told)
            await node.announce_head(told)
            assert await wakes.next() is None
            reconcile(subscription, chain.mine(1))
            assert await wakes.next() is None
            assert (wakes.missed, wakes.reconnects("mute")) == (0, 1)
    behind = next(entry for entry in logs if entry["event"] == "subscription.behind")
    assert (behind["head"], behind["heard"]) == (told.number + 1, told.number)


async def test_a_bad_head(node: FakeNode, wakes: Wakes) -> None:
    node.socket_script.append(SocketEnd.NO_LOGS)
    async with subscribed(wakes, node.ws_url):
        await wakes.next()
        await node.say('{"params": {"result": {"number": "0xffffffffffffffffff"}}}')
        assert await wakes.next() is None
        assert wakes.reconnects("garbage") == 1


async def test_a_node_that_serves_no_subscription(
    node: FakeNode, second_node: FakeNode, wakes: Wakes
) -> None:
    node.socket_script.extend([SocketEnd.NO_SUBSCRIPTION] * 1000)
    async with subscribed(wakes, node.ws_url, second_node.ws_url):
        assert await wakes.next() is None
        second_node.drop_sockets()
        assert await wakes.next() is None
        assert (node.socket_attempts, len(second_node.filters)) == (1, 2)
    assert wakes.reconnects("unsupported") == 1


async def test_where_no_node_serves_one_it_waits(
    node: FakeNode, wakes: Wakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told once, tried again later, and told again when it had worked in between."""
    monkeypatch.setattr(reconnecting, "UNSUPPORTED_FOR_S", 0.05)
    refusals = [SocketEnd.NO_SUBSCRIPTION] * 3
    node.socket_script.extend([*refusals, None, *refusals, None])
    loop = asyncio.get_running_loop()
    with capture_logs() as logs:
        async with subscribed(wakes, node.ws_url):
            started = loop.time()
            assert await wakes.next() is None
            assert loop.time() - started >= 3 * 0.05
            assert wakes.is_up
            node.drop_sockets()
            assert await wakes.next() is None
    told = [entry["event"].removeprefix("subscription.") for entry in logs]
    assert told == ["unsupported", "up", "down", "unsupported", "up"]
    assert wakes.reconnects("unsupported") == 6


async def test_it_is_down_while_no_node_serves_one(node: FakeNode, wakes: Wakes) -> None:
    node.socket_script.extend([None, *[SocketEnd.NO_SUBSCRIPTION] * 1000])
    async with subscribed(wakes, node.ws_url), asyncio.timeout(WAIT_S):
        await wakes.next()
        node.drop_sockets()
        await node.connected(2)
        assert not wakes.is_up
