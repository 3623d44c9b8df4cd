"""Generator and finisher over a real database and the scriptable Claude, driven by hand."""

import asyncio
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import asyncpg
from prometheus_client import CollectorRegistry

from db.jobs import JobStore
from db.pool import Database
from oncepaid.domain.generation import Budget
from oncepaid.domain.pricing import Price
from oncepaid.metrics import Metrics
from processors.claude import Claude
from processors.finisher import Finisher
from processors.generator import Generator
from processors.services import Service
from tests.fakes.claude_server import MODEL, ClaudeServer

API_KEY: Final = "sk-ant-api03-not-to-be-seen"
WAIT_S: Final = 10.0
COST: Final = Decimal("0.000640")
"""Of one standing answer: 120 input tokens at 2 and 40 output tokens at 10 dollars a million."""

SERVICE: Final = Service(
    key="write",
    name="Write",
    price_usdc=None,
    system_prompt="You write. Answer in JSON.",
    output_schema={
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    },
    model=MODEL,
    max_tokens=777,
    timeout_s=60.0,
    thinking="adaptive",
    effort="low",
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The settings of one rig."""

    concurrency: int = 4
    max_attempts: int = 3
    max_cost_usd_per_job: str = "1.00"
    max_cost_usd_per_day: str = "100.00"


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """What a test looks at in a job."""

    status: str
    output: Any
    attempts: int
    due_at: datetime | None
    """When it may be claimed again; None where it never had to wait."""


class Rig:
    """One worker. `finish` runs the finisher; the generator's calls are awaited with `ended`."""

    def __init__(
        self,
        database: Database,
        model: Claude,
        *,
        service: Service = SERVICE,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        self.metrics = Metrics(CollectorRegistry())
        self.round_began = self.round_ended = datetime.now(UTC)
        self._database = database
        self._ended = asyncio.Semaphore(0)
        self.generator = Generator(
            JobStore(database),
            model,
            services={service.key: service},
            prices={MODEL: Price(input_usd_per_mtok=Decimal(2), output_usd_per_mtok=Decimal(10))},
            concurrency=limits.concurrency,
            max_cost_usd_per_day=Decimal(limits.max_cost_usd_per_day),
            announce=self._ended.release,
            metrics=self.metrics,
        )
        self.finisher = Finisher(
            JobStore(database),
            budget=Budget(
                max_attempts=limits.max_attempts,
                max_cost_usd=Decimal(limits.max_cost_usd_per_job),
            ),
            services={service.key},
            metrics=self.metrics,
            uniform=lambda: 0.5,
        )

    async def ended(self, count: int = 1) -> None:
        """Return when so many calls have ended since the last time."""
        async with asyncio.timeout(WAIT_S):
            for _ in range(count):
                await self._ended.acquire()

    async def round(self, jobs: int = 1) -> None:
        """Claim, call and finish so many jobs."""
        await self.generator.step()
        await self.ended(jobs)
        self.round_began = await clock_of(self._database)
        await self.finisher.step()
        self.round_ended = await clock_of(self._database)

    def made_wait(self, row: JobRow, seconds: float) -> bool:
        """Say whether the last round's finisher put a job off by so much."""
        delay = timedelta(seconds=seconds)
        due_at = row.due_at
        return due_at is not None and (
            self.round_began + delay <= due_at <= self.round_ended + delay
        )


def claude_at(server: ClaudeServer) -> Claude:
    """Return the adapter under test, pointed at the stand-in."""
    return Claude(api_key=API_KEY, base_url=server.base_url)


def quick(timeout_s: float) -> Service:
    """Return the service with another deadline."""
    return replace(SERVICE, timeout_s=timeout_s)


async def add_skill(
    database: Database, *, key: str | None = "write", name: str = "Write", is_active: bool = True
) -> int:
    """Insert a skill and return its id."""
    async with database.connection() as connection:
        found = await connection.fetchval(
            "INSERT INTO skills (name, service_key, is_active) VALUES ($1, $2, $3) RETURNING id",
            name,
            key,
            is_active,
        )
    return int(found)


async def add_paid_job(
    database: Database, *, skill: int | None, text: str | None = "Write about rain."
) -> int:
    """Insert a job that is paid and due; `text` is its prompt, None leaves the input out."""
    return await add_paid_job_with(database, skill, None if text is None else {"prompt": text})


async def add_paid_job_with(database: Database, skill: int | None, input_data: Any) -> int:
    """Insert a paid job with any JSON as its input; None is SQL NULL."""
    async with database.connection() as connection:
        found = await connection.fetchval(
            """
            INSERT INTO jobs (skill_id, input_data, price_usdc, status, credited_units, paid_at)
            VALUES ($1, $2::text::jsonb, 0.5, 'paid', 500000, now()) RETURNING id
            """,
            skill,
            None if input_data is None else json.dumps(input_data),
        )
    return int(found)


async def clock_of(database: Database) -> datetime:
    """Return the database's time."""
    async with database.connection() as connection:
        found: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return found


async def job_row(database: Database, job: int) -> JobRow:
    """Return what stands in a job's row."""
    async with database.connection() as connection:
        row = await connection.fetchrow(
            """
            SELECT status, output_data, attempts,
                   nullif(next_attempt_at, '-infinity') AS due_at
              FROM jobs WHERE id = $1
            """,
            job,
        )
    assert row is not None
    return JobRow(
        status=row["status"],
        output=row["output_data"],
        attempts=row["attempts"],
        due_at=row["due_at"],
    )


async def attempt_rows(database: Database, job: int) -> list[asyncpg.Record]:
    """Return a job's attempts, oldest first."""
    async with database.connection() as connection:
        rows: list[asyncpg.Record] = await connection.fetch(
            "SELECT * FROM generation_attempts WHERE job_id = $1 ORDER BY attempt_no", job
        )
    return rows


async def outcomes_of(database: Database, job: int) -> list[str | None]:
    """Return what a job's attempts ended in, oldest first."""
    return [row["outcome"] for row in await attempt_rows(database, job)]


async def make_due(database: Database, job: int) -> None:
    """Let a job's back-off be over."""
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE jobs SET next_attempt_at = now() - interval '1 second' WHERE id = $1", job
        )


async def expire_lease(database: Database, job: int) -> None:
    """Let a job's lease have run out."""
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE jobs SET lease_until = now() - interval '1 second' WHERE id = $1", job
        )
