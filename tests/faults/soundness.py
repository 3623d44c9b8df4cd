"""What must hold after every fault (DESIGN §9), judged from the chain, the tables and the calls."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import asyncpg

from devchain.usdc import Usdc, call_data

_TRANSFER = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
_SENDER, _RECIPIENT = 1, 2

Row = tuple[str, int, str, int]
"""Of a payment: transaction, log index, block hash, units."""

# Each finds rows that must not be.
_NEVER = {
    "a job's credited units are not the sum of its credited payments": """
        SELECT j.id, j.credited_units, p.units FROM jobs j LEFT JOIN (
            SELECT job_id, sum(amount_units) AS units FROM payments
             WHERE status = 'credited' GROUP BY job_id) p ON p.job_id = j.id
         WHERE coalesce(p.units, 0) <> j.credited_units AND NOT EXISTS (
            SELECT FROM payments q WHERE q.job_id = j.id AND q.status = 'orphaned'
               AND q.orphaned_from = 'credited' AND q.reversed_at IS NULL)
    """,
    "work on a job without its price, which is not recorded as a loss": """
        SELECT id FROM jobs j
         WHERE status <> 'pending' AND credited_units < price_usdc * 1000000
           AND NOT (is_unbacked AND EXISTS (
               SELECT FROM losses l WHERE l.job_id = j.id AND l.made_good_at IS NULL))
           AND NOT EXISTS (
               SELECT FROM payments q WHERE q.job_id = j.id AND q.status = 'orphaned'
                  AND q.orphaned_from = 'credited' AND q.reversed_at IS NULL)
    """,
    "an open loss of a job that is paid": """
        SELECT l.id FROM losses l JOIN jobs j ON j.id = l.job_id
         WHERE l.made_good_at IS NULL AND NOT j.is_unbacked
    """,
    "a finished job without exactly one answer of its own": """
        SELECT id FROM jobs j
         WHERE status = 'completed' AND (completed_at IS NULL OR output_data IS NULL OR 1 <> (
            SELECT count(*) FROM generation_attempts a
             WHERE a.job_id = j.id AND a.outcome = 'succeeded' AND a.id = j.attempt_id))
    """,
    "a result of an unfinished job": """
        SELECT id FROM jobs WHERE status IN ('pending', 'paid', 'in_progress')
           AND (completed_at IS NOT NULL OR output_data IS NOT NULL)
    """,
    "an attempt on a job that was never paid": """
        SELECT a.id FROM generation_attempts a WHERE NOT EXISTS (
            SELECT FROM payments p WHERE p.job_id = a.job_id
               AND (p.status = 'credited' OR p.orphaned_from = 'credited'))
    """,
}

_UNREST = {
    "a payment above the cursor": """
        SELECT p.id FROM payments p JOIN chain_cursor c ON p.block_number > c.block_number
         WHERE p.status <> 'orphaned'
    """,
    "a payment that nobody decided": "SELECT id FROM payments WHERE status = 'seen'",
    "a payment that nobody credited": "SELECT id FROM payments WHERE status = 'matched'",
    "a paid job that is not finished": """
        SELECT id, status, attempt_id, lease_until, is_unbacked FROM jobs
         WHERE status IN ('paid', 'in_progress')
    """,
    "an attempt without an end": "SELECT id FROM generation_attempts WHERE finished_at IS NULL",
    "a credit of a block that is gone": """
        SELECT id FROM payments WHERE status = 'orphaned' AND orphaned_from = 'credited'
           AND reversed_at IS NULL
    """,
}


async def assert_sound(
    sql: asyncpg.Connection,
    usdc: Usdc,
    merchant: str,
    *,
    prompts: Sequence[str] = (),
    moment: str = "",
) -> None:
    """Fail unless everything holds that holds at any moment at which no daemon writes.

    `prompts` is what Claude was asked so far, where each job's input is the prompt of its own.
    """
    # One moment: the server ends the last statement of a killed daemon when it likes.
    async with sql.transaction(isolation="repeatable_read", readonly=True):
        await _assert_sound(sql, usdc, merchant, prompts, moment)


async def _assert_sound(
    sql: asyncpg.Connection, usdc: Usdc, merchant: str, prompts: Sequence[str], moment: str
) -> None:
    await _assert_rows_are_the_chain(sql, usdc, merchant, moment)
    for what, query in _NEVER.items():
        found = await sql.fetch(query)
        assert not found, f"{moment}: {what}: {found[:5]}"
    attempts = await sql.fetch(
        """
        SELECT j.input_data->>'prompt' AS prompt, count(*) AS count
          FROM generation_attempts a JOIN jobs j ON j.id = a.job_id GROUP BY 1
        """
    )
    written = {row["prompt"]: row["count"] for row in attempts}
    asked = Counter(prompts)
    unwritten = {p: (n, written.get(p, 0)) for p, n in asked.items() if n > written.get(p, 0)}
    assert not unwritten, f"{moment}: more calls than rows of attempts: {unwritten}"


async def assert_at_rest(sql: asyncpg.Connection) -> None:
    """Fail unless everything that was paid for has come to its end."""
    for what, query in _UNREST.items():
        found = await sql.fetch(query)
        assert not found, f"{what}: {found[:5]}"


async def unrest(sql: asyncpg.Connection) -> str | None:
    """Return what is still to do, None at rest."""
    for what, query in _UNREST.items():
        if await sql.fetch(f"{query} LIMIT 1"):
            return what
    return None


async def _assert_rows_are_the_chain(
    sql: asyncpg.Connection, usdc: Usdc, merchant: str, moment: str
) -> None:
    """Each transfer up to the cursor is one row that counts, nothing else is, the sums agree.

    Above it there may be rows that a reorganisation left: they are read again.
    """
    cursor = await sql.fetchrow("SELECT * FROM chain_cursor")
    if cursor is None:
        assert not await sql.fetchval("SELECT count(*) FROM payments"), moment
        return
    first, last = cursor["start_number"] + 1, cursor["block_number"]
    rows = await sql.fetch(
        "SELECT tx_hash, log_index, block_hash, amount_units::bigint FROM payments"
        " WHERE status <> 'orphaned' AND block_number <= $1",
        last,
    )
    head = int(await usdc.rpc.call("eth_blockNumber"), 16)
    block = await usdc.rpc.call("eth_getBlockByNumber", hex(last), False)
    if last > head or block["hash"] != cursor["block_hash"]:
        return  # The chain has moved on to a fork that no daemon has seen yet.
    found: list[Row] = [tuple(row) for row in rows]
    expected = await _transfers(usdc, merchant, first, last)
    too_many, missing = Counter(found) - Counter(expected), Counter(expected) - Counter(found)
    assert (too_many, missing) == (Counter(), Counter()), f"{moment}: {dict(cursor)}"
    # The node keeps no old states, but all logs.
    before = sum(row[3] for row in await _transfers(usdc, merchant, 0, first - 1))
    sent = sum(row[3] for row in await _transfers(usdc, merchant, 0, last, of=_SENDER))
    held = await _balance(usdc, merchant, last)
    assert sum(row[3] for row in found) == held + sent - before, moment


async def _transfers(
    usdc: Usdc, merchant: str, first: int, last: int, *, of: int = _RECIPIENT
) -> list[Row]:
    """Return the transfers in some blocks that have the merchant as this topic."""
    if first > last:
        return []
    who = "0x" + merchant[2:].lower().rjust(64, "0")
    query: dict[str, Any] = {
        "address": usdc.address,
        "fromBlock": hex(first),
        "toBlock": hex(last),
        "topics": [_TRANSFER, *[None] * (of - 1), who],
    }
    return [
        (
            log["transactionHash"],
            int(log["logIndex"], 16),
            log["blockHash"],
            int(log["data"], 16),
        )
        for log in await usdc.rpc.call("eth_getLogs", query)
    ]


async def _balance(usdc: Usdc, address: str, block: int) -> int:
    call = {
        "to": usdc.address,
        "data": "0x" + call_data("balanceOf(address)", address).hex(),
    }
    return int(await usdc.rpc.call("eth_call", call, hex(block)), 16)
