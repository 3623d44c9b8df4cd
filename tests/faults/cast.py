"""Who plays in a story of faults: a chain, a Claude, a database, and whichever daemon is alive."""

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from uuid import uuid4

import asyncpg

from devchain.anvil import reorg
from devchain.daemon import Daemon, config_of
from devchain.stack import Stack
from devchain.wallet import Wallet
from oncepaid.domain.chain import TxHash
from oncepaid.domain.memo import Memo, envelope_of
from oncepaid.domain.refunding import refund_envelope
from tests.fakes.claude_server import ClaudeServer, prompts_of
from tests.faults.crashing_daemon import KILLED, Request
from tests.faults.forking import Zygote
from tests.faults.soundness import assert_sound, unrest

CRASHES = (KILLED, -signal.SIGKILL)
STEP_TIMEOUT_S = 40.0
LOOK_AGAIN_S = 0.2
"""Most changes are told of in the log; those that are not are looked for at this pace."""
SERVICE = {"name": "Echo", "price_usdc": 0.05, "system_prompt": "Say ok."}
SAFE_AGE_S = 2
FINALIZED_AGE_S = 60
JOB_LIFETIME_S = 30 * 86_400
"""Chains whose time is pushed on by many stories must not make payments late."""


def config_for(stack: Stack, claude: ClaudeServer, database_url: str) -> str:
    """Return the settings of every daemon here: quick, one call at a time, ages for tags."""
    return config_of(
        stack,
        database_url,
        chain={
            "poll_interval_s": 0.1,
            "finality_tags": False,
            "safe_age_s": SAFE_AGE_S,
            "finalized_age_s": FINALIZED_AGE_S,
        },
        matching={"job_lifetime_s": JOB_LIFETIME_S},
        claude={"base_url": claude.base_url, "concurrency": 1},
        **{"services.echo": SERVICE},
    )


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job right after its INSERT."""

    id: int
    envelope: bytes
    price_units: int


class Cast:
    """A chain, a Claude, a database, and one daemon after another: a crashed one is replaced."""

    def __init__(
        self, zygote: Zygote, stack: Stack, claude: ClaudeServer, url: str, folder: Path
    ) -> None:
        self.stack = stack
        self.claude = claude
        self.sql: asyncpg.Connection
        self.crashed = False
        self.daemon: Daemon
        self.is_tampered_with = False
        """The rows are not what the daemon left."""
        self._is_stopping = False
        self._still = asyncio.Lock()
        self._zygote = zygote
        self._url = url
        self._config = folder / "oncepaid.toml"
        self._config.write_text(config_for(stack, claude, url))
        self._news = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[Self]:
        """Come without any daemon."""
        self.claude.requests.clear()
        self.sql = await asyncpg.connect(self._url)
        try:
            yield self
        finally:
            self.claude.release()
            await self.sql.close()

    @asynccontextmanager
    async def on_stage(self, first: Request) -> AsyncIterator[None]:
        """Come with a daemon by this request, and with an ordinary one once it has crashed."""
        async with self.alone():
            self._supervisor = asyncio.create_task(self._supervise(first))
            try:
                yield
            finally:
                self._supervisor.cancel()
                await asyncio.gather(self._supervisor, return_exceptions=True)

    def request(self, **crash: object) -> Request:
        """Return what to run."""
        return Request(arguments=["run", "--config", str(self._config)], **crash)  # type: ignore[arg-type]

    @asynccontextmanager
    async def one_daemon(self, request: Request) -> AsyncIterator[Daemon]:
        """Run a daemon until the block ends, and hear its news."""
        daemon = self._zygote.daemon(request, config=self._config, hear=self._news.set)
        async with daemon as running:
            yield running

    async def _supervise(self, request: Request) -> None:
        while True:
            async with self.one_daemon(request) as daemon:
                self.daemon = daemon
                status = await daemon.process.wait()
                self._news.set()
            if status == 0:
                return
            assert status in CRASHES, f"exit {status}: {daemon.events[-5:]} {daemon.other_output}"
            assert not self.crashed, "crashed twice"
            self.crashed = True
            await self._look_at_what_is_left()
            await self.end_leases()
            if self._is_stopping:
                return
            request = self.request()

    async def _look_at_what_is_left(self) -> None:
        """Right after a crash: a second look by the next daemon would mend much of it."""
        if self.is_tampered_with:
            return
        sql = await asyncpg.connect(self._url)
        try:
            if await sql.fetchval("SELECT to_regclass('losses') IS NOT NULL"):
                async with self._still:
                    await self.assert_sound("right after the crash", sql)
        finally:
            await sql.close()

    async def reorg(self, depth: int) -> None:
        """Replace the newest blocks by others, without their transactions."""
        async with self._still:
            await reorg(self.stack.rpc, depth)

    async def end_leases(self) -> None:
        """A killed worker's lease runs on the database's clock: move the lease, not the clock."""
        sql = await asyncpg.connect(self._url)
        try:
            if await sql.fetchval("SELECT to_regclass('jobs') IS NOT NULL"):
                await sql.execute(
                    "UPDATE jobs SET lease_until = now() - interval '1 s' WHERE lease_until > now()"
                )
        finally:
            await sql.close()

    async def until(self, what: str, query: str, *arguments: object) -> None:
        """Return once a query's answer is true."""
        try:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                while not await self.sql.fetchval(query, *arguments):
                    await self._await_news()
        except TimeoutError:
            raise AssertionError(f"never {what}: {await self._story()}") from None

    async def _await_news(self) -> None:
        if self._supervisor is not None and self._supervisor.done():
            self._supervisor.result()
        try:
            async with asyncio.timeout(LOOK_AGAIN_S):
                await self._news.wait()
        except TimeoutError:
            return
        self._news.clear()

    async def _story(self) -> str:
        jobs = await self.sql.fetch("SELECT id, status, is_unbacked, attempts FROM jobs ORDER BY 1")
        payments = await self.sql.fetch(
            "SELECT block_number, status, reason, job_id, orphaned_from, reversed_at IS NOT NULL"
            " FROM payments ORDER BY id"
        )
        cursor = await self.sql.fetch("SELECT * FROM chain_cursor")
        events = self.daemon.events[-12:] + self.daemon.other_output[-20:]
        rows = [*map(tuple, jobs), "", *map(tuple, payments), "", *map(tuple, cursor), "", *events]
        return "\n".join(map(str, rows))

    async def insert_jobs(self, count: int) -> list[Job]:
        """Insert jobs, each with an input of its own."""
        rows = await self.sql.fetch(
            """
            INSERT INTO jobs (job_uuid, skill_id, input_data)
            SELECT u, skills.id, jsonb_build_object('prompt', 'job ' || u::text)
              FROM skills, unnest($1::uuid[]) AS u WHERE service_key = 'echo'
            RETURNING id, memo, (price_usdc * 1000000)::bigint AS price_units
            """,
            [uuid4() for _ in range(count)],
        )
        return [
            Job(
                id=row["id"],
                envelope=envelope_of(Memo(row["memo"])),
                price_units=row["price_units"],
            )
            for row in rows
        ]

    async def pay(self, job: Job, units: int | None = None) -> str:
        """Pay a job in a block of its own; returns the transaction's hash once that is mined."""
        units = job.price_units if units is None else units
        return await self._transfer(self.stack.payers[0], units, job.envelope)

    async def pay_without_memo(self, units: int) -> str:
        """Pay nobody knows what for, in the same way."""
        return await self._transfer(self.stack.payers[1], units, b"")

    async def send_back(self, units: int, tx_hash: str) -> str:
        """Refund what the payer without a memo paid in a transaction, as an operator does."""
        stack = self.stack
        refund = await stack.merchant_wallet.transfer(
            stack.payers[1].address, units, refund_envelope(TxHash(tx_hash))
        )
        await stack.rpc.receipt(refund)
        return refund

    async def _transfer(self, payer: Wallet, units: int, tail: bytes) -> str:
        tx_hash = await payer.transfer(self.stack.merchant, units, tail)
        await self.stack.rpc.receipt(tx_hash)
        return tx_hash

    async def until_status(self, job: Job, *statuses: str) -> None:
        """Return once a job has one of these states."""
        await self.until(
            f"job {job.id} {statuses}",
            "SELECT status = ANY($2::text[]) FROM jobs WHERE id = $1",
            *(job.id, statuses),
        )

    async def until_done(self, *jobs: Job) -> None:
        """Return once jobs are completed, for money that is there."""
        await self.until(
            f"{[job.id for job in jobs]} completed",
            """
            SELECT bool_and(status = 'completed' AND NOT is_unbacked) FROM jobs WHERE id = ANY($1)
            """,
            [job.id for job in jobs],
        )

    async def until_rest(self) -> None:
        """Return once nothing is left to do."""
        async with asyncio.timeout(STEP_TIMEOUT_S):
            while await unrest(self.sql) is not None:
                await self._await_news()

    async def until_head(self) -> int:
        """Return the head's number once it has been read."""
        head = int(await self.stack.rpc.call("eth_blockNumber"), 16)
        await self.until(f"block {head} read", "SELECT block_number >= $1 FROM chain_cursor", head)
        return head

    async def stop(self) -> int:
        """Stop the daemon as an operator does; returns its exit code. No other takes its place."""
        self._is_stopping = True
        status = await self.daemon.stop()
        assert self._supervisor is not None
        await self._supervisor
        return status

    async def assert_sound(self, moment: str, sql: asyncpg.Connection | None = None) -> None:
        """Fail unless everything holds that always holds."""
        prompts = prompts_of(self.claude.requests)
        usdc, merchant = self.stack.usdc, self.stack.merchant
        await assert_sound(sql or self.sql, usdc, merchant, prompts=prompts, moment=moment)

    async def insert_phantom(self, block_number: int) -> str:
        """Insert a payment that never was, with the look of another; returns its transaction."""
        tx_hash = "0x" + secrets.token_hex(32)
        await self.sql.execute(
            """
            INSERT INTO payments (chain_id, tx_hash, log_index, block_number, block_hash,
                                  block_time, sender, recipient, amount_units, evidence,
                                  transfers_in_tx, status, reason)
            SELECT chain_id, $1, 7, $2, $1, block_time, sender, recipient, amount_units, '[]', 1,
                   'unmatched', 'no_memo'
              FROM payments ORDER BY id LIMIT 1
            """,
            tx_hash,
            block_number,
        )
        return tx_hash

    async def until_orphaned(self, tx_hash: str) -> None:
        """Return once a payment does not count any more."""
        query = "SELECT status = 'orphaned' FROM payments WHERE tx_hash = $1"
        await self.until("a phantom orphaned", query, tx_hash)
