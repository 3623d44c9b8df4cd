"""What the tests of the operator's desk share."""

from dataclasses import replace
from typing import Any

from db.audit import Note
from db.desk import DeskStore
from db.payments import PaymentStore
from db.pool import Database
from db.ranges import RangeStore
from oncepaid.domain.chain import TransferLog
from oncepaid.domain.desk import Obstacle, Recorded, RefundRuling, Refused, Ruling
from oncepaid.domain.jobs import JobId
from oncepaid.domain.payments import PaymentId
from tests.integration.db.support import (
    CHAIN,
    DECIDE,
    EPOCH,
    PAYER,
    SHOP,
    first_cursor,
    header,
    observed,
    rows,
)

PRICE = 1_000_000
NOTE = Note(who="alice", action="payment.assign")
WHY = "the payer wrote to us"


def desk(database: Database, chain: int = CHAIN) -> DeskStore:
    return DeskStore(database, chain)


async def assign(
    database: Database, payment: PaymentId, job: JobId, *, accept_short: bool = False
) -> Ruling:
    return await desk(database).assign(payment, job, accept_short=accept_short, why=WHY, note=NOTE)


def obstacle(ruling: RefundRuling) -> Obstacle:
    assert isinstance(ruling, Refused), ruling
    return ruling.obstacle


def recorded(ruling: RefundRuling) -> Obstacle:
    """Return why a payment is not closed whose refund was recorded all the same."""
    assert isinstance(ruling, Recorded), ruling
    return ruling.obstacle


async def notes(database: Database) -> list[dict[str, Any]]:
    found = await rows(database, "SELECT who, action, details FROM audit_log ORDER BY id")
    assert all(one["who"] == "alice" for one in found)
    return [{"action": one["action"], **one["details"]} for one in found]


async def decide(database: Database) -> None:
    await PaymentStore(database, CHAIN).decide_seen(DECIDE, 1000)


async def orphan(database: Database, *payments: PaymentId) -> None:
    cursor = await first_cursor(database)
    await RangeStore(database, CHAIN).repair(0, [], payments, epoch=EPOCH, checked=0, anchor=cursor)


def sent(payment: int = PRICE, *, tx: str = "refund", log_index: int = 3) -> TransferLog:
    return replace(
        observed(payment, block=header(1), tx=tx, log_index=log_index).log,
        sender=SHOP,
        recipient=PAYER,
    )


async def send_back(
    database: Database, payment: PaymentId, transfer: TransferLog, *, is_watched: bool = False
) -> RefundRuling:
    note = Note(who="alice", action="payment.refund")
    return await desk(database).record_refund(
        payment, transfer, why=WHY, note=note, warnings=["odd"], is_watched=is_watched
    )
