"""What must hold after every event, and what must be so in the end."""

from collections import defaultdict
from datetime import UTC, datetime

from tests.simulation.memory_rows import JobRow, PaymentRow
from tests.simulation.reference import Meaning, Order, may_be_credited, meaning_of, must_be_paid
from tests.simulation.world import World

DONE = ("completed", "failed")


def check_always(world: World) -> None:
    """DESIGN §9.1 to 9.4, as far as they hold at any moment."""
    _check_rows(world)
    for job in world.tables.jobs.values():
        rows = [row for row in world.tables.payments.values() if row.job_id == job.id]
        _check_job(job, rows)
    assert world.tables.cursor is None or world.tables.cursor.conflict is None, "no real conflict"


def _check_rows(world: World) -> None:
    """What was asked twice is exactly what the cursor's chain holds."""
    cursor = world.tables.cursor
    if cursor is None:
        return
    path = world.chain.by_hash[cursor.block.hash].path
    assert cursor.checked <= cursor.block.number, "nothing is checked that was not read"
    assert cursor.finalized <= cursor.checked, "nothing is final that was not checked"
    final = cursor.finalized
    assert final < 0 or path[final] is world.chain.tip.path[final], "only our chain can be final"
    rows = [row for row in world.tables.live() if row.log.block.number <= cursor.checked]
    for row in rows:
        block = path[row.log.block.number]
        assert block.hash == row.log.block.hash, f"payment {row.id} is on no block of the chain"
    assert len(rows) == path[cursor.checked].total, "each transfer is one row"


def _check_job(job: JobRow, rows: list[PaymentRow]) -> None:
    credited = [row.log.units for row in rows if row.status == "credited"]
    is_settled = not any(
        row.status == "orphaned" and row.orphaned_from == "credited" and not row.is_reversed
        for row in rows
    )
    assert job.completed <= 1, "one result, written once"
    assert (job.completed == 1) == (job.status in DONE)
    if job.status == "pending":
        assert not credited, "money that counts has a job that is paid"
        return
    if is_settled:
        assert sum(credited) == job.credited_units
        if not job.is_unbacked:
            assert sum(credited) >= job.price, "nothing is worked on that is not paid"


def check_in_the_end(world: World) -> None:
    """The ledger is what the reference makes of the final chain and the orders alone."""
    orders = world.customers.orders
    rows = {row.key: row for row in world.tables.live()}
    found: dict[int, list[tuple[PaymentRow, Meaning]]] = defaultdict(list)
    keys = [key for block in world.chain.tip.path[1:] for key in block.keys]
    assert {key for key, _, _ in keys} == set(rows)
    for key, transfer, payment in keys:
        row = rows[key]
        company = sum(other.recipient == transfer.recipient for other in payment.transfers)
        block = world.chain.by_hash[row.log.block.hash]
        at = datetime.fromtimestamp(block.time_s, tz=UTC)
        meaning = meaning_of(transfer, company, at, orders)
        if row.status == "unmatched":
            assert row.reason in meaning.reasons, f"{row.id}: {row.reason}, not {meaning}"
        else:
            assert row.status == "credited"
            assert meaning.counts, f"{row.id} was credited, but {meaning}"
            assert meaning.order is not None
            assert row.job_id == meaning.order.id
        if meaning.order is not None:
            found[meaning.order.id].append((row, meaning))
    for order in world.customers.all:
        _check_order(world, order, found[order.id])
    assert not world.tables.cursor or world.tables.cursor.conflict is None


def _check_order(world: World, order: Order, found: list[tuple[PaymentRow, Meaning]]) -> None:
    job = next(job for job in world.tables.jobs.values() if job.id == order.id)
    read = [
        row
        for row, meaning in found
        if meaning.counts and row.reason not in ("unknown_memo", "no_memo", "dust")
    ]
    credited = [row.log.units for row in read if row.status == "credited"]
    left = [row.reason for row in read if row.status == "unmatched"]
    losses = [loss for loss in world.tables.losses if loss.job == job.id and not loss.is_made_good]
    assert bool(losses) == job.is_unbacked, "a loss is open exactly while its job is unbacked"
    if must_be_paid(order, [row.log.units for row in read]):
        assert job.status in DONE, f"job {job.id} is paid on the chain and {job.status}"
        assert not job.is_unbacked
        assert may_be_credited(order.price, credited), f"{credited} for {order.price}"
        assert set(left) <= {"duplicate"}
    else:
        assert job.status == "pending" or (job.status in DONE and job.is_unbacked)
        assert job.is_unbacked or not credited
        assert set(left) <= {"underpaid"}


def play(seed: int) -> str | None:
    """Play the schedule of a seed. Returns None, or what went wrong with all that had happened."""
    world = World(seed)
    try:
        world.run(check_always)
        assert world.rest(check_always), "it does not come to rest"
        check_in_the_end(world)
    except Exception as exc:
        story = "\n  ".join(world.log)
        return f"seed {seed}: {type(exc).__name__}: {exc}\n  {story}"
    return None
