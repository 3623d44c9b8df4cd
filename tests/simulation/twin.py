"""The two ledgers side by side: each call is made of both, and both must say the same."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Final, cast

from db.bindings import BindingStore
from db.cursor import CursorStore
from db.jobs import JobStore
from db.payments import PaymentStore
from db.pool import Database
from db.ranges import RangeStore
from db.reversals import ReversalStore
from oncepaid.domain.errors import OncepaidError
from oncepaid.domain.generation import AnsweredJob, Budget, Verdict, decide_verdict
from oncepaid.domain.matching import decide_all
from oncepaid.domain.money import UNITS_PER_USDC
from oncepaid.domain.payments import Evidence, MemoSource, PaymentId, Signer
from tests.integration.db.support import CHAIN, RULES, START, add_job, add_skill, execute, rows
from tests.simulation.memory import ChainSide
from tests.simulation.memory_money import MoneySide
from tests.simulation.memory_rows import JobRow, Tables
from tests.simulation.memory_work import WorkSide

_TABLES: Final = (
    "audit_log, chain_checkpoints, chain_cursor, chain_leader, generation_attempts, job_bindings,"
    " jobs, losses, payment_refunds, payments, retired_amounts, skills, webhook_deliveries"
)
_PAYMENTS: Final = """
SELECT block_hash, log_index, status, reason, job_id, orphaned_from,
       reversed_at IS NOT NULL AS is_reversed, jsonb_array_length(evidence)
  FROM payments ORDER BY 1, 2
"""
_JOBS: Final = """
SELECT id, status, credited_units, overpaid_units, is_unbacked, attempt_id, attempts,
       failures_in_row,
       lease_until IS NOT NULL AS is_leased, completed_at IS NOT NULL AS is_done
  FROM jobs ORDER BY id
"""
_CURSOR: Final = """
SELECT block_number, block_hash, epoch, start_number, checked_number, finalized_number, conflict
  FROM chain_cursor
"""
_CHECKPOINTS: Final = "SELECT block_number, block_hash FROM chain_checkpoints ORDER BY 1"
_ATTEMPTS: Final = """
SELECT id, job_id, attempt_no, finished_at IS NOT NULL, outcome FROM generation_attempts ORDER BY id
"""
_LOSSES: Final = """
SELECT job_id, amount_units::bigint, job_status, made_good_at IS NOT NULL
  FROM losses ORDER BY 1, 2, 3, 4
"""
# Each unit that counts for a job came from exactly one log, unless that has just left the chain.
_NOT_CONSERVED: Final = """
SELECT id FROM jobs
 WHERE credited_units <> (SELECT coalesce(sum(amount_units), 0) FROM payments
                           WHERE job_id = jobs.id AND status = 'credited')
   AND NOT EXISTS (SELECT FROM payments WHERE job_id = jobs.id AND orphaned_from = 'credited'
                                          AND status = 'orphaned' AND reversed_at IS NULL)
