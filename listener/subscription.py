"""The websocket subscription: a wake-up call, never a source of truth."""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final

import orjson
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from listener.decode import Json, hash32, quantity
from listener.rpc import label_of
from oncepaid.domain.chain import BlockHash, BlockRef
from oncepaid.domain.errors import InconsistentNode, NodeUnavailable
from oncepaid.domain.retrying import RECONNECT_BACKOFF
from oncepaid.metrics import Metrics

log = structlog.get_logger()

OPEN_TIMEOUT_S: Final = 10.0
PING_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 1.0
MAX_MESSAGE_BYTES: Final = 1024 * 1024
STEADY_AFTER_S: Final = 30.0
"""A connection that lasted this long starts the back-off afresh when it drops."""

OnWake = Callable[[BlockRef | None], None]


class Subscription:
    """Keeps one `eth_subscribe logs` open and calls `on_wake` for what it hears.

    `on_wake` gets the block that a log came from, or None after a (re)connect, when anything may
    have been missed. It must not block.
    """

    def __init__(
        self, urls: Sequence[str], log_filter: Json, *, on_wake: OnWake, metrics: Metrics
    ) -> None:
        self._urls = tuple(urls)
        self._filter = log_filter
        self._on_wake = on_wake
        self._metrics = metrics

    async def run(self) -> None:
        """Stay subscribed until cancelled, on one URL after the other."""
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            url = self._urls[failures % len(self._urls)]
            started = loop.time()
            reason = await self._listen(url)
            self._metrics.subscription_up.set(0)
            self._metrics.subscription_reconnects.labels(reason=reason).inc()
            failures = 1 if loop.time() - started > STEADY_AFTER_S else failures + 1
            delay_s = RECONNECT_BACKOFF.delay_s(failures, random.random)
            log.warning(
                "subscription.down", endpoint=label_of(url), reason=reason, retry_in_s=delay_s
            )
            await asyncio.sleep(delay_s)

    async def probe(self, url: str) -> str | None:
        """Subscribe once and leave; returns what went wrong, or None."""
        return await self._connected(url, listen=False)

    async def _listen(self, url: str) -> str:
        """Subscribe and listen until the connection ends; returns why it did."""
        return await self._connected(url, listen=True) or "closed"

    async def _connected(self, url: str, *, listen: bool) -> str | None:
        try:
            async with connect(
                url,
                open_timeout=OPEN_TIMEOUT_S,
                ping_interval=PING_S,
                ping_timeout=PING_S,
                close_timeout=CLOSE_TIMEOUT_S,
                max_size=MAX_MESSAGE_BYTES,
                compression=None,
                proxy=None,
            ) as socket:
                await self._subscribe(socket)
                if not listen:
                    return None
                self._metrics.subscription_up.set(1)
                log.info("subscription.up", endpoint=label_of(url))
                self._on_wake(None)
                async for message in socket:
                    self._on_message(message)
                return None
        except ConnectionClosed as exc:
            return "closed" if exc.rcvd else "lost"
        except (InvalidHandshake, InvalidURI, NodeUnavailable, InconsistentNode):
            return "refused"
        except (OSError, TimeoutError):
            return "unreachable"
        except Exception as exc:
            # This is the top of a loop that a stranger's server feeds: a redirect to nonsense, say.
            log.warning("subscription.odd", endpoint=label_of(url), error=type(exc).__name__)
            return "refused"

    async def _subscribe(self, socket: ClientConnection) -> None:
        request = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "eth_subscribe",
            "params": ["logs", self._filter],
        }
        await socket.send(orjson.dumps(request).decode(), text=True)
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            while True:
                answer = _parsed(await socket.recv())
                if answer.get("id") == 1:
                    break
        if not isinstance(answer.get("result"), str):
            raise NodeUnavailable("the node refused the subscription")

    def _on_message(self, message: str | bytes) -> None:
        value = _parsed(message)
        params = value.get("params")
        found = params.get("result") if isinstance(params, dict) else None
        if not isinstance(found, dict):
            return
        block = BlockRef(
            number=quantity(found.get("blockNumber")),
            hash=BlockHash(hash32(found.get("blockHash"))),
        )
        # A removed log tells of a reorg: what counts now is the node's head, not that block.
        self._on_wake(None if found.get("removed") else block)


def _parsed(message: str | bytes) -> dict[str, Json]:
    try:
        value = orjson.loads(message)
    except orjson.JSONDecodeError as exc:
        raise InconsistentNode("a websocket message is not JSON") from exc
    if not isinstance(value, dict):
        raise InconsistentNode("a websocket message is not an object")
    return value
