"""Each known wrapper gives its inner calls and what stands behind its arguments."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from eth_abi.abi import encode
from hypothesis import given, settings
from hypothesis import strategies as st

from listener.abi import Steps
from listener.wrappers import Maker, Opened, open_wrapper
from tests.unit.listener.calls import (
    ENVELOPE,
    OPERATION_V6,
    OPERATION_V7,
    ROUTER,
    WALLET,
    call,
    handle_ops,
    operation_v6,
    operation_v7,
    packed,
    safe_transaction,
    selector,
)
from tests.unit.samples import USDC

A, B = b"first call", b"the second call, which is longer than one word of 32 bytes"
TWO = [(USDC, A), (ROUTER, B)]
SINGLE_MODE, BATCH_MODE, DELEGATE_MODE = (bytes([kind]).ljust(32, b"\0") for kind in (0, 1, 0xFF))
TRY_BATCH_MODE = b"\1\1".ljust(32, b"\0")
OP_DATA_MODE = (b"\1" + bytes(5) + bytes.fromhex("78210001")).ljust(32, b"\0")


def address_bytes(address: str) -> bytes:
    return bytes.fromhex(address[2:])


def batch(*tail: bytes) -> bytes:
    kinds = ["(address,uint256,bytes)[]", *["bytes"] * len(tail)]
    return encode(kinds, [[(target, 0, data) for target, data in TWO], *tail])


@dataclass(frozen=True, kw_only=True)
class Case:
    """A call as a wallet encodes it, and what is in it. `inner_tail` stands inside the call."""

    selector: str
    data: bytes
    maker: Maker
    calls: list[tuple[str | None, bytes, bool]]
    inner_tail: bytes | None = None


def case(
    code: str,
    signature: str,
    *arguments: Any,
    maker: Maker = Maker.ACCOUNT,
    calls: Sequence[tuple[str | None, bytes]] = TWO,
    delegated: bool = False,
    inner_tail: bytes | None = None,
) -> Case:
    return Case(
        selector=code,
        data=call(signature, *arguments),
        maker=maker,
        calls=[(to, data, delegated) for to, data in calls],
        inner_tail=inner_tail,
    )


ONE: list[tuple[str | None, bytes]] = [(USDC, B)]
OF_ITSELF: list[tuple[str | None, bytes]] = [(None, A), (None, B)]
PERMITS = [b"permission with a signature", b""]
TARGETS, DATA = [to for to, _ in TWO], [data for _, data in TWO]
BATCHED = [(to, 0, data) for to, data in TWO]
ALLOWED = [(to, True, data) for to, data in TWO]
PAYABLE = [(to, True, 0, data) for to, data in TWO]
RELAY, ITSELF, DELEGATOR = Maker.RELAY, Maker.ITSELF, Maker.DELEGATOR
TRANSACTIONS = packed(*TWO)

CASES = [
    case("b61d27f6", "execute(address,uint256,bytes)", USDC, 0, B, calls=ONE),
    case("0000189a", "execute_ncC(address,uint256,bytes)", USDC, 0, B, calls=ONE),
    case("34fcd5be", "executeBatch((address,uint256,bytes)[])", BATCHED),
    case("47e1da2a", "executeBatch(address[],uint256[],bytes[])", TARGETS, [0, 0], DATA),
    case("47e1da2a", "executeBatch(address[],uint256[],bytes[])", TARGETS, [], DATA),
    case("00004680", "executeBatch_y6U(address[],uint256[],bytes[])", TARGETS, [0, 0], DATA),
    case("18dfb3c7", "executeBatch(address[],bytes[])", TARGETS, DATA),
    case(
        "e9ae5c53",
        "execute(bytes32,bytes)",
        *(SINGLE_MODE, address_bytes(USDC) + bytes(32) + B),
        calls=ONE,
    ),
    case("e9ae5c53", "execute(bytes32,bytes)", BATCH_MODE, batch(), inner_tail=b""),
    case("e9ae5c53", "execute(bytes32,bytes)", TRY_BATCH_MODE, batch(), inner_tail=b""),
    case("e9ae5c53", "execute(bytes32,bytes)", BATCH_MODE, batch() + A, inner_tail=A),
    case("e9ae5c53", "execute(bytes32,bytes)", OP_DATA_MODE, batch(ENVELOPE), inner_tail=b""),
    case("e9ae5c53", "execute(bytes32,bytes)", OP_DATA_MODE, batch(), inner_tail=b""),
    case(
        "e9ae5c53",
        "execute(bytes32,bytes)",
        *(DELEGATE_MODE, address_bytes(USDC) + B),
        calls=ONE,
        delegated=True,
    ),
    case("51945447", "execute(address,uint256,bytes,uint8)", USDC, 0, B, 0, calls=ONE),
    case("7bb37428", "executeUserOp(address,uint256,bytes,uint8)", USDC, 0, B, 0, calls=ONE),
    case(
        "541d63c8",
        "executeUserOpWithErrorString(address,uint256,bytes,uint8)",
        *(USDC, 0, B, 1),
        calls=ONE,
        delegated=True,
    ),
    case(
        "468721a7",
        "execTransactionFromModule(address,uint256,bytes,uint8)",
        USDC,
        0,
        B,
        0,
        calls=ONE,
    ),
    case(
        "5229073f",
        "execTransactionFromModuleReturnData(address,uint256,bytes,uint8)",
        *(USDC, 0, B, 1),
        calls=ONE,
        delegated=True,
    ),
    case("8d80ff0a", "multiSend(bytes)", TRANSACTIONS, maker=RELAY),
    case("8d80ff0a", "multiSend(bytes)", packed(*TWO, operation=1), maker=RELAY, delegated=True),
    case("82ad56cb", "aggregate3((address,bool,bytes)[])", ALLOWED, maker=RELAY),
    case("174dea71", "aggregate3Value((address,bool,uint256,bytes)[])", PAYABLE, maker=RELAY),
    case("252dba42", "aggregate((address,bytes)[])", TWO, maker=RELAY),
    case("bce38bd7", "tryAggregate(bool,(address,bytes)[])", False, TWO, maker=RELAY),
    case("c3077fa9", "blockAndAggregate((address,bytes)[])", TWO, maker=RELAY),
    case("399542e9", "tryBlockAndAggregate(bool,(address,bytes)[])", True, TWO, maker=RELAY),
    case("ac9650d8", "multicall(bytes[])", DATA, maker=ITSELF, calls=OF_ITSELF),
    case("5ae401dc", "multicall(uint256,bytes[])", 2**40, DATA, maker=ITSELF, calls=OF_ITSELF),
    case("1f0464d1", "multicall(bytes32,bytes[])", bytes(32), DATA, maker=ITSELF, calls=OF_ITSELF),
    case(
        "cef6d209",
        "redeemDelegations(bytes[],bytes32[],bytes[])",
        *(PERMITS, [BATCH_MODE, SINGLE_MODE], [batch(), address_bytes(USDC) + bytes(32) + B]),
        maker=DELEGATOR,
        calls=[*TWO, *ONE],
    ),
    Case(
        selector="6a761202",
        data=safe_transaction(USDC, B),
        maker=Maker.ACCOUNT,
        calls=[(USDC, B, False)],
    ),
    Case(
        selector="6a761202",
        data=safe_transaction(USDC, B, operation=1),
        maker=Maker.ACCOUNT,
        calls=[(USDC, B, True)],
    ),
]


def opened(data: bytes) -> Opened | None:
    return open_wrapper(memoryview(data), Steps())


@pytest.mark.parametrize("sample", CASES, ids=lambda sample: sample.selector)
@pytest.mark.parametrize("tail", [b"", ENVELOPE], ids=["bare", "tail"])
def test_a_wrapper_gives_its_calls_and_its_tail(sample: Case, tail: bytes) -> None:
    assert sample.data[:4].hex() == sample.selector
    found = opened(sample.data + tail)
    assert found is not None
    assert found.maker is sample.maker
    assert [(c.target, bytes(c.data), c.delegated) for c in found.calls] == sample.calls
    tails = [] if sample.inner_tail is None else [sample.inner_tail]
    assert [bytes(found_tail).lstrip(b"\0") for found_tail in found.tails] == [*tails, tail]


@pytest.mark.parametrize("sample", CASES, ids=lambda sample: sample.selector)
def test_a_wrapper_cut_short_holds_nothing(sample: Case) -> None:
    whole = opened(sample.data)
    assert whole is not None
    arguments_end = len(sample.data) - len(whole.tails[-1])
    for size in range(4, arguments_end):
        found = opened(sample.data[:size])
        assert found is not None
        assert not found.calls
        assert not found.tails


@pytest.mark.parametrize("sample", CASES, ids=lambda sample: sample.selector)
@settings(max_examples=25)
@given(st.data())
def test_a_mutated_wrapper_is_opened_or_not(sample: Case, data: st.DataObject) -> None:
    at = data.draw(st.integers(4, len(sample.data) - 1))
    change = data.draw(st.binary(min_size=1, max_size=32))
    mutated = sample.data[:at] + change + sample.data[at + len(change) :]
    found = opened(mutated)
    assert found is not None
    assert all(bytes(part) in mutated for part in (*found.tails, *(c.data for c in found.calls)))


NEVER_OPENED = {
    "2c2abd1e": call("executeWithoutChainIdValidation(bytes[])", [A, B]),
    "8dd7712f": call(f"executeUserOp({OPERATION_V7},bytes32)", operation_v7(WALLET, A), bytes(32)),
    "1fad948c": handle_ops(operation_v6(WALLET, A)),
    "765e827f": handle_ops(operation_v7(WALLET, A)),
    "4b1d7cf5": call(f"handleAggregatedOps(({OPERATION_V6}[],address,bytes)[],address)", [], USDC),
    "dbed18e0": call(f"handleAggregatedOps(({OPERATION_V7}[],address,bytes)[],address)", [], USDC),
}


@pytest.mark.parametrize(("code", "data"), NEVER_OPENED.items(), ids=NEVER_OPENED)
def test_what_is_known_and_never_opened(code: str, data: bytes) -> None:
    assert data[:4].hex() == code
    found = opened(data + ENVELOPE)
    assert found is not None
    assert not found.calls
    assert not found.tails


UNDECODABLE = {
    "more targets than calls": call("executeBatch(address[],bytes[])", TARGETS, [A]),
    "an operation that Safe lacks": safe_transaction(USDC, B, operation=2),
    "a packed operation that Safe lacks": call("multiSend(bytes)", packed(*TWO, operation=2)),
    "a packed call cut short": call("multiSend(bytes)", packed(*TWO)[:-1]),
    "a packed head cut short": call("multiSend(bytes)", packed(*TWO) + bytes(84)),
    "a static call": call("execute(bytes32,bytes)", b"\xfe".ljust(32, b"\0"), batch()),
    "a single call cut short": call("execute(bytes32,bytes)", SINGLE_MODE, bytes(51)),
    "a delegate call cut short": call("execute(bytes32,bytes)", DELEGATE_MODE, bytes(19)),
    "a batch cut short": call("execute(bytes32,bytes)", BATCH_MODE, batch()[:-64]),
    "more modes than executions": call(
        "redeemDelegations(bytes[],bytes32[],bytes[])", [], [BATCH_MODE] * 2, [batch()]
    ),
}


@pytest.mark.parametrize("data", UNDECODABLE.values(), ids=UNDECODABLE)
def test_what_does_not_decode_holds_nothing(data: bytes) -> None:
    found = opened(data + ENVELOPE)
    assert found is not None
    assert not found.calls
    assert not found.tails


@pytest.mark.parametrize("data", [b"", b"\xb6", bytes(4), selector("transfer(address,uint256)")])
def test_other_calls_are_not_known(data: bytes) -> None:
    assert opened(data) is None


def test_a_selector_alone_holds_nothing() -> None:
    found = opened(selector("aggregate3((address,bool,bytes)[])"))
    assert found is not None
    assert not found.calls
