"""How a job can be paid: what its customer needs, for every kind of wallet. Pure.

The view `job_payment_terms` tells host applications the same; a test holds the two together.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from oncepaid.domain.chain import Address
from oncepaid.domain.memo import NONCE_BYTES, Memo, envelope_of
from oncepaid.domain.money import MAX_UNITS, Units, format_usdc

_TRANSFER: Final = "a9059cbb"
"""Selector of transfer(address,uint256)."""
_DOMAIN_VERSION: Final = "2"
"""Of USDC's EIP-712 domain: FiatTokenV2_2 on every chain that has EIP-3009."""
_DOMAIN_NAME: Final = "USD Coin"
_OTHER_DOMAIN_NAMES: Final = {84532: "USDC"}
"""By chain id: Circle's USDC on Base Sepolia answers `name()` otherwise than on Base."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_AUTHORIZATION_TYPES: Final = {
    "EIP712Domain": (
        ("name", "string"),
        ("version", "string"),
        ("chainId", "uint256"),
        ("verifyingContract", "address"),
    ),
    "TransferWithAuthorization": (
        ("from", "address"),
        ("to", "address"),
        ("value", "uint256"),
        ("validAfter", "uint256"),
        ("validBefore", "uint256"),
        ("nonce", "bytes32"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PayingTerms:
    """A job as its payer sees it.

    `unique_amount` is None where it has none. `expires_at` is None where it never expires.
    """

    chain_id: int
    token: Address
    recipient: Address
    price: Units
    memo: Memo
    unique_amount: Units | None
    expires_at: datetime | None


def instructions(terms: PayingTerms) -> dict[str, Any]:
    """Return the ways to pay as JSON-like values, `expires_at` as a time; docs/paying.md explains.

    `calldata` is for a transaction to the token, memo included; `data_suffix` is the memo alone,
    for software that puts the call together itself. `eth_send_transaction`, `wallet_send_calls` and
    `typed_data` are parameters for a wallet's methods of those names (the last for
    `eth_signTypedData_v4`, with null where the payer's address belongs). `eip681_uri` carries the
    unique amount for wallets that can carry nothing else, and is None where there is none.
    """
    envelope = "0x" + envelope_of(terms.memo).hex()
    calldata = transfer_calldata(terms.recipient, terms.price) + envelope[2:]
    nonce = envelope.ljust(2 + 2 * NONCE_BYTES, "0")
    amount = terms.unique_amount
    return {
        "chain_id": terms.chain_id,
        "token": terms.token,
        "recipient": terms.recipient,
        "amount_usdc": format_usdc(terms.price),
        "amount_units": terms.price,
        "memo": "0x" + terms.memo.hex(),
        "memo_envelope": envelope,
        "data_suffix": envelope,
        "calldata": calldata,
        "authorization_nonce": nonce,
        "unique_amount_units": amount,
        "unique_amount_usdc": None if amount is None else format_usdc(amount),
        "eip681_uri": None if amount is None else _payment_uri(terms, amount),
        "eth_send_transaction": {
            "chainId": hex(terms.chain_id),
            "to": terms.token,
            "data": calldata,
            "value": "0x0",
        },
        "wallet_send_calls": _send_calls(terms, calldata, envelope),
        "typed_data": _authorization(terms, nonce),
        "expires_at": terms.expires_at,
    }


def transfer_calldata(recipient: Address, units: Units) -> str:
    """Return the hex calldata of `transfer(recipient, units)`."""
    return f"0x{_TRANSFER}{recipient[2:]:0>64}{units:064x}"


def token_name(chain_id: int) -> str:
    """Return the name in the EIP-712 domain of Circle's USDC on a chain."""
    return _OTHER_DOMAIN_NAMES.get(chain_id, _DOMAIN_NAME)


def _payment_uri(terms: PayingTerms, amount: Units) -> str:
    """EIP-681. Lower-case addresses: wallets take a checksummed one and one without a checksum."""
    return (
        f"ethereum:{terms.token}@{terms.chain_id}/transfer"
        f"?address={terms.recipient}&uint256={amount}"
    )


def _send_calls(terms: PayingTerms, calldata: str, envelope: str) -> dict[str, Any]:
    """The request of ERC-5792.

    The call's own data has the memo already; a wallet that can also appends it to what it wraps
    around the call. That is optional: for a wallet that cannot it is no reason to refuse.
    """
    return {
        "version": "2.0.0",
        "chainId": hex(terms.chain_id),
        "atomicRequired": False,
        "calls": [{"to": terms.token, "data": calldata, "value": "0x0"}],
        "capabilities": {"dataSuffix": {"value": envelope, "optional": True}},
    }


def _authorization(terms: PayingTerms, nonce: str) -> dict[str, Any]:
    """A payload of EIP-712 for EIP-3009, whose signature ends with the job.

    Numbers that may be larger than JavaScript's are text.
    """
    return {
        "types": {
            struct: [{"name": name, "type": kind} for name, kind in fields]
            for struct, fields in _AUTHORIZATION_TYPES.items()
        },
        "primaryType": "TransferWithAuthorization",
        "domain": {
            "name": token_name(terms.chain_id),
            "version": _DOMAIN_VERSION,
            "chainId": terms.chain_id,
            "verifyingContract": terms.token,
        },
        "message": {
            "from": None,
            "to": terms.recipient,
            "value": str(terms.price),
            "validAfter": "0",
            "validBefore": str(_valid_before(terms.expires_at)),
            "nonce": nonce,
        },
    }


def _valid_before(expires_at: datetime | None) -> int:
    """Return the Unix second in which an authorization ends."""
    if expires_at is None:
        return MAX_UNITS
    return max((expires_at - _EPOCH) // timedelta(seconds=1), 0)
