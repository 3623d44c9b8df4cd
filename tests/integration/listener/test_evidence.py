"""Which memo is found with which payment, and what hostile logs and transactions cannot do."""

from collections.abc import Callable
from typing import Any, Final

import pytest

from db.payment_rows import evidence_of
from listener import receipts as receipts_module
from oncepaid.domain.chain import TRANSFER_TOPIC
from oncepaid.domain.errors import InconsistentNode
from oncepaid.domain.memo import Reference, envelope_of
from oncepaid.domain.money import MAX_UNITS
from oncepaid.domain.payments import Evidence, MemoSource, Signer
from tests.fakes.blocks import (
    TOKEN,
    Chain,
    Log,
    Tx,
    address,
    authorization_log,
    call_through,
    call_token,
    nonce_of,
    pay,
    pay_from,
    transfer_log,
    word,
)
from tests.fakes.node import FakeNode
from tests.fakes.twists import answers, changed_logs
from tests.integration.listener.rig import (
    MEMO,
    OTHER_MEMO,
    PAYER,
    SHOP,
    STRANGER,
    Ear,
    memos_of,
    times_of,
    units_of,
)

RELAYER: Final = address("relayer")
BY_CALL: Final = (MEMO.hex(), "calldata", "payer")
BY_AUTHORIZATION: Final = (MEMO.hex(), "authorization", "payer")
USED: Final = authorization_log(PAYER, nonce_of(MEMO))
PAID: Final = transfer_log(PAYER, SHOP, 5)


async def test_a_memo_behind_a_transfer(chain: Chain, node: FakeNode, ear: Ear) -> None:
    chain.add(pay(PAYER, SHOP, 5, memo=MEMO), pay(STRANGER, SHOP, 6))
    await ear.catch_up()
    first, second = await ear.payments()
    assert (bytes(first["memo"]), first["memo_source"]) == (MEMO, "calldata")
    assert (second["memo"], second["memo_source"]) == (None, None)
    assert memos_of([first, second]) == [BY_CALL]
    assert (first["transfers_in_tx"], second["transfers_in_tx"]) == (1, 1)


async def test_a_third_party_attaches_a_memo(chain: Chain, ear: Ear) -> None:
    chain.add(pay_from(STRANGER, PAYER, SHOP, 5, memo=MEMO))
    chain.add(pay_from(PAYER, PAYER, SHOP, 6, memo=MEMO))
    await ear.catch_up()
    assert memos_of(await ear.payments()) == [(MEMO.hex(), "calldata", "third_party"), BY_CALL]


WAYS: Final = pytest.mark.parametrize("relayed", [call_token, call_through])
"""Through the token itself its logs tell of authorizations; through a contract the receipt does."""


@WAYS
async def test_an_authorization_right_before_its_transfer(
    chain: Chain, ear: Ear, relayed: Callable[..., Tx]
) -> None:
    chain.add(relayed(RELAYER, USED, PAID))
    await ear.catch_up()
    (row,) = await ear.payments()
    assert (bytes(row["memo"]), row["memo_source"]) == (MEMO, "authorization")
    assert memos_of([row]) == [BY_AUTHORIZATION]


async def test_many_authorizations_in_one_transaction(chain: Chain, ear: Ear) -> None:
    other = authorization_log(STRANGER, nonce_of(OTHER_MEMO))
    chain.add(call_through(RELAYER, USED, PAID, other, transfer_log(STRANGER, SHOP, 6)))
    await ear.catch_up()
    rows = await ear.payments()
    stranger = (OTHER_MEMO.hex(), "authorization", "payer")
    assert memos_of(rows) == [BY_AUTHORIZATION, stranger]
    assert [row["transfers_in_tx"] for row in rows] == [2, 2]


ELSEWHERE: Final = {
    "two before": (USED, Log(topics=[TRANSFER_TOPIC], address=RELAYER), PAID),
    "behind": (PAID, USED),
    "before another transfer": (USED, transfer_log(PAYER, STRANGER, 1), PAID),
}
NOT_THE_PAYERS: Final = {
    "another authorizer": (authorization_log(STRANGER, nonce_of(MEMO)), PAID),
    "of another token": (Log(topics=USED.topics, address=RELAYER), PAID),
    "a dirty authorizer": (
        Log(topics=[USED.topics[0], "0x1" + word(PAYER)[3:], USED.topics[2]]),
        PAID,
    ),
}


