"""`oncepaid job …`"""

import json
from decimal import Decimal
from typing import Annotated, Any

import typer

from db.orders import Order, OrderStore
from db.reports import Reports
from oncepaid.cli import (
    EXIT_BAD_SETTING,
    AsJson,
    Config,
    database_of,
    fail,
    load,
    run_async,
)
from oncepaid.commands.bill import print_bill
from oncepaid.commands.output import print_fields, print_json, print_rows
from oncepaid.domain.chain import Address, parse_address
from oncepaid.domain.jobs import JobStatus, PromptRefused, prompt_of
from oncepaid.domain.money import Units, units_of_price
from oncepaid.domain.text import storable_text
from oncepaid.offers import build_services, publish_offers
from oncepaid.paying import PayingTerms, instructions
from oncepaid.settings import ANY_RECIPIENT, Settings

job = typer.Typer(help="Create and look at jobs.", no_args_is_help=True)

LIST_COLUMNS = ("id", "job_uuid", "service_key", "status", "price_usdc", "attempts", "created_at")


def register(app: typer.Typer) -> None:
    app.add_typer(job, name="job")


@job.command()
def create(
    service: Annotated[str, typer.Option(help="The service's key.")],
    text: Annotated[str, typer.Option("--input", help="What the customer wants; - reads stdin.")],
    pay_to: Annotated[str | None, typer.Option(help="One of our recipients.")] = None,
    qr: Annotated[
        bool | None, typer.Option("--qr/--no-qr", help="Codes to scan; at a terminal by default.")
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Create a pending job and print how to pay it."""
    settings = load(config)
    recipient = _recipient_of(settings, pay_to)
    prompt = typer.get_text_stream("stdin").read() if text == "-" else text
    input_data = {"prompt": storable_text(prompt)}
    input_json = json.dumps(input_data)
    refused = prompt_of(input_json, len(input_json))
    if isinstance(refused, PromptRefused):
        fail(f"--input: {refused.message}", EXIT_BAD_SETTING)

    async def main() -> None:
        services = build_services(settings)
        known = services.get(service)
        if known is None:
            fail(f"--service: {service!r} is none of {', '.join(sorted(services))}")
        async with database_of(settings) as database:
            await publish_offers(database, settings, services)
            order = await OrderStore(database).create(
                service_key=service,
                input_data=input_data,
                price_usdc=known.price_usdc,
                pay_to=None if pay_to is None else recipient,
            )
        if order is None:
            fail(f"there is no active skill with a price for the service {service!r}")
        _print_order(order, service, recipient, settings, as_json=as_json, with_codes=qr)

    run_async(main())


def _recipient_of(settings: Settings, pay_to: str | None) -> Address:
    watched = settings.chain.watched
    if pay_to is None:
        if not settings.chain.recipients or settings.chain.recipients[0] == ANY_RECIPIENT:
            fail("--pay-to: is needed, for chain.recipients names none", EXIT_BAD_SETTING)
        return Address(settings.chain.recipients[0])
    try:
        address = parse_address(pay_to)
    except ValueError as exc:
        fail(f"--pay-to: {exc}", EXIT_BAD_SETTING)
    if watched is not None and address not in watched:
        fail(f"--pay-to: {address} is not one of chain.recipients", EXIT_BAD_SETTING)
    return address


def _print_order(
    order: Order,
    service: str,
    recipient: Address,
    settings: Settings,
    *,
    as_json: bool,
    with_codes: bool | None,
) -> None:
    price = units_of_price(order.price_usdc)
    if price is None:
        fail(f"job {order.uuid} has no price: set services.{service}.price_usdc")
    amount = order.unique_amount_units
    terms = PayingTerms(
        chain_id=settings.chain.chain_id,
        token=Address(settings.chain.token),
        recipient=recipient,
        price=price,
        memo=order.memo,
        unique_amount=None if amount is None else Units(amount),
        expires_at=order.expires_at,
    )
    fields: dict[str, Any] = {
        "id": order.id,
        "job_uuid": order.uuid,
        "service_key": service,
        "price_usdc": Decimal(order.price_usdc or 0),
        "pay_to": recipient,
        **instructions(terms),
    }
    if as_json:
        print_json(fields)
    else:
        print_bill(fields, with_codes=with_codes)


@job.command("list")
def list_jobs(
    status: Annotated[JobStatus | None, typer.Option(help="Only this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    settings = load(config)

    async def main() -> None:
        async with database_of(settings) as database:
            rows = await Reports(database).jobs(status, limit)
        if as_json:
            print_json(rows)
        else:
            print_rows(rows, LIST_COLUMNS, "Jobs")

    run_async(main())


@job.command()
def show(
    name: Annotated[str, typer.Argument(metavar="JOB", help="Number or UUID.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show a job with its payments, attempts and result."""
    settings = load(config)

    async def main() -> None:
        async with database_of(settings) as database:
            row = await Reports(database).job(name)
        if row is None:
            fail(f"there is no job {name}")
        fields = {
            **row,
            "input_data": _json(row["input_data"]),
            "output_data": _json(row["output_data"]),
        }
        if as_json:
            print_json(fields)
        else:
            print_fields(fields, f"Job {row['job_uuid']}")

    run_async(main())


def _json(value: Any) -> Any:
    """A host may have made the column `text` or `json`: show what is in it either way."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
