"""One story that passes every crash point, told to whichever daemon is alive."""

from devchain.anvil import mine
from tests.fakes.claude_server import error
from tests.faults.cast import FINALIZED_AGE_S, SAFE_AGE_S, Cast
from tests.faults.soundness import assert_at_rest

LARGE_UNITS = 2_000_000
"""Above the tier that asks for `included` only."""


async def play(cast: Cast) -> None:
    """Tell the story up to the act in which the daemon dies; another one ends what was begun."""
    await cast.until("a first cursor", "SELECT count(*) = 1 FROM chain_cursor")
    for act in (_payments, _reorgs, _second_look, _contradicted, _refund, _below_finalized):
        await act(cast)
        if cast.crashed:
            await _come_to_rest(cast)
            return
    await _stop_and_hand_over(cast)


async def play_first_start(cast: Cast) -> None:
    """An empty database is migrated, and the first job is paid and done."""
    await cast.until("tables", "SELECT to_regclass('chain_cursor') IS NOT NULL")
    await cast.until("a first cursor", "SELECT count(*) = 1 FROM chain_cursor")
    (job,) = await cast.insert_jobs(1)
    await cast.pay(job)
    await cast.until_done(job)
    await _come_to_rest(cast)


async def _payments(cast: Cast) -> None:
    """By memo, in parts, twice, without a memo, and one that has to become `safe`."""
    cast.claude.script(error(529))
    plain, parts, large = await cast.insert_jobs(3)
    await cast.pay(plain)
    await cast.pay(parts, parts.price_units // 2)
    await cast.pay_without_memo(777)
    await cast.pay(large, LARGE_UNITS)
    await cast.until_done(plain)
    await cast.pay(plain)
    await cast.pay(parts, parts.price_units // 2)
    await mine(cast.stack.rpc, 1, seconds_later=SAFE_AGE_S + 1)
    await cast.until_done(parts, large)
    await cast.until("a duplicate", "SELECT count(*) = 1 FROM payments WHERE reason = 'duplicate'")


async def _reorgs(cast: Cast) -> None:
    """Credits are gone: of a job that is done, of one under work, and of one that waits."""
    done, begun, waiting = await cast.insert_jobs(3)
    await cast.until_head()
    gone = [await cast.pay(done)]
    await cast.until_done(done)
    cast.claude.hold()
    cast.claude.script(error(529))
    gone.append(await cast.pay(begun))
    await cast.until_status(begun, "in_progress")
    lease = await cast.sql.fetchval("SELECT lease_until FROM jobs WHERE id = $1", begun.id)
    await cast.until(
        "a heartbeat",
        "SELECT coalesce(lease_until > $2, true) FROM jobs WHERE id = $1",
        *(begun.id, lease),
    )
    gone.append(await cast.pay(waiting))
    await cast.until_status(waiting, "paid")
    await cast.reorg(len(gone))
    await cast.until(
        "a reversal",
        """
        SELECT count(*) >= 3 AND bool_and(status = 'orphaned' AND reversed_at IS NOT NULL)
          FROM payments WHERE tx_hash = ANY($1::text[])
        """,
        gone,
    )
    cast.claude.release()
    await cast.until(
        "no work without money",
        "SELECT bool_and(status NOT IN ('paid', 'in_progress')) FROM jobs WHERE is_unbacked",
    )
    await cast.pay(begun)
    await cast.pay(waiting)
    await cast.until_done(begun, waiting)
    await cast.until_status(done, "completed")


async def _second_look(cast: Cast) -> None:
    """A log that the node did not tell of, and one that it told of and that never was."""
    tx_hash = await cast.pay_without_memo(778)
    query = "SELECT status = 'unmatched' FROM payments WHERE tx_hash = $1"
    await cast.until("a payment without a memo", query, tx_hash)
    # What is being looked at just now would not be looked at again.
    await cast.until(
        "a second look",
        """
        SELECT checked_number >= p.block_number FROM chain_cursor, payments p WHERE p.tx_hash = $1
        """,
        tx_hash,
    )
    cast.is_tampered_with = True
    async with cast.sql.transaction():
        number = await cast.sql.fetchval(
            """
            UPDATE chain_cursor SET checked_number = p.block_number - 1
              FROM payments p WHERE p.tx_hash = $1 RETURNING p.block_number
            """,
            tx_hash,
        )
        phantom = await cast.insert_phantom(number)
        await cast.sql.execute("DELETE FROM payments WHERE tx_hash = $1", tx_hash)
    await cast.until("the lost one found", query, tx_hash)
    await cast.until_orphaned(phantom)
    cast.is_tampered_with = False


async def _contradicted(cast: Cast) -> None:
    """A row above the cursor that the next range does not have."""
    (job,) = await cast.insert_jobs(1)
    cast.is_tampered_with = True
    phantom = await cast.insert_phantom(1 + await cast.until_head())
    await cast.pay(job)
    await cast.until_orphaned(phantom)
    cast.is_tampered_with = False
    await cast.until_done(job)


async def _refund(cast: Cast) -> None:
    """An operator sends money back, and names it in his transfer; both become final."""
    tx_hash = await cast.pay_without_memo(781)
    await cast.until(
        "a payment without a memo",
        "SELECT status = 'unmatched' FROM payments WHERE tx_hash = $1",
        tx_hash,
    )
    await cast.send_back(781, tx_hash)
    # Blocks become final up to the end of a range that was read.
    await cast.until_head()
    await mine(cast.stack.rpc, 1, seconds_later=FINALIZED_AGE_S + 1)
    await cast.until(
        "a refund recognised",
        "SELECT status = 'refunded' FROM payments WHERE tx_hash = $1",
        tx_hash,
    )


async def _below_finalized(cast: Cast) -> None:
    """A block that was final is gone: nothing is credited until an operator says so."""
    # An empty block would be mined again with the same hash.
    await cast.pay_without_memo(779)
    number = await cast.until_head()
    await mine(cast.stack.rpc, 1, seconds_later=FINALIZED_AGE_S + 1)
    query = "SELECT finalized_number >= $1 FROM chain_cursor"
    await cast.until(f"block {number} final", query, number)
    await cast.reorg(2)
    await cast.until("a conflict", "SELECT conflict IS NOT NULL FROM chain_cursor")
    (job,) = await cast.insert_jobs(1)
    await cast.pay(job)
    # As often as it takes: what was judged before the operator acted may be told after.
    await cast.until(
        "credits again",
        """
        WITH cleared AS (
            UPDATE chain_cursor SET conflict = NULL, conflict_at = NULL, finalized_number = -1
             WHERE conflict IS NOT NULL)
        SELECT status = 'completed' FROM jobs WHERE id = $1
        """,
        job.id,
    )


async def _stop_and_hand_over(cast: Cast) -> None:
    """Stopped during a call, with another daemon standing by that takes everything over."""
    (job,) = await cast.insert_jobs(1)
    cast.claude.hold()
    await cast.pay(job)
    await cast.until_status(job, "in_progress")
    async with cast.one_daemon(cast.request()) as other:
        await other.wait_for("daemon.ready")
        await cast.stop()
        cast.claude.release()
        await cast.until_done(job)
        await cast.until_head()
        await cast.until_rest()
        assert await other.stop() == 0
    await assert_at_rest(cast.sql)
    await cast.assert_sound("the end")


async def _come_to_rest(cast: Cast) -> None:
    await cast.until_head()
    await cast.until_rest()
    assert await cast.stop() == 0
    await assert_at_rest(cast.sql)
    await cast.assert_sound("the end")