@pytest.mark.parametrize(
    ("relayed", "places"),
    [(call_through, ELSEWHERE | NOT_THE_PAYERS), (call_token, ELSEWHERE)],
    ids=["through", "token"],
)
async def test_authorizations_that_prove_nothing(
    chain: Chain, ear: Ear, relayed: Callable[..., Tx], places: dict[str, tuple[Log, ...]]
) -> None:
    for logs in places.values():
        chain.add(relayed(RELAYER, *logs))
    await ear.catch_up()
    rows = await ear.payments()
    assert units_of(rows) == [5] * len(places)
    found = {name: row["evidence"] for name, row in zip(places, rows, strict=True)}
    assert found == {name: [] for name in places}


@pytest.mark.parametrize("logs", NOT_THE_PAYERS.values(), ids=NOT_THE_PAYERS)
async def test_a_call_by_authorization_without_the_payers(
    chain: Chain, ear: Ear, logs: tuple[Log, ...]
) -> None:
    """The token moves nobody's money without it: the node does not know all."""
    chain.add(call_token(RELAYER, *logs))
    with pytest.raises(InconsistentNode, match="lacks an authorization"):
        await ear.catch_up()
    assert await ear.payments() == []


async def test_an_authorization_that_a_node_left_out_is_in_the_receipt(
    chain: Chain, node: FakeNode, ear: Ear
) -> None:
    """Else the memo that a relayer put behind the call would be taken for the payer's."""
    arguments = "".join(word(number)[2:] for number in (PAYER, SHOP, 5, 0, 2**40, 7, 27, 1, 1))
    by_relayer = "0xe3ee160e" + arguments + envelope_of(OTHER_MEMO).hex()
    chain.add(Tx(sender=RELAYER, input=by_relayer, logs=(USED, PAID)))

    def without(params: Any, logs: Any) -> Any:
        return [] if params[0]["topics"][0] == USED.topics[0] else logs

    node.twist("eth_getLogs", without)
    await ear.catch_up()
    found = memos_of(await ear.payments())
    assert found == [BY_AUTHORIZATION, (OTHER_MEMO.hex(), "calldata", "third_party")]


FREE_NONCES: Final = {
    "drawn at random": bytes(range(100, 132)),
    "a broken checksum": nonce_of(MEMO)[:-12] + bytes(12),
    "of zeros": bytes(32),
}


@WAYS
@pytest.mark.parametrize("nonce", FREE_NONCES.values(), ids=FREE_NONCES)
async def test_a_nonce_without_a_memo_is_the_payers_reference(
    chain: Chain, ear: Ear, relayed: Callable[..., Tx], nonce: bytes
) -> None:
    chain.add(relayed(RELAYER, authorization_log(PAYER, nonce), PAID))
    await ear.catch_up()
    (row,) = await ear.payments()
    assert evidence_of(row["evidence"]) == (
        Evidence(
            memo=None,
            source=MemoSource.AUTHORIZATION,
            signer=Signer.PAYER,
            by=PAYER,
            reference=Reference(issuer=PAYER, value=nonce),
        ),
    )
    assert (row["memo"], row["memo_source"]) == (None, None)


async def test_the_same_nonce_from_another_payer(chain: Chain, ear: Ear) -> None:
    """A nonce is unique to its payer only: what a host binds to one of them is not the other's."""
    nonce = FREE_NONCES["drawn at random"]
    for payer in (PAYER, STRANGER):
        chain.add(
            call_token(RELAYER, authorization_log(payer, nonce), transfer_log(payer, SHOP, 5))
        )
    await ear.catch_up()
    found = [evidence_of(row["evidence"]) for row in await ear.payments()]
    assert [piece.reference for pieces in found for piece in pieces] == [
        Reference(issuer=PAYER, value=nonce),
        Reference(issuer=STRANGER, value=nonce),
    ]


async def test_an_authorization_of_another_payer(chain: Chain, ear: Ear) -> None:
    """Its authorizer pays too, but not by this transfer."""
    used = authorization_log(STRANGER, nonce_of(MEMO))
    paid = transfer_log(STRANGER, SHOP, 6)
    chain.add(call_through(RELAYER, used, PAID), call_through(RELAYER, paid))
    await ear.catch_up()
    rows = await ear.payments()
    assert units_of(rows) == [5, 6]
    assert memos_of(rows) == []


async def test_an_authorization_of_another_transaction(chain: Chain, ear: Ear) -> None:
    """Log indexes run through a block: index - 1 may belong to the transaction before."""
    chain.add(call_token(RELAYER, USED), call_through(STRANGER, PAID, at_index=1))
    await ear.catch_up()
    (row,) = await ear.payments()
    assert row["log_index"] == 1
    assert memos_of([row]) == []


