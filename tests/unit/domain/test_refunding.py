"""What names a payment that is sent back, what sends it back, and when that can be relied on."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncepaid.domain.chain import BlockHash, BlockRef, Header, TransferLog, TxHash
from oncepaid.domain.memo import ENVELOPE_BYTES, Memo, envelope_of, memos_of_tail
from oncepaid.domain.money import Units
from oncepaid.domain.payments import PaymentId, PaymentStatus, StoredLog
from oncepaid.domain.refunding import (
    BUSY_SENDER,
    MAX_NAMES,
    NamedPayment,
    NotFinalYet,
    Payee,
    Refunded,
    RefundKnown,
    RefundName,
    RefundRefusal,
    RefundRefused,
    final_or_wait,
    find_refunded,
    judge_refund,
    names_to_look_for,
    nearest_refusal,
    refund_envelope,
    refund_names,
    warnings_of,
)
from tests.unit.samples import OTHER_SHOP, PAYER, SHOP, STRANGER

PAID_IN = TxHash("0x00112233445566778899aabbccddeeff" + "42" * 16)
SENT_IN = TxHash("0x" + "77" * 32)
OURS = frozenset({SHOP, OTHER_SHOP})
hashes = st.binary(min_size=32, max_size=32).map(lambda found: TxHash("0x" + found.hex()))


def block(number: int) -> BlockRef:
    return BlockRef(number=number, hash=BlockHash(f"0x{number:064x}"))


def paid(number: int = 1, units: int = 10, log_index: int = 0) -> StoredLog:
    return StoredLog(
        id=PaymentId(number),
        block=block(100),
        tx_hash=PAID_IN,
        log_index=log_index,
        sender=PAYER,
        recipient=SHOP,
        units=Units(units),
    )


SENT = TransferLog(
    block=block(101),
    timestamp_ms=None,
    tx_hash=SENT_IN,
    log_index=0,
    sender=SHOP,
    recipient=PAYER,
    units=Units(10),
)


def named(
    number: int = 1, status: PaymentStatus = PaymentStatus.UNMATCHED, **changed: object
) -> NamedPayment:
    sent_back = (SENT_IN, 9) if changed.pop("is_sent_back", False) else None
    log = paid(number, **changed)  # type: ignore[arg-type]
    return NamedPayment(log=log, status=status, sent_back=sent_back)


def test_the_envelope_of_a_transaction() -> None:
    """It is public: operators' tools may build it."""
    expected = "5c2e113300112233445566778899aabbccddeeff"
    assert refund_envelope(PAID_IN).hex()[:-8] == expected
    assert len(refund_envelope(PAID_IN)) == ENVELOPE_BYTES
    assert refund_names(b"before" + refund_envelope(PAID_IN) + b"behind") == (
        bytes.fromhex(expected[8:]),
    )


@given(hashes, st.binary(min_size=16, max_size=16).map(Memo))
def test_neither_envelope_is_taken_for_the_other(tx_hash: TxHash, memo: Memo) -> None:
    assert memos_of_tail(refund_envelope(tx_hash)) == ()
    assert refund_names(envelope_of(memo)) == ()
    both = envelope_of(memo) + refund_envelope(tx_hash)
    assert memos_of_tail(both) == (memo,)
    assert refund_names(both) == (bytes.fromhex(tx_hash[2:34]),)


@given(hashes, st.integers(0, ENVELOPE_BYTES - 1), st.integers(1, 255))
def test_no_byte_of_it_can_be_changed(tx_hash: TxHash, position: int, by: int) -> None:
    changed = bytearray(refund_envelope(tx_hash))
    changed[position] ^= by
    assert refund_names(bytes(changed)) == ()
    assert memos_of_tail(bytes(changed)) == ()


