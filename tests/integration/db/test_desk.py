"""The operator's desk on a real PostgreSQL: each decision once, guarded, with its note."""

import asyncio
from decimal import Decimal

import pytest

from db.audit import Note
from db.desk import DeskBusy, HostRefuses
from db.payments import PaymentStore
from db.pool import Database
from oncepaid.domain.desk import Allowed, Already, Obstacle, Refused
from oncepaid.domain.jobs import JobId
from oncepaid.domain.money import Units
from oncepaid.domain.payments import PaymentId
from tests.integration.db.desk_support import (
    NOTE,
    PRICE,
    WHY,
    assign,
    decide,
    desk,
    notes,
    obstacle,
    orphan,
)
from tests.integration.db.support import (
    CHAIN,
    MINUTE,
    START,
    add_job,
    execute,
    header,
    job_row,
    match,
    observed,
    row,
    standing,
)


async def test_an_assigned_payment_pays_its_job(database: Database) -> None:
    """Nothing but the operator's word says so: late, to another address, without a memo."""
    job = await add_job(
        database, pay_to="0x" + "77" * 20, expires_at=START - 100 * MINUTE, unique_amount_units=5
    )
    (payment,) = await match(database, observed(PRICE))
    assert await standing(database, [payment]) == [("unmatched", "no_memo")]
    assert await assign(database, payment, job.id) == Allowed()
    assert await standing(database, [payment]) == [("seen", None)]
    assert isinstance(await assign(database, payment, job.id), Already)
    await decide(database)
    assert await standing(database, [payment]) == [("matched", None)]
    assert isinstance(await assign(database, payment, job.id), Already)
    await PaymentStore(database, CHAIN).credit([payment])
    assert (await job_row(database, job.id))["status"] == "paid"
    assert isinstance(await assign(database, payment, job.id), Already)
    (note,) = await notes(database)
    assert note == {
        "action": "payment.assign",
        "payment_id": payment,
        "chain_id": CHAIN,
        "tx_hash": (await row(database, "SELECT tx_hash FROM payments"))["tx_hash"],
        "was": "unmatched",
        "reason": "no_memo",
        "job_id": job.id,
        "job_uuid": str((await job_row(database, job.id))["job_uuid"]),
        "why": WHY,
    }


async def test_the_last_word_is_what_counts(database: Database) -> None:
    """And only that one is kept, however often an operator changes his mind."""
    wrong, right = await add_job(database, "3"), await add_job(database)
    (payment,) = await match(database, observed(PRICE, b"\x07" * 16))
    await execute(database, "UPDATE jobs SET price_usdc = 1 WHERE id = $1", wrong.id)
    for job in (wrong, right):
        assert await assign(database, payment, job.id) == Allowed()
        await execute(database, "UPDATE payments SET status = 'unmatched', reason = 'no_memo'")
    found = await row(database, "SELECT evidence FROM payments")
    sources = [(piece["source"], piece.get("memo")) for piece in found["evidence"]]
    assert sources == [("calldata", ("07" * 16)), ("operator", right.memo.hex())]


async def test_two_jobs_for_one_payment(database: Database) -> None:
    first, second = await add_job(database), await add_job(database)
    (payment,) = await match(database, observed(PRICE))
    assert await assign(database, payment, first.id) == Allowed()
    assert obstacle(await assign(database, payment, second.id)) is Obstacle.UNDECIDED
    await decide(database)
    assert obstacle(await assign(database, payment, second.id)) is Obstacle.PAYS_A_JOB
    assert len(await notes(database)) == 1


async def test_too_little_and_a_lower_price(database: Database) -> None:
    """What waits on the job counts too, and the payment itself only once."""
    job = await add_job(database)
    part, rest = await match(database, observed(700_000, job.memo), observed(200_000))
    assert await standing(database, [part]) == [("unmatched", "underpaid")]
    assert obstacle(await assign(database, rest, job.id)) is Obstacle.SHORT
    assert obstacle(await assign(database, part, job.id)) is Obstacle.SHORT
    assert await notes(database) == []
    accepted = await assign(database, rest, job.id, accept_short=True)
    assert accepted == Allowed(lower_price_to=Units(900_000))
    await decide(database)
    assert await standing(database, [part, rest]) == [("matched", None)] * 2
    await PaymentStore(database, CHAIN).credit([part, rest])
    paid = await job_row(database, job.id)
    assert (paid["status"], paid["price_usdc"]) == ("paid", Decimal("0.9"))
    (note,) = await notes(database)
    assert (note["price_units_before"], note["price_units"]) == (PRICE, 900_000)


async def test_a_column_that_cannot_hold_the_lower_price(own_database: Database) -> None:
    await execute(own_database, "DROP VIEW IF EXISTS job_payment_terms")
    await execute(own_database, "ALTER TABLE jobs ALTER COLUMN price_usdc TYPE numeric(20, 2)")
    job = await add_job(own_database)
    (payment,) = await match(own_database, observed(995_001))
    with pytest.raises(HostRefuses, match="too few"):
        await assign(own_database, payment, job.id, accept_short=True)
    assert await standing(own_database, [payment]) == [("unmatched", "underpaid")]
    assert await notes(own_database) == []
    assert (await job_row(own_database, job.id))["price_usdc"] == 1


