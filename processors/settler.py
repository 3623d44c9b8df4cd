"""matched → credited, and the job → paid, once the block is final enough for the amount."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from oncepaid.domain.chain import BlockHash, Header
from oncepaid.domain.errors import CallFailed, ChainConflict, Retryable
from oncepaid.domain.finality import (
    ChainHeads,
    Finalized,
    Included,
    Safe,
    Tier,
    requirement_for,
    select_ready,
)
from oncepaid.domain.jobs import JobId
from oncepaid.domain.money import UNITS_PER_USDC, Units, format_usdc
from oncepaid.domain.payments import (
    CreditedPayment,
    Crediting,
    MatchedPayment,
    PaymentId,
    ReturnedPayment,
    StoredLog,
)
from oncepaid.metrics import Metrics
from processors.services import label_of

log = structlog.get_logger()

JOBS_PER_PAGE: Final = 500
MAX_ASKED_JOBS: Final = 50
"""Whose payments a witness is asked about in one question, and how many alone in one round."""
MAX_SET_BACK: Final = 1_000


class Ledger(Protocol):
    async def load_matched(self, after: JobId, limit: int) -> list[MatchedPayment]: ...
    async def credit(self, payments: Sequence[PaymentId]) -> Crediting: ...
    async def conflict(self) -> str | None: ...


class Chain(Protocol):
    async def headers(self, blocks: Sequence[int | str]) -> list[Header | None]: ...
    async def hashes(self, numbers: Sequence[int]) -> dict[int, BlockHash | None]: ...


class Witness(Protocol):
    async def confirm(self, logs: Sequence[StoredLog]) -> set[PaymentId]:
        """Return the payments that another endpoint has, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondOpinion:
    """Jobs of `from_units` and more are credited only once a `witness` has seen their money."""

    witness: Witness
    from_units: Units


