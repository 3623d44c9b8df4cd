"""`oncepaid conflict …`: a chain that contradicts what was final."""

from typing import Annotated

import typer

from db.audit import Note, OperatorStore
from oncepaid.cli import EXIT_BAD_SETTING, AsJson, Config, database_of, fail, load, run_async
from oncepaid.commands.books import operator
from oncepaid.commands.output import print_fields, print_json

conflict = typer.Typer(
    help="What to do where the chain contradicts what was final.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    app.add_typer(conflict, name="conflict")


@conflict.command()
def show(config: Config = None, as_json: AsJson = False) -> None:
    """Show the conflict while which nothing is credited, if there is one."""
    settings = load(config)

    async def main() -> None:
        async with database_of(settings) as database:
            found = await OperatorStore(database, settings.chain.chain_id).conflict()
        fields = {
            "conflict": found.what if found else None,
            "since": found.since if found else None,
            "cursor_block": found.cursor.number if found else None,
            "cursor_hash": found.cursor.hash if found else None,
            "finalized_block": found.finalized if found else None,
        }
        if as_json:
            print_json(fields)
        else:
            print_fields(fields, "Conflict")

    run_async(main())


@conflict.command()
def resolve(
    why: Annotated[str, typer.Option(help="The reason, for the audit log.")],
    accept: Annotated[
        bool, typer.Option("--accept", help="Take what the node says for the true chain.")
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Let crediting go on, after the node that lied was replaced, or its chain is accepted.

    Where the contradiction is still there and was not accepted, the daemon finds it again.
    """
    if not why.strip():
        fail("--why: must say something", EXIT_BAD_SETTING)
    settings = load(config)
    note = Note(who=operator(), action="conflict.resolve")

    async def main() -> None:
        async with database_of(settings) as database:
            store = OperatorStore(database, settings.chain.chain_id)
            was = await store.resolve_conflict(accept=accept, why=why.strip(), note=note)
        if was is None:
            fail("there is no conflict")
        if as_json:
            print_json({"was": was, "accepted": accept})
            return
        typer.echo(f"resolved: {was}")
        if accept:
            typer.echo("Blocks far below may have changed, too: run `oncepaid verify` next, and")
            typer.echo("`oncepaid rescan` for the blocks that it names.")
        else:
            typer.echo("It is declared again while the node in use still says the same.")

    run_async(main())
