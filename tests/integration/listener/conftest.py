"""A made-up chain, a node for it, and a listener that reads it."""

from collections.abc import AsyncIterator

import pytest

from db.pool import Database
from db.ranges import RangeStore
from listener.rpc import HttpRpc
from tests.fakes.blocks import CHAIN_ID, Chain
from tests.fakes.node import FakeNode, start_node
from tests.integration.listener.pairs import NOW, Pair, second_look_of
from tests.integration.listener.rig import Ear, rpc_for

FIRST_BLOCK = 1_000


@pytest.fixture
def chain() -> Chain:
    """A chain of eleven empty blocks, 1000 to 1010."""
    chain = Chain(first=FIRST_BLOCK)
    chain.mine(11)
    return chain


@pytest.fixture
async def node(chain: Chain) -> AsyncIterator[FakeNode]:
    async with start_node(chain) as running:
        yield running


@pytest.fixture
async def second_node(chain: Chain) -> AsyncIterator[FakeNode]:
    """Another node of the same chain."""
    async with start_node(chain) as running:
        yield running


@pytest.fixture
async def rpc(node: FakeNode) -> AsyncIterator[HttpRpc]:
    async with rpc_for(node.url) as client:
        yield client


@pytest.fixture
async def ear(database: Database, rpc: HttpRpc) -> Ear:
    """A listener whose cursor stands on the head."""
    ear = Ear(database=database, rpc=rpc)
    await ear.catch_up()
    return ear


@pytest.fixture
async def pair(database: Database, node: FakeNode, second_node: FakeNode) -> AsyncIterator[Pair]:
    async with rpc_for(node.url, second_node.url) as rpc:
        ear = Ear(database=database, rpc=rpc)
        await ear.catch_up()
        repaired: list[None] = []
        yield Pair(
            ear=ear,
            rpc=rpc,
            store=RangeStore(database, CHAIN_ID),
            second_look=second_look_of(ear, rpc, repaired, NOW),
            repaired=repaired,
        )
