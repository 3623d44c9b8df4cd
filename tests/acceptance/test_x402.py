"""x402 payments with the published package: its client, its server and its facilitator.

The programs of docs/x402.md run as they stand there. The client draws its nonces at random, as it
does everywhere; where a scene needs another nonce, the payer signs without it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType

import asyncpg
import httpx
from aiohttp.test_utils import TestServer
from x402 import ERR_SETTLEMENT_PENDING

from devchain.daemon import Daemon, config_of
from devchain.wallet import Wallet
from oncepaid.domain.memo import NONCE_BYTES
from tests.acceptance.conftest import NewJob, World
from tests.acceptance.test_commands import run
from tests.acceptance.x402_parts import (
    Facilitator,
    Signed,
    code_of_document,
    facilitator_of,
    program,
    serving,
    settle,
    signed_by,
    signed_in_version_1,
)


def test_every_program_of_the_document_is_run() -> None:
    assert list(code_of_document()) == ["shop", "buyer"]


async def test_a_stock_client_buys_a_result(world: World) -> None:
    facilitator = facilitator_of(world.stack)
    payer = world.stack.payers[0]
    before = await world.stack.usdc.balance(payer.address)
    async with _started(world), _shop(world, facilitator) as (url, buyer):
        key = payer.private_key.hex()
        result = await buyer.buy(url, "brainstorm", "a bakery that opens at night", key)
        # Whoever comes back with the same request, or signs once more, is not asked to pay again.
        uuid = await world.sql.fetchval("SELECT job_uuid::text FROM jobs")
        async with httpx.AsyncClient(base_url=url) as stranger:
            again = await stranger.get(f"/orders/{uuid}", headers={"PAYMENT-SIGNATURE": "e30="})
    assert (again.status_code, again.json()) == (200, result)
    assert [idea["title"] for idea in result["ideas"]]
    (answer,) = facilitator.answers
    paid = await world.payment(answer.transaction)
    assert (paid["status"], paid["memo"]) == ("credited", None)
    assert paid["sender"] == payer.address.lower()
    assert before - await world.stack.usdc.balance(payer.address) == paid["amount_units"]
    assert await world.sql.fetchval("SELECT count(*) FROM job_bindings") == 1


async def test_a_payment_that_its_facilitator_gave_up_completes_its_order(world: World) -> None:
    facilitator = facilitator_of(world.stack, patience_s=0.2)
    async with _started(world) as daemon, _shop(world, facilitator) as (url, buyer):
        await world.stack.rpc.call("evm_setAutomine", False)
        key = world.stack.payers[0].private_key.hex()
        buying = asyncio.create_task(buyer.buy(url, "brainstorm", "a bakery", key))
        await facilitator.gave_up.wait()
        assert await world.sql.fetchval("SELECT status FROM jobs") == "pending"
        await world.stack.rpc.call("evm_mine")
        await daemon.wait_for("job.completed")
        assert (await buying)["ideas"]
    assert {answer.error_reason for answer in facilitator.answers} == {ERR_SETTLEMENT_PENDING}
    assert len({answer.transaction for answer in facilitator.answers}) == 1


async def test_the_shop_binds_only_what_was_signed_for_its_order(world: World) -> None:
    await world.first_start_done()
    stack, facilitator = world.stack, facilitator_of(world.stack, patience_s=0.2)
    order = await world.insert_job()
    async with _shop(world, facilitator) as (url, _), httpx.AsyncClient(base_url=url) as http:

        async def show(job: NewJob, signed: Signed) -> httpx.Response:
            return await http.get(f"/orders/{job.uuid}", headers=signed.headers)

        honest = await signed_by(stack.payers[0], stack, order.price_units)
        forged = honest.with_signature(await signed_by(stack.payers[1], stack, order.price_units))
        short = await signed_by(stack.payers[1], stack, order.price_units - 1)
        assert [(await show(order, signed)).status_code for signed in (forged, short)] == [402, 402]
        assert await world.sql.fetchval("SELECT count(*) FROM job_bindings") == 0
        # An order is asked for once more only when what was signed for it can no longer be used.
        taken = await show(order, honest)
        assert (taken.status_code, taken.json()) == (202, {"status": "pending"})
        assert "PAYMENT-RESPONSE" in taken.headers
        again = await show(order, await signed_by(stack.payers[0], stack, order.price_units))
        assert (again.status_code, len(facilitator.answers)) == (202, 1)
        # From here on nobody has used what is signed, and both may be asked for at the same time.
        await stack.rpc.call("evm_setAutomine", False)
        one, another, twice = await world.insert_jobs(3)
        signed, more, late = [
            await signed_by(payer, stack, order.price_units) for payer in stack.payers
        ]
        pairs = (
            (show(one, signed), show(another, signed)),
            (show(twice, more), show(twice, late)),
        )
        for pair in pairs:
            answers = await asyncio.gather(*pair)
            assert sorted(answer.status_code for answer in answers) == [202, 409]
    bound = await world.sql.fetch("SELECT job_id, reference FROM job_bindings ORDER BY created_at")
    assert (len(bound), len({row["job_id"] for row in bound})) == (3, 3)
    assert tuple(bound[0]) == (order.id, bytes.fromhex(honest.nonce[2:]))


async def test_what_the_payer_signed_names_his_job_and_nothing_else_does(world: World) -> None:
    payer, copycat, stranger = world.stack.payers
    async with _started(world) as daemon:
        first, second, other, own = await world.insert_jobs(4)
        signed = await signed_in_version_1(payer, world.stack, first.price_units)
        await _bind(world, first, signed)
        # The same nonce of somebody else: real money, and no word of the first one's payer.
        tx = await _pay_with_nonce(world, copycat, first, bytes.fromhex(signed.nonce[2:]))
        await daemon.wait_for("payment.unmatched", tx_hash=tx, reason="no_memo")
        assert (await world.job(first))["status"] == "pending"
        paid = {first.uuid: await settle(world.stack, signed)}
        await daemon.wait_for("job.completed", job_uuid=first.uuid)
        # A facilitator that puts the memo of another job behind the payer's money.
        signed = await signed_by(payer, world.stack, second.price_units)
        await _bind(world, second, signed)
        paid[second.uuid] = await settle(world.stack, signed, tail=other.envelope)
        await daemon.wait_for("job.completed", job_uuid=second.uuid)
        # A client that can choose its nonce needs no binding.
        nonce = own.envelope.ljust(NONCE_BYTES, b"\x07")
        paid[own.uuid] = await _pay_with_nonce(world, stranger, own, nonce)
        await daemon.wait_for("job.completed", job_uuid=own.uuid)
        # A second authorization for an order that was paid by the first.
        signed = await signed_by(stranger, world.stack, first.price_units)
        await _bind(world, first, signed)
        twice = await settle(world.stack, signed)
        told = await daemon.wait_for("payment.unmatched", tx_hash=twice)
        assert (told["reason"], told["job_uuid"]) == ("duplicate", first.uuid)
        assert await daemon.stop() == 0
    attached = await world.sql.fetchval("SELECT memo FROM jobs WHERE id = $1", other.id)
    assert (await world.payment(paid[second.uuid]))["memo"] == attached
    for uuid, tx in paid.items():
        payment = await world.payment(tx)
        found = await world.sql.fetchval(
            "SELECT job_uuid::text FROM jobs WHERE id = $1", payment["job_id"]
        )
        assert (payment["status"], found) == ("credited", uuid)
    assert (await world.job(other))["status"] == "pending"


async def test_a_payment_that_nobody_bound_is_rescued_by_the_command(world: World) -> None:
    async with _started(world) as daemon:
        job = await world.insert_job()
        signed = await signed_by(world.stack.payers[0], world.stack, job.price_units)
        tx = await settle(world.stack, signed)
        told = await daemon.wait_for("payment.unmatched", tx_hash=tx)
        assert told["reason"] == "no_memo"
        path = world.folder / "command.toml"
        path.write_text(config_of(world.stack, world.database_url))
        options = ("--payer", signed.payer, "--nonce", signed.nonce, "--config", str(path))
        assert await run("job", "bind", job.uuid, *options, cwd=world.folder) == (
            0,
            f"bound: {signed.nonce} of {signed.payer.lower()} pays job {job.id}\n"
            f"payment {told['payment_id']} waits and will be decided again\n",
            "",
        )
        await daemon.wait_for("job.completed", job_uuid=job.uuid)
    assert (await world.payment(tx))["status"] == "credited"


@asynccontextmanager
async def _started(world: World) -> AsyncIterator[Daemon]:
    """Run a daemon that reads the chain from now on."""
    async with world.daemon() as daemon:
        await daemon.wait_for("listener.first_start")
        yield daemon


@asynccontextmanager
async def _shop(world: World, facilitator: Facilitator) -> AsyncIterator[tuple[str, ModuleType]]:
    """Open the document's shop; yields its URL and the document's buyer."""
    shop, buyer = (program(name, world.folder) for name in ("shop", "buyer"))
    async with (
        asyncpg.create_pool(world.database_url, min_size=1, max_size=4) as database,
        serving(facilitator) as facilitator_url,
        TestServer(await shop.open_shop(database, facilitator_url)) as server,
    ):
        yield str(server.make_url("/")), buyer


async def _bind(world: World, job: NewJob, signed: Signed) -> None:
    """Do what a host does before it lets the authorization be settled."""
    await world.sql.execute(
        "INSERT INTO job_bindings (issuer, reference, job_id) VALUES ($1, $2, $3)",
        *(signed.payer, bytes.fromhex(signed.nonce[2:]), job.id),
    )


async def _pay_with_nonce(world: World, payer: Wallet, job: NewJob, nonce: bytes) -> str:
    """Sign with a nonce of one's own choice; a relayer submits it."""
    signed = payer.sign_authorization(world.stack.merchant, job.price_units, nonce)
    return await world.stack.relayer.submit_authorization(signed)
