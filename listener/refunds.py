"""What an operator says of a refund, verified on the chain."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from listener.decode import Json, decode_header, decode_receipt, quantity
from listener.rpc import Call, Caller, header_call
from oncepaid.domain.chain import Address, Receipt, TransferLog, TxHash
from oncepaid.domain.errors import InconsistentNode
from oncepaid.domain.payments import StoredLog
from oncepaid.domain.refunding import (
    NotFinalYet,
    Payee,
    Refunded,
    RefundRefusal,
    RefundRefused,
    final_or_wait,
    judge_refund,
    nearest_refusal,
    warnings_of,
)

_DELEGATION: Final = "0xef0100"
"""EIP-7702: the code of a wallet that has lent itself a contract's, and is a wallet still."""
_DELEGATION_CHARACTERS: Final = len(_DELEGATION) + 40


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRefund:
    """A transaction that is final and sends a payment back.

    `transfers` are all of its transfers that do: one batch may hold several refunds alike, of which
    each serves one payment.
    """

    transfers: tuple[TransferLog, ...]
    warnings: tuple[str, ...]


class RefundReader:
    """Verifies what an operator says. Raises `Retryable`s of the node; nothing is written."""

    def __init__(self, rpc: Caller) -> None:
        self._rpc = rpc

    async def verify(
        self,
        tx_hash: TxHash,
        payment: StoredLog,
        *,
        token: Address,
        ours: frozenset[Address] | None,
        age: timedelta | None = None,
        to: Address | None = None,
    ) -> VerifiedRefund | NotFinalYet | RefundRefused:
        """Say whether a transaction sends a payment back: to the payer, or to a stated address.

        `ours` are our recipients, None where every one is observed. `age` replaces the node's
        `finalized`: what a reorganisation could take back does not count yet.
        """
        answers = await self._rpc.call_all(
            [
                Call(method="eth_getTransactionReceipt", params=(tx_hash,)),
                header_call("latest"),
                header_call("finalized"),
            ]
        )
        receipt = decode_receipt(answers[0], token)
        if receipt is None:
            return RefundRefused(reason=RefundRefusal.NOT_MINED)
        if any(transfer.tx_hash != tx_hash for transfer in receipt.transfers):
            raise InconsistentNode(f"the receipt of {tx_hash} is of another transaction")
        found = _fitting(receipt, payment, ours, to)
        if isinstance(found, RefundRefused):
            return found
        payee = to or payment.sender
        block, *of_payee = await self._rpc.call_all(
            [header_call(receipt.block.number), *_payee_calls(payee)]
        )
        open_yet = _open_yet(receipt, block, latest=answers[1], finalized=answers[2], age=age)
        if open_yet is not None:
            return open_yet
        warnings = warnings_of(_payee_of(payee, *of_payee), payer=payment.sender)
        return VerifiedRefund(transfers=found, warnings=warnings)

    async def payee(self, address: Address) -> Payee:
        """Return what stands at an address that money may be sent to."""
        return _payee_of(address, *await self._rpc.call_all(_payee_calls(address)))


def _fitting(
    receipt: Receipt,
    payment: StoredLog,
    ours: frozenset[Address] | None,
    to: Address | None,
) -> tuple[TransferLog, ...] | RefundRefused:
    if not receipt.succeeded:
        return RefundRefused(reason=RefundRefusal.REVERTED)
    judged = [(one, judge_refund(payment, one, ours=ours, to=to)) for one in receipt.transfers]
    fitting = tuple(one for one, ruling in judged if isinstance(ruling, Refunded))
    refusals = [ruling for _, ruling in judged if isinstance(ruling, RefundRefused)]
    none = RefundRefused(reason=RefundRefusal.NOT_OURS, payment=payment.id)
    return fitting or nearest_refusal([none, *refusals])


def _open_yet(
    receipt: Receipt, block: Json, *, latest: Json, finalized: Json, age: timedelta | None
) -> RefundRefused | NotFinalYet | None:
    """Return why the block of a receipt does not stand for good, None where it does."""
    header, head = decode_header(block), decode_header(latest)
    if header is None or header.ref != receipt.block:
        return RefundRefused(reason=RefundRefusal.NOT_ON_CHAIN)
    if head is None:
        raise InconsistentNode("the node has no latest block")
    return final_or_wait(header, latest=head, finalized=decode_header(finalized), age=age)


def _payee_calls(address: Address) -> list[Call]:
    return [
        Call(method="eth_getCode", params=(address, "latest")),
        Call(method="eth_getTransactionCount", params=(address, "latest")),
    ]


def _payee_of(address: Address, code: Json, sent: Json) -> Payee:
    if not isinstance(code, str) or not code.startswith("0x"):
        raise InconsistentNode("eth_getCode did not return hex")
    is_wallet = code.lower().startswith(_DELEGATION) and len(code) == _DELEGATION_CHARACTERS
    return Payee(
        address=address,
        is_contract=len(code) > len("0x") and not is_wallet,
        sent=quantity(sent),
    )
