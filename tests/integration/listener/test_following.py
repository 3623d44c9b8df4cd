"""The listener's cursor: where it starts, what ranges it takes, and what it stores of them."""

from typing import Any, Final, Literal

import pytest
from structlog.testing import capture_logs

from db.pool import Database
from listener import exchange
from listener.rpc import HttpRpc
from oncepaid.domain.errors import (
    InconsistentNode,
)
from tests.fakes.blocks import BLOCK_MS, GENESIS_MS, Chain, pay
from tests.fakes.node import FakeNode
from tests.fakes.refusals import BATCH_REFUSALS, RANGE_REFUSALS
from tests.fakes.twists import changed_logs
from tests.integration.listener.rig import (
    PAYER,
    SHOP,
    STRANGER,
    Ear,
    node_and_client,
    rpc_for,
    served_without_gap,
    times_of,
    units_of,
)

ONE_LOG: Final = RANGE_REFUSALS["reth results"]


@pytest.mark.parametrize(
    ("start", "seen", "first_asked"),
    [("latest", [3], 1011), (1010, [2, 3], 1010), (1001, [1, 2, 3], 1001)],
)
async def test_first_starts(
    database: Database,
    start: int | Literal["latest"],
    seen: list[int],
    first_asked: int,
) -> None:
    chain = Chain(first=1000)
    chain.add()
    chain.add(pay(PAYER, SHOP, 1))
    chain.mine(8)
    chain.add(pay(PAYER, SHOP, 2))
    async with node_and_client(chain) as (node, client):
        ear = Ear(database=database, rpc=client, start_block=start)
        await ear.catch_up()
        chain.add(pay(PAYER, SHOP, 3))
        await ear.catch_up()
        assert units_of(await ear.payments()) == seen
        assert node.ranges[0][0] == first_asked
        assert await ear.cursor() == (1011, chain.head.hash)


@pytest.mark.parametrize("start", [0, 1])
async def test_a_start_at_the_beginning(database: Database, start: int) -> None:
    """Block 0 holds no transactions: the cursor may stand on it."""
    chain = Chain()
    chain.add()
    chain.add(pay(PAYER, SHOP, 1))
    async with node_and_client(chain) as (_, client):
        ear = Ear(database=database, rpc=client, start_block=start)
        await ear.catch_up()
        assert units_of(await ear.payments()) == [1]


async def test_a_start_beyond_the_head_waits(
    database: Database, chain: Chain, rpc: HttpRpc
) -> None:
    ear = Ear(database=database, rpc=rpc, start_block=1013)
    with pytest.raises(InconsistentNode, match="no block 1013 yet"):
        await ear.listener.step()
    assert await ear.cursor() is None
    chain.add(pay(PAYER, SHOP, 1))
    chain.add(pay(PAYER, SHOP, 2))
    chain.add(pay(PAYER, SHOP, 3))
    await ear.catch_up()
    assert units_of(await ear.payments()) == [3]


async def test_a_stored_cursor_outweighs_the_setting(chain: Chain, ear: Ear) -> None:
    chain.add(pay(PAYER, SHOP, 1))
    chain.mine(3)
    ear.start_block = 1014
    ear.restart()
    await ear.catch_up()
    assert units_of(await ear.payments()) == [1]


async def test_only_what_is_ours_is_stored(chain: Chain, ear: Ear) -> None:
    chain.add(pay(PAYER, STRANGER, 1), pay(PAYER, SHOP, 2))
    await ear.catch_up()
    (row,) = await ear.payments()
    block = chain.head
    assert (row["sender"], row["recipient"], row["amount_units"]) == (PAYER, SHOP, 2)
    assert (row["block_number"], row["block_hash"]) == (block.number, block.hash)
    assert times_of([row]) == [block.timestamp_ms]
    assert (row["tx_hash"], row["log_index"]) == (block.logs[1]["transactionHash"], 1)


async def test_every_recipient(chain: Chain, ear: Ear) -> None:
    chain.add(pay(PAYER, STRANGER, 1), pay(PAYER, SHOP, 2))
    ear.recipients = None
    ear.restart()
    await ear.catch_up()
    assert units_of(await ear.payments()) == [1, 2]


