"""What an operator may decide, for each state of a payment and of a job."""

from dataclasses import replace
from typing import Any

import pytest

from oncepaid.domain.chain import BlockHash, BlockRef, TxHash
from oncepaid.domain.desk import (
    UNCREDITED,
    Allowed,
    Already,
    DeskJob,
    DeskPayment,
    Obstacle,
    Recorded,
    RefundRuling,
    Refused,
    decide_assignment,
    decide_ignoring,
    decide_refund,
    is_open,
    is_waiting_part,
    twins_in,
)
from oncepaid.domain.jobs import JobId
from oncepaid.domain.money import Units
from oncepaid.domain.payments import PaymentId, PaymentStatus, Reason, StoredLog
from tests.unit.samples import PAYER, SHOP, job

REFUND = TxHash("0x" + "11" * 32)
OTHER = TxHash("0x" + "22" * 32)
UNMATCHED = DeskPayment(id=PaymentId(5), units=Units(10), status=PaymentStatus.UNMATCHED)


def at_desk(**terms: Any) -> DeskJob:
    return DeskJob(terms=job(3, **terms), uuid="a-uuid", status="pending")


def given(ruling: RefundRuling) -> str:
    """Return an obstacle, or what else came out of it."""
    match ruling:
        case Recorded(obstacle=obstacle, sentence=sentence):
            assert sentence
            return f"recorded, {obstacle}"
        case Refused(obstacle=obstacle, sentence=sentence):
            assert sentence
            return obstacle
        case Already(sentence=sentence):
            assert sentence
            return "already"
        case Allowed(is_recorded=True):
            return "closed only"
        case Allowed(lower_price_to=price):
            return "allowed" if price is None else f"allowed at {price}"


@pytest.mark.parametrize(
    ("facts", "assigned", "ignored", "refunded"),
    [
        ({"status": "unmatched"}, "allowed", "allowed", "allowed"),
        ({"status": "ignored"}, "allowed", "already", "allowed"),
        ({"status": "seen"}, "undecided", "undecided", "allowed"),
        ({"status": "seen", "assigned_to": 3}, "already", "undecided", "allowed"),
        ({"status": "seen", "assigned_to": 4}, "undecided", "undecided", "allowed"),
        ({"status": "matched", "job_id": 3}, "already", "pays_a_job", "allowed"),
        ({"status": "credited", "job_id": 3}, "already", "pays_a_job", "pays_a_job"),
        ({"status": "credited", "job_id": 4}, "pays_a_job", "pays_a_job", "pays_a_job"),
        ({"status": "orphaned"}, "orphaned", "orphaned", "orphaned"),
        ({"status": "refunded"}, "sent_back", "sent_back", "sent_back"),
        ({"status": "refunded", "sent_back": REFUND}, "sent_back", "sent_back", "already"),
        ({"status": "refunded", "sent_back": OTHER}, "sent_back", "sent_back", "sent_back"),
        # Recognised while it counted for a job, or was off the chain.
        ({"status": "unmatched", "sent_back": REFUND}, "sent_back", "sent_back", "closed only"),
        ({"status": "unmatched", "sent_back": OTHER}, "sent_back", "sent_back", "sent_back"),
        ({"status": "credited", "job_id": 4, "sent_back": REFUND},
         "sent_back", "sent_back", "pays_a_job"),
        # Assigned before, and decided since: it may be assigned again.
        ({"status": "unmatched", "assigned_to": 3, "job_id": 3}, "allowed", "allowed", "allowed"),
    ],
)  # fmt: skip
def test_what_may_be_done_in_each_state(
    facts: dict[str, Any], assigned: str, ignored: str, refunded: str
) -> None:
    payment = replace(UNMATCHED, **{**facts, "status": PaymentStatus(facts["status"])})
    assert given(decide_assignment(payment, at_desk(), accept_short=False)) == assigned
    assert given(decide_ignoring(payment)) == ignored
    assert given(decide_refund(payment, REFUND)) == refunded


