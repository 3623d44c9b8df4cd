"""Money that went back: one transfer for one payment, whatever became of that meanwhile."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from db.desk import DeskBusy
from db.payments import PaymentStore
from db.pool import Database
from oncepaid.domain.desk import Allowed, Already, Obstacle, Refused
from oncepaid.domain.payments import PaymentId
from tests.integration.db.desk_support import (
    PRICE,
    assign,
    decide,
    notes,
    obstacle,
    orphan,
    recorded,
    send_back,
    sent,
)
from tests.integration.db.support import (
    CHAIN,
    PAYER,
    add_job,
    execute,
    header,
    job_row,
    match,
    observed,
    rows,
    see,
    standing,
)


async def refunds(database: Database) -> list[tuple[Any, ...]]:
    found = await rows(
        database,
        "SELECT payment_id, tx_hash, log_index, recipient, amount_units, recognised_by, warnings"
        "  FROM payment_refunds ORDER BY id",
    )
    return [tuple(one.values()) for one in found]


async def test_a_refund_is_recorded_once(database: Database) -> None:
    first, second = await match(database, observed(PRICE), observed(PRICE))
    assert await send_back(database, first, sent()) == Allowed()
    assert isinstance(await send_back(database, first, sent()), Already)
    assert await standing(database, [first]) == [("refunded", "no_memo")]
    line = (first, sent().tx_hash, 3, PAYER, PRICE, "alice", ["odd"])
    assert await refunds(database) == [line]
    taken = await send_back(database, second, sent())
    assert obstacle(taken) is Obstacle.TRANSFER_TAKEN
    assert obstacle(await send_back(database, first, sent(tx="other"))) is Obstacle.SENT_BACK
    # Another transfer of the same transaction is another refund.
    assert await send_back(database, second, sent(log_index=4)) == Allowed()
    assert [note["refund_log_index"] for note in await notes(database)] == [3, 4]
    for payment in (first, second):
        job = await add_job(database)
        assert obstacle(await assign(database, payment, job.id)) is Obstacle.SENT_BACK


async def test_two_at_once_record_one_refund(database: Database) -> None:
    payments = await match(database, observed(PRICE), observed(PRICE))
    done = await asyncio.gather(
        *(send_back(database, payment, sent()) for payment in payments), return_exceptions=True
    )
    assert sum(ruling == Allowed() for ruling in done) == 1
    assert all(ruling == Allowed() or isinstance(ruling, (DeskBusy, Refused)) for ruling in done)
    assert len(await refunds(database)) == 1


async def credit(database: Database, *payments: PaymentId) -> None:
    await PaymentStore(database, CHAIN).credit(payments)


async def test_a_watched_refund_of_money_that_counts(database: Database) -> None:
    """It went back, whatever it counts for: recorded, and left to people."""
    job = await add_job(database)
    (payment,) = await match(database, observed(PRICE, job.memo))
    await credit(database, payment)
    assert obstacle(await send_back(database, payment, sent())) is Obstacle.PAYS_A_JOB
    assert await refunds(database) == []
    ruling = await send_back(database, payment, sent(), is_watched=True)
    assert recorded(ruling) is Obstacle.PAYS_A_JOB
    ruling = await send_back(database, payment, sent(), is_watched=True)
    assert obstacle(ruling) is Obstacle.PAYS_A_JOB
    assert await standing(database, [payment]) == [("credited", None)]
    assert len(await refunds(database)) == 1
    (note,) = await notes(database)
    assert note["is_closed"] is False


@pytest.mark.parametrize("is_watched", [True, False])
async def test_money_that_went_back_before_it_was_credited_never_is(
    database: Database, is_watched: bool
) -> None:
    job = await add_job(database)
    (payment,) = await match(database, observed(PRICE, job.memo))
    ruling = await send_back(database, payment, sent(), is_watched=is_watched)
    assert ruling == Allowed()
    assert len(await refunds(database)) == 1
    (note,) = await notes(database)
    assert (note["was"], note["is_closed"]) == ("matched", True)
    await credit(database, payment)
    await PaymentStore(database, CHAIN).reconsider()
    await decide(database)
    await credit(database, payment)
    assert await standing(database, [payment]) == [("refunded", None)]
    assert (await job_row(database, job.id))["status"] == "pending"
    # The job waits for money as before.
    (other,) = await match(database, observed(PRICE, job.memo))
    await credit(database, other)
    assert (await job_row(database, job.id))["status"] == "paid"


async def test_money_that_went_back_before_it_was_decided(database: Database) -> None:
    """As while somebody holds its job locked."""
    job = await add_job(database)
    (payment,) = await see(database, observed(PRICE, job.memo))
    assert await send_back(database, payment, sent(), is_watched=True) == Allowed()
    await decide(database)
    assert await standing(database, [payment]) == [("refunded", None)]
    assert (await job_row(database, job.id))["status"] == "pending"


async def test_a_part_that_went_back_and_the_rest_that_came(database: Database) -> None:
    """Together they were enough before the refund was final: they are not any more."""
    job = await add_job(database)
    (part,) = await match(database, observed(PRICE // 2, job.memo))
    (rest,) = await match(database, observed(PRICE // 2, job.memo, block=header(2)))
    assert await standing(database, [part, rest]) == [("matched", None)] * 2
    back = replace(sent(PRICE // 2), block=header(2).ref)
    assert await send_back(database, part, back, is_watched=True) == Allowed()
    await credit(database, part, rest)
    assert await standing(database, [part, rest]) == [
        *(("refunded", None), ("unmatched", "underpaid"))
    ]
    assert (await job_row(database, job.id))["status"] == "pending"


async def test_a_refund_of_a_payment_that_was_orphaned_meanwhile(database: Database) -> None:
    (gone,) = await match(database, observed(PRICE, tx="t", block=header(1)))
    await orphan(database, gone)
    assert obstacle(await send_back(database, gone, sent())) is Obstacle.ORPHANED
    assert await refunds(database) == []
    (again,) = await match(database, observed(PRICE, tx="t", block=header(2)))
    assert obstacle(await send_back(database, gone, sent())) is Obstacle.ORPHANED
    assert await send_back(database, gone, sent(), is_watched=True) == Allowed()
    assert await standing(database, [gone, again]) == [
        *(("orphaned", "no_memo"), ("refunded", "no_memo"))
    ]
    assert [line[0] for line in await refunds(database)] == [again]


async def test_a_refunded_payment_that_comes_again_was_sent_back(database: Database) -> None:
    """Whatever its new row says: the money of this transfer is gone."""
    (gone,) = await match(database, observed(PRICE, tx="t", block=header(1)))
    assert await send_back(database, gone, sent()) == Allowed()
    await orphan(database, gone)
    (again,) = await match(database, observed(PRICE, tx="t", block=header(2)))
    await execute(
        database,
        "UPDATE payments SET status = 'unmatched', reason = 'no_memo' WHERE id = $1",
        again,
    )
    job = await add_job(database)
    assert obstacle(await assign(database, again, job.id)) is Obstacle.SENT_BACK
    assert await send_back(database, again, sent()) == Allowed(is_recorded=True)
    assert len(await refunds(database)) == 1
