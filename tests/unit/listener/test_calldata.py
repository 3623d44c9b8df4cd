"""A memo is read from behind the arguments of a direct call, past other protocols' suffixes.

`transfer` and `transferFrom` of the token, called by the transaction itself: the way that most pay.
"""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.calldata import calldata_evidence, is_direct_call
from listener.token_calls import TRANSFER, TRANSFER_FROM
from listener.walk import MAX_CALLDATA_BYTES
from oncepaid.domain.chain import Address, TransferLog
from oncepaid.domain.memo import Memo, envelope_of
from oncepaid.domain.money import Units
from oncepaid.domain.payments import Evidence, MemoSource, Signer
from tests.unit.listener.calls import (
    BASEAPP,
    ENVELOPE,
    UNITS,
    transaction,
    transfer,
    transfer_from,
    transfer_log,
)
from tests.unit.samples import PAYER, SHOP, STRANGER, USDC, memo

LOG = transfer_log()


def transfer_call(tail: bytes = b"", *, to: str = SHOP, units: int = UNITS) -> bytes:
    return transfer(units, to) + tail


def transfer_from_call(tail: bytes = b"", *, payer: str = PAYER) -> bytes:
    return transfer_from(payer) + tail


def found(calldata: bytes, *, sender: Address = PAYER, log: TransferLog = LOG) -> list[Memo]:
    call = transaction(calldata, sender=sender)
    pieces = calldata_evidence(call, [log], None, USDC)[log.log_index]
    return [piece.memo for piece in pieces if piece.memo is not None]


@pytest.mark.parametrize(
    ("calldata", "sender", "signer"),
    [
        (transfer_call(ENVELOPE), PAYER, Signer.PAYER),
        (transfer_from_call(ENVELOPE), PAYER, Signer.PAYER),
        (transfer_from_call(ENVELOPE), STRANGER, Signer.THIRD_PARTY),
    ],
    ids=["transfer", "transferFrom by the payer", "transferFrom by a spender"],
)
def test_who_signed_the_memo(calldata: bytes, sender: Address, signer: Signer) -> None:
    source = MemoSource.CALLDATA
    expected = Evidence(memo=memo(7), source=source, signer=signer, by=sender)
    call = transaction(calldata, sender=sender)
    assert calldata_evidence(call, [LOG], None, USDC) == {0: (expected,)}


@pytest.mark.parametrize(
    ("calldata", "changed"),
    [
        (b"", {}),
        (TRANSFER, {}),
        (ENVELOPE, {}),
        (b"\xa9\x05\x9c\xba" + transfer_call(ENVELOPE)[4:], {}),
        (bytes.fromhex("095ea7b3") + transfer_call(ENVELOPE)[4:], {}),
        (TRANSFER_FROM + transfer_call(ENVELOPE)[4:], {}),
        (TRANSFER + transfer_from_call(ENVELOPE)[4:], {}),
        (transfer_call(ENVELOPE, to=STRANGER), {}),
        (transfer_call(ENVELOPE, units=UNITS + 1), {}),
        (transfer_from_call(ENVELOPE, payer=STRANGER), {}),
        (transfer_call(ENVELOPE), {"sender": STRANGER}),
        (transfer_call(ENVELOPE), {"recipient": STRANGER}),
        (transfer_call(ENVELOPE), {"units": Units(UNITS - 1)}),
        (transfer_call(ENVELOPE.ljust(MAX_CALLDATA_BYTES - 67, b"\0")), {}),
    ],
)
def test_a_call_that_did_not_make_the_log_proves_nothing(
    calldata: bytes, changed: dict[str, Any]
) -> None:
    assert found(calldata, log=replace(LOG, **changed)) == []


def test_a_transfer_signed_by_somebody_else_is_not_this_log() -> None:
    assert found(transfer_call(ENVELOPE), sender=STRANGER) == []


@pytest.mark.parametrize(("to", "sources"), [(None, []), (STRANGER, [MemoSource.SCAN])])
def test_only_the_token_is_called_directly(to: Address | None, sources: list[MemoSource]) -> None:
    """Another contract may use the same selector for whatever it likes."""
    call = transaction(transfer_call(ENVELOPE), to=to)
    assert not is_direct_call(call, USDC)
    pieces = calldata_evidence(call, [LOG], None, USDC)[0]
    assert [piece.source for piece in pieces] == sources


@pytest.mark.parametrize("call", [transfer_call(ENVELOPE), transfer_from_call(ENVELOPE)])
def test_a_truncated_call_proves_nothing(call: bytes) -> None:
    for size in range(len(call)):
        assert found(call[:size]) == []
    assert found(call) == [memo(7)]


def test_two_memos_are_both_found() -> None:
    assert found(transfer_call(ENVELOPE + envelope_of(memo(8)))) == [memo(7), memo(8)]


def test_an_envelope_inside_the_arguments_is_not_behind_them() -> None:
    inside = Units(int.from_bytes(ENVELOPE.ljust(32, b"\0")))
    call = transfer_call(units=inside)
    assert ENVELOPE in call
    assert found(call, log=replace(LOG, units=inside)) == []


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_the_memo_is_found_among_trailing_garbage(before: bytes, after: bytes) -> None:
    assert found(transfer_call(before + ENVELOPE + after)) == [memo(7)]


@given(st.binary(max_size=400), st.binary(max_size=60))
def test_arbitrary_bytes_prove_nothing(calldata: bytes, tail: bytes) -> None:
    for data in (calldata, TRANSFER + calldata, TRANSFER_FROM + calldata, transfer_call(tail)):
        assert found(data) == []


@pytest.mark.parametrize("call", [transfer_call, transfer_from_call])
def test_the_memo_stands_before_the_suffixes(call: Any) -> None:
    assert found(call(ENVELOPE + BASEAPP * 3)) == [memo(7)]
    assert found(call(BASEAPP + ENVELOPE)) == [memo(7)]
    assert found(call(BASEAPP)) == []


def test_each_of_several_logs_is_held_against_the_call() -> None:
    logs = [LOG, replace(LOG, log_index=1, recipient=STRANGER)]
    found_ = calldata_evidence(transaction(transfer_call(ENVELOPE)), logs, None, USDC)
    assert [len(pieces) for pieces in found_.values()] == [1, 0]
