"""A scriptable stand-in for the Messages API, for use with the real `anthropic` SDK.

Answers are queued with `script`; each request takes the next one, and the standing answer when the
queue is empty. `hold` lets requests arrive and answers none of them.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, assert_never

from aiohttp import web

from tests.fakes.loopback import LOOPBACK, reset_connection, serve

MODEL: Final = "claude-test-1"
REQUEST_ID: Final = "req_011CTest"
INPUT_TOKENS: Final = 120
OUTPUT_TOKENS: Final = 40
DRIP_S: Final = 0.02

# https://platform.claude.com/docs/en/api/errors
ERROR_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One HTTP answer."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


class Cut(StrEnum):
    """Where the connection is reset."""

    BEFORE_REQUEST = "before_request"
    AFTER_REQUEST = "after_request"
    INSIDE_ANSWER = "inside_answer"


@dataclass(frozen=True, kw_only=True)
class Hang:
    """No byte of an answer until `release`, then this one."""

    then: Reply


@dataclass(frozen=True, kw_only=True)
class Drip:
    """An answer that is always about to come: a byte of white space every `DRIP_S`, for ever."""


Answer = Reply | Cut | Hang | Drip


def text_block(text: object) -> dict[str, Any]:
    """Return a text block; anything but a string becomes its JSON."""
    return {"type": "text", "text": text if isinstance(text, str) else json.dumps(text)}


THINKING: Final = {"type": "thinking", "thinking": '{"not": "the answer"}', "signature": "c2ln"}


def message(*blocks: object, stop_reason: object = "end_turn", **changes: Any) -> Reply:
    """Return a normal answer; what is no block becomes a text block. `changes` replace fields."""
    content = [b if isinstance(b, dict) and "type" in b else text_block(b) for b in blocks]
    body = {
        "id": "msg_01Test",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS},
        **changes,
    }
    return raw(json.dumps({name: value for name, value in body.items() if value is not ...}))


def refusal(explanation: str | None) -> Reply:
    """Return an answer that a safety classifier cut off."""
    details = {"type": "refusal", "category": "cyber", "explanation": explanation}
    return message(stop_reason="refusal", stop_details=details)


def error(status: int, *, retry_after: str | None = None) -> Reply:
    """Return an API error as Anthropic words it."""
    kind = ERROR_TYPES[status]
    body = {"type": "error", "error": {"type": kind, "message": f"scripted {kind}"}}
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return Reply(status=status, body=json.dumps(body).encode(), headers=headers)


def raw(body: str, *, content_type: str = "application/json", status: int = 200) -> Reply:
    """Return any body at all."""
    return Reply(status=status, body=body.encode(), content_type=content_type)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One request as it arrived."""

    body: Mapping[str, Any]
    headers: Mapping[str, str]

    @property
    def prompt(self) -> str:
        """The text of the only message."""
        (only,) = self.body["messages"]
        return str(only["content"])


class ClaudeServer:
    """The running stand-in."""

    def __init__(self) -> None:
        self.requests: list[Recorded] = []
        self.models: dict[str, Reply] = {}
        self.in_flight = 0
        self.most_in_flight = 0
        self.abandoned = 0
        """Requests whose caller went away before the answer."""
        self.base_url = ""
        self._queue: deque[Answer] = deque()
        self._standing: Answer = message({"ok": True})
        self._gate = asyncio.Event()
        self._gate.set()
        self._released = asyncio.Event()
        self._news = asyncio.Condition()

    def script(self, *answers: Answer) -> None:
        """Queue answers, each for one request."""
        self._queue.extend(answers)

    def always(self, answer: Answer) -> None:
        """Set the answer of every request that finds the queue empty."""
        self._standing = answer

    def hold(self) -> None:
        """Let requests arrive but answer none until `release`."""
        self._gate.clear()

    def release(self) -> None:
        """Answer what is held or hangs, and go on answering."""
        self._gate.set()
        self._released.set()

    async def wait_for(self, *, arrived: int = 0, abandoned: int = 0) -> None:
        """Return once so many requests have arrived and been given up by their callers."""
        async with self._news:
            await self._news.wait_for(
                lambda: len(self.requests) >= arrived and self.abandoned >= abandoned
            )

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _on_messages(self, request: web.Request) -> web.StreamResponse:
        answer = self._queue.popleft() if self._queue else self._standing
        if answer is Cut.BEFORE_REQUEST:
            reset_connection(request)
            return web.Response()
        body = await request.json()
        self.requests.append(Recorded(body=body, headers=dict(request.headers)))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await self._tell()
        try:
            await self._gate.wait()
            return await self._answered(request, answer)
        except (asyncio.CancelledError, ConnectionError):
            self.abandoned += 1
            raise
        finally:
            self.in_flight -= 1
            await self._tell()

    async def _answered(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        match answer:
            case Reply():
                return _response(answer)
            case Hang(then=reply):
                await self._released.wait()
                return _response(reply)
            case Drip():
                return await _drip(request)
            case Cut.INSIDE_ANSWER:
                part = web.StreamResponse(headers={"Content-Length": "1000"})
                await part.prepare(request)
                await part.write(b'{"id": ')
                reset_connection(request)
                return part
            case Cut():
                reset_connection(request)
                return web.Response()
            case _:
                assert_never(answer)

    async def _on_model(self, request: web.Request) -> web.StreamResponse:
        return _response(self.models.get(request.match_info["model"], error(404)))

    def app(self) -> web.Application:
        """Return the web application."""
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_post("/v1/messages", self._on_messages)
        app.router.add_get("/v1/models/{model}", self._on_model)
        return app


async def _drip(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:  # the slowness is the fault
        await response.write(b" ")
        await asyncio.sleep(DRIP_S)


def _response(reply: Reply) -> web.Response:
    headers = {"request-id": REQUEST_ID, "content-type": reply.content_type, **reply.headers}
    return web.Response(status=reply.status, body=reply.body, headers=headers)


@asynccontextmanager
async def start_claude_server() -> AsyncIterator[ClaudeServer]:
    """Run the stand-in on a free loopback port until the block ends."""
    server = ClaudeServer()
    async with serve(server.app()) as port:
        server.base_url = f"http://{LOOPBACK}:{port}"
        yield server


def model_info(model: str, *, lifecycle: str) -> Reply:
    """Return what the Models API says of a model."""
    body = {"id": model, "type": "model", "display_name": model, "lifecycle": lifecycle}
    return raw(json.dumps({**body, "created_at": "2026-01-01T00:00:00Z"}))


def prompts_of(requests: Sequence[Recorded]) -> list[str]:
    """Return what was asked, in the order of arrival."""
    return [request.prompt for request in requests]