def test_a_transfer_that_sends_a_payment_back() -> None:
    assert judge_refund(paid(), SENT, ours=OURS) == Refunded(payment=PaymentId(1))
    from_another = replace(SENT, sender=OTHER_SHOP)
    assert judge_refund(paid(), from_another, ours=OURS) == Refunded(payment=PaymentId(1))
    elsewhere = replace(SENT, recipient=STRANGER)
    assert judge_refund(paid(), elsewhere, ours=OURS, to=STRANGER) == Refunded(payment=PaymentId(1))


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (replace(SENT, sender=STRANGER), RefundRefusal.NOT_OURS),
        (replace(SENT, recipient=STRANGER), RefundRefusal.WRONG_ADDRESS),
        (replace(SENT, units=Units(9)), RefundRefusal.WRONG_AMOUNT),
        (replace(SENT, units=Units(11)), RefundRefusal.WRONG_AMOUNT),
        (replace(SENT, block=block(99)), RefundRefusal.EARLIER),
        (replace(SENT, block=block(100)), RefundRefusal.EARLIER),
    ],
)
def test_what_does_not(sent: TransferLog, reason: RefundRefusal) -> None:
    refused = RefundRefused(reason=reason, payment=PaymentId(1))
    assert judge_refund(paid(), sent, ours=OURS) == refused
    assert find_refunded([named()], sent, ours=OURS) == refused


def test_a_payment_goes_to_no_stated_address_and_to_the_payer_at_once() -> None:
    refused = judge_refund(paid(), SENT, ours=OURS, to=STRANGER)
    assert refused == RefundRefused(reason=RefundRefusal.WRONG_ADDRESS, payment=PaymentId(1))


def test_where_every_recipient_is_observed_only_the_payments_own_sends_it_back() -> None:
    assert judge_refund(paid(), SENT, ours=None) == Refunded(payment=PaymentId(1))
    refused = judge_refund(paid(), replace(SENT, sender=OTHER_SHOP), ours=None)
    assert refused == RefundRefused(reason=RefundRefusal.NOT_OURS, payment=PaymentId(1))


def test_a_refund_in_the_payments_own_block_comes_behind_it() -> None:
    behind = replace(SENT, block=block(100), log_index=1)
    assert isinstance(judge_refund(paid(), behind, ours=OURS), Refunded)


def test_amount_and_payer_tell_which_payment_of_a_transaction_is_meant() -> None:
    several = [named(1, units=9), named(2, units=10), named(3, units=11)]
    assert find_refunded(several, SENT, ours=OURS) == Refunded(payment=PaymentId(2))


def test_of_several_alike_the_open_one_is_meant_and_then_what_counts() -> None:
    gone = named(1, PaymentStatus.ORPHANED)
    counts = named(2, PaymentStatus.CREDITED)
    is_open = named(3, PaymentStatus.IGNORED)
    assert find_refunded([gone, counts, is_open], SENT, ours=OURS) == Refunded(payment=PaymentId(3))
    uncredited = named(4, PaymentStatus.MATCHED)
    found = find_refunded([gone, counts, uncredited], SENT, ours=OURS)
    assert found == Refunded(payment=PaymentId(4))
    assert find_refunded([gone, counts], SENT, ours=OURS) == Refunded(payment=PaymentId(2))
    assert find_refunded([gone], SENT, ours=OURS) == Refunded(payment=PaymentId(1))


def test_a_payment_is_sent_back_once_and_a_twin_of_it_next() -> None:
    done = named(1, PaymentStatus.REFUNDED, is_sent_back=True)
    before = RefundRefused(reason=RefundRefusal.SENT_BACK_BEFORE, payment=PaymentId(1))
    assert find_refunded([done], SENT, ours=OURS) == before
    assert find_refunded([done, named(2)], SENT, ours=OURS) == Refunded(payment=PaymentId(2))
    short = named(2, units=9)
    assert find_refunded([done, short], SENT, ours=OURS) == before


def test_the_same_transfer_again_changes_nothing() -> None:
    again = replace(SENT, log_index=9)
    done = named(1, PaymentStatus.REFUNDED, is_sent_back=True)
    assert find_refunded([named(2), done], again, ours=OURS) == RefundKnown(payment=PaymentId(1))


