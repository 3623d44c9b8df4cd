"""A memo is read from behind a call's arguments, past other protocols' suffixes."""

import time
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st

from listener.calldata import (
    MAX_CALLDATA_BYTES,
    TRANSFER,
    TRANSFER_FROM,
    evidence_of_call,
    is_direct_call,
    strip_suffixes,
)
from listener.decode import decode_transaction, decode_transfer
from oncepaid.domain.chain import Address, BlockHash, BlockRef, Transaction, TransferLog, TxHash
from oncepaid.domain.memo import Memo, envelope_of
from oncepaid.domain.money import Units
from oncepaid.domain.payments import Evidence, MemoSource, Signer
from tests.unit.samples import (
    PAYER,
    SHOP,
    STRANGER,
    USDC,
    memo,
    recorded_receipts,
    recorded_transactions,
)

MARKER = bytes.fromhex("8021" * 8)
ENVELOPE = envelope_of(memo(7))
UNITS = Units(1_500_000)

# The vectors of the reference implementation (`Attribution.ts` of wevm/ox), and one seen on Base.
BASEAPP = b"baseapp\x07\x00" + MARKER
BASEAPP_MORPHO = bytes.fromhex("626173656170702c6d6f7270686f0e00") + MARKER
REGISTERED = bytes(range(20)) + bytes.fromhex("210502") + b"baseapp\x07\x01" + MARKER
CBOR_BASEAPP = bytes.fromhex("a161616762617365617070000b02") + MARKER
CBOR_FACILITATOR = bytes.fromhex("a161776a6364705f666163696c31000e02") + MARKER
VECTORS = [BASEAPP, BASEAPP_MORPHO, REGISTERED, CBOR_BASEAPP, CBOR_FACILITATOR]

LENGTH_FIRST = b"\x07baseapp\x00" + MARKER
"""Schema 0 as several published pages print it: a naive parser reads a length of 0x70."""

codes = st.from_regex(r"[a-z0-9_]{1,12}(,[a-z0-9_]{1,12}){0,3}", fullmatch=True).map(str.encode)
schema_0 = codes.map(lambda c: c + bytes([len(c), 0]) + MARKER)
schema_1 = st.builds(
    lambda registry, chain, c: (
        registry + chain + bytes([len(chain)]) + c + bytes([len(c), 1]) + MARKER
    ),
    st.binary(min_size=20, max_size=20),
    st.binary(min_size=1, max_size=32),
    codes,
)
schema_2 = st.dictionaries(
    st.sampled_from(["a", "w", "s", "m"]), st.text(max_size=10) | st.binary(max_size=20), max_size=3
).map(lambda m: (body := cbor2.dumps(m)) + len(body).to_bytes(2) + b"\x02" + MARKER)
suffixes = st.one_of(st.sampled_from(VECTORS), schema_0, schema_1, schema_2)


def word(address: str) -> bytes:
    return bytes(12) + bytes.fromhex(address[2:])


def transfer_call(tail: bytes = b"", *, to: str = SHOP, units: int = UNITS) -> bytes:
    return TRANSFER + encode(["address", "uint256"], [to, units]) + tail


def transfer_from_call(tail: bytes = b"", *, payer: str = PAYER) -> bytes:
    arguments = encode(["address", "address", "uint256"], [payer, SHOP, UNITS])
    return TRANSFER_FROM + arguments + tail


def transaction(
    calldata: bytes, *, sender: Address = PAYER, to: Address | None = USDC
) -> Transaction:
    return Transaction(
        hash=TxHash("0x" + "01" * 32), block_hash=None, sender=sender, to=to, calldata=calldata
    )


LOG = TransferLog(
    block=BlockRef(number=1, hash=BlockHash("0x" + "02" * 32)),
    timestamp_ms=None,
    tx_hash=TxHash("0x" + "01" * 32),
    log_index=0,
    sender=PAYER,
    recipient=SHOP,
    units=UNITS,
)


def found(calldata: bytes, *, sender: Address = PAYER, log: TransferLog = LOG) -> list[Memo]:
    pieces = evidence_of_call(transaction(calldata, sender=sender), log, USDC)
    return [piece.memo for piece in pieces]


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
    expected = Evidence(memo=memo(7), source=MemoSource.CALLDATA, signer=signer)
    assert evidence_of_call(transaction(calldata, sender=sender), LOG, USDC) == (expected,)


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


