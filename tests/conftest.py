"""Shared by all tests: a clean environment, and a real PostgreSQL with a database for each test."""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from db.embedded import EmbeddedPostgres
from db.migrate import migrate
from db.pool import Database

pytest_plugins = ("tests.scoring",)

FIXTURES = Path(__file__).parent / "fixtures"


# Settings, SDKs and PostgreSQL's client read the environment: nothing of the machine's may leak in,
# to session fixtures neither.
for _name in list(os.environ):
    if _name.startswith(("ONCEPAID", "ANTHROPIC_", "CREDENTIALS_", "NOTIFY_", "PG")):
        del os.environ[_name]


@pytest.fixture(autouse=True)
def _stack_of_the_daemon() -> Iterator[None]:
    # web3 brings py_ecc, which raises the limit to 100,000 for the whole process: there, JSON that
    # is nested too deep ends in a segmentation fault. The daemon imports neither.
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server of this test session; `…/postgres` is its maintenance database."""
    with tempfile.TemporaryDirectory(prefix="oncepaid-pg-", dir=_fast_folder()) as folder:
        server = EmbeddedPostgres(f"embedded:{folder}/data")
        try:
            yield server.start()
        finally:
            server.close()


def _fast_folder() -> str | None:
    """Memory, where there is plenty: making a database for each test is mostly waiting for disk."""
    memory = Path("/dev/shm")  # because: only tests keep data there
    if memory.is_dir() and shutil.disk_usage(memory).free > 2 * 2**30:
        return str(memory)
    return None


def database_url(server_url: str, name: str) -> str:
    """Return the URL of another database of the same server."""
    return server_url.replace("/postgres?", f"/{name}?", 1)


@pytest.fixture
async def empty_url(postgres_url: str) -> AsyncIterator[str]:
    """The URL of a new database without any tables."""
    async with new_database(postgres_url, template=None) as url:
        yield url


@pytest.fixture(scope="session")
def template(postgres_url: str) -> str:
    """The name of a migrated database that tests get copies of."""

    async def build() -> None:
        connection = await asyncpg.connect(postgres_url)
        await connection.execute("CREATE DATABASE oncepaid_template")
        await connection.close()
        database = await Database.connect(database_url(postgres_url, "oncepaid_template"), size=3)
        await migrate(database)
        await database.close()

    asyncio.run(build())
    return "oncepaid_template"


@pytest.fixture
async def migrated_url(postgres_url: str, template: str) -> AsyncIterator[str]:
    """The URL of a new, migrated database."""
    async with new_database(postgres_url, template=template) as url:
        yield url


@pytest.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    """A pool on a new, migrated database."""
    pool = await Database.connect(migrated_url, size=5)
    yield pool
    await pool.close()


@asynccontextmanager
async def new_database(server_url: str, template: str | None) -> AsyncIterator[str]:
    name = f"test_{uuid4().hex}"
    admin = await asyncpg.connect(server_url)
    try:
        copied = f" TEMPLATE {template} STRATEGY file_copy" if template else ""
        await admin.execute(f"CREATE DATABASE {name}{copied}")
        try:
            yield database_url(server_url, name)
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()
