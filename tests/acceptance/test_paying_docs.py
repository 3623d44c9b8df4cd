"""Every example of docs/paying.md pays its job: a real node, Circle's USDC, the real libraries.

What stands in for something real: the customer's wallet is devchain/paying/wallet.mjs, an account
of the dev chain that does for ERC-5792 what the standard says of an externally owned account. Base
Account's SDK is the published one, from `pay` to the encrypted message that leaves the page; the
window behind it is devchain/paying/base_popup.mjs, with that wallet instead of Coinbase's.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from devchain.daemon import config_of
from oncepaid.domain.payments import Reason
from tests.acceptance.conftest import NewJob, World
from tests.acceptance.paying_docs import DOCUMENT, examples, run_in_page
from tests.acceptance.test_commands import run


@dataclass(frozen=True, kw_only=True)
class Landing:
    """How the payment of an example is found: where its memo was, and what it paid."""

    memo_source: str | None = "calldata"
    has_unique_amount: bool = False


LANDINGS: Final[Mapping[str, Landing]] = {
    "rpc-send-transaction": Landing(),
    "rpc-send-calls": Landing(),
    "viem-calldata": Landing(),
    "viem-data-suffix": Landing(),
    "viem-builder-code": Landing(),
    "viem-send-calls": Landing(),
    "wagmi-send-transaction": Landing(),
    "wagmi-send-calls": Landing(),
    "base-account-pay": Landing(has_unique_amount=True),
    "rpc-fetch": Landing(),
    "authorization": Landing(memo_source="authorization"),
    "unique-amount": Landing(memo_source=None, has_unique_amount=True),
}
NOT_PRINTED: Final = {"job_id", "status"}


def test_every_example_is_run() -> None:
    assert [example.name for example in examples("js")] == list(LANDINGS)
    assert [example.name for example in examples("sql")] == ["view"]
    assert DOCUMENT.read_text(encoding="utf-8").count("\n```\n") == len(LANDINGS) + 1


def test_every_column_and_reason_is_explained() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    words = [f"`{reason}`" for reason in Reason]
    assert [word for word in words if word not in text] == []


async def test_every_example_pays_its_job(world: World) -> None:
    scripts = examples("js")
    payer = world.stack.payers[0]
    environment = {
        "RPC_URL": world.stack.anvil.http_url,
        "PAYER": payer.address,
        "PAYER_KEY": "0x" + payer.private_key.hex(),
        "RELAYER_KEY": "0x" + world.stack.relayer.private_key.hex(),
    }
    async with world.daemon() as daemon:
        await daemon.wait_for("listener.first_start")
        jobs = await world.insert_jobs(len(LANDINGS))
        terms = [await _terms_of(world, job) for job in jobs]
        await run_in_page(list(zip(scripts, terms, strict=True)), environment)
        for job in jobs:
            await daemon.wait_for("job.completed", job_uuid=job.uuid)
    for example, job in zip(scripts, jobs, strict=True):
        assert example.name is not None
        await _landed(world, job, example.name, LANDINGS[example.name])


async def _terms_of(world: World, job: NewJob) -> dict[str, Any]:
    """Read a job's row with the document's own query, as a host hands it to its page."""
    (view,) = examples("sql")
    found = await world.sql.fetchval(f"SELECT to_jsonb(told) FROM ({view.code}) AS told", job.uuid)
    told: dict[str, Any] = json.loads(found)
    return told


async def _landed(world: World, job: NewJob, name: str, landing: Landing) -> None:
    payments = await world.sql.fetch("SELECT * FROM payments WHERE job_id = $1", job.id)
    units = job.unique_amount_units if landing.has_unique_amount else job.price_units
    assert [(row["amount_units"], row["memo_source"], row["status"]) for row in payments] == [
        (units, landing.memo_source, "credited")
    ], name
    balance = await world.stack.usdc.balance(world.stack.merchant)
    assert balance == await world.sql.fetchval("SELECT sum(amount_units) FROM payments")


async def test_the_command_prints_what_the_view_tells(world: World) -> None:
    code, out, err = await _create(world, "--json")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    view = json.loads(
        await world.sql.fetchval(
            "SELECT to_jsonb(v) FROM job_payment_terms v WHERE job_id = $1", printed["id"]
        )
    )
    assert {**printed, "expires_at": _time(printed)} == {
        **printed,
        **{name: value for name, value in view.items() if name not in NOT_PRINTED},
        "expires_at": _time(view),
    }
    assert set(view) - set(printed) == NOT_PRINTED
    code, out, err = await _create(world, "--qr")
    assert (code, err) == (0, "")
    assert "█" in out
    assert f"exactly {printed['amount_usdc'][:4]}" in out


async def test_no_amount_that_is_free_is_one_line(world: World) -> None:
    await world.sql.execute(
        """
        INSERT INTO retired_amounts (unique_amount_units, pay_to, expires_at)
        SELECT 500000 + n, '', now() + interval '1 day' FROM generate_series(1, 9999) n
        """
    )
    code, out, err = await _create(world)
    assert (code, out) == (1, "")
    assert err.startswith("oncepaid: no unique amount is free for a price of 0.500000 USDC")
    assert len(err.splitlines()) == 1


async def _create(world: World, *options: str) -> tuple[int, str, str]:
    path = world.folder / "command.toml"
    path.write_text(config_of(world.stack, world.database_url))
    create = ("job", "create", "--service", "write", "--input", "x", "--config", str(path))
    return await run(*create, *options, cwd=world.folder)


def _time(terms: Mapping[str, Any]) -> datetime:
    """JSON of PostgreSQL and of Python drops trailing zeros differently."""
    return datetime.fromisoformat(terms["expires_at"])
