"""Charges and captures of commerce-payments: whose word they are, and for which transfer."""

from collections.abc import Callable
from typing import Final

import pytest
from eth_abi.abi import encode

from listener.contract_events import TOKEN_STORE_CREATED
from oncepaid.domain.memo import Reference, envelope_of
from oncepaid.domain.payments import Signer
from tests.unit.listener.contract_logs import (
    ESCROW,
    FEES,
    INFO_TYPE,
    STORE,
    Logs,
    found,
    info_hash,
    payment_info,
    said,
)
from tests.unit.samples import OTHER_SHOP, STRANGER, memo

MEMO: Final = memo(1)
ENVELOPE: Final = envelope_of(MEMO)
WITH_MEMO: Final = payment_info(ENVELOPE + b"12345678")
WITHOUT: Final = payment_info(b"\x07" * 32)


def by_hash(info: dict[str, object]) -> Reference:
    return Reference(issuer=ESCROW, value=info_hash(info))


def test_a_charge_with_a_memo_in_its_salt() -> None:
    """As the contract does it: the event, the payer's money into the store, fee, rest to us."""
    logs = Logs()
    logs.charged(WITH_MEMO, 1_000, fee_bps=250)
    logs.transfer(1_000, to=STORE)
    logs.add(ESCROW, (TOKEN_STORE_CREATED, bytes(32)), bytes(32))
    logs.transfer(25, sender=STORE, to=FEES)
    logs.transfer(975, sender=STORE)
    assert found(logs) == [[said(MEMO), said(by_hash(WITH_MEMO))]]


def test_a_charge_of_version_1_1_has_an_absolute_fee() -> None:
    logs = Logs()
    logs.charged(WITHOUT, 1_000, fee=250)
    logs.transfer(750, sender=STORE)
    logs.captured(WITHOUT, 1_000, fee=1)
    logs.transfer(999, sender=STORE)
    assert found(logs) == [[said(by_hash(WITHOUT))]] * 2


def test_charges_in_a_row_each_have_their_own() -> None:
    logs = Logs()
    for info in (WITH_MEMO, WITHOUT):
        logs.charged(info, 5)
        logs.transfer(5, sender=STORE)
    assert found(logs) == [
        [said(MEMO), said(by_hash(WITH_MEMO))],
        [said(by_hash(WITHOUT))],
    ]


def _capture_call(info: dict[str, object]) -> bytes:
    kinds = [INFO_TYPE, "uint256", "uint16", "address"]
    return bytes.fromhex("644cd79a") + encode(kinds, [tuple(info.values()), 5, 0, FEES])


def test_a_capture_is_explained_by_its_call() -> None:
    """Its event has the hash alone; only the true PaymentInfo in the calldata has this hash."""
    logs = Logs()
    logs.captured(WITH_MEMO, 5)
    logs.transfer(5, sender=STORE)
    telling = [said(MEMO), said(by_hash(WITH_MEMO))]
    assert found(logs, calldata=_capture_call(WITH_MEMO)) == [telling]
    # Inside another call, at any offset, behind others.
    wrapped = b"\x01\x02\x03" + _capture_call(WITHOUT) + _capture_call(WITH_MEMO)
    assert found(logs, calldata=wrapped) == [telling]
    bare = [said(by_hash(WITH_MEMO), signer=Signer.THIRD_PARTY, by=None)]
    forged = WITH_MEMO | {"salt": int.from_bytes(envelope_of(memo(2)) + bytes(8))}
    assert found(logs, calldata=_capture_call(forged)) == [bare]
    assert found(logs, calldata=_capture_call(WITH_MEMO)[:300]) == [bare]
    assert found(logs) == [bare]


def test_an_authorization_in_the_same_transaction_explains_a_capture() -> None:
    logs = Logs()
    logs.authorized(WITH_MEMO, 5)
    logs.transfer(5, to=STORE)
    logs.captured(WITH_MEMO, 5)
    logs.transfer(5, sender=STORE)
    assert found(logs) == [[said(MEMO), said(by_hash(WITH_MEMO))]]


def test_money_of_others_within_a_charge_binds_nothing() -> None:
    """A collector of the operator's own may move a victim's money while the escrow waits for it."""
    logs = Logs()
    logs.charged(WITH_MEMO, 5)
    logs.transfer(5, sender=STRANGER)
    logs.transfer(5, sender=STORE)
    either = [
        said(named, signer=Signer.THIRD_PARTY, company=2) for named in (MEMO, by_hash(WITH_MEMO))
    ]
    assert found(logs) == [either, either]


def test_a_capture_for_another_binds_nothing_of_ours() -> None:
    """Without PaymentInfo the one who got the sum may be anybody: all count as company."""
    logs = Logs()
    logs.captured(WITHOUT, 5)
    logs.transfer(5, sender=STRANGER)
    logs.transfer(5, sender=STORE, to=OTHER_SHOP)
    [[piece]] = found(logs)
    assert (piece.signer, piece.company) == (Signer.THIRD_PARTY, 2)


def _charge_for_another(logs: Logs) -> None:
    logs.charged(WITH_MEMO | {"receiver": STRANGER}, 5)
    logs.transfer(5, sender=STORE)


def _charge_of_another_token(logs: Logs) -> None:
    logs.charged(WITH_MEMO | {"token": STRANGER}, 5)
    logs.transfer(5, sender=STORE)


def _charge_of_another_amount(logs: Logs) -> None:
    logs.charged(WITH_MEMO, 6)
    logs.transfer(5, sender=STORE)


def _charge_behind(logs: Logs) -> None:
    logs.transfer(5, sender=STORE)
    logs.charged(WITH_MEMO, 5)


def _authorization_alone(logs: Logs) -> None:
    logs.authorized(WITH_MEMO, 5)
    logs.transfer(5, sender=STORE)


def _another_event_between(logs: Logs) -> None:
    logs.charged(WITH_MEMO, 5)
    logs.add(ESCROW, (bytes(32), bytes(32)))
    logs.transfer(5, sender=STORE)


@pytest.mark.parametrize(
    "emit",
    [
        _charge_for_another,
        _charge_of_another_token,
        _charge_of_another_amount,
        _charge_behind,
        _authorization_alone,
        _another_event_between,
    ],
)
def test_charges_that_say_nothing_of_our_transfer(emit: Callable[[Logs], None]) -> None:
    logs = Logs()
    emit(logs)
    assert found(logs) == [[]]
