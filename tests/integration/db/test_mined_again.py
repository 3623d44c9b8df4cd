"""What an operator decided of a payment stands when its transaction is mined in another block."""

from collections.abc import Sequence
from typing import Final

import pytest

from db.payments import PaymentStore
from db.pool import Database
from db.ranges import RangeStore
from oncepaid.domain.chain import Address
from oncepaid.domain.memo import Memo
from oncepaid.domain.payments import ObservedPayment, PaymentId
from tests.integration.db.desk_support import assign, send_back, sent
from tests.integration.db.support import (
    CHAIN,
    DECIDE,
    EPOCH,
    PAYER,
    add_job,
    execute,
    first_cursor,
    header,
    observed,
    row,
    rows,
)

pytestmark = pytest.mark.fault("F16")

STRANGER: Final = Address("0x" + "7e" * 20)
PRICE: Final = 1_000_000


class Chain:
    """Blocks 1 and 2 of a chain whose newest ones are replaced as often as asked."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ranges = RangeStore(database, CHAIN)
        self._forks = 0

    async def mine(self, *logs: tuple[int, int], sender: Address = PAYER, tx: str = "a") -> None:
        """Store one transaction's transfers, `(log index, units)`, in a new block 2."""
        self._forks += 1
        await self.store([self.transfer(*log, sender=sender, tx=tx) for log in logs])

    def transfer(
        self, log_index: int, units: int, *, sender: Address = PAYER, tx: str = "a", fork: int = 0
    ) -> ObservedPayment:
        block = header(2, f"fork {fork or self._forks}")
        return observed(units, block=block, tx=tx, log_index=log_index, sender=sender)

    async def store(self, payments: Sequence[ObservedPayment]) -> None:
        cursor = await first_cursor(self._database)
        end = header(2, f"fork {self._forks}")
        moved = await self._ranges.store_range(cursor, end, payments, epoch=EPOCH)
        assert moved.moved

    async def replace(self) -> None:
        """Take the cursor back below block 2."""
        live = await rows(self._database, "SELECT id FROM payments WHERE status <> 'orphaned'")
        cursor = await first_cursor(self._database)
        gone = [PaymentId(each["id"]) for each in live]
        assert await self._ranges.rewind(cursor, header(0), gone, epoch=EPOCH) is not None

    async def return_to(self, fork: int, *logs: tuple[int, int]) -> None:
        """Bring an older block 2 back."""
        self._forks = fork
        await self.store([self.transfer(*log) for log in logs])


@pytest.fixture
def chain(database: Database) -> Chain:
    return Chain(database)


async def live(database: Database) -> list[tuple[int, str]]:
    found = await rows(
        database,
        "SELECT log_index, status FROM payments WHERE status <> 'orphaned' ORDER BY log_index",
    )
    return [(each["log_index"], each["status"]) for each in found]


async def settle(database: Database, status: str, log_index: int) -> None:
    await PaymentStore(database, CHAIN).decide_seen(DECIDE, 10)
    await execute(
        database,
        "UPDATE payments SET status = $1 WHERE log_index = $2 AND status = 'unmatched'",
        *(status, log_index),
    )


@pytest.mark.parametrize("status", ["refunded", "ignored"])
async def test_it_is_not_counted_as_new_money(
    database: Database, chain: Chain, status: str
) -> None:
    """Neither in the next block, nor in the one after that, nor in one that comes back."""
    await chain.mine((3, PRICE))
    await settle(database, status, 3)
    await chain.replace()
    await chain.mine((9, PRICE))
    assert await live(database) == [(9, status)]
    assert (await row(database, "SELECT reason FROM payments WHERE log_index = 9")) == {
        "reason": "no_memo"
    }
    await chain.replace()
    await chain.mine((4, PRICE))
    assert await live(database) == [(4, status)]
    await chain.replace()
    await chain.return_to(2, (9, PRICE))
    assert await live(database) == [(9, status)]