async def test_a_host_that_lets_nobody_lower_a_price(own_database: Database) -> None:
    job = await add_job(own_database)
    await execute(own_database, "ALTER TABLE jobs ADD CHECK (price_usdc >= 1)")
    (payment,) = await match(own_database, observed(PRICE - 1))
    with pytest.raises(HostRefuses, match="the host's own rules"):
        await assign(own_database, payment, job.id, accept_short=True)
    assert await standing(own_database, [payment]) == [("unmatched", "underpaid")]
    assert await notes(own_database) == []


@pytest.mark.parametrize("locked", ["jobs", "payments"])
async def test_a_lock_of_somebody_else(
    database: Database, locked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.desk.LOCK_TIMEOUT_S", 0.05)
    job = await add_job(database)
    (payment,) = await match(database, observed(PRICE))
    async with database.transaction() as host:
        await host.execute(f"SELECT FROM {locked} FOR UPDATE")
        with pytest.raises(DeskBusy, match="nothing was changed"):
            await assign(database, payment, job.id)
    assert await standing(database, [payment]) == [("unmatched", "no_memo")]
    assert await assign(database, payment, job.id) == Allowed()


async def test_two_operators_at_once(database: Database) -> None:
    """One of them is the first; the other is told so."""
    jobs = [await add_job(database) for _ in range(2)]
    (payment,) = await match(database, observed(PRICE))
    done = await asyncio.gather(*(assign(database, payment, job.id) for job in jobs))
    assert sorted(type(ruling).__name__ for ruling in done) == ["Allowed", "Refused"]
    assert len(await notes(database)) == 1


async def test_what_a_job_must_be(database: Database) -> None:
    paid, closed = await add_job(database), await add_job(database, status="completed")
    free = await add_job(database)
    await execute(database, "UPDATE jobs SET price_usdc = NULL WHERE id = $1", free.id)
    first, payment = await match(database, observed(PRICE, paid.memo), observed(PRICE))
    taken = await assign(database, payment, paid.id)
    assert isinstance(taken, Refused)
    assert taken.sentence.endswith(f"already paid by payment {first}")
    assert obstacle(await assign(database, payment, closed.id)) is Obstacle.JOB_TAKES_NOTHING
    assert obstacle(await assign(database, payment, free.id)) is Obstacle.JOB_NOT_PAYABLE
    assert obstacle(await assign(database, payment, JobId(99))) is Obstacle.UNKNOWN
    assert obstacle(await assign(database, PaymentId(99), paid.id)) is Obstacle.UNKNOWN
    assert await notes(database) == []


async def test_another_chain(database: Database) -> None:
    """Neither a payment of another chain, nor a job that has money on one."""
    job = await add_job(database)
    elsewhere, here = await match(database, observed(500_000, job.memo), observed(PRICE))
    other = await desk(database, 10).assign(here, job.id, accept_short=True, why=WHY, note=NOTE)
    assert obstacle(other) is Obstacle.OTHER_CHAIN
    await execute(database, "UPDATE payments SET chain_id = 10 WHERE id = $1", elsewhere)
    assert obstacle(await assign(database, here, job.id)) is Obstacle.OTHER_CHAIN
    assert await desk(database).log_of(elsewhere) is None


async def test_a_payment_whose_block_left_the_chain(database: Database) -> None:
    """Its transaction, mined again, is another payment: that is named, and can be assigned."""
    job = await add_job(database)
    seen = observed(PRICE, tx="t", block=header(1))
    (gone,) = await match(database, seen)
    await orphan(database, gone)
    refused = await assign(database, gone, job.id)
    assert obstacle(refused) is Obstacle.ORPHANED
    (again,) = await match(database, observed(PRICE, tx="t", block=header(2)))
    refused = await assign(database, gone, job.id)
    assert isinstance(refused, Refused)
    assert refused.sentence.endswith(f"its transfer is payment {again} now")
    assert await desk(database).find_payments(seen.log.tx_hash) == [again]
    assert await assign(database, again, job.id) == Allowed()


async def test_a_payment_is_ignored_once(database: Database) -> None:
    job = await add_job(database)
    (payment,) = await match(database, observed(1))
    note = Note(who="alice", action="payment.ignore")
    store = desk(database)
    assert await store.ignore(payment, why=WHY, note=note) == Allowed()
    assert isinstance(await store.ignore(payment, why=WHY, note=note), Already)
    assert await standing(database, [payment]) == [("ignored", "no_memo")]
    (told,) = await notes(database)
    assert (told["action"], told["was"], told["why"]) == ("payment.ignore", "unmatched", WHY)
    accepted = await assign(database, payment, job.id, accept_short=True)
    assert accepted == Allowed(lower_price_to=Units(1))
    assert (await notes(database))[1]["was"] == "ignored"


async def test_payments_and_jobs_by_their_names(database: Database) -> None:
    job = await add_job(database)
    uuid = str((await job_row(database, job.id))["job_uuid"])
    pair = (observed(1, tx="pair"), observed(2, tx="pair"))
    first, second = await match(database, *pair)
    store = desk(database)
    assert await store.find_payments(str(first)) == [first]
    assert await store.find_payments(pair[0].log.tx_hash.upper().replace("X", "x")) == [
        *(first, second)
    ]
    for name in ("", "0x12", "999", "9" * 40, "١", "-1"):
        assert await store.find_payments(name) == []
        assert await store.find_job(name) is None
    assert await store.find_job(str(job.id)) == job.id
    assert await store.find_job(uuid.upper()) == job.id
