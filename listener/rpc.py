"""JSON-RPC over HTTP: batches, deadlines, failover, and errors sorted by what helps."""

import asyncio
import itertools
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

import aiohttp
import orjson

from listener.decode import Json, decode_header, quantity
from oncepaid.domain.chain import Address, BlockHash, Header
from oncepaid.domain.errors import (
    BadSetting,
    BatchRefused,
    CallFailed,
    InconsistentNode,
    NodeUnavailable,
    RangeRefused,
)
from oncepaid.metrics import Metrics

REQUEST_TIMEOUT_S: Final = 15.0
CONNECT_TIMEOUT_S: Final = 5.0
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
MAX_BATCH: Final = 100
"""Calls in one HTTP request; providers allow 100 to 1,000, and some fewer (see `BatchRefused`)."""
MAX_PARALLEL_REQUESTS: Final = 4

# How nodes say "too many blocks or logs": proxyd, reth, Alchemy, QuickNode, Infura and geth, by
# code where it is specific and else by text (reference of providers in docs/nodes.md).
_RANGE_CODES: Final = frozenset({-32020, -32614})
_RANGE_TEXT: Final = re.compile(
    r"max results|block range|range limit|limited to a|response (size|too large)|too large"
    r"|size exceeded|more than \d+ results|exceeds? (the )?(max|limit)|query timeout"
    r"|too many (logs|results|blocks)|ranges? over|at most \d+ blocks",
    re.IGNORECASE,
)
_BATCH_CODES: Final = frozenset({-32014})
_LIMIT_TEXT: Final = re.compile(r"batch|too large|size exceeded", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One JSON-RPC call."""

    method: str
    params: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallError:
    """A call that the node answered with an error object."""

    code: int
    message: str


def label_of(url: str) -> str:
    """Return an endpoint's label: host and port, never the path or query, which hold keys."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def error_of(call: Call, error: CallError) -> Exception:
    """Return what a node's error means for the caller."""
    text = f"{call.method}: {error.message[:200]} ({error.code})"
    if error.code in _BATCH_CODES:
        return BatchRefused(text)
    if call.method == "eth_getLogs" and (
        error.code in _RANGE_CODES or _RANGE_TEXT.search(error.message)
    ):
        return RangeRefused(text)
    return CallFailed(text)


class HttpRpc:
    """Calls one of several nodes: sticky, and on to the next one when it fails.

    Every endpoint is asked for its chain id and for the token's code before its first use.
    """

    def __init__(
        self, urls: Sequence[str], *, chain_id: int, token: Address, metrics: Metrics
    ) -> None:
        self._urls = tuple(urls)
        self._chain_id = chain_id
        self._token = token
        self._metrics = metrics
        self._current = 0
        self._verified: set[int] = set()
        self._ids = itertools.count(1)
        self._slots = asyncio.Semaphore(MAX_PARALLEL_REQUESTS)
        self._batch_limits = [MAX_BATCH for _ in urls]
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        self._session = aiohttp.ClientSession(
            timeout=timeout, headers={"Content-Type": "application/json"}
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def endpoint(self) -> str:
        """The label of the endpoint in use."""
        return label_of(self._urls[self._current])

    async def verify(self) -> None:
        """Check the endpoint in use, unless that was done.

        Raises `BadSetting` for another chain or a token without code, `NodeUnavailable` else; in
        each case the next endpoint is in use after it.
        """
        index = self._current
        with self._left_if_bad(index):
            await self._verify(index)

    def distrust(self) -> None:
        """Put the next endpoint in use: the answers of this one contradict each other."""
        self._current = (self._current + 1) % len(self._urls)

    @contextmanager
    def _left_if_bad(self, index: int) -> Iterator[None]:
        try:
            yield
        except (NodeUnavailable, InconsistentNode, BadSetting):
            if self._current == index:
                self.distrust()
            raise

    async def _verify(self, index: int) -> None:
        if index in self._verified:
            return
        calls = [
            Call(method="eth_chainId"),
            Call(method="eth_getCode", params=(self._token, "latest")),
        ]
        answers = await self._in_batches(index, calls)
        chain_id, code = quantity(answers[0]), answers[1]
        where = label_of(self._urls[index])
        if chain_id != self._chain_id:
            raise BadSetting(
                "chain.chain_id", f"is {self._chain_id}, but {where} serves chain {chain_id}"
            )
        if not isinstance(code, str) or len(code) <= 2:
            raise BadSetting("chain.token", f"{self._token} has no code on {where}")
        self._verified.add(index)

    async def call(self, method: str, *params: Json) -> Json:
        """Make one call and return its result; raises as `call_all` does."""
        return (await self.call_all([Call(method=method, params=params)]))[0]

    async def call_all(self, calls: Sequence[Call]) -> list[Json]:
        """Make calls in as few requests as allowed and return their results, in order.

        Raises `RangeRefused` for an `eth_getLogs` that is too much, else `NodeUnavailable`. After
        the latter the next endpoint is in use.
        """
        index = self._current
        with self._left_if_bad(index):
            await self._verify(index)
            return await self._in_batches(index, calls)

    async def _in_batches(self, index: int, calls: Sequence[Call]) -> list[Json]:
        limit = self._batch_limits[index]
        parts = [calls[at : at + limit] for at in range(0, len(calls), limit)]
        try:
            if len(parts) == 1:
                return await self._checked(index, parts[0])
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._checked(index, part)) for part in parts]
        except* BatchRefused as refused:
            if limit == 1:
                raise NodeUnavailable(str(refused.exceptions[0])) from refused
            self._batch_limits[index] = min(self._batch_limits[index], max(1, limit // 2))
        except* (NodeUnavailable, RangeRefused, InconsistentNode) as group_error:
            raise group_error.exceptions[0] from None
        else:
            return [result for task in tasks for result in task.result()]
        return await self._in_batches(index, calls)

    async def _checked(self, index: int, calls: Sequence[Call]) -> list[Json]:
        async with self._slots:
            answers = await self._post(index, calls)
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, CallError):
                if len(calls) > 1 and _LIMIT_TEXT.search(answer.message):
                    raise BatchRefused(answer.message)
                raise error_of(call, answer)
        return answers

    async def _post(self, index: int, calls: Sequence[Call]) -> list[Json]:
        """Send one request and return a result or a `CallError` for each call."""
        ids = [next(self._ids) for _ in calls]
        body = [
            {"jsonrpc": "2.0", "id": id_, "method": call.method, "params": call.params}
            for id_, call in zip(ids, calls, strict=True)
        ]
        endpoint, outcome = label_of(self._urls[index]), "no_answer"
        started = time.monotonic()
        try:
            answer = await self._exchange(self._urls[index], body if len(body) > 1 else body[0])
            outcome = "unreadable"
            results = _results_of(ids, calls, answer)
            outcome = "error" if any(isinstance(r, CallError) for r in results) else "ok"
            return results
        finally:
            self._metrics.rpc_seconds.labels(endpoint=endpoint, method=calls[0].method).observe(
                time.monotonic() - started
            )
            for call in calls:
                self._metrics.rpc_requests.labels(
                    endpoint=endpoint, method=call.method, outcome=outcome
                ).inc()

    async def _exchange(self, url: str, body: Json) -> Json:
        assert self._session is not None, "use `async with`"
        try:
            async with self._session.post(url, data=orjson.dumps(body)) as response:
                raw = await _bounded(response)
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            # The exception's text may hold the URL with its key; its type says enough.
            raise NodeUnavailable(f"{label_of(url)}: {type(exc).__name__}") from exc
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError as exc:
            raise NodeUnavailable(f"{label_of(url)}: status {status} and no JSON") from exc


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise RangeRefused(f"the answer is larger than {MAX_BODY_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _results_of(ids: Sequence[int], calls: Sequence[Call], answer: Json) -> list[Json]:
    """Return one result or `CallError` a call; nodes may answer a batch in any order."""
    if isinstance(answer, dict) and "error" in answer and len(ids) > 1:
        # A refused batch comes as one error object without an id.
        error = _error_in(answer["error"])
        if _LIMIT_TEXT.search(error.message):
            raise BatchRefused(error.message)
        raise error_of(Call(method="batch"), error)
    entries = answer if isinstance(answer, list) else [answer]
    by_id = {
        entry["id"]: entry
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("id"), int)
    }
    if len(by_id) < len(ids):
        _raise_if_batch_refused(by_id.values())
    results = []
    for id_, call in zip(ids, calls, strict=True):
        entry = by_id.get(id_)
        if entry is None and len(ids) == 1 and isinstance(answer, dict) and "error" in answer:
            entry = answer
        if entry is None or ("result" not in entry and "error" not in entry):
            raise NodeUnavailable(f"{call.method}: the answer is missing")
        failed = entry.get("error") is not None
        results.append(_error_in(entry["error"]) if failed else entry.get("result"))
    return results


def _raise_if_batch_refused(entries: Iterable[Mapping[str, Json]]) -> None:
    """Geth answers a batch that is too long with a list of one error, in its first call's name."""
    for entry in entries:
        error = _error_in(entry.get("error"))
        if error.code in _BATCH_CODES or _LIMIT_TEXT.search(error.message):
            raise BatchRefused(error.message)


def _error_in(error: Json) -> CallError:
    if not isinstance(error, dict):
        return CallError(code=0, message="the error is not an object")
    code, message = error.get("code"), error.get("message")
    return CallError(
        code=code if isinstance(code, int) else 0,
        message=message[:500] if isinstance(message, str) else "no message",
    )


class ChainReader:
    """The few questions that this project asks a chain, typed."""

    def __init__(self, rpc: HttpRpc) -> None:
        self._rpc = rpc

    async def header(self, block: int | str) -> Header | None:
        """Return the header of a number or a tag (`latest`, `safe`, `finalized`)."""
        return (await self.headers([block]))[0]

    async def headers(self, blocks: Sequence[int | str]) -> list[Header | None]:
        """Return several headers, in order, in one batch."""
        values = await self._rpc.call_all([header_call(block) for block in blocks])
        headers = [decode_header(value) for value in values]
        for block, header in zip(blocks, headers, strict=True):
            if isinstance(block, int) and header is not None and header.number != block:
                raise InconsistentNode(f"block {header.number} came instead of block {block}")
        return headers

    async def hashes(self, numbers: Sequence[int]) -> dict[int, BlockHash | None]:
        """Return the hashes that now stand at these heights; None where the node has no block."""
        headers = await self.headers(list(numbers))
        return {
            number: None if header is None else header.hash
            for number, header in zip(numbers, headers, strict=True)
        }


def header_call(block: int | str) -> Call:
    """Return the call for the header of a number or a tag."""
    return Call(method="eth_getBlockByNumber", params=(_block(block), False))


def _block(block: int | str) -> str:
    return hex(block) if isinstance(block, int) else block
