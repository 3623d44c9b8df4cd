"""The operator's HTTP endpoints: `/metrics`, `/livez`, `/readyz`."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from oncepaid.domain.errors import BadSetting
from oncepaid.health import Health

Refresh = Callable[[], Awaitable[None]]


def build_app(health: Health, registry: CollectorRegistry, refresh: Refresh) -> web.Application:
    """Return the application. `refresh` is awaited before each scrape and must not raise.

    `/readyz` says what is in the way (`reasons`) and what is odd without being our trouble
    (`notes`).
    """

    async def metrics(_: web.Request) -> web.Response:
        await refresh()
        return web.Response(
            body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def livez(_: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def readyz(_: web.Request) -> web.Response:
        troubles, notes = dict(health.troubles), health.notes
        told = {"ready": not troubles, "reasons": troubles, **({"notes": notes} if notes else {})}
        return web.json_response(told, status=503 if troubles else 200)

    app = web.Application()
    app.add_routes(
        [web.get("/metrics", metrics), web.get("/livez", livez), web.get("/readyz", readyz)]
    )
    return app


@asynccontextmanager
async def serve(app: web.Application, listen: tuple[str, int]) -> AsyncIterator[int]:
    """Serve `app` and yield the port. Raises `BadSetting` where the address cannot be had."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    host, port = listen
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as exc:
            raise BadSetting("http.listen", f"cannot listen on {host}:{port}: {exc}") from exc
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
