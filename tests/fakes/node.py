"""A scriptable JSON-RPC node over HTTP and websocket, for a made-up chain.

What it answers is true by default. `Refusal` limits make it refuse like a provider; `twist` changes
single results; `next_http` spoils whole HTTP answers; the websocket's life is in `socket_script`.
"""

import asyncio
import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import WSMsgType, web

from tests.fakes.blocks import CHAIN_ID, TOKEN, Block, Chain, fits
from tests.fakes.loopback import LOOPBACK, reset_connection, serve
from tests.fakes.refusals import Page, Refusal, SocketEnd, Spoil

Json = Any
Twist = Callable[[Sequence[Json], Json], Json]
"""Gets a call's parameters and its true result, and returns what is answered instead."""

SUBSCRIPTION: Final = "0x9cef478923ff08bf67fde6c64013158d"


class NodeError(Exception):
    """A call that is answered with an error object."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


class FakeNode:
    """The running node. `calls` counts calls by method, `posts` HTTP requests."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.chain_id = CHAIN_ID
        self.code = "0x6080"
        self.genesis: Json | Refusal = None
        """What block 0 is, where the chain begins later; it is never twisted."""
        self.url = ""
        self.ws_url = ""
        self.max_blocks: tuple[int, Refusal] | None = None
        self.max_logs: tuple[int, Refusal] | None = None
        self.max_batch: tuple[int, Refusal] | None = None
        self.batch_refusal_is_list = False
        """As geth answers a refused batch: a list of one error, in the name of its first call."""
        self.safe_lag, self.finalized_lag, self.head_lag = 5, 10, 0
        self.calls: Counter[str] = Counter()
        self.posts = 0
        self.largest_batch = 0
        self.ranges: list[tuple[int, int]] = []
        """The ranges of the `eth_getLogs` that were served."""
        self.refused = 0
        """How many `eth_getLogs` were refused."""
        self.socket_script: deque[SocketEnd | None] = deque()
        """What becomes of the next websocket connections; None lets one live."""
        self.socket_attempts = 0
        self.pings = 0
        """How many pings of websocket clients were answered."""
        self.filters: list[Json] = []
        """Whose logs were subscribed to, oldest first."""
        self.always_http: Page | Spoil | None = None
        """What becomes of the HTTP answers that `next_http` says nothing of."""
        self._spoils: deque[Page | Spoil | None] = deque()
        self._twists: list[tuple[str, Twist, list[int | None]]] = []
        self._sockets: dict[web.WebSocketResponse, web.Request] = {}
        self._to_heads: set[web.WebSocketResponse] = set()
        self._news = asyncio.Condition()

    def next_http(self, *spoils: Page | Spoil | None) -> None:
        """Spoil the next HTTP answers, one each; None leaves one as it is."""
        self._spoils.extend(spoils)

    def twist(self, method: str, change: Twist, *, times: int | None = None) -> None:
        """Change the results of a method, the next `times` times; None is for ever."""
        self._twists.append((method, change, [times]))

    def straighten(self) -> None:
        """Take back all limits, twists and spoiled answers."""
        self.max_blocks = self.max_logs = self.max_batch = None
        self._twists.clear()
        self._spoils.clear()
        self.always_http = None
        self.head_lag = 0

    async def subscribed(self, count: int) -> None:
        """Return once there were so many subscriptions."""
        async with self._news:
            await self._news.wait_for(lambda: len(self.filters) >= count)

    async def connected(self, count: int) -> None:
        """Return once so many websocket connections were tried."""
        async with self._news:
            await self._news.wait_for(lambda: self.socket_attempts >= count)

    async def pinged(self, count: int) -> None:
        """Return once so many pings were answered."""
        async with self._news:
            await self._news.wait_for(lambda: self.pings >= count)

    async def announce(self, block: Block, *, removed: bool = False) -> None:
        """Push a block's logs to the open subscriptions whose filter they pass."""
        for log in block.logs:
            for socket in self._sockets.keys() - self._to_heads:
                if fits(log, self.filters[-1]):
                    await socket.send_str(_push({**log, "removed": removed}))

    async def announce_head(self, block: Block) -> None:
        """Push a block's header to the open subscriptions to `newHeads`."""
        for socket in self._sockets.keys() & self._to_heads:
            await socket.send_str(_push(block.header))

    async def say(self, text: str) -> None:
        """Send any text to the open subscriptions."""
        for socket in self._sockets:
            await socket.send_str(text)

    async def close_sockets(self, code: int) -> None:
        """Close all websocket connections with this code."""
        for socket in list(self._sockets):
            await socket.close(code=code)

    def drop_sockets(self) -> None:
        """Reset all websocket connections."""
        for request in self._sockets.values():
            reset_connection(request)
        self._sockets.clear()

    def freeze_sockets(self) -> None:
        """Leave all websocket connections open and read nothing from them any more."""
        for request in self._sockets.values():
            transport = request.transport
            assert isinstance(transport, asyncio.ReadTransport)
            transport.pause_reading()

    def app(self) -> web.Application:
        """Return the web application."""
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_post("/", self._on_post)
        app.router.add_get("/", self._on_socket)
        return app

    async def _on_post(self, request: web.Request) -> web.StreamResponse:
        self.posts += 1
        body = await request.json()
        spoil = self._spoils.popleft() if self._spoils else self.always_http
        if isinstance(spoil, Page):
            return web.Response(
                status=spoil.status,
                text=spoil.body,
                content_type=spoil.content_type,
                headers=spoil.headers,
            )
        if spoil is Spoil.SILENCE:
            await asyncio.Event().wait()
        status, answer = self._answer(body)
        text = json.dumps(answer)
        if spoil is Spoil.TRUNCATED:
            text = text[: len(text) // 2]
        if spoil is Spoil.CUT:
            return await _cut_inside(request, text)
        return web.Response(status=status, text=text, content_type="application/json")

    def _answer(self, body: Json) -> tuple[int, Json]:
        if not isinstance(body, list):
            return self._call(body)
        self.largest_batch = max(self.largest_batch, len(body))
        if self.max_batch and len(body) > self.max_batch[0]:
            refusal = self.max_batch[1]
            told = {"jsonrpc": "2.0", "error": _error_of(refusal)}
            if self.batch_refusal_is_list:
                return refusal.status, [{**told, "id": body[0]["id"]}]
            return refusal.status, {**told, "id": None}
        # Servers may answer a batch in any order, and some do.
        return 200, [self._call(call)[1] for call in reversed(body)]

    def _call(self, call: Json) -> tuple[int, Json]:
        method, params = call["method"], call.get("params", [])
        self.calls[method] += 1
        answer: Json = {"jsonrpc": "2.0", "id": call["id"]}
        try:
            return 200, {**answer, "result": self._twisted(method, params)}
        except NodeError as exc:
            return exc.refusal.status, {**answer, "error": _error_of(exc.refusal)}

    def _twisted(self, method: str, params: Sequence[Json]) -> Json:
        if method == "eth_getBlockByNumber" and params[0] == "0x0" and self.chain.first > 0:
            if isinstance(self.genesis, Refusal):
                raise NodeError(self.genesis)
            return self.genesis
        result = self._result(method, params)
        for name, change, left in self._twists:
            if name == method and left[0] != 0:
                left[0] = None if left[0] is None else left[0] - 1
                result = change(params, result)
        return result

    def _result(self, method: str, params: Sequence[Json]) -> Json:
        match method:
            case "eth_chainId":
                return hex(self.chain_id)
            case "eth_getCode":
                return self.code if params[0].lower() == TOKEN else "0x"
            case "eth_getTransactionCount":
                return "0x0"
            case "eth_blockNumber":
                return hex(self.chain.head.number - self.head_lag)
            case "eth_getBlockByNumber":
                block = self.chain.get(self._number(params[0]))
                return None if block is None or self._is_above_head(block) else block.header
            case "eth_getLogs":
                return self._logs(params[0])
            case "eth_getTransactionByHash":
                found = (t for b in self.chain.blocks for t in b.transactions)
                return next((t for t in found if t["hash"] == params[0]), None)
            case "eth_getTransactionReceipt":
                return self.chain.receipt(params[0])
            case _:
                raise NodeError(Refusal(code=-32601, text=f"no method {method}"))

    def _is_above_head(self, block: Block) -> bool:
        return block.number > self.chain.head.number - self.head_lag

    def _number(self, tag: str) -> int:
        head = self.chain.head.number - self.head_lag
        lags = {"latest": 0, "safe": self.safe_lag, "finalized": self.finalized_lag}
        return head - lags[tag] if tag in lags else int(tag, 16)

    def _logs(self, wanted: Json) -> Json:
        first, last = (self._number(wanted[name]) for name in ("fromBlock", "toBlock"))
        self.refused += 1
        if self.max_blocks and last - first + 1 > self.max_blocks[0]:
            raise NodeError(self.max_blocks[1])
        blocks = [b for b in self.chain.between(first, last) if not self._is_above_head(b)]
        logs = [log for block in blocks for log in block.logs if fits(log, wanted)]
        if self.max_logs and len(logs) > self.max_logs[0]:
            raise NodeError(self.max_logs[1])
        self.refused -= 1
        self.ranges.append((first, last))
        return logs

    async def _on_socket(self, request: web.Request) -> web.StreamResponse:
        end = self.socket_script.popleft() if self.socket_script else None
        self.socket_attempts += 1
        await self._tell()
        if end is SocketEnd.REFUSED:
            return web.Response(status=403)
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.PING:
                await socket.pong(message.data)
                self.pings += 1
                await self._tell()
            if message.type is WSMsgType.TEXT:
                await self._on_message(request, socket, json.loads(message.data), end)
        self._sockets.pop(socket, None)
        self._to_heads.discard(socket)
        return socket

    async def _on_message(
        self,
        request: web.Request,
        socket: web.WebSocketResponse,
        call: Json,
        end: SocketEnd | None,
    ) -> None:
        self.calls[call["method"]] += 1
        answer: Json = {"jsonrpc": "2.0", "id": call["id"]}
        match end:
            case SocketEnd.CLOSED:
                await socket.close(code=1013)
            case SocketEnd.DROPPED:
                reset_connection(request)
            case SocketEnd.SILENT:
                pass
            case SocketEnd.GARBAGE | SocketEnd.A_LIST:
                await socket.send_str("<html>" if end is SocketEnd.GARBAGE else "[]")
            case SocketEnd.NO_LOGS if call["params"] == ["newHeads"]:
                self._sockets[socket] = request
                self._to_heads.add(socket)
                await socket.send_str(json.dumps({**answer, "result": SUBSCRIPTION}))
            case SocketEnd.NO_SUBSCRIPTION | SocketEnd.NO_LOGS:
                refusal = Refusal(code=-32601, text="notifications not supported")
                await socket.send_str(json.dumps({**answer, "error": _error_of(refusal)}))
            case _:
                self._sockets[socket] = request
                self.filters.append(call["params"][1])
                await socket.send_str(json.dumps({**answer, "result": SUBSCRIPTION}))
        await self._tell()

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


async def _cut_inside(request: web.Request, text: str) -> web.StreamResponse:
    part = web.StreamResponse(headers={"Content-Length": str(len(text) + 1)})
    await part.prepare(request)
    await part.write(text.encode())
    reset_connection(request)
    return part


def _error_of(refusal: Refusal) -> Json:
    return {"code": refusal.code, "message": refusal.text}


def _push(result: Json) -> str:
    params = {"subscription": SUBSCRIPTION, "result": result}
    return json.dumps({"jsonrpc": "2.0", "method": "eth_subscription", "params": params})


@asynccontextmanager
async def start_node(chain: Chain) -> AsyncIterator[FakeNode]:
    """Run a node for a chain on a free loopback port until the block ends."""
    node = FakeNode(chain)
    async with serve(node.app()) as port:
        node.url, node.ws_url = f"http://{LOOPBACK}:{port}/", f"ws://{LOOPBACK}:{port}/"
        yield node
        node.drop_sockets()
