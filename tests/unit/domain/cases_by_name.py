"""References that were bound, an operator's word, and memos that may mean several transfers."""

from oncepaid.domain.matching import MOST_PARTIALS
from oncepaid.domain.money import Units
from oncepaid.domain.payments import MemoSource, Reason, Signer
from tests.unit.domain.cases import BY_MEMO, BY_THIRD, MATCHED, SECOND, THIRD, Case, of, unmatched
from tests.unit.samples import (
    GRACE,
    NOON,
    OTHER_SHOP,
    PAYER,
    SHOP,
    STRANGER,
    evidence,
    job,
    reference,
    referring,
)

BOUND = job(references=frozenset({reference(5)}))
OTHER_BOUND = job(2, references=frozenset({reference(5)}))
BY_REFERENCE = referring(5)

REFERENCE_CASES = [
    Case(name="bound nonce", paid=of(10, BY_REFERENCE), jobs=[BOUND], then=MATCHED),
    Case(name="bound nonce, too much", paid=of(15, BY_REFERENCE), jobs=[BOUND], then=MATCHED),
    Case(
        name="bound nonce, too little",
        paid=of(9, BY_REFERENCE),
        jobs=[BOUND],
        then=unmatched(Reason.UNDERPAID, 1),
    ),
    Case(
        name="bound nonce, one second late",
        paid=of(10, BY_REFERENCE, block_time=NOON + GRACE + SECOND),
        jobs=[BOUND],
        then=unmatched(Reason.LATE, 1),
    ),
    Case(
        name="bound nonce, job paid already",
        paid=of(10, BY_REFERENCE),
        jobs=[job(references=frozenset({reference(5)}), covered=Units(10))],
        then=unmatched(Reason.DUPLICATE, 1),
    ),
    Case(
        name="bound nonce, at another address",
        paid=of(10, BY_REFERENCE, recipient=OTHER_SHOP),
        jobs=[BOUND],
        then=unmatched(Reason.WRONG_RECIPIENT, 1),
    ),
    Case(
        name="nonce that nobody bound",
        paid=of(10, BY_REFERENCE),
        then=unmatched(Reason.NO_MEMO),
    ),
    Case(
        name="nonce that nobody bound, and a unique amount",
        paid=of(13, BY_REFERENCE),
        jobs=[job(unique_amount=Units(13))],
        then=MATCHED,
    ),
    Case(
        name="the same nonce of another payer",
        paid=of(10, referring(5, issuer=STRANGER), sender=STRANGER),
        jobs=[BOUND],
        then=unmatched(Reason.NO_MEMO),
    ),
    Case(
        name="the same value of a contract",
        paid=of(10, referring(5, source=MemoSource.CONTRACT, issuer=OTHER_SHOP)),
        jobs=[BOUND],
        then=unmatched(Reason.NO_MEMO),
    ),
    Case(
        name="bound nonce, another job's unique amount",
        paid=of(13, BY_REFERENCE),
        jobs=[BOUND, job(2, unique_amount=Units(13))],
        then=MATCHED,
    ),
    Case(
        name="nonce and memo of one job",
        paid=of(10, BY_REFERENCE, BY_MEMO),
        jobs=[BOUND],
        then=MATCHED,
    ),
    Case(
        name="nonce of one job, the payer's memo of another",
        paid=of(10, BY_REFERENCE, BY_MEMO),
        jobs=[job(), OTHER_BOUND],
        then=unmatched(Reason.MEMO_CONFLICT),
    ),
    Case(
        name="nonce of one job, a relayer's memo of another",
        paid=of(10, referring(5), evidence(2, THIRD)),
        jobs=[BOUND, job(2)],
        then=MATCHED,
    ),
    Case(
        name="nonce that nobody bound, a relayer's memo with the exact price",
        paid=of(10, referring(5), BY_THIRD),
        then=MATCHED,
    ),
    Case(
        name="two nonces of one job",
        paid=of(10, BY_REFERENCE, referring(6)),
        jobs=[job(references=frozenset({reference(5), reference(6)}))],
        then=MATCHED,
    ),
    Case(
        name="a contract's id that somebody else signed, not exact",
        paid=of(11, referring(5, THIRD, source=MemoSource.CONTRACT)),
        jobs=[BOUND],
        then=unmatched(Reason.THIRD_PARTY_MEMO, 1),
    ),
]

