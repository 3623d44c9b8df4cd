"""The listener's side of a ledger in memory: what `db` promises, without PostgreSQL.

`test_model_fits_database.py` holds it against the real statements. A method does all or nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from db.chain_state import ChainState, Checkpoint
from db.ranges import StoredRange
from oncepaid.domain.chain import Address, BlockRef, Header, TransferLog, TxHash
from oncepaid.domain.errors import InconsistentNode, NotLeading
from oncepaid.domain.jobs import JobId
from oncepaid.domain.memo import Memo
from oncepaid.domain.money import Units
from oncepaid.domain.payments import (
    Evidence,
    ObservedPayment,
    OrphanedPayment,
    PaymentId,
    PaymentStatus,
    StoredLog,
)

LONG_AGO: Final = datetime(2020, 1, 1, tzinfo=UTC)
BARE: Final = (("seen", None), ("unmatched", "no_memo"))


@dataclass(slots=True, kw_only=True, eq=False)
class PaymentRow:
    id: PaymentId
    log: TransferLog
    stored: StoredLog
    block_time: datetime
    evidence: tuple[Evidence, ...]
    transfers_in_tx: int
    status: str = "seen"
    reason: str | None = None
    job_id: JobId | None = None
    orphaned_from: str | None = None
    is_reversed: bool = False

    @property
    def key(self) -> tuple[str, int]:
        return self.log.block.hash, self.log.log_index

    @property
    def is_bare(self) -> bool:
        return not self.evidence and (self.status, self.reason) in BARE


@dataclass(slots=True, kw_only=True, eq=False)
class JobRow:
    id: JobId
    memo: Memo
    price: Units
    unique_amount: Units | None
    pay_to: Address | None
    expires_at: datetime
    status: str = "pending"
    credited_units: int = 0
    is_unbacked: bool = False
    attempt: int | None = None
    attempts: int = 0
    failures_in_row: int = 0
    lease_until: datetime | None = None
    next_attempt_at: datetime = LONG_AGO
    completed: int = 0
    output: object = None

    @property
    def uuid(self) -> str:
        return f"job {self.id}"


@dataclass(slots=True, kw_only=True)
class Attempt:
    id: int
    job: JobId
    number: int
    started_at: datetime
    is_finished: bool = False
    outcome: str | None = None
    output: object = None


@dataclass(slots=True, kw_only=True)
class Loss:
    job: JobId
    units: int
    job_status: str
    is_made_good: bool = False


@dataclass(slots=True, kw_only=True)
class CursorRow:
    block: BlockRef
    epoch: int
    start: int
    checked: int
    finalized: int = -1
    conflict: str | None = None


@dataclass(slots=True)
class Tables:
    """All rows, and the database's clock."""

    now: datetime = LONG_AGO
    leader_epoch: int = 0
    cursor: CursorRow | None = None
    checkpoints: dict[int, tuple[BlockRef, datetime, datetime]] = field(default_factory=dict)
    payments: dict[PaymentId, PaymentRow] = field(default_factory=dict)
    by_key: dict[tuple[str, int], PaymentRow] = field(default_factory=dict)
    jobs: dict[JobId, JobRow] = field(default_factory=dict)
    attempts: dict[int, Attempt] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)

    def live(self) -> list[PaymentRow]:
        return [row for row in self.payments.values() if row.status != "orphaned"]

    def take_over(self) -> int:
        """Lead under a new epoch, as `db.leader` does."""
        self.leader_epoch += 1
        if self.cursor is not None:
            self.cursor.epoch = self.leader_epoch
        return self.leader_epoch


