"""A small JSON-RPC client for the dev side; the daemon has its own, with other duties."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp

_RECEIPT_POLL_S = 0.02
_REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=120)


class RpcError(RuntimeError):
    """The node answered with a JSON-RPC error; `code` and `data` are the node's."""

    def __init__(self, method: str, error: dict[str, Any]) -> None:
        super().__init__(f"{method}: {error.get('message')} ({error.get('code')})")
        self.code = int(error.get("code", 0))
        self.data = error.get("data")


class Rpc:
    """JSON-RPC over HTTP to one node; use as an async context manager."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=_REQUEST_TIMEOUT)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(self, method: str, *params: object) -> Any:
        """Return the result; raises RpcError, or aiohttp's ClientError if there is no node."""
        answer = await self._post({"jsonrpc": "2.0", "id": 0, "method": method, "params": params})
        return _result(method, answer)

    async def batch(self, calls: Sequence[tuple[str, Sequence[object]]]) -> list[Any]:
        """Return the results of one HTTP batch in the order of `calls`; the first error raises.

        The node may run the calls of a batch side by side: their order is not promised.
        """
        if not calls:
            return []
        body = [
            {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            for number, (method, params) in enumerate(calls)
        ]
        answers = {answer["id"]: answer for answer in await self._post(body)}
        return [_result(method, answers[number]) for number, (method, _) in enumerate(calls)]

    async def receipt(self, tx_hash: str, timeout_s: float = 15.0) -> dict[str, Any]:
        """Wait until a transaction is mined; raises TimeoutError, or RpcError if it reverted."""
        async with asyncio.timeout(timeout_s):
            while (found := await self.call("eth_getTransactionReceipt", tx_hash)) is None:
                await asyncio.sleep(_RECEIPT_POLL_S)
        receipt: dict[str, Any] = found
        if int(receipt["status"], 16) != 1:
            raise RpcError("receipt", {"message": f"{tx_hash} reverted", "data": receipt})
        return receipt

    async def _post(self, body: object) -> Any:
        if self._session is None:
            raise RuntimeError("Rpc is used outside its `async with` block")
        async with self._session.post(self.url, json=body) as response:
            return await response.json(content_type=None)


def _result(method: str, answer: Any) -> Any:
    if "error" in answer:
        raise RpcError(method, answer["error"])
    return answer["result"]
