"""A stand-in for Anthropic's Messages API (aimock), scripted by a test while it runs.

A request is matched by the words "Service: NAME" in its system prompt. Limits of aimock 1.43:
1. It never looks at output_config, thinking or the API key: a bad schema is not refused.
2. An unknown service gets HTTP 404 "No fixture matched", not Anthropic's error body.
3. A delay is at most 30 s (`hold` has no limit); Retry-After comes with a 429 only.
4. It records requests when it answers them, and in part; `claude_front` records them instead.
5. What is queued is used up on arrival, even if the caller goes away before the answer.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import aiohttp

from devchain.claude_front import Front, Recorded, start_front
from devchain.processes import LOOPBACK, node_file, start_child

_MARK = "Service: "
_FIXTURES = Path(__file__).parent / "claude-fixtures"
_LISTENING = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")
_ERROR_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


class Fault(StrEnum):
    """What can go wrong below the API's own errors."""

    DISCONNECT = "disconnectRate"
    """The connection is cut before any answer."""
    MALFORMED = "malformedRate"
    """HTTP 200 with a body that is not JSON."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it arrived, `body` being its whole JSON and `system` its system prompt.

    `status` is None while there is no answer, and 0 if the connection was cut instead.
    """

    at_s: float
    status: int | None
    system: str
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Claude:
    """The running stand-in.

    What is queued with `answer`, `fail`, `delay` or `break_off` is served before the standing
    answers, first queued first, each `times` times; None is until `reset`, and hides whatever is
    queued after it. `service` None matches every service.
    """

    _front: Front = field(repr=False)
    _queued: list[int] = field(default_factory=lambda: [0], repr=False)

    @property
    def base_url(self) -> str:
        """The address to give to the SDK."""
        return self._front.base_url

    async def answer(
        self,
        content: object,
        *,
        service: str | None,
        stop_reason: str = "end_turn",
        times: int | None = 1,
    ) -> None:
        """Answer with `content`: text, or an object sent as JSON."""
        response = _response(content) | {"finishReason": stop_reason}
        await self._queue(service, response, {}, times)

    async def fail(
        self,
        status: int,
        *,
        service: str | None,
        times: int | None = 1,
        retry_after_s: int = 1,
    ) -> None:
        """Answer with an API error of this HTTP status; `retry_after_s` is sent with a 429 only."""
        kind = _ERROR_KINDS.get(status, "api_error")
        error = {"message": f"scripted {kind}", "type": kind}
        response = {"error": error, "status": status, "retryAfter": retry_after_s}
        await self._queue(service, response, {}, times)

    async def delay(self, delay_s: float, *, service: str, times: int | None = 1) -> None:
        """Give the standing answer, `delay_s` (at most 30) later."""
        response = _standing(service)["response"]
        await self._queue(service, response, {"latencyMs": round(delay_s * 1000)}, times)

    async def break_off(self, fault: Fault, *, service: str | None, times: int | None = 1) -> None:
        """Fail below the API: see `Fault`."""
        await self._queue(service, _response("unused"), {fault.value: 1}, times)

    async def delay_all(self, delay_s: float) -> None:
        """Delay every answer from now on, at most 30 s; 0 ends it."""
        await self._post("chaos", {"latencyMs": round(delay_s * 1000)})

    def hold(self) -> None:
        """Record requests but answer none of them until `release`."""
        self._front.gate.clear()

    def release(self) -> None:
        """Answer what was held, and go on answering."""
        self._front.gate.set()

    async def requests(self, service: str | None = None) -> list[Request]:
        """Return all requests since the start or the last `reset`, oldest first."""
        found = [_request(record) for record in self._front.records]
        return [one for one in found if service is None or _marker(service) in one.system]

    async def wait_for_requests(
        self, count: int, service: str | None = None, timeout_s: float = 15.0
    ) -> list[Request]:
        """Return the requests once `count` of them have arrived; raises TimeoutError."""
        async with asyncio.timeout(timeout_s), self._front.news:
            while len(found := await self.requests(service)) < count:
                await self._front.news.wait()
        return found

    async def reset(self) -> None:
        """Forget requests, queued answers, delays and `hold`; only with nothing in flight."""
        self._front.records.clear()
        self._front.gate.set()
        await self._post("reset", {})
        await self._post("chaos", {})
        await self._post("fixtures", {"fixtures": _all_standing()})

    async def _queue(
        self,
        service: str | None,
        response: dict[str, Any],
        chaos: dict[str, float],
        times: int | None,
    ) -> None:
        entries = []
        for _ in range(1 if times is None else times):
            self._queued[0] += 1
            match: dict[str, object] = {"systemMessage": _needles(service, self._queued[0])}
            if times is not None:
                match["sequenceIndex"] = 0
            entries.append({"match": match, "response": response, "chaos": chaos})
        await self._post("fixtures", {"fixtures": entries})

    async def _post(self, path: str, body: object) -> None:
        url = f"{self._front.upstream}/__aimock/{path}"
        async with self._front.session.post(url, json=body) as reply:
            if reply.status != 200:
                raise ValueError(f"aimock refused {path}: {await reply.text()}")


@asynccontextmanager
async def start_claude() -> AsyncIterator[Claude]:
    """Run the stand-in on a free loopback port until the block ends.

    Raises DevToolError if it is not installed or does not start.
    """
    program = str(node_file("@copilotkit/aimock/dist/cli.js"))
    options = ["--host", LOOPBACK, "--port", "0", "--fixtures", str(_FIXTURES)]
    argv = ["node", program, *options, "--log-level", "info"]
    async with AsyncExitStack() as stack:
        child = await stack.enter_async_context(start_child(argv, ready=_LISTENING))
        # A cap on connections would hide how many requests the daemon has in flight.
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        upstream = f"http://{LOOPBACK}:{child.ready[1]}"
        yield Claude(_front=await stack.enter_async_context(start_front(upstream, session)))


def _marker(service: str | None) -> str:
    return f"{_MARK}{service or ''}"


def _needles(service: str | None, number: int) -> list[str]:
    """Return what the system prompt must contain, spelled differently for each number.

    aimock counts uses per set of criteria, so that each queued answer needs a set of its own:
    the number's octal digits become needles that every marked prompt contains anyway.
    """
    return [_marker(service), *(_MARK[: 1 + int(digit)] for digit in f"{number:07o}")]


def _response(content: object) -> dict[str, Any]:
    text = content if isinstance(content, str) else json.dumps(content)
    return {"content": text, "usage": {"input_tokens": 100, "output_tokens": 100}}


def _all_standing() -> list[dict[str, Any]]:
    files = sorted(_FIXTURES.glob("*.json"))
    return [entry for path in files for entry in json.loads(path.read_text())["fixtures"]]


def _standing(service: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_FIXTURES / f"{service}.json").read_text())["fixtures"][0]
    return found


def _request(record: Recorded) -> Request:
    system = record.body.get("system", "")
    if not isinstance(system, str):
        system = "\n".join(block.get("text", "") for block in system)
    return Request(at_s=record.at_s, status=record.status, system=system, body=record.body)
