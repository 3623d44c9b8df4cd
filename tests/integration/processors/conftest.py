"""The scriptable Claude and the adapter pointed at it."""

from collections.abc import AsyncIterator

import pytest

from db.pool import Database
from processors.claude import Claude
from tests.fakes.claude_server import ClaudeServer, start_claude_server
from tests.integration.processors.rig import Rig, add_skill, claude_at


@pytest.fixture
async def server() -> AsyncIterator[ClaudeServer]:
    async with start_claude_server() as running:
        yield running


@pytest.fixture
async def claude(server: ClaudeServer) -> AsyncIterator[Claude]:
    async with claude_at(server) as adapter:
        yield adapter


@pytest.fixture
async def skill(database: Database) -> int:
    """An active skill with the service key `write`."""
    return await add_skill(database)


@pytest.fixture
async def rig(database: Database, claude: Claude) -> AsyncIterator[Rig]:
    running = Rig(database, claude)
    yield running
    await running.generator.stop()
