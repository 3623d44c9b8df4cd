"""`oncepaid payment assign|ignore|refund`: what an operator decides about a payment."""

from datetime import timedelta
from typing import Annotated, Any, assert_never

import typer

from db.audit import Note
from db.desk import DeskStore
from listener.refunds import RefundReader, VerifiedRefund
from oncepaid.cli import EXIT_BAD_SETTING, AsJson, Config, database_of, fail, load, run_async
from oncepaid.commands.arguments import NO_REASON, Why, reason_of, tx_hash_of
from oncepaid.commands.books import operator, patiently
from oncepaid.commands.output import print_json
from oncepaid.commands.payments import payment as payments
from oncepaid.commands.refunding import open_rpc
from oncepaid.domain.chain import Address, TxHash, parse_address
from oncepaid.domain.desk import (
    Allowed,
    Already,
    Obstacle,
    Recorded,
    RefundRuling,
    Refused,
)
from oncepaid.domain.errors import BadSetting
from oncepaid.domain.payments import PaymentId, StoredLog
from oncepaid.domain.refunding import NotFinalYet, RefundRefused
from oncepaid.domain.wording import listed, usdc
from oncepaid.settings import Settings

Name = Annotated[
    str, typer.Argument(metavar="PAYMENT", help="Number, or the hash of its transaction.")
]


def register(_: typer.Typer) -> None:
    for command in (assign, ignore, refund):
        payments.command()(command)


def assign(
    payment: Name,
    job: Annotated[str, typer.Argument(metavar="JOB", help="Number or UUID.")],
    why: Why = NO_REASON,
    accept_short: Annotated[
        bool,
        typer.Option("--accept-short", help="Where it is too little, lower the job's price to it."),
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Give a payment that pays no job to one. The daemon then decides it anew, by that."""
    reason = reason_of(why)
    settings = load(config)
    note = Note(who=operator(), action="payment.assign")

    async def main() -> None:
        async with database_of(settings) as database:
            store = DeskStore(database, settings.chain.chain_id)
            found = await _payment_of(store, payment)
            wanted = await store.find_job(job)
            if wanted is None:
                fail(f"there is no job {job}")
            ruling = await store.assign(
                found, wanted, accept_short=accept_short, why=reason, note=note
            )
        done = f"payment {found} is given to job {wanted}; the daemon decides it next"
        price = None
        if isinstance(ruling, Allowed) and ruling.lower_price_to is not None:
            price = ruling.lower_price_to
            done = f"job {wanted} now costs {usdc(price)}; {done}"
        more = {"payment_id": found, "job_id": wanted, "price_units": price}
        _tell(ruling, done, more, as_json=as_json)

    run_async(main())


def ignore(
    payment: Name, why: Why = NO_REASON, config: Config = None, as_json: AsJson = False
) -> None:
    """Close a payment that pays no job, with nothing owed for it."""
    reason = reason_of(why)
    settings = load(config)
    note = Note(who=operator(), action="payment.ignore")

    async def main() -> None:
        async with database_of(settings) as database:
            store = DeskStore(database, settings.chain.chain_id)
            found = await _payment_of(store, payment)
            ruling = await store.ignore(found, why=reason, note=note)
        _tell(ruling, f"payment {found} is ignored", {"payment_id": found}, as_json=as_json)

    run_async(main())


def refund(
    payment: Name,
    tx: Annotated[str, typer.Option(help="The transaction that sent it back.")],
    why: Why = NO_REASON,
    to: Annotated[
        str | None, typer.Option(help="Where it went, if not to the address that paid.")
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Close a payment as sent back, after a look at the chain: this sends nothing by itself."""
    reason, tx_hash = reason_of(why), tx_hash_of(tx, "--tx")
    target = None if to is None else _address_of(to)
    settings = load(config)
    note = Note(who=operator(), action="payment.refund")

    async def main() -> None:
        async with database_of(settings) as database:
            store = DeskStore(database, settings.chain.chain_id)
            found = await _payment_of(store, payment)
            log = await store.log_of(found)
            if log is None:
                fail(f"payment {found} is on another chain than chain.chain_id")
            verified = await _verify(settings, log, tx_hash, target)
            ruling = await _record(store, found, verified, reason, note)
        for warning in verified.warnings:
            typer.echo(f"warning: {warning}", err=True)
        more = {"payment_id": found, "tx_hash": tx_hash, "warnings": list(verified.warnings)}
        _tell(ruling, f"payment {found} is closed as sent back", more, as_json=as_json)

    run_async(main())


async def _payment_of(store: DeskStore, name: str) -> PaymentId:
    found = await store.find_payments(name)
    if not found:
        fail(f"there is no payment {name}")
    if len(found) > 1:
        numbers = listed([str(one) for one in found])
        fail(f"{name} has the payments {numbers}: name one by its number")
    return found[0]


async def _verify(
    settings: Settings, log: StoredLog, tx_hash: TxHash, to: Address | None
) -> VerifiedRefund:
    chain = settings.chain
    if not chain.http_urls:
        raise BadSetting("chain.http_urls", "is missing: a refund is looked at on the chain")
    async with open_rpc(settings) as rpc:
        await patiently(rpc.verify)
        found = await patiently(
            lambda: RefundReader(rpc).verify(
                tx_hash,
                log,
                token=Address(chain.token),
                ours=chain.watched,
                age=None if chain.finality_tags else timedelta(seconds=chain.finalized_age_s),
                to=to,
            )
        )
    if isinstance(found, NotFinalYet):
        fail(found.sentence)
    if isinstance(found, RefundRefused):
        fail(f"{tx_hash} does not send payment {log.id} back: {found.reason.sentence}")
    return found


async def _record(
    store: DeskStore, payment: PaymentId, verified: VerifiedRefund, why: str, note: Note
) -> RefundRuling:
    """One batch may hold several transfers alike: the first that serves no other payment is it."""
    ruling: RefundRuling | None = None
    for sent in verified.transfers:
        ruling = await store.record_refund(
            payment, sent, why=why, note=note, warnings=verified.warnings
        )
        if not (isinstance(ruling, Refused) and ruling.obstacle is Obstacle.TRANSFER_TAKEN):
            break
    assert ruling is not None, "what was verified has a transfer"
    return ruling


def _address_of(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as exc:
        fail(f"--to: {exc}", EXIT_BAD_SETTING)


def _tell(ruling: RefundRuling, done: str, more: dict[str, Any], *, as_json: bool) -> None:
    match ruling:
        case Allowed():
            outcome, sentence = "done", done
        case Already(sentence=sentence):
            outcome = "already"
        case Refused(sentence=sentence) | Recorded(sentence=sentence):
            fail(sentence)
        case _:
            assert_never(ruling)
    if as_json:
        print_json({"outcome": outcome, "meaning": sentence, **more})
    else:
        typer.echo(sentence)
