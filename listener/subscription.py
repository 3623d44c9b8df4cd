"""The websocket subscription: a wake-up call, never a source of truth."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

import orjson
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.frames import CloseCode

from listener.decode import Json, hash32, quantity
from listener.hearing import HeadHearing, Hearing, LogHearing, MissedHeads, MissedLogs
from listener.reconnecting import Down, Rota
from listener.rpc import label_of
from listener.timers import MuteAlarm, Throttle
from oncepaid.domain.chain import BlockHash, BlockRef
from oncepaid.domain.errors import InconsistentNode
from oncepaid.domain.payments import ObservedPayment
from oncepaid.domain.retrying import RECONNECT_BACKOFF, Backoff
from oncepaid.metrics import Metrics

log = structlog.get_logger()

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024

# The codes with which our side ends a connection over what it was sent (RFC 6455, 7.4.1).
_OUR_COMPLAINTS: Final = (
    CloseCode.PROTOCOL_ERROR,
    CloseCode.INVALID_DATA,
    CloseCode.MESSAGE_TOO_BIG,
)

OnWake = Callable[[BlockRef | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A dead transport is noticed after ping, pong and close together, or twice `open_s`."""

    open_s: float = 7.0
    """For the connection, and again for the subscription."""
    ping_s: float = 5.0
    pong_s: float = 5.0
    close_s: float = 1.0
    missed_after_s: float = 5.0
    """How much later than the reconcile the subscription may tell of something."""
    heads_every_s: float = 1.0
    """New heads wake no more often: Base has five a second."""
    backoff: Backoff = RECONNECT_BACKOFF


TIMING: Final = Timing()


class Subscription:
    """Keeps one `eth_subscribe` open and calls `on_wake` for what it hears.

    `on_wake` gets the block that a log came from; None after a (re)connect and for a `removed` log,
    when anything may have been missed, and for new heads where a node serves no logs. It must not
    block.
    """

    def __init__(
        self,
        urls: Sequence[str],
        log_filter: Json,
        *,
        on_wake: OnWake,
        metrics: Metrics,
        timing: Timing = TIMING,
    ) -> None:
        self._urls = tuple(urls)
        self._filter = log_filter
        self._on_wake = on_wake
        self._metrics = metrics
        self._timing = timing
        self._heads = Throttle(lambda: on_wake(None), timing.heads_every_s)
        self._alarm: MuteAlarm | None = None
        self._unsupported: set[str] = set()

    async def run(self) -> None:
        """Stay subscribed until cancelled, on one URL after the other."""
        rota = Rota(len(self._urls), self._timing.backoff)
        loop = asyncio.get_running_loop()
        try:
            while True:
                url, started = self._urls[rota.place], loop.time()
                reason = await self._listen(url)
                self._metrics.subscription_up.set(0)
                self._metrics.subscription_reconnects.labels(reason=reason).inc()
                now = loop.time()
                delay_s = rota.ended(reason, lasted_s=now - started, now=now, uniform=random.random)
                self._tell_down(url, reason, delay_s)
                await asyncio.sleep(delay_s)
        finally:
            self._heads.cancel()

    async def probe(self, url: str) -> str | None:
        """Subscribe once and leave; returns what went wrong, or None."""
        try:
            async with self._connection(url) as socket:
                await self._subscribe(socket)
        except Exception as exc:
            return _reason_of(exc, url)
        return None

    def reconciled(self, head: BlockRef, payments: Sequence[ObservedPayment]) -> None:
        """Take in what a reconcile found and the head that it knew, to see what is not heard.

        To be called after every reconcile, with or without payments. It does not block.
        """
        if self._alarm is not None:
            self._alarm.reconciled(head, payments)

    def _tell_down(self, url: str, reason: Down, delay_s: float) -> None:
        if reason is not Down.UNSUPPORTED:
            log.warning(
                "subscription.down", endpoint=label_of(url), reason=reason, retry_in_s=delay_s
            )
        elif url not in self._unsupported:
            # Once: what works from here on is polling, and it works.
            self._unsupported.add(url)
            log.warning("subscription.unsupported", endpoint=label_of(url))

    def _connection(self, url: str) -> connect:
        return connect(
            url,
            open_timeout=self._timing.open_s,
            ping_interval=self._timing.ping_s,
            ping_timeout=self._timing.pong_s,
            close_timeout=self._timing.close_s,
            max_size=MAX_MESSAGE_BYTES,
            compression=None,
            proxy=None,
        )

    async def _listen(self, url: str) -> Down:
        """Subscribe and listen until the connection ends; returns why it did."""
        try:
            async with self._connection(url) as socket:
                hearing = await self._subscribe(socket)
                self._unsupported.discard(url)
                self._metrics.subscription_up.set(1)
                log.info("subscription.up", endpoint=label_of(url), told_of=_name_of(hearing))
                return await self._hear(socket, hearing, label_of(url))
        except Exception as exc:
            # This is the top of a loop that a stranger's server feeds.
            return _reason_of(exc, url)

    async def _subscribe(self, socket: ClientConnection) -> Hearing:
        """Subscribe to logs, or to heads where logs are refused; raises `_Unsupported` for both."""
        wait_s = self._timing.missed_after_s
        async with asyncio.timeout(self._timing.open_s):
            if await _is_accepted(socket, 1, "logs", self._filter):
                return LogHearing(missed_after_s=wait_s)
            if await _is_accepted(socket, 2, "newHeads"):
                return HeadHearing(missed_after_s=wait_s)
        raise _Unsupported

    async def _hear(self, socket: ClientConnection, hearing: Hearing, endpoint: str) -> Down:
        try:
            async with asyncio.timeout(None) as limit:
                self._alarm = MuteAlarm(
                    hearing, limit, lambda missed: self._tell_missed(missed, endpoint)
                )
                try:
                    self._on_wake(None)
                    async for message in socket:
                        self._on_message(message, hearing)
                finally:
                    self._alarm.cancel()
                    self._alarm = None
        except TimeoutError:
            return Down.MUTE
        return Down.CLOSED

    def _tell_missed(self, missed: MissedLogs | MissedHeads, endpoint: str) -> None:
        match missed:
            case MissedLogs(count=count, first_block=first_block):
                self._metrics.subscription_missed_logs.inc(count)
                log.warning(
                    "subscription.missed", endpoint=endpoint, logs=count, first_block=first_block
                )
            case MissedHeads(head=head, heard=heard):
                log.warning("subscription.behind", endpoint=endpoint, head=head, heard=heard)
            case _:
                assert_never(missed)

    def _on_message(self, message: str | bytes, hearing: Hearing) -> None:
        params = _parsed(message).get("params")
        found = params.get("result") if isinstance(params, dict) else None
        if not isinstance(found, dict):
            return
        if isinstance(hearing, HeadHearing):
            hearing.heard(quantity(found.get("number")))
            self._heads.ring()
            return
        block = BlockRef(
            number=quantity(found.get("blockNumber")),
            hash=BlockHash(hash32(found.get("blockHash"))),
        )
        log_index = quantity(found.get("logIndex"))
        if found.get("removed"):
            # It tells of a reorg: what counts now is the node's head, not that block.
            self._on_wake(None)
            return
        hearing.heard(block, log_index)
        self._on_wake(block)


