"""Several nodes: which one is used, when it is left, and what is believed of each."""

from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from listener.endpoints import WIDEN_BATCH_S
from listener.rpc import Call, ChainReader, HttpRpc
from oncepaid.domain.errors import (
    BadSetting,
    NodeUnavailable,
    RangeRefused,
    RateLimited,
    WrongChain,
)
from oncepaid.metrics import Metrics
from tests.fakes.blocks import hash_of
from tests.fakes.node import FakeNode
from tests.fakes.refusals import BATCH_REFUSALS, BUSY, RANGE_REFUSALS, Page, Refusal
from tests.integration.listener.hand_clock import HandClock, client_of

pytestmark = pytest.mark.fault("F13", "F18")

BROKEN: Final = Page(status=502, body="<h1>Bad gateway</h1>")
HEAD: Final = hex(1010)
VERIFY: Final = {"eth_chainId": 1, "eth_getCode": 1, "eth_getBlockByNumber": 1}


def too_many(seconds: str | None) -> Page:
    headers = {} if seconds is None else {"Retry-After": seconds}
    return Page(status=429, body="slow down", headers=headers)


def genesis(name: str) -> dict[str, str]:
    """Return a block 0."""
    zero = "0x" + "0" * 64
    return {"number": "0x0", "hash": hash_of(name), "parentHash": zero, "timestamp": "0x1"}


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def alone(node: FakeNode, clock: HandClock) -> AsyncIterator[HttpRpc]:
    """A client of one node."""
    async with client_of(node, clock=clock) as client:
        yield client


@pytest.fixture
async def pair(node: FakeNode, second_node: FakeNode, clock: HandClock) -> AsyncIterator[HttpRpc]:
    """A client of two nodes, in use and verified."""
    async with client_of(node, second_node, clock=clock) as client:
        await client.verify()
        yield client


async def head_of(client: HttpRpc) -> Any:
    return await client.call("eth_blockNumber")


async def fail_once(client: HttpRpc, node: FakeNode, page: Page = BROKEN) -> None:
    node.next_http(page)
    with pytest.raises(NodeUnavailable):
        await head_of(client)


async def test_failover_and_the_names(pair: HttpRpc, node: FakeNode, second_node: FakeNode) -> None:
    assert (pair.current, pair.count) == (0, 2)
    await fail_once(pair, node)
    assert (pair.current, pair.endpoint) == (1, pair.pinned(1).label)
    assert await head_of(pair) == HEAD
    assert second_node.calls == {**VERIFY, "eth_blockNumber": 1}


async def test_a_lone_node_is_asked_again_at_once_and_verified_again(
    alone: HttpRpc, node: FakeNode
) -> None:
    await alone.verify()
    for _ in range(5):
        await fail_once(alone, node)
    assert await head_of(alone) == HEAD
    assert node.calls["eth_chainId"] == 2


async def test_one_call_that_a_node_cannot_do_is_no_reason_to_verify_it_again(
    alone: HttpRpc, node: FakeNode
) -> None:
    with pytest.raises(NodeUnavailable, match="eth_juggle"):
        await alone.call("eth_juggle")
    assert await head_of(alone) == HEAD
    assert node.calls["eth_chainId"] == 1


async def test_a_wrong_chain_after_failover_rests_for_a_minute(
    pair: HttpRpc, node: FakeNode, second_node: FakeNode, clock: HandClock
) -> None:
    second_node.chain_id = 10
    await fail_once(pair, node)
    with capture_logs() as logs, pytest.raises(WrongChain, match="serves chain 10"):
        await head_of(pair)
    assert (logs[0]["event"], logs[0]["log_level"]) == ("endpoint.wrong_chain", "error")
    assert await head_of(pair) == HEAD
    # While it rests, a failure of the other one leads nowhere else.
    clock.advance(50.0)
    second_posts = second_node.posts
    await fail_once(pair, node)
    assert await head_of(pair) == HEAD
    assert second_node.posts == second_posts
    # Then it is tried again, and believed when it has become ours.
    clock.advance(10.0)
    second_node.chain_id = 8453
    await fail_once(pair, node)
    assert await head_of(pair) == HEAD
    assert pair.current == 1


async def test_a_node_that_turns_into_another_chain_while_it_is_away(
    alone: HttpRpc, node: FakeNode
) -> None:
    """The same URL may lead elsewhere after an outage. Said once, not at every try."""
    await alone.verify()
    await fail_once(alone, node)
    node.chain_id = 10
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(WrongChain):
                await head_of(alone)
    assert [one["event"] for one in logs] == ["endpoint.wrong_chain"]
    assert node.calls["eth_blockNumber"] == 0
    node.chain_id = 8453
    assert await head_of(alone) == HEAD


