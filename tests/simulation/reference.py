"""The reference ledger: what must be true of payments and jobs, from the final chain alone.

It goes by what the payers meant, decodes nothing and knows no order of events. Where history may
rightly decide (which of two full payments counted; whether a memo was unknown when it was read) it
allows each outcome that the rules allow, and no other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from oncepaid.domain.chain import Address
from oncepaid.domain.memo import Memo
from tests.simulation.chain import OURS, Transfer

GRACE = timedelta(seconds=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A job as its host ordered it. `is_late`: it came when its payments may have been read."""

    id: int
    memo: Memo
    price: int
    unique_amount: int
    pay_to: Address | None
    expires_at: datetime
    is_late: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What a transfer may end as. `order` None: it names none. `counts`: it may pay the order."""

    order: Order | None
    reasons: frozenset[str]
    counts: bool = False


def meaning_of(
    transfer: Transfer, company: int, at: datetime, orders: Mapping[object, Order]
) -> Meaning:
    """Say what one canonical transfer means; `orders` are found by memo and by unique amount."""
    if transfer.sender in OURS:
        return Meaning(order=None, reasons=frozenset({"own_address"}))
    if len(transfer.memos) > 1:
        return Meaning(order=None, reasons=frozenset({"memo_conflict"}))
    memo = next(iter(transfer.memos), None)
    order = orders.get(transfer.units if memo is None else memo)
    nobody = "no_memo" if memo is None else "unknown_memo"
    fits = order is not None and order.pay_to in (None, transfer.recipient)
    if order is None or (memo is None and not fits):
        return Meaning(order=None, reasons=frozenset({nobody}))
    unread = {nobody} if order.is_late else set()
    if not fits:
        return Meaning(order=order, reasons=frozenset({"wrong_recipient", *unread}))
    if at - order.expires_at > GRACE:
        return Meaning(order=order, reasons=frozenset({"late", "duplicate", *unread}))
    is_exact = transfer.units in (order.price, order.unique_amount) and company == 1
    if not transfer.is_signed_by_payer and not is_exact:
        refused = {"third_party_memo", "duplicate", "late", *unread}
        return Meaning(order=order, reasons=frozenset(refused))
    part = {"underpaid"} if transfer.units < order.price else set()
    return Meaning(order=order, reasons=frozenset({"duplicate", *part, *unread}), counts=True)


def must_be_paid(order: Order, counting: Sequence[int]) -> bool:
    """Say whether payments that count cover the price, however they came."""
    return sum(counting) >= order.price


def may_be_credited(price: int, credited: Sequence[int]) -> bool:
    """Say whether these payments may together have been taken: enough, and none beyond need."""
    return sum(credited) >= price > sum(credited) - max(credited)
