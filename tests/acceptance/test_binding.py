"""`oncepaid job bind`, as a process: each outcome by its name and its exit code."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.acceptance.test_commands import run

PAYER = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
NONCE = bytes(range(32))
NAMED = ("--payer", PAYER, "--nonce", "0x" + NONCE.hex())


@pytest.fixture
async def sql(migrated_url: str) -> AsyncIterator[asyncpg.Connection]:
    opened = await asyncpg.connect(migrated_url)
    yield opened
    await opened.close()


@pytest.fixture
def config(migrated_url: str, tmp_path: Path) -> Path:
    path = tmp_path / "oncepaid.toml"
    path.write_text(f'[database]\nurl = "{migrated_url}"\n')
    return path


async def _bind(config: Path, job: object, *options: str) -> tuple[int, str, str]:
    return await run("job", "bind", str(job), *options, "--config", str(config), cwd=config.parent)


async def test_each_outcome_has_a_name(sql: asyncpg.Connection, config: Path) -> None:
    first, second, done = await sql.fetch(
        """
        INSERT INTO jobs (job_uuid, input_data, price_usdc, status)
        SELECT gen_random_uuid(), '{}', 1, status
          FROM unnest('{pending,pending,completed}'::text[]) AS status
        RETURNING id, job_uuid::text AS uuid
        """
    )
    code, out, err = await _bind(config, first["uuid"], *NAMED, "--json")
    named = {"issuer": PAYER.lower(), "reference": "0x" + NONCE.hex()}
    told = {"job_id": first["id"], "job_uuid": first["uuid"], **named, "waiting_payments": []}
    assert (code, json.loads(out), err) == (0, {"outcome": "bound", **told}, "")
    await sql.execute("UPDATE jobs SET status = 'completed' WHERE id = $1", first["id"])
    # What was done is still said to be done once the job was paid by it.
    code, out, err = await _bind(config, first["id"], *NAMED)
    assert (code, err) == (0, "")
    assert out == f"it was bound to job {first['id']} before; nothing changed\n"
    refusals = {
        second["id"]: f"{named['reference']} of {named['issuer']} is bound to job {first['id']}",
        done["id"]: f"job {done['id']} is completed: a payment that is bound to it now would be"
        " one too many",
        4711: "there is no job 4711",
    }
    for number, line in refusals.items():
        assert await _bind(config, number, *NAMED) == (1, "", f"oncepaid: {line}\n")
    code, out, err = await _bind(config, first["id"], "--payer", PAYER)
    assert (code, out) == (2, "")
    assert err == "oncepaid: needs --payer and --nonce, or else --contract and --reference\n"
    assert await sql.fetchval("SELECT count(*) FROM job_bindings") == 1
    notes = await sql.fetch("SELECT who, action, details FROM audit_log")
    assert [note["action"] for note in notes] == ["job.bind"]
    assert notes[0]["who"]
    why = {"why": "no reason given"}
    assert json.loads(notes[0]["details"]) == {"job_id": first["id"], **named, **why}
    await sql.execute("DELETE FROM job_bindings; UPDATE jobs SET status = 'pending'")
    assert (await _bind(config, second["id"], *NAMED, "--why", "asked for"))[0] == 0
    last = "SELECT details ->> 'why' FROM audit_log ORDER BY id DESC LIMIT 1"
    assert await sql.fetchval(last) == "asked for"
    code, out, err = await _bind(config, first["id"], *NAMED, "--why", " ")
    assert (code, out, err) == (2, "", "oncepaid: --why: must say something\n")