class Settler:
    """Credits what is final. Several may run: crediting is guarded by the payments' status."""

    def __init__(
        self,
        ledger: Ledger,
        chain: Chain,
        *,
        tiers: Sequence[Tier],
        services: Collection[str],
        metrics: Metrics,
        second: SecondOpinion | None = None,
        announce: Callable[[], None] = lambda: None,
    ) -> None:
        """`announce` is called when a job was paid."""
        self._ledger = ledger
        self._chain = chain
        self._tiers = tuple(tiers)
        self._services = services
        self._metrics = metrics
        self._second = second
        self._announce = announce
        self._moved: set[PaymentId] = set()
        self._unconfirmed: set[PaymentId] = set()
        self._refused: set[str] = set()
        self._set_back: dict[JobId, None] = {}
        """Jobs in a question that was not answered, in the order in which they have their turn."""

    async def step(self) -> bool:
        """Look at every matched payment once and credit what is ready. Never asks for more.

        Raises `ChainConflict` while the chain contradicts what was final.
        """
        if conflict := await self._ledger.conflict():
            raise ChainConflict(f"nothing is credited: {conflict}")
        after = JobId(0)
        while page := await self._ledger.load_matched(after, JOBS_PER_PAGE):
            await self._settle(page)
            after = page[-1].job_id
        return False

    async def _settle(self, matched: Sequence[MatchedPayment]) -> None:
        ready = select_ready(matched, self._tiers, await self._heads_for(matched))
        if not ready:
            return
        # The last look before money counts: is each block still the one that the log came from?
        hashes = await self._chain.hashes(sorted({payment.block.number for payment in ready}))
        moved = {p.job_id for p in ready if hashes.get(p.block.number) != p.block.hash}
        self._warn_of({p.id for p in ready if p.job_id in moved})
        sound = [payment for payment in ready if payment.job_id not in moved]
        large = [p for p in sound if self._second and p.job_units >= self._second.from_units]
        await self._credit([payment for payment in sound if payment not in large])
        if large:
            await self._credit_confirmed(large)

    async def _credit_confirmed(self, large: Sequence[MatchedPayment]) -> None:
        """Credit those jobs' payments that another endpoint has, too; nobody else waits for it.

        A job may be what makes the witness fail: those of a question that was not answered are
        asked about alone, after all others. No more than one failure a round: it may take long.
        """
        jobs: dict[JobId, list[MatchedPayment]] = {}
        for payment in large:
            jobs.setdefault(payment.job_id, []).append(payment)
        fresh = [job for job in jobs if job not in self._set_back]
        alone = [job for job in self._set_back if job in jobs][:MAX_ASKED_JOBS]
        questions = [fresh[at : at + MAX_ASKED_JOBS] for at in range(0, len(fresh), MAX_ASKED_JOBS)]
        for asked in [*questions, *([job] for job in alone)]:
            known = await self._known([payment for job in asked for payment in jobs[job]])
            for job in asked:
                self._set_back.pop(job, None)
            if known is None:
                self._set_back |= dict.fromkeys(asked)
                while len(self._set_back) > MAX_SET_BACK:
                    del self._set_back[next(iter(self._set_back))]
                return
            sound = [job for job in asked if known.issuperset(one.id for one in jobs[job])]
            await self._credit([payment for job in sound for payment in jobs[job]])

    async def _known(self, payments: Sequence[MatchedPayment]) -> set[PaymentId] | None:
        """Return those that the witness has, too; None where it cannot be asked."""
        assert self._second is not None
        try:
            known = await self._second.witness.confirm([payment.log for payment in payments])
        except Retryable as exc:
            log.warning("settler.no_second_opinion", payments=len(payments), error=str(exc))
            return None
        for payment in payments:
            if payment.id not in known and payment.id not in self._unconfirmed:
                self._unconfirmed.add(payment.id)
                log.warning("payment.not_confirmed_elsewhere", payment_id=payment.id)
        return known

    async def _credit(self, sound: Sequence[MatchedPayment]) -> None:
        if not sound:
            return
        crediting = await self._ledger.credit([payment.id for payment in sound])
        for credited in crediting.credited:
            self._tell(credited)
        if crediting.credited:
            self._announce()
        for returned in crediting.returned:
            self._tell_returned(returned)
        for job_uuid, problem in crediting.refused.items():
            if job_uuid not in self._refused:
                self._refused.add(job_uuid)
                log.error("job.refused", job_uuid=job_uuid, problem=problem)

    def _warn_of(self, moved: set[PaymentId]) -> None:
        """Say once of each payment that its block is gone; it is looked at again every round."""
        for payment_id in moved - self._moved:
            log.warning("payment.block_not_found", payment_id=payment_id)
        self._moved |= moved

    async def _heads_for(self, matched: Sequence[MatchedPayment]) -> ChainHeads:
        """Ask for the heads that some of these payments wait for, and for no others."""
        needs = {requirement_for(payment.job_units, self._tiers) for payment in matched}
        tags: dict[str, Header | None] = {}
        for tag, is_needed in (
            ("latest", any(not isinstance(need, Included | Safe | Finalized) for need in needs)),
            ("safe", Safe() in needs),
            ("finalized", Finalized() in needs),
        ):
            if is_needed:
                tags[tag] = None
        if tags:
            tags = await self._heads(list(tags))
        latest, safe, final = (tags.get(tag) for tag in ("latest", "safe", "finalized"))
        return ChainHeads(
            latest_time=latest.time if latest else None,
            safe_number=safe.number if safe else None,
            finalized_number=final.number if final else None,
        )

    async def _heads(self, tags: Sequence[str]) -> dict[str, Header | None]:
        """Return heads by tag; None for one that this node does not know.

        A node without a `finalized` head must not hold up what does not need one.
        """
        try:
            return dict(zip(tags, await self._chain.headers(tags), strict=True))
        except CallFailed as exc:
            if len(tags) > 1:
                return {tag: (await self._heads([tag]))[tag] for tag in tags}
            log.warning("settler.head_unknown", tag=tags[0], error=str(exc))
            return {tags[0]: None}

    def _tell(self, credited: CreditedPayment) -> None:
        log.info(
            "payment.credited",
            payment_id=credited.id,
            tx_hash=credited.tx_hash,
            usdc=format_usdc(credited.units),
            job_uuid=credited.job_uuid,
        )
        usdc = credited.units / UNITS_PER_USDC
        self._metrics.payments.labels(status="credited", reason="").inc()
        self._metrics.payments_usdc.labels(status="credited").inc(usdc)
        self._metrics.revenue_usdc.labels(
            service=label_of(credited.service_key, self._services)
        ).inc(usdc)
        self._metrics.observe_stage("credited", credited.waited_s)

    def _tell_returned(self, returned: ReturnedPayment) -> None:
        log.warning(
            "payment.unmatched",
            payment_id=returned.id,
            tx_hash=returned.tx_hash,
            usdc=format_usdc(returned.units),
            job_uuid=returned.job_uuid,
            reason=returned.reason,
            meaning=returned.reason.sentence,
        )
        self._metrics.payments.labels(status="unmatched", reason=returned.reason).inc()
        self._metrics.payments_usdc.labels(status="unmatched").inc(returned.units / UNITS_PER_USDC)
