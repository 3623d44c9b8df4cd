"""User operations of ERC-4337: what a bundle carries, and which logs are whose.

A bundle mixes the calldata of strangers. What one of them signed speaks only of the logs between
the EntryPoint's events around his operation.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from listener.abi import AbiType, Malformed, Steps, decode
from listener.token_calls import SELECTOR_BYTES, address_of, arguments_of, selector_of
from listener.wrappers import EXECUTE_USER_OP, HANDLE_AGGREGATED_OPS, HANDLE_OPS
from oncepaid.domain.chain import Address, EventLog, Receipt, Transaction

ENTRY_POINTS: Final = frozenset(
    {
        Address("0x5ff137d4b0fdcd49dca30c7cf57e578a026d2789"),  # v0.6
        Address("0x0000000071727de22e5e9d8baf0edac6f37da032"),  # v0.7
        Address("0x4337084d9e255ff0702461cf8895ce9e3b5ff108"),  # v0.8
        Address("0x433709009b8330fda32311df1c2afa402ed8d009"),  # v0.9
    }
)
"""Contracts whose code is known to hand each sender what he signed. No other one is believed."""
USER_OPERATION_EVENT: Final = bytes.fromhex(
    "49628fd1471006c1482da88028e9ce4dbb080b815c9b0344d39e5a8e6ec1419f"
)
"""UserOperationEvent(hash, sender, paymaster indexed; nonce, success, gas cost, gas used): the last
log of its operation."""
BEFORE_EXECUTION: Final = bytes.fromhex(
    "bb47ee3e183a558b1a2ff0874b079f3fc5478b7454eacf2bfc5af2ff5878f972"
)
"""BeforeExecution(): behind the logs of all operations' validation."""

_SENDER_TOPIC: Final = 2
_SUCCESS: Final = slice(32, 64)
_SENDER, _CALLDATA = 0, 3
_HANDLE_OPS: Final = {selector_of(text): arguments_of(text) for text in HANDLE_OPS}
_HANDLE_AGGREGATED: Final = {
    selector_of(text): arguments_of(text) for text in HANDLE_AGGREGATED_OPS
}
_EXECUTE_USER_OP: Final = selector_of(EXECUTE_USER_OP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What `sender` signed to be called with. The other bytes of an operation are not looked at:
    its code, its paymaster's data and its signature are not all his."""

    sender: Address
    calldata: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """The operations of a transaction, in the order in which they run, and the bundler's tail."""

    operations: tuple[Operation, ...]
    tail: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRange:
    """The logs of one operation: `first` to `last`. One that failed has moved nothing."""

    first: int
    last: int
    succeeded: bool


def read_bundle(transaction: Transaction, steps: Steps) -> Bundle | None:
    """Return the operations that the transaction itself hands to a known EntryPoint."""
    if transaction.to not in ENTRY_POINTS:
        return None
    selector = transaction.calldata[:SELECTOR_BYTES]
    body = memoryview(transaction.calldata)[SELECTOR_BYTES:]
    groups_of: AbiType | None = _HANDLE_AGGREGATED.get(selector)
    arguments = groups_of or _HANDLE_OPS.get(selector)
    if arguments is None:
        return None
    try:
        found = decode(arguments, body, steps)
    except Malformed:
        return None
    entries = found.values[0]
    if groups_of is not None:
        entries = [entry for group in entries for entry in group[0]]
    operations = (
        Operation(sender=address_of(entry[_SENDER]), calldata=_unwrapped(entry[_CALLDATA]))
        for entry in entries
    )
    return Bundle(operations=tuple(operations), tail=body[found.end :])


def _unwrapped(calldata: memoryview) -> memoryview:
    """Cut `executeUserOp` off: the account itself runs what stands behind that selector."""
    is_wrapped = calldata[:SELECTOR_BYTES] == _EXECUTE_USER_OP
    return calldata[SELECTOR_BYTES:] if is_wrapped else calldata


def log_ranges(
    bundle: Bundle, entry_point: Address | None, receipt: Receipt | None
) -> tuple[LogRange, ...] | None:
    """Return the logs of each operation, or None where the receipt is not this bundle's."""
    events = [] if receipt is None else [e for e in receipt.events if e.address == entry_point]
    ends = [event for event in events if event.topics[:1] == (USER_OPERATION_EVENT,)]
    if len(ends) != len(bundle.operations):
        return None
    first = _execution_start(events, ends)
    ranges = []
    for operation, end in zip(bundle.operations, ends, strict=True):
        if len(end.topics) <= _SENDER_TOPIC or end.log_index < first:
            return None
        if address_of(int.from_bytes(end.topics[_SENDER_TOPIC])) != operation.sender:
            return None
        succeeded = int.from_bytes(end.data[_SUCCESS]) == 1
        ranges.append(LogRange(first=first, last=end.log_index, succeeded=succeeded))
        first = end.log_index + 1
    return tuple(ranges)


class OperationEnds:
    """Where user operations of known EntryPoints ended, whoever called these."""

    def __init__(self, receipt: Receipt | None) -> None:
        self._ends: dict[Address, list[EventLog]] = {}
        for event in () if receipt is None else receipt.events:
            is_end = event.topics[:1] == (USER_OPERATION_EVENT,) and len(event.topics) > 2
            if is_end and event.address in ENTRY_POINTS:
                self._ends.setdefault(event.address, []).append(event)

    def senders_at(self, log_index: int) -> frozenset[Address]:
        """Return whose operation a log may stand in: of each EntryPoint the next one to end."""
        following = (
            ends[at]
            for ends in self._ends.values()
            if (at := bisect_left(ends, log_index, key=lambda end: end.log_index)) < len(ends)
        )
        return frozenset(address_of(int.from_bytes(end.topics[_SENDER_TOPIC])) for end in following)


def operation_at(ranges: Sequence[LogRange], log_index: int) -> int | None:
    """Return the operation in whose logs this one stands."""
    index = bisect_left(ranges, log_index, key=lambda logs: logs.last)
    is_inside = index < len(ranges) and ranges[index].first <= log_index
    return index if is_inside else None


def _execution_start(events: Sequence[EventLog], ends: Sequence[EventLog]) -> int:
    before = [e.log_index for e in events if e.topics[:1] == (BEFORE_EXECUTION,)]
    return 1 + max((at for at in before if ends and at < ends[0].log_index), default=-1)
