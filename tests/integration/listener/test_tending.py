"""Looking after the endpoints: back to the preferred one, away from one that lags, chain halts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from listener.rpc import ChainReader, HttpRpc
from oncepaid.domain.errors import NodeUnavailable
from oncepaid.metrics import Metrics
from tests.fakes.blocks import Chain
from tests.fakes.node import FakeNode
from tests.fakes.refusals import Page, Spoil
from tests.integration.listener.hand_clock import HandClock, client_of

pytestmark = pytest.mark.fault("F11", "F12")

BROKEN: Final = Page(status=502, body="<h1>Bad gateway</h1>")
TICK_S: Final = 5.0
WAIT_S: Final = 8.0


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
async def pair(
    node: FakeNode, second_node: FakeNode, clock: HandClock, metrics: Metrics
) -> AsyncIterator[HttpRpc]:
    """A client of two nodes, in use and verified."""
    async with client_of(node, second_node, clock=clock, metrics=metrics) as client:
        await client.verify()
        yield client


async def listen(client: HttpRpc) -> None:
    """Look at the head, as the listener does."""
    header = await ChainReader(client).header("latest")
    assert header is not None
    client.saw_head(header)


async def live(client: HttpRpc, clock: HandClock, seconds: float) -> None:
    """Let time pass with a listener that looks every second, and tending every five."""
    for second in range(1, int(seconds) + 1):
        clock.advance(1.0)
        await listen(client)
        if second % TICK_S == 0:
            await client.tend()


async def leave_first(client: HttpRpc, node: FakeNode) -> None:
    node.next_http(BROKEN)
    with pytest.raises(NodeUnavailable):
        await client.call("eth_blockNumber")
    assert client.current == 1


async def test_back_to_the_preferred(
    pair: HttpRpc, node: FakeNode, chain: Chain, clock: HandClock
) -> None:
    await leave_first(pair, node)
    await listen(pair)
    clock.advance(19.0)
    await pair.tend()
    assert pair.current == 1, "not yet"
    chain.mine(1)
    await listen(pair)
    clock.advance(1.0)
    posts = node.posts
    await pair.tend()
    assert pair.current == 0
    assert node.posts == posts + 2, "verified, and asked for its head"
    posts = node.posts
    await pair.call("eth_blockNumber")
    assert node.posts == posts + 1, "once is enough"


async def chain_changes(node: FakeNode, _: Chain) -> None:
    node.chain_id = 10


async def stays_broken(node: FakeNode, _: Chain) -> None:
    node.always_http = BROKEN


async def lags(node: FakeNode, chain: Chain) -> None:
    node.head_lag = 1


async def talks_nonsense(node: FakeNode, _: Chain) -> None:
    node.twist("eth_getBlockByNumber", lambda *_: "nonsense")


async def has_no_head(node: FakeNode, _: Chain) -> None:
    node.twist("eth_getBlockByNumber", lambda *_: None)


@pytest.mark.parametrize(
    "trouble", [chain_changes, stays_broken, lags, talks_nonsense, has_no_head]
)
async def test_not_back_to_one_that_is_unfit(
    pair: HttpRpc,
    node: FakeNode,
    clock: HandClock,
    chain: Chain,
    trouble: Callable[[FakeNode, Chain], Any],
) -> None:
    await leave_first(pair, node)
    await listen(pair)
    await trouble(node, chain)
    posts = node.posts
    for _ in range(8):
        clock.advance(TICK_S)
        chain.mine(25)
        await listen(pair)
        await pair.tend()
        assert pair.current == 1
    assert 1 <= node.posts - posts <= 8
    node.straighten()
    node.chain_id = 8453
    for _ in range(40):
        clock.advance(TICK_S)
        chain.mine(25)
        await listen(pair)
        await pair.tend()
    assert pair.current == 0


async def test_an_endpoint_that_stands_still_is_left(
    pair: HttpRpc, node: FakeNode, chain: Chain, clock: HandClock
) -> None:
    """Within 15 s: 8 until it is suspicious, 5 until somebody looks."""
    await live(pair, clock, 5)
    with capture_logs() as logs:
        for _ in range(15):
            chain.mine(1)
            node.head_lag += 1
            await live(pair, clock, 1)
            if int(clock.now) % 5 == 0:
                await pair.tend()
    assert pair.current == 1
    assert (logs[0]["event"], logs[0]["log_level"]) == ("node.lagging", "warning")
    # And it is taken again when it has caught up, not before.
    await live(pair, clock, 60)
    assert pair.current == 1
    node.head_lag = 0
    await live(pair, clock, 25)
    assert pair.current == 0


async def test_an_endpoint_that_is_ever_late_is_left(
    pair: HttpRpc, node: FakeNode, chain: Chain, clock: HandClock
) -> None:
    """Its head moves, six seconds behind the others': seen at the look of every minute."""
    chain.mine(40)
    node.head_lag = 30
    for _ in range(65):
        chain.mine(5)
        await live(pair, clock, 1)
        if int(clock.now) % 5 == 0:
            await pair.tend()
    assert pair.current == 1


