"""How a job can be paid: what its customer needs, for every kind of wallet. Pure."""

from dataclasses import dataclass
from typing import Any, Final

from oncepaid.domain.chain import Address
from oncepaid.domain.memo import NONCE_BYTES, Memo, envelope_of
from oncepaid.domain.money import Units, format_usdc

_TRANSFER: Final = "a9059cbb"
"""Selector of transfer(address,uint256)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PayingTerms:
    """A job as its payer sees it. `unique_amount` is None where none was free."""

    chain_id: int
    token: Address
    recipient: Address
    price: Units
    memo: Memo
    unique_amount: Units | None


def instructions(terms: PayingTerms) -> dict[str, Any]:
    """Return the ways to pay as JSON-like values.

    `calldata` is for a transaction to the token; `authorization_nonce` for a gasless
    `transferWithAuthorization`; `eip681_uri` carries the unique amount for wallets that can carry
    nothing else, and is None where there is none.
    """
    envelope = envelope_of(terms.memo)
    uri = None
    if terms.unique_amount is not None:
        uri = (
            f"ethereum:{terms.token}@{terms.chain_id}/transfer"
            f"?address={terms.recipient}&uint256={terms.unique_amount}"
        )
    return {
        "chain_id": terms.chain_id,
        "token": terms.token,
        "recipient": terms.recipient,
        "amount_usdc": format_usdc(terms.price),
        "amount_units": terms.price,
        "memo": "0x" + terms.memo.hex(),
        "memo_envelope": "0x" + envelope.hex(),
        "calldata": transfer_calldata(terms.recipient, terms.price) + envelope.hex(),
        "authorization_nonce": "0x" + envelope.ljust(NONCE_BYTES, b"\0").hex(),
        "unique_amount_units": terms.unique_amount,
        "unique_amount_usdc": None
        if terms.unique_amount is None
        else format_usdc(terms.unique_amount),
        "eip681_uri": uri,
    }


def transfer_calldata(recipient: Address, units: Units) -> str:
    """Return the hex calldata of `transfer(recipient, units)`."""
    return f"0x{_TRANSFER}{recipient[2:]:0>64}{units:064x}"
