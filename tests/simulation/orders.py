"""Random jobs, and random payments for them."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import cache
from itertools import count
from random import Random
from typing import Final

from oncepaid.domain.memo import Memo
from tests.fakes.blocks import (
    Log,
    Tx,
    authorization_log,
    call_through,
    nonce_of,
    pay,
    pay_from,
    transfer_log,
)
from tests.simulation.chain import OTHER_SHOP, PAYERS, SHOP, SPENDER, Payment, Transfer
from tests.simulation.reference import Order

PRICES: Final = (1_000, 1_000, 1_000, 2_500, 6_000)
UNKNOWN: Final = Memo(b"\xff" * 16)


@cache
def memo_of(number: int) -> Memo:
    return Memo(number.to_bytes(16))


class Customers:
    """Orders jobs and pays them, more or less as asked."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._hashes = count(1)
        self.orders: dict[object, Order] = {}
        """By memo and by unique amount."""

    @property
    def all(self) -> list[Order]:
        return [order for key, order in self.orders.items() if key == order.memo]

    def order(self, now: datetime, *, is_late: bool) -> Order:
        """Make up a job; its host may tell of it later."""
        number = len(self.all) + 1
        price = self._random.choice(PRICES)
        lifetime = self._random.choice((15, 40, 4000, 4000, 4000))
        order = Order(
            id=number,
            memo=memo_of(number),
            price=price,
            unique_amount=price + number,
            pay_to=SHOP if self._random.random() < 0.3 else None,
            expires_at=now + timedelta(seconds=lifetime),
            is_late=is_late,
        )
        self.orders[order.memo] = self.orders[order.unique_amount] = order
        return order

    def payment(self) -> Payment:
        """Make up a payment, mostly for one of the jobs."""
        order = self._random.choice(self.all) if self.all else None
        if order is None or self._random.random() < 0.08:
            return self._stray()
        (how,) = self._random.choices(list(_WAYS), weights=[w for _, w in _WAYS.values()])
        tx, transfers = _WAYS[how][0](self._random, order)
        return self._mined(tx, *transfers)

    def _stray(self) -> Payment:
        sender = self._random.choice((*PAYERS, OTHER_SHOP))
        memo = self._random.choice((None, UNKNOWN))
        units = self._random.randrange(1, 900)
        memos = frozenset() if memo is None else frozenset({memo})
        meant = Transfer(sender=sender, recipient=SHOP, units=units, memos=memos)
        return self._mined(pay(sender, SHOP, units, memo=memo), meant)

    def _mined(self, tx: Tx, *transfers: Transfer) -> Payment:
        return Payment(hash=f"0x{next(self._hashes):064x}", tx=tx, transfers=transfers)


_Way = Callable[[Random, Order], tuple[Tx, tuple[Transfer, ...]]]


def _direct(units_of: Callable[[Random, int], int]) -> _Way:
    def way(random: Random, order: Order) -> tuple[Tx, tuple[Transfer, ...]]:
        payer, units = random.choice(PAYERS), units_of(random, order.price)
        memos = frozenset({order.memo})
        meant = Transfer(sender=payer, recipient=SHOP, units=units, memos=memos)
        return pay(payer, SHOP, units, memo=order.memo), (meant,)

    return way


def _unique_amount(random: Random, order: Order) -> tuple[Tx, tuple[Transfer, ...]]:
    payer = random.choice(PAYERS)
    meant = Transfer(sender=payer, recipient=SHOP, units=order.unique_amount)
    return pay(payer, SHOP, order.unique_amount), (meant,)


def _elsewhere(random: Random, order: Order) -> tuple[Tx, tuple[Transfer, ...]]:
    payer = random.choice(PAYERS)
    meant = Transfer(
        sender=payer, recipient=OTHER_SHOP, units=order.price, memos=frozenset({order.memo})
    )
    return pay(payer, OTHER_SHOP, order.price, memo=order.memo), (meant,)


def _by_spender(random: Random, order: Order) -> tuple[Tx, tuple[Transfer, ...]]:
    payer = random.choice(PAYERS)
    units = order.price + random.choice((0, 0, -1, 7777))
    meant = Transfer(
        sender=payer,
        recipient=SHOP,
        units=units,
        memos=frozenset({order.memo}),
        is_signed_by_payer=False,
    )
    return pay_from(SPENDER, payer, SHOP, units, memo=order.memo), (meant,)


def _authorized(random: Random, order: Order) -> tuple[Tx, tuple[Transfer, ...]]:
    """Through a relayer; sometimes together with another transfer that has no memo."""
    payer = PAYERS[0]
    logs: list[Log] = [
        authorization_log(payer, nonce_of(order.memo)),
        transfer_log(payer, SHOP, order.price),
    ]
    meant = [
        Transfer(sender=payer, recipient=SHOP, units=order.price, memos=frozenset({order.memo}))
    ]
    if random.random() < 0.3:
        logs.append(transfer_log(PAYERS[1], SHOP, 5))
        meant.append(Transfer(sender=PAYERS[1], recipient=SHOP, units=5))
    return call_through(SPENDER, *logs), tuple(meant)


_WAYS: Final[Mapping[str, tuple[_Way, int]]] = {
    "exact": (_direct(lambda _, price: price), 40),
    "half": (_direct(lambda _, price: price // 2), 14),
    "part": (_direct(lambda random, price: random.randrange(1, price)), 8),
    "over": (_direct(lambda random, price: price + random.randrange(1, price)), 6),
    "unique amount": (_unique_amount, 10),
    "elsewhere": (_elsewhere, 4),
    "by spender": (_by_spender, 6),
    "authorized": (_authorized, 8),
}
