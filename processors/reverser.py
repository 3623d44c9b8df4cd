"""Credits whose block left the chain: their jobs are reopened, or the loss is told and kept."""

from collections.abc import Callable
from typing import Final, Protocol, assert_never

import structlog

from oncepaid.domain.money import format_usdc
from oncepaid.domain.reversal import (
    Covered,
    Lose,
    Reopen,
    Reversal,
    ReversedCredit,
    ReversedPayment,
    Reversing,
    reverse,
)

log = structlog.get_logger()

BATCH: Final = 200


class Ledger(Protocol):
    async def reverse_orphaned(
        self, decide: Callable[[ReversedCredit], Reversal], limit: int
    ) -> Reversing: ...


class Reverser:
    """Reverses orphaned credits. Several may run: each locks the rows that it changes."""

    def __init__(self, ledger: Ledger, *, announce: Callable[[], None] = lambda: None) -> None:
        """`announce` is called when payments are to be matched or settled anew."""
        self._ledger = ledger
        self._announce = announce
        self._refused: set[str] = set()

    async def step(self) -> bool:
        """Reverse one batch; True when more may be waiting."""
        done = await self._ledger.reverse_orphaned(reverse, BATCH)
        for payment in done.reversed:
            self._tell(payment)
        for job_uuid in done.reopened:
            log.warning("job.reopened", job_uuid=job_uuid, because="its work ended without result")
        for refused in done.refused:
            if refused.job_uuid not in self._refused:
                log.error("reversal.refused", job_uuid=refused.job_uuid, problem=refused.problem)
        self._refused = {refused.job_uuid for refused in done.refused}
        if done.reversed or done.reopened:
            self._announce()
        return bool(done.reversed) and done.is_full

    def _tell(self, payment: ReversedPayment) -> None:
        fields = {
            "payment_id": payment.id,
            "tx_hash": payment.tx_hash,
            "usdc": format_usdc(payment.units),
            "job_uuid": payment.job_uuid,
        }
        match payment.reversal:
            case Covered():
                log.warning("payment.reversed", **fields)
            case Reopen():
                log.warning("payment.reversed", **fields)
                log.warning("job.reopened", job_uuid=payment.job_uuid, because="its money is gone")
            case Lose():
                log.error("payment.lost", **fields, job_status=payment.job_status)
            case _:
                assert_never(payment.reversal)
