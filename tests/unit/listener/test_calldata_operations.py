"""What a user operation's sender signed speaks of this operation's logs, and of no others."""

from dataclasses import replace
from typing import Any

import pytest

from listener.abi import Steps
from listener.operations import log_ranges, operation_at, read_bundle
from oncepaid.domain.chain import Address, EventLog
from oncepaid.domain.payments import Evidence
from tests.unit.listener.calls import (
    BASEAPP,
    BUNDLER,
    ENTRY_POINT_V6,
    ENTRY_POINT_V7,
    ENVELOPE,
    OPERATION_V6,
    OPERATION_V7,
    OTHER_ENVELOPE,
    OTHER_WALLET,
    PAY,
    PAY_7,
    ROUTER,
    WALLET,
    before_execution,
    call,
    evidence,
    execute,
    execute_batch,
    handle_ops,
    operation_event,
    operation_v6,
    operation_v7,
    packed,
    receipt,
    selector,
    shown,
    transaction,
    transfer,
    transfer_from,
    transfer_log,
)
from tests.unit.samples import PAYER, SHOP, STRANGER, USDC

BY_WALLET = (7, "calldata", "payer", WALLET, 1)
EXECUTE_USER_OP = selector(f"executeUserOp({OPERATION_V7},bytes32)")
V8 = Address("0x4337084d9e255ff0702461cf8895ce9e3b5ff108")
V9 = Address("0x433709009b8330fda32311df1c2afa402ed8d009")


def one_operation(
    calldata: bytes,
    *logs: Any,
    entry_point: Address = ENTRY_POINT_V7,
    succeeded: bool = True,
    tail: bytes = b"",
) -> list[list[Evidence]]:
    """Return what a bundle of one operation says of these logs, which stand in its range."""
    make = operation_v6 if entry_point == ENTRY_POINT_V6 else operation_v7
    end = operation_event(90, WALLET, entry_point=entry_point, succeeded=succeeded)
    return evidence(
        handle_ops(make(WALLET, calldata)) + tail,
        logs,
        before_execution(1, entry_point),
        end,
        sender=BUNDLER,
        to=entry_point,
    )


LOG = transfer_log(10, sender=WALLET)


@pytest.mark.parametrize("entry_point", [ENTRY_POINT_V6, ENTRY_POINT_V7, V8, V9])
def test_the_calls_of_an_operation_are_signed_by_its_sender(entry_point: Address) -> None:
    (pieces,) = one_operation(execute(USDC, PAY_7), LOG, entry_point=entry_point)
    assert shown(pieces) == [BY_WALLET]


def test_the_tails_from_inside_out() -> None:
    calldata = execute(USDC, PAY_7) + OTHER_ENVELOPE + BASEAPP
    (pieces,) = one_operation(calldata, LOG, tail=ENVELOPE)
    assert shown(pieces) == [BY_WALLET, (8, "wrapper", "payer", WALLET, 1)]


def test_a_bundlers_memo_is_not_heard_beside_what_the_payer_signed() -> None:
    assert one_operation(execute(USDC, PAY), LOG, tail=ENVELOPE) == [[]]
    # Money that the sender of the operation moves for somebody else.
    pull = execute(USDC, transfer_from(PAYER))
    (pieces,) = one_operation(pull, transfer_log(10, sender=PAYER), tail=ENVELOPE)
    assert shown(pieces) == [(7, "wrapper", "third_party", BUNDLER, 1)]


@pytest.mark.parametrize(
    "inner",
    [
        execute(USDC, PAY_7),
        execute_batch((ROUTER, b""), (USDC, PAY_7)),
        call("execute(bytes32,bytes)", bytes(32), bytes.fromhex(USDC[2:]) + bytes(32) + PAY_7),
    ],
    ids=["execute", "batch", "7579"],
)
def test_a_wrapped_execution_is_unwrapped(inner: bytes) -> None:
    (pieces,) = one_operation(EXECUTE_USER_OP + inner, LOG)
    assert shown(pieces) == [BY_WALLET]


