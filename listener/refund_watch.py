"""Refunds that are recognised by themselves: transfers of ours that name what they send back."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
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
from listener.ranges import Watch
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
from oncepaid.domain.desk import Allowed, Already, Obstacle, Refused, Ruling
from oncepaid.domain.errors import InconsistentNode, NodeBehind, RangeRefused
from oncepaid.domain.money import UNITS_PER_USDC, format_usdc
from oncepaid.domain.payments import PaymentId
from oncepaid.domain.refunding import (
    MAX_NAMES,
    NamedPayment,
    Refunded,
    RefundKnown,
    RefundMark,
    RefundName,
    RefundRefusal,
    RefundRefused,
    find_refunded,
)
from oncepaid.metrics import Metrics

log = structlog.get_logger()

REFUNDS_S: Final = 30.0
"""How often the watch looks. The mark behind which it reads moves no faster."""


class Ledger(Protocol):
    async def refund_mark(self) -> RefundMark | None: ...
    async def named(self, names: Sequence[RefundName]) -> Sequence[NamedPayment]: ...
    async def record(self, payment: PaymentId, sent: TransferLog, *, why: str) -> Ruling: ...
    async def move_refund_mark(self, block_number: int, *, epoch: int) -> None: ...


class Lead(Protocol):
    @property
    def epoch(self) -> int | None: ...


# What a desk refuses and has recorded all the same: the money did go back.
_NOT_DUE: Final = (Obstacle.UNDECIDED, Obstacle.PAYS_A_JOB, Obstacle.ORPHANED)


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
            if len(one.names) > MAX_NAMES:
                self._tell_refused(one, RefundRefused(reason=RefundRefusal.TOO_MANY_NAMES))
            elif one.names and not one.is_signed:
                self._tell_refused(one, RefundRefused(reason=RefundRefusal.NOT_SIGNED))
            elif one.names:
                await self._settle(one)

    async def _read(self, sent: Sequence[TransferLog]) -> list[Named]:
        """Return these transfers with what they name, each by the calldata of its transaction."""
        if not sent:
            return []
        hashes = list(dict.fromkeys(one.tx_hash for one in sent))
        answers = await self._rpc.call_all(
            [Call(method="eth_getTransactionByHash", params=(one,)) for one in hashes]
        )
        found = dict(zip(hashes, map(decode_transaction, answers), strict=True))
        transactions = {one.tx_hash: _checked(one, found[one.tx_hash]) for one in sent}
        receipts = await self._receipts(transactions)
        return [
            named_by(
                one,
                transactions[one.tx_hash],
                receipts.get(one.tx_hash),
                self._watch.token,
            )
            for one in sent
        ]

    async def _receipts(self, transactions: Mapping[TxHash, Transaction]) -> dict[TxHash, Receipt]:
        """Return the receipts of bundles of user operations, whose logs tell whose is which."""
        found: dict[TxHash, Receipt] = {}
        for tx_hash, transaction in transactions.items():
            if needs_receipt(transaction):
                answer = await self._rpc.call("eth_getTransactionReceipt", tx_hash)
                # One that is too large to read leaves its refunds to `payment refund`.
                with suppress(OversizedReceipt):
                    receipt = decode_receipt(answer, self._watch.token, ENTRY_POINTS)
                    if receipt is None or receipt.block.hash != transaction.block_hash:
                        raise InconsistentNode(f"the receipt of {tx_hash} is not where it was")
                    found[tx_hash] = receipt
        return found

    async def _settle(self, one: Named) -> None:
        # Asked for each: several transfers may name one payment.
        payments = await self._ledger.named(one.names)
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

    def _tell(self, sent: TransferLog, payment: PaymentId, ruling: Ruling) -> None:
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
            case Refused(obstacle=obstacle, sentence=sentence) if obstacle in _NOT_DUE:
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


def _checked(transfer: TransferLog, transaction: Transaction | None) -> Transaction:
    place = transfer.tx_hash, transfer.block.hash
    if transaction is None or (transaction.hash, transaction.block_hash) != place:
        raise InconsistentNode(f"transaction {transfer.tx_hash} is not where its log says")
    return transaction
