"""One random schedule of everything that can happen, from one seed, and what must hold."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from random import Random
from typing import Final

from oncepaid.domain.errors import NodeUnavailable
from oncepaid.domain.jobs import JobId
from oncepaid.domain.money import Units
from tests.simulation.chain import BLOCK_S, GENESIS_S, Block, ForkingChain, Payment, moved
from tests.simulation.daemon import Crash, Daemon, lost_answer
from tests.simulation.memory_rows import JobRow, Tables
from tests.simulation.nodes import Finality, Node
from tests.simulation.orders import Customers
from tests.simulation.reference import Order

EVENTS: Final = (15, 40)
DEEPEST: Final = 80
ROUNDS_TO_REST: Final = 30
WIDE: Final = 1000
STAGES: Final = (
    *("listen", "look again", "mark", "match", "settle", "reverse"),
    *("claim", "answer", "finish", "sweep"),
)


class World:
    """`run` plays a schedule; `log` says afterwards what it was."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.log = ["begin"]
        self.chain = ForkingChain()
        self.chain.tells_times = self.random.random() < 0.5
        self.finality = Finality()
        self.tables = Tables()
        self.customers = Customers(self.random)
        self.untold: list[Order] = []
        self.now_s = GENESIS_S
        self._old_tips: list[Block] = []
        self._trouble = self.random.choice((0.0, 0.01, 0.05))
        self._is_inside = False
        self._most_orders = self.random.choice((1, 2, 4))
        self.nodes = [
            Node(index=index, chain=self.chain, finality=self.finality, random=self.random)
            for index in range(self.random.choice((1, 2, 2)))
        ]
        width = self.random.choice((1, 3, 10, 100))
        self.daemons = [
            Daemon(self.tables, self.nodes, self.random, pause=self._pause, max_range_blocks=width)
            for _ in range(2)
        ]
        self._events: dict[Callable[[], None], int] = {
            self.mine: 14,
            self.mine_many: 1,
            self.fork: 12,
            self.come_back: 4,
            self.finalize: 1,
            self.wait: 4,
            self.order: 2,
            self.tell: 3,
            self.limp: 5,
            self.heal: 3,
            self.catch_up: 5,
            self.flow: 25,
            self.work_on: 15,
            self.take_over: 2,
            self.forget_lead: 1,
            self.restart: 2,
            self.release: 1,
        }
        self._blocks_mined = [self.mine, self.mine_many, self.fork, self.come_back, self.limp]
        self._time_passes(0)

    def run(self, check: Callable[["World"], None]) -> None:
        """Play the schedule, checking after each event."""
        self.take_over()
        for _ in range(self.random.randrange(1, 4)):
            self.order()
        self.daemons[0].step("listen")
        events = list(self._events)
        # Each schedule has its own mixture: an even one would do a little of everything, always.
        weights = [w * self.random.choice((0.2, 1, 1, 3)) for w in self._events.values()]
        for event in self.random.choices(events, weights=weights, k=self.random.randint(*EVENTS)):
            self._do(event)
            check(self)

    def rest(self, check: Callable[["World"], None]) -> bool:
        """End all faults and go on until nothing is left to do. False: that did not come."""
        self._trouble = 0.0
        self.log.append("faults end")
        self.heal()
        while self.untold:
            self.tell()
        for daemon in self.daemons:
            daemon.heal(WIDE)
        self.take_over()
        highest = max(block.number for block in self.chain.by_hash.values())
        # Above what any chain had, and old enough for what waits for an age.
        while self.chain.height <= highest + 5:
            self._mine_one(())
        for _ in range(ROUNDS_TO_REST):
            self._time_passes(60)
            self.finality.safe = self.finality.finalized = self.chain.height
            for stage in STAGES:
                # As a driver does: again at once while there is more.
                while self._leader.step(stage):
                    pass
            check(self)
            if self._is_at_rest():
                return True
        return False

    @property
    def _leader(self) -> Daemon:
        return max(self.daemons, key=lambda daemon: daemon.lead.epoch or 0)

    def _is_at_rest(self) -> bool:
        cursor = self.tables.cursor
        assert cursor is not None
        tip = self.chain.tip
        is_read = (cursor.block.hash, cursor.checked) == (tip.hash, tip.number)
        payments = Counter(row.status for row in self.tables.payments.values())
        jobs = Counter(job.status for job in self.tables.jobs.values())
        is_done = not (payments["seen"] or payments["matched"])
        return is_read and is_done and not (jobs["paid"] or jobs["in_progress"])

    def _do(self, event: Callable[[], None]) -> None:
        self.log.append(event.__name__)
        event()

    def _note(self, text: str) -> None:
        self.log[-1] += f" {text}"

    def _pause(self) -> None:
        """Between any two calls: the process may die, an answer be lost, or the world move on."""
        if self._is_inside or self.random.random() >= self._trouble:
            return
        match self.random.randrange(5):
            case 0:
                self._note("(crash)")
                raise Crash
            case 1:
                self._note("(answer lost)")
                raise lost_answer()
            case 2:
                self._note("(node away)")
                raise NodeUnavailable("away")
            case 3:
                self._within(self.random.choice(self._blocks_mined))
            case _:
                self._within(self.random.choice((self.take_over, self.another_steps)))

    def _within(self, event: Callable[[], None]) -> None:
        self._is_inside = True
        self._note(f"(meanwhile {event.__name__}")
        try:
            event()
        finally:
            self._is_inside = False
        self._note(")")

    # What can happen.

    def mine(self) -> None:
        for _ in range(self.random.choice((1, 1, 2, 4))):
            paid = [self.customers.payment() for _ in range(self.random.choice((0, 1, 1, 2)))]
            self.chain.payments += paid
            again = self._waiting() if self.random.random() < 0.3 else []
            self._mine_one((*paid, *again))

    def mine_many(self) -> None:
        for _ in range(self.random.choice((5, 20, DEEPEST))):
            self._mine_one(())

    def fork(self) -> None:
        """Replace the newest blocks: each payment is dropped, stays, moves, or moves its index."""
        room = self.chain.height - self.finality.finalized
        depth = min(room, self.random.choice((1, 1, 2, 2, 3, 3, 6, 12, 36, DEEPEST)))
        if depth <= 0:
            return
        self._old_tips.append(self.chain.tip)
        length = self.random.choice((depth, depth + 1, max(1, depth // 2)))
        plan: dict[int, list[Payment]] = {}
        for distance, payment in self.chain.back_to(self.chain.height - depth):
            match self.random.randrange(5):
                case 0:
                    continue
                case 1:
                    distance = self.random.randint(1, length)
                case 2:
                    payment = moved(payment, self.random.randrange(4))
            plan.setdefault(min(distance, length), []).append(payment)
        self.finality.safe = min(self.finality.safe, self.chain.height)
        for distance in range(1, length + 1):
            self._mine_one(plan.get(distance, ()))
        self._note(f"{depth} blocks give way to {length}")

    def come_back(self) -> None:
        """The chain that was given up is the right one after all."""
        if not self._old_tips:
            return
        old = self._old_tips.pop()
        if self._is_above_final(old):
            self._old_tips.append(self.chain.tip)
            self.chain.tip = old
            self.finality.safe = min(self.finality.safe, old.number)

    def finalize(self) -> None:
        self.finality.safe = max(self.finality.finalized, self.chain.height - 2)
        if self.random.random() < 0.6:
            reach = self.chain.height - self.random.choice((1, 3, 6, 20))
            self.finality.finalized = max(self.finality.finalized, reach)
            for node in self.nodes:
                if node.fork is not None and not self._is_above_final(node.fork):
                    node.fork = None

    def wait(self) -> None:
        self._time_passes(self.random.choice((5, 12, 40)))

    def order(self) -> None:
        if len(self.customers.all) >= self._most_orders:
            return
        is_late = self.random.random() < 0.2
        order = self.customers.order(self.tables.now, is_late=is_late)
        if is_late:
            self.untold.append(order)
        else:
            self._insert(order)

    def tell(self) -> None:
        if self.untold:
            self._insert(self.untold.pop(0))

    def limp(self) -> None:
        node = self.random.choice(self.nodes)
        match self.random.randrange(6):
            case 0:
                node.lag = self.random.choice((1, 3, 30))
            case 1:
                node.is_down = True
            case 2:
                node.range_limit = self.random.choice((1, 2, 5))
            case 3:
                node.short = self.random.choice((0.3, 1.0))
            case 4:
                node.shuffled = True
            case _:
                if self._old_tips and self._is_above_final(self._old_tips[-1]):
                    node.fork = self._old_tips[-1]

    def heal(self) -> None:
        for node in self.nodes:
            node.heal()

    def catch_up(self) -> None:
        for _ in range(4):
            self._leader.step("listen")

    def flow(self) -> None:
        """What a healthy daemon does with a payment, up to some stage."""
        order = ("listen", "match", "reverse", "settle", "claim", "answer", "finish")
        for stage in order[: self.random.randint(2, len(order))]:
            self._leader.step(stage)

    def work_on(self) -> None:
        daemon = self.random.choice(self.daemons)
        for stage in self.random.choices(STAGES, k=4):
            self._note(stage)
            daemon.step(stage)

    def another_steps(self) -> None:
        daemon, stage = self.random.choice(self.daemons), self.random.choice(STAGES)
        self._note(stage)
        # Not the one that is in the middle of a step: a task does one step at a time.
        other = Daemon(self.tables, self.nodes, self.random, pause=self._pause, max_range_blocks=10)
        other.lead = daemon.lead
        other.restart()
        other.step(stage)

    def take_over(self) -> None:
        daemon = self.random.choice(self.daemons)
        daemon.lead.epoch = self.tables.take_over()

    def forget_lead(self) -> None:
        self.random.choice(self.daemons).lead.epoch = None

    def restart(self) -> None:
        self.random.choice(self.daemons).restart()

    def release(self) -> None:
        self.random.choice(self.daemons).step("release")

    def _waiting(self) -> list[Payment]:
        return [payment for payment in self.chain.payments if not self.chain.is_mined(payment)]

    def _is_above_final(self, tip: Block) -> bool:
        final = self.finality.finalized
        return tip.number >= final and tip.path[final] is self.chain.tip.path[final]

    def _mine_one(self, payments: tuple[Payment, ...] | list[Payment]) -> None:
        self._time_passes(BLOCK_S)
        unique = {payment.hash: payment for payment in payments}
        self.chain.mine([p for p in unique.values() if not self.chain.is_mined(p)], self.now_s)

    def _time_passes(self, seconds: int) -> None:
        self.now_s += seconds
        self.tables.now = datetime.fromtimestamp(self.now_s, tz=UTC)

    def _insert(self, order: Order) -> None:
        self.tables.jobs[JobId(order.id)] = JobRow(
            id=JobId(order.id),
            memo=order.memo,
            price=Units(order.price),
            unique_amount=Units(order.unique_amount),
            pay_to=order.pay_to,
            expires_at=order.expires_at,
        )
