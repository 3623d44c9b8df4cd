"""`oncepaid payment …`: what there is. What an operator does about it is in `desk`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from db.desk_reader import DeskReader
from db.pool import Database
from db.reports import Reports
from oncepaid.cli import AsJson, Config, database_of, fail, load, run_async
from oncepaid.commands.output import print_fields, print_json, print_rows
from oncepaid.commands.refunding import Returnable, ask_about, ready_refund
from oncepaid.domain.chain import Address, TxHash
from oncepaid.domain.desk import is_open, is_waiting_part
from oncepaid.domain.desk_facts import SentBack
from oncepaid.domain.money import Units
from oncepaid.domain.payments import PaymentId, PaymentStatus, Reason
from oncepaid.settings import Settings

payment = typer.Typer(help="Look at payments, and decide about them.", no_args_is_help=True)

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
TOTAL_COLUMNS = ("status", "reason", "payments", "amount_units")
LOSS_COLUMNS = ("payment_id", "amount_units", "tx_hash", "job_uuid", "job_status", "lost_at")


def register(app: typer.Typer) -> None:
    app.add_typer(payment, name="payment")


@payment.command("list")
def list_payments(
    status: Annotated[PaymentStatus | None, typer.Option(help="Only this status.")] = None,
    reason: Annotated[Reason | None, typer.Option(help="Only this reason.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    totals: Annotated[
        bool,
        typer.Option("--totals", help="Sums by reason; JSON is then {payments, totals}."),
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List payments, newest first; unmatched ones with sums of all of them, whatever the limit."""
    settings = load(config)
    with_totals = totals or (status is PaymentStatus.UNMATCHED and not as_json)

    async def main() -> None:
        async with database_of(settings) as database:
            reports = Reports(database)
            rows = await reports.payments(status, limit, reason)
            sums = await reports.payment_totals(status, reason) if with_totals else []
        if as_json:
            print_json({"payments": rows, "totals": sums} if totals else rows)
            return
        print_rows(rows, LIST_COLUMNS, "Payments")
        if with_totals:
            print_rows(sums, TOTAL_COLUMNS, "Totals")

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
    """Show a payment, or all of a transaction: why each stands there, and how to send it back."""
    settings = load(config)

    async def main() -> None:
        async with database_of(settings) as database:
            rows = await Reports(database).payment(name)
            sent_back = await _sent_back(database, rows)
        if not rows:
            fail(f"there is no payment {name}")
        told = await _told(rows, sent_back, settings)
        if as_json:
            print_json(told if name.startswith("0x") else told[0])
            return
        for row in told:
            print_fields(row, f"Payment {row['id']}")

    run_async(main())


async def _sent_back(
    database: Database, rows: Sequence[Mapping[str, Any]]
) -> dict[PaymentId, SentBack]:
    found: dict[PaymentId, SentBack] = {}
    for chain_id, tx_hash in {(row["chain_id"], row["tx_hash"]) for row in rows}:
        found |= await DeskReader(database, chain_id).sent_back(TxHash(tx_hash))
    return found


async def _told(
    rows: Sequence[Mapping[str, Any]], sent_back: Mapping[PaymentId, SentBack], settings: Settings
) -> list[dict[str, Any]]:
    returnable = {
        row["id"]: _returnable(row)
        for row in rows
        if row["chain_id"] == settings.chain.chain_id
        and is_open(PaymentStatus(row["status"]), is_sent_back=row["id"] in sent_back)
    }
    payees = await ask_about([money.sender for money in returnable.values()], settings)
    return [
        {
            **row,
            **_refund_of(sent_back.get(row["id"])),
            "meaning": _meaning(row["reason"]),
            "refund": ready_refund(returnable[row["id"]], payees, settings)
            if row["id"] in returnable
            else None,
        }
        for row in rows
    ]


def _refund_of(sent: SentBack | None) -> dict[str, Any]:
    return {
        "refund_tx_hash": None if sent is None else sent.tx_hash,
        "refund_recognised_by": None if sent is None else sent.recognised_by,
    }


def _returnable(row: Mapping[str, Any]) -> Returnable:
    return Returnable(
        tx_hash=TxHash(row["tx_hash"]),
        sender=Address(row["sender"]),
        recipient=Address(row["recipient"]),
        units=Units(int(row["amount_units"])),
        is_waiting_part=is_waiting_part(
            PaymentStatus(row["status"]),
            None if row["reason"] is None else Reason(row["reason"]),
            has_job=row["job_id"] is not None,
        ),
    )


def _meaning(reason: str | None) -> str | None:
    return None if reason is None else Reason(reason).sentence
