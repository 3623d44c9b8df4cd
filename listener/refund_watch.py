"""Refunds that are recognised by themselves: transfers of ours that name what they send back."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, Protocol, assert_never

import structlog

from listener.decode import (
    OversizedReceipt,
    decode_header,
    decode_receipt,
    decode_transaction,
    decode_transfer,
    topic_of_address,
)
from listener.follower import FetchRange, Spans
from listener.operations import ENTRY_POINTS
from listener.placing import receipt_of, transaction_of
from listener.ranges import Watch
from listener.reader import receipt_call
from listener.refund_names import Named, named_by, needs_receipt
from listener.rpc import Call, HttpRpc, header_call
from oncepaid.domain.chain import (
    TRANSFER_TOPIC,
    Address,
    BlockRef,
    Header,
    Receipt,
    Transaction,
    TransferLog,
    TxHash,
)
from oncepaid.domain.desk import Allowed, Already, Recorded, RefundRuling, Refused
from oncepaid.domain.errors import CallFailed, InconsistentNode, NodeBehind, RangeRefused
from oncepaid.domain.money import UNITS_PER_USDC, format_usdc
from oncepaid.domain.payments import PaymentId
from oncepaid.domain.refunding import (
    NamedPayment,
    Refunded,
    RefundKnown,
    RefundMark,
    RefundName,
    RefundRefused,
    find_refunded,
    names_to_look_for,
)
from oncepaid.metrics import Metrics

log = structlog.get_logger()

REFUNDS_S: Final = 30.0
"""How often the watch looks. The mark behind which it reads moves no faster."""
MAX_REFUSALS: Final = 5
"""Looks in which a node may refuse a receipt before its refunds are left to an operator."""


class Ledger(Protocol):
    async def refund_mark(self) -> RefundMark | None: ...
    async def named(self, names: Sequence[RefundName]) -> Sequence[NamedPayment]: ...
    async def record(self, payment: PaymentId, sent: TransferLog, *, why: str) -> RefundRuling: ...
    async def move_refund_mark(self, block_number: int, *, epoch: int) -> None: ...


class Lead(Protocol):
    @property
    def epoch(self) -> int | None: ...


class RefundWatch:
    """Looks through our recipients' own transfers for refund envelopes. `step` does one range.

    It reads only blocks that are final, and so needs no rollback: a refund that was sent is urgent
    for nobody. A step that is done again finds the same and changes nothing.
    """

    def __init__(
        self, rpc: HttpRpc, ledger: Ledger, *, lead: Lead, watch: Watch, metrics: Metrics
    ) -> None:
        self._rpc = rpc
        self._ledger = ledger
        self._lead = lead
        self._watch = watch
        self._metrics = metrics
        self._spans = Spans(watch.max_range_blocks, rpc.count)
        self._refusals = Counter[TxHash]()
        if watch.recipients is None:
            # Everybody's transfers are nobody's refunds.
            log.info("refunds.not_watched", because="every recipient is observed")

    async def step(self) -> bool:
        """Look at one range; True when more is waiting. Raises `Retryable` errors."""
        epoch = self._lead.epoch
        if epoch is None or self._watch.recipients is None:
            return False
        mark = await self._ledger.refund_mark()
        if mark is None or mark.final is None or mark.is_in_conflict:
            return False
        if mark.looked_at >= mark.final.number:
            return False
        asked = self._rpc.current
        step = self._spans.step(asked, mark.looked_at + 1, mark.final.number)
        try:
            sent = await self._sent(step, mark.final)
        except RangeRefused as exc:
            if not self._spans.refused(asked, step):
                raise InconsistentNode(f"a single block's logs are refused: {exc}") from exc
            return True
        self._spans.served(asked, step, len(sent))
        await self._recognise(sent)
        await self._ledger.move_refund_mark(step.last, epoch=epoch)
        self._refusals.clear()
        return step.last < mark.final.number

    async def _sent(self, step: FetchRange, final: BlockRef) -> list[TransferLog]:
        """Return what our recipients sent in these blocks, from a node that has the final one."""
        wanted = {
            "address": self._watch.token,
            "topics": [TRANSFER_TOPIC, sorted(map(topic_of_address, self._ours))],
            "fromBlock": hex(step.first),
            "toBlock": hex(step.last),
        }
        logs, end = await self._rpc.call_all(
            [Call(method="eth_getLogs", params=(wanted,)), header_call(final.number)]
        )
        _require_final(decode_header(end), final)
        if not isinstance(logs, list):
            raise InconsistentNode("eth_getLogs did not return a list")
        decoded = [decode_transfer(entry, self._watch.token) for entry in logs]
        sent = [one for one in decoded if one is not None and one.sender in self._ours]
        for one in sent:
            if not step.first <= one.block.number <= step.last:
                raise InconsistentNode(f"eth_getLogs returned a log of block {one.block.number}")
        return list({(one.block.hash, one.log_index): one for one in sent}.values())

    @property
    def _ours(self) -> frozenset[Address]:
        return self._watch.recipients or frozenset()

    async def _recognise(self, sent: Sequence[TransferLog]) -> None:
        for one in await self._read(sent):
            match names_to_look_for(one.names, is_signed=one.is_signed):
                case RefundRefused() as refused:
                    self._tell_refused(one, refused)
                case ():
                    pass
                case names:
                    await self._settle(one, names)

    async def _read(self, sent: Sequence[TransferLog]) -> list[Named]:
        """Return these transfers with what they name, each by the calldata of its transaction."""
        if not sent:
            return []
        hashes = list(dict.fromkeys(one.tx_hash for one in sent))
        answers = await self._rpc.call_all(
            [Call(method="eth_getTransactionByHash", params=(one,)) for one in hashes]
        )
        found = dict(zip(hashes, map(decode_transaction, answers), strict=True))
        transactions = {one.tx_hash: transaction_of(one, found[one.tx_hash]) for one in sent}
        receipts = await self._receipts(sent, transactions)
        return [
            named_by(
                one,
                transactions[one.tx_hash],
                receipts.get(one.tx_hash),
                self._watch.token,
            )
            for one in sent
        ]

    async def _receipts(
        self, sent: Sequence[TransferLog], transactions: Mapping[TxHash, Transaction]
    ) -> dict[TxHash, Receipt]:
        """Return the receipts of bundles of user operations, whose logs tell whose is which."""
        found: dict[TxHash, Receipt] = {}
        for tx_hash, one in {one.tx_hash: one for one in sent}.items():
            if needs_receipt(transactions[tx_hash]):
                receipt = await self._receipt(one)
                if receipt is not None:
                    found[tx_hash] = receipt
        return found

    async def _receipt(self, sent: TransferLog) -> Receipt | None:
        """Return a transfer's receipt, or None for one that cannot be had: too large, or refused.

        Its refunds are left to `payment refund`: no receipt may stop the watch for ever.
        """
        tx_hash = sent.tx_hash
        try:
            [answer] = await self._rpc.call_all([receipt_call(tx_hash)])
            receipt = decode_receipt(answer, self._watch.token, ENTRY_POINTS)
        except (OversizedReceipt, RangeRefused) as exc:
            because: Exception = exc
        except CallFailed as exc:
            self._refusals[tx_hash] += 1
            if self._refusals[tx_hash] < MAX_REFUSALS:
                raise
            because = exc
        else:
            return receipt_of(sent, receipt)
        log.warning(
            "refund.refused",
            tx_hash=tx_hash,
            usdc=format_usdc(sent.units),
            reason="no_receipt",
            meaning="The node does not give the receipt that tells what the transfer sends back.",
            because=str(because),
        )
        return None

    async def _settle(self, one: Named, names: Sequence[RefundName]) -> None:
        # Asked for each: several transfers may name one payment.
        payments = await self._ledger.named(names)
        found = find_refunded(payments, one.transfer, ours=self._ours)
        match found:
            case Refunded(payment=payment):
                why = "the transfer carries the payment's refund envelope"
                ruling = await self._ledger.record(payment, one.transfer, why=why)
                self._tell(one.transfer, payment, ruling)
            case RefundKnown():
                pass
            case RefundRefused():
                self._tell_refused(one, found)
            case _:
                assert_never(found)

    def _tell(self, sent: TransferLog, payment: PaymentId, ruling: RefundRuling) -> None:
        fields = {"payment_id": payment, "tx_hash": sent.tx_hash, "usdc": format_usdc(sent.units)}
        match ruling:
            case Allowed():
                log.info("payment.refunded", **fields)
                self._metrics.payments.labels(status="refunded", reason="").inc()
                self._metrics.payments_usdc.labels(status="refunded").inc(
                    sent.units / UNITS_PER_USDC
                )
            case Already():
                pass
            case Recorded(obstacle=obstacle, sentence=sentence):
                # Money went back that a job counts on, or that never came.
                log.error("refund.not_due", **fields, reason=obstacle, meaning=sentence)
            case Refused(obstacle=obstacle, sentence=sentence):
                log.warning("refund.refused", **fields, reason=obstacle, meaning=sentence)
            case _:
                assert_never(ruling)

    def _tell_refused(self, one: Named, refused: RefundRefused) -> None:
        log.warning(
            "refund.refused",
            payment_id=refused.payment,
            tx_hash=one.transfer.tx_hash,
            usdc=format_usdc(one.transfer.units),
            reason=refused.reason,
            meaning=refused.reason.sentence,
        )


def _require_final(found: Header | None, final: BlockRef) -> None:
    if found is None:
        raise NodeBehind(f"the node has no block {final.number} yet")
    if found.ref != final:
        raise InconsistentNode(f"the node has another block {final.number} than the final one")