@pytest.mark.parametrize("by", ["blocks", "logs"])
async def test_refused_ranges_are_halved_without_a_gap(
    chain: Chain, node: FakeNode, ear: Ear, by: str
) -> None:
    sent: list[int] = []
    for name, refusal in RANGE_REFUSALS.items():
        ear.restart()
        node.ranges.clear()
        before, refused = chain.head.number, node.refused
        for number in range(60):
            sent += [len(sent) + 1] if number % 4 == 0 else []
            chain.add(*([pay(PAYER, SHOP, sent[-1])] if number % 4 == 0 else []))
        node.max_blocks = (7, refusal) if by == "blocks" else None
        node.max_logs = (2, refusal) if by == "logs" else None
        await ear.catch_up()
        assert node.refused > refused, name
        assert units_of(await ear.payments()) == sent, name
        assert served_without_gap(node, before + 1, chain.head.number), name
        assert await ear.cursor() == (chain.head.number, chain.head.hash)


async def test_ranges_widen_again(chain: Chain, node: FakeNode, ear: Ear) -> None:
    chain.mine(64)
    node.max_blocks = (5, RANGE_REFUSALS["Alchemy blocks"])
    await ear.catch_up()
    node.straighten()
    node.ranges.clear()
    before = chain.head.number
    chain.mine(1200)
    await ear.catch_up()
    assert served_without_gap(node, before + 1, chain.head.number)
    assert max(last - first + 1 for first, last in node.ranges) > 100


async def test_a_fixed_limit_is_seldom_run_into(chain: Chain, node: FakeNode, ear: Ear) -> None:
    chain.mine(1000)
    node.max_blocks = (10, RANGE_REFUSALS["Alchemy blocks"])
    await ear.catch_up()
    assert len(node.ranges) < 200
    assert node.refused < len(node.ranges) / 2


async def test_a_wide_backlog_goes_by_the_setting(
    database: Database, chain: Chain, node: FakeNode, rpc: HttpRpc
) -> None:
    chain.mine(100)
    ear = Ear(database=database, rpc=rpc, start_block=1011, max_range_blocks=16)
    await ear.catch_up()
    assert served_without_gap(node, 1011, chain.head.number)
    assert {last - first + 1 for first, last in node.ranges[:-1]} == {16}


async def test_one_block_that_is_refused_is_told(chain: Chain, node: FakeNode, ear: Ear) -> None:
    chain.add(pay(PAYER, SHOP, 1), pay(PAYER, SHOP, 2))
    node.max_logs = (1, ONE_LOG)
    with pytest.raises(InconsistentNode, match="logs of a single block"):
        await ear.catch_up()
    assert await ear.payments() == []
    node.straighten()
    await ear.catch_up()
    assert units_of(await ear.payments()) == [1, 2]


async def test_a_body_that_is_too_large_narrows_the_range(
    chain: Chain, node: FakeNode, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "MAX_BODY_BYTES", 8_000)
    for number in range(40):
        chain.add(pay(PAYER, SHOP, number + 1))
    await ear.catch_up()
    assert units_of(await ear.payments()) == [number + 1 for number in range(40)]


async def test_small_batches_are_enough(chain: Chain, node: FakeNode, ear: Ear) -> None:
    for number in range(30):
        chain.add(pay(PAYER, SHOP, number + 1))
    node.max_batch = (4, BATCH_REFUSALS["proxyd"])
    await ear.catch_up()
    assert units_of(await ear.payments()) == [number + 1 for number in range(30)]


async def test_missing_timestamps_are_asked_for(chain: Chain, node: FakeNode, ear: Ear) -> None:
    first = chain.add(pay(PAYER, SHOP, 1), pay(PAYER, SHOP, 2), step_ms=12_000)
    second = chain.add(pay(PAYER, SHOP, 3), step_ms=34_000)
    chain.mine(2)
    node.twist("eth_getLogs", changed_logs(blockTimestamp=None, blockTimestampMs=None))
    node.calls.clear()
    await ear.catch_up()
    times = times_of(await ear.payments())
    assert times == [first.timestamp_ms, first.timestamp_ms, second.timestamp_ms]
    # The head, both ends of the range, and each of the two paying blocks once.
    assert node.calls["eth_getBlockByNumber"] == 5


async def test_timestamps_in_whole_seconds(chain: Chain, node: FakeNode, ear: Ear) -> None:
    block = chain.add(pay(PAYER, SHOP, 1), step_ms=BLOCK_MS + 1000)
    chain.mine(1)
    node.twist("eth_getLogs", changed_logs(blockTimestampMs=None))
    await ear.catch_up()
    (row,) = await ear.payments()
    assert row["block_time"].timestamp() == block.timestamp_ms // 1000


