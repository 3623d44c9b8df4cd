"""A web server on a free loopback port that can be cut off in the middle of anything."""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

LOOPBACK = "127.0.0.1"


@asynccontextmanager
async def serve(app: web.Application, *, port: int = 0) -> AsyncIterator[int]:
    """Serve an application until the block ends and yield its port; requests die with it."""
    runner = web.AppRunner(
        app, shutdown_timeout=0.1, handler_cancellation=True, access_log=None, max_line_size=65536
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, LOOPBACK, port).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def reset_connection(request: web.Request) -> None:
    """Cut the connection as a crashed peer does: the other side gets a reset, not an end."""
    transport = request.transport
    if transport is None:
        return
    raw = transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def unused_port() -> int:
    """Return a loopback port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
