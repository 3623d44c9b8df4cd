"""What becomes of each write when its answer is lost, or the server freezes, is full or read-only.

The answers are lost on the way: the server has committed, and whoever asked hears of a broken
connection. It does the same again, as the loops do, and nothing may be there twice.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Final

import pytest

from db.jobs import JobStore
from db.leader import Leader
from db.payments import PaymentStore
from db.pool import COMMAND_TIMEOUT_S, Database
from db.ranges import RangeStore
from oncepaid.domain.errors import DatabaseUnavailable
from oncepaid.domain.generation import AnsweredJob, AttemptResult, Complete
from oncepaid.domain.jobs import JobId
from tests.fakes.database_proxy import DatabaseProxy, start_database_proxy
from tests.integration.db.support import (
    CHAIN,
    DECIDE,
    EPOCH,
    MINUTE,
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
    rows,
    see,
    standing,
)

pytestmark = pytest.mark.fault("F5")

GOOD: Final = {"title": "Crumbs"}
PROMPTLY_S: Final = 1.0
ONE_USDC: Final = 1_000_000


@pytest.fixture
async def proxy(migrated_url: str) -> AsyncIterator[DatabaseProxy]:
    async with start_database_proxy(migrated_url) as running:
        yield running


@pytest.fixture
async def far(proxy: DatabaseProxy) -> AsyncIterator[Database]:
    """The test's database, reached through the proxy."""
    pool = await Database.connect(proxy.url, size=2)
    yield pool
    await pool.close()


async def loses_its_answer(proxy: DatabaseProxy, call: Awaitable[object]) -> None:
    with pytest.raises(DatabaseUnavailable):
        await call
    assert proxy.lost_answers == 1, "it was executed, and another fault did not come first"


def complete(job: AnsweredJob) -> Complete:
    assert job.result.output == GOOD
    return Complete(output=GOOD)


async def test_storing_a_range(database: Database, far: Database, proxy: DatabaseProxy) -> None:
    cursor, ranges, payment = await first_cursor(database), RangeStore(far, CHAIN), observed(5)
    proxy.cut_answer_of("INSERT INTO payments")
    await loses_its_answer(proxy, ranges.store_range(cursor, header(1), [payment], epoch=EPOCH))
    again = await ranges.store_range(cursor, header(1), [payment], epoch=EPOCH)
    assert (again.moved, again.stored) == (False, 0), "the cursor is where the first one took it"
    state = await ranges.state()
    assert state is not None
    assert state.cursor == header(1).ref
    assert await rows(database, "SELECT amount_units FROM payments") == [{"amount_units": 5}]


async def test_storing_a_range_over_orphans(
    database: Database, far: Database, proxy: DatabaseProxy
) -> None:
    """In an explicit transaction, whose COMMIT loses its answer."""
    (gone,) = await see(database, observed(5, block=header(2, "lost")))
    ranges, payment = RangeStore(far, CHAIN), observed(5, block=header(2))

    def store() -> Awaitable[object]:
        return ranges.store_range(header(1).ref, header(2), [payment], epoch=EPOCH, gone=[gone])

    proxy.cut_after_commit("INSERT INTO payments")
    await loses_its_answer(proxy, store())
    again = await ranges.store_range(header(1).ref, header(2), [payment], epoch=EPOCH, gone=[gone])
    assert not again.moved, "the cursor is not there any more"
    stored = await rows(database, "SELECT status, block_hash FROM payments ORDER BY id")
    assert [(r["status"], r["block_hash"]) for r in stored] == [
        ("orphaned", header(2, "lost").hash),
        ("seen", header(2).hash),
    ]


async def test_a_rewind(database: Database, far: Database, proxy: DatabaseProxy) -> None:
    (gone,) = await see(database, observed(5, block=header(1)))
    ranges = RangeStore(far, CHAIN)
    proxy.cut_after_commit("DELETE FROM chain_checkpoints")
    await loses_its_answer(proxy, ranges.rewind(header(1).ref, header(0), [gone], epoch=EPOCH))
    again = await ranges.rewind(header(1).ref, header(0), [gone], epoch=EPOCH)
    assert again is None, "the cursor is not there any more"
    assert await standing(database, [gone]) == [("orphaned", None)]


