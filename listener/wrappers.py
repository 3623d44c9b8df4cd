"""Calls that carry calls: which there are, who makes the inner ones, and where their bytes stand.

The selectors are computed from the signatures. Pure and bounded; never raises, whatever the bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from listener.abi import AbiType, Malformed, Steps, Value, decode, parse_type
from listener.token_calls import SELECTOR_BYTES, address_of, arguments_of, selector_of
from oncepaid.domain.chain import Address


class Maker(Enum):
    """Who makes the inner calls, and whether he stands behind their bytes."""

    ACCOUNT = auto()
    """The wallet that was called: it makes them because it accepted them, by its owners' signatures
    or because its owner called it."""
    RELAY = auto()
    """A contract that makes anybody's calls, as Multicall3: it vouches for nothing."""
    ITSELF = auto()
    """`multicall(bytes[])`: they are calls of the same contract, as its caller would make them."""
    DELEGATOR = auto()
    """An account that is not named here (ERC-7710: it signed that others may)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerCall:
    """`target` is None for a call of the same contract. `delegated`: a DELEGATECALL, whose code
    acts as the account that makes it."""

    target: Address | None
    data: memoryview
    delegated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A wrapper taken apart. `tails` stand behind its arguments, the innermost first.

    A wrapper that does not decode, or is never a payment, has nothing in it.
    """

    maker: Maker
    calls: Sequence[InnerCall] = ()
    tails: Sequence[memoryview] = ()


_Take = Callable[[tuple[Value, ...], Steps], Opened]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wrapper:
    arguments: AbiType
    take: _Take


_SINGLE, _BATCH, _DELEGATED = 0x00, 0x01, 0xFF
"""ERC-7579 call types: the first byte of a mode."""
_WITH_OP_DATA: Final = 0x78210001
"""ERC-7821: bytes 6 to 10 of a mode whose batch may be followed by `opData`, a signature."""
_OF_BATCHES: Final = 0x78210002
"""ERC-7821: the same of a batch of batches, each as in the mode above."""
_CALLS: Final = parse_type("((address,uint256,bytes)[])")
_CALLS_AND_OP_DATA: Final = parse_type("((address,uint256,bytes)[],bytes)")
_BATCHES: Final = parse_type("(bytes[])")
_PACKED_TARGET: Final = 20
_PACKED_CALL: Final = 20 + 32
_PACKED_HEAD: Final = 1 + 20 + 32 + 32
_IS_DELEGATED: Final = {0: False, 1: True}
"""Safe's `Enum.Operation`; whatever else stands there makes a Safe revert."""


def open_wrapper(data: memoryview, steps: Steps) -> Opened | None:
    """Return what a call carries, or None where its selector is not known."""
    selector = bytes(data[:SELECTOR_BYTES])
    wrapper = _WRAPPERS.get(selector)
    if wrapper is None:
        return _NOTHING if selector in _NEVER else None
    body = data[SELECTOR_BYTES:]
    try:
        arguments = decode(wrapper.arguments, body, steps)
        opened = wrapper.take(arguments.values, steps)
    except Malformed:
        steps.is_short = True
        return _NOTHING
    tails = (*opened.tails, body[arguments.end :])
    return Opened(maker=opened.maker, calls=opened.calls, tails=tails)


_NOTHING: Final = Opened(maker=Maker.RELAY)


def _one(values: tuple[Value, ...], steps: Steps) -> Opened:
    """(address target, uint256 value, bytes data)"""
    return Opened(maker=Maker.ACCOUNT, calls=[_call(values[0], values[2])])


def _one_of_a_safe(values: tuple[Value, ...], steps: Steps) -> Opened:
    """(address target, uint256 value, bytes data, uint8 operation, …)"""
    call = _call(values[0], values[2], delegated=_operation(values[3]))
    return Opened(maker=Maker.ACCOUNT, calls=[call])


def _tuples(maker: Maker) -> _Take:
    """(…, (address target, …, bytes data)[])"""

    def take(values: tuple[Value, ...], steps: Steps) -> Opened:
        return Opened(maker=maker, calls=[_call(entry[0], entry[-1]) for entry in values[-1]])

    return take


