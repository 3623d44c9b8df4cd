"""What an audit reads of the tables: each broken row is seen, and judged as what it is."""

from collections.abc import Sequence

import pytest

from db.audit import AuditStore, Note, OperatorStore
from db.jobs import JobStore
from db.payments import PaymentStore
from db.pool import Database
from db.ranges import RangeStore
from db.reversals import ReversalStore
from oncepaid.domain.auditing import Invariant, Violation, judge_doubled, judge_job
from oncepaid.domain.errors import NotLeading
from oncepaid.domain.generation import Complete
from oncepaid.domain.jobs import JobId
from oncepaid.domain.payments import PaymentId
from oncepaid.domain.reversal import reverse
from tests.integration.db.support import (
    CHAIN,
    EPOCH,
    MINUTE,
    Job,
    add_job,
    add_skill,
    answered,
    claim_one,
    cursor_at,
    execute,
    first_cursor,
    header,
    match,
    observed,
    row,
    rows,
)

PRICE = 1_000_000
NOTE = Note(who="alice", action="rescan")


async def paid(database: Database) -> tuple[Job, PaymentId]:
    """A job that is credited, with its payment."""
    job = await add_job(database)
    (payment,) = await match(database, observed(PRICE, job.memo))
    await PaymentStore(database, CHAIN).credit([payment])
    return job, payment


async def completed(database: Database) -> tuple[Job, PaymentId]:
    job, payment = await paid(database)
    claimed = await claim_one(database)
    assert await JobStore(database).record_if_leased(claimed.attempt, answered())
    finishing = await JobStore(database).finish_answered(
        lambda job: Complete(output=job.result.output or {}), lambda _: MINUTE, 10
    )
    assert len(finishing.finished) == 1
    return job, payment


async def violations(database: Database) -> list[Violation]:
    """Judge all tables."""
    store = AuditStore(database, CHAIN)
    after: JobId | None = JobId(0)
    found = [judge_doubled(one) for one in await store.doubled()]
    while after is not None:
        jobs, after = await store.jobs(after)
        found += [violation for job in jobs for violation in judge_job(job)]
    return found


async def broken(database: Database) -> set[Invariant]:
    return {violation.invariant for violation in await violations(database)}


async def orphan(database: Database, payment: PaymentId) -> None:
    cursor = await first_cursor(database)
    await RangeStore(database, CHAIN).repair(
        0, [], [payment], epoch=EPOCH, checked=0, anchor=cursor
    )


async def test_a_whole_life_breaks_nothing(database: Database) -> None:
    """Judged after each step: paid, claimed, answered, finished, moved on by the host."""
    await paid(database)
    assert await broken(database) == set()
    await claim_one(database)
    assert await broken(database) == set()
    job, _ = await completed(database)
    assert await broken(database) == set()
    for status in ("delivered", "disputed", "refunded"):
        await execute(database, "UPDATE jobs SET status = $2 WHERE id = $1", job.id, status)
        assert await broken(database) == set()


async def test_money_that_left_and_came_again(database: Database) -> None:
    """Orphaned, reversed, lost, paid again, for jobs in every state: nothing is broken."""
    reversals = ReversalStore(database, CHAIN)
    for make in (paid, completed):
        job, payment = await make(database)
        await orphan(database, payment)
        assert await broken(database) == set()
        await reversals.reverse_orphaned(reverse, 10)
        assert await broken(database) == set()
        (again,) = await match(database, observed(PRICE, job.memo))
        await PaymentStore(database, CHAIN).credit([again])
        assert await broken(database) == set()
        assert (await row(database, "SELECT status FROM payments WHERE id = $1", again)) == {
            "status": "credited"
        }


async def test_what_a_host_does_by_itself_is_its_own(database: Database) -> None:
    """Jobs without our money may stand anyhow."""
    skill = await add_skill(database)
    for status in ("paid", "in_progress", "completed", "failed", "delivered"):
        await add_job(database, skill_id=skill, status=status, output_data={"by": "the hub"})
    assert await broken(database) == set()
    assert (await AuditStore(database, CHAIN).jobs(JobId(0)))[0] == []


MONEY = Invariant.CREDIT_OF_JOB
RESULT = Invariant.ONE_RESULT


