"""Real transactions of Base decode to what is known of them, and carry a memo where one is put."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import pytest
from eth_abi.abi import decode, encode

from listener.abi import Steps
from listener.calldata import calldata_evidence
from listener.decode import decode_transaction, decode_transfer
from listener.erc8021 import strip_suffixes
from listener.operations import Bundle, log_ranges, operation_at, read_bundle
from listener.token_calls import read_token_call
from listener.walk import Walk, walk
from listener.wrappers import open_wrapper
from oncepaid.domain.chain import Address, EventLog, Transaction, TransferLog
from oncepaid.domain.payments import Evidence, Signer
from tests.unit.listener.calls import (
    ENVELOPE,
    MARKER,
    OPERATION_V6,
    OPERATION_V7,
    before_execution,
    operation_event,
    receipt,
    shown,
    transfer_log,
)
from tests.unit.samples import USDC, memo, recorded_receipts, recorded_transactions

Sample = tuple[str, Transaction]


def decoded(value: dict[str, Any]) -> Transaction:
    transaction = decode_transaction(value)
    assert transaction is not None
    return transaction


SAMPLES: Final = [(shape, decoded(tx)) for shape, tx in recorded_transactions()]
IDS: Final = [f"{shape} {call.hash[:10]}" for shape, call in SAMPLES]
DESCRIBED: Final = [
    (shape, call)
    for shape, call in SAMPLES
    if re.fullmatch(r"([0-9a-f]{8}>(op>)?)*[0-9a-f]{8}", shape.split()[0])
]
"""Those whose shape is a chain of selectors; of the others it says where they were found."""


def described(transaction: Transaction) -> list[tuple[str, bytes]]:
    """Return the chain of selectors down to each call of the token, and what stands behind it."""
    data = memoryview(transaction.calldata)
    steps = Steps()
    bundle = read_bundle(transaction, steps)
    if bundle is None:
        return list(_chains(transaction.to, data, "", steps))
    outer = f"{bytes(data[:4]).hex()}>op>"
    return [
        chain
        for operation in bundle.operations
        for chain in _chains(operation.sender, operation.calldata, outer, steps)
    ]


def _chains(
    target: Address | None, data: memoryview, before: str, steps: Steps
) -> Iterator[tuple[str, bytes]]:
    chain = before + bytes(data[:4]).hex()
    if target == USDC:
        made = read_token_call(data, None, steps)
        if made is not None:
            yield chain, bytes(made.tail)
        return
    opened = open_wrapper(data, steps)
    for inner in () if opened is None else opened.calls:
        yield from _chains(inner.target or target, inner.data, f"{chain}>", steps)


TAILS: Final = {
    "": (0, 0),
    "+suffix32B": (32, 32),
    "+suffix29B +8021": (29, 0),
    "+suffix33B +8021": (33, 0),
}
"""How long each recorded tail is, and how long without its ERC-8021 suffix."""


@pytest.mark.parametrize(
    ("shape", "call"), DESCRIBED, ids=[f"{s} {c.hash[:10]}" for s, c in DESCRIBED]
)
def test_a_recorded_call_has_the_shape_that_it_is_filed_under(
    shape: str, call: Transaction
) -> None:
    chain, _, suffix = shape.partition(" ")
    found = described(call)
    assert {found_chain for found_chain, _ in found} == {chain}
    size, left = TAILS[suffix]
    for _, tail in found:
        # `bytes` as last argument are padded, and the padding is read with the tail.
        bare = tail.lstrip(b"\0") if chain.endswith("cf092995") else tail
        assert len(bare) == size
        assert strip_suffixes(tail) == tail[: left or len(tail) - size]


def test_the_recorded_shapes_are_all_there() -> None:
    assert Counter(shape for shape, _ in DESCRIBED) == {
        "a9059cbb": 12,
        "23b872dd": 7,
        "cf092995": 12,
        "e3ee160e": 3,
        "a9059cbb +suffix32B": 3,
        "a9059cbb +suffix29B +8021": 1,
        "23b872dd +suffix32B": 1,
        "e3ee160e +suffix33B +8021": 3,
        "82ad56cb>cf092995": 1,
        "b61d27f6>a9059cbb": 3,
        "1fad948c>op>34fcd5be>a9059cbb": 1,
        "1fad948c>op>b61d27f6>a9059cbb": 7,
    }


UNNAMED: Final = [
    (shape, call)
    for shape, call in SAMPLES
    if (shape, call) not in DESCRIBED and not shape.startswith("erc8021")
]
BICONOMY: Final = "0xb2302c88"
"""A bundle that was filed as not decoded: three operations of Biconomy's `executeBatch_y6U`."""