class ChainSide:
    """Fits `db.ranges.RangeStore` and `db.cursor.CursorStore`."""

    def __init__(self, tables: Tables) -> None:
        self._t = tables

    async def load(self) -> BlockRef | None:
        return None if self._t.cursor is None else self._t.cursor.block

    async def start_at(
        self, header: Header, anchors: Sequence[Header] = (), *, epoch: int
    ) -> BlockRef:
        if self._t.cursor is None:
            if epoch != self._t.leader_epoch:
                raise NotLeading("another daemon reads the chain now")
            number = header.number
            self._t.cursor = CursorRow(block=header.ref, epoch=epoch, start=number, checked=number)
            self._add_checkpoints([header, *anchors])
        return self._t.cursor.block

    async def store_range(
        self,
        cursor: BlockRef,
        end: Header,
        payments: Sequence[ObservedPayment],
        *,
        epoch: int,
        gone: Sequence[PaymentId] = (),
        kept: Sequence[PaymentId] = (),
    ) -> StoredRange:
        if gone:
            self._require_lead(epoch)
        leaving = set(gone)
        live = [row for row in self._t.live() if row.id not in leaving]
        is_contradicted = _contradicts(live, cursor, end, payments, set(kept))
        row = self._t.cursor
        moves = row is not None and (row.block, row.epoch) == (cursor, epoch)
        if is_contradicted or not moves:
            if not is_contradicted and (row is None or row.epoch != epoch):
                raise NotLeading("another daemon reads the chain now")
            return StoredRange(moved=False, stored=0, is_contradicted=is_contradicted)
        assert row is not None
        self._refuse_twins(payments, leaving)
        orphaned = self._orphan(gone)
        row.block = end.ref
        self._t.checkpoints[end.number] = (end.ref, end.time, self._t.now)
        stored = self._insert(payments)
        return StoredRange(moved=True, stored=stored, orphaned=tuple(orphaned))

    async def live_logs(
        self, first: int, last: int, tx_hashes: Sequence[TxHash] = ()
    ) -> list[StoredLog]:
        found = [
            row.stored
            for row in self._t.live()
            if first <= row.log.block.number <= last or row.log.tx_hash in tx_hashes
        ]
        return sorted(found, key=lambda log: (log.block.number, log.log_index))

    async def bare_logs(self, first: int, last: int) -> list[StoredLog]:
        bare = {row.id for row in self._t.live() if row.is_bare}
        return [log for log in await self.live_logs(first, last) if log.id in bare]

    async def state(self) -> ChainState | None:
        row = self._t.cursor
        if row is None:
            return None
        return ChainState(
            cursor=row.block,
            start=row.start,
            checked=row.checked,
            finalized=row.finalized,
            conflict=row.conflict,
        )

    async def newest_logs(self, *, below: int, limit: int) -> list[StoredLog]:
        found = await self.live_logs(0, below - 1)
        return found[::-1][:limit]

    async def checkpoints(
        self,
        *,
        limit: int,
        below: int | None = None,
        min_age: timedelta = timedelta(0),
        until: datetime | None = None,
    ) -> list[Checkpoint]:
        found = []
        for number in sorted(self._t.checkpoints, reverse=True):
            block, time, stored_at = self._t.checkpoints[number]
            age = self._t.now - stored_at
            is_due = age >= min_age and (until is None or time <= until)
            if is_due and (below is None or number < below):
                found.append(Checkpoint(block=block, time=time, age=age))
        return found[:limit]

    async def rewind(
        self, cursor: BlockRef, to: Header, gone: Sequence[PaymentId], *, epoch: int
    ) -> list[OrphanedPayment] | None:
        row = self._require_lead(epoch)
        if row.block != cursor:
            return None
        row.block = to.ref
        row.checked = min(row.checked, to.number)
        row.start = min(row.start, to.number)
        for number in [n for n in self._t.checkpoints if n >= to.number]:
            del self._t.checkpoints[number]
        self._add_checkpoints([to])
        return self._orphan(gone)

    async def repair(
        self,
        last: int,
        missing: Sequence[ObservedPayment],
        gone: Sequence[PaymentId],
        *,
        epoch: int,
        checked: int,
        anchor: BlockRef,
    ) -> list[OrphanedPayment]:
        row = self._require_lead(epoch, at_least=last)
        self._require_checkpoint(anchor)
        self._refuse_twins(missing, set(gone))
        orphaned = self._orphan(gone)
        self._insert(missing)
        row.checked = max(row.checked, checked)
        return orphaned

    async def mark_finalized(self, block: Header, *, anchor: BlockRef, epoch: int) -> None:
        row = self._require_lead(epoch, at_least=block.number)
        self._require_checkpoint(anchor)
        if row.finalized < block.number <= row.checked:
            row.finalized = block.number
            self._add_checkpoints([block])
            for number in [n for n in self._t.checkpoints if n < block.number]:
                del self._t.checkpoints[number]

    async def declare_conflict(self, what: str, *, epoch: int) -> None:
        row = self._require_lead(epoch)
        row.conflict = row.conflict or what

    def _require_checkpoint(self, block: BlockRef) -> None:
        place = self._t.checkpoints.get(block.number)
        if place is None or place[0] != block:
            raise NotLeading(f"block {block} was rolled back")

    def _require_lead(self, epoch: int, at_least: int = 0) -> CursorRow:
        row = self._t.cursor
        if row is None or row.epoch != epoch:
            raise NotLeading("another daemon reads the chain now")
        if row.block.number < at_least:
            raise NotLeading(f"the cursor was taken back below block {at_least}")
        return row

    def _add_checkpoints(self, headers: Sequence[Header]) -> None:
        for header in headers:
            place = (header.ref, header.time, self._t.now)
            self._t.checkpoints.setdefault(header.number, place)

    def _refuse_twins(self, payments: Sequence[ObservedPayment], leaving: set[PaymentId]) -> None:
        """The unique index over transaction and log index of the payments that count."""
        if not payments:
            return
        live = {
            (row.log.tx_hash, row.log.log_index): row.key
            for row in self._t.live()
            if row.id not in leaving
        }
        for payment in payments:
            log = payment.log
            key = (log.block.hash, log.log_index)
            if live.get((log.tx_hash, log.log_index), key) != key:
                raise InconsistentNode("a payment is there twice")

    def _insert(self, payments: Sequence[ObservedPayment]) -> int:
        stored = 0
        for payment in payments:
            key = (payment.log.block.hash, payment.log.log_index)
            row = self._t.by_key.get(key)
            if row is None:
                row = _row_of(PaymentId(len(self._t.payments) + 1), payment)
                self._t.payments[row.id] = self._t.by_key[key] = row
            elif row.status == "orphaned":
                row.evidence = row.evidence or payment.evidence
                _revive(row)
            elif row.is_bare and payment.evidence:
                row.evidence = payment.evidence
                row.status, row.job_id, row.reason = "seen", None, None
            else:
                continue
            stored += 1
        return stored

    def _orphan(self, payments: Sequence[PaymentId]) -> list[OrphanedPayment]:
        orphaned = []
        for payment in sorted(payments):
            row = self._t.payments[payment]
            if row.status == "orphaned":
                continue
            job = None if row.job_id is None else self._t.jobs[row.job_id]
            orphaned.append(
                OrphanedPayment(
                    id=row.id,
                    tx_hash=row.log.tx_hash,
                    units=row.log.units,
                    was=PaymentStatus(row.status),
                    job_uuid=None if job is None else job.uuid,
                )
            )
            row.orphaned_from, row.status, row.is_reversed = row.status, "orphaned", False
        jobs = {self._t.payments[each.id].job_id for each in orphaned} - {None}
        for row in self._t.payments.values():
            if row.job_id in jobs and (row.status, row.reason) == ("unmatched", "duplicate"):
                row.status, row.job_id, row.reason = "seen", None, None
        return orphaned


