"""Others are heard only where the payer's own word would have been read: else they could hide it.

In each attack somebody who brings the payment to the chain has put his own job's memo around it.
"""

from collections.abc import Sequence
from typing import Final

import pytest
from eth_abi.abi import encode

from listener.evidence import evidence_of
from listener.walk import MAX_CALLDATA_BYTES
from oncepaid.domain.chain import AuthorizationLog, EventLog, Receipt, Transaction, TransferLog
from oncepaid.domain.matching import Decision, Matched, decide_all
from oncepaid.domain.memo import MAGIC, envelope_of
from oncepaid.domain.payments import Evidence, PaymentId, SeenPayment
from tests.unit.listener.calls import (
    BLOCK,
    BUNDLER,
    ENTRY_POINT_V6,
    ENTRY_POINT_V7,
    ENVELOPE,
    OTHER_ENVELOPE,
    OTHER_WALLET,
    PAY,
    PAY_7,
    ROUTER,
    TX,
    UNITS,
    WALLET,
    authorized,
    before_execution,
    call,
    calls_of,
    execute,
    execute_batch,
    handle_ops,
    modular,
    operation_event,
    operation_v7,
    safe_transaction,
    selector,
    transaction,
    transfer_log,
)
from tests.unit.samples import NOON, OTHER_SHOP, PAYER, RULES, STRANGER, USDC, job, memo

PAYERS_JOB: Final = job(7, price=UNITS)
ATTACKERS_JOB: Final = job(8, price=UNITS)
PAYERS: Final = Matched(job_id=PAYERS_JOB.id)
ATTACKERS: Final = Matched(job_id=ATTACKERS_JOB.id)
LOG: Final = transfer_log(10, sender=WALLET)
EVENTS: Final = (before_execution(1), operation_event(90, WALLET))


def told(
    call_: Transaction,
    *events: EventLog,
    logs: Sequence[TransferLog] = (LOG,),
    used: Sequence[AuthorizationLog] = (),
    has_receipt: bool = True,
    by_recipient: bool = False,
) -> tuple[Evidence, ...]:
    """Return the evidence of the last of these transfers."""
    receipt = Receipt(block=BLOCK, succeeded=True, transfers=tuple(logs), events=events)
    marks = {(one.tx_hash, one.log_index): one for one in used}
    found = evidence_of(
        call_,
        logs,
        receipt if has_receipt else None,
        marks,
        token=USDC,
        contracts=(),
        by_recipient=by_recipient,
    )
    return found[logs[-1].log_index]


def decided(pieces: tuple[Evidence, ...], log: TransferLog = LOG) -> Decision:
    seen = SeenPayment(
        id=PaymentId(1),
        sender=log.sender,
        recipient=log.recipient,
        units=log.units,
        block_number=LOG.block.number,
        block_time=NOON,
        evidence=pieces,
        transfers_in_tx=1,
    )
    return decide_all([seen], [PAYERS_JOB, ATTACKERS_JOB], RULES)[seen.id]


def bundle(calldata: bytes) -> Transaction:
    """Return an operation of the wallet in a bundle that names the attacker's job."""
    data = handle_ops(operation_v7(WALLET, calldata)) + OTHER_ENVELOPE
    return transaction(data, sender=BUNDLER, to=ENTRY_POINT_V7)


def through(data: bytes) -> Transaction:
    """Return a relayer's call of the wallet, with his memo behind it."""
    return transaction(data + OTHER_ENVELOPE, sender=STRANGER, to=WALLET)


def test_the_payers_word_in_a_bundle_is_read() -> None:
    assert decided(told(bundle(execute(USDC, PAY_7)), *EVENTS)) == PAYERS


def test_a_relayer_is_heard_where_all_was_read() -> None:
    """What the tests below show is not shown by a relayer who is never heard."""
    assert decided(told(through(safe_transaction(USDC, PAY)))) == ATTACKERS


@pytest.mark.parametrize("has_receipt", [False, True], ids=["none", "without events"])
def test_a_bundle_whose_receipt_is_not_read(has_receipt: bool) -> None:
    assert told(bundle(execute(USDC, PAY_7)), has_receipt=has_receipt) == ()


def test_a_contract_whose_receipt_is_not_read() -> None:
    assert told(through(b"swap"), has_receipt=False) == ()


def test_a_bundler_hides_the_operation_in_a_contract_of_his_own() -> None:
    hidden = transaction(b"\x12\x34\x56\x78" + OTHER_ENVELOPE, sender=BUNDLER, to=ROUTER)
    assert told(hidden, *EVENTS) == ()
    # Another EntryPoint in the same transaction does not make it less his own.
    v6 = operation_event(50, OTHER_WALLET, entry_point=ENTRY_POINT_V6)
    assert told(hidden, EVENTS[0], v6, EVENTS[1]) == ()
    assert decided(told(hidden, operation_event(9, WALLET))) == ATTACKERS


