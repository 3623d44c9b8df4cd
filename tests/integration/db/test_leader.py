"""One leads, whoever dies, hangs, or comes at the same moment; and the cursor knows who."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

import pytest
from structlog.testing import capture_logs

from db.leader import Leader
from db.pool import Database
from oncepaid.domain.errors import DatabaseUnavailable
from tests.fakes.database_proxy import start_database_proxy
from tests.integration.db.support import CHAIN, execute, header, row

pytestmark = pytest.mark.fault("F3", "F21")

NewLeader = Callable[..., Leader]
OTHER_CHAIN: Final = 84532


@pytest.fixture
def database(own_database: Database) -> Database:
    return own_database


@pytest.fixture
async def new_leader(migrated_url: str) -> AsyncIterator[NewLeader]:
    """Makes leaders on the test's database, which are closed after it."""
    made: list[Leader] = []

    def make(name: str, *, url: str = migrated_url, chain_id: int = CHAIN) -> Leader:
        made.append(Leader(url, chain_id, name=name))
        return made[-1]

    yield make
    for leader in made:
        await leader.close()


async def add_cursor(database: Database) -> None:
    block = header(0)
    await execute(
        database,
        "INSERT INTO chain_cursor (chain_id, block_number, block_hash, block_time)"
        " VALUES ($1, $2, $3, $4)",
        CHAIN,
        block.number,
        block.hash,
        block.time,
    )


async def cursor_epoch(database: Database) -> int:
    found = await row(database, "SELECT epoch FROM chain_cursor WHERE chain_id = $1", CHAIN)
    epoch: int = found["epoch"]
    return epoch


async def run_lease_out(database: Database) -> None:
    """As if the leader's process had been stopped for longer than its lease."""
    await execute(database, "UPDATE chain_leader SET lease_until = now() - interval '1 ms'")


async def kill_sessions_with_locks(database: Database) -> None:
    await execute(
        database,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks l"
        " JOIN pg_database d ON d.oid = l.database"
        " WHERE locktype = 'advisory' AND datname = current_database()",
    )


def because_of(logs: list[dict[str, object]]) -> list[object]:
    return [entry["because"] for entry in logs if entry["event"] == "leader.taken"]


async def test_the_first_leads_and_the_second_stands_by(
    database: Database, new_leader: NewLeader
) -> None:
    await add_cursor(database)
    first, second = new_leader("one"), new_leader("two")
    with capture_logs() as logs:
        for _ in range(3):
            assert await first.step() is False
            assert await second.step() is False
    assert (first.epoch, second.epoch) == (1, None)
    assert await cursor_epoch(database) == 1
    assert [entry["event"] for entry in logs] == ["leader.taken"]
    assert because_of(list(map(dict, logs))) == ["first"]
    stored = await row(
        database, "SELECT holder, lease_until > now() + '5 s' AS is_leased FROM chain_leader"
    )
    assert stored == {"holder": "one", "is_leased": True}


async def test_a_renewal_extends_the_lease(database: Database, new_leader: NewLeader) -> None:
    leader = new_leader("one")
    await leader.step()
    await run_lease_out(database)
    await leader.step()
    assert leader.epoch == 1, "nobody else wanted it"
    assert await row(database, "SELECT lease_until > now() AS n FROM chain_leader") == {"n": True}


async def test_closing_hands_over_at_once(database: Database, new_leader: NewLeader) -> None:
    await add_cursor(database)
    first, second = new_leader("one"), new_leader("two")
    await first.step()
    await second.step()
    await first.close()
    assert first.epoch is None
    assert await row(database, "SELECT lease_until < now() AS n FROM chain_leader") == {"n": True}
    await second.step()
    assert second.epoch == 2
    assert await cursor_epoch(database) == 2
    await first.close()


async def test_one_that_stands_by_closes_without_giving_anything_up(
    database: Database, new_leader: NewLeader
) -> None:
    first, second = new_leader("one"), new_leader("two")
    await first.step()
    await second.step()
    await second.close()
    assert await row(database, "SELECT lease_until > now() AS n FROM chain_leader") == {"n": True}


