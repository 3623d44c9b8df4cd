"""One JSON-RPC request over HTTP: bounded, counted, and its errors sorted by what helps."""

import itertools
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

import aiohttp
import orjson

from listener.decode import Json
from oncepaid.domain.errors import (
    BatchRefused,
    CallFailed,
    NodeUnavailable,
    RangeRefused,
    RateLimited,
)
from oncepaid.metrics import Metrics

REQUEST_TIMEOUT_S: Final = 15.0
CONNECT_TIMEOUT_S: Final = 5.0
MAX_BODY_BYTES: Final = 64 * 1024 * 1024

# How nodes say "too many blocks or logs": proxyd, reth, Alchemy, QuickNode, Infura and geth, by
# code where it is specific and else by text (reference of providers in docs/nodes.md).
_RANGE_CODES: Final = frozenset({-32020, -32614})
_RANGE_TEXT: Final = re.compile(
    r"max results|block range|range limit|limited to a|response (size|too large)|too large"
    r"|size exceeded|more than \d+ results|exceeds? (the )?(max|limit)|query timeout"
    r"|too many (logs|results|blocks)|ranges? over|at most \d+ blocks",
    re.IGNORECASE,
)
# Of one answer, whatever was asked for: proxyd by code, and by text.
_SIZE_CODES: Final = frozenset({-32020})
_SIZE_TEXT: Final = re.compile(
    r"too (large|big)|size exceeded|max(imum)? .{0,20}size", re.IGNORECASE
)
# And "too many requests": proxyd's rate limit and capacity, QuickNode's two, Alchemy and Infura.
_RATE_CODES: Final = frozenset({429, -32016, -32012, -32007})
_RATE_TEXT: Final = re.compile(
    r"rate.?limit|too many requests|request limit|compute units|credits limited|usage limit|throttl"
    r"|requests? (rate|per second)|quota",
    re.IGNORECASE,
)
_BATCH_CODES: Final = frozenset({-32014})
LIMIT_TEXT: Final = re.compile(r"batch|too large|size exceeded", re.IGNORECASE)
"""In an answer to a batch: fewer calls may help."""
_SECONDS: Final = re.compile(r"\d{1,9}(\.\d+)?\Z")
_TOO_MANY_REQUESTS: Final = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One JSON-RPC call. An error for an `optional` one counts as `null`.

    `is_sizable`: anyone can make its answer too large for the node, which is no failure of the
    node. The caller of such a one deals with `RangeRefused`.
    """

    method: str
    params: tuple[Json, ...] = ()
    optional: bool = False
    is_sizable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CallError:
    """A call that the node answered with an error object, in an HTTP answer of this status."""

    code: int
    message: str
    status: int = 200
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    status: int
    retry_after_s: float | None
    value: Json


def label_of(url: str) -> str:
    """Return an endpoint's label: host and port, never the path or query, which hold keys."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def error_of(call: Call, error: CallError) -> Exception:
    """Return what a node's error means for the caller."""
    text = f"{call.method}: {error.message[:200]} ({error.code})"
    if error.code in _BATCH_CODES:
        return BatchRefused(text)
    if error.code in _RATE_CODES or _RATE_TEXT.search(error.message):
        return RateLimited(text, error.retry_after_s)
    if _is_too_much(call, error):
        return RangeRefused(text)
    if error.status == _TOO_MANY_REQUESTS:
        return RateLimited(text, error.retry_after_s)
    return CallFailed(text)


def _is_too_much(call: Call, error: CallError) -> bool:
    if call.method == "eth_getLogs":
        return error.code in _RANGE_CODES or bool(_RANGE_TEXT.search(error.message))
    return call.is_sizable and (error.code in _SIZE_CODES or bool(_SIZE_TEXT.search(error.message)))