SHARED_CASES = [
    Case(
        name="one tail for two transfers",
        paid=of(10, evidence(1, company=2)),
        then=unmatched(Reason.SHARED_MEMO, 1),
    ),
    Case(
        name="one tail for two transfers, this one with the unique amount",
        paid=of(13, evidence(1, company=2)),
        jobs=[job(unique_amount=Units(13))],
        then=MATCHED,
    ),
    Case(
        name="one tail for two transfers, this one with the unique amount of another job",
        paid=of(13, evidence(1, company=2)),
        jobs=[job(), job(2, unique_amount=Units(13))],
        then=unmatched(Reason.SHARED_MEMO, 1),
    ),
    Case(
        name="one tail for two transfers, this one with the unique amount of both",
        paid=of(13, evidence(1, company=2)),
        jobs=[job(unique_amount=Units(13)), job(2, unique_amount=Units(13))],
        then=unmatched(Reason.SHARED_MEMO, 1),
    ),
    Case(
        name="a tail for two, and one of its own for the same job",
        paid=of(10, evidence(1, company=2), BY_MEMO),
        then=MATCHED,
    ),
    Case(
        name="a third party's tail for two calls",
        paid=of(10, evidence(1, THIRD, company=2)),
        then=unmatched(Reason.THIRD_PARTY_MEMO, 1),
    ),
]

OPERATORS_WORD = evidence(1, Signer.OPERATOR, source=MemoSource.OPERATOR)
OPERATOR_CASES = [
    Case(name="assigned", paid=of(10, OPERATORS_WORD), then=MATCHED),
    Case(
        name="assigned, though late",
        paid=of(10, OPERATORS_WORD, block_time=NOON + 9 * GRACE),
        then=MATCHED,
    ),
    Case(
        name="assigned, though from our own address",
        paid=of(10, OPERATORS_WORD, sender=SHOP),
        then=MATCHED,
    ),
    Case(
        name="assigned, though paid elsewhere",
        paid=of(10, OPERATORS_WORD, recipient=OTHER_SHOP),
        then=MATCHED,
    ),
    Case(
        name="assigned, though the payer named another",
        paid=of(10, evidence(2), OPERATORS_WORD),
        jobs=[job(), job(2)],
        then=MATCHED,
    ),
    Case(
        name="assigned once more: the last word counts",
        paid=of(10, evidence(2, Signer.OPERATOR), OPERATORS_WORD),
        jobs=[job(), job(2)],
        then=MATCHED,
    ),
    Case(
        name="assigned to a job that was paid meanwhile",
        paid=of(10, OPERATORS_WORD),
        jobs=[job(covered=Units(10))],
        then=unmatched(Reason.DUPLICATE, 1),
    ),
    Case(
        name="assigned to a job without a price",
        paid=of(10, OPERATORS_WORD),
        jobs=[job(price=None)],
        then=unmatched(Reason.JOB_NOT_PAYABLE, 1),
    ),
    Case(
        name="assigned to a job that is gone",
        paid=of(10, OPERATORS_WORD),
        jobs=[],
        then=unmatched(Reason.UNKNOWN_MEMO),
    ),
    Case(
        name="assigned, and too little",
        paid=of(1, OPERATORS_WORD),
        jobs=[job(price=Units(1000))],
        then=unmatched(Reason.UNDERPAID, 1),
    ),
]

DUST_CASES = [
    Case(
        name="a twentieth is kept",
        paid=of(50, BY_MEMO),
        jobs=[job(price=Units(1000))],
        then=unmatched(Reason.UNDERPAID, 1),
    ),
    Case(
        name="less than a twentieth, among the first parts",
        paid=of(1, BY_MEMO),
        jobs=[job(price=Units(1000), parts=MOST_PARTIALS - 1)],
        then=unmatched(Reason.UNDERPAID, 1),
    ),
    Case(
        name="a twentieth after many parts is kept",
        paid=of(50, BY_MEMO),
        jobs=[job(price=Units(1000), parts=MOST_PARTIALS)],
        then=unmatched(Reason.UNDERPAID, 1),
    ),
    Case(
        name="less than a twentieth after many parts is dust",
        paid=of(49, BY_MEMO),
        jobs=[job(price=Units(1000), parts=MOST_PARTIALS)],
        then=unmatched(Reason.DUST, 1),
    ),
    Case(
        name="less than a twentieth, and the rest of the price",
        paid=of(49, BY_MEMO),
        jobs=[job(price=Units(1000), partial=Units(951), parts=MOST_PARTIALS)],
        then=MATCHED,
    ),
    Case(
        name="dust with a bound nonce, of another sender than the payer of the rest",
        paid=of(1, referring(5, issuer=PAYER)),
        jobs=[job(price=Units(1000), parts=MOST_PARTIALS, references=frozenset({reference(5)}))],
        then=unmatched(Reason.DUST, 1),
    ),
]
