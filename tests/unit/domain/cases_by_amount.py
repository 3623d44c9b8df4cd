"""A payment that names no job, and one of which the sender decides."""

from dataclasses import replace

from oncepaid.domain.chain import ZERO_ADDRESS
from oncepaid.domain.money import Units
from oncepaid.domain.payments import Reason
from tests.unit.domain.cases import (
    AMOUNT_JOB,
    BY_MEMO,
    EVERY_RECIPIENT,
    MATCHED,
    NO_FALLBACK,
    SECOND,
    Case,
    of,
    unmatched,
)
from tests.unit.samples import GRACE, NOON, OTHER_SHOP, SHOP, STRANGER, job

AMOUNT_CASES = [
    Case(name="unique amount", paid=of(13), jobs=[AMOUNT_JOB], then=MATCHED),
    Case(
        name="unique amount, with company",
        paid=of(13, transfers_in_tx=2),
        jobs=[AMOUNT_JOB],
        then=MATCHED,
    ),
    Case(name="one unit beside it", paid=of(12), jobs=[AMOUNT_JOB], then=unmatched(Reason.NO_MEMO)),
    Case(name="one unit above it", paid=of(14), jobs=[AMOUNT_JOB], then=unmatched(Reason.NO_MEMO)),
    Case(name="bare price", paid=of(10), jobs=[AMOUNT_JOB], then=unmatched(Reason.NO_MEMO)),
    Case(name="nothing that it could pay", paid=of(10), jobs=[], then=unmatched(Reason.NO_MEMO)),
    Case(
        name="fallback is off",
        paid=of(13),
        jobs=[AMOUNT_JOB],
        rules=NO_FALLBACK,
        then=unmatched(Reason.NO_MEMO),
    ),
    Case(
        name="minted, without a memo",
        paid=of(13, sender=ZERO_ADDRESS),
        jobs=[AMOUNT_JOB],
        then=unmatched(Reason.NO_MEMO),
    ),
    Case(
        name="amount of another address",
        paid=of(13, recipient=OTHER_SHOP),
        jobs=[AMOUNT_JOB],
        then=unmatched(Reason.NO_MEMO),
    ),
    Case(
        name="two jobs wait for it",
        paid=of(13),
        jobs=[AMOUNT_JOB, job(2, unique_amount=Units(13))],
        then=unmatched(Reason.AMBIGUOUS_AMOUNT),
    ),
    Case(
        name="two jobs, but at different addresses",
        paid=of(13),
        jobs=[AMOUNT_JOB, job(2, unique_amount=Units(13), pay_to=OTHER_SHOP)],
        then=MATCHED,
    ),
    Case(
        name="unique amount, which is the price of another job",
        paid=of(13, is_a_price=True),
        jobs=[AMOUNT_JOB],
        then=unmatched(Reason.AMBIGUOUS_AMOUNT),
    ),
    Case(
        name="amount of a paid job, which is the price of another",
        paid=of(13, is_a_price=True),
        jobs=[replace(AMOUNT_JOB, covered=Units(13))],
        then=unmatched(Reason.AMBIGUOUS_AMOUNT),
    ),
    Case(
        name="unique amount, which is the price of another job, with the payer's memo",
        paid=of(13, BY_MEMO, is_a_price=True),
        jobs=[AMOUNT_JOB],
        then=MATCHED,
    ),
    Case(
        name="amount of a job at no address, where every recipient is observed",
        paid=of(13, recipient=STRANGER),
        jobs=[replace(AMOUNT_JOB, pay_to=None)],
        rules=EVERY_RECIPIENT,
        then=unmatched(Reason.NO_MEMO),
    ),
    Case(
        name="amount of a job at its own address, where every recipient is observed",
        paid=of(13),
        jobs=[AMOUNT_JOB],
        rules=EVERY_RECIPIENT,
        then=MATCHED,
    ),
    Case(
        name="amount on the edge of the grace",
        paid=of(13, block_time=NOON + GRACE),
        jobs=[AMOUNT_JOB],
        then=MATCHED,
    ),
    Case(
        name="amount, one second late",
        paid=of(13, block_time=NOON + GRACE + SECOND),
        jobs=[AMOUNT_JOB],
        then=unmatched(Reason.LATE, 1),
    ),
    Case(
        name="amount of a paid job",
        paid=of(13),
        jobs=[replace(AMOUNT_JOB, covered=Units(13))],
        then=unmatched(Reason.DUPLICATE, 1),
    ),
    Case(
        name="amount of a closed job",
        paid=of(13),
        jobs=[replace(AMOUNT_JOB, awaits_payment=False)],
        then=unmatched(Reason.DUPLICATE, 1),
    ),
    Case(
        name="amount of a job without a price",
        paid=of(13),
        jobs=[replace(AMOUNT_JOB, price=None)],
        then=unmatched(Reason.JOB_NOT_PAYABLE, 1),
    ),
]

