"""What decoding one `Transfer` log costs, by hand and by web3."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from web3 import Web3
from web3.types import LogReceipt

from listener.decode import decode_transfer
from oncepaid.domain.chain import TRANSFER_TOPIC, Address

TOKEN = Address("0x833589fcd6edb6e08f4c7c32d4f71b54bda02913")
ROUNDS = 3_000
_ABI: list[dict[str, Any]] = [
    {
        "type": "event",
        "name": "Transfer",
        "anonymous": False,
        "inputs": [
            {"name": "from", "type": "address", "indexed": True},
            {"name": "to", "type": "address", "indexed": True},
            {"name": "value", "type": "uint256", "indexed": False},
        ],
    }
]


def decode_costs() -> Iterator[tuple[str, str, str, str]]:
    """Yield the row of the table; both decode the same log, web3 from an already formatted one."""
    log = _log()
    event = Web3().eth.contract(abi=_ABI).events.Transfer()
    formatted = _formatted(log)
    ours = _microseconds(lambda: decode_transfer(log, TOKEN))
    web3 = _microseconds(lambda: event.process_log(formatted))
    yield (
        "decode of a Transfer log",
        f"{ours:.1f} µs",
        f"web3 process_log {web3:.0f} µs",
        f"{web3 / ours:.0f} times faster",
    )


def _microseconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(ROUNDS // 5):
            work()
        best = min(best, (time.perf_counter() - started) / (ROUNDS // 5))
    return best * 1e6


def _log() -> dict[str, Any]:
    return {
        "address": "0x833589fcd6edb6e08f4c7c32d4f71b54bda02913",
        "topics": [TRANSFER_TOPIC, "0x" + "0" * 24 + "11" * 20, "0x" + "0" * 24 + "22" * 20],
        "data": "0x" + f"{1_500_000:064x}",
        "blockNumber": "0x3a2c4e1",
        "blockHash": "0x" + "ab" * 32,
        "blockTimestamp": "0x6a90cd37",
        "transactionHash": "0x" + "cd" * 32,
        "transactionIndex": "0x3",
        "logIndex": "0x1f",
        "removed": False,
    }


def _formatted(log: dict[str, Any]) -> LogReceipt:
    return LogReceipt(
        address=Web3.to_checksum_address(log["address"]),
        topics=[Web3.to_bytes(hexstr=topic) for topic in log["topics"]],  # type: ignore[misc]  # because: HexBytes are bytes
        data=Web3.to_bytes(hexstr=log["data"]),  # type: ignore[typeddict-item]  # because: as above
        blockNumber=int(log["blockNumber"], 16),  # type: ignore[typeddict-item]  # because: NewType
        blockHash=Web3.to_bytes(hexstr=log["blockHash"]),  # type: ignore[typeddict-item]  # because: as above
        transactionHash=Web3.to_bytes(hexstr=log["transactionHash"]),  # type: ignore[typeddict-item]  # because: as above
        transactionIndex=int(log["transactionIndex"], 16),
        logIndex=int(log["logIndex"], 16),
        removed=False,
    )
