"""The operator's commands, as processes: what they print, and with which code they end."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from devchain.daemon import config_of
from tests.acceptance.conftest import World


async def run(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """Run `oncepaid` and return exit code, output and error output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "oncepaid", *arguments),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def command(world: World, *arguments: str) -> Any:
    """Run a command with the world's settings and `--json`; returns what it printed."""
    path = world.folder / "command.toml"
    path.write_text(config_of(world.stack, world.database_url))
    code, out, err = await run(*arguments, "--json", "--config", str(path), cwd=world.folder)
    assert (code, err) == (0, "")
    return json.loads(out)


async def test_a_job_from_its_creation_to_its_result(world: World) -> None:
    await world.first_start_done()
    made = await command(world, "job", "create", "--service", "summarize", "--input", "Text ☕")
    assert made["calldata"].endswith(made["memo_envelope"][2:])
    assert made["eip681_uri"].endswith(f"&uint256={made['unique_amount_units']}")
    async with world.daemon() as daemon:
        tx = await world.stack.payers[0].send(
            bytes.fromhex(made["calldata"][2:]), to=world.stack.usdc.address
        )
        await daemon.wait_for("job.completed", job_uuid=made["job_uuid"])
        await world.stack.payers[0].transfer(world.stack.merchant, 77)
        await daemon.wait_for("payment.unmatched")
    shown = await command(world, "job", "show", made["job_uuid"])
    assert (shown["status"], shown["input_data"]) == ("completed", {"prompt": "Text ☕"})
    assert [payment["tx_hash"] for payment in shown["payments"]] == [tx]
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["succeeded"]
    assert [job["id"] for job in await command(world, "job", "list")] == [shown["id"]]
    assert await command(world, "job", "list", "--status", "pending") == []
    (unmatched,) = await command(world, "payment", "list", "--status", "unmatched")
    assert (unmatched["reason"], unmatched["amount_units"]) == ("no_memo", 77)
    (paid,) = await command(world, "payment", "show", tx)
    assert (paid["status"], paid["job_uuid"]) == ("credited", made["job_uuid"])
    status = await command(world, "status")
    assert status["jobs"] == {"completed": 1}
    assert status["unmatched_usdc"] == {"no_memo": "0.000077"}


async def test_check_says_what_is_right_and_what_is_not(world: World) -> None:
    good = {line["subject"]: line for line in await command(world, "check")}
    assert {name.split()[0] for name in good} == {
        *("settings", "database", "clock", "node", "websocket", "claude")
    }
    assert all(line["ok"] for line in good.values())
    path = world.folder / "bad.toml"
    odd = {"http_urls": ["http://127.0.0.1:9"], "recipients": ["*"]}
    path.write_text(config_of(world.stack, world.database_url, chain=odd))
    code, out, _ = await run("check", "--config", str(path), cwd=world.folder)
    assert code == 1
    assert "ok    settings: chain.recipients is *: only jobs with pay_to can be paid" in out
    assert "FAIL  node 127.0.0.1:9: " in out
    assert "ok    database: " in out


async def test_migrate_may_be_repeated_and_others_ask_for_it(world: World, empty_url: str) -> None:
    path = world.folder / "empty.toml"
    path.write_text(config_of(world.stack, empty_url))
    given = ("--config", str(path))
    code, _, err = await run("job", "list", *given, cwd=world.folder)
    assert (code, err) == (
        1,
        "oncepaid: the database is not at this version: run `oncepaid migrate`\n",
    )
    first = await run("migrate", *given, cwd=world.folder)
    again = await run("migrate", *given, cwd=world.folder)
    assert (first[0], again[:2]) == (0, (0, "the database is at this version\n"))
    assert (await run("job", "list", *given, cwd=world.folder))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("job", "show", "4711"), 1, "there is no job 4711"),
        (("payment", "show", "0xabc"), 1, "there is no payment 0xabc"),
        (("job", "create", "--service", "tarot", "--input", "x"), 1, "'tarot' is none of"),
        (("job", "create", "--service", "write", "--input", " "), 2, "--input: the job has no"),
        (("job", "create", "--service", "write", "--input", "x", "--pay-to", "me"), 2, "--pay-to"),
        (("job", "list", "--status", "bogus"), 2, "bogus"),
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
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"ONCEPAID__CHAIN__RECIPENTS": "0x"}, "chain.recipents: there is no such setting"),
        ({"ONCEPAID__CHAIN__HTTP_URLS": "http://h:99999/SECRET"}, "chain.http_urls.0: "),
        ({"ONCEPAID__DATABASE__URL": "postgresql://u:SEC/RET@h/d"}, "database.url: "),
        ({}, "chain.http_urls: is missing"),
    ],
)
async def test_a_bad_setting_is_exit_2_and_one_line_without_secrets(
    tmp_path: Path, env: dict[str, str], line: str
) -> None:
    code, out, err = await run("run", cwd=tmp_path, env=env)
    assert (code, out) == (2, "")
    assert err.startswith(f"oncepaid: {line}")
    assert len(err.splitlines()) == 1
    assert "SEC" not in err


async def test_a_database_that_refuses_us_is_one_line(world: World) -> None:
    path = world.folder / "refused.toml"
    url = world.database_url.replace("/test_", "/gone_", 1)
    path.write_text(config_of(world.stack, url))
    code, _, err = await run("status", "--config", str(path), cwd=world.folder)
    assert code == 1
    assert err.startswith("oncepaid: the database refuses us: ")
    assert len(err.splitlines()) == 1
