"""An operator at work, as processes beside a daemon: explain, assign, ignore, refund."""

import json
from typing import Any

import pytest

from devchain.anvil import mine
from devchain.daemon import config_of
from devchain.usdc import call_data
from devchain.wallet import Wallet
from tests.acceptance.conftest import World
from tests.acceptance.test_commands import command, run

FINAL_AFTER = 4
"""Blocks, of this node."""
WHY = ("--why", "the payer wrote to us")


def merchant_of(world: World) -> Wallet:
    """Return the merchant as somebody who can pay."""
    return world.stack.merchant_wallet


async def refused(world: World, *arguments: str) -> str:
    """Run a command that must end with exit code 1 and one line; returns that."""
    path = world.folder / "command.toml"
    path.write_text(config_of(world.stack, world.database_url))
    code, out, err = await run(*arguments, "--config", str(path), cwd=world.folder)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    return err


async def printed(world: World, *arguments: str) -> str:
    """Run a command for people; returns what it printed."""
    path = world.folder / "command.toml"
    path.write_text(config_of(world.stack, world.database_url))
    code, out, err = await run(*arguments, "--config", str(path), cwd=world.folder)
    assert (code, err) == (0, "")
    return out


async def explained(world: World, tx: str) -> dict[str, Any]:
    """Return the one payment of a transaction, explained."""
    told = await command(world, "explain", tx)
    (payment,) = told["payments"]
    assert isinstance(payment, dict)
    return payment


@pytest.mark.timeout(240)
async def test_stray_money_is_explained_and_given_to_its_job(world: World) -> None:
    await world.first_start_done()
    first, second = await world.insert_jobs(2)
    payer = world.stack.payers[0]
    async with world.daemon() as daemon:
        stray = await payer.transfer(world.stack.merchant, first.price_units)
        await daemon.wait_for("payment.unmatched")
        told = await explained(world, stray)
        assert (told["status"], told["sender"]) == ("unmatched", payer.address.lower())
        assert {job["job_id"] for job in told["nearest"]} == {first.id, second.id}
        assert all(job["by"] == "price" for job in told["nearest"])
        assert told["refund"]["to"] == payer.address.lower()
        assert "carries no memo" in " ".join(told["sentences"])
        text = await printed(world, "explain", stray)
        assert f"Job {first.id} ({first.uuid}, pending): exactly its price" in text
        assert told["refund"]["calldata"] in text

        assign = ("payment", "assign", stray)
        done = await command(world, *assign, first.uuid, *WHY)
        assert (done["outcome"], done["price_units"]) == ("done", None)
        await daemon.wait_for("job.completed", job_uuid=first.uuid)
        again = await command(world, *assign, str(first.id), *WHY)
        assert again["outcome"] == "already"
        assert "pays job" in await refused(world, *assign, str(second.id), *WHY)
        told = await explained(world, stray)
        assert await daemon.stop() == 0
    assert told["refund"] is None
    assert "an operator gave it to that job" in " ".join(told["sentences"])


@pytest.mark.timeout(240)
async def test_money_that_is_taken_for_a_lower_price(world: World) -> None:
    await world.first_start_done()
    job = await world.insert_job()
    units = job.price_units // 2
    async with world.daemon() as daemon:
        short = await world.stack.payers[0].transfer(world.stack.merchant, units)
        stray = await world.stack.payers[0].transfer(world.stack.merchant, 7)
        await daemon.wait_for("payment.unmatched", count=2)
        listed = await command(world, "payment", "list", "--status", "unmatched")
        assert [row["tx_hash"] for row in listed] == [stray, short]
        both = await command(world, "payment", "list", "--totals", "--limit", "1")
        assert len(both["payments"]) == 1
        assert [(row["payments"], row["amount_units"]) for row in both["totals"]] == [
            (2, units + 7)
        ]
        assert "Totals" in await printed(world, "payment", "list", "--status", "unmatched")
        assign = ("payment", "assign", short, job.uuid, *WHY)
        assert "short by" in await refused(world, *assign)
        done = await command(world, *assign, "--accept-short")
        assert done["price_units"] == units
        await daemon.wait_for("job.completed", job_uuid=job.uuid)
        assert await daemon.stop() == 0
    shown = await command(world, "job", "show", job.uuid)
    assert shown["audit"][0]["details"]["price_units_before"] == job.price_units
    assert float(shown["price_usdc"]) == units / 10**6