def test_two_memos_that_the_payer_handed_to_unknown_code() -> None:
    unknown = b"\xaa\xbb\xcc\xdd" + ENVELOPE + envelope_of(memo(9))
    assert told(bundle(unknown), *EVENTS) == ()
    assert told(through(safe_transaction(ROUTER, unknown))) == ()


IDLE: Final = [(ROUTER, b"")]


def many_values(last: bytes) -> bytes:
    """Return a batch whose first 40 calls are one and the same, with 256 values; then `last`."""
    words = 96, 8320, 8320, 256, *[8192] * 256, 0
    idle = selector("redeemDelegations(bytes[],bytes32[],bytes[])") + numbers(*words)
    calls = [
        encode(["address", "uint256", "bytes"], [to, 0, data])
        for to, data in ((OTHER_WALLET, idle), (USDC, last))
    ]
    heads = [41 * 32] * 40 + [41 * 32 + len(calls[0])]
    batch = selector("executeBatch((address,uint256,bytes)[])")
    return batch + numbers(32, len(heads), *heads) + b"".join(calls)


def numbers(*words: int) -> bytes:
    return b"".join(word.to_bytes(32) for word in words)


def wrapped(data: bytes, times: int = 1) -> bytes:
    for _ in range(times):
        data = call("multicall(bytes[])", [data])
    return data


EATEN: Final = {
    "calls": execute_batch(*IDLE * 255, (USDC, PAY_7)),
    "elements": wrapped(execute_batch((USDC, PAY_7), *IDLE * 256)),
    "values": many_values(PAY_7),
    # One look is for the relayer's own memo, and 1,023 for these.
    "looks": execute_batch(
        *[(ROUTER, b"swap" + MAGIC * 256)] * 3,
        (ROUTER, b"swap" + MAGIC * 255),
        (ROUTER, b"swap" + ENVELOPE),
    ),
    "places in one tail": execute_batch((USDC, PAY + MAGIC * 300 + ENVELOPE)),
    "depth": wrapped(execute(USDC, PAY_7), times=9),
    "an unknown mode": wrapped(modular(b"\7".ljust(32, b"\0"), calls_of((USDC, PAY_7)))),
    "an offset backwards": wrapped(execute(USDC, PAY_7).replace(numbers(96), numbers(2**256 - 32))),
}


@pytest.mark.parametrize("data", EATEN.values(), ids=EATEN)
def test_a_relayer_makes_more_than_is_read(data: bytes) -> None:
    found = through(data)
    assert len(found.calldata) < MAX_CALLDATA_BYTES
    assert decided(told(found)) != ATTACKERS


@pytest.mark.parametrize(
    "first",
    [execute_batch(*IDLE * 256), many_values(PAY)],
    ids=["calls", "values"],
)
def test_another_operation_uses_up_what_is_read(first: bytes) -> None:
    """The wallet pulls the payer's money, who approved it: the payer is not its sender."""
    operations = operation_v7(OTHER_WALLET, first), operation_v7(WALLET, execute(USDC, PAY))
    call_ = transaction(handle_ops(*operations) + OTHER_ENVELOPE, sender=BUNDLER, to=ENTRY_POINT_V7)
    events = before_execution(1), operation_event(6, OTHER_WALLET), operation_event(90, WALLET)
    crumb = transfer_log(5, sender=OTHER_WALLET, units=1, recipient=OTHER_SHOP)
    pulled = transfer_log(10, sender=PAYER)
    assert told(call_, *events, logs=[crumb, pulled], by_recipient=True) == ()


def test_an_authorization_that_is_not_known() -> None:
    log = transfer_log(3)
    call_ = transaction(authorized(PAYER) + OTHER_ENVELOPE, sender=BUNDLER)
    assert told(call_, logs=[log], has_receipt=False) == ()
    used = AuthorizationLog(
        block=BLOCK, tx_hash=TX, log_index=2, authorizer=PAYER, nonce=bytes(range(32))
    )
    heard = told(call_, logs=[log], used=[used], has_receipt=False)
    assert decided(heard, log) == ATTACKERS


def test_a_batch_of_batches_is_opened() -> None:
    """ERC-7821: each is the execution of a batch of its own, with a signature."""
    mode = bytes.fromhex("01000000000078210002").ljust(32, b"\0")
    signed = encode(["(address,uint256,bytes)[]", "bytes"], [[(USDC, 0, PAY_7)], bytes(65)])
    once = modular(mode, encode(["bytes[]"], [[signed]]))
    twice = modular(mode, encode(["bytes[]"], [[calls_of((ROUTER, b"")), signed]]))
    for data in (once, twice):
        pieces = told(through(data))
        assert pieces[0].memo == memo(7)
        assert decided(pieces) == PAYERS
    # The batches of a batch are not batches of batches again.
    assert told(through(modular(mode, encode(["bytes[]"], [[once]])))) == ()
