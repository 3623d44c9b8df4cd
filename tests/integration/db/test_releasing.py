"""A host that does not let one of its jobs be changed keeps no other job's amount reserved."""

from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from db.jobs import JobStore
from db.pool import Database
from tests.integration.db.support import (
    CHAIN,
    START,
    Job,
    add_job,
    execute,
    first_cursor,
    rows,
)

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
FREEZE = """
CREATE FUNCTION frozen() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a cancelled job is never changed';
END $$;
CREATE TRIGGER frozen BEFORE UPDATE ON jobs
   FOR EACH ROW WHEN (OLD.status = 'refunded') EXECUTE FUNCTION frozen();
"""


@pytest.fixture
async def jobs(own_database: Database) -> list[Job]:
    """Four jobs whose amounts rest no longer, and a deleted one; the first and third are frozen."""
    added = [await add_job(own_database, expires_at=START - 9 * DAY) for _ in range(5)]
    await execute(own_database, "DELETE FROM jobs WHERE id = $1", added.pop().id)
    frozen = [added[0].id, added[2].id]
    await execute(
        own_database, "UPDATE jobs SET status = 'refunded' WHERE id = ANY($1::bigint[])", frozen
    )
    await execute(own_database, FREEZE)
    await first_cursor(own_database)
    return added


async def held(database: Database) -> list[int]:
    found = await rows(database, "SELECT id FROM jobs WHERE amount_is_held ORDER BY id")
    return [each["id"] for each in found]


async def test_the_others_are_free(own_database: Database, jobs: list[Job]) -> None:
    with capture_logs() as logs:
        assert await JobStore(own_database).release_amounts(CHAIN, HOUR, HOUR) == 3
    assert await held(own_database) == [jobs[0].id, jobs[2].id]
    assert await rows(own_database, "SELECT FROM retired_amounts") == []
    assert [(entry["event"], entry["problem"]) for entry in logs] == [
        ("job.refused", "a cancelled job is never changed")
    ] * 2


async def test_it_is_said_once(own_database: Database, jobs: list[Job]) -> None:
    """Until the host lets go; what it holds back anew is said anew."""
    work = JobStore(own_database)
    await work.release_amounts(CHAIN, HOUR, HOUR)
    with capture_logs() as logs:
        assert await work.release_amounts(CHAIN, HOUR, HOUR) == 0
    assert logs == []
    await execute(own_database, "ALTER TABLE jobs DISABLE TRIGGER frozen")
    assert await work.release_amounts(CHAIN, HOUR, HOUR) == 2
    assert await held(own_database) == []


async def test_those_that_are_refused_take_no_turn_from_others(
    own_database: Database, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many they are, against the number that is looked at in one call."""
    monkeypatch.setattr("db.amounts.MAX_ONE_BY_ONE", 2)
    work = JobStore(own_database)
    freed = [await work.release_amounts(CHAIN, HOUR, HOUR) for _ in range(3)]
    assert sum(freed) == 3
    assert await held(own_database) == [jobs[0].id, jobs[2].id]
