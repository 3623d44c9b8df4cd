"""The HTTP client against nodes that refuse, lie, break off or say nothing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry

from listener import exchange as exchange_module
from listener.rpc import Call, ChainReader, HttpRpc, header_call
from oncepaid.domain.errors import (
    BadSetting,
    InconsistentNode,
    NodeUnavailable,
    RangeRefused,
    RateLimited,
    WrongChain,
)
from oncepaid.metrics import Metrics
from tests.fakes.blocks import Chain, hash_of
from tests.fakes.loopback import LOOPBACK, unused_port
from tests.fakes.node import FakeNode
from tests.fakes.refusals import BATCH_REFUSALS, BUSY, RANGE_REFUSALS, Page, Refusal, Spoil
from tests.integration.listener.hand_clock import HandClock, client_of
from tests.integration.listener.rig import rpc_for

pytestmark = pytest.mark.fault("F13", "F14")

WAIT_S: Final = 10.0
SPOILS: Final[dict[str, Page | Spoil]] = {
    "HTML 502": Page(status=502, body="<h1>Bad gateway</h1>"),
    "HTML 200": Page(status=200, body="<h1>Welcome</h1>"),
    "429": Page(status=429, body="slow down", content_type="text/plain"),
    "empty": Page(status=200, body=""),
    "null": Page(status=200, body="null", content_type="application/json"),
    "a number": Page(status=200, body="5", content_type="application/json"),
    "an empty object": Page(status=200, body="{}", content_type="application/json"),
    "an empty list": Page(status=200, body="[]", content_type="application/json"),
    "odd entries": Page(status=200, body='[5, null, "x"]', content_type="application/json"),
    "odd ids": Page(status=200, body='[{"id": [], "result": 1}]', content_type="application/json"),
    "another id": Page(status=200, body='{"id": -7, "result": 1}', content_type="application/json"),
    "odd error": Page(status=200, body='{"error": "no"}', content_type="application/json"),
    "truncated": Spoil.TRUNCATED,
    "cut": Spoil.CUT,
}


VERIFY: Final = {"eth_chainId": 1, "eth_getCode": 1, "eth_getBlockByNumber": 1}


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def pair(node: FakeNode, second_node: FakeNode, clock: HandClock) -> AsyncIterator[HttpRpc]:
    """A client of two nodes."""
    async with client_of(node, second_node, clock=clock) as client:
        yield client


async def test_answers(rpc: HttpRpc, chain: Chain) -> None:
    assert await rpc.call("eth_blockNumber") == hex(1010)
    reader = ChainReader(rpc)
    latest, safe, final, missing = await reader.headers(["latest", "safe", "finalized", 2000])
    assert latest is not None
    assert (latest.number, latest.hash) == (1010, chain.head.hash)
    assert latest.timestamp_ms == chain.head.timestamp_ms
    assert safe is not None
    assert final is not None
    assert (safe.number, final.number, missing) == (1005, 1000, None)
    assert await reader.header("latest") == latest
    assert await reader.hashes([1010, 2000]) == {1010: chain.head.hash, 2000: None}


async def test_an_endpoint_is_verified_once_in_one_request(rpc: HttpRpc, node: FakeNode) -> None:
    await rpc.verify()
    await rpc.verify()
    await rpc.call("eth_blockNumber")
    assert node.posts == 2
    assert node.calls == {**VERIFY, "eth_blockNumber": 1}


async def test_a_wrong_chain(rpc: HttpRpc, node: FakeNode) -> None:
    node.chain_id = 1
    with pytest.raises(BadSetting, match=r"8453.*serves chain 1") as caught:
        await rpc.call("eth_blockNumber")
    assert caught.value.key == "chain.chain_id"
    assert node.calls["eth_blockNumber"] == 0


@pytest.mark.parametrize("code", ["0x", "", None])
async def test_a_token_without_code(rpc: HttpRpc, node: FakeNode, code: Any) -> None:
    node.code = code
    with pytest.raises(BadSetting, match="has no code") as caught:
        await rpc.verify()
    assert caught.value.key == "chain.token"
    node.code = "0x6080"
    await rpc.verify()


async def test_odd_answers_to_the_verification(rpc: HttpRpc, node: FakeNode) -> None:
    node.twist("eth_chainId", lambda _, __: "eight thousand", times=1)
    with pytest.raises(NodeUnavailable, match="not a hex quantity"):
        await rpc.verify()
    await rpc.verify()


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
async def test_a_spoiled_answer_leads_to_the_next_node(
    pair: HttpRpc,
    node: FakeNode,
    second_node: FakeNode,
    clock: HandClock,
    spoil: Page | Spoil,
    calls: int,
) -> None:
    await pair.verify()
    node.next_http(spoil)
    wanted = [Call(method="eth_blockNumber")] * calls
    with pytest.raises(NodeUnavailable) as caught:
        await pair.call_all(wanted)
    assert "/" not in str(caught.value), "a URL may hold a key"
    assert await pair.call_all(wanted) == [hex(1010)] * calls
    assert second_node.calls == {**VERIFY, "eth_blockNumber": calls}
    # The one that works stays in use; the first comes back only when the second one fails.
    clock.advance(2.0)
    await pair.call_all(wanted)
    assert node.posts == 2
    second_node.next_http(Page(status=503, body=""))
    with pytest.raises(NodeUnavailable):
        await pair.call_all(wanted)
    await pair.call_all(wanted)
    assert node.posts == 4, "it is verified again when it comes back"


async def test_silence_ends_at_the_deadline(
    node: FakeNode, second_node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "REQUEST_TIMEOUT_S", 0.5)
    async with rpc_for(node.url, second_node.url) as pair, asyncio.timeout(WAIT_S):
        await pair.verify()
        node.next_http(Spoil.SILENCE)
        with pytest.raises(NodeUnavailable, match="did not answer in time"):
            await pair.call("eth_blockNumber")
        assert await pair.call("eth_blockNumber") == hex(1010)


async def test_a_dead_first_node_does_not_keep_the_daemon_from_starting(node: FakeNode) -> None:
    dead = f"http://{LOOPBACK}:{unused_port()}/secret-key"
    async with rpc_for(dead, node.url) as client:
        with pytest.raises(NodeUnavailable) as caught:
            await client.verify()
        assert "secret-key" not in str(caught.value)
        await client.verify()
        assert node.calls["eth_chainId"] == 1


async def test_a_wrong_second_node_is_never_believed(
    pair: HttpRpc, node: FakeNode, second_node: FakeNode
) -> None:
    second_node.chain_id = 10
    await pair.verify()
    node.next_http(Page(status=502, body=""))
    with pytest.raises(NodeUnavailable):
        await pair.call("eth_blockNumber")
    with pytest.raises(WrongChain, match=r"chain\.chain_id.*serves chain 10"):
        await pair.call("eth_blockNumber")
    assert await pair.call("eth_blockNumber") == hex(1010)
    assert second_node.calls["eth_blockNumber"] == 0


async def ask_logs(client: HttpRpc, first: int, last: int) -> Any:
    return await client.call("eth_getLogs", {"fromBlock": hex(first), "toBlock": hex(last)})


@pytest.mark.parametrize("refusal", RANGE_REFUSALS.values(), ids=RANGE_REFUSALS)
async def test_refused_ranges(
    pair: HttpRpc, node: FakeNode, second_node: FakeNode, refusal: Refusal
) -> None:
    node.max_blocks = (2, refusal)
    with pytest.raises(RangeRefused):
        await ask_logs(pair, 1000, 1002)
    assert await ask_logs(pair, 1000, 1001) == []
    assert second_node.posts == 0, "a narrower range helps, not another node"


@pytest.mark.parametrize("refusal", BUSY.values(), ids=BUSY)
async def test_busy_nodes_are_left_for_the_next(
    pair: HttpRpc, node: FakeNode, second_node: FakeNode, refusal: Refusal
) -> None:
    node.max_blocks = (0, refusal)
    with pytest.raises(RateLimited if refusal.status == 429 else NodeUnavailable):
        await ask_logs(pair, 1000, 1002)
    assert await ask_logs(pair, 1000, 1002) == []
    assert second_node.calls["eth_getLogs"] == 1


@pytest.mark.parametrize("as_list", [False, True], ids=["object", "list"])
@pytest.mark.parametrize("refusal", BATCH_REFUSALS.values(), ids=BATCH_REFUSALS)
async def test_smaller_batches(
    rpc: HttpRpc, node: FakeNode, chain: Chain, refusal: Refusal, as_list: bool
) -> None:
    node.max_batch = (3, refusal)
    node.batch_refusal_is_list = as_list
    headers = await ChainReader(rpc).headers([1000 + n for n in range(11)] * 15)
    assert [header and header.hash for header in headers] == [b.hash for b in chain.blocks] * 15
    assert node.posts < 80, "the limit is found by halving"
    posts = node.posts
    await rpc.call_all([header_call(1000)] * 3)
    assert node.posts == posts + 1, "what was learnt is kept"


async def test_no_batches_at_all(rpc: HttpRpc, node: FakeNode) -> None:
    node.max_batch = (1, BATCH_REFUSALS["proxyd"])
    headers = await ChainReader(rpc).headers([1000, 1001, 1002])
    assert [header and header.number for header in headers] == [1000, 1001, 1002]


async def test_many_calls_go_in_bounded_batches(rpc: HttpRpc, node: FakeNode) -> None:
    headers = await ChainReader(rpc).headers([1000] * 250)
    assert len(headers) == 250
    assert (node.largest_batch, node.posts) == (100, 1 + 3)


async def test_one_bad_part_of_many_fails_the_whole(
    pair: HttpRpc, node: FakeNode, second_node: FakeNode
) -> None:
    await pair.verify()
    node.next_http(Page(status=502, body=""), Page(status=502, body=""))
    with pytest.raises(NodeUnavailable):
        await ChainReader(pair).headers([1000] * 250)
    assert len(await ChainReader(pair).headers([1000] * 250)) == 250
    assert second_node.calls["eth_getBlockByNumber"] == 1 + 250


async def test_one_bad_call_of_a_batch_fails_the_whole(rpc: HttpRpc) -> None:
    with pytest.raises(NodeUnavailable, match="eth_juggle"):
        await rpc.call_all([header_call(1000), Call(method="eth_juggle")])


async def test_bodies_are_bounded(
    rpc: HttpRpc, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rpc.verify()
    monkeypatch.setattr(exchange_module, "MAX_BODY_BYTES", 10_000)
    node.twist("eth_getLogs", lambda _, __: ["x" * 20_000], times=1)
    with pytest.raises(RangeRefused, match="10000 bytes"):
        await ask_logs(rpc, 1000, 1010)
    assert await ask_logs(rpc, 1000, 1010) == []


async def test_calls_are_counted(node: FakeNode) -> None:
    metrics = Metrics(CollectorRegistry())
    async with rpc_for(node.url + "v2/secret-key", metrics=metrics) as client:
        with pytest.raises(NodeUnavailable):
            await client.call("eth_blockNumber")
    label = {"endpoint": node.url.removeprefix("http://").rstrip("/")}
    by_outcome = {**label, "method": "eth_chainId", "outcome": "unreadable"}
    value = metrics.registry.get_sample_value
    assert value("oncepaid_rpc_requests_total", by_outcome) is None
    by_outcome["outcome"] = "no_answer"
    assert value("oncepaid_rpc_requests_total", by_outcome) == 1
    timed = {**label, "method": "eth_chainId"}
    assert value("oncepaid_rpc_request_seconds_count", timed) == 1


async def test_a_hash_is_asked_for_by_number(rpc: HttpRpc, node: FakeNode) -> None:
    """A node that answers with another block than asked for is not believed."""
    node.twist(
        "eth_getBlockByNumber", lambda _, header: {**header, "number": "0x1", "hash": hash_of(1)}
    )
    with pytest.raises(InconsistentNode):
        await ChainReader(rpc).hashes([1000])
