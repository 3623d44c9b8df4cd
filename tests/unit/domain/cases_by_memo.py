"""A payment that carries a memo, signed by its payer or by somebody else."""

from datetime import UTC, datetime

from oncepaid.domain.chain import ZERO_ADDRESS
from oncepaid.domain.money import MAX_UNITS, Units
from oncepaid.domain.payments import Reason
from tests.unit.domain.cases import (
    AMOUNT_JOB,
    BY_MEMO,
    BY_THIRD,
    EVERY_RECIPIENT,
    MATCHED,
    NO_FALLBACK,
    SECOND,
    THIRD,
    Case,
    of,
    unmatched,
)
from tests.unit.samples import GRACE, NOON, OTHER_SHOP, RULES, STRANGER, evidence, job

UNKNOWN = unmatched(Reason.UNKNOWN_MEMO)
AMBIGUOUS = unmatched(Reason.AMBIGUOUS_AMOUNT)

MEMO_CASES = [
    Case(name="memo and price", paid=of(10, BY_MEMO), then=MATCHED),
    Case(name="more than the price", paid=of(11, BY_MEMO), then=MATCHED),
    Case(name="all the money there is", paid=of(MAX_UNITS, BY_MEMO), then=MATCHED),
    Case(name="the same memo twice", paid=of(10, BY_MEMO, BY_MEMO), then=MATCHED),
    Case(name="minted, with a memo", paid=of(10, BY_MEMO, sender=ZERO_ADDRESS), then=MATCHED),
    Case(
        name="job at any of our addresses",
        paid=of(10, BY_MEMO, recipient=OTHER_SHOP),
        jobs=[job(pay_to=None)],
        then=MATCHED,
    ),
    Case(
        name="job at no address, where every recipient is observed",
        paid=of(10, BY_MEMO, recipient=STRANGER),
        jobs=[job(pay_to=None)],
        rules=EVERY_RECIPIENT,
        then=unmatched(Reason.WRONG_RECIPIENT, 1),
    ),
    Case(
        name="job at its own address, where every recipient is observed",
        paid=of(10, BY_MEMO),
        rules=EVERY_RECIPIENT,
        then=MATCHED,
    ),
    Case(
        name="job is paid at another address",
        paid=of(10, BY_MEMO, recipient=OTHER_SHOP),
        then=unmatched(Reason.WRONG_RECIPIENT, 1),
    ),
    Case(name="unknown memo", paid=of(10, evidence(9)), then=unmatched(Reason.UNKNOWN_MEMO)),
    Case(
        name="unknown memo, another job's amount",
        paid=of(13, evidence(9)),
        jobs=[AMOUNT_JOB],
        then=unmatched(Reason.UNKNOWN_MEMO),
    ),
    Case(
        name="on the edge of the grace",
        paid=of(10, BY_MEMO, block_time=NOON + GRACE),
        then=MATCHED,
    ),
    Case(
        name="one second late",
        paid=of(10, BY_MEMO, block_time=NOON + GRACE + SECOND),
        then=unmatched(Reason.LATE, 1),
    ),
    Case(
        name="late, another job's amount",
        paid=of(13, BY_MEMO, block_time=NOON + GRACE + SECOND),
        jobs=[job(), job(2, unique_amount=Units(13), expires_at=NOON + 9 * GRACE)],
        then=unmatched(Reason.LATE, 1),
    ),
    Case(
        name="job without an end",
        paid=of(10, BY_MEMO, block_time=NOON + 10_000 * GRACE),
        jobs=[job(expires_at=datetime.max.replace(tzinfo=UTC))],
        then=MATCHED,
    ),
    Case(
        name="job from before all time",
        paid=of(10, BY_MEMO, block_time=datetime.max.replace(tzinfo=UTC)),
        jobs=[job(expires_at=datetime.min.replace(tzinfo=UTC))],
        then=unmatched(Reason.LATE, 1),
    ),
    Case(
        name="one unit too little",
        paid=of(9, BY_MEMO),
        then=unmatched(Reason.UNDERPAID, 1),
    ),
    Case(
        name="too little, another job's amount",
        paid=of(9, BY_MEMO),
        jobs=[job(), job(2, price=Units(8), unique_amount=Units(9))],
        then=unmatched(Reason.UNDERPAID, 1),
    ),
    Case(
        name="the rest of a partial payment",
        paid=of(4, BY_MEMO),
        jobs=[job(partial=Units(6))],
        then=MATCHED,
    ),
    Case(
        name="not yet the rest",
        paid=of(3, BY_MEMO),
        jobs=[job(partial=Units(6))],
        then=unmatched(Reason.UNDERPAID, 1),
    ),
    Case(
        name="the rest, one second late",
        paid=of(4, BY_MEMO, block_time=NOON + GRACE + SECOND),
        jobs=[job(partial=Units(6))],
        then=unmatched(Reason.LATE, 1),
    ),
    Case(
        name="paid already",
        paid=of(10, BY_MEMO),
        jobs=[job(covered=Units(10))],
        then=unmatched(Reason.DUPLICATE, 1),
    ),
    Case(
        name="closed by the host",
        paid=of(10, BY_MEMO),
        jobs=[job(awaits_payment=False)],
        then=unmatched(Reason.DUPLICATE, 1),
    ),
    Case(
        name="paid already, and late: the first is said",
        paid=of(10, BY_MEMO, block_time=NOON + 9 * GRACE),
        jobs=[job(covered=Units(10))],
        then=unmatched(Reason.DUPLICATE, 1),
    ),
    Case(
        name="paid already, another job's amount",
        paid=of(13, BY_MEMO),
        jobs=[job(covered=Units(10)), job(2, unique_amount=Units(13))],
        then=unmatched(Reason.DUPLICATE, 1),
    ),
    Case(
        name="job without a price",
        paid=of(10, BY_MEMO),
        jobs=[job(price=None)],
        then=unmatched(Reason.JOB_NOT_PAYABLE, 1),
    ),
    Case(
        name="memos of two jobs",
        paid=of(10, BY_MEMO, evidence(2)),
        jobs=[job(), job(2)],
        then=unmatched(Reason.MEMO_CONFLICT),
    ),
    Case(
        name="a job's memo and an unknown one",
        paid=of(10, BY_MEMO, evidence(9)),
        then=unmatched(Reason.MEMO_CONFLICT),
    ),
    Case(
        name="conflicting memos, another job's amount",
        paid=of(13, BY_MEMO, evidence(2)),
        jobs=[job(), job(2), job(3, unique_amount=Units(13))],
        then=unmatched(Reason.MEMO_CONFLICT),
    ),
    Case(
        name="the payer's memo before a third party's",
        paid=of(11, evidence(2, THIRD), BY_MEMO, transfers_in_tx=2),
        jobs=[job(), job(2)],
        then=MATCHED,
    ),
]

