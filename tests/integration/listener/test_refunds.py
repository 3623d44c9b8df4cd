"""Transfers of ours that name what they send back, once no reorganisation can take them away."""

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from db.pool import Database
from db.ranges import RangeStore
from db.refunds import RefundStore
from listener.ranges import Watch
from listener.refund_watch import RefundWatch
from listener.rpc import HttpRpc
from listener.second_look import FinalityMark
from oncepaid.domain.chain import Address, TxHash
from oncepaid.domain.errors import InconsistentNode, NodeBehind, NotLeading
from oncepaid.domain.memo import Memo
from oncepaid.domain.refunding import refund_envelope
from tests.fakes.blocks import CHAIN_ID, Block, Chain, Tx, pay, pay_from
from tests.fakes.node import FakeNode
from tests.fakes.refusals import Refusal
from tests.integration.db.support import add_job, execute, rows
from tests.integration.listener.pairs import NOW, second_look_of
from tests.integration.listener.rig import PAYER, SHOP, STRANGER, Ear

PAID = 5_000_000
Events = Sequence[MutableMapping[str, Any]]


@dataclass(kw_only=True)
class Desk:
    """A listener whose finality mark is moved by hand, and a watch for refunds behind it."""

    ear: Ear
    chain: Chain
    events: list[MutableMapping[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch = self.watch_of(self.ear.watch)

    def watch_of(self, watch: Watch) -> RefundWatch:
        return RefundWatch(
            self.ear.rpc,
            RefundStore(self.ear.database, CHAIN_ID),
            lead=self.ear.lead,
            watch=watch,
            metrics=self.ear.metrics,
        )

    async def settle(self) -> None:
        """Make all that was mined final and look at it. What was seen matches nothing."""
        self.chain.mine(11)
        await self.ear.catch_up()
        await self.finalize()
        await self.look()

    async def finalize(self) -> None:
        """Decide what was seen, and move the finality mark to where the node's is."""
        await execute(
            self.ear.database,
            "UPDATE payments SET status = 'unmatched', reason = 'no_memo' WHERE status = 'seen'",
        )
        second_look = second_look_of(self.ear, self.ear.rpc, [], NOW)
        while await second_look.step():
            pass
        mark = FinalityMark(
            self.ear.rpc, RangeStore(self.ear.database, CHAIN_ID), lead=self.ear.lead
        )
        await mark.step()

    async def look(self) -> None:
        with capture_logs() as events:
            while await self.watch.step():
                pass
        self.events += events

    async def payments(self) -> list[tuple[int, str]]:
        found = await self.ear.payments()
        return [(int(row["amount_units"]), row["status"]) for row in found]

    async def refunds(self) -> list[tuple[str, int, str]]:
        found = await rows(
            self.ear.database,
            "SELECT tx_hash, amount_units, recognised_by FROM payment_refunds ORDER BY id",
        )
        return [(row["tx_hash"], int(row["amount_units"]), row["recognised_by"]) for row in found]

    async def mark(self) -> int | None:
        (row,) = await rows(self.ear.database, "SELECT refunds_number FROM chain_cursor")
        found: int | None = row["refunds_number"]
        return found

    def told(self, name: str) -> Events:
        return [event for event in self.events if event["event"] == name]

    def counted(self) -> float:
        return self._sample("oncepaid_payments_total", status="refunded", reason="")

    def counted_usdc(self) -> float:
        return self._sample("oncepaid_payments_usdc_total", status="refunded")

    def _sample(self, name: str, **labels: str) -> float:
        return self.ear.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def desk(ear: Ear, chain: Chain) -> Desk:
    return Desk(ear=ear, chain=chain)


def hash_in(block: Block, index: int = 0) -> TxHash:
    return TxHash(block.transactions[index]["hash"])


def send_back(
    *paid_in: TxHash, units: int = PAID, sender: Address = SHOP, to: Address = PAYER
) -> Tx:
    """A direct transfer that carries the refund envelopes of these transactions."""
    return with_envelopes(pay(sender, to, units), *paid_in)


def with_envelopes(tx: Tx, *paid_in: TxHash) -> Tx:
    tail = b"".join(map(refund_envelope, paid_in)).hex()
    return replace(tx, input=f"{tx.input}{tail}")


async def test_a_refund_closes_its_payment(desk: Desk) -> None:
    paid = hash_in(desk.chain.add(pay(PAYER, SHOP, PAID), pay(STRANGER, SHOP, PAID)))
    sent = hash_in(desk.chain.add(send_back(paid)))
    await desk.settle()
    assert await desk.payments() == [(PAID, "refunded"), (PAID, "unmatched")]
    assert await desk.refunds() == [(sent, PAID, "oncepaid")]
    (told,) = desk.told("payment.refunded")
    assert (told["log_level"], told["tx_hash"], told["usdc"]) == ("info", sent, "5.000000")
    assert (desk.counted(), desk.counted_usdc()) == (1, 5)
    (noted,) = await rows(desk.ear.database, "SELECT who, action, details FROM audit_log")
    assert (noted["who"], noted["action"]) == ("oncepaid", "payment.refund")
    assert noted["details"]["refund_tx_hash"] == sent


async def test_nothing_is_recognised_before_it_is_final(desk: Desk) -> None:
    paid = hash_in(desk.chain.add(pay(PAYER, SHOP, PAID)))
    desk.chain.mine(10)
    desk.chain.add(send_back(paid))
    await desk.ear.catch_up()
    await desk.finalize()
    await desk.look()
    assert await desk.payments() == [(PAID, "unmatched")]
    assert await desk.mark() == desk.chain.head.number - 10
    await desk.settle()
    assert await desk.payments() == [(PAID, "refunded")]


async def test_looking_again_finds_the_same_and_changes_nothing(desk: Desk) -> None:
    """As after a crash before the mark was moved."""
    paid = hash_in(desk.chain.add(pay(PAYER, SHOP, PAID)))
    desk.chain.add(send_back(paid))
    await desk.settle()
    refunds, events = await desk.refunds(), len(desk.events)
    await execute(desk.ear.database, "UPDATE chain_cursor SET refunds_number = NULL")
    await desk.look()
    assert (await desk.refunds(), len(desk.events), desk.counted()) == (refunds, events, 1)
    assert len(await rows(desk.ear.database, "SELECT FROM audit_log")) == 1


OTHER = TxHash("0x" + "9" * 64)
MANY = tuple(TxHash(f"0x{number:032x}" + "0" * 32) for number in range(17))


@pytest.mark.parametrize(
    ("refund", "reason", "has_payment"),
    [
        (lambda paid: send_back(paid, units=PAID - 1), "wrong_amount", True),
        (lambda paid: send_back(paid, to=STRANGER), "wrong_address", True),
        (lambda _: send_back(OTHER), "unknown_payment", False),
        (lambda paid: send_back(paid, *MANY), "too_many_names", False),
        (
            lambda paid: with_envelopes(
                pay_from(STRANGER, SHOP, PAYER, PAID, memo=Memo(bytes(16))), paid
            ),
            "not_signed",
            False,
        ),
    ],
)
async def test_what_is_no_refund_is_told_and_left(
    desk: Desk, refund: Any, reason: str, has_payment: bool
) -> None:
    paid = hash_in(desk.chain.add(pay(PAYER, SHOP, PAID)))
    sent = hash_in(desk.chain.add(refund(paid)))
    await desk.settle()
    assert (await desk.payments(), await desk.refunds()) == ([(PAID, "unmatched")], [])
    (told,) = desk.told("refund.refused")
    assert (told["log_level"], told["reason"], told["tx_hash"]) == ("warning", reason, sent)
    assert (told["payment_id"] is not None) is has_payment
    assert told["meaning"].endswith(".")
    assert await desk.mark() == desk.chain.head.number - 10


async def test_a_transfer_that_names_nothing_is_none_of_ours(desk: Desk) -> None:
    desk.chain.add(pay(PAYER, SHOP, PAID))
    desk.chain.add(pay(SHOP, PAYER, PAID))
    await desk.settle()
    assert (await desk.payments(), desk.events) == ([(PAID, "unmatched")], [])


async def test_a_strangers_envelope_sends_nothing_back(desk: Desk) -> None:
    """Anyone can copy one: it counts behind money of ours only."""
    paid = hash_in(desk.chain.add(pay(PAYER, SHOP, PAID)))
    desk.chain.add(send_back(paid, sender=STRANGER))
    await desk.settle()
    assert (await desk.payments(), desk.events) == ([(PAID, "unmatched")], [])


async def test_a_second_refund_of_one_payment_is_refused(desk: Desk) -> None:
    paid = hash_in(desk.chain.add(pay(PAYER, SHOP, PAID)))
    first = hash_in(desk.chain.add(send_back(paid), send_back(paid)))
    await desk.settle()
    assert await desk.refunds() == [(first, PAID, "oncepaid")]
    assert [told["reason"] for told in desk.told("refund.refused")] == ["sent_back_before"]


async def test_payments_alike_in_one_transaction_take_a_refund_each(desk: Desk) -> None:
    twice = pay(PAYER, SHOP, PAID)
    paid = hash_in(desk.chain.add(replace(twice, logs=[*twice.logs, *twice.logs])))
    desk.chain.add(send_back(paid))
    desk.chain.add(send_back(paid))
    await desk.settle()
    assert await desk.payments() == [(PAID, "refunded")] * 2


async def test_an_envelope_of_before_a_reorganisation_is_still_right(desk: Desk) -> None:
    """The payment is mined again in another block, at another log index."""
    before = desk.chain.add(pay(PAYER, SHOP, PAID))
    await desk.ear.catch_up()
    desk.chain.remine(1, before, blocks_later=2, at_index=40)
    await desk.ear.catch_up()
    desk.chain.add(send_back(hash_in(before)))
    await desk.settle()
    assert sorted(await desk.payments()) == [(PAID, "orphaned"), (PAID, "refunded")]


async def test_money_that_counts_and_went_back_is_recorded_and_told_as_an_error(desk: Desk) -> None:
    paid = hash_in(desk.chain.add(pay(PAYER, SHOP, PAID)))
    await desk.ear.catch_up()
    job = await add_job(desk.ear.database)
    await execute(
        desk.ear.database,
        "UPDATE payments SET status = 'credited', job_id = $1, matched_at = now(),"
        " credited_at = now()",
        job.id,
    )
    sent = hash_in(desk.chain.add(send_back(paid)))
    await desk.settle()
    assert await desk.payments() == [(PAID, "credited")]
    assert await desk.refunds() == [(sent, PAID, "oncepaid")]
    (told,) = desk.told("refund.not_due")
    assert (told["log_level"], told["reason"]) == ("error", "pays_a_job")
    assert desk.counted() == 0
    await execute(desk.ear.database, "UPDATE chain_cursor SET refunds_number = NULL")
    await desk.look()
    assert len(desk.told("refund.not_due")) == 1


async def test_a_refund_of_money_that_never_came_is_told_as_an_error(desk: Desk) -> None:
    paid = hash_in(desk.chain.add(pay(PAYER, SHOP, PAID)))
    await desk.ear.catch_up()
    desk.chain.reorg(1)
    sent = hash_in(desk.chain.add(send_back(paid)))
    await desk.settle()
    assert await desk.payments() == [(PAID, "orphaned")]
    assert await desk.refunds() == [(sent, PAID, "oncepaid")]
    assert [told["reason"] for told in desk.told("refund.not_due")] == ["orphaned"]


async def test_nothing_new_asks_nothing(desk: Desk, node: FakeNode) -> None:
    await desk.settle()
    asked = node.calls.copy()
    await desk.look()
    assert node.calls == asked


async def test_ranges_are_halved_and_every_block_is_looked_at(desk: Desk, node: FakeNode) -> None:
    """The mark begins where the payments begin, however late the first final block comes."""
    paid = [hash_in(desk.chain.add(pay(PAYER, SHOP, PAID + at))) for at in range(3)]
    for at, tx_hash in enumerate(paid):
        desk.chain.add(send_back(tx_hash, units=PAID + at))
        desk.chain.mine(7)
    assert await desk.mark() is None
    desk.chain.mine(11)
    await desk.ear.catch_up()
    await desk.finalize()
    node.max_blocks = (4, Refusal(code=-32614, text="eth_getLogs is limited to a 4 range"))
    node.ranges.clear()
    await desk.look()
    assert [status for _, status in await desk.payments()] == ["refunded"] * 3
    assert node.ranges[0][0] == 1011
    assert node.ranges[-1][1] == await desk.mark() == desk.chain.head.number - 10
    steps = zip(node.ranges, node.ranges[1:], strict=False)
    assert all(last + 1 == first for (_, last), (first, _) in steps)


async def test_a_single_block_that_is_refused_is_the_nodes_trouble(
    desk: Desk, node: FakeNode
) -> None:
    desk.chain.mine(20)
    await desk.ear.catch_up()
    await desk.finalize()
    node.max_blocks = (0, Refusal(code=-32614, text="eth_getLogs is limited to a 0 range"))
    with pytest.raises(InconsistentNode, match="single block"):
        await desk.look()


async def test_a_node_that_lags_or_is_on_a_fork_is_not_believed(desk: Desk, node: FakeNode) -> None:
    paid = hash_in(desk.chain.add(pay(PAYER, SHOP, PAID)))
    desk.chain.add(send_back(paid))
    desk.chain.mine(11)
    await desk.ear.catch_up()
    await desk.finalize()
    node.head_lag = 13
    with pytest.raises(NodeBehind):
        await desk.look()
    node.straighten()
    node.twist("eth_getBlockByNumber", lambda _, block: {**block, "hash": "0x" + "7" * 64})
    with pytest.raises(InconsistentNode, match="than the final one"):
        await desk.look()
    node.straighten()
    node.twist("eth_getTransactionByHash", lambda _, __: None)
    with pytest.raises(InconsistentNode, match="is not where its log says"):
        await desk.look()
    assert (await desk.mark(), await desk.payments()) == (None, [(PAID, "unmatched")])
    node.straighten()
    await desk.look()
    assert await desk.payments() == [(PAID, "refunded")]


async def test_who_leads_no_more_moves_no_mark(desk: Desk) -> None:
    paid = hash_in(desk.chain.add(pay(PAYER, SHOP, PAID)))
    desk.chain.add(send_back(paid))
    desk.chain.mine(11)
    await desk.ear.catch_up()
    await desk.finalize()
    await execute(desk.ear.database, "UPDATE chain_cursor SET epoch = 2")
    with pytest.raises(NotLeading):
        await desk.look()
    assert await desk.mark() is None
    desk.ear.lead.epoch = 2
    await desk.look()
    assert (len(await desk.refunds()), await desk.payments()) == (1, [(PAID, "refunded")])
    desk.ear.lead.epoch = None
    assert await desk.watch.step() is False


async def test_nothing_is_looked_at_in_a_conflict_or_where_everyone_is_ours(
    desk: Desk, node: FakeNode
) -> None:
    paid = hash_in(desk.chain.add(pay(PAYER, SHOP, PAID)))
    desk.chain.add(send_back(paid))
    desk.chain.mine(11)
    await desk.ear.catch_up()
    await desk.finalize()
    asked = node.calls["eth_getLogs"]
    await execute(desk.ear.database, "UPDATE chain_cursor SET conflict = 'two blocks'")
    await desk.look()
    await execute(desk.ear.database, "UPDATE chain_cursor SET conflict = NULL")
    with capture_logs() as events:
        everyone = desk.watch_of(replace(desk.ear.watch, recipients=None))
        assert await everyone.step() is False
        assert await everyone.step() is False
    assert [event["event"] for event in events] == ["refunds.not_watched"]
    assert (node.calls["eth_getLogs"], await desk.refunds()) == (asked, [])


async def test_a_chain_that_was_never_read_has_no_refunds(
    database: Database, rpc: HttpRpc, chain: Chain
) -> None:
    desk = Desk(ear=Ear(database=database, rpc=rpc), chain=chain)
    assert await desk.watch.step() is False
