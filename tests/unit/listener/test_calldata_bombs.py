"""Calldata that costs its reader more than it cost its writer: read in bounded steps.

Counted, not timed: values read, and bytes and places searched for a memo.
"""

from typing import Any, Final

import pytest

from listener import abi, tails
from listener import calldata as calldata_module
from listener.abi import MAX_STEPS
from listener.calldata import MAX_CANDIDATES, MAX_EXPLAINED
from listener.tails import MAX_LOOKS_IN_ALL
from listener.walk import MAX_CALLDATA_BYTES
from oncepaid.domain.chain import Address
from oncepaid.domain.memo import MAGIC, Memo, envelope_of
from oncepaid.domain.payments import Evidence
from tests.unit.listener.calls import (
    ENTRY_POINT_V7,
    ENVELOPE,
    OPERATION_V7,
    OTHER_ENVELOPE,
    ROUTER,
    WALLET,
    call,
    evidence,
    execute,
    execute_batch,
    operation_event,
    selector,
    shown,
    transfer,
    transfer_log,
)
from tests.unit.samples import STRANGER, USDC, memo


def words(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(32) for number in numbers)


def shared_heads(tail: bytes) -> bytes:
    """Return an array of 256 elements, all of them the same blob."""
    return words(32, 256, *[32 * 256] * 256) + tail


def fill(data: bytes, filling: bytes) -> bytes:
    room = MAX_CALLDATA_BYTES - len(data)
    return data + (filling * (room // len(filling)))[:room]


AGGREGATE: Final = selector("aggregate3((address,bool,bytes)[])")
MULTICALL: Final = selector("multicall(bytes[])")
HANDLE_OPS: Final = selector(f"handleOps({OPERATION_V7}[],address)")
PAYING: Final = words(int(USDC, 16), 1, 96, 120_000) + transfer()


def nested(signature: str, depth: int) -> bytes:
    data = transfer() + ENVELOPE
    while depth and len(data) < MAX_CALLDATA_BYTES - 500:
        data, depth = call(signature, [data]), depth - 1
    return data


def referring_to_itself(code: bytes) -> bytes:
    """Return 256 calls whose data is the whole array again."""
    head = code + words(32, 256, *[32 * 256] * 256)
    return head + words(len(head)) + head


OPERATION_HEAD: Final = words(int(ROUTER, 16), 0, 288, 288, 0, 0, 0, 288, 288)
OPERATIONS: Final = (
    words(64, 1, 256, *[32 * 256] * 256)
    + OPERATION_HEAD
    + words(120_000)
    + selector("execute(address,uint256,bytes)")
    + words(int(USDC, 16), 0, 96, 119_000)
    + transfer()
)

BOMBS = {
    "self-referencing offsets": (MULTICALL + words(0, *[0] * 3000), ROUTER),
    "an array that contains itself": (referring_to_itself(MULTICALL), ROUTER),
    "lengths of 2^255": (AGGREGATE + words(32, 2**255), ROUTER),
    "offsets of 2^255": (AGGREGATE + words(2**255, *[2**255] * 3000), ROUTER),
    "100k elements": (fill(AGGREGATE + words(32, 100_000), words(0)), ROUTER),
    "256 heads of one blob": (fill(AGGREGATE + shared_heads(PAYING), MAGIC), ROUTER),
    "256 heads of one blob of envelopes": (
        fill(AGGREGATE + shared_heads(PAYING), OTHER_ENVELOPE),
        ROUTER,
    ),
    "256 operations of one blob": (fill(HANDLE_OPS + OPERATIONS, MAGIC), ENTRY_POINT_V7),
    "depth 1000": (nested("multicall(bytes[])", 1000), ROUTER),
    "depth 1000 in wallets": (execute(WALLET, nested("multicall(bytes[])", 1000)), WALLET),
    "a packed call without bytes": (
        call("multiSend(bytes)", bytes(85 * 1400)),
        ROUTER,
    ),
}


def test_a_crowd_of_transfers_that_are_alike_is_explained_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight calls may have made each of them, with four tails around of 256 memos each."""
    made: list[Memo | None] = []

    def making(**fields: Any) -> Evidence:
        made.append(fields["memo"])
        return Evidence(**fields)

    monkeypatch.setattr(calldata_module, "Evidence", making)
    blocks = [b"".join(envelope_of(memo(n * 1000 + i)) for i in range(256)) for n in range(4)]
    data = execute_batch(*[(USDC, transfer(1))] * 8, (ROUTER, b"pays")) + blocks[0]
    for block in blocks[1:]:
        data = call("multicall(bytes[])", [data]) + block
    logs = [transfer_log(at, sender=WALLET, units=1) for at in range(2000)]
    found = evidence(data, logs, sender=WALLET, to=WALLET)
    assert len(made) == MAX_CANDIDATES * 4 * tails.MAX_MEMOS
    assert [bool(pieces) for pieces in found] == [at < MAX_EXPLAINED for at in range(2000)]


LOGS: Final = [transfer_log(2 * at, sender=ROUTER) for at in range(256)]
EVENTS: Final = [operation_event(2 * at + 1, ROUTER) for at in range(256)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count what is read: values, bytes handed to the search, and memos looked at."""
    counts = {"values": 0, "bytes": 0, "looks": 0}
    take, behind = abi.Steps.take, tails.memos_behind

    def taking(self: abi.Steps) -> None:
        counts["values"] += 1
        take(self)

    def searching(tail: bytes) -> tuple[Memo, ...]:
        counts["bytes"] += len(tail)
        counts["looks"] += min(tail.count(MAGIC), 256)
        return behind(tail)

    monkeypatch.setattr(abi.Steps, "take", taking)
    monkeypatch.setattr(tails, "memos_behind", searching)
    return counts


@pytest.mark.parametrize(("data", "to"), BOMBS.values(), ids=BOMBS)
def test_bombs_are_read_in_bounded_steps(data: bytes, to: Address, counted: dict[str, int]) -> None:
    assert len(data) <= MAX_CALLDATA_BYTES
    evidence(data, LOGS, *EVENTS, sender=STRANGER, to=to)
    # One more is counted where the allowance ends, for each of at most 256 calls.
    assert counted["values"] <= MAX_STEPS + 256
    assert counted["bytes"] <= tails.MAX_SEARCHED_BYTES
    assert counted["looks"] <= MAX_LOOKS_IN_ALL


def test_an_honest_batch_is_counted_too(counted: dict[str, int]) -> None:
    """The counters count: without this the test above would hold of counters that never do."""
    data = execute_batch(*[(USDC, transfer() + ENVELOPE)] * 20)
    found = evidence(data, [transfer_log(sender=WALLET)], sender=STRANGER, to=WALLET)
    assert shown(found[0]) == [(7, "calldata", "payer", WALLET, 20)]
    assert counted["values"] >= 20 * 6
    assert counted["looks"] == MAX_CANDIDATES
