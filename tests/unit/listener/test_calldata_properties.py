"""Whatever the bytes are, evidence is of memos that stand there, and nothing is raised."""

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.calldata import calldata_evidence
from listener.decode import decode_transaction
from listener.ranking import MAX_PIECES
from oncepaid.domain.chain import Address, EventLog, Receipt, Transaction, TransferLog
from oncepaid.domain.memo import envelope_of
from oncepaid.domain.payments import Evidence, Signer
from tests.unit.listener.calls import (
    BUNDLER,
    ENTRY_POINT_V6,
    ENTRY_POINT_V7,
    ENVELOPE,
    MULTICALL3,
    OTHER_ENVELOPE,
    OTHER_WALLET,
    ROUTER,
    WALLET,
    aggregate3,
    authorized,
    before_execution,
    call,
    execute,
    execute_batch,
    handle_ops,
    operation_event,
    operation_v6,
    operation_v7,
    packed,
    receipt,
    safe_transaction,
    transaction,
    transfer,
    transfer_from,
    transfer_log,
)
from tests.unit.samples import PAYER, USDC, memo, recorded_receipts, recorded_transactions

PEOPLE: Final = [PAYER, WALLET, OTHER_WALLET, BUNDLER, ROUTER]
TARGETS: Final = [USDC, MULTICALL3, ENTRY_POINT_V6, ENTRY_POINT_V7, *PEOPLE]

people = st.sampled_from(PEOPLE)
amounts = st.integers(1, 3)
tails = st.sampled_from([b"", b"", ENVELOPE, OTHER_ENVELOPE, ENVELOPE + b"\0"])


def recorded_inputs() -> list[bytes]:
    values = [tx for _, tx in recorded_transactions()]
    values += [content["tx"] for content in recorded_receipts().values()]
    found = [decode_transaction(value) for value in values]
    return sorted((tx.calldata for tx in found if tx), key=len)


RECORDED: Final = recorded_inputs()

token_calls = st.one_of(
    amounts.map(transfer), st.builds(transfer_from, people, amounts), people.map(authorized)
)
payments = st.builds(lambda data, tail: (USDC, data + tail), token_calls, tails)


def wrapped(inner: st.SearchStrategy[tuple[str, bytes]]) -> st.SearchStrategy[tuple[str, bytes]]:
    """Calls of anybody that carry others, in many ways and with anything behind them."""
    calls = st.lists(inner, min_size=1, max_size=3)
    ways = st.one_of(
        inner.map(lambda one: execute(*one)),
        inner.map(lambda one: safe_transaction(*one)),
        calls.map(lambda some: execute_batch(*some)),
        calls.map(lambda some: aggregate3(*some)),
        calls.map(lambda some: call("multicall(bytes[])", [data for _, data in some])),
        calls.map(lambda some: call("multiSend(bytes)", packed(*some))),
        calls.map(lambda some: b"pays" + b"".join(data for _, data in some)),
    )
    return st.builds(lambda to, data, tail: (to, data + tail), people, ways, tails)


walkable = st.recursive(payments, wrapped, max_leaves=8)
operations = st.lists(
    st.builds(lambda of, one, tail: (of, one[1] + tail), people, walkable, tails),
    min_size=1,
    max_size=3,
)


def bundled(entry_point: Address, some: list[tuple[Address, bytes]]) -> tuple[str, bytes]:
    make = operation_v6 if entry_point == ENTRY_POINT_V6 else operation_v7
    return entry_point, handle_ops(*(make(sender, data) for sender, data in some))


bundles = st.builds(bundled, st.sampled_from([ENTRY_POINT_V6, ENTRY_POINT_V7]), operations)


@st.composite
def logs_and_events(draw: st.DrawFn) -> tuple[list[TransferLog], Receipt]:
    payers = draw(st.lists(st.tuples(people, amounts), max_size=6))
    entry_point = draw(st.sampled_from([ENTRY_POINT_V6, ENTRY_POINT_V7]))
    ends = draw(st.lists(st.tuples(people, st.integers(1, 13), st.booleans()), max_size=3))
    logs = [transfer_log(2 * at, sender=p, units=u) for at, (p, u) in enumerate(payers, 1)]
    events = [
        operation_event(2 * at + 1, sender, entry_point=entry_point, succeeded=succeeded)
        for at, (sender, succeeded) in sorted({at: (s, ok) for s, at, ok in ends}.items())
    ]
    return logs, receipt(before_execution(0, entry_point), *events)


