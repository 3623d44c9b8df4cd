"""A sender chooses how many equal transfers his transaction holds; they hold up nothing."""

from collections.abc import Iterator
from typing import Any, Final

import pytest

from db.payment_rows import INSERT_PAYMENTS, columns_of
from db.pool import Database
from tests.integration.db.support import CHAIN, execute, observed
from tests.integration.db.test_mined_again import PRICE, Chain, live

pytestmark = pytest.mark.fault("F16")

MANY: Final = 2000
GENERATIONS: Final = 6


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("decided", [0, 1, MANY])
async def test_thousands_of_equal_transfers_mined_again(
    database: Database, decided: int, plans: str
) -> None:
    """The pool's time limit fails a statement that is cubic in them, whatever its plan."""
    await execute(database, f"ALTER ROLE CURRENT_USER SET plan_cache_mode = {plans}")
    pool = await Database.connect(database.url, size=2)
    try:
        chain = Chain(pool)
        for generation in range(GENERATIONS):
            await chain.mine(*((n + generation, PRICE) for n in range(MANY)))
            if generation == 0:
                await execute(
                    pool, "UPDATE payments SET status = 'ignored' WHERE log_index < $1", decided
                )
            found = await live(pool)
            assert [status for _, status in found].count("ignored") == decided
            assert all(status == "ignored" for _, status in found[:decided])
            await chain.replace()
    finally:
        await pool.close()
        await execute(database, "ALTER ROLE CURRENT_USER RESET plan_cache_mode")


async def test_storing_a_backlog_counts_no_places(database: Database) -> None:
    """Where nothing was orphaned, a range costs one look into an empty index."""
    transfers = columns_of([observed(n + 1) for n in range(1000)])
    async with database.connection() as connection:
        plan = await connection.fetchval(
            "EXPLAIN (ANALYZE, FORMAT JSON) " + INSERT_PAYMENTS.format(condition="true"),
            *(CHAIN, *transfers),
        )
    nodes = list(nodes_of(plan[0]["Plan"]))
    indexes = {node.get("Index Name") for node in nodes}
    assert "payments_orphaned_idx" in indexes
    windows = [node for node in nodes if node["Node Type"] == "WindowAgg"]
    assert windows
    assert all(node["Actual Rows"] == 0 for node in windows)
    scans = [node for node in nodes if node["Node Type"] == "Seq Scan"]
    assert all(node["Actual Loops"] == 0 for node in scans), scans


def nodes_of(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from nodes_of(child)
