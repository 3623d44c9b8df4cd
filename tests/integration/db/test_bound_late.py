"""A binding that comes late, by the command or by a host: what it changes, and that it ends."""

from dataclasses import replace
from typing import Final

import pytest

from db.bindings import BindingStore
from db.payments import PaymentStore
from db.pool import Database
from oncepaid.domain.chain import Address
from oncepaid.domain.memo import Memo, Reference
from oncepaid.domain.payments import Evidence, MemoSource, ObservedPayment, Signer
from tests.integration.db.support import (
    CHAIN,
    DECIDE,
    PAYER,
    Job,
    add_job,
    match,
    observed,
    row,
    standing,
)
from tests.integration.db.test_bindings import NONCE, NOTE, PRICE

CONTRACT: Final = Address("0x" + "c0" * 20)
PAYERS: Final = Signer.PAYER
THIRD: Final = Signer.THIRD_PARTY


def memo(of: bytes, signer: Signer) -> Evidence:
    return Evidence(memo=Memo(of), source=MemoSource.CALLDATA, signer=signer)


def bound(signer: Signer) -> Evidence:
    """A nonce of the payer, or the id under which a contract of somebody else keeps it."""
    is_payers = signer is PAYERS
    return Evidence(
        memo=None,
        source=MemoSource.AUTHORIZATION if is_payers else MemoSource.CONTRACT,
        signer=signer,
        reference=Reference(issuer=PAYER if is_payers else CONTRACT, value=NONCE),
    )


def paid(units: int, *pieces: Evidence) -> ObservedPayment:
    return replace(observed(units), evidence=pieces)


async def bind_late(
    database: Database, job: Job, payment: ObservedPayment, *, by_sweep: bool
) -> tuple[str, str | None, int | None]:
    """Bind after the decision; returns how the payment stands then, with nothing left to do."""
    (reference,) = [piece.reference for piece in payment.evidence if piece.reference]
    ledger = PaymentStore(database, CHAIN)
    if by_sweep:
        async with database.transaction() as host:
            await host.execute(
                "INSERT INTO job_bindings (issuer, reference, job_id) VALUES ($1, $2, $3)",
                *(reference.issuer, reference.value, job.id),
            )
            ids = await match(database, payment)
        await ledger.reconsider()
    else:
        ids = await match(database, payment)
        await BindingStore(database).bind(job.id, reference, why="it came late", note=NOTE)
    await ledger.decide_seen(DECIDE, 10)
    assert await ledger.reconsider() == 0, "it is decided for ever anew"
    ((status, reason),) = await standing(database, ids)
    (found,) = [await row(database, "SELECT job_id FROM payments WHERE id = $1", ids[0])]
    return status, reason, found["job_id"]


@pytest.fixture(params=[False, True], ids=["by the command", "by the sweep"])
def by_sweep(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found


async def test_nothing_spoke_of_a_job(database: Database, by_sweep: bool) -> None:
    job = await add_job(database)
    found = await bind_late(database, job, paid(PRICE, bound(PAYERS)), by_sweep=by_sweep)
    assert found == ("matched", None, job.id)


async def test_somebody_elses_reference_of_less(database: Database, by_sweep: bool) -> None:
    """It binds only the exact amount, and knowing it does not help."""
    job = await add_job(database)
    found = await bind_late(database, job, paid(PRICE - 1, bound(THIRD)), by_sweep=by_sweep)
    assert found == ("unmatched", "third_party_memo", job.id)


@pytest.mark.parametrize("named", ["another job", "the job itself", "no job"])
async def test_somebody_elses_memo_gives_way(
    database: Database, by_sweep: bool, named: str
) -> None:
    job, another = await add_job(database), await add_job(database)
    attached = {"another job": another.memo, "the job itself": job.memo, "no job": bytes(16)}
    payment = paid(PRICE + 7, bound(PAYERS), memo(attached[named], THIRD))
    found = await bind_late(database, job, payment, by_sweep=by_sweep)
    assert found == ("matched", None, job.id)


async def test_somebody_elses_memos_of_two_jobs_give_way(
    database: Database, by_sweep: bool
) -> None:
    job, *others = [await add_job(database) for _ in range(3)]
    payment = paid(PRICE + 7, bound(PAYERS), *(memo(other.memo, THIRD) for other in others))
    found = await bind_late(database, job, payment, by_sweep=by_sweep)
    assert found == ("matched", None, job.id)


async def test_two_bindings_of_the_payer_contradict_each_other_for_good(database: Database) -> None:
    """Decided anew it would be the same, for ever."""
    jobs = [await add_job(database) for _ in range(2)]
    values = (b"1", b"2")
    names = [replace(bound(PAYERS), reference=Reference(issuer=PAYER, value=v)) for v in values]
    ids = await match(database, paid(PRICE, *names))
    for job, name in zip(jobs, names, strict=True):
        assert name.reference is not None
        await BindingStore(database).bind(job.id, name.reference, why="late", note=NOTE)
    ledger = PaymentStore(database, CHAIN)
    await ledger.decide_seen(DECIDE, 10)
    assert await standing(database, ids) == [("unmatched", "memo_conflict")]
    assert await ledger.reconsider() == 0


async def test_somebody_elses_memo_has_paid_its_job(database: Database, by_sweep: bool) -> None:
    """What a job was paid by is not taken from it: bind before you settle."""
    job, another = await add_job(database), await add_job(database)
    payment = paid(PRICE, bound(PAYERS), memo(another.memo, THIRD))
    found = await bind_late(database, job, payment, by_sweep=by_sweep)
    assert found == ("matched", None, another.id)


@pytest.mark.parametrize("signer", [PAYERS, THIRD])
async def test_the_payers_own_memo_of_no_job_stays(
    database: Database, by_sweep: bool, signer: Signer
) -> None:
    job = await add_job(database)
    payment = paid(PRICE, bound(signer), memo(bytes(16), PAYERS))
    found = await bind_late(database, job, payment, by_sweep=by_sweep)
    assert found == ("unmatched", "unknown_memo", None)
