"""A receipt that a node refuses says nothing of its own payment, and of no other one."""

from typing import Any

import pytest

from listener import exchange
from listener.arbiter import Arbiter
from listener.comparison import Standing
from listener.witness import Witness
from oncepaid.domain.errors import NodeBehind
from tests.fakes.blocks import TOKEN, Chain, call_through, pay, transfer_log
from tests.fakes.node import FakeNode, Twist
from tests.fakes.refusals import Refusal
from tests.fakes.twists import refuses
from tests.integration.listener.pairs import Pair
from tests.integration.listener.rig import PAYER, SHOP, STRANGER, Ear, units_of
from tests.integration.listener.test_reorgs import live, orphaned

pytestmark = pytest.mark.fault("F13")

REFUSALS = {
    "proxyd": Refusal(code=-32020, text="backend response too large", status=500),
    "too big": Refusal(code=-32008, text="Response is too big"),
    "own words": Refusal(code=-32000, text="internal error"),
}
every_refusal = pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)


def of_one(tx_hash: str, twist: Twist) -> Twist:
    """Twist the answer to calls about one transaction alone."""
    return lambda params, result: twist(params, result) if params[0] == tx_hash else result


def without(tx_hash: str) -> Twist:
    """Leave out one transaction's logs."""
    return lambda _, logs: [log for log in logs if log["transactionHash"] != tx_hash]


def pay_with_large_receipt(chain: Chain, units: int) -> str:
    """Mine a payment whose transaction can emit as much as its sender pays for; its hash."""
    chain.add(call_through(STRANGER, transfer_log(STRANGER, SHOP, units)))
    return str(chain.head.transactions[0]["hash"])


@every_refusal
async def test_the_witness_confirms_all_others(
    chain: Chain, second_node: FakeNode, pair: Pair, refusal: Refusal
) -> None:
    poison = pay_with_large_receipt(chain, 7)
    chain.add(*[pay(PAYER, SHOP, units) for units in range(10, 15)])
    await pair.ear.catch_up()
    rows = await pair.store.live_logs(0, chain.head.number)
    second_node.twist("eth_getTransactionReceipt", of_one(poison, refuses(refusal)))
    known = await Witness(pair.rpc, TOKEN).confirm(rows)
    assert sorted(row.units for row in rows if row.id in known) == [10, 11, 12, 13, 14]
    second_node.straighten()
    assert len(await Witness(pair.rpc, TOKEN).confirm(rows)) == 6


async def test_receipts_that_are_too_much_together_are_asked_for_in_halves(
    chain: Chain, second_node: FakeNode, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = pay_with_large_receipt(chain, 7)
    chain.add(*[pay(PAYER, SHOP, units) for units in range(10, 15)])
    await pair.ear.catch_up()
    rows = await pair.store.live_logs(0, chain.head.number)
    await pair.rpc.other().verify()
    monkeypatch.setattr(exchange, "MAX_BODY_BYTES", 6_000)
    second_node.twist(
        "eth_getTransactionReceipt", of_one(poison, lambda _, r: {**r, "logsBloom": "0" * 6_000})
    )
    before = second_node.posts
    standings = await Arbiter(TOKEN).standings(rows, pair.rpc.other())
    assert {row.units: standings[row.id] for row in rows} == {
        7: Standing.UNKNOWN,
        **dict.fromkeys(range(10, 15), Standing.PROVEN),
    }
    assert 3 < second_node.posts - before <= 12


@every_refusal
async def test_a_second_look_passes_a_row_that_its_endpoint_neither_shows_nor_proves(
    chain: Chain, second_node: FakeNode, pair: Pair, refusal: Refusal
) -> None:
    poison = pay_with_large_receipt(chain, 7)
    await pair.ear.catch_up()
    second_node.twist("eth_getLogs", without(poison))
    second_node.twist("eth_getTransactionReceipt", of_one(poison, refuses(refusal)))
    await pair.look()
    assert (await pair.state()).checked == chain.head.number
    assert (await live(pair.ear), await orphaned(pair.ear)) == ([7], [])


@every_refusal
async def test_what_one_endpoint_cannot_tell_another_one_proves(
    chain: Chain, node: FakeNode, pair: Pair, refusal: Refusal
) -> None:
    poison = pay_with_large_receipt(chain, 7)
    await pair.ear.catch_up()
    (row,) = await pair.store.live_logs(0, chain.head.number)
    anchor = row.block
    node.twist("eth_getTransactionReceipt", of_one(poison, refuses(refusal)))
    first, second = pair.rpc.pinned(0), pair.rpc.pinned(1)
    with pytest.raises(NodeBehind):
        await Arbiter(TOKEN).judge([row], first, None, anchor=anchor)
    verdict = await Arbiter(TOKEN).judge([row], first, second, anchor=anchor)
    assert (verdict.kept, verdict.gone) == ([row.id], [])


@every_refusal
async def test_a_payment_that_is_mined_again_with_a_receipt_that_is_refused(
    chain: Chain, node: FakeNode, ear: Ear, refusal: Refusal
) -> None:
    chain.add(pay(STRANGER, SHOP, 7))
    again = chain.head
    poison: Any = again.transactions[0]["hash"]
    node.twist("eth_getTransactionReceipt", of_one(poison, refuses(refusal)))
    await ear.catch_up()
    chain.remine(1, again, blocks_later=1)
    chain.add(pay(PAYER, SHOP, 5))
    await ear.insist()
    assert await ear.cursor() == (chain.head.number, chain.head.hash)
    assert units_of([row for row in await ear.payments() if row["status"] != "orphaned"]) == [7, 5]
