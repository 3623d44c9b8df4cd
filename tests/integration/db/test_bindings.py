"""A reference that was bound names its job, whenever it was bound, and for its own payer only."""

import asyncio
from dataclasses import replace
from typing import Final

import asyncpg
import pytest

from db.audit import Note
from db.bindings import (
    AlreadyBound,
    Binding,
    BindingStore,
    Bound,
    BoundToAnother,
    NoSuchJob,
)
from db.payments import PaymentStore
from db.pool import Database
from db.ranges import RangeStore
from oncepaid.domain.chain import Address
from oncepaid.domain.jobs import JobId
from oncepaid.domain.memo import Memo, Reference
from oncepaid.domain.payments import Evidence, MemoSource, ObservedPayment, Signer
from tests.integration.db.support import (
    CHAIN,
    DECIDE,
    EPOCH,
    PAYER,
    Job,
    add_job,
    execute,
    first_cursor,
    header,
    match,
    observed,
    row,
    rows,
    see,
    standing,
)

PRICE: Final = 1_000_000
STRANGER: Final = Address("0x" + "7e" * 20)
NONCE: Final = bytes(range(32))
NOTE: Final = Note(who="ann", action="job.bind")
WHY: Final = "the shop forgot"
MATCHED: Final = ("matched", None)
NO_MEMO: Final = ("unmatched", "no_memo")


@pytest.fixture
def bindings(database: Database) -> BindingStore:
    return BindingStore(database)


def authorized(
    units: int = PRICE, *, payer: Address = PAYER, relayed: Memo | None = None
) -> ObservedPayment:
    """A payment by an authorization with `NONCE`; its relayer may have attached a memo."""
    nonce = Reference(issuer=payer, value=NONCE)
    pieces = [
        Evidence(
            memo=None,
            source=MemoSource.AUTHORIZATION,
            signer=Signer.PAYER,
            by=payer,
            reference=nonce,
        )
    ]
    if relayed is not None:
        pieces.append(Evidence(memo=relayed, source=MemoSource.CALLDATA, signer=Signer.THIRD_PARTY))
    return replace(observed(units, sender=payer), evidence=tuple(pieces))


async def bind(bindings: BindingStore, job: Job, issuer: Address = PAYER) -> Binding:
    return await bindings.bind(job.id, Reference(issuer=issuer, value=NONCE), why=WHY, note=NOTE)


async def jobs_of(database: Database) -> list[int | None]:
    return [
        each["job_id"] for each in await rows(database, "SELECT job_id FROM payments ORDER BY id")
    ]


async def test_results_have_names(database: Database, bindings: BindingStore) -> None:
    first, second = await add_job(database), await add_job(database)
    assert await bind(bindings, first) == Bound(waiting=())
    assert await bind(bindings, first) == AlreadyBound()
    assert await bind(bindings, second) == BoundToAnother(job=first.id)
    unknown = Reference(issuer=STRANGER, value=NONCE)
    assert await bindings.bind(JobId(77), unknown, why=WHY, note=NOTE) == NoSuchJob()
    log = await row(database, "SELECT who, action, details FROM audit_log")
    assert log == {
        "who": "ann",
        "action": "job.bind",
        "details": {
            "job_id": first.id,
            "issuer": PAYER,
            "reference": "0x" + NONCE.hex(),
            "why": WHY,
        },
    }


@pytest.mark.parametrize(
    ("issuer", "reference", "is_allowed"),
    [
        (PAYER, NONCE, True),
        (PAYER.upper().replace("X", "x"), NONCE, True),
        (PAYER, b"1", True),
        (PAYER, bytes(64), True),
        (PAYER, b"", False),
        (PAYER, bytes(65), False),
        (PAYER[:-1], NONCE, False),
        (PAYER[2:], NONCE, False),
    ],
)
async def test_what_a_host_may_insert(
    database: Database, issuer: str, reference: bytes, is_allowed: bool
) -> None:
    job = await add_job(database)
    insert = "INSERT INTO job_bindings (issuer, reference, job_id) VALUES ($1, $2, $3)"
    if not is_allowed:
        with pytest.raises(asyncpg.CheckViolationError):
            await execute(database, insert, issuer, reference, job.id)
        return
    await execute(database, insert, issuer, reference, job.id)
    assert (await row(database, "SELECT issuer FROM job_bindings"))["issuer"] == PAYER