@pytest.mark.parametrize("to", [None, STRANGER])
def test_only_the_token_is_called_directly(to: Address | None) -> None:
    call = transaction(transfer_call(ENVELOPE), to=to)
    assert not is_direct_call(call, USDC)
    assert evidence_of_call(call, LOG, USDC) == ()


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


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.hex()[:16])
@pytest.mark.parametrize("before", [b"", ENVELOPE, bytes(200)], ids=["alone", "memo", "zeros"])
def test_a_published_suffix_is_cut_off_exactly(vector: bytes, before: bytes) -> None:
    assert strip_suffixes(before + vector) == before


@given(st.sampled_from([b"", ENVELOPE, bytes(32)]), st.lists(suffixes, max_size=8))
def test_stacked_suffixes_are_cut_off_down_to_the_memo(before: bytes, stack: list[bytes]) -> None:
    tail = before + b"".join(stack)
    assert strip_suffixes(tail) == before
    memos = [memo(7)] if before == ENVELOPE else []
    assert found(transfer_call(tail)) == memos
    assert found(transfer_from_call(tail), sender=STRANGER) == memos


def test_the_stack_is_bounded_and_the_memo_still_found() -> None:
    tail = ENVELOPE + BASEAPP * 12
    assert strip_suffixes(tail) == ENVELOPE + BASEAPP * 4
    assert found(transfer_call(tail)) == [memo(7)]


@pytest.mark.parametrize("before", [b"", ENVELOPE, bytes(500), b"a" * 500])
def test_a_suffix_with_its_length_first_is_left_alone(before: bytes) -> None:
    assert strip_suffixes(before + LENGTH_FIRST) == before + LENGTH_FIRST
    assert found(transfer_call(ENVELOPE + before + LENGTH_FIRST)) == [memo(7)]


