"""Forks of a real chain (anvil), which tells of them by nothing but other block hashes.

Where nothing else is said the daemon is one process that lives through many scenes.
"""

import json
from itertools import product
from typing import Final

import pytest

from devchain.anvil import Placed, mine, reorg, roll_back
from devchain.daemon import Daemon
from tests.acceptance.conftest import World, world
from tests.faults.at_rest import check_at_rest, cursor_of, until, until_at_head
from tests.faults.reorg_scenes import CHAIN, CLAUDE, LATE_S, Fate, Phase, Scene
from tests.scoring import Score

__all__ = ["world"]

DEPTHS: Final = (1, 3, 12, 36, 80)


@pytest.mark.fault("F15", "F16")
async def test_a_payment_leaves_the_chain_in_each_phase_of_its_job(world: World) -> None:
    """Every phase, each with another fate and depth."""
    async with world.daemon(chain=CHAIN, claude=CLAUDE) as daemon:
        scene = Scene(world, daemon)
        await scene.play(Phase.BEFORE_CREDIT, Fate.REPLACED, 3)
        await scene.play(Phase.BEFORE_GENERATION, Fate.DROPPED, 1)
        await scene.play(Phase.DURING_GENERATION, Fate.MOVED, 3)
        await scene.play(Phase.DURING_GENERATION, Fate.DROPPED, 2)
        await scene.play(Phase.AFTER_COMPLETION, Fate.MOVED, 1)
        await scene.play(Phase.AFTER_COMPLETION, Fate.REPLACED, 12)
        await _moved_three_times(scene)
        await _shorter_and_grown_again(scene)
        await check_at_rest(world)


@pytest.mark.slow
@pytest.mark.fault("F15", "F16")
@pytest.mark.parametrize("depth", DEPTHS)
async def test_every_phase_and_every_fate(world: World, score: Score, depth: int) -> None:
    async with world.daemon(chain=CHAIN, claude=CLAUDE) as daemon:
        scene = Scene(world, daemon)
        for phase, fate in product(Phase, Fate):
            await scene.play(phase, fate, depth)
            score(1)
        await check_at_rest(world)


async def _moved_three_times(scene: Scene) -> None:
    """Three forks with nothing in between that the daemon would have to keep up with."""
    paid = await scene.bring_to(Phase.AFTER_COMPLETION)
    await mine(scene.rpc, 2)
    for _ in range(3):
        await scene.fork(paid, Fate.MOVED, 3)
    await scene.all_sound(paid.job)


async def _shorter_and_grown_again(scene: Scene) -> None:
    """A head that falls back is waited for; once the chain is past the cursor it is a fork."""
    paid = await scene.bring_to(Phase.AFTER_COMPLETION)
    await mine(scene.rpc, 5)
    await until_at_head(scene.world)
    cursor, reorgs = await cursor_of(scene.world), _reorgs(scene)
    await roll_back(scene.rpc, 6)
    looks = await _looks_at_the_head(scene)

    async def has_looked() -> bool:
        return await _looks_at_the_head(scene) >= looks + 3

    await until(has_looked, "the daemon has looked at the lower head")
    assert (await cursor_of(scene.world), _reorgs(scene)) == (cursor, reorgs)
    await mine(scene.rpc, 7)
    await scene.check_gone(Phase.AFTER_COMPLETION, paid)
    assert _reorgs(scene) == reorgs + 1
    await scene.pay(paid.job)
    await scene.all_sound(paid.job)


def _reorgs(scene: Scene) -> int:
    return sum(event["event"] == "chain.reorg" for event in scene.daemon.events)


async def _looks_at_the_head(scene: Scene) -> float:
    samples = await scene.daemon.metrics()
    return sum(
        value
        for name, value in samples.items()
        if name.startswith("oncepaid_rpc_requests_total") and "eth_getBlockByNumber" in name
    )


@pytest.mark.fault("F15", "F16")
async def test_a_payment_that_leaves_the_chain_while_the_daemon_is_down(world: World) -> None:
    """Three jobs in three phases; the chain that the daemon finds has none of their payments."""
    await _while_down(world, Fate.DROPPED, 4)


@pytest.mark.slow
@pytest.mark.fault("F15", "F16")
@pytest.mark.parametrize(("fate", "depth"), [(Fate.DROPPED, 80), (Fate.MOVED, 4), (Fate.MOVED, 36)])
async def test_a_deep_fork_while_the_daemon_is_down(world: World, fate: Fate, depth: int) -> None:
    await _while_down(world, fate, depth)


