"""`oncepaid demo`, which needs a checkout: its chain and payers are not part of the package."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import typer

from oncepaid.cli import fail, run_async

Play = Callable[..., Coroutine[Any, Any, int]]


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Go on, in .demo, until Ctrl-C.")] = False,
) -> None:
    """Show it all on this machine: a local chain, payments, jobs and their results."""
    play = _installed()
    codes: list[int] = []

    async def main() -> None:
        codes.append(await _until_signal(play(keep=keep)))

    run_async(main())
    raise SystemExit(codes[0])


def _installed() -> Play:
    """Return the demo, or end with one line that says how to get it."""
    try:
        from devchain.demo import run_demo
        from devchain.processes import DevToolError, node_file
    except ModuleNotFoundError as exc:
        fail(f"the demo is not installed ({exc}): run `make demo` in a checkout of oncepaid")
    try:
        node_file("@foundry-rs")
    except DevToolError:
        fail("the demo's local chain is not installed: run `make demo` in a checkout of oncepaid")
    return run_demo


async def _until_signal(demo: Coroutine[Any, Any, int]) -> int:
    """Return the demo's exit code; the first SIGINT or SIGTERM cancels it, which stops it all."""
    task = asyncio.create_task(demo, name="demo")
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        # A second Ctrl-C must not cut the clean-up short; it is bounded in time.
        if not received:
            task.cancel()
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        return 128 + received[0]