async def test_a_refund_of_the_newer_block_stands_in_the_older(
    database: Database, chain: Chain
) -> None:
    await chain.mine((3, PRICE))
    await chain.replace()
    await chain.mine((9, PRICE))
    await settle(database, "refunded", 9)
    await chain.replace()
    await chain.return_to(1, (3, PRICE))
    assert await live(database) == [(3, "refunded")]


@pytest.mark.parametrize("comes_back", [False, True], ids=["another block", "the older block"])
@pytest.mark.parametrize("paid", [False, True])
async def test_what_was_sent_back_pays_no_job(
    database: Database, chain: Chain, comes_back: bool, paid: bool
) -> None:
    """Also where its refund was recognised while it counted for a job, or was orphaned."""
    job = await add_job(database)
    await chain.mine((3, job.unique_amount if paid and job.unique_amount else PRICE))
    await PaymentStore(database, CHAIN).decide_seen(DECIDE, 10)
    first = await row(database, "SELECT * FROM payments")
    assert (first["status"] == "matched") is paid
    await chain.replace()
    await execute(
        database,
        """
        INSERT INTO payment_refunds (payment_id, chain_id, tx_hash, log_index, recipient,
                                     amount_units, recognised_by)
        SELECT id, chain_id, block_hash, 1, sender, amount_units, 'oncepaid' FROM payments
        """,
    )
    log = (3 if comes_back else 9, int(first["amount_units"]))
    await (chain.return_to(1, log) if comes_back else chain.mine(log))
    await PaymentStore(database, CHAIN).decide_seen(DECIDE, 10)
    assert await live(database) == [(log[0], "refunded")]


async def test_of_equal_transfers_the_one_in_its_place(database: Database, chain: Chain) -> None:
    await chain.mine((3, PRICE), (4, 77), (5, PRICE), (6, PRICE))
    await settle(database, "refunded", 5)
    await chain.replace()
    await chain.mine((10, PRICE), (11, PRICE), (12, 77), (13, PRICE))
    assert await live(database) == [(10, "seen"), (11, "refunded"), (12, "seen"), (13, "seen")]


@pytest.mark.parametrize(
    ("units", "sender", "tx"),
    [(PRICE + 1, PAYER, "a"), (PRICE, STRANGER, "a"), (PRICE, PAYER, "b")],
)
async def test_another_transfer_is_new_money(
    database: Database, chain: Chain, units: int, sender: Address, tx: str
) -> None:
    await chain.mine((3, PRICE))
    await settle(database, "refunded", 3)
    await chain.replace()
    await chain.mine((3, units), sender=sender, tx=tx)
    assert await live(database) == [(3, "seen")]


async def test_what_nobody_decided_is_decided_anew(database: Database, chain: Chain) -> None:
    await chain.mine((3, PRICE))
    await PaymentStore(database, CHAIN).decide_seen(DECIDE, 10)
    await chain.replace()
    await chain.mine((3, PRICE))
    assert await live(database) == [(3, "seen")]


async def test_a_log_that_is_found_again_alone_is_what_it_was(
    database: Database, chain: Chain
) -> None:
    """A node left out one of two equal transfers for a while; the block is the same."""
    await chain.mine((3, PRICE), (4, PRICE))
    await settle(database, "refunded", 4)
    second = await row(database, "SELECT id FROM payments WHERE log_index = 4")
    ranges = RangeStore(database, CHAIN)
    anchor = await first_cursor(database)
    await ranges.repair(2, [], [second["id"]], epoch=EPOCH, checked=2, anchor=anchor)
    again = [chain.transfer(4, PRICE)]
    await ranges.repair(2, again, [], epoch=EPOCH, checked=2, anchor=anchor)
    assert await live(database) == [(3, "unmatched"), (4, "refunded")]


