"""`oncepaid status`"""

import typer

from db.reports import Reports, Snapshot
from oncepaid.cli import AsJson, Config, database_of, load, run_async
from oncepaid.commands.output import print_fields, print_json
from oncepaid.domain.money import format_usdc


def register(app: typer.Typer) -> None:
    app.command()(status)


def status(config: Config = None, as_json: AsJson = False) -> None:
    """Show the lag, jobs by state, the oldest waiting job and unmatched money."""
    settings = load(config)

    async def main() -> None:
        async with database_of(settings) as database:
            snapshot = await Reports(database).snapshot()
        fields = _fields_of(snapshot, settings.chain.chain_id)
        if as_json:
            print_json(fields)
        else:
            print_fields(fields, "oncepaid")

    run_async(main())


def _fields_of(snapshot: Snapshot, chain_id: int) -> dict[str, object]:
    cursor = next((row for row in snapshot.cursors if row["chain_id"] == chain_id), None)
    waiting = [snapshot.oldest_job_age_s.get(state, 0.0) for state in ("paid", "in_progress")]
    return {
        "cursor_block": cursor["block_number"] if cursor else None,
        "cursor_hash": cursor["block_hash"] if cursor else None,
        "cursor_block_time": cursor["block_time"] if cursor else None,
        "lag_seconds": round(cursor["lag_s"], 1) if cursor else None,
        "checked_block": cursor["checked_number"] if cursor else None,
        "finalized_block": (
            cursor["finalized_number"] if cursor and cursor["finalized_number"] >= 0 else None
        ),
        "conflict": cursor["conflict"] if cursor else None,
        "jobs": snapshot.jobs,
        "oldest_paid_job_seconds": round(max(waiting), 1),
        "payments": snapshot.payments,
        "lost_usdc": format_usdc(snapshot.lost_units),
        "unmatched_usdc": {
            reason: format_usdc(units) for reason, units in snapshot.unmatched_units.items()
        },
    }
