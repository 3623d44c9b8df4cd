"""The cursor and the rows that it covers move together, and a log is stored once."""

import asyncio
from collections.abc import Awaitable

import asyncpg
import pytest

from db.cursor import CursorStore
from db.pool import Database
from db.ranges import RangeStore
from oncepaid.domain.chain import BlockRef
from oncepaid.domain.errors import NotLeading
from oncepaid.domain.payments import PaymentId
from tests.integration.db.support import (
    CHAIN,
    EPOCH,
    cursor_at,
    execute,
    first_cursor,
    header,
    observed,
    row,
    rows,
)


@pytest.fixture
async def ledger(database: Database) -> RangeStore:
    """A ledger whose cursor stands at block 0."""
    await first_cursor(database)
    return RangeStore(database, CHAIN)


async def cursor_of(database: Database) -> BlockRef | None:
    return await CursorStore(database, CHAIN).load()


async def stored(database: Database) -> int:
    return int((await row(database, "SELECT count(*) AS n FROM payments"))["n"])


async def test_first_start(database: Database) -> None:
    cursors = CursorStore(database, CHAIN)
    assert await cursors.load() is None
    with pytest.raises(NotLeading):
        await cursors.start_at(header(4), epoch=EPOCH)
    await execute(database, "INSERT INTO chain_leader (chain_id, epoch) VALUES ($1, 1)", CHAIN)
    assert await cursors.start_at(header(5), epoch=EPOCH) == cursor_at(5)
    assert await cursors.start_at(header(9), epoch=EPOCH) == cursor_at(5)
    assert await CursorStore(database, 1).load() is None


async def test_rows_and_cursor_move_together(database: Database, ledger: RangeStore) -> None:
    paid = observed(1_500_000, b"m" * 16, block=header(3))
    moved = await ledger.store_range(cursor_at(0), header(4), [paid, observed(7)], epoch=EPOCH)
    assert (moved.moved, moved.stored) == (True, 2)
    assert await cursor_of(database) == cursor_at(4)
    first, second = await rows(database, "SELECT * FROM payments ORDER BY amount_units DESC")
    log = paid.log
    assert (first["tx_hash"], first["log_index"]) == (log.tx_hash, log.log_index)
    assert (first["block_number"], first["block_hash"]) == (3, log.block.hash)
    assert (first["sender"], first["recipient"]) == (log.sender, log.recipient)
    assert (first["memo"], first["memo_source"]) == (b"m" * 16, "calldata")
    assert (first["status"], first["block_time"]) == ("seen", header(3).time)
    assert (second["memo"], second["memo_source"], second["evidence"]) == (None, None, [])


async def test_empty_range_moves_the_cursor(database: Database, ledger: RangeStore) -> None:
    moved = await ledger.store_range(cursor_at(0), header(100), [], epoch=EPOCH)
    assert (moved.moved, moved.stored) == (True, 0)
    assert await cursor_of(database) == cursor_at(100)


@pytest.mark.parametrize("wrong", [cursor_at(1), header(0, "fork").ref])
async def test_wrong_cursor_stores_nothing(
    database: Database, ledger: RangeStore, wrong: BlockRef
) -> None:
    moved = await ledger.store_range(wrong, header(4), [observed(1)], epoch=EPOCH)
    assert (moved.moved, moved.stored) == (False, 0)
    assert await cursor_of(database) == cursor_at(0)
    assert await stored(database) == 0


async def test_no_cursor_stores_nothing(database: Database) -> None:
    ledger = RangeStore(database, CHAIN)
    with pytest.raises(NotLeading):
        await ledger.store_range(cursor_at(0), header(1), [observed(1)], epoch=EPOCH)
    assert await stored(database) == 0


async def test_same_range_twice_changes_nothing(database: Database, ledger: RangeStore) -> None:
    payments = [observed(n) for n in (1, 2, 3)]
    await ledger.store_range(cursor_at(0), header(4), payments, epoch=EPOCH)
    before = await rows(database, "SELECT * FROM payments ORDER BY id")
    again = await ledger.store_range(cursor_at(0), header(4), payments, epoch=EPOCH)
    assert (again.moved, again.stored) == (False, 0)
    # As after a rescan: the cursor stands lower, the rows are there.
    await execute(
        database, "UPDATE chain_cursor SET block_number = 0, block_hash = $1", header(0).hash
    )
    once_more = await ledger.store_range(cursor_at(0), header(4), payments, epoch=EPOCH)
    assert (once_more.moved, once_more.stored) == (True, 0)
    assert await rows(database, "SELECT * FROM payments ORDER BY id") == before