def test_every_status_is_in_the_table() -> None:
    for status in PaymentStatus:
        assert given(decide_ignoring(replace(UNMATCHED, status=status)))


@pytest.mark.parametrize(
    ("terms", "more", "short", "accepted"),
    [
        ({}, {}, "allowed", "allowed"),
        ({"price": 10, "partial": 4}, {}, "allowed", "allowed"),
        ({"price": 11}, {}, "short", "allowed at 10"),
        ({"price": 20, "partial": 4, "covered": 3}, {}, "short", "allowed at 17"),
        ({"price": 17, "partial": 4, "covered": 3}, {}, "allowed", "allowed"),
        ({"price": None}, {}, "job_not_payable", "job_not_payable"),
        ({"price": 0}, {}, "allowed", "allowed"),
        ({"price": 0, "covered": 1}, {}, "job_takes_nothing", "job_takes_nothing"),
        ({"covered": 10}, {"paid_by": (7,)}, "job_takes_nothing", "job_takes_nothing"),
        ({"awaits_payment": False}, {}, "job_takes_nothing", "job_takes_nothing"),
        ({}, {"other_chain": 1}, "other_chain", "other_chain"),
        # The operator overrules where and when it was to be paid.
        ({"pay_to": PAYER}, {}, "allowed", "allowed"),
    ],
)
def test_which_jobs_take_a_payment(
    terms: dict[str, Any], more: dict[str, Any], short: str, accepted: str
) -> None:
    wanted = replace(at_desk(**terms), **more)
    assert given(decide_assignment(UNMATCHED, wanted, accept_short=False)) == short
    assert given(decide_assignment(UNMATCHED, wanted, accept_short=True)) == accepted


@pytest.mark.parametrize(
    ("terms", "more", "words"),
    [
        (
            {"price": 1_000_000, "partial": 240_000},
            {},
            "payment 5 has 0.75 USDC: for job 3, which costs 1.00 USDC, it is with the 0.24 USDC"
            " that wait on it short by 0.01 USDC (--accept-short lowers the job's price)",
        ),
        (
            {"awaits_payment": False},
            {"paid_by": (7, 8), "status": "completed"},
            "job 3 is completed and already paid by payment 7 and payment 8",
        ),
        ({"awaits_payment": False}, {"status": "failed"}, "job 3 is failed: it takes no money"),
    ],
)
def test_what_an_operator_is_told(terms: dict[str, Any], more: dict[str, Any], words: str) -> None:
    payment = replace(UNMATCHED, units=Units(750_000))
    ruling = decide_assignment(payment, replace(at_desk(**terms), **more), accept_short=False)
    assert isinstance(ruling, Refused)
    assert ruling.sentence == words


def test_an_orphaned_payment_names_the_one_that_took_its_place() -> None:
    gone = replace(UNMATCHED, status=PaymentStatus.ORPHANED, came_again=PaymentId(9))
    ruling = decide_ignoring(gone)
    assert isinstance(ruling, Refused)
    assert ruling.sentence.endswith("its transfer is payment 9 now")


def test_a_transfer_that_sent_back_another_payment() -> None:
    ruling = decide_refund(UNMATCHED, REFUND, serves=PaymentId(4))
    assert given(ruling) == Obstacle.TRANSFER_TAKEN


