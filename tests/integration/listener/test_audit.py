"""The audit beside a node: each broken row is found, as what it is, and nothing else is."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from db.audit import AuditStore, Note, OperatorStore
from db.chain_state import ChainState
from db.pool import Database
from db.ranges import RangeStore
from listener.auditor import Audit, Auditor
from listener.ranges import RangeMoved
from listener.rescanner import Rescanned, Rescanner
from oncepaid.domain.auditing import Check, Invariant
from oncepaid.domain.errors import NotLeading
from tests.fakes.blocks import CHAIN_ID, Chain, hash_of, pay
from tests.fakes.node import FakeNode
from tests.fakes.refusals import Refusal
from tests.integration.listener.rig import PAYER, SHOP, STRANGER, Ear, rpc_for

COPIED = (
    "chain_id, tx_hash, log_index, block_number, block_hash, block_time, sender, recipient,"
    " amount_units, status, job_id, matched_at, credited_at"
)
TOO_WIDE = Refusal(code=-32602, text="block range is too wide: max results 10000")


async def nothing() -> None:
    pass


def audit_of(ear: Ear, pause: Callable[[], Awaitable[None]] = nothing) -> Audit:
    books = AuditStore(ear.database, CHAIN_ID)
    return Audit(ear.rpc, RangeStore(ear.database, CHAIN_ID), books, ear.watch, pause=pause)


async def state_of(ear: Ear) -> ChainState:
    state = await RangeStore(ear.database, CHAIN_ID).state()
    assert state is not None
    return state


async def checks(
    ear: Ear, pause: Callable[[], Awaitable[None]] = nothing
) -> dict[Invariant, Check]:
    state = await state_of(ear)
    assert state.start is not None
    found = await audit_of(ear, pause).run(state, state.start + 1, state.cursor.number)
    return {check.invariant: check for check in found}


async def broken(ear: Ear) -> set[Invariant]:
    return {name for name, check in (await checks(ear)).items() if check.violations}


async def execute(ear: Ear, sql: str, *arguments: object) -> None:
    async with ear.database.connection() as connection:
        await connection.execute(sql, *arguments)


@pytest.fixture
async def paid(chain: Chain, ear: Ear) -> Ear:
    """Two payments in a row of blocks, the first of them credited to a job."""
    chain.add(pay(PAYER, SHOP, 5))
    chain.mine(3)
    chain.add(pay(PAYER, SHOP, 6), pay(STRANGER, PAYER, 100))
    chain.mine(2)
    await ear.catch_up()
    await execute(
        ear,
        "INSERT INTO jobs (price_usdc, input_data, status, credited_units)"
        " VALUES (0.000005, '{}', 'paid', 5)",
    )
    await execute(
        ear,
        "UPDATE payments SET status = 'credited', job_id = (SELECT max(id) FROM jobs),"
        " matched_at = now(), credited_at = now() WHERE amount_units = 5",
    )
    return ear


async def test_nothing_is_wrong(paid: Ear) -> None:
    """Every invariant has its line; the node has no balances to tell."""
    found = await checks(paid)
    assert set(found) == set(Invariant)
    assert {name: check.state for name, check in found.items() if check.state != "ok"} == {
        Invariant.BALANCE: "not checked"
    }
    assert "does not know the balance" in (found[Invariant.BALANCE].not_checked or "")
    assert found[Invariant.COMPLETENESS].checked == "blocks 1011 to 1017: 2 payments"
    assert found[Invariant.CREDIT_ON_CHAIN].checked.endswith("1 credited")
    assert found[Invariant.SUMS].checked.endswith("0.000011 USDC came in")


@pytest.mark.parametrize(
    ("sql", "invariant", "words"),
    [
        ("DELETE FROM payments WHERE amount_units = 6", "completeness", "are no payment"),
        (
            "UPDATE payments SET status = 'orphaned' WHERE amount_units = 6",
            "completeness",
            "are no payment",
        ),
        (
            f"INSERT INTO payments ({COPIED}) SELECT {COPIED.replace('log_index', '99')}"
            " FROM payments WHERE amount_units = 6",
            "completeness",
            "is not on the chain",
        ),
        ("UPDATE payments SET amount_units = 7 WHERE amount_units = 6", "sums", "units 7, not 6"),
        ("UPDATE payments SET sender = recipient WHERE amount_units = 6", "sums", "has sender 0x"),
        (
            f"INSERT INTO payments ({COPIED})"
            f" SELECT {COPIED.replace('block_hash', '$1').replace('tx_hash', '$1')}"
            " FROM payments WHERE amount_units = 5;"
            "UPDATE jobs SET credited_units = 10",
            "credit_on_chain",
            "is credited, and is not on the chain",
        ),
        ("UPDATE jobs SET credited_units = 4", "credit_of_job", "come to 0.000005"),
        ("UPDATE chain_cursor SET block_hash = $1", "cursor", "where the cursor stands"),
        ("UPDATE chain_cursor SET finalized_number = 2000", "cursor", "noted as finalized"),
        (
            "UPDATE chain_checkpoints SET block_hash = $1 WHERE block_number = 1010",
            "cursor",
            "checkpoint 1010",
        ),
    ],
)
async def test_a_broken_row(paid: Ear, sql: str, invariant: str, words: str) -> None:
    for statement in sql.split(";"):
        await execute(paid, statement, *([hash_of("nowhere")] if "$1" in statement else []))
    found = await checks(paid)
    assert {name for name, check in found.items() if check.violations} == {invariant}
    (violation,) = found[Invariant(invariant)].violations
    assert words in violation.text


async def test_a_payment_above_the_cursor(chain: Chain, paid: Ear) -> None:
    low = chain.get(1013)
    assert low is not None
    await execute(
        paid,
        "UPDATE chain_cursor SET block_number = 1013, block_hash = $1, checked_number = 1013",
        low.hash,
    )
    found = await checks(paid)
    assert {name for name, check in found.items() if check.violations} == {Invariant.CURSOR}
    (violation,) = found[Invariant.CURSOR].violations
    assert "the cursor stands on 1013" in violation.text


async def test_a_cursor_off_the_chain_leaves_the_rest_unchecked(chain: Chain, paid: Ear) -> None:
    """After a fork that no daemon has followed yet, only that is said."""
    chain.reorg(3)
    chain.mine(1)
    found = await checks(paid)
    assert {name for name, check in found.items() if check.violations} == {Invariant.CURSOR}
    assert found[Invariant.COMPLETENESS].not_checked is not None


async def test_an_answer_that_is_short_breaks_nothing(paid: Ear, node: FakeNode) -> None:
    """The logs leave a payment out; the receipt has it."""
    node.twist("eth_getLogs", lambda _, __: [])
    assert await broken(paid) == set()


async def test_a_transfer_that_only_another_node_tells_of(
    database: Database, chain: Chain, node: FakeNode, second_node: FakeNode
) -> None:
    """What was read by the one is audited by the other."""
    async with rpc_for(node.url, second_node.url) as pair:
        ear = Ear(database=database, rpc=pair)
        await ear.catch_up()
        node.twist("eth_getLogs", lambda _, __: [])
        chain.add(pay(PAYER, SHOP, 5))
        chain.mine(1)
        await ear.catch_up()
        assert await ear.payments() == []
        assert await broken(ear) == {Invariant.COMPLETENESS}


async def test_what_is_repaired_meanwhile_is_not_told(paid: Ear) -> None:
    """A daemon beside it was in the middle of something."""
    await execute(paid, "UPDATE jobs SET credited_units = 4")
    await execute(paid, "UPDATE payments SET amount_units = 7 WHERE amount_units = 6")
    paused = []

    async def repair() -> None:
        paused.append(True)
        await execute(paid, "UPDATE jobs SET credited_units = 5")
        await execute(paid, "UPDATE payments SET amount_units = 6 WHERE amount_units = 7")

    found = await checks(paid, repair)
    assert paused == [True]
    assert [check for check in found.values() if check.violations] == []


async def test_what_breaks_meanwhile_is_not_told_yet(paid: Ear) -> None:
    """Only what was wrong both times."""
    await execute(paid, "UPDATE payments SET amount_units = 7 WHERE amount_units = 6")

    async def disturb() -> None:
        await execute(paid, "UPDATE jobs SET credited_units = 4")

    found = await checks(paid, disturb)
    assert {name for name, check in found.items() if check.violations} == {Invariant.SUMS}


async def test_small_ranges_are_all_read(paid: Ear, node: FakeNode) -> None:
    node.max_blocks = (2, TOO_WIDE)
    progress: list[int] = []
    state = await state_of(paid)
    await execute(paid, "DELETE FROM payments WHERE amount_units = 6")
    found = await audit_of(paid).run(state, 1011, 1017, on_progress=progress.append)
    assert sum(progress) == 7
    assert len(progress) >= 4
    assert {check.invariant for check in found if check.violations} == {Invariant.COMPLETENESS}


async def test_every_recipient_has_no_balance(database: Database, chain: Chain, ear: Ear) -> None:
    everyone = Ear(database=database, rpc=ear.rpc, recipients=None)
    chain.add(pay(PAYER, SHOP, 5), pay(PAYER, STRANGER, 6))
    await everyone.catch_up()
    found = await checks(everyone)
    assert "every recipient is observed" in (found[Invariant.BALANCE].not_checked or "")
    assert found[Invariant.COMPLETENESS].checked.endswith("2 payments")


def counted(ear: Ear) -> dict[str, float]:
    """Return the violations that the metric tells of."""
    samples = {
        name: ear.metrics.registry.get_sample_value(
            "oncepaid_invariant_violations_total", {"invariant": name}
        )
        for name in Invariant
    }
    assert None not in samples.values()
    return {name: value for name, value in samples.items() if value}


def stage_of(ear: Ear) -> Auditor:
    return Auditor(audit_of(ear), lead=ear.lead, metrics=ear.metrics)


async def test_the_stage_tells_of_each_violation_once(
    chain: Chain, paid: Ear, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = stage_of(paid)
    await execute(paid, "UPDATE chain_cursor SET checked_number = block_number")
    assert await stage.step() is False
    assert counted(paid) == {}
    await execute(paid, "UPDATE jobs SET credited_units = 4")
    for _ in range(2):
        await stage.step()
    assert counted(paid) == {"credit_of_job": 1}
    assert capsys.readouterr().out.count("invariant.violated") == 1
    await execute(paid, "UPDATE payments SET job_id = NULL, status = 'seen'")
    await stage.step()
    assert counted(paid) == {"credit_of_job": 1}
    chain.add(pay(PAYER, SHOP, 9))
    await paid.catch_up()
    await execute(paid, "DELETE FROM payments WHERE amount_units = 9")
    await stage.step()
    assert counted(paid) == {"credit_of_job": 1}, "it was not asked twice yet"
    await execute(paid, "UPDATE chain_cursor SET checked_number = block_number")
    await stage.step()
    assert counted(paid) == {"credit_of_job": 1, "completeness": 1}


async def test_the_stage_looks_at_new_blocks_only(chain: Chain, paid: Ear, node: FakeNode) -> None:
    """A few requests each time, and only by who leads."""
    stage = stage_of(paid)
    await execute(paid, "UPDATE chain_cursor SET checked_number = block_number")
    await stage.step()
    chain.mine(20)
    await paid.catch_up()
    await execute(paid, "UPDATE chain_cursor SET checked_number = block_number")
    node.ranges.clear()
    posts = node.posts
    await stage.step()
    assert set(node.ranges) == {(1018, 1037)}
    assert node.posts - posts <= 8
    posts = node.posts
    paid.lead.epoch = None
    await stage.step()
    assert node.posts == posts


async def test_the_stage_lets_a_node_in_trouble_be(paid: Ear, node: FakeNode) -> None:
    """Whatever the node does, the stage never raises and never counts."""
    await execute(paid, "UPDATE chain_cursor SET checked_number = block_number")
    node.twist("eth_getBlockByNumber", lambda _, __: None)
    assert await stage_of(paid).step() is False
    assert counted(paid) == {}


async def test_the_stage_is_silent_in_a_conflict(paid: Ear) -> None:
    await execute(paid, "UPDATE chain_cursor SET conflict = 'x', block_hash = $1", hash_of("x"))
    await stage_of(paid).step()
    assert counted(paid) == {}


class Desk:
    """An operator who rescans."""

    def __init__(self, ear: Ear) -> None:
        store = OperatorStore(ear.database, CHAIN_ID)

        async def repair(step: Any, missing: Any, gone: Any, anchor: Any) -> Any:
            note = Note(who="alice", action="rescan")
            return await store.repair(
                step.first, step.last, missing, gone, anchor=anchor, note=note
            )

        ledger = RangeStore(ear.database, CHAIN_ID)
        self._rescanner = Rescanner(ear.rpc, ledger, ear.watch, repair)

    async def rescan(self, first: int, last: int) -> list[Rescanned]:
        done = []
        while first <= last:
            done.append(await self._rescanner.repair_next(first, last))
            first = done[-1].last + 1
        return done


async def test_a_rescan_repairs_once(paid: Ear, node: FakeNode) -> None:
    await execute(
        paid,
        f"INSERT INTO payments ({COPIED}) SELECT {COPIED.replace('log_index', '99')}"
        " FROM payments WHERE amount_units = 6",
    )
    await execute(paid, "DELETE FROM payments WHERE amount_units = 6 AND log_index <> 99")
    assert await broken(paid) == {Invariant.COMPLETENESS}
    node.max_blocks = (3, TOO_WIDE)
    done = await Desk(paid).rescan(1000, 1017)
    assert [payment.log.units for one in done for payment in one.added] == [6]
    assert [payment.units for one in done for payment in one.orphaned] == [6]
    assert await broken(paid) == set()
    again = await Desk(paid).rescan(1000, 1017)
    assert [one for one in again if one.added or one.orphaned] == []


async def test_a_rescan_below_the_start(chain: Chain, database: Database, ear: Ear) -> None:
    """What was paid before the first start is found as well."""
    chain.add(pay(PAYER, SHOP, 5))
    late = Ear(database=database, rpc=ear.rpc)
    await execute(late, "DELETE FROM chain_checkpoints")
    await execute(late, "DELETE FROM chain_cursor")
    chain.mine(3)
    await late.catch_up()
    assert await late.payments() == []
    await Desk(late).rescan(1000, 1014)
    assert [row["amount_units"] for row in await late.payments()] == [5]


async def test_a_rescan_of_another_chain_changes_nothing(chain: Chain, paid: Ear) -> None:
    """Nobody followed the fork yet: a rescan must not half do it."""
    before = await paid.payments()
    chain.reorg(6, pay(STRANGER, SHOP, 8))
    chain.mine(1)
    with pytest.raises(RangeMoved, match="where the cursor stands"):
        await Desk(paid).rescan(1011, 1017)
    assert await paid.payments() == before


async def test_a_rescan_that_a_reorg_overtakes(chain: Chain, paid: Ear) -> None:
    """The listener follows the fork while the range is read: it must be read again."""
    store = OperatorStore(paid.database, CHAIN_ID)
    await execute(paid, "DELETE FROM payments WHERE amount_units = 6")

    async def overtaken(step: Any, missing: Any, gone: Any, anchor: Any) -> Any:
        assert [payment.log.units for payment in missing] == [6]
        chain.reorg(6)
        chain.mine(1)
        await paid.catch_up()
        note = Note(who="alice", action="rescan")
        return await store.repair(step.first, step.last, missing, gone, anchor=anchor, note=note)

    ledger = RangeStore(paid.database, CHAIN_ID)
    with pytest.raises(NotLeading):
        await Rescanner(paid.rpc, ledger, paid.watch, overtaken).repair_next(1011, 1017)
    assert [row["amount_units"] for row in await paid.payments()] == [5]