async def test_an_authorization_of_another_block(chain: Chain, node: FakeNode, ear: Ear) -> None:
    chain.add(call_token(RELAYER, USED, PAID))
    chain.mine(1)

    def moved(params: Any, logs: Any) -> Any:
        used = params[0]["topics"][0] == USED.topics[0]
        return [{**log, "blockHash": "0x" + "ab" * 32} for log in logs] if used else logs

    node.twist("eth_getLogs", moved)
    await ear.catch_up()
    # It is none of this one; the receipt has the one that is.
    assert memos_of(await ear.payments()) == [BY_AUTHORIZATION]
    assert node.calls["eth_getTransactionReceipt"] == 1


async def test_odd_answers_for_authorizations_store_nothing(
    chain: Chain, node: FakeNode, ear: Ear
) -> None:
    chain.add(call_token(RELAYER, USED, PAID))

    def withheld(params: Any, logs: Any) -> Any:
        return None if params[0]["topics"][0] == USED.topics[0] else logs

    node.twist("eth_getLogs", withheld, times=2)
    assert await ear.insist() == 1
    assert memos_of(await ear.payments()) == [BY_AUTHORIZATION]


async def test_authorizers_are_asked_for_in_bounded_filters(
    chain: Chain, node: FakeNode, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts_module, "MAX_AUTHORIZERS", 2)
    payers = [address(f"payer {n}") for n in range(5)]
    used = nonce_of(MEMO)
    for payer in payers:
        logs = (authorization_log(payer, used), transfer_log(payer, SHOP, 1))
        chain.add(call_token(RELAYER, *logs))
    before = node.calls["eth_getLogs"]
    await ear.catch_up()
    assert memos_of(await ear.payments()) == [BY_AUTHORIZATION] * 5
    assert node.calls["eth_getLogs"] - before == 1 + 3


async def test_a_direct_transfer_with_an_authorization_elsewhere(chain: Chain, ear: Ear) -> None:
    """Direct calls need no look for authorizations: what they sign stands in their calldata."""
    chain.add(call_through(RELAYER, USED), pay(PAYER, SHOP, 5, memo=OTHER_MEMO))
    await ear.catch_up()
    assert memos_of(await ear.payments()) == [(OTHER_MEMO.hex(), "calldata", "payer")]


async def test_calldata_of_another_call_proves_nothing(chain: Chain, ear: Ear) -> None:
    tail = envelope_of(MEMO).hex()
    arguments = f"{word(SHOP)[2:]}{word(5)[2:]}"
    odd = {
        "too short": Tx(sender=PAYER, input=f"0xa9059cbb{arguments[:-2]}"),
        "only a selector": Tx(sender=PAYER, input="0xa9059cbb"),
        "empty": Tx(sender=PAYER, input="0x"),
        "none at all": Tx(sender=PAYER, input=None),
        "a creation": Tx(sender=PAYER, to=None, input=f"0xa9059cbb{arguments}{tail}"),
        "another amount": Tx(sender=PAYER, input=f"0xa9059cbb{word(SHOP)[2:]}{word(6)[2:]}{tail}"),
        "another recipient": Tx(
            sender=PAYER, input=f"0xa9059cbb{word(PAYER)[2:]}{word(5)[2:]}{tail}"
        ),
        "another sender": Tx(sender=STRANGER, input=f"0xa9059cbb{arguments}{tail}"),
    }
    for tx in odd.values():
        chain.add(Tx(sender=tx.sender, to=tx.to, input=tx.input, logs=[PAID]))
    await ear.catch_up()
    rows = await ear.payments()
    assert units_of(rows) == [5] * len(odd)
    assert memos_of(rows) == []


HOSTILE: Final = {
    "zero value": transfer_log(PAYER, SHOP, 0),
    "another token": transfer_log(PAYER, SHOP, 5, token=RELAYER),
    "another event": Log(topics=["0x" + "ab" * 32, word(PAYER), word(SHOP)], data=word(5)),
    "another recipient": transfer_log(PAYER, STRANGER, 5),
    "no topics": Log(topics=[], data=word(5)),
    "two topics": Log(topics=[TRANSFER_TOPIC, word(SHOP)], data=word(5)),
    "four topics": Log(topics=[TRANSFER_TOPIC, word(PAYER), word(SHOP), word(5)]),
    "a dirty sender": Log(
        topics=[TRANSFER_TOPIC, "0x1" + word(PAYER)[3:], word(SHOP)], data=word(5)
    ),
    "a dirty recipient": Log(
        topics=[TRANSFER_TOPIC, word(PAYER), "0x1" + word(SHOP)[3:]], data=word(5)
    ),
    "no data": Log(topics=PAID.topics),
    "long data": Log(topics=PAID.topics, data=word(5) + "00"),
}