async def test_an_endpoint_with_all_the_heads_is_kept(
    pair: HttpRpc, node: FakeNode, second_node: FakeNode, chain: Chain, clock: HandClock
) -> None:
    await pair.tend()
    posts = second_node.posts
    for _ in range(59):
        chain.mine(5)
        await live(pair, clock, 1)
        if int(clock.now) % 5 == 0:
            await pair.tend()
    assert pair.current == 0
    assert second_node.posts == posts, "one look a minute at the others is enough"


async def test_a_listener_that_does_not_look_is_no_lag(
    pair: HttpRpc, chain: Chain, clock: HandClock, metrics: Metrics
) -> None:
    """A database that is away keeps the listener from asking; the endpoint is not to blame."""
    await listen(pair)
    for _ in range(20):
        chain.mine(25)
        clock.advance(TICK_S)
        await pair.tend()
        assert (pair.current, pair.pulse_note) == (0, None)


async def test_one_that_told_once_of_a_head_is_not_followed(
    pair: HttpRpc, second_node: FakeNode, clock: HandClock, chain: Chain
) -> None:
    await listen(pair)
    lie = {"number": hex(9_000), "timestamp": hex(10**10), "timestampMs": hex(10**13)}
    second_node.twist("eth_getBlockByNumber", lambda _, h: {**h, **lie}, times=1)
    await pair.tend()
    assert pair.current == 0


async def test_a_hanging_endpoint_does_not_hide_the_others(
    pair: HttpRpc, second_node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listener.rpc.LOOK_TIMEOUT_S", 0.2)
    second_node.always_http = Spoil.SILENCE
    await listen(pair)
    async with asyncio.timeout(WAIT_S):
        await pair.tend()
    assert pair.pinned(1).standing.failures == 1


async def test_an_endpoint_that_rests_is_not_asked(pair: HttpRpc, second_node: FakeNode) -> None:
    second_node.next_http(BROKEN)
    with pytest.raises(NodeUnavailable):
        await pair.pinned(1).call("eth_blockNumber")
    posts = second_node.posts
    await pair.tend()
    assert second_node.posts == posts


async def test_a_halted_chain(
    pair: HttpRpc, chain: Chain, clock: HandClock, metrics: Metrics
) -> None:
    await live(pair, clock, 25)
    assert note_of(pair) is None
    with capture_logs() as logs:
        await live(pair, clock, 60)
    told = [one for one in logs if one["event"] == "chain.halted"]
    assert [(one["log_level"], one["head"]) for one in told] == [("info", 1010)]
    assert halted(metrics) == 1
    assert note_of(pair) == "no new block for 84 s on any of 2 endpoints"
    assert pair.current == 0
    chain.mine(1)
    with capture_logs() as logs:
        await live(pair, clock, 5)
    assert [one["event"] for one in logs] == ["chain.resumed"]
    assert not halted(metrics)


def note_of(client: HttpRpc) -> str | None:
    return client.pulse_note


def halted(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("oncepaid_chain_halted")


async def test_a_lone_endpoint_costs_nothing_to_tend(
    node: FakeNode, chain: Chain, clock: HandClock, metrics: Metrics
) -> None:
    async with client_of(node, clock=clock, metrics=metrics) as client:
        await live(client, clock, 40)
        assert node.posts == 1 + 40
        assert client.pulse_note == "no new block for 39 s"
        assert halted(metrics) == 1
        chain.mine(1)
        await live(client, clock, 5)
        assert not halted(metrics)
