"""Receipts of payments that came through contracts: read, checked, and never a way to stop us."""

from collections.abc import Callable
from typing import Any, Final

import pytest
from eth_abi.abi import encode

from db.payment_rows import evidence_of
from db.pool import Database
from listener import decode as decode_module
from listener import exchange as exchange_module
from listener import receipts as receipts_module
from listener.contract_events import MEMO as MEMO_TOPIC
from listener.contract_events import TRANSFER_WITH_REFERENCE
from listener.operations import BEFORE_EXECUTION
from listener.references import ContractKind, ReferenceContract
from listener.rpc import HttpRpc
from oncepaid.domain.chain import Address
from oncepaid.domain.errors import CallFailed
from oncepaid.domain.memo import Memo, Reference, envelope_of
from oncepaid.domain.payments import Evidence, MemoSource, Signer
from tests.fakes.blocks import (
    CHAIN_ID,
    TOKEN,
    Chain,
    Log,
    Tx,
    address,
    authorization_log,
    call_through,
    nonce_of,
    pay,
    transfer_log,
    word,
)
from tests.fakes.node import FakeNode
from tests.fakes.refusals import Refusal
from tests.fakes.twists import refuses
from tests.integration.listener.pairs import Pair
from tests.integration.listener.rig import (
    MEMO,
    OTHER_MEMO,
    PAYER,
    SHOP,
    STRANGER,
    Ear,
    memos_of,
    units_of,
)
from tests.unit.listener.calls import execute, handle_ops, operation_event, operation_v7

pytestmark = pytest.mark.fault("F13")

RELAYER: Final = address("relayer")
PROXY: Final = address("proxy")
RECEIPT: Final = "eth_getTransactionReceipt"
USED: Final = authorization_log(PAYER, nonce_of(MEMO))
PAID: Final = transfer_log(PAYER, SHOP, 5)
BY_AUTHORIZATION: Final = (MEMO.hex(), "authorization", "payer")
NOISE: Final = Log(topics=(), address=STRANGER)


def changed_receipt(**changes: Any) -> Callable[[Any, Any], Any]:
    """Answer with a receipt that says otherwise in some fields."""
    return lambda _, receipt: {**receipt, **changes}


def changed_log(at: int, **changes: Any) -> Callable[[Any, Any], Any]:
    """Answer with a receipt in which one log says otherwise."""

    def change(_: Any, receipt: Any) -> Any:
        logs = list(receipt["logs"])
        logs[at] = {**logs[at], **changes}
        return {**receipt, "logs": logs}

    return change