async def test_a_dead_session_is_replaced_at_once(
    database: Database, new_leader: NewLeader
) -> None:
    """Long before its lease is over: its lock went with it."""
    first, second = new_leader("one"), new_leader("two")
    await first.step()
    await second.step()
    await kill_sessions_with_locks(database)
    with capture_logs() as logs:
        await second.step()
    assert second.epoch == 2
    (taken,) = logs
    assert (taken["before"], taken["because"]) == ("one", "gone")
    with capture_logs() as logs, pytest.raises(DatabaseUnavailable):
        await first.step()
    assert first.epoch is None
    assert [(e["event"], e["log_level"]) for e in logs] == [("leader.lost", "warning")]
    await first.step()
    assert (first.epoch, second.epoch) == (None, 2)


async def test_a_session_that_hangs_is_replaced_after_its_lease(
    database: Database, new_leader: NewLeader
) -> None:
    await add_cursor(database)
    first, second = new_leader("one"), new_leader("two")
    await first.step()
    await second.step()
    assert (first.epoch, second.epoch) == (1, None)
    await run_lease_out(database)
    with capture_logs() as logs:
        await second.step()
    assert because_of(list(map(dict, logs))) == ["lease over"]
    assert await cursor_epoch(database) == 2
    # It wakes up, still believing; what it writes with its epoch finds no cursor.
    assert (first.epoch, second.epoch) == (1, 2)
    with capture_logs() as logs:
        await first.step()
    assert (first.epoch, second.epoch) == (None, 2)
    assert [(e["event"], e["because"]) for e in logs] == [("leader.lost", "another leads")]
    await first.step()
    assert (first.epoch, second.epoch) == (None, 2)
    await second.close()
    await first.step()
    assert (first.epoch, await cursor_epoch(database)) == (3, 3)


async def test_the_lock_of_an_old_epoch_is_nobodys_business(
    database: Database, new_leader: NewLeader
) -> None:
    """The first one hangs for ever, with its session and its lock."""
    hanging, second, third = new_leader("one"), new_leader("two"), new_leader("three")
    await hanging.step()
    await run_lease_out(database)
    await second.step()
    await second.close()
    await third.step()
    assert third.epoch == 3
    held = await row(database, "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory'")
    assert held == {"n": 2}, "of the hanging one and of the third, none of the second"


async def test_a_lock_of_an_epoch_to_come_blocks_nobody(
    database: Database, new_leader: NewLeader
) -> None:
    """A session whose take-over was rolled back, and which then hangs."""
    first, second = new_leader("one"), new_leader("two")
    async with database.connection() as hanging:
        lock = f"oncepaid leader {CHAIN} 1"
        await hanging.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", lock)
        await first.step()
        await second.step()
        assert (first.epoch, second.epoch) == (1, None), "the lease alone speaks for the first"
        await run_lease_out(database)
        await second.step()
        assert second.epoch == 2


async def test_of_two_at_once_exactly_one_leads(database: Database, new_leader: NewLeader) -> None:
    """Both wait for the row, so both have read it as it was before."""
    leaders = [new_leader("one"), new_leader("two"), new_leader("three")]
    await execute(database, "INSERT INTO chain_leader (chain_id) VALUES ($1)", CHAIN)
    async with asyncio.TaskGroup() as tasks, database.transaction() as holder:
        await holder.execute("SELECT FROM chain_leader FOR UPDATE")
        for leader in leaders:
            tasks.create_task(leader.step())
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        async with database.connection() as connection:
            while await connection.fetchval(waiting) < len(leaders):
                pass
    assert sorted(leader.epoch or 0 for leader in leaders) == [0, 0, 1]


async def test_of_two_at_once_after_a_death(database: Database, new_leader: NewLeader) -> None:
    first = new_leader("first")
    await first.step()
    others = [new_leader(str(number)) for number in range(4)]
    for other in others:
        await other.step()
    await kill_sessions_with_locks(database)
    await asyncio.gather(*(other.step() for other in others))
    assert sorted(other.epoch or 0 for other in others) == [0, 0, 0, 2]


