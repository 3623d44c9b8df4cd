"""What a test sees of a payment that was made through contracts."""

from dataclasses import dataclass
from typing import Any, Protocol

from eth_utils.crypto import keccak

from devchain.stack import Stack
from devchain.usdc import BASE_USDC

TRANSFER = "0x" + keccak(text="Transfer(address,address,uint256)").hex()
OPERATION = "0x49628fd1471006c1482da88028e9ce4dbb080b815c9b0344d39e5a8e6ec1419f"
"""UserOperationEvent"""


class Payer(Protocol):
    """An account with an address, whatever it is."""

    @property
    def address(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Mined:
    """A transaction that succeeded: what it was given, and what it logged."""

    to: str
    kind: int
    data: bytes
    logs: list[dict[str, Any]]

    @property
    def transfers(self) -> list[tuple[str, str, int]]:
        """Sender, recipient and units of each transfer of the token, in order."""
        return [
            (address_in(log["topics"][1]), address_in(log["topics"][2]), int(log["data"], 16))
            for log in self.logs
            if log["topics"][0] == TRANSFER and log["address"] == BASE_USDC.lower()
        ]

    @property
    def topics(self) -> list[str]:
        return [log["topics"][0] for log in self.logs]

    @property
    def outcomes(self) -> list[tuple[str, bool]]:
        """Account and success of each user operation, in order."""
        return [
            (address_in(log["topics"][2]), bool(int(log["data"][2:][64:128], 16)))
            for log in self.logs
            if log["topics"][0] == OPERATION
        ]


async def mined(stack: Stack, tx_hash: str) -> Mined:
    """Wait for a transaction; raises RpcError if it reverted."""
    receipt = await stack.rpc.receipt(tx_hash)
    sent = await stack.rpc.call("eth_getTransactionByHash", tx_hash)
    data = bytes.fromhex(sent["input"][2:])
    return Mined(to=sent["to"], kind=int(sent["type"], 16), data=data, logs=receipt["logs"])


def address_in(topic: str) -> str:
    """Return the lower-case address in a topic."""
    return "0x" + topic[-40:]


def paid(payer: Payer, to: str, units: int) -> tuple[str, str, int]:
    """Return one entry of `Mined.transfers`."""
    return (payer.address.lower(), to.lower(), units)
