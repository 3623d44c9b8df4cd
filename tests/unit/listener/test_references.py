"""Events that name what a payment is for: which transfer they speak of, and who is believed."""

from collections.abc import Callable
from typing import Final

import pytest
from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from listener import contract_events, references
from listener.contract_events import TRANSFERRED, intent_of
from listener.references import contract_evidence
from oncepaid.domain.chain import ZERO_ADDRESS, Address, EventLog
from oncepaid.domain.memo import Memo, Reference, envelope_of, memos_of_tail
from oncepaid.domain.payments import Signer
from tests.unit.listener.contract_logs import (
    COMMERCE,
    CONTRACTS,
    ESCROW,
    FEES,
    INFO_TYPE,
    PROXY,
    STORE,
    Logs,
    found,
    payment_info,
    said,
    transaction,
)
from tests.unit.samples import PAYER, SHOP, STRANGER, USDC, memo

MEMO: Final = memo(1)
ENVELOPE: Final = envelope_of(MEMO)
WORD: Final = ENVELOPE.ljust(32, b"\0")
WITH_MEMO: Final = payment_info(ENVELOPE + b"12345678")
ID: Final = bytes(range(16))

SIGNATURES: Final = {
    "MEMO": "Memo(address,bytes32)",
    "TRANSFER_WITH_REFERENCE_AND_FEE": "TransferWithReferenceAndFee"
    "(address,address,uint256,bytes,uint256,address)",
    "TRANSFER_WITH_REFERENCE": "TransferWithReference(address,address,uint256,bytes)",
    "TRANSFERRED": "Transferred(address,bytes16,address,address,uint256,address)",
    "PAYMENT_AUTHORIZED": f"PaymentAuthorized(bytes32,{INFO_TYPE},uint256,address)",
    "PAYMENT_CHARGED": f"PaymentCharged(bytes32,{INFO_TYPE},uint256,address,uint16,address)",
    "PAYMENT_CHARGED_1_1": f"PaymentCharged(bytes32,{INFO_TYPE},uint256,address,uint256,address)",
    "PAYMENT_CAPTURED": "PaymentCaptured(bytes32,uint256,uint16,address)",
    "PAYMENT_CAPTURED_1_1": "PaymentCaptured(bytes32,uint256,uint256,address)",
    "TOKEN_STORE_CREATED": "TokenStoreCreated(address,address)",
    "PAYMENT_INFO_TYPEHASH": "PaymentInfo(address operator,address payer,address receiver,"
    "address token,uint120 maxAmount,uint48 preApprovalExpiry,uint48 authorizationExpiry,"
    "uint48 refundExpiry,uint16 minFeeBps,uint16 maxFeeBps,address feeReceiver,uint256 salt)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_topics_are_the_hashes_of_their_signatures(name: str) -> None:
    assert getattr(contract_events, name) == keccak(SIGNATURES[name].encode())


def test_a_memo_right_behind_its_transfer() -> None:
    logs = Logs()
    logs.transfer(5)
    logs.memo(WORD)
    logs.transfer(5)
    logs.memo(bytes(range(32)))
    reference = Reference(issuer=USDC, value=bytes(range(32)))
    assert found(logs) == [[said(MEMO)], [said(reference)]]


def test_a_memo_that_a_spender_gave() -> None:
    logs = Logs()
    logs.transfer(5)
    logs.memo(WORD, caller=STRANGER)
    assert found(logs) == [[said(MEMO, signer=Signer.THIRD_PARTY, by=STRANGER)]]


def test_a_memo_elsewhere_says_nothing() -> None:
    logs = Logs()
    logs.memo(WORD)
    logs.transfer(5)
    logs.transfer(1, to=STRANGER)
    logs.memo(WORD)
    logs.transfer(6)
    logs.memo(WORD, token=STRANGER)
    assert found(logs) == [[], []]


@pytest.mark.parametrize("reference", [ENVELOPE, WORD], ids=["bare", "a word"])
def test_a_reference_that_is_an_envelope(reference: bytes) -> None:
    """The event has its hash only; the envelope stands in the calldata."""
    logs = Logs()
    logs.transfer(5)
    logs.transfer(1, to=FEES)
    logs.request(reference, 5, fee=1)
    named = Reference(issuer=PROXY, value=keccak(reference))
    calldata = b"\xc2\x19\xa1\x4d" + bytes(64) + reference
    assert found(logs, calldata=calldata) == [[said(MEMO), said(named)]]
    assert found(logs, calldata=envelope_of(memo(2))) == [[said(named)]]
    assert found(logs) == [[said(named)]]


def test_a_reference_of_eight_bytes() -> None:
    logs = Logs()
    logs.transfer(5)
    logs.request(b"12345678", 5)
    logs.transfer(6)
    logs.plain_request(b"abcdefgh", 6)
    assert found(logs) == [
        [said(Reference(issuer=PROXY, value=keccak(b"12345678")))],
        [said(Reference(issuer=PROXY, value=keccak(b"abcdefgh")))],
    ]


def test_a_fee_is_not_what_the_reference_is_for() -> None:
    """We may be who gets the fee, of the same amount even: the payment comes first."""
    logs = Logs()
    logs.transfer(5, to=STRANGER)
    logs.transfer(1)
    logs.request(b"12345678", 5, fee=1, to=STRANGER, fee_to=SHOP)
    logs.transfer(5)
    logs.transfer(5)
    logs.request(b"abcdefgh", 5, fee=5, fee_to=SHOP)
    assert found(logs) == [[], [said(Reference(issuer=PROXY, value=keccak(b"abcdefgh")))], []]


def test_a_fee_that_nobody_gets_is_not_moved() -> None:
    logs = Logs()
    logs.transfer(5)
    logs.request(b"12345678", 5, fee=1, fee_to=ZERO_ADDRESS)
    assert found(logs) == [[said(Reference(issuer=PROXY, value=keccak(b"12345678")))]]


def _request_elsewhere(logs: Logs) -> None:
    logs.transfer(5)
    logs.add(STRANGER, ())
    logs.request(b"12345678", 5)


def _request_of_another_amount(logs: Logs) -> None:
    logs.transfer(5)
    logs.request(b"12345678", 6)


def _request_for_another(logs: Logs) -> None:
    logs.transfer(5)
    logs.request(b"12345678", 5, to=STRANGER)


def _request_of_another_token(logs: Logs) -> None:
    logs.transfer(5)
    logs.request(b"12345678", 5, token=STRANGER)


def _request_without_its_fee(logs: Logs) -> None:
    logs.transfer(5)
    logs.transfer(2, to=FEES)
    logs.request(b"12345678", 5, fee=1)


def _request_with_a_fee_of_another(logs: Logs) -> None:
    logs.transfer(5)
    logs.transfer(1, sender=STRANGER, to=FEES)
    logs.request(b"12345678", 5, fee=1)


def _request_before(logs: Logs) -> None:
    logs.request(b"12345678", 5)
    logs.transfer(5)


def _request_behind_nothing_moved(logs: Logs) -> None:
    logs.transfer(5)
    logs.request(b"12345678", 5, emitter=STRANGER)
    logs.transfer(0)
    logs.request(b"12345678", 0)


@pytest.mark.parametrize(
    "emit",
    [
        _request_elsewhere,
        _request_of_another_amount,
        _request_for_another,
        _request_of_another_token,
        _request_without_its_fee,
        _request_with_a_fee_of_another,
        _request_before,
        _request_behind_nothing_moved,
    ],
)
def test_requests_that_say_nothing_of_our_transfer(emit: Callable[[Logs], None]) -> None:
    logs = Logs()
    emit(logs)
    assert found(logs) == [[]]


def test_an_intent_that_is_paid_in_our_token() -> None:
    logs = Logs()
    logs.transfer(6, to=COMMERCE)
    logs.transfer(5, sender=COMMERCE)
    logs.transfer(1, sender=COMMERCE, to=FEES)
    logs.transferred(ID, 6)
    logs.transfer(8, to=COMMERCE)
    logs.transfer(7, sender=COMMERCE)
    logs.transferred(ID[::-1], 8)
    assert found(logs) == [
        [said(Reference(issuer=COMMERCE, value=ID))],
        [said(Reference(issuer=COMMERCE, value=ID[::-1]))],
    ]


def test_an_intent_of_another_operator_says_nothing() -> None:
    """Anybody may register as one. His event still ends what belongs to it."""
    logs = Logs()
    logs.transfer(5, sender=COMMERCE)
    logs.transferred(ID, 6, operator=STRANGER)
    logs.transferred(ID, 6)
    assert found(logs) == [[]]


def test_an_intent_that_is_paid_by_a_swap_is_a_third_partys_word() -> None:
    """What the recipient got does not stand in the event: it may have been another token."""
    logs = Logs()
    logs.transfer(5, sender=STORE)
    logs.transferred(ID, 10**18, currency=ZERO_ADDRESS)
    named = Reference(issuer=COMMERCE, value=ID)
    assert found(logs) == [[said(named, signer=Signer.THIRD_PARTY)]]


def test_money_of_others_beside_an_intent() -> None:
    """A caller who also spends a victim's allowance binds nothing of it."""
    logs = Logs()
    logs.transfer(5, sender=STRANGER)
    logs.transfer(5, sender=COMMERCE)
    logs.transferred(ID, 6)
    assert found(logs) == [[], [said(Reference(issuer=COMMERCE, value=ID))]]


def test_an_intent_that_may_mean_either_of_two_binds_neither() -> None:
    logs = Logs()
    logs.transfer(5, sender=COMMERCE)
    logs.transfer(1, sender=COMMERCE)
    logs.transferred(ID, 6)
    named = Reference(issuer=COMMERCE, value=ID)
    either = said(named, signer=Signer.THIRD_PARTY, company=2)
    assert found(logs) == [[either], [either]]


def test_a_real_transferred_event() -> None:
    """From Polygon, 0x3558ea1fab0a81459eff4b65d5d4a5a3853754a0aedf1d2ca80d7bc92ed86046."""
    data = bytes.fromhex(
        "ec3dc2e6bc8030b4a02a1efa33fa4c2a00000000000000000000000000000000"
        "0000000000000000000000000e522e18707b50501e98358896b4b716850ba0b5"
        "000000000000000000000000303d6c905f2476f8bbe16dd9dce9d5367241c404"
        "0000000000000000000000000000000000000000000000001b1f949fe8624cb1"
        "0000000000000000000000000000000000000000000000000000000000000000"
    )
    operator = bytes.fromhex("48f945aafb38658243d38eeb89538e879fba4781").rjust(32, b"\0")
    event = EventLog(log_index=13, address=COMMERCE, topics=(TRANSFERRED, operator), data=data)
    intent = intent_of(event)
    assert intent is not None
    assert intent.id.hex() == "ec3dc2e6bc8030b4a02a1efa33fa4c2a"
    assert intent.operator == "0x48f945aafb38658243d38eeb89538e879fba4781"
    assert intent.recipient == "0x0e522e18707b50501e98358896b4b716850ba0b5"
    assert intent.sender == "0x303d6c905f2476f8bbe16dd9dce9d5367241c404"
    assert (intent.spent, intent.currency) == (0x1B1F949FE8624CB1, ZERO_ADDRESS)


def _forged_memo(logs: Logs) -> None:
    logs.transfer(5)
    logs.memo(WORD, token=STRANGER)


def _forged_request(logs: Logs) -> None:
    logs.transfer(5)
    logs.request(ENVELOPE, 5, emitter=STRANGER)


def _forged_intent(logs: Logs) -> None:
    logs.transfer(5, sender=COMMERCE)
    logs.transferred(ID, 5, emitter=STRANGER)


def _forged_charge(logs: Logs) -> None:
    logs.charged(WITH_MEMO, 5, emitter=STRANGER)
    logs.transfer(5, sender=STORE)


def _of_another_kind(logs: Logs) -> None:
    """A contract is believed for its own events only."""
    logs.charged(WITH_MEMO, 5, emitter=PROXY)
    logs.transfer(5, sender=STORE)
    logs.transferred(ID, 5, emitter=ESCROW)


@pytest.mark.parametrize(
    "emit", [_forged_memo, _forged_request, _forged_intent, _forged_charge, _of_another_kind]
)
def test_look_alike_event_emitter(emit: Callable[[Logs], None]) -> None:
    logs = Logs()
    emit(logs)
    assert found(logs, calldata=ENVELOPE) == [[]]


def test_only_our_transfers_are_told_of() -> None:
    logs = Logs()
    ours = logs.transfer(5)
    logs.memo(WORD)
    logs.transfer(5, to=STRANGER)
    logs.memo(WORD)
    pieces = contract_evidence(
        transaction(), [ours], logs.receipt(), token=USDC, contracts=CONTRACTS
    )
    assert pieces == {ours.log_index: [said(MEMO)]}


topics = st.sampled_from(
    [getattr(contract_events, name) for name in SIGNATURES] + [bytes(32), b"\xff" * 32]
)
words = st.lists(
    st.one_of(
        st.binary(min_size=32, max_size=32),
        st.sampled_from([int(a, 16).to_bytes(32) for a in (PAYER, SHOP, USDC)]),
        st.integers(0, 6).map(lambda number: number.to_bytes(32)),
    ),
    max_size=18,
).map(b"".join)
strange_logs = st.tuples(
    st.sampled_from([PROXY, COMMERCE, ESCROW, USDC, STRANGER]),
    st.lists(topics, max_size=4),
    st.one_of(words, st.binary(max_size=200)),
)


@given(st.lists(st.one_of(strange_logs, st.integers(1, 5)), max_size=12), st.binary(max_size=600))
def test_any_logs_are_read_and_nothing_is_believed_of_strangers(
    made: list[tuple[Address, list[bytes], bytes] | int], calldata: bytes
) -> None:
    logs = Logs()
    for one in made:
        if isinstance(one, int):
            logs.transfer(one, sender=COMMERCE if one % 2 else PAYER)
        else:
            logs.add(*one)
    for pieces in found(logs, calldata=calldata) if logs.transfers else ():
        for piece in pieces:
            assert piece.reference is None or piece.reference.issuer != STRANGER
            assert (piece.memo is None) != (piece.reference is None)
            assert piece.signer is Signer.THIRD_PARTY or piece.company == 1


def test_a_crowd_of_events_is_read_in_bounded_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is costly, the calldata, is searched once for all events, in a bounded number of places.

    Each event is looked at beside the transfers up to the next one of its contract only.
    """
    logs, hashed, searched = Logs(), list[bytes](), list[bytes]()
    for number in range(500):
        logs.captured(payment_info(number.to_bytes(32)), 5)
        logs.transfer(5, sender=STORE)
        logs.transferred(ID, 6)
        logs.request(b"12345678", 5)

    def counted(data: bytes) -> bytes:
        hashed.append(data)
        return keccak(data)

    def search(calldata: bytes) -> tuple[Memo, ...]:
        searched.append(calldata)
        return memos_of_tail(calldata)

    monkeypatch.setattr(contract_events, "keccak", counted)
    monkeypatch.setattr(references, "memos_of_tail", search)
    calldata = int(USDC, 16).to_bytes(32) * 4_000
    assert [len(pieces) for pieces in found(logs, calldata=calldata)] == [1] * 500
    assert len(hashed) <= 2 * contract_events.MAX_LOOKS
    assert len(searched) <= 1