THIRD_PARTY_CASES = [
    Case(name="third party, exact price", paid=of(10, BY_THIRD), then=MATCHED),
    Case(
        name="third party, exact unique amount",
        paid=of(13, BY_THIRD),
        jobs=[AMOUNT_JOB],
        then=MATCHED,
    ),
    Case(
        name="third party, too much",
        paid=of(11, BY_THIRD),
        then=unmatched(Reason.THIRD_PARTY_MEMO, 1),
    ),
    Case(
        name="third party, too little",
        paid=of(9, BY_THIRD),
        then=unmatched(Reason.THIRD_PARTY_MEMO, 1),
    ),
    Case(
        name="third party, the rest of a partial payment",
        paid=of(4, BY_THIRD),
        jobs=[job(partial=Units(6))],
        then=unmatched(Reason.THIRD_PARTY_MEMO, 1),
    ),
    Case(
        name="third party, exact, with company",
        paid=of(10, BY_THIRD, transfers_in_tx=2),
        then=unmatched(Reason.THIRD_PARTY_MEMO, 1),
    ),
    Case(
        name="third party, another job's amount",
        paid=of(13, BY_THIRD),
        jobs=[job(), job(2, unique_amount=Units(13))],
        then=unmatched(Reason.THIRD_PARTY_MEMO, 1),
    ),
    Case(
        name="third party, unknown memo",
        paid=of(10, evidence(9, THIRD)),
        then=unmatched(Reason.UNKNOWN_MEMO),
    ),
    *(
        Case(
            name=f"third party, unknown memo, exactly a job's unique amount, {name}",
            paid=of(13, *(evidence(n, THIRD) for n in memos), **changed),
            jobs=[AMOUNT_JOB, *others],
            rules=rules,
            then=then,
        )
        for name, memos, changed, others, rules, then in (
            ("and nothing else", [9], {}, [], RULES, MATCHED),
            ("two of them", [8, 9], {}, [], RULES, MATCHED),
            ("with company", [9], {"transfers_in_tx": 2}, [], RULES, MATCHED),
            ("of two", [9], {}, [job(2, unique_amount=Units(13))], RULES, UNKNOWN),
            ("and a price", [9], {"is_a_price": True}, [], RULES, AMBIGUOUS),
            ("without the fallback", [9], {}, [], NO_FALLBACK, UNKNOWN),
            ("minted", [9], {"sender": ZERO_ADDRESS}, [], RULES, UNKNOWN),
        )
    ),
    Case(
        name="the payer's unknown memo, exactly a job's unique amount",
        paid=of(13, evidence(9)),
        jobs=[AMOUNT_JOB],
        then=UNKNOWN,
    ),
    Case(
        name="third parties' memos of two jobs",
        paid=of(10, BY_THIRD, evidence(2, THIRD)),
        jobs=[job(), job(2)],
        then=unmatched(Reason.MEMO_CONFLICT),
    ),
    Case(
        name="third party, exact price, which is another job's unique amount",
        paid=of(10, BY_THIRD),
        jobs=[job(), job(2, price=Units(8), unique_amount=Units(10))],
        then=unmatched(Reason.THIRD_PARTY_MEMO, 1),
    ),
    Case(
        name="third party, exact price, which is a unique amount of another address",
        paid=of(10, BY_THIRD),
        jobs=[job(), job(2, price=Units(8), unique_amount=Units(10), pay_to=OTHER_SHOP)],
        then=MATCHED,
    ),
    Case(
        name="the payer's memo, with the unique amount of another job",
        paid=of(13, BY_MEMO),
        jobs=[job(), job(2, unique_amount=Units(13))],
        then=MATCHED,
    ),
]
