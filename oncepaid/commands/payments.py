"""`oncepaid payment …`"""

from typing import Annotated

import typer

from db.reports import Reports
from oncepaid.cli import AsJson, Config, database_of, fail, load, run_async
from oncepaid.commands.output import print_fields, print_json, print_rows
from oncepaid.domain.payments import PaymentStatus, Reason

payment = typer.Typer(help="Look at payments.", no_args_is_help=True)

LIST_COLUMNS = (
    "id",
    "status",
    "reason",
    "amount_units",
    "sender",
    "tx_hash",
    "job_uuid",
    "seen_at",
)

LOSS_COLUMNS = ("payment_id", "amount_units", "tx_hash", "job_uuid", "job_status", "lost_at")


def register(app: typer.Typer) -> None:
    app.add_typer(payment, name="payment")


@payment.command("list")
def list_payments(
    status: Annotated[PaymentStatus | None, typer.Option(help="Only this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List payments, newest first."""
    settings = load(config)

    async def main() -> None:
        async with database_of(settings) as database:
            rows = await Reports(database).payments(status, limit)
        if as_json:
            print_json(rows)
        else:
            print_rows(rows, LIST_COLUMNS, "Payments")

    run_async(main())


@payment.command("lost")
def list_losses(config: Config = None, as_json: AsJson = False) -> None:
    """List the credited payments that left the chain, and were not made good."""
    settings = load(config)

    async def main() -> None:
        async with database_of(settings) as database:
            rows = await Reports(database).losses()
        if as_json:
            print_json(rows)
        else:
            print_rows(rows, LOSS_COLUMNS, "Losses")

    run_async(main())


@payment.command()
def show(
    name: Annotated[str, typer.Argument(metavar="PAYMENT", help="Number or transaction hash.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show a payment, or a list of all payments of a transaction, and why each stands there."""
    settings = load(config)

    async def main() -> None:
        async with database_of(settings) as database:
            rows = await Reports(database).payment(name)
        if not rows:
            fail(f"there is no payment {name}")
        told = [{**row, "meaning": _meaning(row["reason"])} for row in rows]
        if as_json:
            print_json(told if name.startswith("0x") else told[0])
            return
        for row in told:
            print_fields(row, f"Payment {row['id']}")

    run_async(main())


def _meaning(reason: str | None) -> str | None:
    return None if reason is None else Reason(reason).sentence