def test_a_name_that_nobody_has() -> None:
    refused = RefundRefused(reason=RefundRefusal.UNKNOWN_PAYMENT)
    assert find_refunded([], SENT, ours=OURS) == refused


def test_the_refusal_that_says_most_is_told() -> None:
    far = RefundRefused(reason=RefundRefusal.NOT_OURS)
    near = RefundRefused(reason=RefundRefusal.WRONG_AMOUNT)
    assert nearest_refusal([far, near, far]) == near


def test_every_refusal_has_a_sentence() -> None:
    assert all(reason.sentence.endswith(".") for reason in RefundRefusal)


def header(number: int, second: int) -> Header:
    return Header(
        number=number,
        hash=block(number).hash,
        parent_hash=block(number - 1).hash,
        timestamp_ms=1000 * second,
    )


HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("finalized", "age", "wait_s"),
    [
        (header(100, 500), None, None),
        (header(101, 500), None, None),
        (header(99, 300), None, 200),
        (header(99, 500), None, 1),
        (None, timedelta(seconds=500), None),
        (None, timedelta(seconds=501), 1),
        (header(200, 999), HOUR, 3100),
    ],
)
def test_a_block_is_final_by_the_nodes_word_or_by_age(
    finalized: Header | None, age: timedelta | None, wait_s: int | None
) -> None:
    waits = final_or_wait(header(100, 500), latest=header(300, 1000), finalized=finalized, age=age)
    if wait_s is None:
        assert waits is None
    else:
        assert waits == NotFinalYet(block_number=100, wait=timedelta(seconds=wait_s))


def test_how_long_to_wait_is_said() -> None:
    waits = NotFinalYet(block_number=7, wait=timedelta(minutes=12, seconds=5))
    assert waits.sentence == (
        "block 7, in which it was sent, is not final yet: try again in about 12 min 5 s"
    )
    unknown = final_or_wait(header(7, 1), latest=header(9, 3), finalized=None, age=None)
    assert unknown is not None
    assert unknown.wait is None
    assert unknown.sentence.endswith("no final block: try again later")


@pytest.mark.parametrize(
    ("payee", "words"),
    [
        (Payee(address=PAYER, is_contract=False, sent=BUSY_SENDER), ()),
        (Payee(address=PAYER, is_contract=False, sent=BUSY_SENDER + 1), ("exchange",)),
        (Payee(address=PAYER, is_contract=True, sent=BUSY_SENDER + 1), ("is a contract",)),
        (Payee(address=STRANGER, is_contract=False, sent=0), ("is not the payer",)),
        (
            Payee(address=STRANGER, is_contract=True, sent=1),
            ("is not the payer", "is a contract"),
        ),
    ],
)
def test_what_to_think_of_before_money_goes_there(payee: Payee, words: tuple[str, ...]) -> None:
    warnings = warnings_of(payee, payer=PAYER)
    assert len(warnings) == len(words)
    for warning, word in zip(warnings, words, strict=True):
        assert word in warning
        assert warning.startswith(payee.address)


@pytest.mark.parametrize(
    ("count", "is_signed", "reason"),
    [
        (0, False, None),
        (0, True, None),
        (1, True, None),
        (1, False, RefundRefusal.NOT_SIGNED),
        (MAX_NAMES, True, None),
        (MAX_NAMES + 1, True, RefundRefusal.TOO_MANY_NAMES),
        (MAX_NAMES + 1, False, RefundRefusal.TOO_MANY_NAMES),
    ],
)
def test_which_names_are_looked_for(
    count: int, is_signed: bool, reason: RefundRefusal | None
) -> None:
    names = tuple(RefundName(bytes([number]) * 16) for number in range(count))
    found = names_to_look_for(names, is_signed=is_signed)
    assert found == (names if reason is None else RefundRefused(reason=reason))
