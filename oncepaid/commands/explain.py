"""`oncepaid explain`: what became of a transaction, and why."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from db.chain_state import ChainState
from db.desk_reader import DeskReader, Shown
from listener.decode import Json, decode_receipt, decode_transaction
from listener.rpc import Call, HttpRpc
from oncepaid.cli import AsJson, Config, database_of, load, run_async
from oncepaid.commands.arguments import tx_hash_of
from oncepaid.commands.books import patiently
from oncepaid.commands.output import print_json
from oncepaid.commands.refunding import Returnable, ask_about, open_rpc, ready_refund
from oncepaid.domain.absent import Watched, explain_absent
from oncepaid.domain.chain import Address, TxHash
from oncepaid.domain.desk import DeskJob
from oncepaid.domain.desk_facts import Clue, PaymentFacts, ReadChain
from oncepaid.domain.errors import BadSetting
from oncepaid.domain.explaining import Explained, explain_payment
from oncepaid.domain.nearest import Money, NearJob, missing, nearest_jobs
from oncepaid.settings import Settings
from oncepaid.values import rules_of, tiers_of


def register(app: typer.Typer) -> None:
    app.command()(explain)


def explain(
    tx: Annotated[str, typer.Argument(metavar="TX", help="The transaction's hash.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Say of every transfer to us in a transaction what was seen, decided, and can be done."""
    tx_hash = tx_hash_of(tx, "TX")
    settings = load(config)

    async def main() -> None:
        async with database_of(settings) as database:
            reader = DeskReader(database, settings.chain.chain_id)
            state = await reader.chain_state()
            shown = await reader.transaction(tx_hash)
        told: dict[str, Any] = {"chain_id": settings.chain.chain_id, "tx_hash": tx_hash}
        if shown:
            told["payments"] = await _payments(shown, state, settings)
            told["sentences"] = []
        else:
            told["payments"] = []
            told["sentences"] = await _absent(tx_hash, state, settings)
        if as_json:
            print_json(told)
        else:
            _print(told)

    run_async(main())


async def _payments(
    shown: Sequence[Shown], state: ChainState | None, settings: Settings
) -> list[dict[str, Any]]:
    rules, tiers = rules_of(settings), tiers_of(settings)
    chain = ReadChain(
        cursor=state.cursor.number if state else 0,
        finalized=state.finalized if state else -1,
        conflict=state.conflict if state else None,
    )
    payers = [one.facts.log.sender for one in shown if one.facts.is_open]
    payees = await ask_about(payers, settings)
    told = []
    for one in shown:
        facts, log = one.facts, one.facts.log
        money = Money(units=log.units, recipient=log.recipient, block_time=facts.block_time)
        near = nearest_jobs(money, one.candidates, rules)
        refund = None
        if facts.is_open:
            sent = Returnable(
                tx_hash=log.tx_hash,
                sender=log.sender,
                recipient=log.recipient,
                units=log.units,
                is_waiting_part=facts.is_waiting_part,
            )
            refund = ready_refund(sent, payees, settings)
        told.append(_json_of(facts, near, refund, explain_payment(facts, near, chain, tiers)))
    return told


async def _absent(tx_hash: TxHash, state: ChainState | None, settings: Settings) -> list[str]:
    if not settings.chain.http_urls:
        raise BadSetting("chain.http_urls", "is missing: no payment is known, and no node to ask")
    async with open_rpc(settings) as rpc:
        await patiently(rpc.verify)
        transaction, receipt = await patiently(lambda: _asked(rpc, tx_hash))
    watched = Watched(
        token=Address(settings.chain.token),
        recipients=settings.chain.watched,
        cursor=state.cursor.number if state else None,
        start=state.start if state else None,
    )
    found = decode_receipt(receipt, watched.token, _emitters(receipt))
    is_known = decode_transaction(transaction) is not None or found is not None
    return ["No payment is stored of it.", *explain_absent(found, watched, is_known=is_known)]


async def _asked(rpc: HttpRpc, tx_hash: TxHash) -> list[Json]:
    return await rpc.call_all(
        [
            Call(method="eth_getTransactionByHash", params=(tx_hash,)),
            Call(method="eth_getTransactionReceipt", params=(tx_hash,)),
        ]
    )


def _emitters(receipt: Json) -> frozenset[Address]:
    """Return who emitted something: here also what other tokens say is told of."""
    logs = receipt.get("logs") if isinstance(receipt, dict) else None
    addresses = (log.get("address") for log in logs or () if isinstance(log, dict))
    return frozenset(Address(one.lower()) for one in addresses if isinstance(one, str))


def _json_of(
    facts: PaymentFacts,
    near: Sequence[NearJob],
    refund: dict[str, Any] | None,
    explained: Explained,
) -> dict[str, Any]:
    log, job, sent = facts.log, facts.job, facts.sent_back
    return {
        "id": log.id,
        "status": facts.status,
        "reason": facts.reason,
        "meaning": None if facts.reason is None else facts.reason.sentence,
        "amount_units": log.units,
        "sender": log.sender,
        "recipient": log.recipient,
        "log_index": log.log_index,
        "block_number": log.block.number,
        "block_hash": log.block.hash,
        "block_time": facts.block_time,
        "transfers_in_tx": facts.transfers_in_tx,
        "job_id": None if job is None else job.terms.id,
        "job_uuid": None if job is None else job.uuid,
        "evidence": [_clue_json(clue) for clue in facts.clues],
        "came_again_as": facts.came_again,
        "sent_back_by": None if sent is None else sent.tx_hash,
        "nearest": [_near_json(one) for one in near],
        "refund": refund,
        "sentences": list(explained.sentences()),
    }


def _clue_json(clue: Clue) -> dict[str, Any]:
    piece, name = clue.piece, clue.piece.reference
    return {
        "memo": piece.memo,
        "issuer": None if name is None else name.issuer,
        "reference": None if name is None else name.value,
        "source": piece.source,
        "signer": piece.signer,
        "signed_by": piece.by,
        "company": piece.company,
        "job_id": None if clue.job is None else clue.job.terms.id,
    }


def _near_json(near: NearJob) -> dict[str, Any]:
    job: DeskJob = near.job
    return {
        "job_id": job.terms.id,
        "job_uuid": job.uuid,
        "status": job.status,
        "by": near.by,
        "price_units": job.terms.price,
        "unique_amount_units": job.drawn_amount,
        "missing_units": missing(job),
        "difference_units": near.difference,
        "paid_by": list(job.paid_by),
        "sentence": near.sentence,
    }


def _print(told: dict[str, Any]) -> None:
    for sentence in told["sentences"]:
        typer.echo(sentence)
    for payment in told["payments"]:
        near = [one["sentence"] for one in payment["nearest"]]
        said = [sentence for sentence in payment["sentences"] if sentence not in near]
        typer.echo("\n  ".join(said))
        if near:
            typer.echo("\n    ".join(["  The nearest jobs:", *near]))
        if payment["refund"] is not None:
            _print_refund(payment["refund"])


def _print_refund(refund: dict[str, Any]) -> None:
    if refund["first"] is not None:
        typer.echo(f"  To send it back, {refund['first']}.")
    if refund["calldata"] is not None:
        typer.echo(
            f"  To send it back: from {refund['pay_from']}, to the token {refund['token']}, with"
            f" the calldata\n    {refund['calldata']}\n  which sends {refund['amount_usdc']} USDC"
            f" to {refund['to']}, and is recognised by itself."
        )
    for warning in refund["warnings"]:
        typer.echo(f"  Before that: {warning}.")
