"""Several nodes as one: the preferred one that works is in use, and left when it fails or lags."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Final, Self, assert_never

import structlog

from listener.decode import Json
from listener.endpoints import Clock, Endpoint, Identity
from listener.exchange import Call, CallError, Exchange, error_of, label_of
from listener.pulse import Halted, Lagging, Pulse, Steady
from listener.reader import Caller, ChainReader, header_call
from listener.standing import Standing, choose, healthiest_other
from oncepaid.domain.chain import Address, Header
from oncepaid.domain.errors import (
    BadSetting,
    InconsistentNode,
    NodeUnavailable,
    Retryable,
    WrongChain,
)
from oncepaid.metrics import Metrics

__all__ = [
    "Call",
    "CallError",
    "Caller",
    "ChainReader",
    "Endpoint",
    "HttpRpc",
    "error_of",
    "header_call",
    "label_of",
]

log = structlog.get_logger()

LOOK_TIMEOUT_S: Final = 5.0
"""For looking at heads: one endpoint that hangs must not hide for long what another one tells."""


class HttpRpc:
    """Calls one of several nodes, given in order of preference: sticky, and on when it fails.

    An endpoint is verified before its first use and each time it comes into use again. Times are
    those of `clock`, in seconds.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        chain_id: int,
        token: Address,
        metrics: Metrics,
        clock: Clock = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._identity = Identity(chain_id=chain_id, token=token)
        self._exchange = Exchange(metrics)
        self._endpoints = [
            Endpoint(index, url, identity=self._identity, exchange=self._exchange, clock=clock)
            for index, url in enumerate(urls)
        ]
        self._current = 0
        self._pulse = Pulse()
        self._halted: Halted | None = None
        self._stack = AsyncExitStack()
        for endpoint in self._endpoints:
            metrics.endpoint_up.labels(endpoint=endpoint.label).set_function(
                partial(self._is_up, endpoint.label)
            )

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._exchange)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def endpoint(self) -> str:
        """The label of the endpoint in use."""
        return self._endpoints[self._current].label

    @property
    def current(self) -> int:
        """The index of the endpoint in use."""
        return self._current

    @property
    def count(self) -> int:
        """How many endpoints there are."""
        return len(self._endpoints)

    @property
    def pulse_note(self) -> str | None:
        """A sentence while the chain stands still, for people."""
        if self._halted is None:
            return None
        where = f" on any of {self.count} endpoints" if self.count > 1 else ""
        return f"no new block for {self._halted.idle_s:.0f} s{where}"

    def pinned(self, index: int) -> Endpoint:
        """Return one endpoint, whichever is in use."""
        return self._endpoints[index]

    def other(self) -> Endpoint:
        """Return the healthiest endpoint but the one in use, or that one if there is no other."""
        index = healthiest_other(self._standings(), self._current, self._clock())
        return self._endpoints[index]

    def other_in_service(self) -> Endpoint:
        """Return another endpoint that does not rest, or the one in use where there is none."""
        other = self.other()
        return self.pinned(self._current) if other.standing.rests(self._clock()) else other

    def second(self) -> Endpoint | None:
        """Return another endpoint that does not rest, or None where there is none."""
        other = self.other_in_service()
        return None if other.index == self._current else other

    async def verify(self) -> None:
        """Check the endpoint in use, unless that was done.

        Raises `BadSetting` for another chain or a token without code while no endpoint ever passed,
        else `NodeUnavailable`; in each case the next endpoint is in use after it.
        """
        with self._in_use() as endpoint:
            await endpoint.verify()

    async def call(self, method: str, *params: Json) -> Json:
        """Make one call and return its result; raises as `call_all` does."""
        return (await self.call_all([Call(method=method, params=params)]))[0]

    async def call_all(self, calls: Sequence[Call]) -> list[Json]:
        """Make calls in as few requests as allowed and return their results, in order.

        Raises `RangeRefused` for an `eth_getLogs` that is too much, else as `verify` does.
        """
        with self._in_use() as endpoint:
            return await endpoint.call_all(calls)

    def distrust(self) -> None:
        """Leave the endpoint in use: its answers contradict each other."""
        self._endpoints[self._current].distrust()
        self._choose("distrusted", failed=self._current)

    def saw_head(self, header: Header) -> None:
        """Note the head that the endpoint in use told of."""
        self._pulse.saw(self._current, header, self._clock())

    async def tend(self) -> bool:
        """Look after the endpoints: a step, for every few seconds, that never raises `Retryable`.

        Returns to a preferred endpoint, leaves one that lags, and tells when the chain halts.
        """
        if self.count > 1:
            await self._return_to_preferred()
            if self._pulse.is_look_due(self._current, self._clock()):
                await self._look_around()
        await self._heed_pulse()
        return False

    @contextmanager
    def _in_use(self) -> Iterator[Endpoint]:
        """Choose an endpoint for the calls made inside; it is left when they fail, or are slow."""
        if self._endpoints[self._current].standing.rests(self._clock()):
            self._choose("rests", failed=None)
        endpoint = self._endpoints[self._current]
        try:
            yield endpoint
        except WrongChain as exc:
            self._left_by(endpoint, "wrong_chain")
            if not self._identity.is_proven:
                raise BadSetting(exc.key, exc.problem) from exc
            raise
        except NodeUnavailable:
            self._left_by(endpoint, "failed")
            raise
        if endpoint.standing.is_slow and endpoint.index == self._current:
            self._leave_slow(endpoint)

    def _left_by(self, endpoint: Endpoint, reason: str) -> None:
        if endpoint.index == self._current:
            self._choose(reason, failed=endpoint.index)

    def _leave_slow(self, endpoint: Endpoint) -> None:
        now = self._clock()
        if all(o.standing.rests(now) for o in self._endpoints if o is not endpoint):
            return
        endpoint.slow_down()
        self._choose("slow", failed=endpoint.index)

    def _choose(self, reason: str, *, failed: int | None) -> None:
        index = choose(self._standings(), self._clock(), failed=failed)
        if index != self._current:
            self._endpoints[index].doubt()
            self._switch_to(index, reason)

    def _switch_to(self, index: int, reason: str) -> None:
        before, after = self._endpoints[self._current], self._endpoints[index]
        before.leave()
        self._current = index
        log.info("endpoint.switched", endpoint=after.label, before=before.label, reason=reason)

    def _standings(self) -> list[Standing]:
        return [endpoint.standing for endpoint in self._endpoints]

    def _is_up(self, label: str) -> float:
        now = self._clock()
        same = [one.standing for one in self._endpoints if one.label == label]
        return float(all(standing.is_up(now) for standing in same))

    async def _return_to_preferred(self) -> None:
        for candidate in self._endpoints[: self._current]:
            if not candidate.standing.may_return(self._clock()):
                continue
            ours = self._pulse.head(self._current)
            theirs = await self._verified_head(candidate)
            if theirs is None or (ours is not None and theirs.number < ours.number):
                candidate.leave()
            elif candidate.index < self._current:
                self._switch_to(candidate.index, "preferred")
                return

    async def _verified_head(self, candidate: Endpoint) -> Header | None:
        """Return the head of an endpoint that is about to come into use, None if it may not."""
        candidate.doubt()
        return await self._look_at(candidate)

    async def _look_around(self) -> None:
        now = self._clock()
        able = [one for one in self._endpoints if not one.standing.rests(now)]
        await asyncio.gather(*(self._look_at(endpoint) for endpoint in able))
        self._pulse.looked(self._clock())

    async def _look_at(self, endpoint: Endpoint) -> Header | None:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                header = await ChainReader(endpoint).header("latest")
        except InconsistentNode:
            endpoint.distrust()
            return None
        except TimeoutError:
            endpoint.fail()
            return None
        except Retryable:
            return None
        if header is not None:
            self._pulse.saw(endpoint.index, header, self._clock())
        return header

    async def _heed_pulse(self) -> None:
        now = self._clock()
        able = {one.index for one in self._endpoints if one.standing.may_return(now)}
        verdict = self._pulse.verdict(self._current, now, able)
        match verdict:
            case Lagging():
                await self._leave_lagging(verdict)
                self._tell_halted(None)
            case Halted():
                self._tell_halted(verdict)
            case Steady():
                self._tell_halted(None)
            case _:
                assert_never(verdict)

    async def _leave_lagging(self, lagging: Lagging) -> None:
        index, ours = self._current, self._pulse.head(self._current)
        theirs = await self._verified_head(self._endpoints[lagging.other])
        # It may have told of that head once only, or another task may have left ours by now.
        if ours is None or theirs is None or theirs.number <= ours.number:
            return
        if index == self._current:
            log.warning(
                "node.lagging",
                endpoint=self.endpoint,
                other=self._endpoints[lagging.other].label,
                blocks=lagging.blocks,
                seconds=lagging.seconds,
            )
            self._switch_to(lagging.other, "lagging")

    def _tell_halted(self, halted: Halted | None) -> None:
        if halted is not None and self._halted is None:
            log.info(
                "chain.halted",
                head=halted.head.number,
                head_time=halted.head.time.isoformat(),
                idle_s=round(halted.idle_s),
            )
        if halted is None and self._halted is not None:
            log.info("chain.resumed", idle_s=round(self._halted.idle_s))
        self._halted = halted
        self._metrics.chain_halted.set(0 if halted is None else 1)
