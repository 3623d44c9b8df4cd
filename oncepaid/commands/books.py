"""What commands need that hold the chain against the tables: both opened, and patience."""

import asyncio
import os
import pwd
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog
import typer
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from db.chain_state import ChainState
from db.pool import Database
from db.ranges import RangeStore
from listener.ranges import Watch
from listener.rpc import HttpRpc
from oncepaid.cli import database_of, fail
from oncepaid.domain.chain import Address
from oncepaid.domain.errors import BadSetting, Retryable
from oncepaid.domain.retrying import LOOP_BACKOFF
from oncepaid.metrics import Metrics
from oncepaid.settings import Settings
from oncepaid.values import watch_of

TRIES: Final = 6

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """Chain and tables, opened, and where the cursor stood then."""

    database: Database
    ranges: RangeStore
    rpc: HttpRpc
    watch: Watch
    state: ChainState


def log_to_stderr() -> None:
    """Keep standard output for what the command prints."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


@asynccontextmanager
async def open_books(settings: Settings) -> AsyncIterator[Books]:
    """Open both for one command; ends it with one line where the chain was never read."""
    chain = settings.chain
    if not chain.http_urls:
        raise BadSetting("chain.http_urls", "is missing: at least one HTTP endpoint of a node")
    if not chain.recipients:
        raise BadSetting("chain.recipients", "is missing: the addresses that customers pay to")
    token = Address(chain.token)
    metrics = Metrics(CollectorRegistry())
    async with (
        database_of(settings) as database,
        HttpRpc(chain.http_urls, chain_id=chain.chain_id, token=token, metrics=metrics) as rpc,
    ):
        ranges = RangeStore(database, chain.chain_id)
        state = await ranges.state()
        if state is None:
            fail("the chain was never read: start the daemon first")
        if state.conflict is not None:
            typer.echo(f"note: the chain is in conflict: {state.conflict}", err=True)
        await patiently(rpc.verify)
        yield Books(
            database=database, ranges=ranges, rpc=rpc, watch=watch_of(settings), state=state
        )


async def patiently(attempt: Callable[[], Awaitable[T]]) -> T:
    """Repeat what a node or a database refused for a passing reason, some times."""
    for failures in range(1, TRIES):
        try:
            return await attempt()
        except Retryable:
            await asyncio.sleep(LOOP_BACKOFF.delay_s(failures, random.random))
    return await attempt()


@contextmanager
def progress_of(what: str, blocks: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal; yields what is called with each number of blocks done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("blocks"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task(what, total=max(blocks, 0))
        yield lambda done: bar.advance(task, done)


def operator() -> str:
    """Return who runs the command: the user of the operating system, and whoever became him."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    before = os.environ.get("SUDO_USER")
    return f"{name} (sudo by {before})" if before else name
