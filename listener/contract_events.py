"""Events of contracts that name what a payment is for, as facts. What does not parse gives None.

Read in RequestNetwork/requestNetwork, coinbase/commerce-onchain-payment-protocol and
base/commerce-payments. Who emitted an event is the caller's to ask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from eth_hash.auto import keccak

from oncepaid.domain.chain import ZERO_ADDRESS, Address, EventLog, address_in

MEMO: Final = bytes.fromhex("6989f5818dcfd11f8cd53b27c94cec33dae1589735f03e639cba54553a1825e8")
"""Memo(address indexed caller, bytes32 indexed memo), of Base's B20 tokens."""
TRANSFER_WITH_REFERENCE_AND_FEE: Final = bytes.fromhex(
    "9f16cbcc523c67a60c450e5ffe4f3b7b6dbe772e7abcadb2686ce029a9a0a2b6"
)
"""TransferWithReferenceAndFee(address tokenAddress, address to, uint256 amount, bytes indexed
paymentReference, uint256 feeAmount, address feeAddress), Request Network's ERC20FeeProxy."""
TRANSFER_WITH_REFERENCE: Final = bytes.fromhex(
    "4d4e9dbb7207a31cc25529ccb52e52ddba30ded7734e32691d13da66df7f81da"
)
"""TransferWithReference(address tokenAddress, address to, uint256 amount, bytes indexed
paymentReference), its ERC20Proxy."""
TRANSFERRED: Final = bytes.fromhex(
    "b7ee4fafa10d16ee883a136a3dcc9179d8e6041ba71cc29c2b0bce4f7bdd6e86"
)
"""Transferred(address indexed operator, bytes16 id, address recipient, address sender, uint256
spentAmount, address spentCurrency), Coinbase Commerce's Transfers."""

PAYMENT_INFO_TYPEHASH: Final = bytes.fromhex(
    "ae68ac7ce30c86ece8196b61a7c486d8f0061f575037fbd34e7fe4e2820c6591"
)
"""PaymentInfo(address operator,address payer,address receiver,address token,uint120 maxAmount,
uint48 preApprovalExpiry,uint48 authorizationExpiry,uint48 refundExpiry,uint16 minFeeBps,uint16
maxFeeBps,address feeReceiver,uint256 salt), without the line breaks."""
PAYMENT_AUTHORIZED: Final = bytes.fromhex(
    "1c81fb2e3bab27f6bb09bee9a0dddf61600b7cbaf2c12683e4864e0cbdb9d284"
)
"""PaymentAuthorized(bytes32 indexed hash, PaymentInfo, uint256 amount, address tokenCollector)."""
PAYMENT_CHARGED: Final = bytes.fromhex(
    "943ae4341dd799d7aeedc501f616cd26b134639e0bc2ec059581ba3ebbf1e7d0"
)
"""PaymentCharged(bytes32 indexed hash, PaymentInfo, uint256 amount, address tokenCollector, uint16
feeBps, address feeReceiver), commerce-payments 1.0."""
PAYMENT_CHARGED_1_1: Final = bytes.fromhex(
    "137b0e73e4453f43c2e1ad2552980a0e0c7e988764619974ca26d37a7159940c"
)
"""The same with `uint256 feeAmount` for `uint16 feeBps`, commerce-payments 1.1."""
PAYMENT_CAPTURED: Final = bytes.fromhex(
    "e749f7bbd01b49bb05abf26ca492cb4dfdea6bedeada8a40fdccd478c73a74e2"
)
"""PaymentCaptured(bytes32 indexed hash, uint256 amount, uint16 feeBps, address feeReceiver)."""
PAYMENT_CAPTURED_1_1: Final = bytes.fromhex(
    "ac1e0db1957daedbc6944bcb4c8dc947ff8101d710671ac2ec26309f7f38d58e"
)
"""The same with `uint256 feeAmount` for `uint16 feeBps`."""
TOKEN_STORE_CREATED: Final = bytes.fromhex(
    "d8699a107a4fe8ea740423e52159bafb235249dce5c2df55fa265db06964d136"
)
"""TokenStoreCreated(address indexed operator, address tokenStore): in the midst of a payment."""

MAX_LOOKS: Final = 256
"""How many places in calldata are taken for a PaymentInfo."""
_WORD: Final = 32
_INFO_WORDS: Final = 12
_TOKEN_AT: Final = 3
_ALL_BPS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoEvent:
    """What a B20 token says behind a transfer: who called for it, and the 32 bytes he gave."""

    caller: Address
    memo: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A payment through Request Network's proxies. `hash` is that of the reference."""

    token: Address
    to: Address
    amount: int
    hash: bytes
    fee: int = 0
    fee_address: Address = ZERO_ADDRESS

    @property
    def has_fee_transfer(self) -> bool:
        return self.fee > 0 and self.fee_address != ZERO_ADDRESS


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A payment through Coinbase Commerce. `spent` of `currency` is what the sender gave."""

    operator: Address
    id: bytes
    recipient: Address
    sender: Address
    spent: int
    currency: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentInfo:
    """What is used of the terms that the payer of a commerce payment signed."""

    payer: Address
    receiver: Address
    token: Address
    salt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """An event of the escrow. `units` is what the receiver gets, 0 where nothing moves to him."""

    hash: bytes
    info: PaymentInfo | None
    units: int


def memo_event(event: EventLog) -> MemoEvent | None:
    """Read a B20 token's `Memo`."""
    if len(event.topics) != 3 or event.topics[0] != MEMO:
        return None
    caller = address_in(event.topics[1])
    return None if caller is None else MemoEvent(caller=caller, memo=event.topics[2])


