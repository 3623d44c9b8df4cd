"""A listener over a real database and the scriptable node, driven by hand."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

import asyncpg
from prometheus_client import CollectorRegistry

from db.cursor import CursorStore
from db.payments import PaymentStore
from db.pool import Database
from listener.ranges import Watch
from listener.rpc import HttpRpc
from listener.service import Listener
from oncepaid.domain.chain import Address
from oncepaid.domain.errors import InconsistentNode
from oncepaid.domain.memo import Memo
from oncepaid.metrics import Metrics
from tests.fakes.blocks import CHAIN_ID, TOKEN, Chain, address
from tests.fakes.node import FakeNode, start_node

SHOP: Final = address("shop")
PAYER: Final = address("payer")
STRANGER: Final = address("stranger")
MEMO: Final = Memo(bytes(range(16)))
OTHER_MEMO: Final = Memo(bytes(range(16, 32)))


def rpc_for(*urls: str, metrics: Metrics | None = None) -> HttpRpc:
    """Return a client of these nodes, as the daemon builds it."""
    return HttpRpc(
        urls,
        chain_id=CHAIN_ID,
        token=TOKEN,
        metrics=metrics or Metrics(CollectorRegistry()),
    )


@dataclass(kw_only=True)
class Ear:
    """One listener. Its settings stand in the fields; `restart` makes a new one of them."""

    database: Database
    rpc: HttpRpc
    start_block: int | Literal["latest"] = "latest"
    max_range_blocks: int = 5000
    recipients: frozenset[Address] | None = frozenset({SHOP})
    metrics: Metrics = field(default_factory=lambda: Metrics(CollectorRegistry()))

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget everything but the database."""
        self.watch = Watch(
            token=TOKEN,
            recipients=self.recipients,
            start_block=self.start_block,
            max_range_blocks=self.max_range_blocks,
        )
        self.listener = Listener(
            self.rpc,
            CursorStore(self.database, CHAIN_ID),
            PaymentStore(self.database, CHAIN_ID),
            watch=self.watch,
            metrics=self.metrics,
        )

    async def catch_up(self) -> None:
        """Step until there is nothing more to read."""
        while await self.listener.step():
            pass

    async def insist(self) -> int:
        """Catch up through inconsistent answers and return how many there were."""
        refusals = 0
        while True:
            try:
                await self.catch_up()
            except InconsistentNode:
                refusals += 1
            else:
                return refusals

    async def payments(self) -> list[asyncpg.Record]:
        """Return all stored payments in the order of the chain."""
        async with self.database.connection() as connection:
            rows: list[asyncpg.Record] = await connection.fetch(
                "SELECT * FROM payments ORDER BY block_number, log_index"
            )
        return rows

    async def cursor(self) -> tuple[int, str] | None:
        """Return the stored cursor."""
        async with self.database.connection() as connection:
            row = await connection.fetchrow("SELECT block_number, block_hash FROM chain_cursor")
        return None if row is None else (row["block_number"], row["block_hash"])


def served_without_gap(node: FakeNode, first: int, last: int) -> bool:
    """Say whether the served ranges cover these blocks, each exactly once and in order."""
    expected = first
    for begin, end in node.ranges:
        if begin != expected or end < begin:
            return False
        expected = end + 1
    return expected == last + 1


def units_of(rows: Sequence[asyncpg.Record]) -> list[int]:
    """Return the amounts of payments."""
    return [int(row["amount_units"]) for row in rows]


def memos_of(rows: Sequence[asyncpg.Record]) -> list[tuple[str, str, str]]:
    """Return every memo that was found, with its source and signer."""
    return [
        (piece["memo"], piece["source"], piece["signer"])
        for row in rows
        for piece in row["evidence"]
    ]


@asynccontextmanager
async def node_and_client(chain: Chain) -> AsyncIterator[tuple[FakeNode, HttpRpc]]:
    """Run a node for a chain, with a client of it."""
    async with start_node(chain) as node, rpc_for(node.url) as client:
        yield node, client
