"""What an answer means is written once; what is spent and held is counted."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from db.jobs import JobStore
from db.pool import Database
from oncepaid.domain.generation import (
    AnsweredJob,
    AttemptResult,
    Complete,
    Fail,
    Outcome,
    TryAgain,
    Verdict,
)
from oncepaid.domain.jobs import ClaimedJob
from tests.integration.db.support import (
    CHAIN,
    MINUTE,
    START,
    add_job,
    add_paid_job,
    answered,
    claim_one,
    execute,
    first_cursor,
    header,
    job_row,
    match,
    observed,
    row,
)

HOUR = timedelta(hours=1)


@pytest.fixture
def work(database: Database) -> JobStore:
    return JobStore(database)


async def answer(database: Database, result: AttemptResult) -> ClaimedJob:
    """A job that is claimed and answered."""
    await add_paid_job(database)
    claimed = await claim_one(database)
    assert await JobStore(database).record_if_leased(claimed.attempt, result)
    return claimed


def always(verdict: Verdict) -> Callable[[AnsweredJob], Verdict]:
    return lambda job: verdict


def no_delay(job: AnsweredJob) -> timedelta:
    return timedelta(0)


async def test_completed(database: Database, work: JobStore) -> None:
    output = {"title": "🥐", "n": [1, {"deep": None}], "f": 0.5}
    claimed = await answer(database, answered(output=output))
    (finished,) = (
        await work.finish_answered(always(Complete(output=output)), no_delay, 10)
    ).finished
    assert finished.job.id == claimed.id
    job = await job_row(database, claimed.id)
    assert (job["status"], job["output_data"]) == ("completed", output)
    assert abs(job["completed_at"] - datetime.now(UTC)) < MINUTE
    assert await work.claim(10, MINUTE) == []


async def test_failed(database: Database, work: JobStore) -> None:
    claimed = await answer(database, answered(Outcome.REFUSED))
    await work.finish_answered(always(Fail(message="it said no")), no_delay, 10)
    job = await job_row(database, claimed.id)
    assert job["status"] == "failed"
    assert job["output_data"] == {"error": "AI generation failed", "message": "it said no"}
    assert job["completed_at"] is not None
    assert await work.claim(10, MINUTE) == []


async def test_the_decision_sees_all_of_it(database: Database, work: JobStore) -> None:
    job = await add_job(database)
    await match(database, observed(1_000_000, job.memo))
    await execute(
        database,
        "UPDATE payments SET status = 'credited', credited_at = now()",
    )
    await execute(database, "UPDATE jobs SET status = 'paid', credited_units = 1")
    result = answered(
        model="m",
        stop_reason="end_turn",
        request_id="r",
        input_tokens=7,
        output_tokens=8,
        cost_usd=Decimal("0.25"),
        retry_after_s=1.5,
    )
    for _ in range(2):
        claimed = await claim_one(database)
        await work.record_if_leased(claimed.attempt, result)
        seen: list[AnsweredJob] = []

        def decide(job: AnsweredJob, seen: list[AnsweredJob] = seen) -> Verdict:
            seen.append(job)
            return TryAgain(uses_attempt=True)

        await work.finish_answered(decide, no_delay, 10)
    (last,) = seen
    assert last.result == result
    assert (last.attempt, last.attempts, last.failures_in_row) == (claimed.attempt, 2, 1)
    assert last.cost_usd == Decimal("0.5")
    assert last.service_key == "creativeconcept"
    assert last.paid_block_time == header(1).time
    assert last.generating_s >= 0


@pytest.mark.parametrize(("uses_attempt", "attempts"), [(True, 1), (False, 0)])
async def test_try_again(
    database: Database, work: JobStore, uses_attempt: bool, attempts: int
) -> None:
    claimed = await answer(database, answered(Outcome.OVERLOADED))
    verdict = TryAgain(uses_attempt=uses_attempt)
    await work.finish_answered(always(verdict), lambda _: HOUR, 10)
    job = await job_row(database, claimed.id)
    assert (job["status"], job["attempts"], job["failures_in_row"]) == ("paid", attempts, 1)
    assert abs(job["next_attempt_at"] - datetime.now(UTC) - HOUR) < MINUTE
    assert job["output_data"] is None
    assert await work.claim(10, MINUTE) == []
    await execute(database, "UPDATE jobs SET next_attempt_at = now()")
    again = await claim_one(database)
    assert (again.id, again.attempt_no) == (claimed.id, 2)
    assert (await job_row(database, claimed.id))["attempts"] == attempts + 1


async def test_two_finishers_write_once(database: Database, work: JobStore) -> None:
    for _ in range(10):
        await answer(database, answered())
    async with asyncio.timeout(20):
        answers = await asyncio.gather(
            *(work.finish_answered(always(Complete(output={"n": n})), no_delay, 10) for n in "abc")
        )
    finished = [each.job.id for answer in answers for each in answer.finished]
    assert len(finished) == len(set(finished)) == 10
    assert (await row(database, "SELECT DISTINCT status FROM jobs"))["status"] == "completed"
    assert (await work.finish_answered(always(Complete(output={})), no_delay, 10)).finished == []


async def test_job_that_a_host_took_back(database: Database, work: JobStore) -> None:
    """A host that takes the job back wins: nothing is decided, and nothing written."""
    claimed = await answer(database, answered())
    await execute(database, "UPDATE jobs SET status = 'refunded' WHERE id = $1", claimed.id)
    decided: list[AnsweredJob] = []

    def decide(job: AnsweredJob) -> Verdict:
        decided.append(job)
        return Complete(output={})

    assert (await work.finish_answered(decide, no_delay, 10)).finished == []
    assert decided == []
    job = await job_row(database, claimed.id)
    assert (job["status"], job["output_data"]) == ("refunded", None)


async def test_failing_decision_writes_nothing(database: Database, work: JobStore) -> None:
    claimed = await answer(database, answered())
    await answer(database, answered())

    def decide(job: AnsweredJob) -> Verdict:
        if job.id == claimed.id:
            return Complete(output={})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work.finish_answered(decide, no_delay, 10)
    assert (await job_row(database, claimed.id))["status"] == "in_progress"
    finishing = await work.finish_answered(always(Complete(output={})), no_delay, 1)
    assert len(finishing.finished) == 1


async def test_running_job_is_not_finished(database: Database, work: JobStore) -> None:
    await add_paid_job(database)
    await claim_one(database)
    assert (await work.finish_answered(always(Complete(output={})), no_delay, 10)).finished == []


async def test_spent_today(database: Database, work: JobStore) -> None:
    assert await work.spent_today_usd() == 0
    for cost in ("0.25", "1.000001", None):
        await answer(
            database,
            answered(Outcome.REFUSED, cost_usd=None if cost is None else Decimal(cost)),
        )
    assert await work.spent_today_usd() == pytest.approx(1.250001)
    midnight = "date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
    await execute(
        database,
        f"UPDATE generation_attempts SET started_at = {midnight} - interval '1 ms'"
        " WHERE cost_usd = 0.25",
    )
    await execute(
        database, f"UPDATE generation_attempts SET started_at = {midnight} WHERE cost_usd > 1"
    )
    assert await work.spent_today_usd() == pytest.approx(1.000001)


@pytest.mark.parametrize(
    ("block_age", "expiry_age", "released"),
    [
        (timedelta(0), 3 * HOUR, 1),
        (timedelta(0), 3 * HOUR - MINUTE, 0),
        # The chain is read up to two hours ago: a payment in time may still be found.
        (2 * HOUR, 3 * HOUR, 0),
        (2 * HOUR, 5 * HOUR, 1),
        # A node that lies about time does not bring it nearer.
        (-9 * HOUR, 2 * HOUR, 0),
    ],
)
async def test_amounts_are_released_by_the_chains_time(
    database: Database,
    work: JobStore,
    block_age: timedelta,
    expiry_age: timedelta,
    released: int,
) -> None:
    """Grace is one hour and quarantine two."""
    await first_cursor(database)
    await execute(database, "UPDATE chain_cursor SET block_time = $1", START - block_age)
    job = await add_job(database, expires_at=START - expiry_age - timedelta(seconds=1))
    await add_job(database)
    assert await work.release_amounts(1, HOUR, 2 * HOUR) == 0
    assert await work.release_amounts(CHAIN, HOUR, 2 * HOUR) == released
    assert await work.release_amounts(CHAIN, HOUR, 2 * HOUR) == 0
    assert (await job_row(database, job.id))["amount_is_held"] is not bool(released)


async def test_a_result_that_the_host_refuses_holds_up_nobody(
    own_database: Database,
) -> None:
    work = JobStore(own_database)
    refused, welcome = [await answer(own_database, answered()) for _ in range(2)]
    await execute(
        own_database,
        "ALTER TABLE jobs ADD CHECK (output_data IS NULL OR NOT output_data ? 'rude')",
    )

    def decide(job: AnsweredJob) -> Verdict:
        return Complete(output={"rude": 1} if job.id == refused.id else {"kind": 1})

    finishing = await work.finish_answered(decide, no_delay, 10)
    assert [each.job.id for each in finishing.finished] == [welcome.id]
    assert [each.job.id for each in finishing.refused] == [refused.id]
    assert (await job_row(own_database, refused.id))["status"] == "in_progress"


async def test_a_result_is_not_written_again_when_a_host_moves_its_job_back(
    database: Database, work: JobStore
) -> None:
    claimed = await answer(database, answered())
    await work.finish_answered(always(Complete(output={"n": 1})), no_delay, 10)
    for status in ("in_progress", "paid"):
        await execute(database, "UPDATE jobs SET status = $2 WHERE id = $1", claimed.id, status)
        again = await work.finish_answered(always(Complete(output={"n": 2})), no_delay, 10)
        assert (again.finished, await work.claim(10, MINUTE)) == ([], [])
    assert (await job_row(database, claimed.id))["output_data"] == {"n": 1}
