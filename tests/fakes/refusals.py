"""How nodes and providers say no: their own codes, words and HTTP statuses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """How a provider says no: its code, its words and its HTTP status."""

    code: int
    text: str
    status: int = 200


@dataclass(frozen=True, kw_only=True)
class Page:
    """An HTTP answer that is none of JSON-RPC's."""

    status: int
    body: str
    content_type: str = "text/html"
    headers: Mapping[str, str] = field(default_factory=dict)


class Spoil(StrEnum):
    """What else can become of an HTTP answer."""

    TRUNCATED = "truncated"
    """A proper status, and JSON that ends in the middle."""
    CUT = "cut"
    """The connection is reset while the body is under way."""
    SILENCE = "silence"
    """No answer until the caller gives up."""


class SocketEnd(StrEnum):
    """What becomes of the next websocket connection."""

    REFUSED = "refused"
    """HTTP 403 instead of the handshake."""
    NO_SUBSCRIPTION = "no_subscription"
    """Every `eth_subscribe` is answered with an error."""
    NO_LOGS = "no_logs"
    """`eth_subscribe` for logs is answered with an error, for `newHeads` it is served."""
    GARBAGE = "garbage"
    """The subscription is answered with bytes that are no JSON."""
    A_LIST = "a_list"
    """The subscription is answered with JSON that is no object."""
    CLOSED = "closed"
    """The subscription is answered with the end of the connection, code 1013."""
    SILENT = "silent"
    """The subscription is not answered."""
    DROPPED = "dropped"
    """The subscription is answered with a reset of the connection."""


RANGE_REFUSALS: Final = {
    "proxyd": Refusal(code=-32020, text="backend response too large", status=500),
    "proxyd in other words": Refusal(code=-32020, text="no", status=500),
    "reth results": Refusal(
        code=-32602,
        text="query exceeds max results 20000, retry with the range 25766988-25775072",
    ),
    "reth blocks": Refusal(code=-32602, text="query exceeds max block range 100000"),
    "Alchemy blocks": Refusal(
        code=-32600,
        text="You can make eth_getLogs requests with up to a 10 block range. Based on your"
        " parameters, this block range should work: [0x1, 0xa]",
        status=400,
    ),
    "Alchemy size": Refusal(
        code=-32602,
        text="Log response size exceeded. You can make eth_getLogs requests with up to a 2K block"
        " range and no limit on the response size, or you can request any block range with a cap"
        " of 10K logs in the response.",
    ),
    "QuickNode": Refusal(code=-32614, text="eth_getLogs is limited to a 10,000 range", status=413),
    "QuickNode trial": Refusal(code=-32614, text="eth_getLogs is limited to a 5 range", status=413),
    "Infura results": Refusal(
        code=-32005,
        text="query returned more than 10000 results. Try with this block range [0x1, 0xa].",
    ),
    "Infura blocks": Refusal(code=-32602, text="range 1000000 exceeds limit of 10000"),
}
"""Answers to an `eth_getLogs` over too many blocks or logs."""

BUSY: Final = {
    "proxyd rate": Refusal(code=-32016, text="over rate limit", status=429),
    "proxyd height": Refusal(code=-32019, text="block is out of range", status=400),
    "proxyd capacity": Refusal(code=-32012, text="backend is over capacity", status=429),
    "proxyd backends": Refusal(
        code=-32011, text="no backend is currently healthy to serve traffic", status=503
    ),
    "Alchemy rate": Refusal(
        code=429,
        text="Your app has exceeded its compute units per second capacity. If you have retries"
        " enabled, you can safely ignore this message.",
        status=429,
    ),
    "QuickNode rate": Refusal(code=-32012, text="credits limited to 6000/sec", status=429),
}
"""Answers that a narrower range would not change."""

BATCH_REFUSALS: Final = {
    "proxyd": Refusal(code=-32014, text="too many RPC calls in batch request", status=400),
    "by words": Refusal(code=-32600, text="batch size too large", status=200),
}
"""Answers to a batch of too many calls: one error object for all of them."""
