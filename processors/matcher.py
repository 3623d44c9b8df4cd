"""seen → matched | unmatched: the decision is `oncepaid.domain.matching`, this is its hands."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol, assert_never

import structlog

from oncepaid.domain.jobs import JobTerms
from oncepaid.domain.matching import (
    DecidedPayment,
    Decision,
    Matched,
    MatchingRules,
    Unmatched,
    decide_all,
)
from oncepaid.domain.money import UNITS_PER_USDC, format_usdc
from oncepaid.domain.payments import PaymentId, SeenPayment
from oncepaid.metrics import Metrics

log = structlog.get_logger()

BATCH: Final = 500

DecideAll = Callable[[Sequence[SeenPayment], Sequence[JobTerms]], Mapping[PaymentId, Decision]]


class Ledger(Protocol):
    async def decide_seen(
        self, decide_all: DecideAll, limit: int, after: PaymentId
    ) -> list[DecidedPayment]: ...


class Matcher:
    """Decides what was seen, in batches. Several may run: each locks the rows it decides."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        rules: MatchingRules,
        metrics: Metrics,
        announce: Callable[[], None] = lambda: None,
    ) -> None:
        """`announce` is called when something was decided."""
        self._ledger = ledger
        self._decide_all: DecideAll = partial(decide_all, rules=rules)
        self._metrics = metrics
        self._announce = announce
        self._after = PaymentId(0)

    async def step(self) -> bool:
        """Decide one batch; True when more may be waiting.

        A payment whose job is locked by somebody else is passed over until the next round.
        """
        batch = await self._ledger.decide_seen(self._decide_all, BATCH, self._after)
        is_full = len(batch) == BATCH
        self._after = batch[-1].payment.id if is_full else PaymentId(0)
        decided = [payment for payment in batch if payment.decision is not None]
        for payment in decided:
            self._tell(payment)
        if decided:
            self._announce()
        return is_full

    def _tell(self, decided: DecidedPayment) -> None:
        payment = decided.payment
        fields = {
            "payment_id": payment.id,
            "tx_hash": decided.tx_hash,
            "usdc": format_usdc(payment.units),
            "sender": payment.sender,
            "job_uuid": decided.job_uuid,
        }
        match decided.decision:
            case Matched():
                status, reason = "matched", ""
                log.info("payment.matched", **fields)
            case Unmatched(reason=why):
                status, reason = "unmatched", str(why)
                log.warning("payment.unmatched", **fields, reason=reason, meaning=why.sentence)
            case None:
                return
            case _:
                assert_never(decided.decision)
        self._metrics.payments.labels(status=status, reason=reason).inc()
        self._metrics.payments_usdc.labels(status=status).inc(payment.units / UNITS_PER_USDC)
        self._metrics.observe_stage("matched", decided.waited_s)