@pytest.mark.parametrize(("shape", "call"), UNNAMED, ids=[f"{s} {c.hash[:10]}" for s, c in UNNAMED])
def test_where_no_usdc_call_was_seen_there_is_none(shape: str, call: Transaction) -> None:
    """Approvals, mints, swaps and bundles that only mention the token."""
    code = shape.rpartition(" ")[2]
    if code.startswith("0x"):
        assert "0x" + call.calldata[:4].hex() == code
    found = {chain for chain, _ in described(call)}
    is_known = call.hash.startswith(BICONOMY)
    assert found == ({"1fad948c>op>00004680>a9059cbb"} if is_known else set())


def test_a_marker_of_erc_8021_is_somewhere() -> None:
    marked = [call for shape, call in SAMPLES if shape == "erc8021"]
    assert len(marked) == 12
    assert all(MARKER in call.calldata for call in marked)


def fitting(transaction: Transaction) -> tuple[Bundle | None, list[EventLog]]:
    """Return a bundle with the events that its EntryPoint would emit, 1,000 logs apart."""
    bundle = read_bundle(transaction, Steps())
    if bundle is None:
        return None, []
    assert transaction.to is not None
    ends = [
        operation_event(1000 * at + 999, operation.sender, entry_point=transaction.to)
        for at, operation in enumerate(bundle.operations)
    ]
    return bundle, [before_execution(0, transaction.to), *ends]


def walked(transaction: Transaction) -> Walk:
    bundle = read_bundle(transaction, Steps())
    operations = range(len(bundle.operations)) if bundle else ()
    return walk(transaction, USDC, bundle, operations, Steps())


@pytest.mark.parametrize(("shape", "call"), SAMPLES, ids=IDS)
def test_the_walk_finds_what_the_description_finds(shape: str, call: Transaction) -> None:
    found = walked(call).leaves
    assert [bytes(leaf.tails[0].data) for leaf in found] == [tail for _, tail in described(call)]


def logs_of(transaction: Transaction) -> list[TransferLog]:
    """Return the transfers that the calls in sight would make."""
    return [
        transfer_log(
            1000 * (leaf.operation or 0) + 1 + at,
            sender=leaf.payer or transaction.sender,
            recipient=leaf.recipient,
            units=leaf.units,
        )
        for at, leaf in enumerate(walked(transaction).leaves)
    ]


PAYING: Final = [(shape, call) for shape, call in SAMPLES if walked(call).leaves]


@pytest.mark.parametrize(("shape", "call"), PAYING, ids=[f"{s} {c.hash[:10]}" for s, c in PAYING])
def test_a_recorded_payment_with_our_memo_behind_it(shape: str, call: Transaction) -> None:
    """Behind the whole input it is the sender's, and before whatever suffix stands there.

    A bundler's is not heard beside the operation that its payer signed.
    """
    _, events = fitting(call)
    logs = logs_of(call)
    bare = calldata_evidence(call, logs, receipt(*events), USDC)
    assert set(bare.values()) == {()}
    carrying = replace(call, calldata=call.calldata + ENVELOPE)
    is_bundle = fitting(call)[0] is not None
    for pieces in calldata_evidence(carrying, logs, receipt(*events), USDC).values():
        if is_bundle:
            assert pieces == ()
            continue
        (piece,) = pieces
        assert (piece.memo, piece.by) == (memo(7), call.sender)


BUNDLES: Final = [(shape, call) for shape, call in SAMPLES if fitting(call)[0]]


def with_memos_in_operations(call: Transaction) -> Transaction:
    """Return a bundle with our memo at the end of each sender's calldata, encoded by eth_abi."""
    kind = OPERATION_V6 if call.calldata[:4].hex() == "1fad948c" else OPERATION_V7
    types = [f"{kind}[]", "address"]
    operations, beneficiary = decode(types, call.calldata[4:])
    longer = [(*op[:3], op[3] + ENVELOPE, *op[4:]) for op in operations]
    return replace(call, calldata=call.calldata[:4] + encode(types, [longer, beneficiary]))


@pytest.mark.parametrize(("shape", "call"), BUNDLES, ids=[f"{s} {c.hash[:10]}" for s, c in BUNDLES])
def test_a_recorded_bundle_with_our_memo_in_each_operation(shape: str, call: Transaction) -> None:
    carrying = with_memos_in_operations(call)
    bundle, events = fitting(carrying)
    assert bundle is not None
    logs = [
        transfer_log(1000 * at + 500, sender=operation.sender)
        for at, operation in enumerate(bundle.operations)
    ]
    found = calldata_evidence(carrying, logs, receipt(*events), USDC)
    for log, pieces in zip(logs, found.values(), strict=True):
        # "scan" where the wallet has a function of its own, whose arguments nobody can tell.
        (piece,) = pieces
        assert (piece.memo, piece.signer, piece.by) == (memo(7), Signer.PAYER, log.sender)
        assert piece.company == 1