@pytest.mark.parametrize(
    ("sql", "invariant", "words"),
    [
        ("UPDATE jobs SET credited_units = credited_units + 1", MONEY, "its payments come to 1.0"),
        ("UPDATE jobs SET credited_units = 0, status = 'delivered'", MONEY, "come to 1.000000"),
        ("UPDATE payments SET status = 'matched'", MONEY, "its payments come to 0.000000"),
        ("UPDATE jobs SET status = 'pending'", MONEY, "is pending, although"),
        ("UPDATE jobs SET is_unbacked = true", MONEY, "is unbacked, with 0 losses"),
        ("UPDATE losses SET made_good_at = NULL", MONEY, "is not unbacked, with 1 losses"),
        ("UPDATE jobs SET attempt_id = NULL", RESULT, "is completed without an attempt"),
        ("UPDATE jobs SET attempt_id = 4711", RESULT, "not one of its own"),
        ("UPDATE jobs SET output_data = '{}'", RESULT, "has another output than its attempt"),
        ("UPDATE jobs SET output_data = NULL", RESULT, "has another output than its attempt"),
        ("UPDATE generation_attempts SET outcome = 'refused'", RESULT, "that ended as refused"),
        (
            "UPDATE generation_attempts SET finished_at = NULL, outcome = NULL;"
            "UPDATE jobs SET status = 'failed'",
            RESULT,
            "its attempt has not ended",
        ),
        (
            "UPDATE jobs SET status = 'in_progress', attempt_id = NULL",
            RESULT,
            "is in_progress without an attempt",
        ),
        (
            "UPDATE generation_attempts SET started_at = started_at - interval '1 hour'",
            RESULT,
            "was begun before it was credited",
        ),
    ],
)
async def test_a_broken_row(database: Database, sql: str, invariant: Invariant, words: str) -> None:
    job, payment = await completed(database)
    if "losses" in sql:
        await execute(
            database,
            "INSERT INTO losses (payment_id, job_id, amount_units, job_status, made_good_at)"
            " VALUES ($1, $2, 1, 'completed', now())",
            *(payment, job.id),
        )
    assert await broken(database) == set()
    for statement in sql.split(";"):
        await execute(database, statement)
    (found,) = await violations(database)
    assert found.invariant is invariant
    assert words in found.text


async def test_an_attempt_of_another_job(database: Database) -> None:
    job, _ = await completed(database)
    other, _ = await completed(database)
    await execute(
        database,
        "UPDATE jobs SET attempt_id = (SELECT attempt_id FROM jobs WHERE id = $2) WHERE id = $1",
        *(job.id, other.id),
    )
    (found,) = await violations(database)
    assert (found.invariant, "not one of its own" in found.text) == (RESULT, True)


async def test_a_credit_that_was_refunded_since(database: Database) -> None:
    """The job still says what was counted for it; the operator has sent it back."""
    _, payment = await completed(database)
    await execute(database, "UPDATE payments SET status = 'refunded' WHERE id = $1", payment)
    await execute(database, "UPDATE jobs SET status = 'refunded'")
    assert await broken(database) == set()


async def copy(database: Database, payment: PaymentId, column: str, value: object) -> None:
    """Store a payment a second time, with one column changed."""
    columns = (
        "chain_id, tx_hash, log_index, block_number, block_hash, block_time, sender, recipient,"
        " amount_units"
    )
    chosen = columns.replace(column, "$2", 1)
    await execute(
        database,
        f"INSERT INTO payments ({columns}) SELECT {chosen} FROM payments WHERE id = $1",
        *(payment, value),
    )


async def test_a_log_that_counts_twice(own_database: Database) -> None:
    """In two blocks, where the index that forbids it is gone."""
    _, payment = await paid(own_database)
    await execute(own_database, "DROP INDEX payments_live_log_key")
    await copy(own_database, payment, "block_hash", header(77).hash)
    (found,) = await violations(own_database)
    assert found.invariant is Invariant.DOUBLE_CREDIT
    assert f"payments {payment}, " in found.text


async def test_a_transaction_in_two_blocks(database: Database) -> None:
    """Its log has another number there, which no index forbids."""
    _, payment = await paid(database)
    await copy(database, payment, "log_index", 4711)
    assert await violations(database) == [], "two transfers of one transaction are in order"
    await execute(
        database, "UPDATE payments SET block_hash = $1 WHERE log_index = 4711", header(77).hash
    )
    assert await broken(database) == {Invariant.DOUBLE_CREDIT}


@pytest.mark.parametrize("kind", ["json", "text"])
async def test_a_hubs_own_kind_of_output(own_database: Database, kind: str) -> None:
    await execute(
        own_database,
        f"ALTER TABLE jobs ALTER COLUMN output_data TYPE {kind} USING output_data::text::{kind}",
    )
    job, _ = await completed(own_database)
    assert await broken(own_database) == set()
    await execute(own_database, "UPDATE jobs SET output_data = '[1]' WHERE id = $1", job.id)
    assert await broken(own_database) == {RESULT}