"""
LEASE: Final = timedelta(hours=1)
BUDGET: Final = Budget(max_attempts=2, max_cost_usd=Decimal(1))
DECIDE: Final = partial(decide_all, rules=RULES)


def verdict_of(job: AnsweredJob) -> Verdict:
    return decide_verdict(
        job.result, attempts=job.attempts, job_cost_usd=job.cost_usd, budget=BUDGET
    )


class Twin:
    """`call` makes one call of both. Payments are named by their ids in memory."""

    def __init__(self, database: Database) -> None:
        self.tables = Tables(now=START)
        self._database = database
        self._stores = [
            RangeStore(database, CHAIN),
            CursorStore(database, CHAIN),
            PaymentStore(database, CHAIN),
            ReversalStore(database, CHAIN),
            JobStore(database),
            BindingStore(database),
        ]
        self._memory = [ChainSide(self.tables), MoneySide(self.tables), WorkSide(self.tables)]
        self._to_database: dict[PaymentId, PaymentId] = {}
        self._to_memory: dict[PaymentId, PaymentId] = {}

    async def empty(self) -> None:
        """Begin with tables that hold nothing."""
        await execute(self._database, f"TRUNCATE {_TABLES} RESTART IDENTITY")
        await execute(
            self._database, "INSERT INTO chain_leader (chain_id, epoch) VALUES ($1, 0)", CHAIN
        )
        self._skill = await add_skill(self._database)

    async def add_job(self, job: JobRow) -> None:
        self.tables.jobs[job.id] = job
        inserted = await add_job(
            self._database,
            skill_id=self._skill,
            memo=job.memo,
            price_usdc=Decimal(job.price) / UNITS_PER_USDC,
            unique_amount_units=job.unique_amount,
            pay_to=job.pay_to,
            expires_at=job.expires_at,
        )
        assert inserted.id == job.id

    async def take_over(self) -> None:
        self.tables.take_over()
        await execute(self._database, "UPDATE chain_leader SET epoch = epoch + 1")
        await execute(self._database, "UPDATE chain_cursor SET epoch = epoch + 1")

    async def let_leases_run_out(self) -> None:
        for job in self.tables.jobs.values():
            if job.lease_until is not None:
                job.lease_until = self.tables.now - timedelta(seconds=1)
        await execute(
            self._database,
            "UPDATE jobs SET lease_until = now() - interval '1s' WHERE lease_until IS NOT NULL",
        )

    async def settle(self, payment: PaymentId, status: str) -> None:
        """Refund or ignore what is unmatched, as an operator does."""
        row = self.tables.payments[payment]
        if row.status == "unmatched":
            row.status = status
        await execute(
            self._database,
            "UPDATE payments SET status = $2 WHERE id = $1 AND status = 'unmatched'",
            *(self._to_database[payment], status),
        )
        await self.compare()

    async def assign(self, payment: PaymentId, job: JobRow) -> None:
        """Give what is unmatched to a job, as an operator does."""
        row = self.tables.payments[payment]
        word = Evidence(memo=job.memo, source=MemoSource.OPERATOR, signer=Signer.OPERATOR)
        if row.status == "unmatched":
            row.evidence += (word,)
            row.see_again()
        await execute(
            self._database,
            """
            UPDATE payments SET status = 'seen', reason = NULL, job_id = NULL,
                   evidence = evidence || jsonb_build_object(
                       'memo', $2::text, 'source', 'operator', 'signer', 'operator')
             WHERE id = $1 AND status = 'unmatched'
            """,
            *(self._to_database[payment], job.memo.hex()),
        )
        await self.compare()

    async def call(self, name: str, *args: Any, ids: Sequence[str] = (), **kwargs: Any) -> None:
        """Make a call of both. `ids` are the keyword arguments that hold payments."""
        await self.ask(name, *args, ids=ids, **kwargs)
        await self.compare()

    async def ask(self, name: str, *args: Any, ids: Sequence[str] = (), **kwargs: Any) -> None:
        """The same for a call that changes nothing."""
        ours = {k: self._mapped(v) if k in ids else v for k, v in kwargs.items()}
        mine = await _outcome(_method(self._memory, name), *args, **kwargs)
        real = await _outcome(_method(self._stores, name), *args, **ours)
        await self._learn()
        expected, found = self._plain(mine, {}), self._plain(real, self._to_memory)
        assert expected == found, f"{name}: {expected} in memory, {found} in PostgreSQL"

    async def compare(self) -> None:
        """The rows are the same."""
        t = self.tables
        attempts = t.attempts.values()
        expected = {
            _PAYMENTS: sorted(map(_payment, t.payments.values())),
            _JOBS: [_job(job) for job in t.jobs.values()],
            _CURSOR: [] if t.cursor is None else [_cursor(t)],
            _CHECKPOINTS: [(n, t.checkpoints[n][0].hash) for n in sorted(t.checkpoints)],
            _ATTEMPTS: [(a.id, a.job, a.number, a.is_finished, a.outcome) for a in attempts],
            _LOSSES: sorted((x.job, x.units, x.job_status, x.is_made_good) for x in t.losses),
        }
        async with self._database.connection() as connection:
            for sql, mine in expected.items():
                real = [tuple(row) for row in await connection.fetch(sql)]
                assert mine == real, f"{mine} in memory, {real} in PostgreSQL"
            assert not await connection.fetch(_NOT_CONSERVED)

    async def _learn(self) -> None:
        """Look up the ids of new payments: PostgreSQL's sequence leaves gaps."""
        if len(self._to_database) == len(self.tables.payments):
            return
        found = await rows(self._database, "SELECT id, block_hash, log_index FROM payments")
        by_key = {(row["block_hash"], row["log_index"]): row["id"] for row in found}
        self._to_database = {row.id: by_key[row.key] for row in self.tables.payments.values()}
        self._to_memory = {real: mine for mine, real in self._to_database.items()}

    def _mapped(self, ids: Sequence[PaymentId]) -> list[PaymentId]:
        return [self._to_database[payment] for payment in ids]

    def _plain(self, value: Any, ids: dict[PaymentId, PaymentId]) -> Any:
        """Leave out what may differ: ids, uuids, ages; and the order where none is promised."""
        named = ids.get
        match type(value).__name__:
            case "StoredRange":
                gone = {named(p.id, p.id): p.was for p in value.orphaned}
                return value.moved, value.stored, value.is_contradicted, gone
            case "Crediting":
                credited = {named(p.id, p.id) for p in value.credited}
                return credited, {named(p.id, p.id): p.reason for p in value.returned}
            case "Reversing":
                done = {named(p.id, p.id): (p.reversal, p.job_status) for p in value.reversed}
                return done, len(value.reopened), value.is_full
            case "Finishing":
                return {job.job.id: job.verdict for job in value.finished}
            case "DecidedPayment":
                return named(value.payment.id, value.payment.id), value.decision
            case "MatchedPayment":
                return named(value.id, value.id), value.job_id, value.job_units
            case "OrphanedPayment":
                return named(value.id, value.id), value.was
            case "StoredLog":
                return named(value.id, value.id), value.block, value.log_index, value.units
            case "Checkpoint":
                return value.block, value.time
            case "ClaimedJob":
                return value.id, value.attempt, value.attempt_no, value.lost_attempts
            case "Bound":
                return {named(payment, payment) for payment in value.waiting}
            case "list":
                plain = [self._plain(item, ids) for item in value]
                return sorted(plain, key=repr)
        return value


async def _outcome(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return await method(*args, **kwargs)
    except OncepaidError as exc:
        return type(exc)


def _method(stores: Sequence[object], name: str) -> Callable[..., Any]:
    (found,) = [getattr(store, name) for store in stores if hasattr(store, name)]
    return cast(Callable[..., Any], found)


def _payment(row: Any) -> tuple[Any, ...]:
    return (
        *(*row.key, row.status, row.reason, row.job_id, row.orphaned_from, row.is_reversed),
        len(row.evidence),
    )


def _job(job: JobRow) -> tuple[Any, ...]:
    return (
        *(job.id, job.status, job.credited_units, job.overpaid_units, job.is_unbacked),
        *(
            job.attempt,
            job.attempts,
            job.failures_in_row,
            job.lease_until is not None,
            job.completed == 1,
        ),
    )


def _cursor(t: Tables) -> tuple[Any, ...]:
    row = t.cursor
    assert row is not None
    return (
        *(row.block.number, row.block.hash, row.epoch, row.start, row.checked, row.finalized),
        row.conflict,
    )
