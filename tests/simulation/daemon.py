"""One daemon of the simulation: the real stages over a ledger in memory, driven by hand."""

from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from random import Random
from types import SimpleNamespace
from typing import Any, Final, cast

from listener.follower import FetchRange, next_step
from listener.ranges import Range, Watch
from listener.rpc import ChainReader, HttpRpc
from listener.second_look import FinalityMark, SecondLook
from listener.service import Listener
from listener.witness import Witness
from oncepaid.domain.chain import BlockRef
from oncepaid.domain.errors import DatabaseUnavailable, Retryable
from oncepaid.domain.finality import INCLUDED, Aged, Finalized, Safe, Tier
from oncepaid.domain.generation import AttemptResult, Budget, Outcome
from oncepaid.domain.matching import MatchingRules
from oncepaid.domain.money import Units
from oncepaid.metrics import Metrics
from processors.finisher import Finisher
from processors.matcher import Matcher
from processors.reverser import Reverser
from processors.settler import SecondOpinion, Settler
from tests.fakes.blocks import TOKEN
from tests.simulation.chain import OURS
from tests.simulation.memory import ChainSide
from tests.simulation.memory_money import MoneySide
from tests.simulation.memory_rows import Tables
from tests.simulation.memory_work import WorkSide
from tests.simulation.nodes import Node, Rpc
from tests.simulation.reference import GRACE

TIERS: Final = (
    Tier(up_to=Units(1_100), require=INCLUDED),
    Tier(up_to=Units(2_600), require=Aged(timedelta(seconds=6))),
    Tier(up_to=Units(4_000), require=Safe()),
    Tier(up_to=None, require=Finalized()),
)
LEASE: Final = timedelta(seconds=30)
RULES: Final = MatchingRules(recipients=OURS, late_grace=GRACE, amount_fallback=True)
OUTCOMES: Final[tuple[Outcome, ...]] = (
    *(Outcome.SUCCEEDED, Outcome.SUCCEEDED, Outcome.SUCCEEDED),
    *(Outcome.OVERLOADED, Outcome.TRUNCATED, Outcome.REFUSED),
)


class Crash(BaseException):
    """The process dies here."""


class Uncounted:
    """Stands in for metrics, which nobody looks at here: it is whatever is asked of it."""

    def __getattr__(self, _: str) -> Any:
        return self

    def __call__(self, *_: object, **__: object) -> Any:
        return self


METRICS: Final = cast(Metrics, Uncounted())


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that waits for nothing to its end, without any event loop."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("something waits for an event loop")


class Ahead:
    """Stands in for the task that fetches ahead: it has its answer early, and tells it late."""

    def __init__(self, coroutine: Coroutine[Any, Any, Range]) -> None:
        self._error: Exception | None = None
        try:
            self._range = drive(coroutine)
        except Exception as exc:
            self._error = exc

    def __await__(self) -> Any:
        yield from ()
        if self._error is not None:
            raise self._error
        return self._range

    def cancel(self) -> None:
        pass


class Follower(Listener):
    """The listener, without the event loop that its task for fetching ahead needs."""

    def _fetch_ahead(self, cursor: BlockRef, head: BlockRef) -> None:
        step = next_step(cursor, head, self._span)
        if isinstance(step, FetchRange):
            self._ahead = cursor, cast(Any, Ahead(self._ranges.fetch(cursor, step, head)))


class Shaky:
    """A store whose every call may be the last of its process, before or after it was done."""

    def __init__(self, store: object, trouble: Callable[[], None]) -> None:
        self._store, self._trouble = store, trouble

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._trouble()
            result = await method(*args, **kwargs)
            self._trouble()
            return result

        setattr(self, name, call)
        return call


class Daemon:
    """`step` runs one stage once. `restart` loses everything but the tables."""

    def __init__(
        self,
        tables: Tables,
        nodes: list[Node],
        random: Random,
        *,
        pause: Callable[[], None],
        max_range_blocks: int,
    ) -> None:
        self.lead = SimpleNamespace(epoch=None)
        self._outcomes = OUTCOMES
        self._tables, self._nodes, self._random, self._pause = tables, nodes, random, pause
        self._watch = Watch(
            token=TOKEN, recipients=OURS, start_block=1, max_range_blocks=max_range_blocks
        )
        self.restart()

    def restart(self) -> None:
        rpc = self.rpc = Rpc(self._nodes, self._pause)
        client = cast(HttpRpc, rpc)
        ranges: Any = Shaky(ChainSide(self._tables), self._trouble)
        money: Any = Shaky(MoneySide(self._tables), self._trouble)
        work: Any = Shaky(WorkSide(self._tables), self._trouble)
        self._work, self._held = work, list[Any]()
        common: Any = {"lead": self.lead, "watch": self._watch, "metrics": METRICS}
        self.listener = Follower(client, ranges, ranges, **common)
        second = SecondLook(client, ranges, **common)
        opinion = SecondOpinion(witness=Witness(client, TOKEN), from_units=Units(3_000))
        settler = Settler(
            money,
            ChainReader(client),
            tiers=TIERS,
            services=(),
            metrics=METRICS,
            second=opinion,
        )
        budget = Budget(max_attempts=3, max_cost_usd=cast(Any, 1))
        finisher = Finisher(work, budget=budget, services=(), metrics=METRICS, uniform=lambda: 0.5)
        self._stages: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "listen": self.listener.step,
            "look again": second.step,
            "mark": FinalityMark(client, ranges, lead=self.lead).step,
            "match": Matcher(money, rules=RULES, metrics=METRICS).step,
            "settle": settler.step,
            "reverse": Reverser(money).step,
            "finish": finisher.step,
            "sweep": money.reconsider,
            "claim": self._claim,
            "answer": self._answer,
            "release": self._release,
        }

    def heal(self, max_range_blocks: int) -> None:
        """Start again with other settings, and with a model that answers."""
        self._outcomes = (Outcome.SUCCEEDED,)
        self._watch = replace(self._watch, max_range_blocks=max_range_blocks)
        self.restart()

    def step(self, stage: str) -> bool:
        """Run a stage once; True when more may be waiting."""
        # Second looks are the last to be asked: what they are not told either is lost.
        self.rpc.tells_all[0] = stage == "look again"
        try:
            return bool(drive(self._stages[stage]()))
        except Retryable:
            return False
        except Crash:
            self.restart()
            return False

    def _trouble(self) -> None:
        self._pause()

    async def _claim(self) -> None:
        self._held += await self._work.claim(2, LEASE)

    async def _answer(self) -> bool:
        if self._held:
            claimed = self._held.pop(self._random.randrange(len(self._held)))
            outcome = self._random.choice(self._outcomes)
            output = {"attempt": claimed.attempt} if outcome is Outcome.SUCCEEDED else None
            result = AttemptResult(outcome=outcome, message=str(outcome), output=output)
            await self._work.record_if_leased(claimed.attempt, result)
        return bool(self._held)

    async def _release(self) -> None:
        attempts = [claimed.attempt for claimed in self._held]
        self._held.clear()
        await self._work.release(attempts)


def lost_answer() -> DatabaseUnavailable:
    """The error of a statement that may have been done."""
    return DatabaseUnavailable("the connection broke off")
