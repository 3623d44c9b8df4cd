"""`oncepaid verify`"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from db.audit import AuditStore
from db.chain_state import ChainState
from listener.auditor import Audit
from oncepaid.cli import EXIT_BAD_SETTING, AsJson, Config, fail, load, run_async
from oncepaid.commands.books import log_to_stderr, open_books, patiently, progress_of
from oncepaid.commands.output import print_json, print_rows
from oncepaid.domain.auditing import Check
from oncepaid.settings import Settings

First = Annotated[
    int | None, typer.Option("--from", min=0, help="First block; default: the first we read.")
]
Last = Annotated[int | None, typer.Option("--to", min=0, help="Last block; default: the cursor.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The blocks to look at, and what was cut off of what was asked for."""

    first: int
    last: int
    notes: tuple[str, ...]


def register(app: typer.Typer) -> None:
    app.command()(verify)


def verify(
    first: First = None, last: Last = None, config: Config = None, as_json: AsJson = False
) -> None:
    """Recompute what must always hold from the chain and the tables; non-zero if anything fails."""
    if first is not None and last is not None and first > last:
        fail("--to: must not be below --from", EXIT_BAD_SETTING)
    settings = load(config)
    log_to_stderr()
    told: list[tuple[Bounds, list[Check]]] = []

    async def main() -> None:
        told.append(await _verify(settings, first, last))

    run_async(main())
    bounds, checks = told[0]
    if as_json:
        print_json(_json_of(bounds, checks))
    else:
        _print(bounds, checks)
    if any(check.violations for check in checks):
        raise SystemExit(1)


async def _verify(
    settings: Settings, first: int | None, last: int | None
) -> tuple[Bounds, list[Check]]:
    async with open_books(settings) as books:
        bounds = bounds_of(books.state, first, last)
        asked_for_some = first is not None or last is not None
        if asked_for_some and bounds.first > bounds.last:
            lowest = bounds_of(books.state, None, None)
            fail(f"none of these blocks was read: we know {lowest.first} to {lowest.last}")
        audit = Audit(
            books.rpc,
            books.ranges,
            AuditStore(books.database, settings.chain.chain_id),
            books.watch,
            patiently=patiently,
        )
        with progress_of("verify", bounds.last - bounds.first + 1) as on_progress:
            checks = await audit.run(
                books.state, bounds.first, bounds.last, on_progress=on_progress
            )
    return bounds, checks


def bounds_of(state: ChainState, first: int | None, last: int | None) -> Bounds:
    """Cut what was asked for to what the daemon has read."""
    cursor = state.cursor.number
    lowest = (cursor if state.start is None else state.start) + 1
    notes = []
    if first is not None and first < lowest:
        notes.append(f"from {lowest}, not {first}: what is below was never read")
    if last is not None and last > cursor:
        notes.append(f"to {cursor}, not {last}: what is above is not read yet")
    return Bounds(
        first=lowest if first is None else max(first, lowest),
        last=cursor if last is None else min(last, cursor),
        notes=tuple(notes),
    )


def _json_of(bounds: Bounds, checks: Sequence[Check]) -> dict[str, Any]:
    return {
        "ok": not any(check.violations for check in checks),
        "first_block": bounds.first,
        "last_block": bounds.last,
        "notes": list(bounds.notes),
        "checks": [
            {
                "invariant": check.invariant,
                "must_be": check.invariant.sentence,
                "state": check.state,
                "checked": check.checked,
                "not_checked": check.not_checked,
                "violations": [
                    {k: v for k, v in asdict(found).items() if k != "invariant"}
                    for found in check.violations
                ],
            }
            for check in checks
        ],
    }


def _print(bounds: Bounds, checks: Sequence[Check]) -> None:
    for note in bounds.notes:
        typer.echo(f"note: {note}")
    rows = [
        {
            "invariant": check.invariant,
            "state": check.state,
            "checked": check.not_checked or check.checked,
        }
        for check in checks
    ]
    print_rows(rows, ("invariant", "state", "checked"), "What must always hold")
    for check in checks:
        for found in check.violations:
            typer.echo(f"{check.invariant}: {found.text}")
