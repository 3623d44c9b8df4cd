"""`oncepaid payment show`, as a process: what went back is never offered to be sent back again."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.acceptance.test_commands import run

TX = "0x" + "ab" * 32
REFUND = "0x" + "cd" * 32


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


async def add(sql: asyncpg.Connection, block: int, units: int, status: str) -> int:
    """Store a payment of the one transaction, in a block of this number."""
    number: int = await sql.fetchval(
        """
        INSERT INTO payments (chain_id, tx_hash, log_index, block_number, block_hash, block_time,
                              sender, recipient, amount_units, transfers_in_tx, evidence, status,
                              reason, orphaned_from, orphaned_at)
        SELECT 8453, $1, $3::bigint % 1000, $2, '0x' || lpad(to_hex($2::bigint), 64, '0'), now(),
               '0x' || repeat('1', 40), '0x' || repeat('2', 40), $3::bigint, 1, '[]', $4, 'no_memo',
               CASE WHEN $4 = 'orphaned' THEN 'unmatched' END,
               CASE WHEN $4 = 'orphaned' THEN now() END
        RETURNING id
        """,
        *(TX, block, units, status),
    )
    return number


async def test_a_part_of_a_price_is_ignored_before_it_is_sent_back(
    sql: asyncpg.Connection, config: Path
) -> None:
    """Else the rest of the price would pay the job with it while the refund becomes final."""
    part = await add(sql, 9, 5_000_001, "unmatched")
    assert (await shown(config, part))["refund"]["first"] is None
    job = await sql.fetchval(
        """
        WITH s AS (INSERT INTO skills (name) VALUES ('one') RETURNING id)
        INSERT INTO jobs (skill_id, input_data, price_usdc) SELECT id, '{}', 9 FROM s RETURNING id
        """
    )
    await sql.execute(
        "UPDATE payments SET reason = 'underpaid', job_id = $2 WHERE id = $1", part, job
    )
    first = (await shown(config, part))["refund"]["first"]
    assert first.startswith("ignore it first")
    code, out, _ = await run("explain", TX, "--config", str(config), cwd=config.parent)
    assert code == 0
    assert -1 < out.index(first) < out.index("the calldata")
    await sql.execute("UPDATE payments SET status = 'ignored' WHERE id = $1", part)
    assert (await shown(config, part))["refund"]["first"] is None


async def shown(config: Path, name: object) -> Any:
    arguments = ("payment", "show", str(name), "--json", "--config", str(config))
    code, out, err = await run(*arguments, cwd=config.parent)
    assert (code, err) == (0, "")
    return json.loads(out)


async def test_a_refund_that_an_older_row_names(sql: asyncpg.Connection, config: Path) -> None:
    gone = await add(sql, 7, 5_000_001, "orphaned")
    again = await add(sql, 9, 5_000_001, "unmatched")
    other = await add(sql, 9, 5_000_002, "unmatched")
    assert (await shown(config, again))["refund"] is not None
    await sql.execute(
        """
        INSERT INTO payment_refunds (payment_id, chain_id, tx_hash, log_index, recipient,
                                     amount_units, recognised_by)
        VALUES ($1, 8453, $2, 0, '0x' || repeat('1', 40), 5000001, 'oncepaid')
        """,
        *(gone, REFUND),
    )
    told = await shown(config, again)
    assert (told["refund"], told["refund_tx_hash"]) == (None, REFUND)
    assert told["refund_recognised_by"] == "oncepaid"
    by_id = {row["id"]: row for row in await shown(config, TX)}
    assert {number: row["refund_tx_hash"] for number, row in by_id.items()} == {
        **dict.fromkeys((gone, again), REFUND),
        other: None,
    }
    assert [number for number, row in by_id.items() if row["refund"]] == [other]