class _Unsupported(Exception):
    """The node answers every `eth_subscribe` with an error."""


async def _is_accepted(socket: ClientConnection, call_id: int, *params: Json) -> bool:
    """Call `eth_subscribe`; False for an error object, `InconsistentNode` for anything else."""
    request = {"jsonrpc": "2.0", "id": call_id, "method": "eth_subscribe", "params": params}
    await socket.send(orjson.dumps(request).decode(), text=True)
    while True:
        answer = _parsed(await socket.recv())
        # Some servers name no call in an error.
        if answer.get("id", -1) in (call_id, None):
            break
    if isinstance(answer.get("result"), str):
        return True
    if isinstance(answer.get("error"), dict):
        return False
    raise InconsistentNode("eth_subscribe was answered with neither result nor error")


def _parsed(message: str | bytes) -> dict[str, Json]:
    try:
        value = orjson.loads(message)
    except orjson.JSONDecodeError as exc:
        raise InconsistentNode("a websocket message is not JSON") from exc
    if not isinstance(value, dict):
        raise InconsistentNode("a websocket message is not an object")
    return value


def _name_of(hearing: Hearing) -> str:
    return "logs" if isinstance(hearing, LogHearing) else "heads"


def _reason_of(exc: Exception, url: str) -> Down:
    match exc:
        case ConnectionClosed(sent=sent, rcvd_then_sent=replied) if (
            sent is not None and not replied and sent.code in _OUR_COMPLAINTS
        ):
            return Down.GARBAGE
        case ConnectionClosed(rcvd=rcvd):
            return Down.LOST if rcvd is None else Down.CLOSED
        case _Unsupported():
            return Down.UNSUPPORTED
        case InvalidHandshake() | InvalidURI():
            return Down.REFUSED
        case InconsistentNode():
            return Down.GARBAGE
        case OSError():
            return Down.UNREACHABLE
        case _:
            # A redirect to nonsense, say.
            log.warning("subscription.odd", endpoint=label_of(url), error=type(exc).__name__)
            return Down.GARBAGE