async def test_hostile_logs_are_passed_over(chain: Chain, node: FakeNode, ear: Ear) -> None:
    """The node's filter is not trusted: it may pass everything."""
    for number, log in enumerate(HOSTILE.values()):
        chain.add(call_through(STRANGER, log, transfer_log(PAYER, SHOP, 100 + number)))
    blocks = chain.between(1011, chain.head.number)
    node.twist("eth_getLogs", answers([log for block in blocks for log in block.logs]), times=1)
    await ear.catch_up()
    assert units_of(await ear.payments()) == [100 + number for number in range(len(HOSTILE))]
    assert await ear.cursor() == (chain.head.number, chain.head.hash)


async def test_the_largest_amount_there_is(chain: Chain, ear: Ear) -> None:
    chain.add(pay(PAYER, SHOP, MAX_UNITS), pay(PAYER, SHOP, 1))
    await ear.catch_up()
    assert units_of(await ear.payments()) == [MAX_UNITS, 1]


async def test_the_largest_log_index_there_is(chain: Chain, ear: Ear) -> None:
    chain.add(Tx(sender=PAYER, logs=[PAID], at_index=2**63 - 1))
    await ear.catch_up()
    (row,) = await ear.payments()
    assert row["log_index"] == 2**63 - 1


async def test_a_removed_log_is_no_payment(chain: Chain, node: FakeNode, ear: Ear) -> None:
    chain.add(pay(PAYER, SHOP, 5))
    node.twist("eth_getLogs", changed_logs(removed=True), times=1)
    await ear.catch_up()
    assert await ear.payments() == []


@pytest.mark.parametrize("stamp", ["0x0", hex(2**63 - 1)])
async def test_a_time_beyond_all_bounds(chain: Chain, node: FakeNode, ear: Ear, stamp: str) -> None:
    """What the ends of the range contradict is asked of the block's own header."""
    block = chain.add(pay(PAYER, SHOP, 5))
    chain.mine(1)
    node.twist("eth_getLogs", changed_logs(blockTimestampMs=stamp), times=1)
    await ear.catch_up()
    assert times_of(await ear.payments()) == [block.timestamp_ms]


async def test_upper_case_hex_is_the_same(chain: Chain, node: FakeNode, ear: Ear) -> None:
    def upper(_: object, logs: Any) -> Any:
        names = ("transactionHash", "blockHash", "data", "address")
        loud = [{**log, **{name: "0x" + log[name][2:].upper() for name in names}} for log in logs]
        return [
            {
                **log,
                "topics": [log["topics"][0], *("0x" + t[2:].upper() for t in log["topics"][1:])],
            }
            for log in loud
        ]

    chain.add(pay(PAYER, SHOP, 5, memo=MEMO))
    node.twist("eth_getLogs", upper, times=1)
    await ear.catch_up()
    (row,) = await ear.payments()
    assert (row["sender"], row["recipient"], row["amount_units"]) == (PAYER, SHOP, 5)
    assert row["block_hash"] == chain.head.hash
    assert memos_of([row]) == [BY_CALL]


async def test_the_same_log_twice_in_one_answer(chain: Chain, node: FakeNode, ear: Ear) -> None:
    chain.add(pay(PAYER, SHOP, 5, memo=MEMO))
    node.twist("eth_getLogs", lambda _, logs: logs * 2, times=1)
    await ear.catch_up()
    assert units_of(await ear.payments()) == [5]


async def test_what_is_asked_for(chain: Chain, node: FakeNode, ear: Ear) -> None:
    asked: list[Any] = []

    def note(params: Any, logs: Any) -> Any:
        asked.append(params[0])
        return logs

    node.twist("eth_getLogs", note)
    chain.add(call_token(RELAYER, USED, PAID))
    await ear.catch_up()
    bounds = {"address": TOKEN, "fromBlock": hex(1011), "toBlock": hex(1011)}
    assert asked == [
        {**bounds, "topics": [TRANSFER_TOPIC, None, [word(SHOP)]]},
        {**bounds, "topics": [USED.topics[0], [word(PAYER)]]},
    ]