@pytest.mark.parametrize("log_index", [7, 8], ids=["same log", "another log"])
async def test_transaction_in_another_block(
    database: Database, ledger: RangeStore, log_index: int
) -> None:
    """Mined again, its logs may have other numbers: the same money must not count twice."""
    await ledger.store_range(
        cursor_at(0),
        header(1),
        [observed(5, block=header(1), tx="a", log_index=7)],
        epoch=EPOCH,
    )
    again = observed(5, block=header(2), tx="a", log_index=log_index)
    told = await ledger.store_range(cursor_at(1), header(2), [observed(1), again], epoch=EPOCH)
    assert (told.moved, told.stored, told.is_contradicted) == (False, 0, True)
    assert await cursor_of(database) == cursor_at(1)
    assert await stored(database) == 1
    # Once the old row is orphaned, the new one counts.
    old = await row(database, "SELECT id FROM payments")
    moved = await ledger.store_range(
        cursor_at(1), header(2), [again], epoch=EPOCH, gone=[old["id"]]
    )
    assert (moved.moved, moved.stored, len(moved.orphaned)) == (True, 1, 1)


async def test_several_logs_of_one_transaction(database: Database, ledger: RangeStore) -> None:
    logs = [observed(5, tx="a", log_index=n) for n in (3, 4)]
    assert (await ledger.store_range(cursor_at(0), header(1), logs, epoch=EPOCH)).stored == 2


async def test_hostile_values(database: Database, ledger: RangeStore) -> None:
    hostile = observed(2**256 - 1, log_index=0xFFFFFFE2)
    assert (await ledger.store_range(cursor_at(0), header(1), [hostile], epoch=EPOCH)).stored == 1
    found = await row(database, "SELECT amount_units, log_index FROM payments")
    assert found == {"amount_units": 2**256 - 1, "log_index": 0xFFFFFFE2}


async def test_one_bad_row_stores_none(database: Database, ledger: RangeStore) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await ledger.store_range(cursor_at(0), header(1), [observed(1), observed(0)], epoch=EPOCH)
    assert await cursor_of(database) == cursor_at(0)
    assert await stored(database) == 0


async def test_five_thousand_at_once(database: Database, ledger: RangeStore) -> None:
    payments = [observed(n + 1, b"%016d" % n) for n in range(5000)]
    async with asyncio.timeout(10):
        moved = await ledger.store_range(cursor_at(0), header(50), payments, epoch=EPOCH)
    assert (moved.moved, moved.stored) == (True, 5000)
    total = await row(database, "SELECT sum(amount_units) AS units FROM payments")
    assert total["units"] == sum(range(1, 5001))


async def test_two_listeners_store_a_range_once(database: Database, ledger: RangeStore) -> None:
    payments = [observed(n + 1) for n in range(50)]
    stored_ranges = await asyncio.gather(
        *(ledger.store_range(cursor_at(0), header(2), payments, epoch=EPOCH) for _ in range(4))
    )
    assert sorted((each.moved, each.stored) for each in stored_ranges) == [
        *[(False, 0)] * 3,
        (True, 50),
    ]


@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH + 1])
async def test_under_another_epoch_nothing_is_written(
    database: Database, ledger: RangeStore, epoch: int
) -> None:
    """A leader that slept, at each write that it may wake up in."""
    await ledger.store_range(cursor_at(0), header(3), [observed(1)], epoch=EPOCH)
    before = await _everything(database)
    stale: list[Awaitable[object]] = [
        ledger.store_range(cursor_at(3), header(4), [observed(2)], epoch=epoch),
        ledger.store_range(
            cursor_at(3), header(4), [observed(2)], epoch=epoch, gone=[PaymentId(1)]
        ),
        ledger.rewind(cursor_at(3), header(0), [PaymentId(1)], epoch=epoch),
        ledger.repair(
            3, [observed(2)], [PaymentId(1)], epoch=epoch, checked=3, anchor=cursor_at(3)
        ),
        ledger.mark_finalized(header(0), anchor=cursor_at(3), epoch=epoch),
        ledger.declare_conflict("nothing", epoch=epoch),
    ]
    for write in stale:
        with pytest.raises(NotLeading):
            await write
        assert await _everything(database) == before


async def _everything(database: Database) -> list[list[dict[str, object]]]:
    tables = ("payments", "chain_cursor", "chain_checkpoints")
    return [await rows(database, f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]