@pytest.mark.parametrize("comes_back", [False, True], ids=["another block", "the older block"])
async def test_an_operators_word_goes_along(
    database: Database, chain: Chain, comes_back: bool
) -> None:
    ledger = PaymentStore(database, CHAIN)
    job = await add_job(database)
    await chain.mine((3, PRICE))
    if comes_back:
        await chain.replace()
        await chain.mine((9, PRICE))
    await ledger.decide_seen(DECIDE, 10)
    await execute(
        database,
        """
        UPDATE payments SET status = 'seen', reason = NULL, evidence = evidence
            || jsonb_build_object('memo', $1::text, 'source', 'operator', 'signer', 'operator')
         WHERE status = 'unmatched'
        """,
        Memo(job.memo).hex(),
    )
    await ledger.decide_seen(DECIDE, 10)
    await chain.replace()
    if comes_back:
        await chain.return_to(1, (3, PRICE))
    else:
        await chain.mine((9, PRICE))
    await ledger.decide_seen(DECIDE, 10)
    found = await row(database, "SELECT * FROM payments WHERE status <> 'orphaned'")
    assert (found["status"], found["job_id"]) == ("matched", job.id)
    assert len(found["evidence"]) == 1
    assert found["memo"] is None, "the chain says nothing of it"


async def test_the_last_word_of_several_goes_along(database: Database, chain: Chain) -> None:
    """Two forks alternate, and each time the operator gives the payment to another job."""
    first, second = await add_job(database), await add_job(database)
    words = [(1, 3, first), (2, 9, second), (1, 3, first), (2, 9, first), (1, 3, second)]
    for fork, log_index, job in words:
        await chain.return_to(fork, (log_index, PRICE))
        (payment,) = await rows(database, "SELECT id FROM payments WHERE status <> 'orphaned'")
        await execute(
            database,
            "UPDATE payments SET status = 'unmatched', reason = 'duplicate', job_id = NULL"
            " WHERE id = $1",
            payment["id"],
        )
        await assign(database, payment["id"], job.id)
        await chain.replace()
    await chain.return_to(2, (9, PRICE))
    await PaymentStore(database, CHAIN).decide_seen(DECIDE, 10)
    found = await row(database, "SELECT * FROM payments WHERE status <> 'orphaned'")
    assert (found["status"], found["job_id"]) == ("matched", second.id)
    assert len(found["evidence"]) == 1


async def test_what_was_ignored_and_then_given_to_a_job_counts(
    database: Database, chain: Chain
) -> None:
    await chain.mine((3, PRICE))
    await settle(database, "ignored", 3)
    await chain.replace()
    await chain.mine((9, PRICE))
    job = await add_job(database)
    (payment,) = await rows(database, "SELECT id FROM payments WHERE status = 'ignored'")
    await assign(database, payment["id"], job.id)
    await chain.replace()
    await chain.return_to(1, (3, PRICE))
    assert await live(database) == [(3, "seen")], "the newer word is that it counts"


@pytest.mark.parametrize("is_credited", [False, True])
async def test_what_was_sent_back_while_it_was_orphaned_is_refunded(
    database: Database, chain: Chain, is_credited: bool
) -> None:
    """In the next block, and in the next but one; it pays no job a second time."""
    job = await add_job(database)
    paid = observed(PRICE, job.memo, block=header(2, "fork 0"), tx="a", log_index=3)
    await chain.store([paid])
    ledger = PaymentStore(database, CHAIN)
    await ledger.decide_seen(DECIDE, 10)
    (payment,) = await rows(database, "SELECT id FROM payments WHERE status = 'matched'")
    if is_credited:
        await ledger.credit([payment["id"]])
    await chain.replace()
    await send_back(database, payment["id"], sent(PRICE), is_watched=True)
    for log_index in (9, 4):
        await chain.mine((log_index, PRICE))
        assert await live(database) == [(log_index, "refunded")]
        assert await ledger.decide_seen(DECIDE, 10) == []
        await chain.replace()


async def test_what_was_sent_back_is_refunded_whatever_was_said_since(
    database: Database, chain: Chain
) -> None:
    await chain.mine((3, PRICE))
    (first,) = await rows(database, "SELECT id FROM payments")
    await chain.replace()
    await chain.mine((9, PRICE))
    await settle(database, "ignored", 9)
    await chain.replace()
    await send_back(database, first["id"], sent(PRICE), is_watched=True)
    await chain.mine((5, PRICE))
    assert await live(database) == [(5, "refunded")]
