"""A listener over a real database and the scriptable node, driven by hand."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

import asyncpg
from prometheus_client import CollectorRegistry

from db.cursor import CursorStore
from db.pool import Database
from db.ranges import RangeStore
from listener.ranges import Watch
from listener.references import ReferenceContract
from listener.rpc import HttpRpc
from listener.service import Listener
from oncepaid.domain.chain import Address, BlockRef
from oncepaid.domain.errors import InconsistentNode
from oncepaid.domain.memo import Memo
from oncepaid.domain.payments import ObservedPayment
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
class Lead:
    """Under which epoch a listener writes."""

    epoch: int | None = 1


async def take_the_lead(database: Database, epoch: int | None) -> None:
    """Make an epoch the one that counts, unless a later one does."""
    async with database.connection() as connection:
        await connection.execute(
            """
            INSERT INTO chain_leader (chain_id, epoch) VALUES ($1, coalesce($2, 0))
            ON CONFLICT (chain_id) DO UPDATE
               SET epoch = greatest(chain_leader.epoch, excluded.epoch)
            """,
            *(CHAIN_ID, epoch),
        )


@dataclass(kw_only=True)
class Ear:
    """One listener. Its settings stand in the fields; `restart` makes a new one of them."""

    database: Database
    rpc: HttpRpc
    start_block: int | Literal["latest"] = "latest"
    max_range_blocks: int = 5000
    recipients: frozenset[Address] | None = frozenset({SHOP})
    contracts: tuple[ReferenceContract, ...] = ()
    metrics: Metrics = field(default_factory=lambda: Metrics(CollectorRegistry()))
    lead: Lead = field(default_factory=Lead)
    read: list[tuple[BlockRef, Sequence[ObservedPayment]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget everything but the database."""
        self.watch = Watch(
            token=TOKEN,
            recipients=self.recipients,
            start_block=self.start_block,
            max_range_blocks=self.max_range_blocks,
            contracts=self.contracts,
        )
        self.listener = Listener(
            self.rpc,
            CursorStore(self.database, CHAIN_ID),
            RangeStore(self.database, CHAIN_ID),
            lead=self.lead,
            watch=self.watch,
            on_read=self._note_read,
            metrics=self.metrics,
        )

    def _note_read(self, head: BlockRef, payments: Sequence[ObservedPayment]) -> None:
        self.read.append((head, payments))

    async def catch_up(self) -> None:
        """Step until there is nothing more to read."""
        await take_the_lead(self.database, self.lead.epoch)
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


def times_of(rows: Sequence[asyncpg.Record]) -> list[int]:
    """Return the block times of payments in Unix milliseconds, exactly."""
    return [round(row["block_time"].timestamp() * 1000) for row in rows]


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