async def test_deciding(database: Database, far: Database, proxy: DatabaseProxy) -> None:
    job = await add_job(database)
    ids = await see(database, observed(ONE_USDC, job.memo), observed(ONE_USDC, job.memo))
    payments = PaymentStore(far, CHAIN)
    proxy.cut_after_commit("UPDATE payments")
    await loses_its_answer(proxy, payments.decide_seen(DECIDE, 10))
    first = await standing(database, ids)
    assert first == [("matched", None), ("unmatched", "duplicate")]
    assert await payments.decide_seen(DECIDE, 10) == []
    assert await standing(database, ids) == first


async def test_crediting(database: Database, far: Database, proxy: DatabaseProxy) -> None:
    job = await add_job(database)
    ids = await match(database, observed(ONE_USDC, job.memo))
    payments = PaymentStore(far, CHAIN)
    proxy.cut_after_commit("UPDATE payments")
    await loses_its_answer(proxy, payments.credit(ids))
    paid = await job_row(database, job.id)
    assert (paid["status"], paid["credited_units"]) == ("paid", ONE_USDC)
    again = await payments.credit(ids)
    assert (again.credited, again.returned) == ([], [])
    assert await job_row(database, job.id) == paid
    assert await standing(database, ids) == [("credited", None)]


async def test_claiming(database: Database, far: Database, proxy: DatabaseProxy) -> None:
    """The claim that nobody heard of runs out, and is told as an attempt that was lost."""
    job = await add_paid_job(database)
    jobs = JobStore(far)
    proxy.cut_answer_of("INSERT INTO generation_attempts")
    await loses_its_answer(proxy, jobs.claim(1, MINUTE))
    assert await jobs.claim(1, MINUTE) == [], "its lease holds"
    await execute(database, "UPDATE jobs SET lease_until = now() - interval '1 s'")
    (claimed,) = await jobs.claim(1, MINUTE)
    assert (claimed.id, claimed.attempt_no, claimed.lost_attempts) == (job.id, 2, 1)
    assert (await job_row(database, job.id))["attempts"] == 1


async def test_recording(database: Database, far: Database, proxy: DatabaseProxy) -> None:
    job = await add_paid_job(database)
    claimed, jobs = await claim_one(database), JobStore(far)
    result: AttemptResult = answered(output=GOOD, cost_usd=0.25)
    proxy.cut_answer_of("UPDATE generation_attempts")
    await loses_its_answer(proxy, jobs.record_if_leased(claimed.attempt, result))
    await jobs.record_if_leased(claimed.attempt, result)
    told = await rows(database, "SELECT outcome, cost_usd::float8 AS cost FROM generation_attempts")
    assert told == [{"outcome": "succeeded", "cost": 0.25}]
    finishing = await jobs.finish_answered(complete, no_delay, 10)
    assert [one.job.id for one in finishing.finished] == [job.id]


async def test_finishing(database: Database, far: Database, proxy: DatabaseProxy) -> None:
    job = await add_paid_job(database)
    claimed, jobs = await claim_one(database), JobStore(far)
    await jobs.record_if_leased(claimed.attempt, answered(output=GOOD))
    proxy.cut_after_commit("UPDATE jobs")
    await loses_its_answer(proxy, jobs.finish_answered(complete, no_delay, 10))
    finished = await job_row(database, job.id)
    assert (finished["status"], finished["output_data"]) == ("completed", GOOD)
    assert (await jobs.finish_answered(complete, no_delay, 10)).finished == []
    assert await job_row(database, job.id) == finished


def no_delay(_: AnsweredJob) -> timedelta:
    return timedelta(0)


Write = Callable[[Database], Awaitable[object]]


async def _stores(database: Database) -> object:
    ranges = RangeStore(database, CHAIN)
    return await ranges.store_range(header(1).ref, header(2), [observed(7)], epoch=EPOCH)


async def _decides(database: Database) -> object:
    return await PaymentStore(database, CHAIN).decide_seen(DECIDE, 10)


async def _credits(database: Database) -> object:
    payments = PaymentStore(database, CHAIN)
    matched = await payments.load_matched(JobId(0), 10)
    return await payments.credit([payment.id for payment in matched])


async def _claims(database: Database) -> object:
    return await JobStore(database).claim(10, MINUTE)


WRITES: Final = pytest.mark.parametrize("write", [_stores, _decides, _credits, _claims])
LEDGER: Final = """
    SELECT (SELECT jsonb_agg(p ORDER BY p.id) FROM payments p) AS payments,
           (SELECT jsonb_agg(c) FROM chain_cursor c) AS cursor,
           (SELECT jsonb_agg(j ORDER BY j.id) FROM jobs j) AS jobs,
           (SELECT jsonb_agg(a) FROM generation_attempts a) AS attempts
"""


