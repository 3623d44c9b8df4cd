"""A paid job is worked on by one worker at a time, and only under its own lease."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from db.jobs import JobStore
from db.pool import Database
from oncepaid.domain.generation import Outcome
from oncepaid.domain.jobs import MAX_INPUT_BYTES, AttemptId, JobId
from tests.integration.db.support import (
    MINUTE,
    add_job,
    add_paid_job,
    answered,
    claim_one,
    execute,
    job_row,
    lock_waits,
    row,
    rows,
)

EXPIRED = timedelta(seconds=-1)


@pytest.fixture
def work(database: Database) -> JobStore:
    return JobStore(database)


async def attempts_of(database: Database, job: JobId) -> list[tuple[int, str | None]]:
    found = await rows(
        database,
        "SELECT attempt_no, outcome FROM generation_attempts WHERE job_id = $1 ORDER BY 1",
        job,
    )
    return [(attempt["attempt_no"], attempt["outcome"]) for attempt in found]


async def test_claim_writes_its_attempt(database: Database, work: JobStore) -> None:
    job = await add_paid_job(database)
    claimed = await claim_one(database)
    assert (claimed.id, claimed.attempt_no, claimed.lost_attempts) == (job.id, 1, 0)
    assert (claimed.service_key, claimed.skill_is_active) == ("creativeconcept", True)
    assert claimed.input_json == '{"prompt": "a bakery"}'
    stored = await job_row(database, job.id)
    assert (stored["status"], stored["attempts"]) == ("in_progress", 1)
    assert stored["attempt_id"] == claimed.attempt
    assert stored["started_at"] is not None
    attempt = await row(database, "SELECT * FROM generation_attempts")
    assert (attempt["id"], attempt["job_id"]) == (claimed.attempt, job.id)
    assert attempt["finished_at"] is None
    assert await work.claim(10, MINUTE) == []


@pytest.mark.parametrize("status", ["pending", "paid", "in_progress"])
async def test_without_credit_nothing_is_claimed(
    database: Database, work: JobStore, status: str
) -> None:
    """A host that sets a status by hand has not been paid through us."""
    job = await add_job(database)
    await execute(
        database, "UPDATE jobs SET status = $2, paid_at = now() WHERE id = $1", job.id, status
    )
    assert await work.claim(10, MINUTE) == []


@pytest.mark.parametrize(
    "status", ["pending", "completed", "failed", "delivered", "disputed", "refunded"]
)
async def test_only_paid_jobs_are_claimed(database: Database, work: JobStore, status: str) -> None:
    job = await add_paid_job(database)
    await execute(database, "UPDATE jobs SET status = $2 WHERE id = $1", job.id, status)
    assert await work.claim(10, MINUTE) == []


async def test_claimers_never_share_a_job(database: Database, work: JobStore) -> None:
    for _ in range(30):
        await add_paid_job(database)

    async def claim_all() -> list[JobId]:
        mine = []
        while claimed := await work.claim(2, MINUTE):
            mine += [job.id for job in claimed]
        return mine

    async with asyncio.timeout(20):
        shares = await asyncio.gather(*(claim_all() for _ in range(4)))
    taken = [job for share in shares for job in share]
    assert len(taken) == len(set(taken)) == 30
    assert (await row(database, "SELECT count(*) AS n FROM generation_attempts"))["n"] == 30


async def test_claim_passes_over_what_another_holds(database: Database, work: JobStore) -> None:
    first, second = await add_paid_job(database), await add_paid_job(database)
    async with asyncio.timeout(5), database.transaction() as other:
        await other.execute("SELECT FROM jobs WHERE id = $1 FOR NO KEY UPDATE", first.id)
        assert [job.id for job in await work.claim(10, MINUTE)] == [second.id]
    assert [job.id for job in await work.claim(10, MINUTE)] == [first.id]


async def test_expired_lease_is_claimed_anew(database: Database, work: JobStore) -> None:
    job = await add_paid_job(database)
    old = await claim_one(database, EXPIRED)
    new = await claim_one(database)
    assert (new.id, new.attempt_no, new.lost_attempts) == (job.id, 2, 1)
    assert new.attempt != old.attempt
    assert await attempts_of(database, job.id) == [(1, "lost"), (2, None)]
    # The job did not cause it: a lost attempt is given back.
    assert (await job_row(database, job.id))["attempts"] == 1


async def test_lost_attempts_are_counted(database: Database) -> None:
    await add_paid_job(database)
    counts = [(await claim_one(database, EXPIRED)).lost_attempts for _ in range(4)]
    assert counts == [0, 1, 2, 3]


async def test_late_result_changes_nothing(database: Database, work: JobStore) -> None:
    job = await add_paid_job(database)
    old = await claim_one(database, EXPIRED)
    new = await claim_one(database)
    before = await job_row(database, job.id)
    assert await work.record_if_leased(old.attempt, answered()) is False
    assert await work.keep_leases([old.attempt], MINUTE) == set()
    assert await work.release([old.attempt]) == 0
    assert await job_row(database, job.id) == before
    assert await attempts_of(database, job.id) == [(1, "lost"), (2, None)]
    assert await work.record_if_leased(new.attempt, answered()) is True


async def test_late_but_not_claimed_anew_still_counts(database: Database, work: JobStore) -> None:
    """The answer was paid for; nobody else has begun."""
    job = await add_paid_job(database)
    claimed = await claim_one(database, EXPIRED)
    assert await work.record_if_leased(claimed.attempt, answered()) is True
    assert await work.claim(10, MINUTE) == []
    assert (await job_row(database, job.id))["lease_until"] is None


async def test_result_is_recorded_once(database: Database, work: JobStore) -> None:
    job = await add_paid_job(database)
    claimed = await claim_one(database)
    results = await asyncio.gather(
        *(work.record_if_leased(claimed.attempt, answered(request_id=name)) for name in "abc")
    )
    assert sorted(results) == [False, False, True]
    assert await attempts_of(database, job.id) == [(1, "succeeded")]


async def test_text_of_strangers_is_recorded(database: Database, work: JobStore) -> None:
    await add_paid_job(database)
    claimed = await claim_one(database)
    odd = "a\0b\ud800"
    result = answered(Outcome.REFUSED, model=odd, stop_reason=odd, request_id=odd)
    assert await work.record_if_leased(claimed.attempt, result)
    stored = await row(database, "SELECT model, stop_reason, request_id FROM generation_attempts")
    assert set(stored.values()) == {"a\ufffdb?"}


async def test_host_that_closed_the_job_keeps_its_word(database: Database, work: JobStore) -> None:
    job = await add_paid_job(database)
    claimed = await claim_one(database)
    await execute(database, "UPDATE jobs SET status = 'refunded' WHERE id = $1", job.id)
    assert await work.keep_leases([claimed.attempt], MINUTE) == set()
    assert await work.record_if_leased(claimed.attempt, answered()) is False
    assert await work.release([claimed.attempt]) == 0
    assert (await job_row(database, job.id))["status"] == "refunded"


async def test_leases_are_kept(database: Database, work: JobStore) -> None:
    await add_paid_job(database)
    claimed = await claim_one(database, EXPIRED)
    assert await work.keep_leases([claimed.attempt, AttemptId(777_777)], MINUTE) == {
        claimed.attempt
    }
    assert await work.claim(10, MINUTE) == []
    assert await work.record_if_leased(claimed.attempt, answered())
    # Answered: there is no lease to keep, and none must come back.
    assert await work.keep_leases([claimed.attempt], MINUTE) == set()


async def test_release_gives_the_attempt_back(database: Database, work: JobStore) -> None:
    jobs = [await add_paid_job(database) for _ in range(2)]
    claimed = await work.claim(2, MINUTE)
    assert await work.release([job.attempt for job in claimed]) == 2
    assert await work.release([job.attempt for job in claimed]) == 0
    for job in jobs:
        stored = await job_row(database, job.id)
        assert (stored["status"], stored["attempts"]) == ("paid", 0)
        assert await attempts_of(database, job.id) == [(1, "cancelled")]
    again = await work.claim(2, MINUTE)
    assert [(job.attempt_no, job.lost_attempts) for job in again] == [(2, 0), (2, 0)]


async def test_answered_job_is_not_released(database: Database, work: JobStore) -> None:
    job = await add_paid_job(database)
    claimed = await claim_one(database)
    await work.record_if_leased(claimed.attempt, answered())
    assert await work.release([claimed.attempt]) == 0
    assert (await job_row(database, job.id))["status"] == "in_progress"


async def test_no_deadlock_with_a_claim(database: Database, work: JobStore) -> None:
    """A claim of the expired lease locks the job, then its attempt: the answer must wait."""
    job = await add_paid_job(database)
    claimed = await claim_one(database, EXPIRED)
    async with asyncio.TaskGroup() as tasks, database.transaction() as claim:
        await claim.execute("SELECT FROM jobs WHERE id = $1 FOR NO KEY UPDATE", job.id)
        async with lock_waits(database, claim):
            late = tasks.create_task(work.record_if_leased(claimed.attempt, answered()))
        await claim.execute("SET LOCAL lock_timeout = '100ms'")
        await claim.execute(
            "UPDATE generation_attempts SET message = 'mine' WHERE id = $1", claimed.attempt
        )
        # As a heartbeat does: whoever waited must find the row as it is now.
        await claim.execute("UPDATE jobs SET lease_until = now() + interval '1 minute'")
    assert late.result() is True
    assert (await job_row(database, job.id))["status"] == "in_progress"


async def test_a_job_that_a_host_holds_locked_takes_no_lease_from_the_others(
    database: Database, work: JobStore
) -> None:
    jobs = [await add_paid_job(database) for _ in range(2)]
    claimed = await work.claim(2, EXPIRED)
    attempts = [job.attempt for job in claimed]
    async with database.transaction() as host, asyncio.timeout(5):
        await host.execute("SELECT FROM jobs WHERE id = $1 FOR UPDATE", jobs[0].id)
        assert await work.keep_leases(attempts, MINUTE) == set(attempts)
        assert await work.release(attempts) == 1
    assert (await job_row(database, jobs[0].id))["status"] == "in_progress"
    assert (await job_row(database, jobs[1].id))["status"] == "paid"


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "🥐 ünïcödé \ud83e\udd50".encode("utf-16", "surrogatepass").decode("utf-16")},
        {"prompt": "x" * (MAX_INPUT_BYTES + 1)},
        None,
        [],
        "text",
    ],
    ids=["emoji", "huge", "null", "list", "string"],
)
async def test_odd_input_holds_up_nobody(database: Database, work: JobStore, value: Any) -> None:
    odd = await add_paid_job(database, input_data=value)
    plain = await add_paid_job(database)
    first, second = await work.claim(10, MINUTE)
    assert [first.id, second.id] == [odd.id, plain.id]
    assert second.input_json == '{"prompt": "a bakery"}'
    if first.input_bytes > MAX_INPUT_BYTES:
        assert first.input_json is None


@pytest.mark.parametrize("kind", ["jsonb", "json", "text"])
async def test_deep_and_nul_input(own_database: Database, kind: str) -> None:
    """A host's column may hold JSON that jsonb would refuse: it is read as the text it is."""
    deep, nul = "[" * 5000 + "]" * 5000, r'{"prompt": "a\u0000b"}'
    await execute(own_database, f"ALTER TABLE jobs ALTER COLUMN input_data TYPE {kind}")
    values = [deep] if kind == "jsonb" else [deep, nul]
    for value in values:
        job = await add_paid_job(own_database, input_data=None)
        await execute(
            own_database, f"UPDATE jobs SET input_data = '{value}'::{kind} WHERE id = $1", job.id
        )
    claimed = await JobStore(own_database).claim(10, MINUTE)
    assert [job.input_json for job in claimed] == values


async def test_a_host_that_refuses_one_job_holds_up_no_other(own_database: Database) -> None:
    refused, free = await add_paid_job(own_database), await add_paid_job(own_database)
    await execute(
        own_database,
        "ALTER TABLE jobs ADD CONSTRAINT never_begun"
        f" CHECK (id <> {refused.id} OR status <> 'in_progress')",
    )
    claimed = await JobStore(own_database).claim(5, MINUTE)
    assert [job.id for job in claimed] == [free.id]
    assert await JobStore(own_database).claim(5, MINUTE) == []
