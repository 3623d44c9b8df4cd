"""How an operator sends a payment back: the ready transfer, and what to think of before."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry

from listener.refunds import RefundReader
from listener.rpc import HttpRpc
from oncepaid.domain.chain import ZERO_ADDRESS, Address, TxHash
from oncepaid.domain.errors import OncepaidError
from oncepaid.domain.money import Units, format_usdc
from oncepaid.domain.refunding import Payee, refund_envelope, warnings_of
from oncepaid.metrics import Metrics
from oncepaid.paying import transfer_calldata
from oncepaid.settings import Settings

ASK_TIMEOUT_S: Final = 5.0
"""For what a node says of the payers: nice to know, and nothing to wait long for."""
MAX_ASKED: Final = 10
"""Payers of one transaction that a node is asked about."""

NOT_ASKED: Final = (
    "no node could be asked what the payer is: where it is an exchange or a contract, ask the payer"
    " where to send it"
)
IGNORE_FIRST: Final = "ignore it first: until the refund is final it still counts for its job"
NOBODY: Final = "it was newly made, by a bridge for instance: ask who paid where to send it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Returnable:
    """What of a payment is needed to send it back.

    `is_waiting_part`: the rest of a price would make it its job's.
    """

    tx_hash: TxHash
    sender: Address
    recipient: Address
    units: Units
    is_waiting_part: bool


def ready_refund(
    payment: Returnable, payees: Mapping[Address, Payee], settings: Settings
) -> dict[str, Any]:
    """Return the transfer that sends a payment back, as JSON-like values.

    A transaction from `pay_from` to `token` with `calldata` is recognised by itself; `first` is
    what to do before it is sent.
    """
    envelope = refund_envelope(payment.tx_hash)
    has_payer = payment.sender != ZERO_ADDRESS
    payee = payees.get(payment.sender)
    if not has_payer:
        warnings: tuple[str, ...] = (NOBODY,)
    elif payee is None:
        warnings = (NOT_ASKED,)
    else:
        warnings = warnings_of(payee, payer=payment.sender)
    call = transfer_calldata(payment.sender, payment.units) + envelope.hex()
    return {
        "first": IGNORE_FIRST if payment.is_waiting_part else None,
        "chain_id": settings.chain.chain_id,
        "pay_from": payment.recipient,
        "token": Address(settings.chain.token),
        "to": payment.sender if has_payer else None,
        "amount_usdc": format_usdc(payment.units),
        "amount_units": payment.units,
        "refund_envelope": "0x" + envelope.hex(),
        "calldata": call if has_payer else None,
        "warnings": list(warnings),
    }


async def ask_about(addresses: Collection[Address], settings: Settings) -> dict[Address, Payee]:
    """Return what a node says of addresses; of none where no node answers in time."""
    wanted = sorted(set(addresses) - {ZERO_ADDRESS})[:MAX_ASKED]
    if not wanted or not settings.chain.http_urls:
        return {}
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S), open_rpc(settings) as rpc:
            await rpc.verify()
            reader = RefundReader(rpc)
            return {address: await reader.payee(address) for address in wanted}
    except (OncepaidError, TimeoutError):
        return {}


def open_rpc(settings: Settings) -> HttpRpc:
    """Return the settings' nodes, to be entered; nothing was asked yet."""
    chain = settings.chain
    return HttpRpc(
        chain.http_urls,
        chain_id=chain.chain_id,
        token=Address(chain.token),
        metrics=Metrics(CollectorRegistry()),
    )