def _contradicts(
    live: Sequence[PaymentRow],
    cursor: BlockRef,
    end: Header,
    payments: Sequence[ObservedPayment],
    kept: set[PaymentId],
) -> bool:
    keys = {(payment.log.block.hash, payment.log.log_index) for payment in payments}
    blocks: dict[str, set[str]] = {}
    for payment in payments:
        blocks.setdefault(payment.log.tx_hash, set()).add(payment.log.block.hash)
    for row in live:
        if row.id in kept:
            continue
        told = blocks.get(row.log.tx_hash)
        if told is not None and row.log.block.hash not in told:
            return True
        if cursor.number < row.log.block.number <= end.number and row.key not in keys:
            return True
    return False


def _row_of(number: PaymentId, payment: ObservedPayment) -> PaymentRow:
    log = payment.log
    stored = StoredLog(
        id=number,
        block=log.block,
        tx_hash=log.tx_hash,
        log_index=log.log_index,
        sender=log.sender,
        recipient=log.recipient,
        units=log.units,
    )
    return PaymentRow(
        id=number,
        log=replace(log),
        stored=stored,
        block_time=payment.block_time,
        evidence=payment.evidence,
        transfers_in_tx=payment.transfers_in_tx,
    )


def _revive(row: PaymentRow) -> None:
    was = row.orphaned_from
    stands = was in ("refunded", "ignored") or (was == "credited" and not row.is_reversed)
    if stands:
        assert was is not None
        row.status = was
    else:
        row.status, row.job_id, row.reason = "seen", None, None
    row.orphaned_from, row.is_reversed = None, False
