"""What holds for any jobs and payments, in any order and in any batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from oncepaid.domain.chain import ZERO_ADDRESS
from oncepaid.domain.jobs import JobId, JobTerms
from oncepaid.domain.matching import Decision, Matched, Unmatched, decide_all
from oncepaid.domain.money import Units
from oncepaid.domain.payments import Evidence, PaymentId, Reason, SeenPayment, Signer
from tests.unit.samples import (
    GRACE,
    NOON,
    OTHER_SHOP,
    PAYER,
    RULES,
    SHOP,
    STRANGER,
    evidence,
    job,
    payment,
    reference,
    referring,
)

SECOND = timedelta(seconds=1)


@dataclass
class Ledger:
    """What the database does with decisions, in a few lines: the sums of a job are its rows'."""

    jobs: dict[JobId, JobTerms]
    payments: dict[PaymentId, SeenPayment] = field(default_factory=dict)
    decisions: dict[PaymentId, Decision] = field(default_factory=dict)

    def decide(self, batch: Sequence[SeenPayment]) -> None:
        """Decide what was not decided before, knowing only the jobs that the batch names."""
        new = [paid for paid in batch if paid.id not in self.decisions]
        pieces = [piece for paid in new for piece in paid.evidence]
        memos = {piece.memo for piece in pieces}
        references = {piece.reference for piece in pieces}
        amounts = {paid.units for paid in new}
        named = [
            self._stored(terms)
            for terms in self.jobs.values()
            if terms.memo in memos
            or terms.unique_amount in amounts
            or terms.references & references
        ]
        self.payments.update({paid.id: paid for paid in new})
        self.decisions.update(decide_all(new, named, RULES))

    def _stored(self, terms: JobTerms) -> JobTerms:
        covered, partial = self.sums_of(terms.id)
        return replace(
            terms,
            covered=Units(terms.covered + covered),
            partial=Units(terms.partial + partial),
        )

    def sums_of(self, job_id: JobId) -> tuple[int, int]:
        """Return the units that pay the job, and those that still wait on it."""
        full = [p for p, d in self.decisions.items() if d == Matched(job_id=job_id)]
        parts = [
            p
            for p, d in self.decisions.items()
            if d == Unmatched(reason=Reason.UNDERPAID, job_id=job_id)
        ]
        waiting = sum(self.payments[p].units for p in parts)
        paid = sum(self.payments[p].units for p in full)
        # The partial payments before it are matched together with the one that completes them.
        return (paid + waiting, 0) if full else (0, waiting)


def pieces_of(signers: st.SearchStrategy[Signer]) -> st.SearchStrategy[Evidence]:
    """Evidence that names one of up to four jobs, or none of them."""
    numbers, company = st.integers(1, 5), st.sampled_from([1, 1, 1, 2])
    return st.one_of(
        st.builds(evidence, numbers, signers, company=company),
        st.builds(referring, numbers, signers),
    )


def names(terms: JobTerms, paid: SeenPayment) -> bool:
    """Say whether a payment's evidence names the job."""
    return any(
        piece.memo == terms.memo or piece.reference in terms.references for piece in paid.evidence
    )


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[JobId, JobTerms], list[SeenPayment]]:
    """Draw a few jobs, and payments that come close to them in every respect."""
    jobs = {}
    for number in range(1, draw(st.integers(1, 4)) + 1):
        price = draw(st.sampled_from([10, 12, 20]))
        jobs[JobId(number)] = job(
            number,
            price=draw(st.sampled_from([Units(price)] * 6 + [None])),
            unique_amount=draw(st.sampled_from([None, Units(price + 1), Units(price + 2)])),
            pay_to=draw(st.sampled_from([SHOP, SHOP, None, OTHER_SHOP])),
            awaits_payment=draw(st.sampled_from([True] * 5 + [False])),
            covered=Units(draw(st.sampled_from([0] * 6 + [price]))),
            expires_at=NOON + draw(st.sampled_from([0, 1])) * SECOND,
            references=frozenset({reference(number)} if draw(st.booleans()) else ()),
            amount_after_block=draw(st.sampled_from([-1, -1, 5])),
        )
    amounts = sorted(
        {u for j in jobs.values() for u in (j.price, j.unique_amount) if u is not None} | {1, 6, 50}
    )
    pieces = pieces_of(st.sampled_from([Signer.PAYER, Signer.PAYER, Signer.THIRD_PARTY]))
    payments = [
        payment(
            number,
            draw(st.sampled_from(amounts)),
            *draw(st.lists(pieces, max_size=2)),
            sender=draw(st.sampled_from([PAYER] * 4 + [STRANGER, ZERO_ADDRESS, SHOP])),
            recipient=draw(st.sampled_from([SHOP, SHOP, OTHER_SHOP])),
            block_time=NOON + GRACE + draw(st.sampled_from([-1, 0, 1])) * SECOND,
            transfers_in_tx=draw(st.sampled_from([1, 1, 2])),
            block_number=draw(st.sampled_from([5, 6])),
            is_a_price=draw(st.sampled_from([False, False, True])),
        )
        for number in range(1, draw(st.integers(1, 10)) + 1)
    ]
    return jobs, payments


World = tuple[dict[JobId, JobTerms], list[SeenPayment]]