def test_a_safe_of_the_4337_module() -> None:
    multi_send = call("multiSend(bytes)", packed((ROUTER, b""), (USDC, PAY_7)))
    calldata = call("executeUserOp(address,uint256,bytes,uint8)", ROUTER, 0, multi_send, 1)
    (pieces,) = one_operation(calldata + OTHER_ENVELOPE, LOG)
    assert shown(pieces) == [BY_WALLET, (8, "wrapper", "payer", WALLET, 1)]


def test_the_tail_of_an_operation_has_the_company_of_its_own_range() -> None:
    calldata = execute_batch((USDC, PAY), (USDC, transfer(5)))
    logs = [LOG, transfer_log(11, sender=WALLET, units=5), transfer_log(99, sender=WALLET)]
    found = one_operation(calldata + ENVELOPE, *logs)
    assert [shown(pieces) for pieces in found] == [
        [(7, "wrapper", "payer", WALLET, 2)],
        [(7, "wrapper", "payer", WALLET, 2)],
        [],
    ]


def test_a_router_called_by_an_operation() -> None:
    """Its own tail, and what the router was handed; the router's money is not the sender's."""
    calldata = execute(ROUTER, b"swap" + OTHER_ENVELOPE) + ENVELOPE
    pulled, paid = transfer_log(10, sender=WALLET), transfer_log(11, sender=ROUTER)
    found = one_operation(calldata, pulled, paid)
    assert [shown(pieces) for pieces in found] == [
        [(7, "wrapper", "payer", WALLET, 2), (8, "scan", "payer", WALLET, 2)],
        [(7, "wrapper", "third_party", WALLET, 2), (8, "scan", "third_party", WALLET, 2)],
    ]


def test_a_wallet_with_a_function_of_its_own() -> None:
    (pieces,) = one_operation(b"pays" + bytes(32) + ENVELOPE, LOG, tail=OTHER_ENVELOPE)
    assert shown(pieces) == [(7, "scan", "payer", WALLET, 1)]


def test_an_operation_that_failed_moved_nothing() -> None:
    """A log in its range is of somebody else, as of its paymaster."""
    calldata = execute(USDC, PAY_7) + ENVELOPE
    assert one_operation(calldata, LOG, succeeded=False) == [[]]
    paymasters = transfer_log(10, sender=OTHER_WALLET)
    (pieces,) = one_operation(calldata, paymasters, succeeded=False, tail=OTHER_ENVELOPE)
    assert shown(pieces) == [(8, "wrapper", "third_party", BUNDLER, 1)]


TWO = handle_ops(
    operation_v7(WALLET, execute(USDC, PAY_7)),
    operation_v7(OTHER_WALLET, execute(USDC, PAY) + OTHER_ENVELOPE),
)
TWO_LOGS = [transfer_log(3, sender=WALLET), transfer_log(6, sender=OTHER_WALLET)]
TWO_EVENTS = [before_execution(2), operation_event(4, WALLET), operation_event(8, OTHER_WALLET)]


def two(*events: EventLog, to: Address = ENTRY_POINT_V7) -> list[list[Any]]:
    found = evidence(TWO, TWO_LOGS, *events, sender=BUNDLER, to=to)
    return [shown(pieces) for pieces in found]


def test_each_operation_by_its_own_logs() -> None:
    assert two(*TWO_EVENTS) == [[BY_WALLET], [(8, "wrapper", "payer", OTHER_WALLET, 1)]]


def test_the_ranges_follow_each_other() -> None:
    bundle = read_bundle(transaction(TWO, to=ENTRY_POINT_V7), Steps())
    assert bundle is not None
    ranges = log_ranges(bundle, ENTRY_POINT_V7, receipt(*TWO_EVENTS))
    assert ranges is not None
    assert [(logs.first, logs.last) for logs in ranges] == [(3, 4), (5, 8)]
    found = [operation_at(ranges, at) for at in range(2, 10)]
    assert found == [None, 0, 0, 1, 1, 1, 1, None]


def test_without_the_first_event_the_first_operation_begins_with_the_transaction() -> None:
    assert two(*TWO_EVENTS[1:]) == [[BY_WALLET], [(8, "wrapper", "payer", OTHER_WALLET, 1)]]


def test_what_is_logged_before_the_execution_belongs_to_no_operation() -> None:
    assert two(before_execution(3), *TWO_EVENTS[1:])[0] == []