def _columns(values: tuple[Value, ...], steps: Steps) -> Opened:
    """(address[] targets, …, bytes[] data)"""
    targets, data = values[0], values[-1]
    if len(targets) != len(data):
        raise Malformed("as many targets as calls")
    return Opened(maker=Maker.ACCOUNT, calls=list(map(_call, targets, data)))


def _of_itself(values: tuple[Value, ...], steps: Steps) -> Opened:
    """(…, bytes[] data)"""
    calls = [InnerCall(target=None, data=data) for data in values[-1]]
    return Opened(maker=Maker.ITSELF, calls=calls)


def _packed(values: tuple[Value, ...], steps: Steps) -> Opened:
    """(bytes transactions) of MultiSend: operation 1 ‖ target 20 ‖ value 32 ‖ size 32 ‖ data"""
    packed = values[0]
    calls = []
    at = 0
    while at < len(packed):
        steps.take()
        start = at + _PACKED_HEAD
        end = start + int.from_bytes(packed[start - 32 : start])
        if start > len(packed) or end > len(packed):
            raise Malformed("a packed call that ends behind its bytes")
        target = int.from_bytes(packed[at + 1 : at + 21])
        calls.append(_call(target, packed[start:end], delegated=_operation(packed[at])))
        at = end
    return Opened(maker=Maker.RELAY, calls=calls)


def _modular(values: tuple[Value, ...], steps: Steps) -> Opened:
    """(bytes32 mode, bytes execution) of ERC-7579 and ERC-7821"""
    calls, tails = _execution(values[0], values[1], steps)
    return Opened(maker=Maker.ACCOUNT, calls=calls, tails=tails)


def _redeemed(values: tuple[Value, ...], steps: Steps) -> Opened:
    """(bytes[] permissions, bytes32[] modes, bytes[] executions) of ERC-7710"""
    _, modes, executions = values
    if len(modes) != len(executions):
        raise Malformed("as many modes as executions")
    calls: list[InnerCall] = []
    for mode, execution in zip(modes, executions, strict=True):
        # What stands behind one of several batches speaks of that batch only: it is left out.
        calls += _execution(mode, execution, steps)[0]
    return Opened(maker=Maker.DELEGATOR, calls=calls)


def _execution(
    mode: int, execution: memoryview, steps: Steps
) -> tuple[list[InnerCall], list[memoryview]]:
    """Return the calls of an ERC-7579 execution and what stands behind a batch."""
    match mode >> 248:
        case kind if kind == _SINGLE and len(execution) >= _PACKED_CALL:
            target = int.from_bytes(execution[:_PACKED_TARGET])
            return [_call(target, execution[_PACKED_CALL:])], []
        case kind if kind == _DELEGATED and len(execution) >= _PACKED_TARGET:
            target = int.from_bytes(execution[:_PACKED_TARGET])
            return [_call(target, execution[_PACKED_TARGET:], delegated=True)], []
        case kind if kind == _BATCH:
            return _batch(mode >> 176 & 0xFFFFFFFF, execution, steps)
        case _:
            raise Malformed("an execution of no known kind")


def _batch(
    layout: int, execution: memoryview, steps: Steps
) -> tuple[list[InnerCall], list[memoryview]]:
    if layout == _OF_BATCHES:
        found = decode(_BATCHES, execution, steps)
        batches = [_batch(_WITH_OP_DATA, one, steps) for one in found.values[0]]
        # As with ERC-7710: what stands behind one of several speaks of that one only.
        behind = batches[0][1] if len(batches) == 1 else []
        calls = [inner for batch in batches for inner in batch[0]]
        return calls, [*behind, execution[found.end :]]
    # As ERC-7821 tells them apart: the offset of the calls leaves room for another one.
    has_op_data = int.from_bytes(execution[:32]) >= 64 and layout == _WITH_OP_DATA
    batch = decode(_CALLS_AND_OP_DATA if has_op_data else _CALLS, execution, steps)
    calls = [_call(entry[0], entry[2]) for entry in batch.values[0]]
    return calls, [execution[batch.end :]]