@pytest.mark.parametrize(
    "stamp",
    [
        {"blockTimestamp": "0x0", "blockTimestampMs": None},
        {"blockTimestamp": "0x0", "blockTimestampMs": "0x0"},
        {"blockTimestampMs": hex(GENESIS_MS + 500)},
        {"blockTimestampMs": hex(GENESIS_MS + 60_000)},
        {"blockTimestampMs": hex(2**62)},
    ],
    ids=["no seconds", "zero", "before the cursor", "after the range", "far future"],
)
async def test_impossible_timestamps_are_asked_for(
    chain: Chain, node: FakeNode, ear: Ear, stamp: dict[str, Any]
) -> None:
    """A log's time outside of its range is not believed: lateness is judged by it."""
    block = chain.add(pay(PAYER, SHOP, 1), step_ms=12_000)
    chain.mine(2)
    node.twist("eth_getLogs", changed_logs(**stamp))
    node.calls.clear()
    await ear.catch_up()
    (row,) = await ear.payments()
    assert times_of([row]) == [block.timestamp_ms]
    assert node.calls["eth_getBlockByNumber"] == 4


async def test_logs_of_one_block_that_disagree_about_its_time(
    chain: Chain, node: FakeNode, ear: Ear
) -> None:
    chain.mine(1)
    block = chain.add(pay(PAYER, SHOP, 1), pay(PAYER, SHOP, 2), step_ms=12_000)
    chain.mine(1)
    odd = [hex(block.timestamp_ms - 9_000), hex(block.timestamp_ms - 8_000)]
    node.twist(
        "eth_getLogs",
        lambda _, logs: [
            {**log, "blockTimestampMs": stamp} for log, stamp in zip(logs, odd, strict=True)
        ],
    )
    await ear.catch_up()
    assert times_of(await ear.payments()) == [block.timestamp_ms] * 2


async def test_the_same_range_twice_changes_nothing(
    database: Database, chain: Chain, ear: Ear
) -> None:
    chain.add(pay(PAYER, SHOP, 1))
    await ear.catch_up()
    rows = await ear.payments()
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE chain_cursor SET block_number = 1010, block_hash = $1", chain.blocks[10].hash
        )
    ear.restart()
    await ear.catch_up()
    assert await ear.payments() == rows
    assert await ear.cursor() == (1011, chain.head.hash)


async def test_two_listeners_store_each_payment_once(
    database: Database, chain: Chain, rpc: HttpRpc, ear: Ear
) -> None:
    other = Ear(database=database, rpc=rpc)
    await other.catch_up()
    for number in range(5):
        chain.add(pay(PAYER, SHOP, number + 1))
        await (ear, other)[number % 2].catch_up()
    await ear.catch_up()
    await other.catch_up()
    assert units_of(await ear.payments()) == [1, 2, 3, 4, 5]


async def test_a_refused_range_does_not_change_nodes(
    database: Database, chain: Chain, node: FakeNode, second_node: FakeNode
) -> None:
    async with rpc_for(node.url, second_node.url) as pair:
        ear = Ear(database=database, rpc=pair)
        await ear.catch_up()
        chain.mine(20)
        node.max_blocks = (3, RANGE_REFUSALS["proxyd"])
        await ear.catch_up()
        assert served_without_gap(node, 1011, 1030)
        assert second_node.posts == 0


async def test_the_events_of_a_start_and_a_payment(
    database: Database, chain: Chain, rpc: HttpRpc
) -> None:
    with capture_logs() as logs:
        ear = Ear(database=database, rpc=rpc)
        await ear.catch_up()
        chain.add(pay(PAYER, SHOP, 1))
        await ear.catch_up()
        await ear.catch_up()
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("listener.first_start", "info"),
        ("payment.seen", "info"),
    ]
    assert (logs[0]["cursor"], logs[1]["usdc"], logs[1]["block_number"]) == (1010, "0.000001", 1011)
    value = ear.metrics.registry.get_sample_value
    assert value("oncepaid_payments_total", {"status": "seen", "reason": ""}) == 1
    assert value("oncepaid_stage_seconds_count", {"stage": "seen"}) == 1
    assert value("oncepaid_chain_cursor_block") == value("oncepaid_chain_head_block") == 1011
    stamp = chain.head.timestamp_ms / 1000
    assert value("oncepaid_chain_cursor_timestamp_seconds") == pytest.approx(stamp)
