"""Verify, rescan and conflict, as processes, on a real node with Circle's own USDC."""

import json
from typing import Any

import pytest
from eth_utils.crypto import keccak

from devchain.anvil import mine, reorg
from devchain.daemon import Daemon, config_of
from devchain.wallet import Wallet
from tests.acceptance.conftest import World
from tests.acceptance.test_commands import run

BALANCE_SLOT = 9
"""Of `balanceAndBlacklistStates` in FiatTokenV2_2."""


async def command(world: World, *arguments: str, code: int = 0) -> Any:
    """Run a command with `--json`; nothing but its document may come out of it."""
    path = world.folder / "command.toml"
    path.write_text(config_of(world.stack, world.database_url))
    found, out, err = await run(*arguments, "--json", "--config", str(path), cwd=world.folder)
    assert (found, err) == (code, "")
    return json.loads(out)


async def verified(world: World, *arguments: str, code: int = 0) -> dict[str, str]:
    """Run `verify` and return the states that are not ok, by invariant."""
    told = await command(world, "verify", *arguments, code=code)
    assert told["ok"] is (code == 0)
    states = {check["invariant"]: check["state"] for check in told["checks"]}
    assert len(states) == 8
    return {name: state for name, state in states.items() if state != "ok"}


def merchant_of(world: World) -> Wallet:
    """Return the merchant as somebody who can pay."""
    usdc = world.stack.usdc
    return Wallet(usdc=usdc, address=world.stack.merchant, index=2)


@pytest.fixture
async def busy(world: World) -> World:
    """A world in which jobs were paid and done, stray money came, and money was sent away."""
    await world.first_start_done()
    jobs = await world.insert_jobs(2)
    merchant = merchant_of(world)
    async with world.daemon() as daemon:
        for job in jobs:
            await world.pay(job)
        await world.stack.payers[1].transfer(world.stack.merchant, 77)
        await merchant.transfer(world.stack.payers[2].address, 300_000)
        await merchant.transfer(world.stack.merchant, 1_000)
        await daemon.wait_for("job.completed", count=2)
        await daemon.wait_for("payment.unmatched", count=2)
        assert await daemon.stop() == 0
    return world


async def test_a_ledger_that_is_right_and_one_that_is_repaired(busy: World) -> None:
    """Also the balance, with what went out and what we sent to ourselves."""
    told = await command(busy, "verify")
    assert set(told) == {"ok", "first_block", "last_block", "notes", "checks"}
    assert {check["state"] for check in told["checks"]} == {"ok"}
    assert all(
        set(check) == {"invariant", "must_be", "state", "checked", "not_checked", "violations"}
        for check in told["checks"]
    )
    assert await verified(busy, "--from", str(told["first_block"] + 2)) == {}
    told = await command(busy, "verify", "--from", "0", "--to", "99999999")
    assert len(told["notes"]) == 2
    state = await busy.sql.fetchrow("SELECT start_number, block_number FROM chain_cursor")
    assert state is not None
    bounds = ("--from", str(state["start_number"] + 1), "--to", str(state["block_number"]))
    stray = await busy.sql.fetchrow("DELETE FROM payments WHERE amount_units = 77 RETURNING *")
    assert stray is not None
    assert await verified(busy, code=1) == {"completeness": "violated"}
    told = await command(busy, "rescan", *bounds)
    assert [row["tx_hash"] for row in told["added"]] == [stray["tx_hash"]]
    assert told["orphaned"] == told["altered"] == told["notes"] == []
    assert await verified(busy) == {}
    again = await command(busy, "rescan", *bounds[:3], "99999999")
    assert (again["added"], len(again["notes"])) == ([], 1)
    logged = await busy.sql.fetch("SELECT action, details ->> 'last_block' FROM audit_log")
    assert list(map(tuple, logged)) == [("rescan", str(state["block_number"]))]


async def print_money(world: World, units: int) -> None:
    """Raise the merchant's balance without any transfer."""
    key = bytes.fromhex(f"{world.stack.merchant[2:]:0>64}") + BALANCE_SLOT.to_bytes(32, "big")
    slot = "0x" + keccak(key).hex()
    rpc, token = world.stack.rpc, world.stack.usdc.address
    held = int(await rpc.call("eth_getStorageAt", token, slot, "latest"), 16)
    assert held == await world.stack.usdc.balance(world.stack.merchant)
    await rpc.call("anvil_setStorageAt", token, slot, f"0x{held + units:064x}")


