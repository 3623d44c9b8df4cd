"""When the faults have ended: everything that was paid for is done, and the ledger is the chain."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from devchain.rpc import Rpc
from tests.acceptance.conftest import NewJob, World
from tests.faults.soundness import assert_at_rest, assert_sound, unrest

PATIENCE_S: Final = 30.0
BETWEEN_S: Final = 0.02


async def until(
    holds: Callable[[], Awaitable[bool]], what: str, timeout_s: float = PATIENCE_S
) -> None:
    """Wait for what no event tells of, such as a state of the rows; fails with `what`."""
    try:
        async with asyncio.timeout(timeout_s):
            while not await holds():
                # The rows send no signal; between two questions the daemons get the processor.
                await asyncio.to_thread(time.sleep, BETWEEN_S)
    except TimeoutError:
        raise AssertionError(f"it never came that {what}") from None


async def new_paid_job(world: World) -> NewJob:
    """Insert a job and pay it, whoever may see it."""
    job = await world.insert_job()
    await world.pay(job)
    return job


async def until_done(world: World, *jobs: NewJob, timeout_s: float = PATIENCE_S) -> None:
    """Wait until jobs are completed, whoever does them."""

    async def are_done() -> bool:
        left = await world.sql.fetchval(
            "SELECT count(*) FROM jobs WHERE id = ANY($1) AND status <> 'completed'",
            [job.id for job in jobs],
        )
        return not left

    await until(are_done, f"{len(jobs)} jobs are done", timeout_s)


async def cursor_of(world: World) -> tuple[int, str]:
    """Return the cursor's number and hash."""
    row = await world.sql.fetchrow("SELECT block_number, block_hash FROM chain_cursor")
    assert row is not None
    return row["block_number"], row["block_hash"]


async def until_at_head(world: World) -> None:
    """Wait until the cursor stands on the node's head."""
    rpc: Rpc = world.stack.rpc

    async def is_at_head() -> bool:
        head: dict[str, Any] = await rpc.call("eth_getBlockByNumber", "latest", False)
        return await cursor_of(world) == (int(head["number"], 16), head["hash"])

    await until(is_at_head, "the cursor is at the head")


async def check_at_rest(world: World) -> None:
    """Wait until nothing is left to do, and check all that must hold then (DESIGN §9)."""

    async def is_at_rest() -> bool:
        return await unrest(world.sql) is None

    await until_at_head(world)
    await until(is_at_rest, "everything is done")
    await assert_at_rest(world.sql)
    await assert_sound(world.sql, world.stack.usdc, world.stack.merchant)