class Exchange:
    """Posts calls to nodes over kept connections and counts them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._ids = itertools.count(1)
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

    async def post(self, url: str, calls: Sequence[Call]) -> list[Json]:
        """Send one request and return a result or a `CallError` for each call."""
        ids = [next(self._ids) for _ in calls]
        body = [
            {"jsonrpc": "2.0", "id": id_, "method": call.method, "params": call.params}
            for id_, call in zip(ids, calls, strict=True)
        ]
        endpoint, outcome = label_of(url), "no_answer"
        started = time.monotonic()
        try:
            reply = await self._send(url, body if len(body) > 1 else body[0])
            outcome = "unreadable"
            results = _results_of(ids, calls, reply)
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

    async def _send(self, url: str, body: Json) -> _Reply:
        assert self._session is not None, "use `async with`"
        try:
            async with self._session.post(url, data=orjson.dumps(body)) as response:
                raw = await _bounded(response)
                status, retry_after_s = response.status, _pause_in(response.headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            # The exception's text may hold the URL with its key; its type says enough.
            raise NodeUnavailable(f"{label_of(url)} {_why(exc)}") from exc
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError as exc:
            text = f"{label_of(url)}: status {status} and no JSON"
            if status == _TOO_MANY_REQUESTS:
                raise RateLimited(text, retry_after_s) from exc
            raise NodeUnavailable(text) from exc
        return _Reply(status=status, retry_after_s=retry_after_s, value=value)


def _pause_in(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a `retry-after`; a date says nothing where two clocks may differ."""
    value = headers.get("Retry-After", "").strip()
    return float(value) if _SECONDS.match(value) else None


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise RangeRefused(f"the answer is larger than {MAX_BODY_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _results_of(ids: Sequence[int], calls: Sequence[Call], reply: _Reply) -> list[Json]:
    """Return one result or `CallError` a call; nodes may answer a batch in any order."""
    answer = reply.value
    if isinstance(answer, dict) and "error" in answer and len(ids) > 1:
        # A refused batch comes as one error object without an id.
        error = _error_in(answer["error"], reply)
        if LIMIT_TEXT.search(error.message):
            raise BatchRefused(error.message)
        raise error_of(Call(method="batch"), error)
    by_id = _by_id(answer)
    if len(by_id) < len(ids):
        _raise_if_batch_refused(by_id.values(), reply)
    results = []
    for id_, call in zip(ids, calls, strict=True):
        entry = by_id.get(id_)
        if entry is None and len(ids) == 1 and isinstance(answer, dict) and "error" in answer:
            entry = answer
        if entry is None or ("result" not in entry and "error" not in entry):
            text = f"{call.method}: the answer is missing"
            if reply.status == _TOO_MANY_REQUESTS:
                raise RateLimited(text, reply.retry_after_s)
            raise NodeUnavailable(text)
        failed = entry.get("error") is not None
        results.append(_error_in(entry["error"], reply) if failed else entry.get("result"))
    return results


def _by_id(answer: Json) -> dict[int, Mapping[str, Json]]:
    entries = answer if isinstance(answer, list) else [answer]
    return {
        entry["id"]: entry
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("id"), int)
    }


def _raise_if_batch_refused(entries: Iterable[Mapping[str, Json]], reply: _Reply) -> None:
    """Geth answers a batch that is too long with a list of one error, in its first call's name."""
    for entry in entries:
        error = _error_in(entry.get("error"), reply)
        if error.code in _BATCH_CODES or LIMIT_TEXT.search(error.message):
            raise BatchRefused(error.message)


def _error_in(error: Json, reply: _Reply) -> CallError:
    if not isinstance(error, dict):
        error = {"message": "the error is not an object"}
    code, message = error.get("code"), error.get("message")
    return CallError(
        code=code if isinstance(code, int) else 0,
        message=message[:500] if isinstance(message, str) else "no message",
        status=reply.status,
        retry_after_s=reply.retry_after_s,
    )


def _why(exc: Exception) -> str:
    match exc:
        case TimeoutError():
            return "did not answer in time"
        case aiohttp.ClientConnectorError():
            return "cannot be reached"
        case _:
            return f"broke off ({type(exc).__name__})"
