"""One node: verified before it is used, asked in batches it can do, and judged by its answers."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from listener.decode import Json, decode_header, quantity
from listener.exchange import LIMIT_TEXT, Call, CallError, Exchange, error_of, label_of
from listener.standing import (
    Rest,
    Standing,
    answered,
    distrusted,
    failed,
    left,
    rate_limited,
    refused,
    slowed,
    succeeded,
)
from oncepaid.domain.chain import Address, BlockHash
from oncepaid.domain.errors import (
    BatchRefused,
    CallFailed,
    InconsistentNode,
    NodeUnavailable,
    RangeRefused,
    RateLimited,
    WrongChain,
)

log = structlog.get_logger()

MAX_BATCH: Final = 100
"""Calls in one HTTP request; providers allow 100 to 1,000, and some fewer (see `BatchRefused`)."""
WIDEN_BATCH_S: Final = 60.0
"""How long after a refusal a batch may be twice as long again. It may not have been the length that
was too much, but one answer in it, which anyone can make as large as he pays for."""
MAX_PARALLEL_REQUESTS: Final = 4
"""To one endpoint: one that hangs must not keep us from the others."""

Clock = Callable[[], float]


@dataclass(slots=True, kw_only=True)
class Identity:
    """The chain that every endpoint must serve. `genesis` is learnt from the first that has it."""

    chain_id: int
    token: Address
    genesis: BlockHash | None = None
    is_proven: bool = False
    """Whether any endpoint ever passed."""

    def check(self, where: str, answers: Sequence[Json]) -> None:
        """Compare the answers to `questions`.

        Raises `WrongChain`, and `InconsistentNode` for what is no answer.
        """
        chain_id, code, block = quantity(answers[0]), answers[1], decode_header(answers[2])
        if chain_id != self.chain_id:
            raise WrongChain(
                "chain.chain_id", f"is {self.chain_id}, but {where} serves chain {chain_id}"
            )
        if not isinstance(code, str) or len(code) <= 2:
            raise WrongChain("chain.token", f"{self.token} has no code on {where}")
        if block is not None:
            if self.genesis not in (None, block.hash):
                raise WrongChain("chain.http_urls", f"{where} has another first block than others")
            self.genesis = block.hash
        self.is_proven = True

    def questions(self) -> list[Call]:
        """Return the calls that tell one chain from another. Not every node has old blocks."""
        return [
            Call(method="eth_chainId"),
            Call(method="eth_getCode", params=(self.token, "latest")),
            Call(method="eth_getBlockByNumber", params=("0x0", False), optional=True),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimit:
    """How many calls one request may have, as far as the node's refusals tell, and since when."""

    calls: int = MAX_BATCH
    since: float = 0.0

    def at(self, now: float) -> "BatchLimit":
        """Return the limit, twice as much after each `WIDEN_BATCH_S` without a refusal."""
        if self.calls >= MAX_BATCH or now < self.since + WIDEN_BATCH_S:
            return self
        return BatchLimit(calls=min(MAX_BATCH, self.calls * 2), since=now)

    def after_refusal(self, calls: int, now: float) -> "BatchLimit":
        """Return the limit after so many calls were too many; other requests may know more."""
        return BatchLimit(calls=min(self.calls, max(1, calls // 2)), since=now)


class Endpoint:
    """One node. Nothing that is done here changes which endpoint is in use."""

    def __init__(
        self, index: int, url: str, *, identity: Identity, exchange: Exchange, clock: Clock
    ) -> None:
        self.index = index
        self.label = label_of(url)
        self.standing = Standing()
        self._url = url
        self._identity = identity
        self._exchange = exchange
        self._clock = clock
        self._is_verified = False
        self._verifying = asyncio.Lock()
        self._slots = asyncio.Semaphore(MAX_PARALLEL_REQUESTS)
        self._batch_limit = BatchLimit()

    async def call(self, method: str, *params: Json) -> Json:
        """Make one call and return its result; raises as `call_all` does."""
        return (await self.call_all([Call(method=method, params=params)]))[0]

    async def call_all(self, calls: Sequence[Call]) -> list[Json]:
        """Make calls in as few requests as allowed and return their results, in order.

        Raises `RangeRefused` for an `eth_getLogs` that is too much, else `NodeUnavailable`:
        `RateLimited`, without a request while the limit lasts, or `WrongChain`.
        """
        with self._judged():
            await self._verify()
            results = await self._in_batches(calls)
            self.standing = succeeded(self.standing)
            return results

    async def verify(self) -> None:
        """Check that it serves our chain, unless that was done. Raises as `call_all` does."""
        with self._judged():
            await self._verify()
            self.standing = succeeded(self.standing)

    def doubt(self) -> None:
        """Have it verified again before its next use."""
        self._is_verified = False

    def distrust(self) -> None:
        """Let it rest for a while: its answers contradict each other."""
        self.standing = distrusted(self.standing, self._clock())

    def slow_down(self) -> None:
        """Let it rest because it is slow."""
        self.standing = slowed(self.standing, self._clock())

    def leave(self) -> None:
        """Note that it is not in use any more, or was found unfit to be."""
        self.standing = left(self.standing, self._clock())

    def fail(self) -> None:
        """Note a failure that only the caller saw: it waited for too long."""
        self.standing = failed(self.standing, self._clock())
        self._is_verified = False

    @contextmanager
    def _judged(self) -> Iterator[None]:
        now = self._clock()
        if self.standing.is_rate_limited(now):
            raise RateLimited(f"{self.label}: rate limited", self.standing.rest_until - now)
        # Here and not in `_in_batches`, which halves until it is served and so must come to an end.
        self._batch_limit = self._batch_limit.at(now)
        try:
            yield
        except RateLimited as exc:
            self.standing = rate_limited(self.standing, self._clock(), exc.retry_after_s)
            raise
        except WrongChain as exc:
            self._refuse(exc)
            raise
        except CallFailed:
            self.standing = failed(self.standing, self._clock())
            raise
        except NodeUnavailable:
            # Whoever answers next may be another node than the one that was verified.
            self.fail()
            raise

    def _refuse(self, exc: WrongChain) -> None:
        is_news = self.standing.rest is not Rest.REFUSED
        self.standing = refused(self.standing, self._clock())
        self._is_verified = False
        if is_news and self._identity.is_proven:
            log.error("endpoint.wrong_chain", endpoint=self.label, key=exc.key, problem=exc.problem)

    async def _verify(self) -> None:
        async with self._verifying:
            if self._is_verified:
                return
            answers = await self._in_batches(self._identity.questions())
            try:
                self._identity.check(self.label, answers)
            except InconsistentNode as exc:
                raise NodeUnavailable(f"{self.label}: {exc}") from exc
            self._is_verified = True

    async def _in_batches(self, calls: Sequence[Call]) -> list[Json]:
        limit = self._batch_limit.calls
        parts = [calls[at : at + limit] for at in range(0, len(calls), limit)]
        try:
            if len(parts) == 1:
                return await self._checked(parts[0])
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._checked(part)) for part in parts]
        except* BatchRefused as too_many:
            if limit == 1:
                raise NodeUnavailable(str(too_many.exceptions[0])) from too_many
            self._batch_limit = self._batch_limit.after_refusal(limit, self._clock())
        except* (NodeUnavailable, RangeRefused) as group_error:
            raise group_error.exceptions[0] from None
        else:
            return [result for task in tasks for result in task.result()]
        return await self._in_batches(calls)

    async def _checked(self, calls: Sequence[Call]) -> list[Json]:
        async with self._slots:
            started = self._clock()
            answers = await self._exchange.post(self._url, calls)
            seconds = self._clock() - started
        results = [
            self._result(call, answer, is_alone=len(calls) == 1)
            for call, answer in zip(calls, answers, strict=True)
        ]
        self.standing = answered(self.standing, seconds)
        return results

    def _result(self, call: Call, answer: Json, *, is_alone: bool) -> Json:
        if not isinstance(answer, CallError):
            return answer
        if not is_alone and LIMIT_TEXT.search(answer.message):
            raise BatchRefused(answer.message)
        error = error_of(call, answer)
        if call.optional and isinstance(error, CallFailed):
            return None
        raise error
