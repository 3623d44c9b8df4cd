"""What is said of a payment: for each reason, each status and each kind of evidence."""

from dataclasses import replace
from typing import Any

import pytest

from oncepaid.domain.chain import Address, BlockHash, BlockRef, TxHash
from oncepaid.domain.desk import DeskJob
from oncepaid.domain.desk_facts import Clue, Handled, PaymentFacts, ReadChain, SentBack
from oncepaid.domain.explaining import Explained, explain_payment
from oncepaid.domain.finality import INCLUDED, Requirement, Tier
from oncepaid.domain.memo import Reference
from oncepaid.domain.money import Units
from oncepaid.domain.nearest import NearJob, Nearness
from oncepaid.domain.payments import (
    Evidence,
    MemoSource,
    PaymentId,
    PaymentStatus,
    Reason,
    Signer,
    StoredLog,
)
from tests.unit.samples import NOON, PAYER, SHOP, STRANGER, job, memo

CHAIN = ReadChain(cursor=111, finalized=90)
JOB = DeskJob(terms=job(3), uuid="uuid-3", status="pending", paid_by=())
BACK = TxHash("0x" + "99" * 32)


def facts(status: str = "unmatched", reason: str | None = None, **changed: Any) -> PaymentFacts:
    log = StoredLog(
        id=PaymentId(5),
        block=BlockRef(number=100, hash=BlockHash("0x" + "ab" * 32)),
        tx_hash=TxHash("0x" + "cd" * 32),
        log_index=7,
        sender=PAYER,
        recipient=SHOP,
        units=Units(990_000),
    )
    if status == "unmatched":
        reason = reason or "no_memo"
    found = PaymentFacts(
        log=log,
        chain_id=8453,
        block_time=NOON,
        status=PaymentStatus(status),
        reason=None if reason is None else Reason(reason),
        transfers_in_tx=1,
    )
    return replace(found, **changed)


def piece(**changed: Any) -> Evidence:
    found = Evidence(memo=memo(3), source=MemoSource.CALLDATA, signer=Signer.PAYER, by=PAYER)
    return replace(found, **changed)


def explained(
    found: PaymentFacts, chain: ReadChain = CHAIN, require: Requirement = INCLUDED
) -> Explained:
    return explain_payment(found, (), chain, [Tier(up_to=None, require=require)])


def said(found: PaymentFacts, chain: ReadChain = CHAIN, require: Requirement = INCLUDED) -> str:
    return " ".join(explained(found, chain, require).sentences())


@pytest.mark.parametrize(
    ("finalized", "cursor", "status", "words"),
    [
        (90, 111, "unmatched", "which has 12 confirmations and is not final."),
        (100, 111, "unmatched", "which is final."),
        (-1, 50, "unmatched", "which has 0 confirmations and is not final."),
        (100, 111, "orphaned", "which is no longer on the chain."),
    ],
)
def test_what_was_seen(finalized: int, cursor: int, status: str, words: str) -> None:
    chain = ReadChain(cursor=cursor, finalized=finalized)
    assert explained(facts(status), chain).seen == (
        f"Payment 5: 0.99 USDC from {PAYER} to {SHOP}, log 7 of block 100"
        f" (2026-11-23 12:00:00 UTC), {words}"
    )


_CONTRACT = Address("0x" + "ee" * 20)
BOUND = Reference(issuer=_CONTRACT, value=b"\x01\x02")


@pytest.mark.parametrize(
    ("clue", "words"),
    [
        (
            Clue(piece=piece(), job=JOB),
            f"The memo 0x{memo(3).hex()} of job 3 stood behind the arguments of the call that"
            f" moved the money, signed by the payer {PAYER}.",
        ),
        (
            Clue(
                piece=piece(source=MemoSource.WRAPPER, signer=Signer.THIRD_PARTY, by=STRANGER),
                job=None,
            ),
            f"The memo 0x{memo(3).hex()} of no job of this database stood behind a call around"
            f" the one that moved the money, attached by {STRANGER}, who is not the payer.",
        ),
        (
            Clue(
                piece=piece(source=MemoSource.SCAN, signer=Signer.THIRD_PARTY, by=None, company=3),
                job=JOB,
            ),
            f"The memo 0x{memo(3).hex()} of job 3 stood somewhere in the transaction's input,"
            " attached by somebody, who is not the payer, and may speak of any of 3 transfers.",
        ),
        (
            Clue(
                piece=piece(memo=None, reference=BOUND, source=MemoSource.CONTRACT, by=None),
                job=JOB,
            ),
            f"A reference of {_CONTRACT}, 0x0102, bound to job 3, stood in an event of a contract"
            " on the allow-list, signed by the payer.",
        ),
        (
            Clue(
                piece=piece(memo=None, reference=BOUND, source=MemoSource.AUTHORIZATION),
                job=None,
            ),
            f"A reference of {_CONTRACT}, 0x0102, bound to no job, stood in the authorization that"
            f" moved the money, signed by the payer {PAYER}.",
        ),
        (
            Clue(piece=piece(source=MemoSource.OPERATOR, signer=Signer.OPERATOR, by=None), job=JOB),
            "An operator gave it to job 3.",
        ),
    ],
)
def test_evidence_and_its_signer(clue: Clue, words: str) -> None:
    assert explained(facts(clues=(clue,))).evidence == (words,)