def cbor_suffix(body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return body + size.to_bytes(2) + b"\x02" + MARKER


@pytest.mark.parametrize(
    "tail",
    [
        MARKER,
        b"\x00" + MARKER,
        b"\x00\x00" + MARKER,
        b"baseapp\x07\x03" + MARKER,
        b"baseapp\x07\xff" + MARKER,
        b"BaseApp\x07\x00" + MARKER,
        b"base app\x08\x00" + MARKER,
        b"base,,app\x09\x00" + MARKER,
        b"baseapp,\x08\x00" + MARKER,
        b"baseapp\n\x08\x00" + MARKER,
        b"baseapp\x08\x00" + MARKER,
        b"baseapp\x07\x00" + MARKER[:-1],
        b"baseapp\x07\x00" + MARKER + b"\x00",
        REGISTERED[1:],
        bytes(20) + b"\x00" + b"baseapp\x07\x01" + MARKER,
        bytes(60) + b"\x21" + b"baseapp\x07\x01" + MARKER,
        b"\x00\x02" + MARKER,
        b"\x02" + MARKER,
        cbor_suffix(b""),
        cbor_suffix(b"\xa0", 2),
        cbor_suffix(b"\xa1"),
        cbor_suffix(cbor2.dumps([1])),
        cbor_suffix(cbor2.dumps("text")),
        cbor_suffix(b"\xa0\x00"),
        cbor_suffix(b"\xa0" + ENVELOPE),
        cbor_suffix(cbor2.dumps({"m": bytes(2000)})),
        cbor_suffix(b"\xa1\x61m" + b"\x81" * 900),
    ],
    ids=lambda tail: tail.hex()[:24],
)
def test_what_does_not_parse_exactly_is_left_alone(tail: bytes) -> None:
    assert strip_suffixes(tail) == tail


@given(st.binary(max_size=200), st.sampled_from([0, 1, 2, 3, 255]), st.integers(0, 3))
def test_stripping_only_ever_cuts_the_end_off(data: bytes, schema: int, markers: int) -> None:
    tail = data + (bytes([schema]) + MARKER) * markers
    assert tail.startswith(strip_suffixes(tail))


@given(st.binary(max_size=400), st.binary(max_size=60))
def test_arbitrary_bytes_prove_nothing(calldata: bytes, tail: bytes) -> None:
    for data in (calldata, TRANSFER + calldata, TRANSFER_FROM + calldata, transfer_call(tail)):
        assert found(data) == []


def colliding_map() -> bytes:
    """Return a CBOR map whose keys all have the hash 0: what makes a decoder quadratic."""
    keys = (b"\xc2\x4a" + (n * (2**61 - 1)).to_bytes(10) + b"\x00" for n in range(1, 4900))
    return b"\xb9" + (4899).to_bytes(2) + b"".join(keys)


@pytest.mark.parametrize(
    "tail",
    [
        MARKER * 8000,
        (b"\x00" + MARKER) * 7500,
        BASEAPP * 4900,
        envelope_of(memo(7))[:-1] * 5000,
        cbor_suffix(colliding_map()),
        cbor_suffix(b"\xa1\x00\xc4\x82\x01\xc2\x59\xea\x60" + b"\xff" * 60_000),
        cbor_suffix(b"\xa1\x00" + b"\x81" * 60_000),
        cbor_suffix(b"\xa1\x00\x9b" + b"\xff" * 8),
    ],
    ids=["markers", "empty", "stack", "pieces", "collisions", "decimal", "deep", "huge"],
)
def test_hostile_calldata_is_cheap(tail: bytes) -> None:
    call = transfer_call(ENVELOPE + tail)
    assert len(call) <= MAX_CALLDATA_BYTES
    started = time.process_time()
    assert found(call) == [memo(7)]
    assert time.process_time() - started < 0.1


def test_no_recorded_transaction_carries_a_memo_or_raises() -> None:
    recorded = [tx for _, tx in recorded_transactions()]
    recorded += [content["tx"] for content in recorded_receipts().values()]
    assert len(recorded) > 100
    for value in recorded:
        decoded = decode_transaction(value)
        assert decoded is not None
        assert decoded.calldata.startswith(strip_suffixes(decoded.calldata))
        assert evidence_of_call(decoded, LOG, USDC) == ()


def test_no_recorded_transfer_carries_a_memo_or_raises() -> None:
    for content in recorded_receipts().values():
        call = decode_transaction(content["tx"])
        logs = [decode_transfer(log, USDC) for log in content["receipt"]["logs"]]
        transfers = [log for log in logs if log is not None]
        assert call is not None
        assert transfers
        for log in transfers:
            assert evidence_of_call(call, log, USDC) == ()


ARGUMENT_BYTES = {"a9059cbb": 64, "23b872dd": 96, "e3ee160e": 288}
RECORDED_TAILS = {
    "": (0, 0),
    "+suffix32B": (32, 32),
    "+suffix29B +8021": (29, 0),
    "+suffix33B +8021": (33, 0),
}
DIRECT = [
    (shape, tx) for shape, tx in recorded_transactions() if shape.split()[0] in ARGUMENT_BYTES
]


@pytest.mark.parametrize(("shape", "tx"), DIRECT, ids=[f"{s} {t['hash'][:10]}" for s, t in DIRECT])
def test_the_tail_of_a_recorded_call(shape: str, tx: dict[str, Any]) -> None:
    selector, _, suffix = shape.partition(" ")
    call = decode_transaction(tx)
    assert call is not None
    assert call.calldata[:4].hex() == selector
    assert is_direct_call(call, USDC) is (selector != "e3ee160e")
    tail = call.calldata[4 + ARGUMENT_BYTES[selector] :]
    size, left = RECORDED_TAILS[suffix]
    assert len(tail) == size
    assert strip_suffixes(tail) == tail[:left]


def test_the_recorded_calls_cover_every_kind_of_tail() -> None:
    assert {shape.partition(" ")[2] for shape, _ in DIRECT} == set(RECORDED_TAILS)


@pytest.mark.parametrize(("shape", "tx"), DIRECT, ids=[f"{s} {t['hash'][:10]}" for s, t in DIRECT])
def test_a_recorded_call_with_our_memo_before_its_suffix(shape: str, tx: dict[str, Any]) -> None:
    selector = shape.split()[0]
    call = decode_transaction(tx)
    assert call is not None
    end = 4 + ARGUMENT_BYTES[selector]
    with_memo = replace(call, calldata=call.calldata[:end] + ENVELOPE + call.calldata[end:])
    words = [call.calldata[at : at + 32] for at in range(4, end, 32)]
    recipient, payer = (0, None) if selector == "a9059cbb" else (1, 0)
    log = replace(
        LOG,
        sender=call.sender if payer is None else Address("0x" + words[payer][12:].hex()),
        recipient=Address("0x" + words[recipient][12:].hex()),
        units=Units(int.from_bytes(words[recipient + 1])),
    )
    memos = [piece.memo for piece in evidence_of_call(with_memo, log, USDC)]
    assert memos == ([] if selector == "e3ee160e" else [memo(7)])
