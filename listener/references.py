"""References in events of contracts that the operator trusts, bound to the transfers they speak of.

Anyone can emit an event that looks like another contract's: only an emitter on the allow-list
counts, and the token itself. An event speaks of one transfer. Where it cannot be told which, each
that it may be gets it as a third party's word, in company of the others: it pays none of them.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property, partial
from itertools import zip_longest
from typing import Final, assert_never

from eth_hash.auto import keccak

from listener.contract_events import (
    TOKEN_STORE_CREATED,
    TRANSFERRED,
    Charge,
    Intent,
    PaymentInfo,
    Request,
    charge_of,
    infos_in,
    intent_of,
    memo_event,
    request_of,
)
from oncepaid.domain.chain import Address, EventLog, Receipt, Transaction, TransferLog
from oncepaid.domain.memo import (
    NONCE_BYTES,
    Memo,
    Reference,
    envelope_of,
    memo_of_nonce,
    memos_of_tail,
)
from oncepaid.domain.payments import Evidence, MemoSource, Signer

MAX_LEG_LOGS: Final = 8
"""Of the token before a Request event: two transfers, each with what a token adds to them."""


class ContractKind(StrEnum):
    """Which events a contract on the allow-list emits."""

    REQUEST_FEE_PROXY = "request_fee_proxy"
    """Request Network's ERC20FeeProxy and ERC20Proxy."""
    COMMERCE_TRANSFERS = "commerce_transfers"
    """Coinbase Commerce's Transfers."""
    AUTH_CAPTURE_ESCROW = "auth_capture_escrow"
    """Base's commerce-payments, AuthCaptureEscrow 1.0 and 1.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceContract:
    """A contract on the allow-list. `operators` are those whose Commerce intents count."""

    kind: ContractKind
    address: Address
    chain_id: int
    operators: frozenset[Address] = frozenset()


Bound = tuple[TransferLog, Evidence]


def contract_evidence(
    transaction: Transaction,
    transfers: Sequence[TransferLog],
    receipt: Receipt,
    *,
    token: Address,
    contracts: Sequence[ReferenceContract],
) -> dict[int, list[Evidence]]:
    """Return what events say of the `transfers` of a transaction, by log index.

    The receipt must have the events of `token` and of `contracts`.
    """
    logs = _Logs(transaction.calldata, receipt, token)
    ours = {transfer.log_index for transfer in transfers}
    found: dict[int, list[Evidence]] = {}
    for log, piece in logs.bound_by(contracts):
        if log.log_index in ours:
            found.setdefault(log.log_index, []).append(piece)
    return found


class _Logs:
    """The logs of one transaction, as each kind of contract has left them."""

    def __init__(self, calldata: bytes, receipt: Receipt, token: Address) -> None:
        self._calldata = calldata
        self._token = token
        self._events = receipt.events
        self._event_at = {event.log_index: event for event in receipt.events}
        self._transfers = sorted(receipt.transfers, key=_index)
        self._transfer_at = {log.log_index: log for log in self._transfers}

    def bound_by(self, contracts: Sequence[ReferenceContract]) -> Iterator[Bound]:
        yield from self._of_token()
        for contract in contracts:
            events = [event for event in self._events if event.address == contract.address]
            match contract.kind:
                case ContractKind.REQUEST_FEE_PROXY:
                    yield from self._of_request(events)
                case ContractKind.COMMERCE_TRANSFERS:
                    yield from self._of_commerce(events, contract.operators)
                case ContractKind.AUTH_CAPTURE_ESCROW:
                    yield from self._of_escrow(events, contract)
                case _:
                    assert_never(contract.kind)

    def _of_token(self) -> Iterator[Bound]:
        """B20: the token emits its memo right behind the transfer, with who called for both."""
        for event in self._events:
            told = memo_event(event) if event.address == self._token else None
            log = self._transfer_at.get(event.log_index - 1)
            if told is None or log is None:
                continue
            signer = Signer.PAYER if told.caller == log.sender else Signer.THIRD_PARTY
            reference = Reference(issuer=self._token, value=told.memo)
            yield log, _piece(memo_of_nonce(told.memo) or reference, signer, told.caller)

    def _of_request(self, events: Sequence[EventLog]) -> Iterator[Bound]:
        """Request Network: the proxy pulls the payment and then its fee from whoever calls it.

        So the owner of the money chose the reference himself. The event has its hash only; the
        reference itself stands in the calldata.
        """
        for event in events:
            told = request_of(event)
            log = self._paid_before(event, told) if told else None
            if told is None or log is None:
                continue
            memo = self._memo_by_hash.get(told.hash)
            if memo is not None:
                yield log, _piece(memo, Signer.PAYER, log.sender)
            reference = Reference(issuer=event.address, value=told.hash)
            yield log, _piece(reference, Signer.PAYER, log.sender)

    @cached_property
    def _memo_by_hash(self) -> Mapping[bytes, Memo]:
        """The memos in the calldata by the hash of their envelope, bare or filled up to a word."""
        found = {}
        for memo in memos_of_tail(self._calldata):
            envelope = envelope_of(memo)
            found[keccak(envelope)] = memo
            found[keccak(envelope.ljust(NONCE_BYTES, b"\0"))] = memo
        return found

    def _paid_before(self, event: EventLog, told: Request) -> TransferLog | None:
        """Return the transfer that the proxy made for its event, which is never that of the fee."""
        if told.token != self._token:
            return None
        legs = self._legs_before(event.log_index)
        fee = next(legs, None) if told.has_fee_transfer else None
        paid = next(legs, None)
        if paid is None or (paid.recipient, paid.units) != (told.to, told.amount):
            return None
        wanted = (paid.sender, told.fee_address, told.fee)
        if fee is not None and (fee.sender, fee.recipient, fee.units) != wanted:
            return None
        return paid

    def _legs_before(self, index: int) -> Iterator[TransferLog]:
        """The token's transfers right before a log, nearest first, up to a log of another's."""
        for at in range(index - 1, index - 1 - MAX_LEG_LOGS, -1):
            event = self._event_at.get(at)
            if event is None or event.address != self._token:
                return
            if at in self._transfer_at:
                yield self._transfer_at[at]

    def _of_commerce(
        self, events: Sequence[EventLog], operators: frozenset[Address]
    ) -> Iterator[Bound]:
        """Coinbase Commerce: pulls the money from `sender`, passes it on, and tells of it last.

        Without a swap the money comes to us from the contract itself, and the sender's call named
        the intent: he is the payer. With one it comes from some pool, and the event does not say
        what the recipient got, nor in which token: the sender is taken for a third party.
        """
        first = 0
        for event in events:
            if event.topics[:1] != (TRANSFERRED,):
                continue
            passed_on, first = self._between(first, event.log_index), event.log_index
            told = intent_of(event)
            if told is None or told.operator not in operators:
                continue
            is_swap = told.currency != self._token
            candidates = [
                log
                for log in passed_on
                if log.recipient == told.recipient and (is_swap or _is_passed(log, event, told))
            ]
            signer = Signer.THIRD_PARTY if is_swap else Signer.PAYER
            reference = Reference(issuer=event.address, value=told.id)
            for log in candidates:
                yield log, _piece(reference, signer, told.sender, company=len(candidates))

    def _of_escrow(
        self, events: Sequence[EventLog], contract: ReferenceContract
    ) -> Iterator[Bound]:
        """commerce-payments: the event comes first, then the money out of the operator's store.

        That store is the `from` of the transfer. The payer signed the hash of all of PaymentInfo,
        with its receiver and its salt, or no collector would have given his money: he is the
        signer. (A collector of the operator's own can only give what the operator gave it.)
        """
        marks = [event for event in events if event.topics[:1] != (TOKEN_STORE_CREATED,)]
        told_of: dict[bytes, PaymentInfo] = {}
        in_calldata = cache(partial(self._infos_in_calldata, contract))
        for event, following in zip_longest(marks, marks[1:]):
            told = charge_of(event)
            if told is None:
                continue
            if told.info is not None:
                told_of[told.hash] = told.info
            info = told_of.get(told.hash) or in_calldata().get(told.hash)
            end = None if following is None else following.log_index
            candidates = [
                log
                for log in self._between(event.log_index, end)
                if _is_given(log, told, info, self._token)
            ]
            for log in candidates:
                for named in _names_of(event, told, info):
                    yield log, _escrowed(named, info, company=len(candidates))

    def _infos_in_calldata(self, contract: ReferenceContract) -> dict[bytes, PaymentInfo]:
        return infos_in(
            self._calldata,
            token=self._token,
            escrow=contract.address,
            chain_id=contract.chain_id,
        )

    def _between(self, first: int, end: int | None) -> Sequence[TransferLog]:
        """Return the transfers from one log index on and before another."""
        low = bisect_left(self._transfers, first, key=_index)
        high = None if end is None else bisect_left(self._transfers, end, key=_index)
        return self._transfers[low:high]


def _index(log: TransferLog) -> int:
    return log.log_index


def _is_passed(log: TransferLog, event: EventLog, told: Intent) -> bool:
    return log.sender == event.address and log.units <= told.spent


def _is_given(log: TransferLog, told: Charge, info: PaymentInfo | None, token: Address) -> bool:
    """Say whether the escrow may have made this transfer; where it made one, that is among them.

    Without PaymentInfo nobody knows who was to get the sum, nor in which token.
    """
    if log.units != told.units:
        return False
    return info is None or (info.token == token and log.recipient == info.receiver)


def _names_of(
    event: EventLog, told: Charge, info: PaymentInfo | None
) -> Iterator[Memo | Reference]:
    memo = None if info is None else memo_of_nonce(info.salt)
    if memo is not None:
        yield memo
    yield Reference(issuer=event.address, value=told.hash)


def _escrowed(named: Memo | Reference, info: PaymentInfo | None, *, company: int) -> Evidence:
    if info is None:
        return _piece(named, Signer.THIRD_PARTY, None, company=company)
    return _piece(named, Signer.PAYER, info.payer, company=company)


def _piece(
    named: Memo | Reference, signer: Signer, by: Address | None, *, company: int = 1
) -> Evidence:
    return Evidence(
        memo=None if isinstance(named, Reference) else named,
        source=MemoSource.CONTRACT,
        # What may speak of another's transfer is not the word of who paid this one.
        signer=signer if company == 1 else Signer.THIRD_PARTY,
        by=by,
        reference=named if isinstance(named, Reference) else None,
        company=company,
    )