async def test_jobs_come_in_pages(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("db.audit.JOBS_A_PAGE", 2)
    made = [(await paid(database))[0] for _ in range(4)]
    await execute(database, "UPDATE jobs SET credited_units = 1 WHERE id = $1", made[3].id)
    await execute(database, "UPDATE jobs SET credited_units = 1 WHERE id = $1", made[0].id)
    assert len(await violations(database)) == 2


async def read_to(database: Database, number: int) -> None:
    cursor = await first_cursor(database)
    while cursor.number < number:
        step = header(cursor.number + 1)
        await RangeStore(database, CHAIN).store_range(cursor, step, [], epoch=EPOCH)
        cursor = step.ref


async def notes(database: Database) -> list[tuple[str, str, Sequence[str]]]:
    found = await rows(database, "SELECT who, action, details FROM audit_log ORDER BY id")
    return [(one["who"], one["action"], one["details"]["added"]) for one in found]


async def test_a_repair_with_its_note(database: Database) -> None:
    """Both or neither; doing it again changes nothing, and leaves no note."""
    await read_to(database, 5)
    store = OperatorStore(database, CHAIN)
    payment = observed(PRICE, block=header(2))
    for _ in range(2):
        await store.repair(1, 5, [payment], [], anchor=cursor_at(5), note=NOTE)
    name = f"{payment.log.tx_hash}:{payment.log.log_index}"
    assert await notes(database) == [("alice", "rescan", [name])]
    assert len(await rows(database, "SELECT FROM payments")) == 1


async def test_a_repair_of_a_chain_that_was_left(database: Database) -> None:
    """The cursor went back below the blocks, or on by another fork: they must be read again."""
    await read_to(database, 5)
    store = OperatorStore(database, CHAIN)
    payment = observed(PRICE, block=header(2))
    with pytest.raises(NotLeading):
        await store.repair(1, 6, [payment], [], anchor=cursor_at(5), note=NOTE)
    await RangeStore(database, CHAIN).rewind(cursor_at(5), header(3), [], epoch=EPOCH)
    for number in (4, 5, 6):
        fork = "x" if number > 3 else ""
        below = header(number - 1, "x" if number > 4 else "").ref
        moved = await RangeStore(database, CHAIN).store_range(
            below, header(number, fork), [], epoch=EPOCH
        )
        assert moved.moved
    with pytest.raises(NotLeading):
        await store.repair(1, 5, [payment], [], anchor=cursor_at(5), note=NOTE)
    assert await rows(database, "SELECT FROM payments") == []
    assert await notes(database) == []
    await store.repair(1, 5, [payment], [], anchor=header(6, "x").ref, note=NOTE)
    assert len(await notes(database)) == 1


async def test_a_repair_below_what_is_final(database: Database) -> None:
    """The cursor of then is no checkpoint any more: final, it cannot have been left."""
    await read_to(database, 6)
    await execute(database, "UPDATE chain_cursor SET checked_number = 6")
    await RangeStore(database, CHAIN).mark_finalized(header(6), anchor=cursor_at(6), epoch=EPOCH)
    store = OperatorStore(database, CHAIN)
    await store.repair(1, 5, [observed(1)], [], anchor=cursor_at(5), note=NOTE)
    assert len(await notes(database)) == 1


async def test_a_conflict_is_resolved_once(database: Database) -> None:
    await read_to(database, 3)
    store = OperatorStore(database, CHAIN)
    await execute(database, "UPDATE chain_cursor SET finalized_number = 2, checked_number = 3")
    note = Note(who="bob", action="conflict.resolve")
    assert await store.resolve_conflict(accept=True, why="x", note=note) is None
    ranges = RangeStore(database, CHAIN)
    for accept, finalized in ((False, 2), (True, -1)):
        await ranges.declare_conflict("block 2 was final", epoch=EPOCH)
        assert (await store.conflict()).what == "block 2 was final"  # type: ignore[union-attr]
        was = await store.resolve_conflict(accept=accept, why="the node lied", note=note)
        assert was == "block 2 was final"
        state = await ranges.state()
        assert state is not None
        assert (state.conflict, state.finalized) == (None, finalized)
    logged = await rows(database, "SELECT who, details FROM audit_log ORDER BY id")
    assert [one["details"]["accepted"] for one in logged] == [False, True]
    assert {one["details"]["why"] for one in logged} == {"the node lied"}


async def test_the_slow_audit_reads_only_what_is_near_its_window(database: Database) -> None:
    _, payment = await paid(database)
    await copy(database, payment, "log_index", 4711)
    await execute(
        database, "UPDATE payments SET block_hash = $1 WHERE log_index = 4711", header(77).hash
    )
    store = AuditStore(database, CHAIN)
    block = (await rows(database, "SELECT max(block_number) AS n FROM payments"))[0]["n"]
    for above, found in ((-1, 1), (block - 1, 1), (block, 0)):
        assert len(await store.doubled(above)) == found
        jobs, _ = await store.jobs(JobId(0), above)
        assert len(jobs) == found
    await execute(database, "UPDATE jobs SET is_unbacked = true")
    assert len((await store.jobs(JobId(0), block))[0]) == 1
