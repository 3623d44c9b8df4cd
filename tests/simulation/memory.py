"""The listener's side of a ledger in memory: what `db` promises, without PostgreSQL.

`test_model_fits_database.py` holds it against the real statements. A method does all or nothing.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from db.chain_state import ChainState, Checkpoint
from db.ranges import StoredRange
from oncepaid.domain.chain import BlockRef, Header, TxHash
from oncepaid.domain.errors import InconsistentNode, NotLeading
from oncepaid.domain.payments import (
    ObservedPayment,
    OrphanedPayment,
    PaymentId,
    PaymentStatus,
    StoredLog,
)
from tests.simulation.memory_rows import (
    CursorRow,
    PaymentRow,
    Tables,
    chains_of,
    inherit,
    operators_of,
    revive,
    row_of,
)


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
        left = {row.log.tx_hash for row in self._t.payments.values() if row.status == "orphaned"}
        lasts = {
            (p.log.block.hash, p.log.log_index): self._last_time(p, payments)
            if p.log.tx_hash in left
            else None
            for p in payments
        }
        for payment in payments:
            key = (payment.log.block.hash, payment.log.log_index)
            row, last = self._t.by_key.get(key), lasts[key]
            words = () if last is None else operators_of(last)
            if row is None:
                row = row_of(PaymentId(len(self._t.payments) + 1), payment)
                self._t.payments[row.id] = self._t.by_key[key] = row
                row.evidence += words
                if last is not None:
                    inherit(row, last)
            elif row.status == "orphaned":
                row.evidence = row.evidence or payment.evidence
                if words:
                    row.evidence = (*chains_of(row), *words)
                revive(row, last or row)
            elif row.is_bare and (payment.evidence or words):
                row.evidence = payment.evidence + words
                row.see_again()
            else:
                continue
            stored += 1
        return stored

    def _last_time(
        self, payment: ObservedPayment, payments: Sequence[ObservedPayment]
    ) -> PaymentRow | None:
        """Return the row of a transfer of which something was decided, the newest of them."""
        mine = row_of(PaymentId(0), payment)
        told = [row_of(PaymentId(0), p) for p in payments]
        equals = [r for r in (*told, *self._t.payments.values()) if r.equals == mine.equals]

        def place(row: PaymentRow) -> int:
            keys = {r.key for r in equals if r.log.block.hash == row.log.block.hash}
            return sum(key < row.key for key in keys)

        found = [row for row in equals if row.is_decided and place(row) == place(mine)]
        return max(
            found, key=lambda r: (r.orphaned_from == "refunded", r.orphaned_at), default=None
        )

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
            self._t.orphanings += 1
            row.orphaned_at = self._t.orphanings
        jobs = {self._t.payments[each.id].job_id for each in orphaned} - {None}
        for row in self._t.payments.values():
            if row.job_id in jobs and (row.status, row.reason) == ("unmatched", "duplicate"):
                row.see_again()
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
