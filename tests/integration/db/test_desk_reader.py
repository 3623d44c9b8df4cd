"""What the operator's desk shows of payments, and which jobs it finds beside them."""

from db.audit import Note
from db.desk_reader import DeskReader, Shown
from db.payments import PaymentStore
from db.pool import Database
from db.reports import Reports
from oncepaid.domain.desk import Allowed
from oncepaid.domain.nearest import Nearness
from oncepaid.domain.payments import MemoSource, PaymentId, PaymentStatus, Signer
from tests.integration.db.desk_support import (
    PRICE,
    WHY,
    assign,
    desk,
    orphan,
    recorded,
    send_back,
    sent,
)
from tests.integration.db.support import (
    CHAIN,
    PAYER,
    SHOP,
    add_job,
    execute,
    header,
    match,
    observed,
    see,
)

# Blocks begin at `START`, which may lie minutes back when the test runs.
LONG_AGO = "UPDATE jobs SET created_at = now() - interval '1 day'"


async def shown(database: Database, payment: PaymentId) -> Shown:
    found = await DeskReader(database, CHAIN).payment(payment)
    assert found is not None
    return found


def by_id(found: Shown) -> dict[Nearness, set[int]]:
    return {by: {job.terms.id for job in jobs} for by, jobs in found.candidates.items()}


async def test_what_is_shown_of_an_underpaid_payment(database: Database) -> None:
    """The sums of its job leave it out."""
    job = await add_job(database)
    part, payment = await match(database, observed(200_000, job.memo), observed(300_000, job.memo))
    found = await shown(database, payment)
    facts = found.facts
    assert (facts.status, facts.reason) == (PaymentStatus.UNMATCHED, "underpaid")
    assert facts.job is not None
    assert (facts.job.terms.id, facts.job.terms.partial) == (job.id, 200_000)
    (clue,) = facts.clues
    assert (clue.piece.source, clue.piece.signer) == (MemoSource.CALLDATA, Signer.PAYER)
    assert clue.job == facts.job
    assert by_id(found)[Nearness.NAMED] == {job.id}
    assert [one.facts.log.id for one in await transaction(database, part)] == [part]


async def transaction(database: Database, payment: PaymentId) -> list[Shown]:
    tx_hash = (await shown(database, payment)).facts.log.tx_hash
    return await DeskReader(database, CHAIN).transaction(tx_hash)


async def test_jobs_near_by_amount_and_by_price(database: Database) -> None:
    near = [await add_job(database, unique_amount_units=PRICE + n) for n in (1, 5, 9)]
    far = await add_job(database, "50")
    elsewhere = await add_job(database, unique_amount_units=PRICE + 6, pay_to="0x" + "77" * 20)
    done = await add_job(database, status="completed", unique_amount_units=PRICE + 6)
    later = await add_job(database, "1", unique_amount_units=PRICE + 7_777)
    await execute(database, LONG_AGO)
    await execute(
        database, "UPDATE jobs SET created_at = now() + interval '1 day' WHERE id = $1", later.id
    )
    (payment,) = await match(database, observed(PRICE + 6))
    found = by_id(await shown(database, payment))
    by_amount, by_price = found[Nearness.AMOUNT], found[Nearness.PRICE]
    assert {*(job.id for job in near), done.id, later.id} <= by_amount
    assert elsewhere.id not in by_amount | by_price
    assert by_price == {*(job.id for job in near), far.id}


async def test_an_amount_that_no_job_can_have(database: Database) -> None:
    job = await add_job(database)
    (payment,) = await match(database, observed(2**255))
    found = await shown(database, payment)
    assert found.facts.log.units == 2**255
    assert by_id(found)[Nearness.AMOUNT] == {job.id}


async def test_a_host_with_its_own_types(own_database: Database) -> None:
    await execute(own_database, "DROP VIEW IF EXISTS job_payment_terms")
    await execute(
        own_database,
        """
        ALTER TABLE jobs ALTER COLUMN created_at TYPE timestamp,
              ALTER COLUMN price_usdc TYPE double precision,
              ALTER COLUMN pay_to TYPE varchar(42);
        """,
    )
    job = await add_job(own_database, price="1", pay_to=SHOP.upper().replace("X", "x"))
    await execute(own_database, LONG_AGO)
    (payment,) = await match(own_database, observed(PRICE + 1))
    found = await shown(own_database, payment)
    assert by_id(found)[Nearness.PRICE] == {job.id}
    assert await assign(own_database, payment, job.id) == Allowed()


