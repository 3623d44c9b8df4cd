"""What the unit tests share: recorded Base data, and short ways to make jobs and payments."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

from oncepaid.domain.chain import Address
from oncepaid.domain.jobs import JobId, JobTerms
from oncepaid.domain.matching import MatchingRules
from oncepaid.domain.memo import Memo, Reference
from oncepaid.domain.money import Units
from oncepaid.domain.payments import Evidence, MemoSource, PaymentId, SeenPayment, Signer

FIXTURES: Final = Path(__file__).parents[1] / "fixtures"

USDC: Final = Address("0x833589fcd6edb6e08f4c7c32d4f71b54bda02913")
PAYER: Final = Address("0x" + "a1" * 20)
STRANGER: Final = Address("0x" + "b2" * 20)
SHOP: Final = Address("0x" + "c3" * 20)
OTHER_SHOP: Final = Address("0x" + "d4" * 20)

NOON: Final = datetime(2026, 11, 23, 12, tzinfo=UTC)
GRACE: Final = timedelta(hours=1)
RULES: Final = MatchingRules(
    recipients=frozenset({SHOP, OTHER_SHOP}), late_grace=GRACE, amount_fallback=True
)


@cache
def recorded_transactions() -> tuple[tuple[str, dict[str, Any]], ...]:
    """Return `(shape, transaction)` of every recorded transaction without a receipt."""
    lines = (FIXTURES / "transactions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return tuple((row["shape"], row["tx"]) for row in rows)


@cache
def recorded_receipts() -> dict[str, dict[str, Any]]:
    """Return the content of every `receipt-0x*.json` by its name: `tx` and `receipt`."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(FIXTURES.glob("receipt-0x*.json"))
    }


@cache
def sepolia_receipt() -> dict[str, Any]:
    """Return the receipt in which `AuthorizationUsed` stands before its `Transfer`."""
    path = FIXTURES / "receipt-sepolia-authorization-used.json"
    receipt: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["receipt"]
    return receipt


def memo(number: int) -> Memo:
    return Memo(number.to_bytes(16))


def job(number: int = 1, **changed: Any) -> JobTerms:
    """Return a pending job with memo `number`: 10 units, by noon, nothing paid yet."""
    terms = JobTerms(
        id=JobId(number),
        awaits_payment=True,
        memo=memo(number),
        price=Units(10),
        pay_to=SHOP,
        unique_amount=None,
        expires_at=NOON,
        covered=Units(0),
        partial=Units(0),
        parts=0,
        references=frozenset(),
        amount_after_block=-1,
    )
    return replace(terms, **changed)


def evidence(number: int, signer: Signer = Signer.PAYER, **changed: Any) -> Evidence:
    piece = Evidence(memo=memo(number), source=MemoSource.CALLDATA, signer=signer)
    return replace(piece, **changed)


def reference(number: int, issuer: Address = PAYER) -> Reference:
    """Return what a host binds: a nonce of the payer that is no envelope."""
    return Reference(issuer=issuer, value=number.to_bytes(32))


def referring(
    number: int,
    signer: Signer = Signer.PAYER,
    *,
    source: MemoSource = MemoSource.AUTHORIZATION,
    issuer: Address = PAYER,
) -> Evidence:
    """Return the evidence of a transfer with such a nonce."""
    return Evidence(memo=None, source=source, signer=signer, reference=reference(number, issuer))


def payment(number: int, units: int, *pieces: Evidence, **changed: Any) -> SeenPayment:
    """Return a payment to the shop at noon, alone in its transaction."""
    seen = SeenPayment(
        id=PaymentId(number),
        sender=PAYER,
        recipient=SHOP,
        units=Units(units),
        block_time=NOON,
        evidence=pieces,
        transfers_in_tx=1,
        block_number=0,
    )
    return replace(seen, **changed)
