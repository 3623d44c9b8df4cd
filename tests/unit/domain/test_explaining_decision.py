"""What is said of a decision: by which rule, why not, and what is waited for."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from oncepaid.domain.desk import DeskJob
from oncepaid.domain.desk_facts import Clue
from oncepaid.domain.explaining import explain_payment
from oncepaid.domain.finality import INCLUDED, Aged, Finalized, Requirement, Safe, Tier
from oncepaid.domain.money import Units
from oncepaid.domain.nearest import NearJob, Nearness
from oncepaid.domain.payments import MemoSource, Signer
from tests.unit.domain.test_explaining import BOUND, CHAIN, JOB, explained, facts, piece, said
from tests.unit.samples import NOON, STRANGER, job

_THIRD = piece(signer=Signer.THIRD_PARTY, by=STRANGER)
_WORD = piece(source=MemoSource.OPERATOR, signer=Signer.OPERATOR)
_OTHER = DeskJob(terms=job(4), uuid="uuid-4", status="pending")


def beside(number: int, **terms: Any) -> NearJob:
    found = DeskJob(terms=job(number, **terms), uuid=f"uuid-{number}", status="pending")
    return NearJob(job=found, by=Nearness.AMOUNT, difference=0, sentence="It is near.")


AMOUNT = Units(990_000)
FITS = DeskJob(terms=job(3, price=AMOUNT), uuid="uuid-3", status="pending")
_NOT_EXACT = (
    "Its amount is not exactly what job 3 (uuid-3, pending) costs, nor that job's unique amount."
)
_OTHERS = "Its amount, the payer's own word, is the unique amount of job 4 (uuid-4, pending)."


@pytest.mark.parametrize(
    ("changed", "company", "near", "why"),
    [
        ({"job": JOB}, 1, (), [_NOT_EXACT]),
        ({"transfers_in_tx": 4}, 1, (),
         ["It is one of 4 transfers to us in its transaction."]),
        ({}, 3, (), ["Its memo may speak of any of 3 transfers."]),
        ({}, 1, (beside(4, unique_amount=AMOUNT),), [_OTHERS]),
        ({"job": JOB}, 1, (beside(4, unique_amount=AMOUNT),), [_NOT_EXACT, _OTHERS]),
        # These contradict nothing: paid elsewhere, another amount, drawn after the payment.
        ({"job": JOB}, 1, (
            beside(4, unique_amount=AMOUNT, pay_to=STRANGER), beside(5, unique_amount=AMOUNT - 1),
            beside(6, unique_amount=AMOUNT, amount_after_block=100)), [_NOT_EXACT]),
        ({}, 1, (), ["What did not fit when it was decided fits now: a price or an amount has"
                     " changed since."]),
    ],
)  # fmt: skip
def test_why_a_third_partys_memo_did_not_bind(
    changed: dict[str, Any], company: int, near: tuple[NearJob, ...], why: list[str]
) -> None:
    found = facts(reason="third_party_memo", **{"job": FITS, **changed})
    clue = Clue(piece=piece(signer=Signer.THIRD_PARTY, by=STRANGER, company=company), job=found.job)
    told = explain_payment(
        replace(found, clues=(clue,)), near, CHAIN, [Tier(up_to=None, require=INCLUDED)]
    )
    assert list(told.decision[1:]) == why


def test_a_reference_that_was_bound_too_late_decided_nothing() -> None:
    """The payment was matched by its amount before."""
    bound = piece(memo=None, reference=BOUND)
    for later, rule in ((1, "by its amount"), (0, "what the payer signed"), (-1, "what the payer")):
        clue = Clue(piece=bound, job=JOB, bound_at=NOON + timedelta(seconds=later))
        found = facts("credited", job=JOB, clues=(clue,), matched_at=NOON)
        assert rule in explained(found).decision[0]


@pytest.mark.parametrize(
    ("clues", "rule"),
    [
        ((Clue(piece=piece(), job=JOB),), "what the payer signed names that job"),
        ((Clue(piece=_THIRD, job=JOB),), "somebody else attached that job's memo"),
        ((Clue(piece=piece(), job=_OTHER), Clue(piece=_WORD, job=JOB)), "an operator gave it"),
        ((), "by its amount, for which no other job waited"),
        ((Clue(piece=piece(memo=None, reference=BOUND), job=None),), "by its amount"),
    ],
)
@pytest.mark.parametrize("status", ["matched", "credited"])
def test_the_rule_that_decided(clues: tuple[Clue, ...], rule: str, status: str) -> None:
    told = explained(facts(status, job=JOB, clues=clues))
    assert told.decision[0].startswith("It pays job 3 (uuid-3, pending): ")
    assert rule in told.decision[0]


@pytest.mark.parametrize(
    ("require", "words"),
    [
        (INCLUDED, "once its block is read, which is now."),
        (Aged(timedelta(seconds=90)), "once 1 min 30 s of the chain's time lie on top of its"),
        (Safe(), "once its block is safe"),
        (Finalized(), "once its block is finalized"),
    ],
)
def test_what_a_matched_payment_waits_for(require: Requirement, words: str) -> None:
    assert words in said(facts("matched", job=JOB), require=require)


def test_a_matched_payment_waits_with_all_that_its_job_has() -> None:
    """The tier goes by the sum."""
    tiers = [Tier(up_to=Units(990_000), require=INCLUDED), Tier(up_to=None, require=Safe())]
    for covered, words in ((0, "is read"), (1, "is safe")):
        found = replace(JOB, terms=job(3, covered=Units(covered)))
        told = explain_payment(facts("matched", job=found), (), CHAIN, tiers)
        assert words in told.decision[1]


def test_nothing_is_credited_in_a_conflict() -> None:
    chain = replace(CHAIN, conflict="block 7 was final")
    assert "Nothing is credited while the chain is in conflict: block 7 was final." in said(
        facts("matched", job=JOB), chain
    )