async def test_everything_of_a_transaction(database: Database) -> None:
    """With the rows that a reorganisation left behind, what was lost, and what people did."""
    job = await add_job(database)
    pair = [observed(PRICE, job.memo, tx="t"), observed(7, tx="t")]
    paid, stray = await match(database, *pair)
    await PaymentStore(database, CHAIN).credit([paid])
    note = Note(who="bob", action="payment.ignore")
    await desk(database).ignore(stray, why="dust", note=note)
    found = await transaction(database, paid)
    assert [one.facts.log.id for one in found] == [paid, stray]
    assert [one.facts.transfers_in_tx for one in found] == [1, 1]
    assert found[0].facts.job is not None
    assert found[0].facts.job.paid_by == ()
    (handled,) = found[1].facts.handled
    assert (handled.who, handled.action, handled.why) == ("bob", "payment.ignore", "dust")
    await orphan(database, paid, stray)
    (again,) = await match(database, observed(PRICE, job.memo, tx="t", block=header(2)))
    facts = {one.facts.log.id: one.facts for one in await transaction(database, paid)}
    assert (facts[paid].was, facts[paid].is_reversed) == (PaymentStatus.CREDITED, False)
    assert facts[paid].came_again == again
    assert facts[again].came_again is None
    assert await DeskReader(database, 10).transaction(pair[0].log.tx_hash) == []


async def test_a_payment_that_was_sent_back_under_an_older_row(database: Database) -> None:
    """The watch found its refund while it was orphaned; nobody may send it back again."""
    (gone,) = await match(database, observed(PRICE, tx="t", block=header(1)))
    await orphan(database, gone)
    recorded(await send_back(database, gone, sent(), is_watched=True))
    pair = [observed(PRICE, tx="t", block=header(2)), observed(7, tx="t", block=header(2))]
    again, other = await match(database, *pair)
    assert (await shown(database, again)).facts.status is PaymentStatus.REFUNDED
    await execute(
        database,
        "UPDATE payments SET status = 'unmatched', reason = 'no_memo' WHERE id = $1",
        again,
    )
    facts = (await shown(database, again)).facts
    assert (facts.status, facts.is_open) == (PaymentStatus.UNMATCHED, False)
    found = await DeskReader(database, CHAIN).sent_back(pair[0].log.tx_hash)
    assert found == {gone: facts.sent_back, again: facts.sent_back}
    assert (await shown(database, other)).facts.is_open


async def test_a_bound_reference_leads_to_its_job(database: Database) -> None:
    job = await add_job(database)
    (payment,) = await see(database, observed(PRICE))
    await execute(
        database,
        "UPDATE payments SET evidence = $1",
        [
            {
                "source": "authorization",
                "signer": "payer",
                "by": PAYER,
                "reference": {"issuer": PAYER, "value": "ab" * 32},
            }
        ],
    )
    (unbound,) = (await shown(database, payment)).facts.clues
    assert (unbound.job, unbound.bound_at) == (None, None)
    await execute(
        database,
        "INSERT INTO job_bindings (issuer, reference, job_id) VALUES ($1, $2, $3)",
        *(PAYER, b"\xab" * 32, job.id),
    )
    (clue,) = (await shown(database, payment)).facts.clues
    assert clue.job is not None
    assert clue.job.terms.id == job.id
    assert clue.bound_at is not None
    shown_job = await Reports(database).job(str(job.id))
    assert shown_job is not None
    assert [bound["issuer"] for bound in shown_job["bindings"]] == [PAYER]


async def test_totals_and_filters(database: Database) -> None:
    job = await add_job(database)
    await match(database, observed(5), observed(7), observed(PRICE, job.memo))
    await match(database, observed(PRICE, job.memo))
    reports = Reports(database)
    totals = await reports.payment_totals("unmatched", None)
    assert [(one["reason"], one["payments"], int(one["amount_units"])) for one in totals] == [
        ("duplicate", 1, PRICE),
        ("no_memo", 2, 12),
    ]
    assert len(await reports.payment_totals(None, None)) == 3
    assert [one["reason"] for one in await reports.payment_totals(None, "no_memo")] == ["no_memo"]
    assert len(await reports.payments("unmatched", 10, "no_memo")) == 2
    assert len(await reports.payments("unmatched", 1, None)) == 1


async def test_what_reports_tell_of_a_handled_payment(database: Database) -> None:
    job = await add_job(database)
    first, second = await match(database, observed(PRICE), observed(PRICE))
    await assign(database, first, job.id)
    await send_back(database, second, sent())
    reports = Reports(database)
    (shown_first,) = await reports.payment(str(first))
    assert [note["action"] for note in shown_first["audit"]] == ["payment.assign"]
    shown_job = await reports.job(str(job.id))
    assert shown_job is not None
    assert [note["details"]["why"] for note in shown_job["audit"]] == [WHY]
    assert shown_job["overpaid_amount_units"] == 0