async def test_another_genesis_is_another_chain(
    pair: HttpRpc, node: FakeNode, second_node: FakeNode
) -> None:
    """A fork of a chain has its id."""
    node.genesis, second_node.genesis = genesis("ours"), genesis("fork")
    await fail_once(pair, node)
    assert await head_of(pair) == HEAD, "the first one did not say, so the second one's counts"
    await fail_once(pair, second_node)
    with pytest.raises(WrongChain, match="another first block"):
        await head_of(pair)
    node.genesis = second_node.genesis
    await pair.pinned(0).verify()
    assert await pair.pinned(0).call("eth_blockNumber") == HEAD


@pytest.mark.parametrize("silent", [0, 1])
async def test_a_node_without_old_blocks_is_no_other_chain(
    pair: HttpRpc, node: FakeNode, second_node: FakeNode, silent: int
) -> None:
    (node, second_node)[1 - silent].genesis = genesis("ours")
    await fail_once(pair, node)
    assert await head_of(pair) == HEAD
    await fail_once(pair, second_node)
    assert await head_of(pair) == HEAD


async def test_a_node_that_refuses_to_tell_of_block_zero(alone: HttpRpc, node: FakeNode) -> None:
    node.genesis = Refusal(code=4444, text="pruned history unavailable")
    await alone.verify()
    assert await head_of(alone) == HEAD
    assert node.posts == 2


async def test_at_the_start_a_wrong_chain_is_a_wrong_setting(
    node: FakeNode, second_node: FakeNode, clock: HandClock
) -> None:
    node.chain_id = second_node.chain_id = 10
    async with client_of(node, second_node, clock=clock) as client:
        for _ in range(2):
            with capture_logs() as logs, pytest.raises(BadSetting, match="serves chain 10"):
                await client.verify()
            assert "endpoint.wrong_chain" not in [one["event"] for one in logs]
        second_node.chain_id = 8453
        await client.pinned(1).verify()
        with pytest.raises(WrongChain):
            await client.pinned(0).verify()


@pytest.mark.parametrize(
    ("retry_after", "pause_s"),
    [("7", 7.0), ("0.5", 0.5), ("86400", 60.0), (None, 1.0), ("soon", 1.0), ("-5", 1.0)],
)
async def test_a_rate_limit_holds_requests_back(
    alone: HttpRpc, node: FakeNode, clock: HandClock, retry_after: str | None, pause_s: float
) -> None:
    await alone.verify()
    node.next_http(too_many(retry_after))
    with pytest.raises(RateLimited):
        await head_of(alone)
    posts = node.posts
    clock.advance(pause_s - 0.01)
    with pytest.raises(RateLimited) as caught:
        await head_of(alone)
    assert caught.value.retry_after_s == pytest.approx(0.01)
    with pytest.raises(RateLimited):
        await alone.pinned(0).call("eth_blockNumber")
    assert node.posts == posts
    clock.advance(0.02)
    assert await head_of(alone) == HEAD


async def test_a_rate_limit_leads_to_the_next_node(
    pair: HttpRpc, node: FakeNode, second_node: FakeNode, clock: HandClock
) -> None:
    await fail_once(pair, node, too_many("30"))
    assert await head_of(pair) == HEAD
    await fail_once(pair, second_node, too_many("10"))
    with pytest.raises(RateLimited):
        await head_of(pair)
    clock.advance(10.0)
    assert await head_of(pair) == HEAD
    assert pair.current == 1, "its limit ended first"


LIMITS: Final = {
    **{name: refusal for name, refusal in BUSY.items() if refusal.status == 429},
    "by words": Refusal(code=-32005, text="daily request count exceeded, request rate limited"),
    "by code": Refusal(code=-32007, text="50/second request limit reached"),
    "by status": Refusal(code=-32603, text="no", status=429),
}


@pytest.mark.parametrize("refusal", LIMITS.values(), ids=LIMITS)
async def test_how_nodes_say_it(alone: HttpRpc, node: FakeNode, refusal: Refusal) -> None:
    node.max_blocks = (0, refusal)
    with pytest.raises(RateLimited):
        await alone.call("eth_getLogs", {"fromBlock": "0x3e8", "toBlock": "0x3e8"})


async def test_a_range_limit_is_no_rate_limit_whatever_the_status(
    alone: HttpRpc, node: FakeNode
) -> None:
    told = RANGE_REFUSALS["Infura results"]
    node.max_blocks = (0, Refusal(code=told.code, text=told.text, status=429))
    with pytest.raises(RangeRefused):
        await alone.call("eth_getLogs", {"fromBlock": "0x3e8", "toBlock": "0x3e8"})


async def test_batch_limits_are_kept_per_endpoint(
    pair: HttpRpc, node: FakeNode, second_node: FakeNode
) -> None:
    node.max_batch = (3, Refusal(code=-32014, text="too many", status=400))
    calls = [Call(method="eth_blockNumber")] * 40
    await pair.call_all(calls)
    assert node.largest_batch == 40
    await pair.pinned(1).call_all(calls)
    assert second_node.posts == 1 + 1