@pytest.mark.timeout(240)
async def test_money_that_is_ignored_or_sent_back_by_hand(world: World) -> None:
    """A refund is closed once it is final, by a transfer that fits and serves no other payment."""
    await world.first_start_done()
    payer, other, _ = world.stack.payers
    merchant = merchant_of(world)
    async with world.daemon() as daemon:
        for units in (500_000, 500_000, 77):
            await payer.transfer(world.stack.merchant, units)
        await daemon.wait_for("payment.unmatched", count=3)
        assert await daemon.stop() == 0
    listed = await command(world, "payment", "list", "--status", "unmatched")
    dust, second, first = (str(row["id"]) for row in listed)

    assert (await command(world, "payment", "ignore", dust, *WHY))["outcome"] == "done"
    assert (await command(world, "payment", "ignore", dust, *WHY))["outcome"] == "already"

    shown = await command(world, "payment", "show", first)
    assert shown["refund"]["warnings"] == []
    calldata = bytes.fromhex(shown["refund"]["calldata"][2:])
    sent = await merchant.send(calldata)
    refund = ("payment", "refund", first, "--tx", sent, *WHY)
    assert "is not final yet" in await refused(world, *refund)
    await mine(world.stack.rpc, FINAL_AFTER)
    assert (await command(world, *refund))["outcome"] == "done"
    assert (await command(world, *refund))["outcome"] == "already"
    twice = await refused(world, "payment", "refund", second, "--tx", sent, *WHY)
    assert f"sent back payment {first}" in twice

    wrong = await merchant.transfer(payer.address, 1)
    elsewhere = await merchant.transfer(other.address, 500_000)
    await mine(world.stack.rpc, FINAL_AFTER)
    told = await refused(world, "payment", "refund", second, "--tx", wrong, *WHY)
    assert "amount" in told
    told = await refused(world, "payment", "refund", second, "--tx", elsewhere, *WHY)
    assert "does not go where" in told
    stated = ("--to", other.address)
    path = world.folder / "command.toml"
    code, out, err = await run(
        *("payment", "refund", second, "--tx", elsewhere, *stated, *WHY),
        *("--json", "--config", str(path)),
        cwd=world.folder,
    )
    assert code == 0
    assert "is not the payer" in err
    assert json.loads(out)["outcome"] == "done"

    rows = await world.sql.fetch(
        "SELECT id, status FROM payments WHERE status <> 'unmatched' ORDER BY id"
    )
    assert [row["status"] for row in rows] == ["refunded", "refunded", "ignored"]
    noted = await world.sql.fetch("SELECT action, details ->> 'why' FROM audit_log ORDER BY id")
    assert [row[0] for row in noted] == ["payment.ignore", "payment.refund", "payment.refund"]
    assert {row[1] for row in noted} == {WHY[1]}
    shown = await command(world, "payment", "show", second)
    assert (shown["refund"], shown["refund_tx_hash"]) == (None, elsewhere)
    assert "went back to" in " ".join((await explained(world, listed[1]["tx_hash"]))["sentences"])


async def why_nothing(world: World, tx: str) -> str:
    """Return what is said of a transaction without payments."""
    told = await command(world, "explain", tx)
    assert told["payments"] == []
    first, *rest = told["sentences"]
    assert first == "No payment is stored of it."
    return " ".join(rest)


async def test_why_nothing_is_stored(world: World) -> None:
    """From the node alone: no daemon runs."""
    before = await world.stack.payers[0].transfer(world.stack.merchant, 3)
    await world.first_start_done()
    payer, stranger, _ = world.stack.payers
    unread = await payer.transfer(world.stack.merchant, 5)
    foreign = await payer.transfer(stranger.address, 7)
    nothing = await stranger.transfer_from(payer.address, world.stack.merchant, 0)
    bare = await payer.send(call_data("approve(address,uint256)", stranger.address, 1))
    assert "knows no such transaction" in await why_nothing(world, "0x" + "12" * 32)
    assert "is not read yet" in await why_nothing(world, unread.upper().replace("X", "x"))
    assert "none of chain.recipients" in await why_nothing(world, foreign)
    assert "nobody has to agree" in await why_nothing(world, nothing)
    assert "transfers no token at all" in await why_nothing(world, bare)
    assert "Reading began after block" in await why_nothing(world, before)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("explain", "0x12"), 2, "TX: '0x12' is not a transaction's hash"),
        (("payment", "assign", "1", "1", "--why", " "), 2, "--why: must say something"),
        (("payment", "assign", "4711", "1", "--why", "x"), 1, "there is no payment 4711"),
        (("payment", "ignore", "0xabc", "--why", "x"), 1, "there is no payment 0xabc"),
        (("payment", "refund", "1", "--tx", "7", "--why", "x"), 2, "--tx: '7' is not"),
        (
            ("payment", "refund", "1", "--tx", "0x" + "1" * 64, "--to", "me", "--why", "x"),
            *(2, "--to: 'me' is not an address"),
        ),
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