@pytest.mark.parametrize(
    ("facts", "serves", "outcome"),
    [
        ({"status": "unmatched"}, None, "allowed"),
        ({"status": "ignored"}, None, "allowed"),
        ({"status": "seen"}, None, "allowed"),
        ({"status": "matched", "job_id": 4}, None, "allowed"),
        ({"status": "credited", "job_id": 4}, None, "recorded, pays_a_job"),
        ({"status": "orphaned"}, None, "recorded, orphaned"),
        # Somebody closed it by hand, and nobody knows by which transfer.
        ({"status": "refunded"}, None, "recorded, sent_back"),
        # What is recorded is not recorded again, and two transfers are none of one payment's.
        ({"status": "credited", "job_id": 4, "sent_back": REFUND}, None, "pays_a_job"),
        ({"status": "unmatched", "sent_back": REFUND}, None, "closed only"),
        ({"status": "seen", "sent_back": REFUND}, None, "closed only"),
        ({"status": "matched", "job_id": 4, "sent_back": REFUND}, None, "closed only"),
        ({"status": "matched", "job_id": 4, "sent_back": OTHER}, None, "sent_back"),
        ({"status": "refunded", "sent_back": REFUND}, None, "already"),
        ({"status": "unmatched", "sent_back": OTHER}, None, "sent_back"),
        ({"status": "credited", "job_id": 4, "sent_back": OTHER}, None, "sent_back"),
        ({"status": "unmatched"}, 4, "transfer_taken"),
        ({"status": "credited", "job_id": 4}, 4, "transfer_taken"),
    ],
)
def test_a_transfer_that_names_the_payment_itself(
    facts: dict[str, Any], serves: PaymentId | None, outcome: str
) -> None:
    """The money did go back, whatever the payment counts for."""
    payment = replace(UNMATCHED, **{**facts, "status": PaymentStatus(facts["status"])})
    assert given(decide_refund(payment, REFUND, serves=serves, is_watched=True)) == outcome


@pytest.mark.parametrize("status", PaymentStatus)
def test_what_no_job_has_yet_is_closed_where_it_went_back(status: PaymentStatus) -> None:
    """Only what is open is offered to be sent back; what went back is closed all the same."""
    for sent_back in (None, OTHER):
        payment = replace(UNMATCHED, status=status, sent_back=sent_back)
        may = status in UNCREDITED and sent_back is None
        assert (decide_refund(payment, REFUND) == Allowed()) is may
        assert is_open(status, is_sent_back=sent_back is not None) <= may


def test_a_part_counts_while_it_waits_for_the_rest() -> None:
    short = Reason.UNDERPAID
    assert is_waiting_part(PaymentStatus.UNMATCHED, short, has_job=True)
    assert not is_waiting_part(PaymentStatus.IGNORED, short, has_job=True)
    assert not is_waiting_part(PaymentStatus.UNMATCHED, Reason.DUPLICATE, has_job=True)
    assert not is_waiting_part(PaymentStatus.UNMATCHED, short, has_job=False)


def stored(number: int, index: int, block: str = "a", **changed: Any) -> StoredLog:
    log = StoredLog(
        id=PaymentId(number),
        block=BlockRef(number=ord(block), hash=BlockHash("0x" + block * 64)),
        tx_hash=REFUND,
        log_index=index,
        sender=PAYER,
        recipient=SHOP,
        units=Units(10),
    )
    return replace(log, **changed)


def test_the_same_transfer_in_another_block() -> None:
    """Of several alike each is the one at its place among them, wherever its log index lies."""
    logs = [
        stored(1, 3),
        stored(2, 5),
        stored(3, 4, units=Units(11)),
        stored(4, 10, "b"),
        stored(5, 11, "b", units=Units(11)),
        stored(6, 12, "b"),
    ]
    gone, here = PaymentStatus.ORPHANED, PaymentStatus.SEEN
    known = [(log, gone if log.id <= 3 else here) for log in reversed(logs)]
    same = {1: (1, 4), 2: (2, 6), 3: (3, 5), 4: (1, 4), 5: (3, 5), 6: (2, 6)}
    again = {1: 4, 2: 6, 3: 5}
    found = {one: (twins.ids, twins.came_again) for one, twins in twins_in(known).items()}
    assert found == {number: (ids, again.get(number)) for number, ids in same.items()}


def test_an_id_is_an_id() -> None:
    """A job of the same number as a payment is not taken for it."""
    payment = replace(UNMATCHED, status=PaymentStatus.MATCHED, job_id=JobId(5))
    assert given(decide_assignment(payment, at_desk(), accept_short=True)) == "pays_a_job"