async def test_money_that_moved_without_a_transfer(busy: World) -> None:
    """Nothing but the balance can tell of it; people are told by a line and by the exit code.

    The daemon's own audit has told of another broken row, and counted it.
    """
    await print_money(busy, 5)
    await busy.sql.execute("UPDATE jobs SET output_data = '{}' WHERE status = 'completed'")
    async with busy.daemon() as daemon:
        told = await daemon.wait_for("invariant.violated", count=2)
        assert (told["invariant"], told["level"]) == ("one_result", "error")
        await busy.stack.payers[0].transfer(busy.stack.merchant, 1)
        await daemon.wait_for("payment.unmatched")
        assert await verified(busy, code=1) == {"balance": "violated", "one_result": "violated"}
        metrics = await daemon.metrics()
    name = 'oncepaid_invariant_violations_total{{invariant="{}"}}'.format
    assert (metrics[name("one_result")], metrics[name("completeness")]) == (2, 0)
    path = busy.folder / "command.toml"
    code, out, err = await run("verify", "--config", str(path), cwd=busy.folder)
    assert (code, err) == (1, "")
    assert "0.000005 are unexplained" in out


async def conflicted(world: World, daemon: Daemon) -> None:
    """Take blocks away from the chain that were final."""
    await mine(world.stack.rpc, 10)
    await world.pay(await world.insert_job())
    await daemon.wait_for("job.completed")
    await world.sql.execute(
        "UPDATE chain_cursor SET finalized_number = block_number, checked_number = block_number"
    )
    await reorg(world.stack.rpc, 6)
    await mine(world.stack.rpc, 1)
    await daemon.wait_for("stage.failing", stage="listen")


@pytest.mark.timeout(240)
async def test_a_conflict_stops_crediting_until_it_is_accepted(world: World) -> None:
    """What was only resolved, and is still there, is found again."""
    await world.first_start_done()
    assert (await command(world, "conflict", "show"))["conflict"] is None
    assert await refused(world) == "oncepaid: there is no conflict\n"
    async with world.daemon() as daemon:
        await conflicted(world, daemon)
        _, ready = await daemon.get("/readyz")
        reasons = json.loads(ready)["reasons"]
        assert "was final" in reasons["listen"]
        shown = await command(world, "conflict", "show")
        assert shown["conflict"] == reasons["listen"]
        job = await world.insert_job()
        await world.pay(job)
        await command(world, "conflict", "resolve", "--why", "is it still there?")
        failing = [one for one in daemon.events if one["event"] == "stage.failing"]
        count = 1 + sum(one["stage"] == "listen" for one in failing)
        await daemon.wait_for("stage.failing", stage="listen", count=count)
        assert (await command(world, "conflict", "show"))["conflict"] == shown["conflict"]
        assert (await world.job(job))["status"] == "pending"
        told = await command(world, "conflict", "resolve", "--accept", "--why", "a deep fork")
        assert told == {"was": shown["conflict"], "accepted": True}
        await daemon.wait_for("chain.reorg")
        await daemon.wait_for("payment.lost")
        await daemon.wait_for("job.completed", job_uuid=job.uuid)
        assert (await command(world, "conflict", "show"))["conflict"] is None
        assert await verified(world) == {}
    logged = await world.sql.fetch("SELECT action, details ->> 'why' FROM audit_log ORDER BY id")
    assert list(map(tuple, logged)) == [
        ("conflict.resolve", "is it still there?"),
        ("conflict.resolve", "a deep fork"),
    ]


async def refused(world: World) -> str:
    path = world.folder / "command.toml"
    given = ("conflict", "resolve", "--why", "x", "--config", str(path))
    code, out, err = await run(*given, cwd=world.folder)
    assert (code, out) == (1, "")
    return err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("rescan", "--from", "9", "--to", "3"), 2, "--to: must not be below --from"),
        (("rescan", "--from", "1", "--to", "3"), 1, "the chain was never read"),
        (("verify",), 1, "the chain was never read"),
        (("conflict", "resolve", "--why", " "), 2, "--why: must say something"),
    ],
)
async def test_what_cannot_be_done_ends_in_one_line(
    world: World, arguments: tuple[str, ...], code: int, words: str
) -> None:
    path = world.folder / "command.toml"
    path.write_text(config_of(world.stack, world.database_url))
    found, out, err = await run(*arguments, "--config", str(path), cwd=world.folder)
    assert (found, out) == (code, "")
    assert words in err
    assert len(err.splitlines()) == 1