def explain(
    data: bytes, to: str | None, sender: Address, sample: tuple[list[TransferLog], Receipt | None]
) -> dict[int, tuple[Evidence, ...]]:
    """Return the evidence, after looking at what must hold of any."""
    logs, told = sample
    tx = transaction(data, sender=sender, to=None if to is None else Address(to))
    found = calldata_evidence(tx, logs, told, USDC)
    assert list(found) == [log.log_index for log in logs]
    for log in logs:
        pieces = found[log.log_index]
        assert len(pieces) <= MAX_PIECES
        assert len({piece.memo for piece in pieces}) == len(pieces)
        for piece in pieces:
            assert piece.memo is not None
            assert envelope_of(piece.memo) in data, "a memo that nobody wrote"
            assert (piece.signer is Signer.PAYER) == (piece.by == log.sender)
            assert piece.company >= 1
    return found


@given(st.binary(max_size=600), st.sampled_from([*TARGETS, None]), people, logs_and_events())
def test_any_bytes(
    data: bytes, to: str | None, sender: Address, sample: tuple[list[TransferLog], Receipt]
) -> None:
    explain(data, to, sender, sample)


@given(
    st.sampled_from(RECORDED),
    st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=40)), max_size=4),
    st.sampled_from([*TARGETS, None]),
    people,
    logs_and_events(),
)
def test_mutated_recordings(
    data: bytes,
    changes: list[tuple[int, bytes]],
    to: str | None,
    sender: Address,
    sample: tuple[list[TransferLog], Receipt],
) -> None:
    for at, change in changes:
        at %= max(len(data), 1)
        data = data[:at] + change + data[at + len(change) :]
    explain(data, to, sender, sample)


@given(walkable, people, logs_and_events(), st.data())
def test_calls_in_calls(
    outer: tuple[str, bytes],
    sender: Address,
    sample: tuple[list[TransferLog], Receipt],
    drawn: st.DataObject,
) -> None:
    """What binds was signed by the payer: he sent it, or it was he whom the transaction called."""
    to, data = outer
    for log_index, pieces in explain(data, to, sender, sample).items():
        (log,) = (log for log in sample[0] if log.log_index == log_index)
        for piece in pieces:
            assert piece.by in (sender, to)
            if piece.signer is Signer.PAYER:
                assert log.sender in (sender, to)
    cut = drawn.draw(st.integers(0, len(data)))
    explain(data[:cut], to, sender, sample)


@given(bundles, logs_and_events(), st.data())
def test_bundles_of_any_operations(
    outer: tuple[str, bytes], sample: tuple[list[TransferLog], Receipt], drawn: st.DataObject
) -> None:
    to, data = outer
    explain(data, to, BUNDLER, sample)
    cut = drawn.draw(st.integers(0, len(data)))
    explain(data[:cut], to, BUNDLER, sample)


@given(operations, st.data())
def test_an_operation_never_speaks_of_the_logs_of_another(
    some: list[tuple[Address, bytes]], drawn: st.DataObject
) -> None:
    """One transfer in each range: what is signed by a sender stands in his own operation."""
    to, data = bundled(ENTRY_POINT_V7, some)
    logs = [
        transfer_log(2 * at + 1, sender=drawn.draw(people), units=drawn.draw(amounts))
        for at in range(len(some))
    ]
    events: list[EventLog] = [operation_event(2 * at + 2, s) for at, (s, _) in enumerate(some)]
    sample = logs, receipt(before_execution(0), *events)
    found = explain(data, to, BUNDLER, sample)
    for (sender, calldata), pieces in zip(some, found.values(), strict=True):
        for piece in pieces:
            assert piece.by == sender
            assert piece.memo is not None
            assert envelope_of(piece.memo) in calldata


@given(st.integers(0, 23), st.integers(1, 255))
def test_an_envelope_with_one_byte_changed_is_no_memo(at: int, change: int) -> None:
    broken = bytearray(ENVELOPE)
    broken[at] ^= change
    tail = bytes(broken)
    log = transfer_log(5, sender=WALLET)
    ways: list[tuple[str, bytes]] = [
        (WALLET, execute(USDC, transfer() + tail)),
        (WALLET, execute(USDC, transfer()) + tail),
        (ROUTER, b"pays" + tail),
        bundled(ENTRY_POINT_V7, [(WALLET, execute(USDC, transfer()) + tail)]),
    ]
    told = receipt(before_execution(0), operation_event(9, WALLET))
    for to, data in ways:
        assert explain(data, to, WALLET, ([log], told)) == {5: ()}
        whole = data.replace(tail, ENVELOPE)
        (piece,) = explain(whole, to, WALLET, ([log], told))[5]
        assert piece.memo == memo(7)


@pytest.mark.parametrize("value", [None, {}, {"calls": []}, {"input": None}])
def test_a_transaction_without_input(value: Any) -> None:
    """EIP-8130 carries `calls` instead."""
    fields = {"hash": "0x" + "01" * 32, "from": PAYER, "to": None, "type": "0x7b", **(value or {})}
    tx = decode_transaction(fields)
    assert isinstance(tx, Transaction)
    assert calldata_evidence(tx, [transfer_log(0)], None, USDC) == {0: ()}
