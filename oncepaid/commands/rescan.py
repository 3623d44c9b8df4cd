"""`oncepaid rescan`"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import typer

from db.audit import Note, OperatorStore
from listener.follower import FetchRange
from listener.rescanner import Rescanned, Rescanner
from oncepaid.cli import EXIT_BAD_SETTING, AsJson, Config, fail, load, run_async
from oncepaid.commands.books import (
    Books,
    log_to_stderr,
    open_books,
    operator,
    patiently,
    progress_of,
)
from oncepaid.commands.output import print_json, print_rows
from oncepaid.domain.chain import BlockRef
from oncepaid.domain.payments import ObservedPayment, OrphanedPayment, PaymentId
from oncepaid.settings import Settings

COLUMNS = ("change", "amount_units", "block", "transaction", "payment", "was", "job_uuid")


def register(app: typer.Typer) -> None:
    app.command()(rescan)


def rescan(
    first: Annotated[int, typer.Option("--from", min=0, help="First block.")],
    last: Annotated[int, typer.Option("--to", min=0, help="Last block.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Read blocks again, store what is missing, orphan what is gone. May be repeated."""
    if first > last:
        fail("--to: must not be below --from", EXIT_BAD_SETTING)
    settings = load(config)
    log_to_stderr()
    told: list[dict[str, Any]] = []

    async def main() -> None:
        async with open_books(settings) as books:
            told.append(await _rescan(settings, books, first, last))

    run_async(main())
    if as_json:
        print_json(told[0])
    else:
        _print(told[0])


async def _rescan(settings: Settings, books: Books, first: int, last: int) -> dict[str, Any]:
    store = OperatorStore(books.database, settings.chain.chain_id)
    note = Note(who=operator(), action="rescan")

    async def repair(
        step: FetchRange,
        missing: Sequence[ObservedPayment],
        gone: Sequence[PaymentId],
        anchor: BlockRef,
    ) -> list[OrphanedPayment]:
        return await store.repair(step.first, step.last, missing, gone, anchor=anchor, note=note)

    rescanner = Rescanner(books.rpc, books.ranges, books.watch, repair)
    end = min(last, books.state.cursor.number)
    if first > end:
        fail(f"--from: block {first} is above the cursor, which stands at {end}")
    done: list[Rescanned] = []
    with progress_of("rescan", end - first + 1) as on_progress:
        at = first
        while at <= end:
            one = await patiently(partial(rescanner.repair_next, at, end))
            done.append(one)
            on_progress(one.last - one.first + 1)
            at = one.last + 1
    notes = []
    if end < last:
        notes.append(f"to {end}, not {last}: what is above is not read yet")
    return {
        "first_block": first,
        "last_block": end,
        "notes": notes,
        "added": [_added(payment) for one in done for payment in one.added],
        "orphaned": [_orphaned(payment) for one in done for payment in one.orphaned],
        "altered": [row.id for one in done for row in one.altered],
    }


def _added(payment: ObservedPayment) -> dict[str, Any]:
    log = payment.log
    return {
        "tx_hash": log.tx_hash,
        "log_index": log.log_index,
        "block_number": log.block.number,
        "recipient": log.recipient,
        "amount_units": log.units,
    }


def _orphaned(payment: OrphanedPayment) -> dict[str, Any]:
    return {
        "payment_id": payment.id,
        "tx_hash": payment.tx_hash,
        "amount_units": payment.units,
        "was": payment.was,
        "job_uuid": payment.job_uuid,
    }


def _print(told: dict[str, Any]) -> None:
    for note in told["notes"]:
        typer.echo(f"note: {note}")
    rows = [
        {
            "change": change,
            "amount_units": row["amount_units"],
            "block": row.get("block_number"),
            "transaction": row["tx_hash"],
            "payment": row.get("payment_id"),
            "was": row.get("was"),
            "job_uuid": row.get("job_uuid"),
        }
        for change in ("added", "orphaned")
        for row in told[change]
    ]
    if rows:
        print_rows(rows, COLUMNS, "Repaired")
    for payment_id in told["altered"]:
        typer.echo(f"payment {payment_id} says otherwise than its log; nothing was changed there")
    added, orphaned = len(told["added"]), len(told["orphaned"])
    blocks = f"blocks {told['first_block']} to {told['last_block']}"
    typer.echo(f"{blocks}: {added} added, {orphaned} orphaned")