def request_of(event: EventLog) -> Request | None:
    """Read an event of one of Request Network's proxies."""
    has_fee = event.topics[:1] == (TRANSFER_WITH_REFERENCE_AND_FEE,)
    words = _words(event.data, 5 if has_fee else 3)
    is_known = has_fee or event.topics[:1] == (TRANSFER_WITH_REFERENCE,)
    if not is_known or len(event.topics) != 2 or words is None:
        return None
    token, to = address_in(words[0]), address_in(words[1])
    fee_address = address_in(words[4]) if has_fee else ZERO_ADDRESS
    if token is None or to is None or fee_address is None:
        return None
    return Request(
        token=token,
        to=to,
        amount=int.from_bytes(words[2]),
        hash=event.topics[1],
        fee=int.from_bytes(words[3]) if has_fee else 0,
        fee_address=fee_address,
    )


def intent_of(event: EventLog) -> Intent | None:
    """Read Coinbase Commerce's `Transferred`."""
    words = _words(event.data, 5)
    is_known = len(event.topics) == 2 and event.topics[0] == TRANSFERRED
    if not is_known or words is None or any(words[0][16:]):
        return None
    operator, currency = address_in(event.topics[1]), address_in(words[4])
    recipient, sender = address_in(words[1]), address_in(words[2])
    if operator is None or currency is None or recipient is None or sender is None:
        return None
    return Intent(
        operator=operator,
        id=words[0][:16],
        recipient=recipient,
        sender=sender,
        spent=int.from_bytes(words[3]),
        currency=currency,
    )


def charge_of(event: EventLog) -> Charge | None:
    """Read an escrow's event, of either version, that takes money for the receiver or gives it."""
    if len(event.topics) != 2:
        return None
    topic, hash_ = event.topics
    if topic in (PAYMENT_CAPTURED, PAYMENT_CAPTURED_1_1):
        words = _words(event.data, 3)
        if words is None:
            return None
        units = _after_fee(words[0], words[1], in_bps=topic == PAYMENT_CAPTURED)
        return Charge(hash=hash_, info=None, units=units)
    if topic not in (PAYMENT_AUTHORIZED, PAYMENT_CHARGED, PAYMENT_CHARGED_1_1):
        return None
    is_charge = topic != PAYMENT_AUTHORIZED
    words = _words(event.data, _INFO_WORDS + (4 if is_charge else 2))
    info = None if words is None else _info_of(words[:_INFO_WORDS])
    if words is None or info is None:
        return None
    units = 0
    if is_charge:
        amount, fee = words[_INFO_WORDS], words[_INFO_WORDS + 2]
        units = _after_fee(amount, fee, in_bps=topic == PAYMENT_CHARGED)
    return Charge(hash=hash_, info=info, units=units)


def infos_in(
    calldata: bytes, *, token: Address, escrow: Address, chain_id: int
) -> dict[bytes, PaymentInfo]:
    """Return all that may be a PaymentInfo about `token` in calldata, by the hash that it has.

    A capture's event holds the hash alone, while its call holds all of it. Only what has the hash
    of an event is that event's: nobody can make another one that has.
    """
    found: dict[bytes, PaymentInfo] = {}
    wanted = _word(int(token, 16))
    place = _word(chain_id) + _word(int(escrow, 16))
    at = calldata.find(wanted)
    for _ in range(MAX_LOOKS):
        if at < 0:
            break
        first = at - _TOKEN_AT * _WORD
        words = _words(calldata[first : first + _INFO_WORDS * _WORD], _INFO_WORDS)
        info = None if first < 0 or words is None else _info_of(words)
        if words is not None and info is not None:
            terms = keccak(PAYMENT_INFO_TYPEHASH + b"".join(words))
            found[keccak(place + terms)] = info
        at = calldata.find(wanted, at + 1)
    return found


def _after_fee(amount: bytes, fee: bytes, *, in_bps: bool) -> int:
    units, share = int.from_bytes(amount), int.from_bytes(fee)
    return units - (units * share // _ALL_BPS if in_bps else share)


def _info_of(words: Sequence[bytes]) -> PaymentInfo | None:
    payer, receiver, token = (address_in(word) for word in words[1:4])
    if payer is None or receiver is None or token is None:
        return None
    return PaymentInfo(payer=payer, receiver=receiver, token=token, salt=words[-1])


def _words(data: bytes, count: int) -> Sequence[bytes] | None:
    """Return data as so many words, or None where it has another length."""
    if len(data) != count * _WORD:
        return None
    return [data[at : at + _WORD] for at in range(0, len(data), _WORD)]


def _word(number: int) -> bytes:
    return number.to_bytes(_WORD)
