"""A world for the daemon: a chain with Circle's USDC, a mock Claude, a migrated database."""

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from devchain.claude import Claude
from devchain.daemon import Daemon, config_of, start_daemon
from devchain.stack import Stack, start_stack
from oncepaid.domain.memo import Memo, envelope_of


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job as a host application knows it right after its INSERT."""

    id: int
    uuid: str
    envelope: bytes
    price_units: int
    unique_amount_units: int


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything around the daemon. `sql` is a connection of the test's own."""

    stack: Stack
    claude: Claude
    sql: asyncpg.Connection
    database_url: str
    folder: Path

    def daemon(
        self, *arguments: str, wait_for: str | None = "daemon.ready", **sections: Any
    ) -> AbstractAsyncContextManager[Daemon]:
        """Run the daemon; `sections` override its settings."""
        config = config_of(self.stack, self.database_url, **sections)
        return start_daemon(self.folder, config, *arguments, wait_for=wait_for)

    async def first_start_done(self) -> None:
        """Give the database its skills and the cursor, as a first run of the daemon does."""
        async with self.daemon() as daemon:
            await daemon.wait_for("listener.first_start")
            assert await daemon.stop() == 0

    async def insert_job(self, service_key: str = "brainstorm", input_data: Any = None) -> NewJob:
        """Insert a job as a host application does."""
        return (await self.insert_jobs(1, service_key, input_data))[0]

    async def insert_jobs(
        self, count: int, service_key: str = "brainstorm", input_data: Any = None
    ) -> list[NewJob]:
        """Insert several jobs alike."""
        rows = await self.sql.fetch(
            """
            INSERT INTO jobs (job_uuid, skill_id, input_data)
            SELECT gen_random_uuid(), skills.id, $2::text::jsonb
              FROM skills, generate_series(1, $3) WHERE service_key = $1
            RETURNING id, job_uuid::text, memo, (price_usdc * 1000000)::bigint AS price_units,
                      unique_amount_units
            """,
            service_key,
            json.dumps(input_data or {"prompt": "a bakery that opens at night"}),
            count,
        )
        return [
            NewJob(
                id=row["id"],
                uuid=row["job_uuid"],
                envelope=envelope_of(Memo(row["memo"])),
                price_units=row["price_units"],
                unique_amount_units=row["unique_amount_units"],
            )
            for row in rows
        ]

    async def job(self, job: NewJob) -> asyncpg.Record:
        """Return a job's row."""
        row = await self.sql.fetchrow("SELECT * FROM jobs WHERE id = $1", job.id)
        assert row is not None
        return row

    async def pay(self, job: NewJob, *, units: int | None = None) -> str:
        """Pay a job with its memo behind the calldata; returns the transaction's hash."""
        payer = self.stack.payers[0]
        return await payer.transfer(
            self.stack.merchant, job.price_units if units is None else units, job.envelope
        )

    async def payment(self, tx_hash: str) -> asyncpg.Record:
        """Return the payment of a transaction that has one."""
        row = await self.sql.fetchrow("SELECT * FROM payments WHERE tx_hash = $1", tx_hash)
        assert row is not None, f"no payment of {tx_hash}"
        return row


@pytest.fixture
async def world(migrated_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A fresh world for one test; gone afterwards."""
    async with start_stack(with_claude=True) as stack:
        assert stack.claude is not None
        sql = await asyncpg.connect(migrated_url)
        try:
            yield World(
                stack=stack,
                claude=stack.claude,
                sql=sql,
                database_url=migrated_url,
                folder=tmp_path,
            )
        finally:
            await sql.close()