async def test_chains_do_not_share_a_leader(database: Database, new_leader: NewLeader) -> None:
    await add_cursor(database)
    one, other = new_leader("one"), new_leader("two", chain_id=OTHER_CHAIN)
    await one.step()
    await other.step()
    await run_lease_out(database)
    third = new_leader("three", chain_id=OTHER_CHAIN)
    await third.step()
    assert (one.epoch, other.epoch, third.epoch) == (1, 1, 2)
    assert await cursor_epoch(database) == 1, "of its own chain only"


async def test_a_cursor_made_under_an_old_epoch_is_taken_along(
    database: Database, new_leader: NewLeader
) -> None:
    """Of a listener that woke up on a chain without a cursor; it would lock the leader out."""
    leader = new_leader("one")
    await leader.step()
    await add_cursor(database)
    assert await cursor_epoch(database) == 0
    await leader.step()
    assert await cursor_epoch(database) == 1


async def test_every_change_is_told(migrated_url: str, database: Database) -> None:
    heard: list[int | None] = []
    leader = Leader(migrated_url, CHAIN, name="one", on_change=heard.append)
    await leader.step()
    await leader.step()
    await kill_sessions_with_locks(database)
    with pytest.raises(DatabaseUnavailable):
        await leader.step()
    await leader.step()
    await leader.close()
    await leader.close()
    assert heard == [1, None, 2, None]


async def test_no_server(new_leader: NewLeader) -> None:
    leader = new_leader("one", url="postgresql://postgres@/x?host=/nowhere")
    with pytest.raises(DatabaseUnavailable):
        await leader.step()
    assert leader.epoch is None
    await leader.close()


async def test_a_row_that_is_locked_for_long(
    database: Database, new_leader: NewLeader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement is dropped: it must not take the lead later, when nobody listens."""
    monkeypatch.setattr("db.leader.COMMAND_TIMEOUT_S", 0.1)
    leader = new_leader("one")
    await execute(database, "INSERT INTO chain_leader (chain_id) VALUES ($1)", CHAIN)
    async with database.transaction() as holder:
        await holder.execute("SELECT FROM chain_leader FOR UPDATE")
        with pytest.raises(DatabaseUnavailable):
            await leader.step()
    assert await row(database, "SELECT epoch FROM chain_leader") == {"epoch": 0}
    await leader.step()
    assert leader.epoch == 1


async def test_a_black_hole(
    migrated_url: str,
    database: Database,
    new_leader: NewLeader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The leader cannot reach the database, and the database does not know."""
    monkeypatch.setattr("db.leader.COMMAND_TIMEOUT_S", 0.1)
    monkeypatch.setattr("db.leader.CLOSE_TIMEOUT_S", 0.1)
    async with start_database_proxy(migrated_url) as proxy:
        cut_off, other, far = (
            new_leader("one", url=proxy.url),
            new_leader("two"),
            new_leader("three", url=proxy.url),
        )
        await cut_off.step()
        await far.step()
        proxy.black_hole()
        with pytest.raises(DatabaseUnavailable):
            await cut_off.step()
        async with asyncio.timeout(5):
            await far.close()
        await other.step()
        assert (cut_off.epoch, other.epoch) == (None, None), "for the database, its session lives"
        await run_lease_out(database)
        await other.step()
        assert (cut_off.epoch, other.epoch) == (None, 2)
        proxy.restore()
        await cut_off.step()
        assert (cut_off.epoch, other.epoch) == (None, 2)


async def test_the_answer_of_a_take_over_is_lost(
    migrated_url: str, database: Database, new_leader: NewLeader
) -> None:
    await add_cursor(database)
    async with start_database_proxy(migrated_url) as proxy:
        leader = new_leader("one", url=proxy.url)
        proxy.cut_answer_of("UPDATE chain_leader")
        with pytest.raises(DatabaseUnavailable):
            await leader.step()
        assert (leader.epoch, await cursor_epoch(database)) == (None, 1)
        await leader.step()
        assert (leader.epoch, await cursor_epoch(database)) == (2, 2)