async def add_work(database: Database) -> None:
    """Something for each of the writes to do; the cursor is on block 1."""
    job = await add_job(database)
    await match(database, observed(ONE_USDC, job.memo))
    await add_paid_job(database)
    await execute(
        database,
        "INSERT INTO payments (chain_id, tx_hash, log_index, block_number, block_hash, block_time,"
        " sender, recipient, amount_units) SELECT chain_id, $1, 2000000, block_number, block_hash,"
        " block_time, sender, recipient, amount_units FROM payments",
        header(900).hash,
    )


@WRITES
async def test_a_read_only_server(migrated_url: str, database: Database, write: Write) -> None:
    """As a standby is, and as some hosts make a server whose disk is nearly full."""
    await add_work(database)
    before = await row(database, LEDGER)
    name = (await row(database, "SELECT quote_ident(current_database()) AS name"))["name"]
    await execute(database, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    daemon = await Database.connect(migrated_url, size=1)
    with pytest.raises(DatabaseUnavailable):
        await write(daemon)
    assert await row(database, LEDGER) == before
    await execute(database, f"ALTER DATABASE {name} RESET default_transaction_read_only")
    # Sessions that were opened under the old setting keep it: each of them fails once more at most.
    with suppress(DatabaseUnavailable):
        await write(daemon)
    await write(daemon)
    assert await row(database, LEDGER) != before
    await daemon.close()


@WRITES
async def test_a_full_disk(database: Database, write: Write) -> None:
    """The error of a full disk, raised by triggers: no disk is filled here."""
    await add_work(database)
    before = await row(database, LEDGER)
    for table in ("payments", "jobs", "generation_attempts"):
        await execute(
            database,
            f"""
            CREATE OR REPLACE FUNCTION disk_is_full() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN
                RAISE EXCEPTION 'No space left on device' USING ERRCODE = 'disk_full';
            END $$;
            CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON {table}
               FOR EACH ROW EXECUTE FUNCTION disk_is_full()
            """,
        )
    with pytest.raises(DatabaseUnavailable, match="No space left"):
        await write(database)
    assert await row(database, LEDGER) == before
    for table in ("payments", "jobs", "generation_attempts"):
        await execute(database, f"DROP TRIGGER full_disk ON {table}")
    await write(database)
    assert await row(database, LEDGER) != before


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """Stop processes of the server, which keep their connections open and answer nothing."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def sessions(database: Database) -> list[int]:
    found = await rows(
        database,
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND backend_type = 'client backend'",
    )
    return [session["pid"] for session in found]


async def test_a_frozen_server(database: Database) -> None:
    """A task that is stopped ends at once, and when the server thaws, work goes on."""
    await add_work(database)
    pids = await sessions(database)
    with frozen(pids):
        tasks = [asyncio.create_task(write(database)) for write in (_stores, _credits, _claims)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        began = time.monotonic()
        await asyncio.wait(tasks)
        assert time.monotonic() - began < PROMPTLY_S
        assert all(task.cancelled() for task in tasks)
    assert database.in_use == 0
    await _stores(database)
    assert (await row(database, "SELECT block_number FROM chain_cursor"))["block_number"] == 2


@pytest.mark.slow
async def test_a_frozen_server_for_long(migrated_url: str, database: Database) -> None:
    """With the limits of production, and with every other connection frozen too."""
    await add_work(database)
    daemon = await Database.connect(migrated_url, size=3)
    leader = Leader(migrated_url, CHAIN, name="one")
    await leader.step()

    async def seconds(call: Awaitable[object]) -> float:
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable):
            await call
        return time.monotonic() - began

    with frozen(await sessions(database)):
        assert COMMAND_TIMEOUT_S <= await seconds(_stores(daemon)) < COMMAND_TIMEOUT_S + 2
        assert await seconds(leader.step()) < 4
        began = time.monotonic()
        await asyncio.gather(daemon.close(), leader.close())
        assert time.monotonic() - began < 4


async def test_a_slow_way_to_the_server(far: Database, proxy: DatabaseProxy) -> None:
    """Slower than any real one: nothing fails, everything takes its time."""
    await add_work(far)
    proxy.slow(0.02)
    await _stores(far)
    await _decides(far)
    await _credits(far)
    paid = await rows(far, "SELECT status FROM jobs ORDER BY id")
    assert [job["status"] for job in paid] == ["paid", "paid"]
