"""What payments carry, as far as a node must be asked for it: receipts, or authorizations alone."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from listener.calldata import is_direct_call, needs_receipt
from listener.decode import (
    Json,
    OversizedReceipt,
    decode_authorization,
    decode_receipt,
    topic_of_address,
)
from listener.evidence import authorizations_in, evidence_of, is_marked
from listener.exchange import Call
from listener.operations import ENTRY_POINTS
from listener.placing import receipt_of
from listener.reader import Caller, receipt_call
from listener.references import ReferenceContract
from oncepaid.domain.chain import (
    AUTHORIZATION_USED_TOPIC,
    Address,
    AuthorizationLog,
    Receipt,
    Transaction,
    TransferLog,
    TxHash,
)
from oncepaid.domain.errors import InconsistentNode, RangeRefused
from oncepaid.domain.payments import Evidence

log = structlog.get_logger()

MAX_AUTHORIZERS: Final = 200
"""Addresses in one filter for `AuthorizationUsed`; providers allow some hundreds."""
CALLS_AT_ONCE: Final = 50
"""Receipts are large: some 10 KB each, and half a megabyte for a full bundle of operations."""

_TOO_LARGE: Final = object()

_Used = dict[tuple[TxHash, int], AuthorizationLog]


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """Evidence by transaction and log index, and how many transfers to us stand beside those to a
    recipient of ours, itself among them: where all are observed, only those to the same one.

    Where there is a receipt, it has all of them, also those that a short answer left out.
    """

    evidence: dict[tuple[TxHash, int], tuple[Evidence, ...]] = field(default_factory=dict)
    transfers: Counter[tuple[TxHash, Address]] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Paid:
    """A transaction and its transfers to us, one at least."""

    transaction: Transaction
    transfers: Sequence[TransferLog]

    @property
    def tx_hash(self) -> TxHash:
        return self.transaction.hash

    def is_marked(self, used: Mapping[tuple[TxHash, int], AuthorizationLog]) -> bool:
        """Say whether the authorizations of all its transfers are known."""
        return all(is_marked(transfer, used) for transfer in self.transfers)


class EvidenceReader:
    """Reads what transfers carry. A direct payment costs no call: all of it is in its calldata."""

    def __init__(
        self,
        rpc: Caller,
        *,
        token: Address,
        recipients: frozenset[Address] | None,
        contracts: Sequence[ReferenceContract],
    ) -> None:
        """`recipients` are ours, None for all. The events of `contracts` are believed."""
        self._rpc = rpc
        self._token = token
        self._recipients = recipients
        self._contracts = contracts
        self._emitters = frozenset({token, *ENTRY_POINTS, *(one.address for one in contracts)})

    async def read(
        self, transfers: Sequence[TransferLog], transactions: Mapping[TxHash, Transaction]
    ) -> Carried:
        """Return what transfers carry: of each transaction, all that are to us and known.

        Raises `InconsistentNode` for a receipt that is missing or does not have the transfers: a
        node that is behind must not make us lose a memo. Raises `RangeRefused` as `call_all` does.
        """
        grouped: dict[TxHash, list[TransferLog]] = {}
        for transfer in transfers:
            grouped.setdefault(transfer.tx_hash, []).append(transfer)
        paid = [_Paid(transactions[tx_hash], logs) for tx_hash, logs in grouped.items()]
        wanted = [one for one in paid if needs_receipt(one.transaction, self._token)]
        others = [one for one in paid if not needs_receipt(one.transaction, self._token)]
        by_logs = [one for one in others if not is_direct_call(one.transaction, self._token)]
        carried = Carried()
        oversized, used = await self._read_receipts(wanted, by_logs, carried)
        if oversized:
            used |= self._used_in(await self._rpc.call_all(self._authorization_calls(oversized)))
        used |= await self._left_out([one for one in by_logs if not one.is_marked(used)])
        for one in (*others, *oversized):
            self._explain(one, None, used, carried)
        return carried

    async def _left_out(self, unmarked: Sequence[_Paid]) -> _Used:
        """Return the authorizations that an answer left out, by the receipts of these transactions.

        The token itself moved the money by an authorization: a node that has none of the payer does
        not know all, and his own word must not be lost to who brought it to the chain.
        """
        used = _Used()
        for at in range(0, len(unmarked), CALLS_AT_ONCE):
            part = unmarked[at : at + CALLS_AT_ONCE]
            answers = await self._ask([receipt_call(one.tx_hash) for one in part])
            for one, answer in zip(part, answers, strict=True):
                receipt = self._checked(one, answer)
                if receipt is None:
                    continue
                marked = authorizations_in(receipt, one.tx_hash, self._token)
                signed = {mark.authorizer for mark in marked.values()}
                if not signed.issuperset(transfer.sender for transfer in one.transfers):
                    raise InconsistentNode(f"the receipt of {one.tx_hash} lacks an authorization")
                used |= marked
        return used

    async def _read_receipts(
        self, wanted: Sequence[_Paid], by_logs: Sequence[_Paid], carried: Carried
    ) -> tuple[list[_Paid], _Used]:
        """Read receipts into `carried`; return whose is too large, and authorizations of `by_logs`.

        Receipts are let go one by one: those of a whole range may not fit into memory.
        """
        filters = self._authorization_calls(by_logs)
        calls = [*filters, *(receipt_call(one.tx_hash) for one in wanted)]
        asked: list[_Paid | None] = [*(None for _ in filters), *wanted]
        oversized, used = list[_Paid](), _Used()
        for at in range(0, len(calls), CALLS_AT_ONCE):
            answers = await self._ask(calls[at : at + CALLS_AT_ONCE])
            for one, answer in zip(asked[at : at + CALLS_AT_ONCE], answers, strict=True):
                if one is None:
                    used |= self._used_in([answer])
                elif (receipt := self._checked(one, answer)) is None:
                    oversized.append(one)
                else:
                    marked = authorizations_in(receipt, one.tx_hash, self._token)
                    self._explain(one, receipt, marked, carried)
        return oversized, used

    async def _ask(self, calls: Sequence[Call]) -> list[Json]:
        """Make calls, in halves where the answer is too large; `_TOO_LARGE` for such a receipt.

        Anyone can make a receipt as large as he pays for: it must not stop us.
        """
        try:
            return await self._rpc.call_all(calls)
        except RangeRefused:
            if all(call.method == "eth_getLogs" for call in calls):
                raise
            if len(calls) == 1:
                return [_TOO_LARGE]
        half = len(calls) // 2
        return [*await self._ask(calls[:half]), *await self._ask(calls[half:])]

    def _checked(self, one: _Paid, answer: Json) -> Receipt | None:
        """Return the receipt of a transaction, or None where it is larger than we read."""
        if answer is _TOO_LARGE:
            log.warning("receipt.too_large", tx_hash=one.tx_hash)
            return None
        try:
            decoded = decode_receipt(answer, self._token, self._emitters)
        except OversizedReceipt as exc:
            log.warning("receipt.too_large", tx_hash=one.tx_hash, because=str(exc))
            return None
        receipt = receipt_of(one.transfers[0], decoded)
        known = {transfer.log_index: transfer for transfer in receipt.transfers}
        for transfer in one.transfers:
            if not _is_same(transfer, known.get(transfer.log_index)):
                raise InconsistentNode(f"the receipt of {one.tx_hash} lacks a log of it")
        return receipt

    def _explain(
        self,
        one: _Paid,
        receipt: Receipt | None,
        used: Mapping[tuple[TxHash, int], AuthorizationLog],
        carried: Carried,
    ) -> None:
        transfers = one.transfers if receipt is None else self._ours_in(receipt)
        pieces = evidence_of(
            one.transaction,
            transfers,
            receipt,
            used,
            token=self._token,
            contracts=self._contracts,
            by_recipient=self._recipients is None,
        )
        beside = Counter(transfer.recipient for transfer in transfers)
        for transfer in transfers:
            key = one.tx_hash, transfer.log_index
            carried.evidence[key] = pieces[transfer.log_index]
            carried.transfers[one.tx_hash, transfer.recipient] = (
                beside[transfer.recipient] if self._recipients is None else len(transfers)
            )

    def _ours_in(self, receipt: Receipt) -> list[TransferLog]:
        to_us = (
            transfer
            for transfer in receipt.transfers
            if self._recipients is None or transfer.recipient in self._recipients
        )
        # In the order of the calls that made them: a node may tell of them in any, or twice.
        return sorted({log.log_index: log for log in to_us}.values(), key=lambda log: log.log_index)

    def _authorization_calls(self, paid: Iterable[_Paid]) -> list[Call]:
        """Return calls for the `AuthorizationUsed` logs of these payers, over all their blocks.

        One for a whole range: the payers are the filter.
        """
        transfers = [transfer for one in paid for transfer in one.transfers]
        if not transfers:
            return []
        payers = sorted({topic_of_address(transfer.sender) for transfer in transfers})
        blocks = {transfer.block.number for transfer in transfers}
        base = {
            "address": self._token,
            "fromBlock": hex(min(blocks)),
            "toBlock": hex(max(blocks)),
        }
        topics = [
            [AUTHORIZATION_USED_TOPIC, payers[at : at + MAX_AUTHORIZERS]]
            for at in range(0, len(payers), MAX_AUTHORIZERS)
        ]
        return [Call(method="eth_getLogs", params=({**base, "topics": one},)) for one in topics]

    def _used_in(self, answers: Iterable[Json]) -> _Used:
        found = _Used()
        for logs in answers:
            if not isinstance(logs, list):
                raise InconsistentNode("eth_getLogs did not return a list")
            for entry in logs:
                used = decode_authorization(entry, self._token)
                if used is not None:
                    found[used.tx_hash, used.log_index] = used
        return found


def _is_same(transfer: TransferLog, other: TransferLog | None) -> bool:
    return other is not None and (
        transfer.block,
        transfer.tx_hash,
        transfer.sender,
        transfer.recipient,
        transfer.units,
    ) == (other.block, other.tx_hash, other.sender, other.recipient, other.units)