def test_many_bundles_are_recorded() -> None:
    assert Counter(call.calldata[:4].hex() for _, call in BUNDLES) == {
        "1fad948c": 20,
        "765e827f": 5,
    }


def recorded(name: str) -> tuple[Transaction, list[TransferLog], list[EventLog]]:
    content = recorded_receipts()[name]
    logs = content["receipt"]["logs"]
    transfers = [decode_transfer(log, USDC) for log in logs]
    events = [
        EventLog(
            log_index=int(log["logIndex"], 16),
            address=Address(log["address"].lower()),
            topics=tuple(bytes.fromhex(topic[2:]) for topic in log["topics"]),
            data=bytes.fromhex(log["data"][2:]),
        )
        for log in logs
    ]
    return decoded(content["tx"]), [log for log in transfers if log is not None], events


def explained(
    call: Transaction, logs: list[TransferLog], events: list[EventLog]
) -> list[list[Evidence]]:
    return [list(p) for p in calldata_evidence(call, logs, receipt(*events), USDC).values()]


@pytest.mark.parametrize("name", recorded_receipts())
def test_no_recorded_transfer_carries_a_memo_or_raises(name: str) -> None:
    call, logs, events = recorded(name)
    assert logs
    assert explained(call, logs, events) == [[] for _ in logs]


def with_memo_inside(call: Transaction, part: bytes) -> Transaction:
    """Return the transaction with an envelope over the last bytes of a part of its input."""
    assert call.calldata.count(part) == 1
    replaced = part[: -len(ENVELOPE)] + ENVELOPE
    return replace(call, calldata=call.calldata.replace(part, replaced))


def test_a_recorded_safe_pays_through_a_contract() -> None:
    """Morpho sends what the Safe withdraws: a call that is not understood, signed by the Safe."""
    call, logs, events = recorded("receipt-0xc261393f")
    assert call.calldata[:4].hex() == "6a761202"
    found = walked(call)
    assert (found.leaves, [tail.by for tail in found.opaque]) == ([], [call.to])
    (inner,) = found.opaque
    carrying = with_memo_inside(call, bytes(inner.data))
    (pieces,) = explained(carrying, logs, events)
    assert shown(pieces) == [(7, "scan", "third_party", call.to, 1)]
    (pieces,) = explained(replace(call, calldata=call.calldata + ENVELOPE), logs, events)
    assert shown(pieces) == [(7, "wrapper", "third_party", call.sender, 1)]


@pytest.mark.parametrize("name", ["receipt-0xe01c02cf", "receipt-0x90a83a26"])
def test_a_recorded_multicall_of_a_contracts_own_functions(name: str) -> None:
    call, logs, events = recorded(name)
    assert call.calldata[:4].hex() == "ac9650d8"
    found = walked(call)
    assert not found.leaves
    assert len(found.opaque) == {"receipt-0xe01c02cf": 3, "receipt-0x90a83a26": 5}[name]
    assert {tail.by for tail in found.opaque} == {call.sender}
    carrying = replace(call, calldata=call.calldata + ENVELOPE)
    for log, pieces in zip(logs, explained(carrying, logs, events), strict=True):
        signer = "payer" if log.sender == call.sender else "third_party"
        assert shown(pieces) == [(7, "wrapper", signer, call.sender, len(logs))]


def test_a_recorded_bundle_of_a_coinbase_smart_wallet() -> None:
    """The wallet sells and pays a fee; its calls are its own, and the receipt is the bundle's."""
    call, logs, events = recorded("receipt-0xe0500c13")
    bundle = read_bundle(call, Steps())
    assert bundle is not None
    (operation,) = bundle.operations
    assert operation.sender == "0xf9c9edb4a1d096d3580dcb4f8e4a7f7211fab2bb"
    assert operation.calldata[:4].hex() == "34fcd5be"
    ranges = log_ranges(bundle, call.to, receipt(*events))
    assert ranges is not None
    assert [(logs.first, logs.last, logs.succeeded) for logs in ranges] == [(448, 459, True)]
    assert [operation_at(ranges, at) for at in (447, 448, 459, 460)] == [None, 0, 0, None]
    carrying = with_memo_inside(call, bytes(operation.calldata))
    for log, pieces in zip(logs, explained(carrying, logs, events), strict=True):
        signer = "payer" if log.sender == operation.sender else "third_party"
        (piece,) = shown(pieces)
        assert (piece[0], *piece[2:4]) == (7, signer, operation.sender)
