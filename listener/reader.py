"""The few questions that this project asks a chain."""

from collections.abc import Sequence
from typing import Protocol

from listener.decode import Json, decode_header
from listener.exchange import Call
from oncepaid.domain.chain import BlockHash, Header, TxHash
from oncepaid.domain.errors import InconsistentNode


class Caller(Protocol):
    """Who makes calls: all endpoints together, or one of them."""

    async def call(self, method: str, *params: Json) -> Json: ...
    async def call_all(self, calls: Sequence[Call]) -> list[Json]: ...


class ChainReader:
    """Asks them of any caller and types the answers."""

    def __init__(self, rpc: Caller) -> None:
        self._rpc = rpc

    async def header(self, block: int | str) -> Header | None:
        """Return the header of a number or a tag (`latest`, `safe`, `finalized`)."""
        return (await self.headers([block]))[0]

    async def headers(self, blocks: Sequence[int | str]) -> list[Header | None]:
        """Return several headers, in order, in one batch."""
        values = await self._rpc.call_all([header_call(block) for block in blocks])
        headers = [decode_header(value) for value in values]
        for block, header in zip(blocks, headers, strict=True):
            if isinstance(block, int) and header is not None and header.number != block:
                raise InconsistentNode(f"block {header.number} came instead of block {block}")
        return headers

    async def hashes(self, numbers: Sequence[int]) -> dict[int, BlockHash | None]:
        """Return the hashes that now stand at these heights; None where the node has no block."""
        headers = await self.headers(list(numbers))
        return {
            number: None if header is None else header.hash
            for number, header in zip(numbers, headers, strict=True)
        }


def header_call(block: int | str) -> Call:
    """Return the call for the header of a number or a tag.

    A node that does not know `safe` or `finalized` is no worse for that: it has none.
    """
    is_optional = block in ("safe", "finalized")
    return Call(method="eth_getBlockByNumber", params=(_block(block), False), optional=is_optional)


def _block(block: int | str) -> str:
    return hex(block) if isinstance(block, int) else block


def receipt_call(tx_hash: TxHash) -> Call:
    """Return the call for a receipt; one that the node finds too large is `RangeRefused`."""
    return Call(method="eth_getTransactionReceipt", params=(tx_hash,), is_sizable=True)
