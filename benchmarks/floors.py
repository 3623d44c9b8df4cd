"""The least work that could do the same: no checks, no states, no retries. What we compare with."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
import asyncpg
import orjson
from websockets.asyncio.client import ClientConnection, connect

from devchain.stack import Stack
from oncepaid.domain.chain import TRANSFER_TOPIC

BATCH = 100
RANGE_BLOCKS = 100
PARALLEL = 4


async def backlog_floor(stack: Stack, connection: asyncpg.Connection, first: int) -> float:
    """Fetch every transfer from block `first` on, and its transaction, and COPY them; seconds."""
    await connection.execute(
        "CREATE TEMP TABLE bare (tx_hash text, log_index bigint, block bigint, sender text,"
        " recipient text, amount numeric, input text)"
    )
    head = int(await stack.rpc.call("eth_blockNumber"), 16)
    started = time.perf_counter()
    async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session:
        for start in range(first, head + 1, RANGE_BLOCKS):
            rows = await _bare_range(session, stack, start, min(head, start + RANGE_BLOCKS - 1))
            await connection.copy_records_to_table("bare", records=rows)
    return time.perf_counter() - started


async def _bare_range(
    session: aiohttp.ClientSession, stack: Stack, first: int, last: int
) -> list[tuple[object, ...]]:
    query = {
        "address": stack.usdc.address,
        "topics": [TRANSFER_TOPIC, None, [_topic(stack.merchant)]],
        "fromBlock": hex(first),
        "toBlock": hex(last),
    }
    logs = (await _post(session, stack.anvil.http_url, "eth_getLogs", [[query]]))[0]
    hashes = [[log["transactionHash"]] for log in logs]
    parts = [hashes[at : at + BATCH] for at in range(0, len(hashes), BATCH)]
    slots = asyncio.Semaphore(PARALLEL)

    async def fetch(part: Sequence[list[str]]) -> list[Any]:
        async with slots:
            return await _post(session, stack.anvil.http_url, "eth_getTransactionByHash", part)

    answers = await asyncio.gather(*map(fetch, parts))
    inputs = [transaction["input"] for answer in answers for transaction in answer]
    return [_bare_row(log, data) for log, data in zip(logs, inputs, strict=True)]


async def _post(
    session: aiohttp.ClientSession, url: str, method: str, params: Sequence[object]
) -> list[Any]:
    body = [
        {"jsonrpc": "2.0", "id": number, "method": method, "params": given}
        for number, given in enumerate(params)
    ]
    async with session.post(url, data=orjson.dumps(body)) as response:
        answers = orjson.loads(await response.read())
    return [answer["result"] for answer in sorted(answers, key=lambda answer: int(answer["id"]))]


def _bare_row(log: dict[str, str], data: str) -> tuple[object, ...]:
    topics = log["topics"]
    return (
        log["transactionHash"],
        int(log["logIndex"], 16),
        int(log["blockNumber"], 16),
        "0x" + topics[1][26:],
        "0x" + topics[2][26:],
        int(log["data"], 16),
        data,
    )


def _topic(address: str) -> str:
    return "0x" + "0" * 24 + address[2:].lower()


class BareListener:
    """A websocket subscription that inserts every log as it comes: no check of any kind."""

    def __init__(self, stack: Stack, connection: asyncpg.Connection) -> None:
        self._stack = stack
        self._connection = connection
        self.heard: dict[str, float] = {}
        self.stored: dict[str, float] = {}

    async def run(self, ready: asyncio.Event) -> None:
        """Listen until cancelled; notes when each transaction was heard of and stored."""
        await self._connection.execute(
            "CREATE TABLE IF NOT EXISTS bare_log (tx_hash text, amount numeric)"
        )
        url = self._stack.anvil.ws_url
        async with connect(url, compression=None) as socket:
            await self._subscribe(socket)
            ready.set()
            async for message in socket:
                log = orjson.loads(message)["params"]["result"]
                self.heard[log["transactionHash"]] = time.perf_counter()
                await self._connection.execute(
                    "INSERT INTO bare_log VALUES ($1, $2)",
                    log["transactionHash"],
                    int(log["data"], 16),
                )
                self.stored[log["transactionHash"]] = time.perf_counter()

    async def _subscribe(self, socket: ClientConnection) -> None:
        topics = [TRANSFER_TOPIC, None, [_topic(self._stack.merchant)]]
        query = {"address": self._stack.usdc.address, "topics": topics}
        request = {"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["logs", query]}
        await socket.send(json.dumps(request), text=True)
        await socket.recv()
