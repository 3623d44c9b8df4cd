"""The command line: arguments and settings in, exit codes and tables out."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import structlog
import typer

from db.embedded import PREFIX, EmbeddedPostgres
from db.migrate import migrate, missing_migrations
from db.pool import Database
from oncepaid import __version__
from oncepaid.domain.errors import BadSetting, OncepaidError, Permanent
from oncepaid.logs import configure_logging
from oncepaid.setting_sources import load_settings
from oncepaid.settings import Settings

EXIT_FAILED: Final = 1
EXIT_BAD_SETTING: Final = 2
STOP_TIMEOUT_S: Final = 12.0
"""A stop is bounded: systemd and operators wait 15 s."""

app = typer.Typer(
    help="Watches USDC arrive on Base, matches it to jobs, has Claude do them: once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="ONCEPAID_CONFIG", help="Settings file (TOML)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class NotMigrated(Permanent):
    """A command needs tables that are not there yet."""


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    """End the command with one line on standard error."""
    typer.echo(f"oncepaid: {message}", err=True)
    raise SystemExit(code)


def load(config: Path | None) -> Settings:
    """Read the settings, or end with one line that names the key."""
    try:
        settings = load_settings(config)
    except BadSetting as exc:
        fail(str(exc), EXIT_BAD_SETTING)
    configure_logging(form=settings.log.format, level=settings.log.level)
    return settings


def run_async(main: Coroutine[Any, Any, None]) -> None:
    """Run a command's coroutine; our own errors become one line and an exit code."""
    try:
        _run(main)
    except BaseExceptionGroup as group:
        _end_of_group(group)
    except OncepaidError as exc:
        _end(exc)


def _run(main: Coroutine[Any, Any, None]) -> None:
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    try:
        import uvloop
    except ImportError:  # only Linux has it among our requirements
        pass
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


def _end(exc: OncepaidError) -> NoReturn:
    fail(str(exc), EXIT_BAD_SETTING if isinstance(exc, BadSetting) else EXIT_FAILED)


def _end_of_group(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    ours = group.subgroup(OncepaidError)
    leaf: BaseException | None = ours
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    if isinstance(leaf, OncepaidError):
        _end(leaf)
    raise group


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options of the program itself."""


@app.command()
def run(
    config: Config = None,
    role: Annotated[str, typer.Option(help="listener, worker or all.")] = "all",
) -> None:
    """Run the daemon until SIGTERM."""
    from oncepaid.daemon import Role, run_daemon

    if role not in set(Role):
        fail("--role: must be listener, worker or all", EXIT_BAD_SETTING)
    settings = load(config)
    run_async(until_signal(lambda: run_daemon(settings, Role(role))))


async def until_signal(start: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine until it ends by itself or SIGTERM or SIGINT come; then stop it in time."""
    from oncepaid import sdnotify

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    task = asyncio.create_task(start(), name="daemon")
    stopping = asyncio.create_task(stop.wait(), name="signal")
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if task.done():
        task.result()
        return
    log = structlog.get_logger()
    log.info("daemon.stopping")
    sdnotify.notify("STOPPING=1")
    # Whatever hangs (a frozen server, a thread in a system call) must not hold up the exit.
    timer = threading.Timer(STOP_TIMEOUT_S, os._exit, (0,))
    timer.daemon = True
    timer.start()
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
    except BaseExceptionGroup as group:
        log.error("daemon.stop_failed", error=repr(group.exceptions))
    log.info("daemon.stopped")


@app.command("migrate")
def migrate_command(config: Config = None) -> None:
    """Bring the database to this version; safe to repeat, safe beside a running daemon."""
    settings = load(config)

    async def main() -> None:
        from oncepaid.offers import build_services, publish_offers

        services = build_services(settings)
        async with database_of(settings, migrated=False) as database:
            applied = await migrate(database)
            await publish_offers(database, settings, services)
        for name in applied:
            typer.echo(f"applied {name}")
        typer.echo("the database is at this version")

    run_async(main())


@asynccontextmanager
async def database_of(settings: Settings, *, migrated: bool = True) -> AsyncIterator[Database]:
    """Open the database for one command; raises at once where it is away or not `migrated`."""
    async with AsyncExitStack() as stack:
        url = settings.database.url.get_secret_value()
        if url.startswith(PREFIX):
            embedded = EmbeddedPostgres(url)
            if migrated and not embedded.exists:
                raise NotMigrated(f"there is no database at {url}: is the right --config given?")
            stack.callback(embedded.close)
            url = embedded.start()
        database = await Database.connect(url, size=3)
        stack.push_async_callback(database.close)
        if migrated and await missing_migrations(database):
            raise NotMigrated("the database is not at this version: run `oncepaid migrate`")
        yield database


def main() -> None:
    """The `oncepaid` command."""
    from oncepaid.commands import (
        binding,
        check,
        conflict,
        demo,
        desk,
        explain,
        jobs,
        payments,
        rescan,
        status,
        verify,
    )

    for module in (
        *(binding, check, conflict, demo, desk, explain, jobs, payments, rescan, status, verify),
    ):
        module.register(app)
    app()