def _call(target: int, data: memoryview, *, delegated: bool = False) -> InnerCall:
    return InnerCall(target=address_of(target), data=data, delegated=delegated)


def _operation(number: int) -> bool:
    delegated = _IS_DELEGATED.get(number)
    if delegated is None:
        raise Malformed("an operation that a Safe does not have")
    return delegated


_OPERATION_V6: Final = (
    "(address,uint256,bytes,bytes,uint256,uint256,uint256,uint256,uint256,bytes,bytes)"
)
_OPERATION_V7: Final = "(address,uint256,bytes,bytes,bytes32,uint256,bytes32,bytes,bytes)"
HANDLE_OPS: Final = tuple(f"handleOps({kind}[],address)" for kind in (_OPERATION_V6, _OPERATION_V7))
HANDLE_AGGREGATED_OPS: Final = tuple(
    f"handleAggregatedOps(({kind}[],address,bytes)[],address)"
    for kind in (_OPERATION_V6, _OPERATION_V7)
)
EXECUTE_USER_OP: Final = f"executeUserOp({_OPERATION_V7},bytes32)"

_BY_SIGNATURE: Final[dict[str, _Take]] = {
    # Coinbase Smart Wallet, SimpleAccount, Light Account, Safe and Kernel in their versions
    "execute(address,uint256,bytes)": _one,
    "executeBatch((address,uint256,bytes)[])": _tuples(Maker.ACCOUNT),
    "executeBatch(address[],uint256[],bytes[])": _columns,
    "executeBatch(address[],bytes[])": _columns,
    "execute(bytes32,bytes)": _modular,
    "execute(address,uint256,bytes,uint8)": _one_of_a_safe,
    "execute_ncC(address,uint256,bytes)": _one,
    "executeBatch_y6U(address[],uint256[],bytes[])": _columns,
    "executeUserOp(address,uint256,bytes,uint8)": _one_of_a_safe,
    "executeUserOpWithErrorString(address,uint256,bytes,uint8)": _one_of_a_safe,
    "execTransaction(address,uint256,bytes,uint8,uint256,uint256,uint256,address,address,bytes)": (
        _one_of_a_safe
    ),
    "execTransactionFromModule(address,uint256,bytes,uint8)": _one_of_a_safe,
    "execTransactionFromModuleReturnData(address,uint256,bytes,uint8)": _one_of_a_safe,
    "multiSend(bytes)": _packed,
    # Multicall3 and its forerunners
    "aggregate3((address,bool,bytes)[])": _tuples(Maker.RELAY),
    "aggregate3Value((address,bool,uint256,bytes)[])": _tuples(Maker.RELAY),
    "aggregate((address,bytes)[])": _tuples(Maker.RELAY),
    "tryAggregate(bool,(address,bytes)[])": _tuples(Maker.RELAY),
    "blockAndAggregate((address,bytes)[])": _tuples(Maker.RELAY),
    "tryBlockAndAggregate(bool,(address,bytes)[])": _tuples(Maker.RELAY),
    "multicall(bytes[])": _of_itself,
    "multicall(uint256,bytes[])": _of_itself,
    "multicall(bytes32,bytes[])": _of_itself,
    "redeemDelegations(bytes[],bytes32[],bytes[])": _redeemed,
}
_WRAPPERS: Final = {
    selector_of(text): _Wrapper(arguments=arguments_of(text), take=take)
    for text, take in _BY_SIGNATURE.items()
}
_NEVER: Final = frozenset(
    map(
        selector_of,
        (
            # Changes the owners of a Coinbase Smart Wallet, on every chain.
            "executeWithoutChainIdValidation(bytes[])",
            # Opened where they prove something: as the transaction's own call of a known
            # EntryPoint, and as an operation's calldata. Anywhere else their signatures and their
            # other users' bytes are not to be searched.
            EXECUTE_USER_OP,
            *HANDLE_OPS,
            *HANDLE_AGGREGATED_OPS,
        ),
    )
)
"""Known, and nothing to be looked for in them."""