def test_no_evidence_is_said() -> None:
    assert explained(facts()).evidence == ("It carries no memo, and no other reference to a job.",)


@pytest.mark.parametrize("source", MemoSource)
def test_every_place_has_its_words(source: MemoSource) -> None:
    assert explained(facts(clues=(Clue(piece=piece(source=source), job=JOB),))).evidence[0]


@pytest.mark.parametrize("reason", Reason)
def test_each_reason_has_its_sentence_and_something_to_do(reason: Reason) -> None:
    told = explained(facts(reason=reason, job=JOB))
    assert told.decision[0] == (
        f"It pays no job, {reason}: {reason.sentence} It speaks of job 3 (uuid-3, pending)."
    )
    assert told.next_step is not None
    others = {explained(facts(reason=other)).next_step for other in Reason if other != reason}
    assert told.next_step not in others


def test_a_payment_that_an_exchange_has_shortened() -> None:
    """It waits on no job, and nothing that comes will make it count."""
    short, part = said(facts(reason="underpaid")), said(facts(reason="underpaid", job=JOB))
    assert "an exchange has taken its fee" in short
    assert "exchange" not in part
    assert "Wait for the rest" in part
    assert "Wait for the rest" not in short
    assert "Ask the payer whether it is for one of the nearest jobs" in short


@pytest.mark.parametrize(
    ("status", "changed", "decision", "next_step"),
    [
        ("seen", {}, "Nothing is decided about it yet.", "The daemon decides it next."),
        ("credited", {"job": JOB}, "It was credited to job 3", None),
        ("credited", {}, "It was credited to a job that is no longer there", None),
        ("ignored", {}, "An operator decided that nothing is owed", "still be assigned"),
        ("refunded", {}, "It was sent back", None),
        ("orphaned", {}, "the money did not arrive.", None),
        ("orphaned", {"came_again": PaymentId(9)}, "mined again and is payment 9 now.", None),
        ("orphaned", {"was": PaymentStatus.CREDITED, "job": JOB}, "about to be taken back", None),
        (
            "orphaned",
            {"was": PaymentStatus.CREDITED, "job": JOB, "is_reversed": True},
            "credited to job 3 (uuid-3, pending), which was taken back.",
            None,
        ),
        (
            "orphaned",
            {"was": PaymentStatus.CREDITED, "job": JOB, "is_reversed": True, "is_lost": True},
            "that is a loss.",
            "Ask the payer to pay again.",
        ),
    ],
)
def test_each_status(
    status: str, changed: dict[str, Any], decision: str, next_step: str | None
) -> None:
    told = explained(facts(status, **changed))
    assert decision in " ".join(told.decision)
    if next_step is None:
        assert told.next_step is None
    else:
        assert next_step in (told.next_step or "")


def test_every_status_is_said() -> None:
    for status in PaymentStatus:
        assert explained(facts(status, job=JOB)).decision


def sent_back(**changed: Any) -> SentBack:
    found = SentBack(tx_hash=BACK, recipient=PAYER, units=Units(990_000), recognised_by="oncepaid")
    return replace(found, **changed)


def test_what_went_back_and_what_operators_did() -> None:
    done = Handled(at=NOON, who="alice", action="payment.ignore", why="a test of ours")
    told = explained(
        facts("refunded", sent_back=sent_back(warnings=("it is odd",)), handled=(done,))
    )
    assert told.handled == (
        "2026-11-23 12:00:00 UTC, alice: payment.ignore: a test of ours",
        f"0.99 USDC went back to {PAYER} in {BACK}, recognised by oncepaid. Note: it is odd.",
    )


@pytest.mark.parametrize(
    ("status", "words"),
    [
        *(("unmatched", "payment refund"), ("matched", "payment refund")),
        ("credited", "counts for a job"),
    ],
)
def test_money_that_went_back_and_is_not_closed(status: str, words: str) -> None:
    told = explained(facts(status, job=JOB, sent_back=sent_back()))
    assert words in (told.next_step or "")


def test_what_is_open_can_be_sent_back_once() -> None:
    is_open = {status: facts(status).is_open for status in PaymentStatus}
    assert {status for status, found in is_open.items() if found} == {"unmatched", "ignored"}
    assert not facts(sent_back=sent_back()).is_open


def test_all_of_it_in_order() -> None:
    near = NearJob(job=JOB, by=Nearness.NAMED, difference=0, sentence="Job 3 is near.")
    done = Handled(at=NOON, who="alice", action="payment.ignore", why=None)
    told = explain_payment(
        facts(handled=(done,)), [near], CHAIN, [Tier(up_to=None, require=INCLUDED)]
    )
    lines = list(told.sentences())
    assert [line.split()[0] for line in lines] == [
        *("Payment", "It", "It", "2026-11-23", "Find", "Job")
    ]
