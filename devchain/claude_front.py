"""A recording front before the stand-in for Claude.

aimock lists a request only once it is answered, and drops most of its fields. Tests must count
calls that are in flight or whose caller was killed, so each is recorded here as it arrives.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from devchain.processes import LOOPBACK

_MAX_BODY_BYTES = 64 * 1024 * 1024
_PASSED_ON = ("Content-Type", "Retry-After")


@dataclass(kw_only=True)
class Recorded:
    """One request: `body` is the parsed JSON; `status` is None until answered, 0 if cut off."""

    at_s: float
    body: dict[str, Any]
    status: int | None = None


@dataclass(kw_only=True)
class Front:
    """Passes POST requests on to `upstream`; answers are buffered, never streamed."""

    upstream: str
    session: aiohttp.ClientSession
    base_url: str = ""
    records: list[Recorded] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Record a request, wait while the gate is closed, then let aimock answer it."""
        raw = await request.read()
        record = Recorded(at_s=time.time(), body=json.loads(raw))
        self.records.append(record)
        async with self.news:
            self.news.notify_all()
        await self.gate.wait()
        try:
            return await self._pass_on(request.path, raw, record)
        except aiohttp.ClientError:
            record.status = 0
            if request.transport is not None:
                request.transport.abort()
            return web.Response()

    async def _pass_on(self, path: str, raw: bytes, record: Recorded) -> web.Response:
        headers = {"Content-Type": "application/json"}
        url = self.upstream + path
        async with self.session.post(url, data=raw, headers=headers) as reply:
            body = await reply.read()
            record.status = reply.status
            kept = {name: reply.headers[name] for name in _PASSED_ON if name in reply.headers}
            kept["request-id"] = f"req_{len(self.records):06}"
            return web.Response(status=reply.status, body=body, headers=kept)


@asynccontextmanager
async def start_front(upstream: str, session: aiohttp.ClientSession) -> AsyncIterator[Front]:
    """Serve a front on a free loopback port until the block ends."""
    front = Front(upstream=upstream, session=session)
    front.gate.set()
    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    app.router.add_post("/{path:.*}", front.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, LOOPBACK, 0).start()
        front.base_url = f"http://{LOOPBACK}:{runner.addresses[0][1]}"
        yield front
    finally:
        front.gate.set()
        await runner.cleanup()
