"""`oncepaid demo`: a chain, payers, Claude and the daemon on this machine, and money that moves."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp

from db.pool import Database
from db.reports import Reports
from devchain.demo_daemon import (
    CONFIG,
    KEPT_FOLDER,
    LOG,
    DemoDaemon,
    DemoFailed,
    demo_folder,
    start_daemon,
    take_api_key,
    write_config,
)
from devchain.demo_scenes import SCENES, Stage, play
from devchain.demo_view import View, command, python
from devchain.processes import DevToolError
from devchain.rpc import RpcError
from devchain.stack import start_stack
from oncepaid.domain.errors import OncepaidError

_JOB_S = 30.0
# Three attempts of the real API, each bounded at 30 s, and the pauses between them.
_REAL_JOB_S = 150.0
_LOG_LINES = 20
# What can be said in a line; anything else is a bug and keeps its traceback.
_EXPECTED = (
    *(DemoFailed, DevToolError, RpcError, OncepaidError),
    *(aiohttp.ClientError, TimeoutError),
)


async def run_demo(*, keep: bool) -> int:
    """Play the demo and return its exit code: 0 only if all ended as it should.

    Changes the process's environment. With `keep` it goes on until it is cancelled, which is then
    its regular end; otherwise cancelling stops everything and passes on.
    """
    started_s = time.monotonic()
    view = View()
    log: list[str] = []
    api_key = take_api_key(os.environ)
    try:
        with demo_folder(keep=keep) as folder:
            try:
                async with _stage(view, folder, api_key) as stage:
                    problems = await play(stage)
                    if keep and not problems:
                        _say_how_it_ended(view, time.monotonic() - started_s)
                        await _play_on(stage)
            finally:
                log = _end_of(folder / LOG)
    except _EXPECTED as exc:
        problems = [str(exc) or repr(exc)]
    if problems:
        view.failed(problems, log)
        return 1
    _say_goodbye(view, keep, time.monotonic() - started_s)
    return 0


@asynccontextmanager
async def _stage(view: View, folder: Path, api_key: str | None) -> AsyncIterator[Stage]:
    """Run chain, daemon and database until the block ends."""
    view.title(
        "oncepaid demo",
        "USDC arrives, is matched to a job, and Claude does the job: all on this machine, "
        "without real money.",
    )
    async with AsyncExitStack() as stack:
        with view.waiting("starting the chain"):
            chain = await stack.enter_async_context(start_stack(with_claude=api_key is None))
        config = write_config(folder, chain)
        with view.waiting("starting the daemon"):
            daemon = await stack.enter_async_context(start_daemon(config, api_key=api_key))
            database = await Database.connect(daemon.database_url, size=2)
            stack.push_async_callback(database.close)
        stage = Stage(
            view=view,
            config=config,
            chain=chain,
            daemon=daemon,
            database=database,
            reports=Reports(database),
            job_s=_JOB_S if api_key is None else _REAL_JOB_S,
        )
        await _say_what_runs(stage)
        yield stage


async def _say_what_runs(stage: Stage) -> None:
    version, _ = await stage.reports.server()
    claude = "Anthropic's API, with the key in ANTHROPIC_API_KEY (a few cents)"
    if stage.chain.claude is not None:
        claude = "a stand-in, canned answers (set ANTHROPIC_API_KEY for the real one)"
    process, after_s = stage.daemon.process.pid, stage.daemon.ready_after_s
    stage.view.facts(
        {
            "chain": f"anvil, with Base's chain id {stage.chain.anvil.chain_id}",
            "token": "Circle's own USDC contract behind its proxy, at its address on Base",
            "Claude": claude,
            "database": f"PostgreSQL {version}, embedded",
            "daemon": f"`oncepaid run`, process {process}, ready after {after_s:.1f} s",
        }
    )
    stage.view.say("\nTimes below count from the moment when the transaction was sent.")


def _say_how_it_ended(view: View, total_s: float) -> None:
    view.heading("All as it should be")
    view.say(f"{len(SCENES)} jobs completed, 1 payment unmatched (no_memo), in {total_s:.1f} s.")


def _say_goodbye(view: View, keep: bool, total_s: float) -> None:
    if keep:
        view.say(f"\nAll stopped. Database and log are in {KEPT_FOLDER} until the next demo.")
        return
    _say_how_it_ended(view, total_s)
    view.say("All is stopped and removed. To play on: make demo ARGS=--keep")


async def _play_on(stage: Stage) -> None:
    """Say how to go on by hand, and wait until cancelled; raises DemoFailed if the daemon ends."""
    view = stage.view
    view.heading("Play on")
    view.say("All of it runs until Ctrl-C. In another terminal, in this directory:\n")
    view.lines(_commands())
    view.say(
        "\nJOB is the id that `job create` prints. `devchain.pay` pays it with its memo; the other "
        "ways are --way authorization and --way amount."
    )
    view.say(f"The daemon's log is {KEPT_FOLDER / LOG}.")
    await _until_cancelled(stage.daemon)


def _commands() -> list[str]:
    config = ("--config", str(KEPT_FOLDER / CONFIG))
    return [
        command("job", "create", "--service", "concept", "--input", "A bakery", *config),
        f"{python()} -m devchain.pay {' '.join(config)} JOB",
        command("job", "show", *config, "JOB"),
        command("payment", "list", *config),
        command("status", *config),
    ]


async def _until_cancelled(daemon: DemoDaemon) -> None:
    try:
        code = await daemon.process.wait()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        task.uncancel()
    else:
        raise DemoFailed(f"the daemon ended by itself with exit code {code}")


def _end_of(log: Path) -> list[str]:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return lines[-_LOG_LINES:]
