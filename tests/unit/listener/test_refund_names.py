"""What a refund names is read from what the paying recipient signed, also inside his wallet."""

import pytest

from listener.refund_names import MAX_TAILS, named_by, needs_receipt
from listener.walk import MAX_CALLDATA_BYTES
from oncepaid.domain.chain import Address, EventLog, TransferLog, TxHash
from oncepaid.domain.memo import envelope_of
from oncepaid.domain.refunding import MAX_NAMES, RefundName, refund_envelope
from tests.unit.listener.calls import (
    BASEAPP,
    ENTRY_POINT_V6,
    ENTRY_POINT_V7,
    MULTICALL3,
    aggregate3,
    authorized,
    before_execution,
    execute,
    execute_batch,
    handle_ops,
    operation_event,
    operation_v6,
    operation_v7,
    receipt,
    safe_transaction,
    transaction,
    transfer,
    transfer_from,
    transfer_log,
)
from tests.unit.samples import OTHER_SHOP, PAYER, SHOP, STRANGER, USDC, memo

FIRST = TxHash("0x" + "11" * 32)
SECOND = TxHash("0x" + "22" * 32)
LOG = transfer_log(3, sender=SHOP, recipient=PAYER)
BACK = transfer(to=PAYER)
ONE, OTHER = refund_envelope(FIRST), refund_envelope(SECOND)


def read(
    calldata: bytes,
    *events: EventLog,
    sender: Address = SHOP,
    to: Address | None = USDC,
    log: TransferLog = LOG,
) -> tuple[list[str], bool]:
    """Return the first byte of each name, as hex, and whether our recipient signed them."""
    call = transaction(calldata, sender=sender, to=to)
    found = named_by(log, call, receipt(*events) if events else None, USDC)
    assert found.transfer is log
    return [name.hex()[:2] for name in found.names], found.is_signed


NOTHING: tuple[list[str], bool] = ([], False)


@pytest.mark.parametrize(
    ("calldata", "to", "names"),
    [
        (BACK + ONE, USDC, ["11"]),
        (BACK + b"of another" + ONE + BASEAPP, USDC, ["11"]),
        (BACK + ONE + OTHER + ONE, USDC, ["11", "22"]),
        (execute(USDC, BACK + ONE), SHOP, ["11"]),
        (execute(USDC, BACK) + ONE, SHOP, ["11"]),
        (execute_batch((USDC, BACK + ONE), (USDC, transfer(9) + OTHER)), SHOP, ["11"]),
        (execute_batch((USDC, BACK + ONE), (USDC, BACK + OTHER)), SHOP, ["11", "22"]),
        (safe_transaction(USDC, BACK + ONE), SHOP, ["11"]),
    ],
)
def test_what_the_recipient_signed(calldata: bytes, to: Address, names: list[str]) -> None:
    """He sends it himself, or his wallet makes the call."""
    assert read(calldata, to=to) == (names, True)


def test_a_safe_may_be_executed_by_anyone() -> None:
    calldata = safe_transaction(USDC, BACK + ONE)
    assert read(calldata, sender=STRANGER, to=SHOP) == (["11"], True)
    assert read(calldata + OTHER, sender=STRANGER, to=SHOP) == (["11"], True)


@pytest.mark.parametrize(
    ("calldata", "to"),
    [
        (transfer_from(SHOP, to=PAYER) + ONE, USDC),
        (aggregate3((USDC, transfer_from(SHOP, to=PAYER) + ONE)), MULTICALL3),
        (safe_transaction(USDC, BACK) + ONE, SHOP),
    ],
)
def test_what_somebody_else_attached_is_told_apart(calldata: bytes, to: Address) -> None:
    assert read(calldata, sender=STRANGER, to=to) == (["11"], False)


def test_what_the_recipient_signed_comes_before_what_others_attached() -> None:
    calldata = safe_transaction(USDC, BACK + OTHER) + ONE
    assert read(calldata, sender=STRANGER, to=SHOP) == (["22"], True)


@pytest.mark.parametrize("log_index", [1, 3])
@pytest.mark.parametrize("succeeded", [True, False])
def test_a_user_operation_names_what_stands_in_its_own_logs(
    log_index: int, succeeded: bool
) -> None:
    bundle = handle_ops(
        operation_v7(OTHER_SHOP, execute(USDC, BACK + OTHER)),
        operation_v7(SHOP, execute(USDC, BACK + ONE)),
    )
    events = (
        before_execution(0),
        operation_event(2, OTHER_SHOP),
        operation_event(4, SHOP, succeeded=succeeded),
    )
    log = transfer_log(log_index, sender=SHOP, recipient=PAYER)
    is_his = log_index == 3 and succeeded
    expected = (["11"], True) if is_his else NOTHING
    assert read(bundle, *events, sender=STRANGER, to=ENTRY_POINT_V7, log=log) == expected


def test_only_bundles_need_a_receipt_and_say_nothing_without() -> None:
    bundle = handle_ops(operation_v6(SHOP, execute(USDC, BACK + ONE)))
    assert needs_receipt(transaction(bundle, to=ENTRY_POINT_V6))
    assert not needs_receipt(transaction(BACK + ONE))
    assert not needs_receipt(transaction(bundle, to=SHOP))
    assert read(bundle, sender=STRANGER, to=ENTRY_POINT_V6) == NOTHING


@pytest.mark.parametrize(
    "calldata",
    [
        b"",
        BACK,
        BACK + envelope_of(memo(1)),
        ONE + BACK,
        transfer(to=STRANGER) + ONE,
        transfer(1, to=PAYER) + ONE,
        transfer_from(STRANGER, to=PAYER) + ONE,
        authorized(SHOP) + ONE,
        BACK + bytes(MAX_CALLDATA_BYTES) + ONE,
    ],
)
def test_what_names_nothing(calldata: bytes) -> None:
    """Also calls that did not make this transfer."""
    assert read(calldata) == NOTHING


def test_a_creation_names_nothing() -> None:
    assert read(BACK + ONE, to=None) == NOTHING


def test_hostile_calls_beside_ours_cost_little() -> None:
    """A relayer may put as many beside it as there is room for."""
    calls = [(USDC, transfer_from(SHOP, to=PAYER) + refund_envelope(FIRST))] * 250
    calldata = aggregate3(*calls, (USDC, transfer_from(SHOP, to=PAYER) + OTHER))
    assert read(calldata, sender=STRANGER, to=MULTICALL3) == (["11"], False)
    assert len(calls) > MAX_TAILS


def test_how_many_names_there_are_is_for_the_watch_to_judge() -> None:
    hashes = [TxHash(f"0x{number:064x}") for number in range(1, MAX_NAMES + 2)]
    shifted = [TxHash("0x" + name[34:] + name[2:34]) for name in hashes]
    tail = b"".join(map(refund_envelope, shifted))
    found = named_by(LOG, transaction(BACK + tail, sender=SHOP), None, USDC)
    assert found.names == tuple(RefundName(bytes.fromhex(name[34:])) for name in hashes)