WRONG: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "missing": lambda _, __: None,
    "no object": lambda _, __: "0x",
    "of another block": changed_receipt(blockHash="0x" + "ab" * 32),
    "of another height": changed_receipt(blockNumber="0x1"),
    "of a failure": changed_receipt(status="0x0"),
    "without logs": changed_receipt(logs=[]),
    "with logs that are no list": changed_receipt(logs=None),
    "with the transfer elsewhere": changed_log(1, logIndex="0x7"),
    "of another payer": changed_log(1, topics=transfer_log(STRANGER, SHOP, 5).topics),
    "of another recipient": changed_log(1, topics=transfer_log(PAYER, STRANGER, 5).topics),
    "of another amount": changed_log(1, data=word(6)),
    "of another transaction": changed_log(1, transactionHash="0x" + "ab" * 32),
    "with too many topics": changed_log(0, topics=["0x" + "ab" * 32] * 5),
    "with data that is not hex": changed_log(0, data="0x1"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
async def test_a_receipt_that_contradicts_its_log_stores_nothing(
    chain: Chain, node: FakeNode, ear: Ear, wrong: Callable[[Any, Any], Any]
) -> None:
    """A node that is behind, or lies, must not make us lose a memo."""
    chain.add(call_through(RELAYER, USED, PAID))
    node.twist(RECEIPT, wrong, times=1)
    assert await ear.insist() == 1
    assert memos_of(await ear.payments()) == [BY_AUTHORIZATION]


async def test_another_transaction_than_was_asked_for(
    chain: Chain, node: FakeNode, ear: Ear
) -> None:
    chain.add(pay(PAYER, SHOP, 5, memo=MEMO))

    def other(_: Any, told: Any) -> Any:
        return {**told, "hash": "0x" + "ab" * 32}

    node.twist("eth_getTransactionByHash", other, times=1)
    assert await ear.insist() == 1
    assert memos_of(await ear.payments()) == [(MEMO.hex(), "calldata", "payer")]


async def test_a_transaction_of_an_unknown_type(chain: Chain, ear: Ear) -> None:
    """EIP-8130: no `input`, and no `to` either."""
    chain.add(Tx(sender=PAYER, to=None, input=None, logs=(USED, PAID)))
    await ear.catch_up()
    assert memos_of(await ear.payments()) == [BY_AUTHORIZATION]


async def test_more_receipts_than_fit_into_one_request(
    chain: Chain, node: FakeNode, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts_module, "CALLS_AT_ONCE", 3)
    for _ in range(8):
        chain.add(call_through(RELAYER, USED, PAID))
    before = node.posts
    await ear.catch_up()
    assert memos_of(await ear.payments()) == [BY_AUTHORIZATION] * 8
    assert node.posts - before == 3 + 3


async def test_a_receipt_full_of_strangers_logs(chain: Chain, ear: Ear) -> None:
    """Five thousand empty logs cost cents of gas. They are not even looked at."""
    noise = [NOISE] * (decode_module.MAX_EVENTS + 1)
    chain.add(call_through(RELAYER, *noise, USED, PAID, *noise))
    await ear.catch_up()
    assert memos_of(await ear.payments()) == [BY_AUTHORIZATION]


async def test_a_receipt_with_too_many_events_of_known_contracts(
    chain: Chain, node: FakeNode, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not stop the listener: the money is stored, and its authorization is found."""
    monkeypatch.setattr(decode_module, "MAX_EVENTS", 3)
    crowd = [transfer_log(STRANGER, STRANGER, 1)] * 3
    chain.add(call_through(RELAYER, *crowd, USED, PAID), pay(PAYER, SHOP, 6, memo=OTHER_MEMO))
    await ear.catch_up()
    rows = await ear.payments()
    assert units_of(rows) == [5, 6]
    assert memos_of(rows) == [BY_AUTHORIZATION, (OTHER_MEMO.hex(), "calldata", "payer")]


def bundle(*others: Log) -> Tx:
    """Return a wallet's payment with its memo, in a bundle with another one behind it all."""
    paying = execute(TOKEN, transfer_call(SHOP, 5) + envelope_of(MEMO))
    told = operation_event(2, Address(PAYER))
    end = Log(
        topics=tuple("0x" + topic.hex() for topic in told.topics),
        data="0x" + told.data.hex(),
        address=told.address,
    )
    start = Log(topics=("0x" + BEFORE_EXECUTION.hex(),), address=told.address)
    data = handle_ops(operation_v7(PAYER, paying)) + envelope_of(OTHER_MEMO)
    logs = (start, PAID, end, *others)
    return Tx(sender=STRANGER, to=told.address, input="0x" + data.hex(), logs=logs)


BY_WALLET: Final = (MEMO.hex(), "calldata", "payer")


async def test_a_bundler_makes_the_receipt_too_full(
    chain: Chain, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He loses the payer's memo so, and does not get his own heard instead of it."""
    monkeypatch.setattr(decode_module, "MAX_EVENTS", 4)
    crowd = [transfer_log(STRANGER, STRANGER, 1)] * 4
    chain.add(bundle(*crowd), bundle())
    await ear.catch_up()
    full, fitting = await ear.payments()
    assert memos_of([full]) == []
    assert memos_of([fitting]) == [BY_WALLET]


async def test_the_second_look_reads_a_bundle_that_was_too_large_once(
    chain: Chain, node: FakeNode, pair: Pair
) -> None:
    chain.add(bundle())
    node.twist(RECEIPT, refuses(TOO_LARGE["proxyd"]), times=1)
    await pair.ear.catch_up()
    assert memos_of(await pair.ear.payments()) == []
    await pair.look()
    assert memos_of(await pair.ear.payments()) == [BY_WALLET]


async def test_an_answer_that_is_too_large_is_asked_for_in_halves(
    chain: Chain, node: FakeNode, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One receipt alone is too large: the others keep their evidence, and it the authorization."""
    monkeypatch.setattr(exchange_module, "MAX_BODY_BYTES", 100_000)
    for number in range(4):
        noise = [NOISE] * 500 if number == 2 else []
        chain.add(call_through(RELAYER, *noise, USED, PAID))
    await ear.catch_up()
    assert memos_of(await ear.payments()) == [BY_AUTHORIZATION] * 4


TOO_LARGE: Final = {
    "proxyd": Refusal(code=-32020, text="backend response too large", status=500),
    "reth": Refusal(code=-32008, text="Response is too big"),
    "Alchemy": Refusal(code=-32602, text="Log response size exceeded"),
}


@pytest.mark.parametrize("refusal", TOO_LARGE.values(), ids=TOO_LARGE)
async def test_a_node_that_refuses_a_large_receipt(
    chain: Chain, node: FakeNode, ear: Ear, refusal: Refusal
) -> None:
    chain.add(call_through(RELAYER, USED, PAID), call_through(RELAYER, USED, PAID))
    node.twist(RECEIPT, refuses(refusal))
    await ear.catch_up()
    assert memos_of(await ear.payments()) == [BY_AUTHORIZATION] * 2


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("refusal", TOO_LARGE.values(), ids=TOO_LARGE)
async def test_a_large_receipt_is_no_failure_of_its_node(
    chain: Chain, node: FakeNode, pair: Pair, refusal: Refusal, count: int
) -> None:
    """Who makes them must not drive us from node to node."""
    chain.add(*[call_through(RELAYER, USED, PAID)] * count)
    node.twist(RECEIPT, refuses(refusal))
    await pair.ear.catch_up()
    assert memos_of(await pair.ear.payments()) == [BY_AUTHORIZATION] * count
    assert (pair.rpc.current, pair.rpc.pinned(0).standing.failures) == (0, 0)


async def test_a_node_that_fails_to_give_a_receipt_is_asked_again(
    chain: Chain, node: FakeNode, ear: Ear
) -> None:
    chain.add(call_through(RELAYER, USED, PAID))
    node.twist(RECEIPT, refuses(Refusal(code=-32000, text="header not found")), times=1)
    with pytest.raises(CallFailed, match="header not found"):
        await ear.catch_up()
    await ear.catch_up()
    assert memos_of(await ear.payments()) == [BY_AUTHORIZATION]


async def test_the_second_look_finds_what_a_receipt_left_out(
    chain: Chain, node: FakeNode, pair: Pair
) -> None:
    """A receipt that was too large for one endpoint may not be for the other."""
    chain.add(call_through(RELAYER, memo_log(MEMO), PAID, memo_log(MEMO)))
    node.twist(RECEIPT, refuses(TOO_LARGE["proxyd"]))
    await pair.ear.catch_up()
    assert memos_of(await pair.ear.payments()) == []
    await pair.look()
    assert memos_of(await pair.ear.payments()) == [(MEMO.hex(), "contract", "payer")]


def memo_log(memo: Memo) -> Log:
    return Log(topics=("0x" + MEMO_TOPIC.hex(), word(PAYER), "0x" + nonce_of(memo).hex()))


async def test_a_memo_of_the_token_itself(chain: Chain, ear: Ear) -> None:
    """B20: `transferWithMemo` is a call of the token, and its memo is in an event."""
    chain.add(Tx(sender=PAYER, input="0x95777d59", logs=(PAID, memo_log(MEMO))))
    await ear.catch_up()
    assert memos_of(await ear.payments()) == [(MEMO.hex(), "contract", "payer")]


def reference_log(emitter: str) -> Log:
    return Log(
        topics=("0x" + TRANSFER_WITH_REFERENCE.hex(), "0x" + "cd" * 32),
        data="0x" + "".join(word(value)[2:] for value in (TOKEN, SHOP, 5)),
        address=emitter,
    )


async def test_look_alike_event_emitter(database: Database, chain: Chain, rpc: HttpRpc) -> None:
    """Only who is on the allow-list is believed."""
    contract = ReferenceContract(
        kind=ContractKind.REQUEST_FEE_PROXY, address=PROXY, chain_id=CHAIN_ID
    )
    ear = Ear(database=database, rpc=rpc, contracts=(contract,))
    await ear.catch_up()
    for emitter in (PROXY, STRANGER):
        chain.add(call_through(PAYER, PAID, reference_log(emitter)))
    await ear.catch_up()
    genuine, forged = [evidence_of(row["evidence"]) for row in await ear.payments()]
    assert forged == ()
    assert genuine == (
        Evidence(
            memo=None,
            source=MemoSource.CONTRACT,
            signer=Signer.PAYER,
            by=PAYER,
            reference=Reference(issuer=PROXY, value=b"\xcd" * 32),
        ),
    )


async def test_zero_value_transfer_with_a_forged_sender(chain: Chain, ear: Ear) -> None:
    """`transferFrom(victim, us, 0)` needs nobody's consent: no payment, and no company either."""
    chain.add(call_through(STRANGER, USED, transfer_log(PAYER, SHOP, 0)))
    chain.add(call_through(STRANGER, transfer_log(PAYER, SHOP, 0), USED, PAID))
    await ear.catch_up()
    (row,) = await ear.payments()
    assert units_of([row]) == [5]
    assert row["transfers_in_tx"] == 1


def inner_transfers(*memos: Memo) -> str:
    """Return a smart account's `executeBatch` of transfers of 5 to the shop, each with its memo."""
    calls = [(TOKEN, 0, transfer_call(SHOP, 5) + envelope_of(memo)) for memo in memos]
    data = encode(["(address,uint256,bytes)[]"], [calls])
    return "0x34fcd5be" + data.hex()


def transfer_call(to: str, units: int) -> bytes:
    return bytes.fromhex("a9059cbb") + encode(["address", "uint256"], [to, units])


async def test_logs_out_of_order_keep_their_own_memos(
    chain: Chain, node: FakeNode, ear: Ear
) -> None:
    """The first of two equal calls made the first transfer, in whatever order a node tells."""
    batch = inner_transfers(MEMO, OTHER_MEMO)
    chain.add(Tx(sender=PAYER, to=PAYER, input=batch, logs=(PAID, PAID)))
    node.twist("eth_getLogs", lambda _, logs: logs[::-1])
    await ear.catch_up()
    assert [piece[0] for piece in memos_of(await ear.payments())] == [MEMO.hex(), OTHER_MEMO.hex()]


async def test_a_part_that_was_missing_keeps_its_own_memo(
    chain: Chain, node: FakeNode, pair: Pair
) -> None:
    """Which of two equal calls made a transfer shows only beside the other one."""
    batch = inner_transfers(MEMO, OTHER_MEMO)
    chain.add(Tx(sender=PAYER, to=PAYER, input=batch, logs=(PAID, PAID)))
    node.twist("eth_getLogs", lambda _, logs: [])
    await pair.ear.catch_up()
    assert await pair.ear.payments() == []
    await pair.look()
    rows = await pair.ear.payments()
    assert [bytes(row["memo"]) for row in rows] == [MEMO, OTHER_MEMO]


async def test_a_short_answer_does_not_make_a_memo_ambiguous(
    chain: Chain, node: FakeNode, pair: Pair
) -> None:
    """The receipt has both transfers, whatever the logs left out; the second look finds the rest.

    Nor does it make a third party's memo look as if it stood beside one transfer only.
    """
    batch = inner_transfers(MEMO, OTHER_MEMO)
    chain.add(Tx(sender=PAYER, to=PAYER, input=batch, logs=(PAID, PAID)))
    node.twist("eth_getLogs", lambda _, logs: logs[:1])
    await pair.ear.catch_up()
    [first] = await pair.ear.payments()
    assert (bytes(first["memo"]), first["transfers_in_tx"]) == (MEMO, 2)
    assert [piece.company for piece in evidence_of(first["evidence"])] == [1]
    await pair.look()
    [_, second] = await pair.ear.payments()
    assert (bytes(second["memo"]), second["transfers_in_tx"]) == (OTHER_MEMO, 2)


async def test_a_missing_part_has_its_company_without_a_receipt_too(
    chain: Chain, node: FakeNode, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other part is stored, with a memo: it is not read again, and still it counts."""
    monkeypatch.setattr(decode_module, "MAX_EVENTS", 1)
    data = "0x12345678" + envelope_of(MEMO).hex()
    chain.add(Tx(sender=STRANGER, to=RELAYER, input=data, logs=(PAID, PAID)))
    node.twist("eth_getLogs", lambda _, logs: logs[1:])
    await pair.ear.catch_up()
    assert [row["transfers_in_tx"] for row in await pair.ear.payments()] == [1]
    await pair.look()
    assert [row["transfers_in_tx"] for row in await pair.ear.payments()][:1] == [2]
