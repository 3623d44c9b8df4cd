"""`oncepaid job bind`: a payment that will carry no memo, or came without one, finds its job."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final, NoReturn, assert_never

import typer
from eth_utils.address import is_checksum_address

from db.audit import Note
from db.bindings import AlreadyBound, Binding, BindingStore, Bound, BoundToAnother, NoSuchJob
from db.reports import Reports, Row
from oncepaid.cli import EXIT_BAD_SETTING, AsJson, Config, database_of, fail, load, run_async
from oncepaid.commands.arguments import NO_REASON, Why, reason_of
from oncepaid.commands.books import operator
from oncepaid.commands.jobs import job
from oncepaid.commands.output import print_json
from oncepaid.domain.chain import Address, parse_address
from oncepaid.domain.jobs import JobId, JobStatus
from oncepaid.domain.memo import NONCE_BYTES, Reference, memo_of_nonce
from oncepaid.settings import Settings

MAX_REFERENCE_BYTES: Final = 64
"""As the table `job_bindings` has it."""


def register(app: typer.Typer) -> None:
    job.command()(bind)


def bind(
    name: Annotated[str, typer.Argument(metavar="JOB", help="Number or UUID.")],
    payer: Annotated[
        str | None, typer.Option(help="Who signed the EIP-3009 authorization (x402).")
    ] = None,
    nonce: Annotated[str | None, typer.Option(help="Its nonce, 32 bytes in hex.")] = None,
    contract: Annotated[
        str | None, typer.Option(help="Or one of matching.reference_contracts, or the token.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="And what it calls the payment, in hex.")
    ] = None,
    why: Why = NO_REASON,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Say which job a payment is for, by the nonce that its payer signed: before it, or after."""
    reason = reason_of(why)
    settings = load(config)
    try:
        bound_by = reference_of(
            payer=payer,
            nonce=nonce,
            contract=contract,
            reference=reference,
            believed=_believed(settings),
        )
    except ValueError as exc:
        fail(str(exc), EXIT_BAD_SETTING)
    note = Note(who=operator(), action="job.bind")

    async def main() -> None:
        async with database_of(settings) as database:
            found = _bindable(await Reports(database).job(name), name, bound_by)
            outcome = await BindingStore(database).bind(
                JobId(found["id"]), bound_by, why=reason, note=note
            )
        told = _told(outcome, found, bound_by)
        if as_json:
            print_json(told)
        else:
            typer.echo("\n".join(_sentences(told)))

    run_async(main())


def reference_of(
    *,
    payer: str | None,
    nonce: str | None,
    contract: str | None,
    reference: str | None,
    believed: Collection[Address],
) -> Reference:
    """Return what the options name. Raises `ValueError` with a line that names the option.

    `believed` are the contracts of which what they call a payment is evidence.
    """
    match payer, nonce, contract, reference:
        case str(), str(), None, None:
            return _of_authorization(payer, nonce)
        case None, None, str(), str():
            return _of_contract(contract, reference, believed)
        case _:
            raise ValueError("needs --payer and --nonce, or else --contract and --reference")


def _of_authorization(payer: str, nonce: str) -> Reference:
    value = _bytes_of("--nonce", nonce)
    if len(value) != NONCE_BYTES:
        raise ValueError(f"--nonce: must have {NONCE_BYTES} bytes, not {len(value)}")
    memo = memo_of_nonce(value)
    if memo is not None:
        # It is read as a memo, and a binding of it would never be looked for.
        raise ValueError(f"--nonce: it carries the memo 0x{memo.hex()}, which binds by itself")
    return Reference(issuer=_address_of("--payer", payer), value=value)


def _of_contract(contract: str, reference: str, believed: Collection[Address]) -> Reference:
    value, issuer = _bytes_of("--reference", reference), _address_of("--contract", contract)
    if not 1 <= len(value) <= MAX_REFERENCE_BYTES:
        raise ValueError(f"--reference: must have 1 to {MAX_REFERENCE_BYTES} bytes")
    if issuer not in believed:
        raise ValueError(f"--contract: {issuer} is not one of matching.reference_contracts")
    return Reference(issuer=issuer, value=value)


def _address_of(option: str, text: str) -> Address:
    try:
        address = parse_address(text)
    except ValueError as exc:
        raise ValueError(f"{option}: {exc}") from exc
    # A binding to an address that nobody has would wait for ever, and nobody would know why.
    digits = text[2:]
    if digits not in (digits.lower(), digits.upper()) and not is_checksum_address(text):
        raise ValueError(f"{option}: {text} has a wrong EIP-55 checksum: a digit was mistyped")
    return address


def _bytes_of(option: str, text: str) -> bytes:
    digits = text.removeprefix("0x")
    try:
        # `fromhex` would pass over blanks.
        if digits == text or not digits.isalnum():
            raise ValueError
        return bytes.fromhex(digits)
    except ValueError:
        raise ValueError(f"{option}: must be 0x and pairs of hex digits") from None


def _believed(settings: Settings) -> set[Address]:
    contracts = [entry.address for entry in settings.matching.reference_contracts]
    return {Address(text.lower()) for text in (settings.chain.token, *contracts)}


def _bindable(found: Row | None, name: str, bound_by: Reference) -> Row:
    if found is None:
        _fail_without_job(name)
    if found["status"] != JobStatus.PENDING and not _has(found, bound_by):
        fail(
            f"job {found['id']} is {found['status']}: a payment that is bound to it now would be"
            " one too many"
        )
    return found


def _has(found: Row, bound_by: Reference) -> bool:
    return any(
        (binding["issuer"], binding["reference"]) == (bound_by.issuer, bound_by.value)
        for binding in found["bindings"]
    )


def _fail_without_job(name: object) -> NoReturn:
    fail(f"there is no job {name}")


def _told(outcome: Binding, found: Row, bound_by: Reference) -> dict[str, Any]:
    match outcome:
        case Bound(waiting=waiting):
            told, numbers = "bound", list(waiting)
        case AlreadyBound():
            told, numbers = "already_bound", []
        case BoundToAnother(job=other):
            fail(f"0x{bound_by.value.hex()} of {bound_by.issuer} is bound to job {other}")
        case NoSuchJob():
            _fail_without_job(found["id"])
        case _:
            assert_never(outcome)
    return {
        "outcome": told,
        "job_id": found["id"],
        "job_uuid": found["job_uuid"],
        "issuer": bound_by.issuer,
        "reference": "0x" + bound_by.value.hex(),
        "waiting_payments": numbers,
    }


def _sentences(told: Mapping[str, Any]) -> list[str]:
    if told["outcome"] == "already_bound":
        return [f"it was bound to job {told['job_id']} before; nothing changed"]
    lines = [f"bound: {told['reference']} of {told['issuer']} pays job {told['job_id']}"]
    waiting = told["waiting_payments"]
    lines += [f"payment {number} waits and will be decided again" for number in waiting]
    return lines if waiting else [*lines, "no payment waits with it yet"]