SENDER_CASES = [
    Case(
        name="from our own address",
        paid=of(10, BY_MEMO, sender=OTHER_SHOP),
        then=unmatched(Reason.OWN_ADDRESS),
    ),
    Case(
        name="to ourselves",
        paid=of(10, BY_MEMO, sender=SHOP),
        then=unmatched(Reason.OWN_ADDRESS),
    ),
    Case(
        name="to oneself, where every recipient is observed",
        paid=of(10, BY_MEMO, sender=STRANGER, recipient=STRANGER),
        jobs=[job(pay_to=None)],
        rules=EVERY_RECIPIENT,
        then=unmatched(Reason.OWN_ADDRESS),
    ),
    Case(
        name="from another observed address",
        paid=of(10, BY_MEMO, sender=OTHER_SHOP),
        rules=EVERY_RECIPIENT,
        then=MATCHED,
    ),
]

SHORT_CASES = [
    Case(
        name="an exchange took a tenth",
        paid=of(90, nearest_above=Units(100)),
        then=unmatched(Reason.UNDERPAID),
    ),
    Case(
        name="more than a tenth is missing",
        paid=of(89, nearest_above=Units(100)),
        then=unmatched(Reason.NO_MEMO),
    ),
    Case(
        name="the price without its millionths",
        paid=of(100, nearest_above=Units(100)),
        then=unmatched(Reason.NO_MEMO),
    ),
    Case(
        name="between the price and the unique amount",
        paid=of(101, nearest_above=Units(100)),
        then=unmatched(Reason.NO_MEMO),
    ),
    Case(
        name="short of one amount, and exactly another",
        paid=of(13, nearest_above=Units(14)),
        jobs=[AMOUNT_JOB],
        then=MATCHED,
    ),
    Case(
        name="short, but the fallback is off",
        paid=of(99, nearest_above=Units(100)),
        rules=NO_FALLBACK,
        then=unmatched(Reason.NO_MEMO),
    ),
    Case(
        name="short, but minted",
        paid=of(99, sender=ZERO_ADDRESS, nearest_above=Units(100)),
        then=unmatched(Reason.NO_MEMO),
    ),
]

OLDER_CASES = [
    Case(
        name="paid in a block that was final when the amount was drawn",
        paid=of(13, block_number=7),
        jobs=[replace(AMOUNT_JOB, amount_after_block=7)],
        then=unmatched(Reason.NO_MEMO),
    ),
    Case(
        name="paid in the block after it",
        paid=of(13, block_number=8),
        jobs=[replace(AMOUNT_JOB, amount_after_block=7)],
        then=MATCHED,
    ),
    Case(
        name="a memo is younger than its job whatever block it is in",
        paid=of(10, BY_MEMO, block_number=7),
        jobs=[job(amount_after_block=7)],
        then=MATCHED,
    ),
    Case(
        name="two jobs of one amount, one of them too young",
        paid=of(13, block_number=8),
        jobs=[AMOUNT_JOB, job(2, unique_amount=Units(13), amount_after_block=8)],
        then=MATCHED,
    ),
]
