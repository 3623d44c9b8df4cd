"""One chain with everybody's wallets, one daemon, and a way to see what became of a payment."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from devchain.contracts.authorization import Kind, Terms, digest_of
from devchain.contracts.entry_point import Version
from devchain.contracts.placing import place_contracts
from devchain.contracts.request_network import FEE_PROXY
from devchain.contracts.safe import Safe, create_safe
from devchain.contracts.sending import Call, sign_digest, transfer
from devchain.contracts.simple_account import SimpleAccount, simple_account
from devchain.daemon import Daemon, config_of, start_daemon
from devchain.stack import Stack, start_stack
from devchain.wallet import Wallet
from oncepaid.domain.memo import NONCE_BYTES
from tests.acceptance.conftest import NewJob, World
from tests.conftest import new_database

MOST_WALLETS: Final = 80
FUNDS_UNITS: Final = 1_000 * 10**6
_CONTRACTS: Final = [{"kind": "request_fee_proxy", "address": FEE_PROXY}]


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the books say of one payment. `source`, `signer` and `by` are of its first evidence."""

    status: str
    reason: str | None
    job_id: int | None
    sender: str
    memo_source: str | None
    evidence: list[dict[str, object]]

    @property
    def source(self) -> object:
        return self.evidence[0]["source"]

    @property
    def signer(self) -> object:
        return self.evidence[0]["signer"]

    @property
    def by(self) -> object:
        return self.evidence[0]["by"]


@dataclass(frozen=True, kw_only=True)
class Till:
    """A running daemon and who pays into it. Each wallet is handed out once."""

    world: World
    daemon: Daemon
    wallets: Iterator[Wallet]

    @property
    def stack(self) -> Stack:
        return self.world.stack

    @property
    def merchant(self) -> str:
        return self.stack.merchant

    @property
    def relayer(self) -> Wallet:
        """Who sends what others have signed: a relayer, a bundler, an executor."""
        return self.stack.relayer

    def wallet(self) -> Wallet:
        """Return a wallet with funds that nobody has used before."""
        return next(self.wallets)

    async def account(self, version: Version, *, funds_units: int = FUNDS_UNITS) -> SimpleAccount:
        """Return an account that its first operation will create."""
        usdc, owner = self.stack.usdc, self.wallet()
        return await simple_account(usdc, version, owner, self.relayer, funds_units=funds_units)

    async def safe(self, *, funds_units: int = FUNDS_UNITS) -> Safe:
        """Return a Safe of a new owner."""
        usdc, owner = self.stack.usdc, self.wallet()
        return await create_safe(usdc, owner, self.relayer, funds_units=funds_units)

    def call(self, job: NewJob, tail: bytes = b"", *, units: int | None = None) -> Call:
        """Return the call that pays a job's price, or `units`, with `tail` behind its arguments."""
        units = job.price_units if units is None else units
        return transfer(self.stack.usdc, self.merchant, units, tail)

    async def authorize(
        self, payer: Wallet, job: NewJob, kind: Kind = Kind.TRANSFER
    ) -> tuple[Terms, bytes]:
        """Let a payer sign for a job's price, with its memo as the nonce."""
        terms = self.terms(payer.address, job, kind)
        return terms, sign_digest(payer, await digest_of(self.stack.usdc, terms))

    def terms(self, payer: str, job: NewJob, kind: Kind = Kind.TRANSFER) -> Terms:
        """Return what is to be signed for a job's price, with its memo as the nonce."""
        nonce = job.envelope.ljust(NONCE_BYTES, b"\7")
        units = job.price_units
        return Terms(kind=kind, payer=payer, to=self.merchant, units=units, nonce=nonce)

    async def jobs(self, count: int) -> list[NewJob]:
        return await self.world.insert_jobs(count)

    async def bind(self, issuer: str, reference: bytes, job: NewJob) -> None:
        """Bind a reference to a job, as a host does."""
        await self.world.sql.execute(
            "INSERT INTO job_bindings (issuer, reference, job_id) VALUES ($1, $2, $3)",
            *(issuer, reference, job.id),
        )

    async def told(self, tx_hash: str) -> list[Told]:
        """Return the payments of a transaction, in the order of their logs."""
        rows = await self.world.sql.fetch(
            """
            SELECT status, reason, job_id, sender, memo_source, evidence
              FROM payments WHERE tx_hash = $1 ORDER BY log_index
            """,
            tx_hash,
        )
        return [Told(**{**row, "evidence": json.loads(row["evidence"])}) for row in rows]

    async def completed(self, job: NewJob, tx_hash: str) -> Told:
        """Wait until a job is done; returns the one payment of the transaction that paid it."""
        await self.stack.rpc.receipt(tx_hash)
        await self.daemon.wait_for("job.completed", job_uuid=job.uuid)
        (told,) = (told for told in await self.told(tx_hash) if told.job_id == job.id)
        assert told.status == "credited"
        return told

    async def unmatched(self, tx_hash: str, *, count: int = 1) -> list[Told]:
        """Wait until so many payments of a transaction are put aside; returns all of them."""
        await self.stack.rpc.receipt(tx_hash)
        await self.daemon.wait_for("payment.unmatched", tx_hash=tx_hash, count=count)
        return await self.told(tx_hash)

    async def nothing_of(self, *tx_hashes: str) -> None:
        """Assert that mined transactions have left no payment behind."""
        for tx_hash in tx_hashes:
            await self.stack.rpc.receipt(tx_hash)
        # Once a later payment is in the books, all before it would be.
        (later,) = await self.jobs(1)
        paid = await self.wallet().transfer(self.merchant, later.price_units, later.envelope)
        await self.completed(later, paid)
        assert [await self.told(tx_hash) for tx_hash in tx_hashes] == [[] for _ in tx_hashes]

    async def untouched(self, *jobs: NewJob) -> None:
        """Assert that no money was counted for these jobs, nor kept for them."""
        rows = await self.world.sql.fetch(
            "SELECT status, credited_units, overpaid_units FROM jobs WHERE id = ANY($1::bigint[])",
            [job.id for job in jobs],
        )
        assert [tuple(row) for row in rows] == [("pending", 0, 0)] * len(jobs)


@asynccontextmanager
async def open_till(server_url: str, template: str, folder: Path) -> AsyncIterator[Till]:
    """Run a chain with all contracts, and a daemon that trusts Request Network's proxy."""
    async with AsyncExitStack() as opened:
        url = await opened.enter_async_context(new_database(server_url, template))
        chain = start_stack(payers=MOST_WALLETS, funds_units=FUNDS_UNITS, with_claude=True)
        stack = await opened.enter_async_context(chain)
        assert stack.claude is not None
        await place_contracts(stack.rpc)
        sql = await asyncpg.connect(url)
        opened.push_async_callback(sql.close)
        env = {"ONCEPAID__MATCHING__REFERENCE_CONTRACTS": json.dumps(_CONTRACTS)}
        running = start_daemon(folder, config_of(stack, url), env=env)
        daemon = await opened.enter_async_context(running)
        await daemon.wait_for("listener.first_start")
        world = World(stack=stack, claude=stack.claude, sql=sql, database_url=url, folder=folder)
        yield Till(world=world, daemon=daemon, wallets=iter(stack.payers))
