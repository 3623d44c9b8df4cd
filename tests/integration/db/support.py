"""Facts and rows that the tests of `db` start from."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from hashlib import sha256
from itertools import count
from typing import Any, Final

from db.cursor import CursorStore
from db.jobs import JobStore
from db.payments import DecideAll, PaymentStore
from db.pool import Connection, Database
from db.ranges import RangeStore
from oncepaid.domain.chain import Address, BlockHash, BlockRef, Header, TransferLog, TxHash
from oncepaid.domain.generation import AttemptResult, Outcome
from oncepaid.domain.jobs import ClaimedJob, JobId
from oncepaid.domain.matching import MatchingRules, decide_all
from oncepaid.domain.memo import Memo
from oncepaid.domain.money import Units
from oncepaid.domain.payments import (
    Evidence,
    MemoSource,
    ObservedPayment,
    PaymentId,
    Signer,
)

CHAIN: Final = 8453
EPOCH: Final = 1
SHOP: Final = Address("0x" + "5a" * 20)
PAYER: Final = Address("0x" + "be" * 20)
START: Final = datetime.now(UTC).replace(microsecond=0)
MINUTE: Final = timedelta(minutes=1)
RULES: Final = MatchingRules(
    recipients=frozenset({SHOP}), late_grace=timedelta(hours=1), amount_fallback=True
)
DECIDE: Final[DecideAll] = partial(decide_all, rules=RULES)
_logs = count(1)


def hash_of(name: object) -> str:
    return "0x" + sha256(str(name).encode()).hexdigest()


def header(number: int, fork: str = "") -> Header:
    """A block of a chain with one block every 2 s from `START` on; a `fork` has other hashes."""
    return Header(
        number=number,
        hash=BlockHash(hash_of(f"block {number}{fork}")),
        parent_hash=BlockHash(hash_of(f"block {number - 1}{fork}")),
        timestamp_ms=int(START.timestamp() + 2 * number) * 1000,
    )


def observed(
    units: int,
    memo: bytes | None = None,
    *,
    block: Header | None = None,
    tx: str | None = None,
    log_index: int | None = None,
    sender: Address = PAYER,
    recipient: Address = SHOP,
) -> ObservedPayment:
    """A payment in block 1, a log and transaction of its own, signed by its payer."""
    block = block or header(1)
    unique = next(_logs)
    evidence = Evidence(memo=Memo(memo or b""), source=MemoSource.CALLDATA, signer=Signer.PAYER)
    return ObservedPayment(
        log=TransferLog(
            block=block.ref,
            timestamp_ms=block.timestamp_ms,
            tx_hash=TxHash(hash_of(tx or f"transaction {unique}")),
            log_index=unique if log_index is None else log_index,
            sender=sender,
            recipient=recipient,
            units=Units(units),
        ),
        block_time=block.time,
        evidence=(evidence,) if memo else (),
        transfers_in_tx=1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    id: JobId
    memo: bytes
    unique_amount: int | None


async def add_skill(database: Database, price: Decimal | None = Decimal(1)) -> int:
    async with database.connection() as connection:
        found: int = await connection.fetchval(
            "INSERT INTO skills (name, price_usdc) VALUES ('Creative Concept', $1) RETURNING id",
            price,
        )
    return found


async def add_job(database: Database, price: str = "1", **columns: Any) -> Job:
    """Insert a pending job as a host application does. `columns` are set on top."""
    columns = {"price_usdc": Decimal(price), "input_data": {"prompt": "a bakery"}, **columns}
    if "skill_id" not in columns:
        columns["skill_id"] = await add_skill(database)
    places = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
    async with database.connection() as connection:
        row = await connection.fetchrow(
            f"INSERT INTO jobs ({', '.join(columns)}) VALUES ({places})"
            " RETURNING id, memo, unique_amount_units",
            *columns.values(),
        )
    assert row is not None
    return Job(id=row["id"], memo=row["memo"], unique_amount=row["unique_amount_units"])


async def add_paid_job(database: Database, **columns: Any) -> Job:
    """Insert a job that is credited in full, as the settler leaves it."""
    job = await add_job(database, **columns)
    await execute(
        database,
        "UPDATE jobs SET status = 'paid', paid_at = now(), credited_units = 1000000 WHERE id = $1",
        job.id,
    )
    return job


async def execute(database: Database, sql: str, *arguments: object) -> None:
    async with database.connection() as connection:
        await connection.execute(sql, *arguments)


async def rows(database: Database, sql: str, *arguments: object) -> list[dict[str, Any]]:
    async with database.connection() as connection:
        return [dict(row) for row in await connection.fetch(sql, *arguments)]


async def row(database: Database, sql: str, *arguments: object) -> dict[str, Any]:
    (found,) = await rows(database, sql, *arguments)
    return found


async def job_row(database: Database, job: JobId) -> dict[str, Any]:
    return await row(database, "SELECT * FROM jobs WHERE id = $1", job)


async def first_cursor(database: Database, chain: int = CHAIN) -> BlockRef:
    """Lead with `EPOCH` and set the cursor on block 0; where it is set, return where it stands."""
    await execute(
        database,
        "INSERT INTO chain_leader (chain_id, epoch) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        *(chain, EPOCH),
    )
    return await CursorStore(database, chain).start_at(header(0), epoch=EPOCH)


async def see(database: Database, *payments: ObservedPayment) -> list[PaymentId]:
    """Store payments with the next block, as the listener does, and return their ids."""
    cursor = await first_cursor(database)
    moved = await RangeStore(database, CHAIN).store_range(
        cursor, header(cursor.number + 1), payments, epoch=EPOCH
    )
    assert moved.moved
    assert moved.stored == len(payments)
    found = await rows(database, "SELECT id FROM payments ORDER BY id DESC LIMIT $1", len(payments))
    return [PaymentId(row["id"]) for row in reversed(found)]


async def match(database: Database, *payments: ObservedPayment) -> list[PaymentId]:
    """Store payments and decide all that is seen."""
    ids = await see(database, *payments)
    await PaymentStore(database, CHAIN).decide_seen(DECIDE, 1000)
    return ids


async def standing(database: Database, ids: Sequence[PaymentId]) -> list[tuple[str, str | None]]:
    """Return `(status, reason)` of payments, in the order asked for."""
    found = await rows(
        database, "SELECT id, status, reason FROM payments WHERE id = ANY($1::bigint[])", ids
    )
    by_id = {row["id"]: (row["status"], row["reason"]) for row in found}
    return [by_id[payment] for payment in ids]


async def claim_one(database: Database, lease: timedelta = MINUTE) -> ClaimedJob:
    (job,) = await JobStore(database).claim(1, lease)
    return job


def answered(outcome: Outcome = Outcome.SUCCEEDED, **fields: Any) -> AttemptResult:
    if outcome is Outcome.SUCCEEDED:
        fields.setdefault("output", {"title": "Crumbs"})
    return AttemptResult(outcome=outcome, message=outcome.value, **fields)


@asynccontextmanager
async def lock_waits(database: Database, holder: Connection) -> AsyncIterator[None]:
    """On leaving, returns only once somebody waits for a lock that `holder` has."""
    pid = holder.get_server_pid()
    yield
    async with database.connection() as connection:
        waiting = False
        while not waiting:
            waiting = await connection.fetchval(
                "SELECT EXISTS (SELECT FROM pg_stat_activity"
                " WHERE $1 = ANY(pg_blocking_pids(pid)))",
                pid,
            )


def cursor_at(number: int) -> BlockRef:
    return header(number).ref