async def test_bound_before_it_is_paid(database: Database, bindings: BindingStore) -> None:
    job = await add_job(database)
    await bind(bindings, job)
    ids = await match(database, authorized())
    assert await standing(database, ids) == [MATCHED]
    assert await jobs_of(database) == [job.id]


async def test_bound_after_it_was_paid(
    database: Database, bindings: BindingStore, ledger: PaymentStore
) -> None:
    job = await add_job(database)
    ids = await match(database, authorized())
    assert await standing(database, ids) == [NO_MEMO]
    assert await bind(bindings, job) == Bound(waiting=tuple(ids))
    await ledger.decide_seen(DECIDE, 10)
    assert await standing(database, ids) == [MATCHED]


async def test_bound_by_a_transaction_that_ends_after_the_decision(
    database: Database, ledger: PaymentStore
) -> None:
    """A host that binds, lets the facilitator settle, and commits then."""
    job = await add_job(database)
    async with database.transaction() as host:
        await host.execute(
            "INSERT INTO job_bindings (issuer, reference, job_id) VALUES ($1, $2, $3)",
            *(PAYER, NONCE, job.id),
        )
        ids = await match(database, authorized())
        assert await standing(database, ids) == [NO_MEMO]
        assert await ledger.reconsider() == 0
    assert await ledger.reconsider() == 1
    await ledger.decide_seen(DECIDE, 10)
    assert await standing(database, ids) == [MATCHED]
    assert await ledger.reconsider() == 0


async def test_the_same_nonce_from_another_payer(
    database: Database, bindings: BindingStore, ledger: PaymentStore
) -> None:
    """A nonce is its payer's only: a stranger's money with the same value pays no bound job."""
    job = await add_job(database)
    await bind(bindings, job)
    strangers = await match(database, authorized(payer=STRANGER))
    assert await standing(database, strangers) == [NO_MEMO]
    assert await ledger.reconsider() == 0
    own = await match(database, authorized())
    assert await standing(database, own) == [MATCHED]
    assert await jobs_of(database) == [None, job.id]
    other = await add_job(database)
    assert await bind(bindings, other, STRANGER) == Bound(waiting=tuple(strangers))
    await ledger.decide_seen(DECIDE, 10)
    assert await jobs_of(database) == [other.id, job.id]


async def test_a_relayers_memo_of_another_job(
    database: Database, bindings: BindingStore, ledger: PaymentStore
) -> None:
    """The relayer swaps the tail; the payer's nonce, bound at last, is what counts."""
    job, another = await add_job(database), await add_job(database)
    ids = await match(database, authorized(PRICE + 7, relayed=Memo(another.memo)))
    assert await standing(database, ids) == [("unmatched", "third_party_memo")]
    await bind(bindings, job)
    await ledger.decide_seen(DECIDE, 10)
    assert await standing(database, ids) == [MATCHED]
    assert await jobs_of(database) == [job.id]


async def test_a_binding_takes_nothing_from_a_job(
    database: Database, bindings: BindingStore
) -> None:
    """What is matched, or waits as a part, stays where it is."""
    job, other = await add_job(database), await add_job(database)
    assert job.unique_amount is not None
    ids = await match(database, authorized(job.unique_amount))
    assert await standing(database, ids) == [MATCHED]
    assert await bind(bindings, other) == Bound(waiting=())
    assert await standing(database, ids) == [MATCHED]


async def test_a_bound_job_that_somebody_else_holds_locked_is_passed_over(
    database: Database, bindings: BindingStore, ledger: PaymentStore
) -> None:
    job = await add_job(database)
    await bind(bindings, job)
    ids = await see(database, authorized())
    async with database.transaction() as host:
        await host.execute("SELECT FROM jobs FOR UPDATE")
        (undecided,) = await ledger.decide_seen(DECIDE, 10)
        assert undecided.decision is None
    assert await standing(database, ids) == [("seen", None)]
    await ledger.decide_seen(DECIDE, 10)
    assert await standing(database, ids) == [MATCHED]


async def test_a_job_that_is_deleted_takes_its_bindings_along(
    database: Database, bindings: BindingStore
) -> None:
    job, next_one = await add_job(database), await add_job(database)
    await bind(bindings, job)
    await execute(database, "DELETE FROM jobs WHERE id = $1", job.id)
    assert await bind(bindings, next_one) == Bound(waiting=())