async def test_a_batch_may_grow_again(alone: HttpRpc, node: FakeNode, clock: HandClock) -> None:
    """What was too much may have been one large answer in it."""
    calls = [Call(method="eth_blockNumber")] * 40
    await alone.verify()
    node.max_batch = (3, BATCH_REFUSALS["by words"])
    await alone.call_all(calls)
    node.max_batch = None
    clock.advance(WIDEN_BATCH_S - 0.1)
    widths = []
    for pause_s in (0.1, WIDEN_BATCH_S, WIDEN_BATCH_S, WIDEN_BATCH_S, WIDEN_BATCH_S):
        node.largest_batch = 0
        await alone.call_all(calls)
        widths.append(node.largest_batch)
        clock.advance(pause_s)
    assert widths == [3, 6, 12, 24, 40]


async def test_a_limit_that_stands_costs_a_request_a_minute(
    alone: HttpRpc, node: FakeNode, clock: HandClock
) -> None:
    calls = [Call(method="eth_blockNumber")] * 6
    node.max_batch = (3, BATCH_REFUSALS["proxyd"])
    await alone.call_all(calls)
    posts = []
    for pause_s in (WIDEN_BATCH_S, 0.0, WIDEN_BATCH_S / 2):
        clock.advance(pause_s)
        before = node.posts
        await alone.call_all(calls)
        posts.append(node.posts - before)
    assert posts == [1 + 2, 2, 2]


async def test_a_slow_node_is_left_for_another(
    pair: HttpRpc, node: FakeNode, second_node: FakeNode, clock: HandClock
) -> None:
    def late(_: object, result: Any) -> Any:
        clock.advance(5.5)
        return result

    node.twist("eth_blockNumber", late)
    for _ in range(3):
        assert pair.current == 0
        assert await head_of(pair) == HEAD
    assert pair.current == 1
    assert await head_of(pair) == HEAD
    # And not back to it while it rests, even if the other one fails.
    await fail_once(pair, second_node)
    assert pair.current == 1
    assert second_node.calls["eth_blockNumber"] == 1


async def test_a_slow_node_is_kept_where_there_is_no_better(
    alone: HttpRpc, node: FakeNode, clock: HandClock
) -> None:
    def late(_: object, result: Any) -> Any:
        clock.advance(5.5)
        return result

    node.twist("eth_blockNumber", late)
    for _ in range(5):
        assert await head_of(alone) == HEAD


async def test_contradictions(pair: HttpRpc, clock: HandClock) -> None:
    pair.distrust()
    assert pair.current == 1
    clock.advance(1.0)
    pair.distrust()
    assert pair.current == 0, "its rest ends first"
    clock.advance(5.0)
    await pair.verify()
    assert pair.current == 0


async def test_a_pinned_endpoint_never_changes_which_one_is_in_use(
    pair: HttpRpc, node: FakeNode, second_node: FakeNode
) -> None:
    second = pair.pinned(1)
    assert (second.index, pair.other()) == (1, second)
    header = await ChainReader(second).header("latest")
    assert header is not None
    assert header.number == 1010
    second_node.next_http(BROKEN)
    with pytest.raises(NodeUnavailable):
        await second.call("eth_blockNumber")
    assert pair.current == 0
    second_node.chain_id = 10
    with pytest.raises(WrongChain):
        await second.call("eth_blockNumber")
    assert (pair.current, node.posts) == (0, 1)
    assert second_node.calls["eth_blockNumber"] == 0


async def test_failures_of_a_pinned_endpoint_count(
    pair: HttpRpc, node: FakeNode, second_node: FakeNode
) -> None:
    """The one in use rests after it failed for somebody else, and the next call goes elsewhere."""
    node.next_http(BROKEN)
    with pytest.raises(NodeUnavailable):
        await pair.pinned(0).call("eth_blockNumber")
    assert await head_of(pair) == HEAD
    assert second_node.calls["eth_blockNumber"] == 1


async def test_the_other_of_one_is_itself(alone: HttpRpc) -> None:
    assert alone.other() is alone.pinned(0)


async def test_endpoints_that_are_up(
    node: FakeNode, second_node: FakeNode, clock: HandClock
) -> None:
    metrics = Metrics(CollectorRegistry())

    def up(index: int) -> float | None:
        label = {"endpoint": client.pinned(index).label}
        return metrics.registry.get_sample_value("oncepaid_endpoint_up", label)

    async with client_of(node, second_node, clock=clock, metrics=metrics) as client:
        await client.verify()
        assert (up(0), up(1)) == (1, 1)
        await fail_once(client, node)
        assert (up(0), up(1)) == (0, 1)
        clock.advance(100.0)
        assert up(0) == 0, "nobody saw it answer since"
        await client.pinned(0).call("eth_blockNumber")
        assert (up(0), up(1)) == (1, 1)
        client.distrust()
        assert up(client.current) == 1
        assert up(1 - client.current) == 0