@given(worlds())
def test_no_job_is_paid_twice_or_for_less_than_its_price(world: World) -> None:
    jobs, payments = world
    ledger = Ledger(jobs)
    ledger.decide(payments)
    assert set(ledger.decisions) == {paid.id for paid in payments}
    matched = [d.job_id for d in ledger.decisions.values() if isinstance(d, Matched)]
    assert len(set(matched)) == len(matched)
    for job_id in matched:
        terms = jobs[job_id]
        assert terms.awaits_payment
        assert terms.price is not None
        assert terms.covered < terms.price <= ledger.sums_of(job_id)[0]


@given(worlds())
def test_money_that_names_one_job_never_pays_another(world: World) -> None:
    jobs, payments = world
    decisions = decide_all(payments, jobs.values(), RULES)
    for paid in payments:
        decision = decisions[paid.id]
        if decision.job_id is None:
            continue
        terms = jobs[decision.job_id]
        if any(names(other, paid) for other in jobs.values()):
            assert names(terms, paid)
        else:
            assert not any(piece.memo and _is_payers(piece) for piece in paid.evidence)
            assert terms.unique_amount == paid.units
            assert paid.block_number > terms.amount_after_block
            assert not (paid.is_a_price and isinstance(decision, Matched))
        if isinstance(decision, Matched):
            assert paid.sender != SHOP
            assert terms.pay_to in (None, paid.recipient)
            assert paid.block_time <= terms.expires_at + GRACE


@given(worlds())
def test_a_job_that_could_be_paid_is(world: World) -> None:
    """The other side: refusing everything would satisfy the properties above."""
    jobs, payments = world
    for terms in jobs.values():
        if terms.price is None or not terms.awaits_payment or terms.covered:
            continue
        sure = payment(
            99, terms.price, evidence(terms.id), recipient=terms.pay_to or SHOP, sender=PAYER
        )
        decisions = decide_all([*payments, sure], jobs.values(), RULES)
        assert Matched(job_id=terms.id) in decisions.values()


@given(worlds(), st.lists(pieces_of(st.just(Signer.THIRD_PARTY)), max_size=3))
def test_what_a_third_party_attaches_never_beats_the_payers_word(
    world: World, attached: list[Evidence]
) -> None:
    jobs, payments = world
    own = [replace(p, evidence=tuple(e for e in p.evidence if _is_payers(e))) for p in payments]
    swapped = [
        replace(p, evidence=(*attached, *p.evidence)) if _names_any(p, jobs) else p for p in own
    ]
    assert decide_all(swapped, jobs.values(), RULES) == decide_all(own, jobs.values(), RULES)


def _is_payers(piece: Evidence) -> bool:
    return piece.signer is Signer.PAYER


def _names_any(paid: SeenPayment, jobs: dict[JobId, JobTerms]) -> bool:
    """A nonce that nobody bound is no word."""
    is_bound = any(names(terms, paid) for terms in jobs.values())
    return is_bound or any(piece.memo for piece in paid.evidence)


@given(worlds(), pieces_of(st.just(Signer.THIRD_PARTY)))
def test_a_third_party_alone_moves_only_exact_money(world: World, attached: Evidence) -> None:
    jobs, payments = world
    bare = [replace(paid, evidence=(attached,)) for paid in payments]
    decisions = decide_all(bare, jobs.values(), RULES)
    for paid in bare:
        decision = decisions[paid.id]
        if isinstance(decision, Matched) and names(jobs[decision.job_id], paid):
            terms = jobs[decision.job_id]
            assert paid.units in (terms.price, terms.unique_amount)
            assert (paid.transfers_in_tx, attached.company) == (1, 1)


@given(worlds(), st.data())
def test_batches_decide_as_their_payments_would_one_by_one(
    world: World, data: st.DataObject
) -> None:
    jobs, payments = world
    at_once, in_batches, one_by_one = Ledger(jobs), Ledger(jobs), Ledger(jobs)
    at_once.decide(payments)
    cut = data.draw(st.integers(0, len(payments)))
    in_batches.decide(payments[:cut])
    in_batches.decide(payments[cut:])
    for paid in payments:
        one_by_one.decide([paid])
    assert at_once.decisions == in_batches.decisions == one_by_one.decisions


@given(worlds(), st.data())
def test_the_same_log_again_changes_nothing(world: World, data: st.DataObject) -> None:
    jobs, payments = world
    again = data.draw(st.lists(st.sampled_from(payments)))
    once = decide_all(payments, jobs.values(), RULES)
    assert decide_all([*payments, *again], jobs.values(), RULES) == once
    ledger = Ledger(jobs)
    ledger.decide(payments)
    ledger.decide(again)
    assert ledger.decisions == once


@given(worlds(), st.data())
def test_payments_of_different_jobs_do_not_wait_for_each_other(
    world: World, data: st.DataObject
) -> None:
    jobs, payments = world
    decisions = decide_all(payments, jobs.values(), RULES)
    queues: dict[JobId | None, list[SeenPayment]] = {}
    for paid in payments:
        queues.setdefault(decisions[paid.id].job_id, []).append(paid)
    # Any interleaving that keeps the order of each job's own payments.
    turns = data.draw(st.permutations([decisions[paid.id].job_id for paid in payments]))
    reordered = [queues[turn].pop(0) for turn in turns]
    assert decide_all(reordered, jobs.values(), RULES) == decisions