async def test_a_reference_in_the_table_reads_back(database: Database) -> None:
    """And a row of before, which has no more than memos, too."""
    job = await add_job(database)
    paid = authorized(relayed=Memo(job.memo))
    shared = Evidence(
        memo=Memo(job.memo), source=MemoSource.WRAPPER, signer=Signer.PAYER, company=3
    )
    await see(database, replace(paid, evidence=(*paid.evidence, shared)))
    stored = await row(database, "SELECT memo, memo_source, evidence FROM payments")
    assert (stored["memo"], stored["memo_source"]) == (job.memo, "calldata")
    assert [set(piece) for piece in stored["evidence"]] == [
        {"source", "signer", "by", "reference"},
        {"source", "signer", "memo"},
        {"source", "signer", "memo", "company"},
    ]
    (decided,) = await PaymentStore(database, CHAIN).decide_seen(DECIDE, 10)
    assert decided.payment.evidence == (*paid.evidence, shared)


async def test_a_hosts_binding_holds_no_payment_locked(
    database: Database, ledger: PaymentStore
) -> None:
    """Whatever the host's transaction waits for: the listener does not wait for it."""
    job = await add_job(database)
    ids = await match(database, authorized())
    cursor = await first_cursor(database)
    async with database.transaction() as host, asyncio.timeout(5):
        await host.execute("INSERT INTO job_bindings VALUES ($1, $2, $3)", PAYER, NONCE, job.id)
        await RangeStore(database, CHAIN).rewind(cursor, header(0), ids, epoch=EPOCH)
    assert await standing(database, ids) == [("orphaned", "no_memo")]


async def test_a_binding_that_a_host_gives_to_another_job_is_new_again(
    database: Database, ledger: PaymentStore
) -> None:
    first, second = await add_job(database), await add_job(database)
    await execute(database, "INSERT INTO job_bindings VALUES ($1, $2, $3)", PAYER, NONCE, first.id)
    assert await ledger.reconsider() == 0
    assert (await row(database, "SELECT is_new FROM job_bindings"))["is_new"] is False
    await execute(database, "UPDATE job_bindings SET job_id = $1", second.id)
    assert (await row(database, "SELECT is_new FROM job_bindings"))["is_new"] is True


async def test_a_new_binding_finds_old_payments_once(
    database: Database, ledger: PaymentStore
) -> None:
    """However long the daemon was away."""
    job = await add_job(database)
    ids = await match(database, *(authorized() for _ in range(2)))
    insert = "INSERT INTO job_bindings VALUES ($1, $2, $3, now() - interval '9 days')"
    await execute(database, insert, PAYER, NONCE, job.id)
    await execute(database, "UPDATE payments SET seen_at = seen_at - interval '9 days'")
    assert await ledger.reconsider() == 2
    assert await standing(database, ids) == [("seen", None)] * 2
    assert await ledger.reconsider() == 0


async def test_binding_once_more_finds_what_was_missed(
    database: Database, bindings: BindingStore, ledger: PaymentStore
) -> None:
    """A binding that was open for longer than the sweep looks."""
    job = await add_job(database)
    await bind(bindings, job)
    await ledger.reconsider()
    (paid,) = await match(database, authorized(PRICE + 1))
    await execute(
        database,
        "UPDATE payments SET status = 'unmatched', reason = 'no_memo', job_id = NULL,"
        " matched_at = NULL, seen_at = seen_at - interval '61 minutes'",
    )
    assert await ledger.reconsider() == 0
    assert await bind(bindings, job) == AlreadyBound()
    assert await standing(database, [paid]) == [("seen", None)]


async def test_the_sweep_reads_no_more_than_the_last_hour(database: Database) -> None:
    """By an index that holds nothing but what might be bound."""
    await match(database, *(authorized() for _ in range(3)), *(observed(5) for _ in range(500)))
    async with database.connection() as connection:
        await connection.execute("ANALYZE payments")
        plan = await connection.fetch(
            """
            EXPLAIN SELECT id FROM payments p
             WHERE id IN (SELECT payment_id FROM oncepaid_bound_late
                           WHERE seen_at > now() - interval '1 hour')
            """
        )
    assert "payments_unbound_idx" in "\n".join(line[0] for line in plan)