WITHOUT_TOPICS = EventLog(
    log_index=8, address=ENTRY_POINT_V7, topics=TWO_EVENTS[1].topics[:1], data=b""
)
MISFITS = {
    "one too few": TWO_EVENTS[:2],
    "one too many": [*TWO_EVENTS, operation_event(9, WALLET)],
    "another sender": [*TWO_EVENTS[:2], operation_event(8, STRANGER)],
    "another order": [before_execution(2), *TWO_EVENTS[:0:-1]],
    "of a contract that looks alike": [
        before_execution(2, ROUTER),
        operation_event(4, WALLET, entry_point=ROUTER),
        operation_event(8, OTHER_WALLET, entry_point=ROUTER),
    ],
    "of another EntryPoint": [
        before_execution(2, V8),
        operation_event(4, WALLET, entry_point=V8),
        operation_event(8, OTHER_WALLET, entry_point=V8),
    ],
    "without a sender": [*TWO_EVENTS[:2], WITHOUT_TOPICS],
    "no event at all": [],
}


@pytest.mark.parametrize("events", MISFITS.values(), ids=MISFITS)
def test_a_receipt_that_does_not_fit_binds_nothing(events: list[EventLog]) -> None:
    assert two(*events) == [[], []]


def test_events_of_others_in_between_change_nothing() -> None:
    between = [
        operation_event(5, STRANGER, entry_point=ROUTER),
        EventLog(log_index=7, address=ENTRY_POINT_V7, topics=(), data=b""),
    ]
    events = sorted([*TWO_EVENTS, *between], key=lambda event: event.log_index)
    assert two(*events) == [[BY_WALLET], [(8, "wrapper", "payer", OTHER_WALLET, 1)]]


@pytest.mark.parametrize("to", [ROUTER, USDC, WALLET])
def test_only_a_known_entry_point_is_believed(to: Address) -> None:
    """Neither with the events of a real one, nor with the same events of its own."""
    assert two(*TWO_EVENTS, to=to) == [[], []]
    own = [replace(event, address=to) for event in TWO_EVENTS]
    assert two(*own, to=to) == [[], []]


def test_a_bundle_inside_another_call_is_not_opened() -> None:
    data = execute(ENTRY_POINT_V7, TWO)
    found = evidence(data, TWO_LOGS, *TWO_EVENTS, sender=BUNDLER, to=BUNDLER)
    assert found == [[], []]


@pytest.mark.parametrize(
    ("kind", "make", "entry_point"),
    [
        (OPERATION_V6, operation_v6, ENTRY_POINT_V6),
        (OPERATION_V7, operation_v7, ENTRY_POINT_V7),
    ],
)
def test_aggregated_operations(kind: str, make: Any, entry_point: Address) -> None:
    first = make(WALLET, execute(USDC, PAY_7))
    second = make(OTHER_WALLET, execute(USDC, PAY) + OTHER_ENVELOPE)
    groups = [([first], SHOP, bytes(96)), ([second], SHOP, bytes(96))]
    signature = f"handleAggregatedOps(({kind}[],address,bytes)[],address)"
    events = [
        before_execution(2, entry_point),
        operation_event(4, WALLET, entry_point=entry_point),
        operation_event(8, OTHER_WALLET, entry_point=entry_point),
    ]
    data = call(signature, groups, BUNDLER)
    found = evidence(data, TWO_LOGS, *events, sender=BUNDLER, to=entry_point)
    assert [shown(pieces) for pieces in found] == [
        [BY_WALLET],
        [(8, "wrapper", "payer", OTHER_WALLET, 1)],
    ]


def test_two_operations_of_one_sender() -> None:
    bundle = handle_ops(
        operation_v7(WALLET, execute(USDC, PAY_7)),
        operation_v7(WALLET, execute(USDC, PAY) + OTHER_ENVELOPE),
    )
    events = [before_execution(2), operation_event(4, WALLET), operation_event(8, WALLET)]
    logs = [transfer_log(3, sender=WALLET), transfer_log(6, sender=WALLET)]
    found = evidence(bundle, logs, *events, sender=BUNDLER, to=ENTRY_POINT_V7)
    assert [shown(pieces) for pieces in found] == [
        [BY_WALLET],
        [(8, "wrapper", "payer", WALLET, 1)],
    ]
