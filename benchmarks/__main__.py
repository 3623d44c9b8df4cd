"""`make bench`: prints one table; every line says what it is compared with."""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
from rich.console import Console
from rich.table import Table

from benchmarks.decoding import decode_costs
from benchmarks.floors import BareListener, backlog_floor
from db.embedded import EmbeddedPostgres
from db.migrate import migrate
from db.pool import Database
from devchain.daemon import Daemon, config_of, start_daemon
from devchain.stack import Stack, start_stack
from devchain.wallet import Payment
from oncepaid.domain.memo import Memo, envelope_of

Row = tuple[str, str, str, str]
PER_BLOCK = 50
LATENCY_PAYMENTS = 150
BLOCK_S = 0.2
"""Base makes a block every 200 ms since Denim; payments come at most one a block here."""
IDLE_S = 20.0


def main() -> None:
    """Run all benchmarks and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--payments", type=int, default=20_000, help="length of the backlog")
    arguments = parser.parse_args()
    table = Table(title="oncepaid on this machine", title_justify="left")
    for column in ("what", "ours", "floor", "ratio or aim"):
        table.add_column(column)
    for row in asyncio.run(_all(arguments.payments)):
        table.add_row(*row)
    Console(width=120).print(table)


async def _all(payments: int) -> list[Row]:
    rows = list(decode_costs())
    with tempfile.TemporaryDirectory(prefix="oncepaid-bench-") as name:
        folder = Path(name)
        postgres = EmbeddedPostgres(f"embedded:{folder}/pg")
        url = postgres.start()
        try:
            async with start_stack(with_claude=True, payers=1) as stack:
                rows += await _latency(stack, await _new_database(url, "latency"), folder)
            async with start_stack(payers=1) as stack:
                rows += await _backlog(stack, await _new_database(url, "backlog"), folder, payments)
        finally:
            postgres.close()
    return rows


async def _new_database(server: str, name: str) -> str:
    admin = await asyncpg.connect(server)
    await admin.execute(f"CREATE DATABASE {name}")
    await admin.close()
    url = server.replace("/postgres?", f"/{name}?", 1)
    database = await Database.connect(url, size=3)
    await migrate(database)
    await database.close()
    return url


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def _latency(stack: Stack, url: str, folder: Path) -> list[Row]:
    """Pay one job a block, and time each row from the moment the block was heard of."""
    visible: dict[str, float] = {}
    async with _connected(url) as watcher, _connected(url) as bare:
        memos = await _jobs(watcher, LATENCY_PAYMENTS)
        await _notify_rows(watcher, visible)
        floor, ready = BareListener(stack, bare), asyncio.Event()
        task = asyncio.create_task(floor.run(ready))
        await ready.wait()
        async with start_daemon(folder, config_of(stack, url)) as daemon:
            await daemon.wait_for("subscription.up")
            calls_before = _calls(await daemon.metrics())
            for memo in memos:
                await stack.payers[0].transfer(stack.merchant, 500_000, envelope_of(memo))
                await _until(lambda: len(visible) == len(floor.stored) == len(floor.heard))
                await asyncio.sleep(BLOCK_S)
            calls = _calls(await daemon.metrics()) - calls_before
            await daemon.wait_for("job.completed", count=len(memos), timeout_s=120)
            paid = await watcher.fetch(
                "SELECT extract(epoch FROM credited_at - seen_at)::float8 FROM payments"
            )
            idle, memory = await _idle_calls(daemon), _memory_mb(daemon.process.pid)
        task.cancel()
    ours = [(visible[tx] - heard) * 1000 for tx, heard in floor.heard.items()]
    least = [(floor.stored[tx] - heard) * 1000 for tx, heard in floor.heard.items()]
    to_paid = [row[0] * 1000 for row in paid]
    return [
        _distribution("block heard → payment row visible", ours, least, "aim: p99 < 10 ms"),
        _distribution("payment row → job paid (included)", to_paid, None, ""),
        ("node calls per live payment", f"{calls / len(memos):.2f}", "", "all calls, one a block"),
        ("node calls per idle hour", f"{idle:.0f}", "18,000 blocks", "poll_interval_s = 5"),
        ("resident memory", f"{memory:.0f} MB", "", "aim: < 150 MB"),
    ]


async def _notify_rows(connection: asyncpg.Connection, visible: dict[str, float]) -> None:
    await connection.execute(
        """
        CREATE FUNCTION bench_tell() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_notify('bench', NEW.tx_hash); RETURN NULL; END $$;
        CREATE TRIGGER bench_tell AFTER INSERT ON payments
            FOR EACH ROW EXECUTE FUNCTION bench_tell();
        """
    )

    def on_row(_: object, pid: int, channel: str, payload: object) -> None:
        visible[str(payload)] = time.perf_counter()

    await connection.add_listener("bench", on_row)


async def _jobs(connection: asyncpg.Connection, count: int) -> list[Memo]:
    await connection.execute(
        """
        INSERT INTO skills (name, price_usdc, service_key) VALUES ('Brainstorm', 0.5, 'brainstorm')
        """
    )
    # More jobs of one price than there are unique amounts for it.
    await connection.execute("UPDATE payment_terms SET amount_fallback = false")
    rows = await connection.fetch(
        """
        INSERT INTO jobs (skill_id, input_data)
        SELECT 1, '{"prompt": "a bakery"}' FROM generate_series(1, $1) RETURNING memo
        """,
        count,
    )
    return [Memo(row["memo"]) for row in rows]


async def _idle_calls(daemon: Daemon) -> float:
    before, started = _calls(await daemon.metrics()), time.perf_counter()
    await asyncio.sleep(IDLE_S)
    calls = _calls(await daemon.metrics()) - before
    return calls * 3600 / (time.perf_counter() - started)


async def _backlog(stack: Stack, url: str, folder: Path, payments: int) -> list[Row]:
    """Pay while no daemon runs, then time the catching up, beside the bare floor."""
    async with _connected(url) as connection:
        memos = await _jobs(connection, payments)
        first = int(await stack.rpc.call("eth_blockNumber"), 16) + 1
        await stack.payers[0].send_many(
            [Payment(to=stack.merchant, units=500_000, tail=envelope_of(memo)) for memo in memos],
            per_block=PER_BLOCK,
        )
        floor_before = await backlog_floor(stack, connection, first)
        config = config_of(stack, url, chain={"start_block": first})
        async with start_daemon(folder, config, "--role", "listener") as daemon:
            started = time.perf_counter()
            await daemon.wait_for("listener.first_start")
            await _until_counted(connection, payments)
            ours = time.perf_counter() - started
            calls, memory = _calls(await daemon.metrics()), _memory_mb(daemon.process.pid)
        await connection.execute("DROP TABLE bare")
        floor_after = await backlog_floor(stack, connection, first)
    floor = (floor_before + floor_after) / 2
    return [
        (
            f"backlog of {payments:,} payments",
            f"{ours:.1f} s, {payments / ours:,.0f}/s",
            f"{floor:.1f} s, {payments / floor:,.0f}/s",
            f"{floor / ours:.0%} of the floor; aim: 70 %",
        ),
        ("node calls per payment of it", f"{calls / payments:.3f}", "1.0", "aim: at most 1.1"),
        ("resident memory after it", f"{memory:.0f} MB", "", "aim: < 150 MB"),
    ]


async def _until_counted(connection: asyncpg.Connection, payments: int) -> None:
    async def stored() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM payments") >= payments)

    async with asyncio.timeout(300):
        while not await stored():
            await asyncio.sleep(0.02)


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.0005)


def _calls(metrics: dict[str, float]) -> float:
    return sum(v for k, v in metrics.items() if k.startswith("oncepaid_rpc_requests_total"))


def _memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _distribution(what: str, ours: Sequence[float], floor: Sequence[float] | None, aim: str) -> Row:
    if floor is None:
        return what, _quantiles(ours), "", aim
    ratio = statistics.median(ours) / statistics.median(floor)
    return what, _quantiles(ours), _quantiles(floor), f"p50 {ratio:.1f}x; {aim}"


def _quantiles(values_ms: Sequence[float]) -> str:
    ranked = sorted(values_ms)
    p50, p99 = ranked[len(ranked) // 2], ranked[min(len(ranked) - 1, len(ranked) * 99 // 100)]
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"


main()
