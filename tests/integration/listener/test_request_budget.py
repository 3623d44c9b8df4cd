"""How many requests faults cost: nodes are paid by the call, and a storm gets us banned.

Ten minutes pass on a clock that is moved by hand.
"""

import random
from collections.abc import Callable
from typing import Any, Final

import pytest

from listener.rpc import ChainReader, HttpRpc
from oncepaid.domain.errors import InconsistentNode, Retryable
from oncepaid.domain.retrying import LOOP_BACKOFF
from tests.fakes.blocks import Chain
from tests.fakes.node import FakeNode
from tests.fakes.refusals import Page, Spoil
from tests.integration.listener.hand_clock import HandClock, client_of

pytestmark = pytest.mark.fault("F13")

BROKEN: Final = Page(status=502, body="<h1>Bad gateway</h1>")
TEND_S: Final = 5.0
MINUTES_S: Final = 600.0


def refuse(*nodes: FakeNode) -> None:
    for one in nodes:
        one.always_http = Page(status=429, body="slow down")


def break_all(*nodes: FakeNode) -> None:
    for one in nodes:
        one.always_http = BROKEN


def cut_all(*nodes: FakeNode) -> None:
    for one in nodes:
        one.always_http = Spoil.CUT


def change_chains(*nodes: FakeNode) -> None:
    for one in nodes:
        one.always_http = None
        one.chain_id = 10
        one.next_http(BROKEN)


def break_first(*nodes: FakeNode) -> None:
    nodes[0].always_http = BROKEN


def fail_now_and_then(*nodes: FakeNode) -> None:
    chance = random.Random(7)
    for one in nodes:
        one.next_http(*(BROKEN if chance.random() < 0.25 else None for _ in range(2_000)))


def contradict(*nodes: FakeNode) -> None:
    for one in nodes:
        one.twist("eth_getBlockByNumber", lambda *_: "nonsense")


def nothing(*_: FakeNode) -> None:
    pass


def freeze_first(*nodes: FakeNode) -> None:
    start = nodes[0].chain.head

    def frozen(_: object, __: object) -> Any:
        return start.header

    nodes[0].twist("eth_getBlockByNumber", frozen)


async def posts_in_ten_minutes(
    client: HttpRpc, clock: HandClock, chain: Chain, *nodes: FakeNode
) -> int:
    """Drive a listener that looks every second and backs off as the daemon does, and `tend`."""
    chance, failures, tend_at = random.Random(1), 0, 0.0
    before, end = sum(node.posts for node in nodes), clock.now + MINUTES_S
    while clock.now < end:
        try:
            header = await ChainReader(client).header("latest")
            assert header is not None
            client.saw_head(header)
        except Retryable as exc:
            if isinstance(exc, InconsistentNode):
                client.distrust()
            failures += 1
            clock.advance(LOOP_BACKOFF.delay_s(failures, chance.random))
        else:
            failures = 0
            clock.advance(1.0)
        chain.add(step_ms=1_000)
        if clock.now >= tend_at:
            await client.tend()
            tend_at = clock.now + TEND_S
    return sum(node.posts for node in nodes) - before


FAULTS: Final = (
    *(nothing, refuse, break_all, cut_all, change_chains, break_first, fail_now_and_then),
    *(contradict, freeze_first),
)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("count", [1, 2])
async def test_the_request_budget(
    node: FakeNode,
    second_node: FakeNode,
    chain: Chain,
    fault: Callable[..., None],
    count: int,
) -> None:
    """Whatever fails, far less than twenty times the 600 requests of ten good minutes."""
    nodes, clock = (node, second_node)[:count], HandClock()
    async with client_of(*nodes, clock=clock) as client:
        await client.verify()
        fault(*nodes)
        posts = await posts_in_ten_minutes(client, clock, chain, *nodes)
    assert 10 < posts < 3 * MINUTES_S
