"""The ledger in memory, the side of the money: matching, crediting, reversing."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, assert_never

from db.audit import Note
from db.bindings import AlreadyBound, Binding, Bound, BoundToAnother, NoSuchJob
from oncepaid.domain.jobs import JobId, JobTerms
from oncepaid.domain.matching import DecidedPayment, Decision, Matched, Unmatched
from oncepaid.domain.memo import Reference
from oncepaid.domain.money import Units, excess
from oncepaid.domain.payments import (
    CreditedPayment,
    Crediting,
    MatchedPayment,
    PaymentId,
    Reason,
    ReturnedPayment,
    SeenPayment,
    Signer,
)
from oncepaid.domain.reversal import (
    Covered,
    Lose,
    Reopen,
    Reversal,
    ReversedCredit,
    ReversedPayment,
    Reversing,
)
from tests.simulation.memory_rows import JobRow, Loss, PaymentRow, Tables

DecideAll = Callable[[Sequence[SeenPayment], Sequence[JobTerms]], Mapping[PaymentId, Decision]]

_FIRST: Final = PaymentId(0)


class Side:
    def __init__(self, tables: Tables) -> None:
        self._t = tables

    def _of(self, job: JobId, status: str) -> list[PaymentRow]:
        rows = self._t.payments.values()
        return [row for row in rows if row.job_id == job and row.status == status]

    def _underpaid(self, job: JobId) -> list[PaymentRow]:
        return [row for row in self._of(job, "unmatched") if row.reason == "underpaid"]

    def has_unreversed(self, job: JobId) -> bool:
        return any(_is_unreversed(row) for row in self._of(job, "orphaned"))


class MoneySide(Side):
    """Fits `db.payments.PaymentStore` and `db.reversals.ReversalStore`."""

    async def decide_seen(
        self, decide_all: DecideAll, limit: int, after: PaymentId = _FIRST
    ) -> list[DecidedPayment]:
        rows = [r for r in self._t.payments.values() if r.status == "seen" and r.id > after][:limit]
        seen = [self._seen_of(row) for row in rows]
        decisions = decide_all(seen, self._terms(rows))
        for payment, decision in decisions.items():
            row = self._t.payments[payment]
            row.job_id = decision.job_id
            row.status = "matched" if isinstance(decision, Matched) else "unmatched"
            row.reason = str(decision.reason) if isinstance(decision, Unmatched) else None
        for decision in decisions.values():
            if isinstance(decision, Matched):
                for row in self._underpaid(decision.job_id):
                    row.status, row.reason = "matched", None
        return [
            DecidedPayment(
                payment=payment,
                tx_hash=row.log.tx_hash,
                decision=decisions[row.id],
                job_uuid=None,
                waited_s=0.0,
            )
            for row, payment in zip(rows, seen, strict=True)
        ]

    def _seen_of(self, row: PaymentRow) -> SeenPayment:
        above = [
            job
            for job in self._t.jobs.values()
            if job.unique_amount is not None
            and job.unique_amount > row.log.units
            and job.status == "pending"
            and job.pay_to in (None, row.log.recipient)
        ]
        nearest = min(above, key=lambda job: job.unique_amount or 0, default=None)
        prices = {
            job.price
            for job in self._t.jobs.values()
            if job.unique_amount not in (None, row.log.units)
            and job.status == "pending"
            and job.pay_to in (None, row.log.recipient)
        }
        return SeenPayment(
            id=row.id,
            sender=row.log.sender,
            recipient=row.log.recipient,
            units=row.log.units,
            block_time=row.block_time,
            evidence=row.evidence,
            transfers_in_tx=row.transfers_in_tx,
            block_number=row.log.block.number,
            nearest_above=None if nearest is None or row.evidence else nearest.price,
            is_a_price=row.log.units in prices,
        )

    def _terms(self, rows: Sequence[PaymentRow]) -> list[JobTerms]:
        pieces = [piece for row in rows for piece in row.evidence]
        memos = {piece.memo for piece in pieces}
        bound = {self._t.bindings.get(piece.reference) for piece in pieces if piece.reference}
        amounts = {row.log.units for row in rows}
        named = [
            job
            for job in self._t.jobs.values()
            if job.memo in memos or job.unique_amount in amounts or job.id in bound
        ]
        return [self._terms_of(job) for job in named]

    def _terms_of(self, job: JobRow) -> JobTerms:
        covered = self._of(job.id, "matched") + self._of(job.id, "credited")
        awaits = job.status == "pending" or job.is_unbacked or self.has_unreversed(job.id)
        return JobTerms(
            id=job.id,
            awaits_payment=awaits,
            memo=job.memo,
            price=job.price,
            pay_to=job.pay_to,
            unique_amount=job.unique_amount,
            expires_at=job.expires_at,
            covered=_sum(covered),
            partial=_sum(self._underpaid(job.id)),
            parts=len(self._underpaid(job.id)),
            references=frozenset(r for r, bound in self._t.bindings.items() if bound == job.id),
            amount_after_block=-1,
        )

    async def bind(self, job: JobId, reference: Reference, *, why: str, note: Note) -> Binding:
        holder = self._t.bindings.get(reference)
        if holder not in (None, job):
            return BoundToAnother(job=holder)
        if job not in self._t.jobs:
            return NoSuchJob()
        self._t.bindings[reference] = job
        carrying = [
            row
            for row in self._t.payments.values()
            if any(piece.reference == reference for piece in row.evidence)
        ]
        bindings = self._t.bindings
        _see_again([row for row in carrying if _is_bound_late(row, bindings, {reference})])
        if holder == job:
            return AlreadyBound()
        return Bound(waiting=tuple(row.id for row in carrying if row.status == "seen"))

    async def load_matched(self, after: JobId, limit: int) -> list[MatchedPayment]:
        matched = [row for row in self._t.payments.values() if row.status == "matched"]
        jobs = sorted({row.job_id for row in matched if row.job_id and row.job_id > after})[:limit]
        return [
            MatchedPayment(
                log=row.stored,
                job_id=job,
                block_time=row.block_time,
                job_units=_sum(self._of(job, "matched")),
            )
            for job in jobs
            for row in self._of(job, "matched")
        ]

    async def credit(self, payments: Sequence[PaymentId]) -> Crediting:
        credited: list[CreditedPayment] = []
        due = [self._t.payments[p] for p in payments if self._t.payments[p].status == "matched"]
        for job in self._jobs_of(due):
            rows = [row for row in due if row.job_id == job.id]
            units = self._backing(job, rows)
            conflict = self._t.cursor is not None and self._t.cursor.conflict
            is_open = (job.status == "pending" or job.is_unbacked) and not conflict
            if not is_open or units < job.price or self.has_unreversed(job.id):
                continue
            job.status = "paid" if job.status == "pending" else job.status
            job.credited_units, job.is_unbacked = units, False
            job.overpaid_units = _overpaid(job)
            self._make_good(job.id)
            for row in rows:
                row.status = "credited"
                credited.append(_credited_of(row, job))
        return Crediting(credited=credited, returned=self._unmatch(due))

    def _unmatch(self, due: Sequence[PaymentRow]) -> list[ReturnedPayment]:
        rest = [row for row in due if row.status == "matched"]
        returned = []
        for job in self._jobs_of(rest):
            rows = [row for row in rest if row.job_id == job.id]
            awaits = job.status == "pending" or job.is_unbacked
            is_enough = self._backing(job, rows) >= job.price
            if self.has_unreversed(job.id) or (awaits and is_enough):
                continue
            reason = Reason.UNDERPAID if awaits else Reason.DUPLICATE
            for row in rows:
                row.status, row.reason = "unmatched", str(reason)
                returned.append(
                    ReturnedPayment(
                        id=row.id,
                        tx_hash=row.log.tx_hash,
                        units=row.log.units,
                        job_uuid=job.uuid,
                        reason=reason,
                    )
                )
        return returned

    async def reconsider(self) -> int:
        again = 0
        for job in self._t.jobs.values():
            covered = _sum([*self._of(job.id, "matched"), *self._of(job.id, "credited")])
            if not (job.status == "pending" or job.is_unbacked) or covered >= max(job.price, 1):
                continue
            rows = [r for r in self._of(job.id, "unmatched") if r.reason == "duplicate"]
            partials = self._underpaid(job.id)
            if _sum(partials) + covered >= job.price:
                rows += partials
            again += _see_again(rows)
        bindings = self._t.bindings
        return again + _see_again(
            [row for row in self._t.payments.values() if _is_bound_late(row, bindings, bindings)]
        )

    async def conflict(self) -> str | None:
        return None if self._t.cursor is None else self._t.cursor.conflict

    async def reverse_orphaned(
        self, decide: Callable[[ReversedCredit], Reversal], limit: int
    ) -> Reversing:
        rows = [row for row in self._t.payments.values() if _is_unreversed(row)]
        reversed_: list[ReversedPayment] = []
        jobs = self._jobs_of(rows)[:limit]
        for job in jobs:
            gone = [row for row in rows if row.job_id == job.id]
            credit = ReversedCredit(
                status=job.status,
                price=job.price,
                gone=_sum(gone),
                rest=_sum(self._of(job.id, "credited")),
            )
            reversal = decide(credit)
            self._reverse(job, gone, credit, reversal)
            reversed_ += [_reversed_of(row, job, credit.status, reversal) for row in gone]
        return Reversing(
            reversed=reversed_,
            reopened=self._reopen_given_up(),
            refused=[],
            is_full=len(jobs) == limit,
        )

    def _reverse(
        self, job: JobRow, gone: Sequence[PaymentRow], credit: ReversedCredit, reversal: Reversal
    ) -> None:
        for row in gone:
            row.is_reversed = True
        match reversal:
            case Covered():
                job.credited_units = credit.rest
                job.overpaid_units = _overpaid(job)
            case Reopen():
                self._reopen(job)
            case Lose():
                job.is_unbacked, job.credited_units, job.overpaid_units = True, credit.rest, 0
                self._t.losses += [
                    Loss(job=job.id, units=row.log.units, job_status=credit.status) for row in gone
                ]
            case _:
                assert_never(reversal)

    def _reopen_given_up(self) -> list[str]:
        reopened = []
        for job in self._t.jobs.values():
            is_over = job.lease_until is not None and job.lease_until < self._t.now
            given_up = job.status == "paid" or (job.status == "in_progress" and is_over)
            if job.is_unbacked and given_up:
                attempt = None if job.attempt is None else self._t.attempts[job.attempt]
                if attempt is not None and not attempt.is_finished:
                    attempt.is_finished, attempt.outcome = True, "lost"
                self._reopen(job)
                reopened.append(job.uuid)
        return reopened

    def _reopen(self, job: JobRow) -> None:
        job.status, job.is_unbacked = "pending", False
        job.credited_units = job.overpaid_units = 0
        job.attempt = job.lease_until = None
        for row in self._of(job.id, "credited"):
            row.status = "matched"
        self._make_good(job.id)

    def _make_good(self, job: JobId) -> None:
        for loss in self._t.losses:
            if loss.job == job:
                loss.is_made_good = True

    def _jobs_of(self, rows: Sequence[PaymentRow]) -> list[JobRow]:
        return [self._t.jobs[job] for job in sorted({row.job_id for row in rows if row.job_id})]

    def _backing(self, job: JobRow, rows: Sequence[PaymentRow]) -> int:
        return _sum(rows) + (job.credited_units if job.is_unbacked else 0)


def _sum(rows: Sequence[PaymentRow]) -> Units:
    return Units(sum(row.log.units for row in rows))


def _is_unreversed(row: PaymentRow) -> bool:
    return row.status == "orphaned" and row.orphaned_from == "credited" and not row.is_reversed


def _is_bound_late(
    row: PaymentRow, bindings: Mapping[Reference, JobId], bound: Collection[Reference]
) -> bool:
    """The view `oncepaid_bound_late`, where it speaks of `bound`."""
    pieces = [piece for piece in row.evidence if piece.reference in bound]
    if row.status != "unmatched" or not pieces:
        return False
    if row.reason in ("no_memo", "ambiguous_amount"):
        return True
    payers = [piece for piece in row.evidence if piece.signer is Signer.PAYER]
    gives_way = row.reason in ("unknown_memo", "third_party_memo", "memo_conflict")
    has_memo = any(piece.memo is not None for piece in payers)
    jobs = {bindings[p.reference] for p in payers if p.reference and p.reference in bindings}
    names_one = len(jobs) == 1 and any(piece in payers for piece in pieces)
    return gives_way and not has_memo and names_one


def _overpaid(job: JobRow) -> Units:
    credited = Units(job.credited_units)
    return excess(credited, price=job.price, unique_amount=job.unique_amount)


def _see_again(rows: Sequence[PaymentRow]) -> int:
    for row in rows:
        row.see_again()
    return len(rows)


def _credited_of(row: PaymentRow, job: JobRow) -> CreditedPayment:
    return CreditedPayment(
        id=row.id,
        job_id=job.id,
        tx_hash=row.log.tx_hash,
        units=row.log.units,
        job_uuid=job.uuid,
        service_key=None,
        waited_s=0.0,
    )


def _reversed_of(
    row: PaymentRow, job: JobRow, job_status: str, reversal: Reversal
) -> ReversedPayment:
    return ReversedPayment(
        id=row.id,
        tx_hash=row.log.tx_hash,
        units=row.log.units,
        job_uuid=job.uuid,
        job_status=job_status,
        reversal=reversal,
    )
