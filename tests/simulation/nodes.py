"""Nodes that limp, and what stands in for `HttpRpc`: the same questions, without a wire."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from listener.exchange import Call
from oncepaid.domain.chain import TRANSFER_TOPIC, Header
from oncepaid.domain.errors import NodeUnavailable, RangeRefused
from tests.simulation.chain import Block, ForkingChain, Payment

Pause = Callable[[], None]


@dataclass(slots=True, kw_only=True)
class Finality:
    """How far the real chain is safe and final."""

    safe: int = 0
    finalized: int = 0


@dataclass(slots=True, kw_only=True)
class Node:
    """One node's view: possibly a fork of its own, some blocks behind, with short answers."""

    index: int
    chain: ForkingChain
    finality: Finality
    random: Random
    fork: Block | None = None
    lag: int = 0
    is_down: bool = False
    range_limit: int = 10_000
    short: float = 0.0
    shuffled: bool = False

    @property
    def path(self) -> Sequence[Block]:
        path = (self.fork or self.chain.tip).path
        return path[: max(1, len(path) - self.lag)] if self.lag else path

    def heal(self) -> None:
        self.fork, self.lag, self.is_down, self.short = None, 0, False, 0.0
        self.range_limit, self.shuffled = 10_000, False

    def answer(self, call: Call, *, tell_all: bool) -> Any:
        path = self.path
        match call.method:
            case "eth_getBlockByNumber":
                return self._header(path, call.params[0])
            case "eth_getLogs":
                return self._logs(path, call.params[0], tell_all=tell_all)
            case "eth_getTransactionByHash":
                found = self._find(path, call.params[0])
                return found and found[0].transaction(found[1])
            case "eth_getTransactionReceipt":
                found = self._find(path, call.params[0])
                return found and found[0].receipt(found[1])
        raise AssertionError(call.method)

    def _header(self, path: Sequence[Block], block: str) -> dict[str, Any] | None:
        top = len(path) - 1
        match block:
            case "latest":
                number = top
            case "safe":
                number = min(top, self.finality.safe)
            case "finalized":
                number = min(top, self.finality.finalized)
            case _:
                number = int(block, 16)
        return path[number].header if number <= top else None

    def _logs(
        self, path: Sequence[Block], query: dict[str, Any], *, tell_all: bool
    ) -> list[dict[str, Any]]:
        first, last = int(query["fromBlock"], 16), int(query["toBlock"], 16)
        if last - first + 1 > self.range_limit:
            raise RangeRefused("block range too large")
        topic, people = query["topics"][0], query["topics"][-1]
        at = 2 if topic == TRANSFER_TOPIC else 1
        logs = [
            log
            for block in path[first : last + 1]
            for log in block.logs
            if log["topics"][0] == topic and log["topics"][at] in people
        ]
        if self.short and not tell_all and topic == TRANSFER_TOPIC:
            logs = [log for log in logs if self.random.random() >= self.short]
        if self.shuffled:
            logs += [log for log in logs if self.random.random() < 0.3]
            self.random.shuffle(logs)
        return logs

    def _find(self, path: Sequence[Block], tx_hash: str) -> tuple[Block, Payment] | None:
        for block in self.chain.where.get(tx_hash, ()):
            if block.number < len(path) and path[block.number] is block:
                return block, next(p for p in block.payments if p.hash == tx_hash)
        return None


@dataclass(slots=True, kw_only=True)
class Wire:
    """Calls of one node; `pause` comes before each and may raise, or change the world."""

    node: Node
    pause: Pause
    tells_all: list[bool]

    @property
    def index(self) -> int:
        return self.node.index

    @property
    def label(self) -> str:
        return f"node {self.node.index}"

    async def call(self, method: str, *params: Any) -> Any:
        return (await self.call_all([Call(method=method, params=params)]))[0]

    async def call_all(self, calls: Sequence[Call]) -> list[Any]:
        self.pause()
        if self.node.is_down:
            raise NodeUnavailable(f"{self.label} is down")
        return [self.node.answer(call, tell_all=self.tells_all[0]) for call in calls]


@dataclass(slots=True)
class Rpc:
    """Fits how the stages use `HttpRpc`: leaves a node that fails, or that it is told to leave."""

    nodes: Sequence[Node]
    pause: Pause
    current: int = 0
    tells_all: list[bool] = field(default_factory=lambda: [False])

    @property
    def count(self) -> int:
        return len(self.nodes)

    @property
    def endpoint(self) -> str:
        return f"node {self.current}"

    def pinned(self, index: int) -> Wire:
        return Wire(node=self.nodes[index], pause=self.pause, tells_all=self.tells_all)

    def other(self) -> Wire:
        return self.pinned((self.current + 1) % self.count)

    def other_in_service(self) -> Wire:
        return self.pinned(self.current) if self.other().node.is_down else self.other()

    def second(self) -> Wire | None:
        other = self.other_in_service()
        return None if other.index == self.current else other

    def distrust(self) -> None:
        self.current = (self.current + 1) % self.count

    def saw_head(self, header: Header) -> None:
        pass

    async def call(self, method: str, *params: Any) -> Any:
        return (await self.call_all([Call(method=method, params=params)]))[0]

    async def call_all(self, calls: Sequence[Call]) -> list[Any]:
        try:
            return await self.pinned(self.current).call_all(calls)
        except NodeUnavailable:
            self.distrust()
            raise