async def _while_down(world: World, fate: Fate, depth: int) -> None:
    phases = (Phase.AFTER_COMPLETION, Phase.BEFORE_CREDIT, Phase.DURING_GENERATION)
    async with world.daemon(chain=CHAIN, claude=CLAUDE) as daemon:
        scene = Scene(world, daemon)
        all_paid = [await scene.bring_to(phase) for phase in phases]
        await mine(scene.rpc, depth - len(phases))
        await until_at_head(scene.world)
        assert await daemon.stop() == 0
    raw = [await scene.rpc.call("eth_getRawTransactionByHash", paid.tx_hash) for paid in all_paid]
    moved = [Placed(transaction=one, block=number) for number, one in enumerate(raw, start=1)]
    await reorg(scene.rpc, depth, moved if fate is Fate.MOVED else [])
    world.claude.release()
    done, waiting, given_back = [paid.job for paid in all_paid]
    async with world.daemon(chain=CHAIN, claude=CLAUDE) as daemon:
        scene = Scene(world, daemon)
        await daemon.wait_for("payment.orphaned", count=3, timeout_s=LATE_S)
        if fate is Fate.DROPPED:
            await daemon.wait_for("payment.lost", tx_hash=all_paid[0].tx_hash, timeout_s=LATE_S)
            assert (await world.job(waiting))["status"] == "pending"
            # No work begins before the chain was looked at: it was given back, and is not lost.
            await daemon.wait_for("job.reopened", job_uuid=given_back.uuid)
            for paid in all_paid:
                await scene.pay(paid.job)
        await scene.ripen(waiting)
        await daemon.wait_for("job.completed", count=2, timeout_s=LATE_S)
        for job in (done, waiting, given_back):
            await scene.until_sound(job, calls=1 + (job is given_back))
        await check_at_rest(world)
    assert await _ends(world) == {
        done.id: ["succeeded"],
        waiting.id: ["succeeded"],
        given_back.id: ["cancelled", "succeeded"],
    }


async def _ends(world: World) -> dict[int, list[str]]:
    """Return how the Claude calls ended, by job."""
    rows = await world.sql.fetch(
        "SELECT job_id, array_agg(outcome ORDER BY id) AS ends FROM generation_attempts GROUP BY 1"
    )
    return {row["job_id"]: list(row["ends"]) for row in rows}


@pytest.mark.fault("F15")
async def test_a_fork_below_what_was_final_stops_crediting(world: World) -> None:
    """The node's tags count here. Money that still stands is not credited either."""
    quick = {"poll_interval_s": 0.2}
    async with world.daemon("--role", "listener", chain=quick) as listener:
        job = await world.insert_job()
        tx_hash = await world.pay(job)
        await mine(world.stack.rpc, 10)
        scene = Scene(world, listener)
        await until_at_head(scene.world)
        await _mark_final(world, behind=4)
        await _fork(scene, 8)
        refusal = await listener.wait_for("stage.failing", stage="listen", timeout_s=LATE_S)
        assert (refusal["level"], "was final" in refusal["reason"]) == ("error", True)
        assert await _reasons(listener) == {"listen": refusal["reason"]}
        async with world.daemon("--role", "worker", chain=quick) as worker:
            await worker.wait_for("payment.matched", tx_hash=tx_hash, timeout_s=LATE_S)
            await worker.wait_for("stage.failing", stage="settle", timeout_s=LATE_S)
            assert "settle" in await _reasons(worker)
    assert (await world.payment(tx_hash))["status"] == "matched"
    assert (await world.job(job))["status"] == "pending"


async def _mark_final(world: World, *, behind: int) -> None:
    """What the daemon does every 30 s; `test_what_was_final_is_marked_in_time` waits for that."""
    number = (await cursor_of(world))[0] - behind
    block = await world.stack.rpc.call("eth_getBlockByNumber", hex(number), False)
    await world.sql.execute(
        """
        WITH marked AS (
            UPDATE chain_cursor SET finalized_number = $1 RETURNING chain_id
        )
        INSERT INTO chain_checkpoints (chain_id, block_number, block_hash, block_time)
        SELECT chain_id, $1, $2, to_timestamp($3) FROM marked
            -- A range may have ended there.
            ON CONFLICT DO NOTHING
        """,
        number,
        block["hash"],
        int(block["timestamp"], 16),
    )


async def _fork(scene: Scene, depth: int) -> None:
    """Replace empty blocks; without any transaction the new ones would be the same again."""
    await reorg(scene.rpc, depth, [Placed(transaction=await scene.transfer_between_strangers())])


async def _reasons(daemon: Daemon) -> dict[str, str]:
    status, text = await daemon.get("/readyz")
    assert status == 503
    reasons: dict[str, str] = json.loads(text)["reasons"]
    return reasons


@pytest.mark.slow
@pytest.mark.fault("F15")
async def test_what_was_final_is_marked_in_time(world: World) -> None:
    """With the daemon's own pace; crediting goes on once an operator has cleared the conflict."""
    quick = {"poll_interval_s": 0.2}
    async with world.daemon(chain=quick) as daemon:
        scene = Scene(world, daemon)
        await mine(scene.rpc, 20)
        await until_at_head(scene.world)

        async def is_marked() -> bool:
            marked = await world.sql.fetchval("SELECT finalized_number FROM chain_cursor")
            return bool(marked == (await cursor_of(world))[0] - 4)

        await until(is_marked, "the last final block is marked", 90)
        await _fork(scene, 10)
        await daemon.wait_for("stage.failing", stage="listen", timeout_s=LATE_S)
        await daemon.wait_for("stage.failing", stage="settle", timeout_s=LATE_S)
        assert {"listen", "settle"} <= (await _reasons(daemon)).keys()
        cursor = await cursor_of(world)
        job = await world.insert_job()
        await scene.pay(job)
        await daemon.wait_for("stage.failing", stage="listen", count=2)
        assert await cursor_of(world) == cursor
        # What an operator does who has found out that the node's new chain is the right one.
        await world.sql.execute(
            "UPDATE chain_cursor SET conflict = NULL, finalized_number = $1", cursor[0] - 10
        )
        await daemon.wait_for("job.completed", job_uuid=job.uuid)
        assert (await daemon.get("/readyz"))[0] == 200
