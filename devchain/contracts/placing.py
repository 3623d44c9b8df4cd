"""Puts the contracts where they stand on Base.

Most get there by their own deployment: CREATE2 takes them to Base's address only if the package's
code is that code to the last byte, so nothing else needs to prove it.
"""

from dataclasses import dataclass

from eth_abi.abi import encode
from eth_utils.crypto import keccak

from devchain.contracts import delegation, multicall, request_network, safe
from devchain.contracts.artifacts import artifact_code, script_code
from devchain.contracts.delegated import Code
from devchain.contracts.entry_point import Version
from devchain.contracts.sending import hex_of, packed
from devchain.contracts.simple_account import FACTORIES
from devchain.processes import DevToolError
from devchain.rpc import Rpc

_GAS = 10_000_000
# Both have the same code: salt, then creation code. The node has the first from the start.
_DEPLOYER = "0x4e59b44847b379578588920cA78FbF26c0B4956C"
_SAFES_DEPLOYER = "0x914d7Fec6aaC8cd542e72Bca78B30650d45643d7"
# Who published Multicall3, by his first transaction on each chain.
_MULTICALLS_DEPLOYER = "0x05f32B3cC3888453ff71B01135B34FF8e41263F2"
_NO_SALT = bytes(32)
_SALTS = {
    Version.V07: "90d8084deab30c2a37c45e8d47f49f2f7965183cb6990a98943ef94940681de3",
    Version.V08: "0a59dbff790c23c976a548690c27297883cc66b4c67024f9117b0238995e35e9",
}
_PACKAGES = {
    Version.V06: "entry-point-06/artifacts",
    Version.V07: "entry-point-07/artifacts",
    Version.V08: "entry-point-08/artifacts",
}
_SAFE = "@safe-global/safe-contracts/build/artifacts/contracts"
_MODULE = "@safe-global/safe-4337/build/artifacts/contracts"
_REQUEST = "@requestnetwork/smart-contracts/types/factories/src/contracts"
_METAMASK = "@metamask/delegation-abis/dist/bytecode"


@dataclass(frozen=True, kw_only=True)
class _Creation:
    """One CREATE2 and where it must lead."""

    address: str
    code: bytes
    salt: bytes = _NO_SALT
    deployer: str = _DEPLOYER


async def place_contracts(rpc: Rpc) -> None:
    """Put every contract of this package on a fresh dev chain; returns once all are mined.

    Raises DevToolError if one is not the contract that its address asks for.
    """
    code = await rpc.call("eth_getCode", _DEPLOYER, "latest")
    await rpc.call("anvil_setCode", _SAFES_DEPLOYER, code)
    sender: str = (await rpc.call("eth_accounts"))[0]
    for creation in (*_accounts(), *_safes()):
        await _create(rpc, sender, creation)
    await _place_multicall(rpc)
    for address, copied in _copied().items():
        receipt = await _send(rpc, sender, None, copied)
        runtime = await rpc.call("eth_getCode", receipt["contractAddress"], "latest")
        await rpc.call("anvil_setCode", address, runtime)


async def place_paymaster(rpc: Rpc, address: str) -> None:
    """Put a paymaster there that agrees to everything and reads nothing.

    It is ours, in ten bytes: it answers (empty context, valid for ever) to any call.
    """
    await rpc.call("anvil_setCode", address, "0x604060005260606000f3")


def _accounts() -> list[_Creation]:
    creations = []
    for version, folder in _PACKAGES.items():
        entry_point = artifact_code(f"{folder}/EntryPoint.json")
        salt = bytes.fromhex(_SALTS[version]) if version in _SALTS else _NO_SALT
        creations.append(_Creation(address=version, code=entry_point, salt=salt))
        factory = artifact_code(f"{folder}/SimpleAccountFactory.json")
        code = factory + encode(["address"], [version.value])
        creations.append(_Creation(address=FACTORIES[version], code=code))
    delegate = artifact_code(f"{_PACKAGES[Version.V08]}/Simple7702Account.json")
    return [*creations, _Creation(address=Code.SIMPLE, code=delegate)]


def _safes() -> list[_Creation]:
    published = {
        safe.SINGLETON: artifact_code(f"{_SAFE}/Safe.sol/Safe.json"),
        safe.PROXY_FACTORY: artifact_code(
            f"{_SAFE}/proxies/SafeProxyFactory.sol/SafeProxyFactory.json"
        ),
        safe.MULTI_SEND: artifact_code(f"{_SAFE}/libraries/MultiSend.sol/MultiSend.json"),
        safe.MULTI_SEND_CALL_ONLY: artifact_code(
            f"{_SAFE}/libraries/MultiSendCallOnly.sol/MultiSendCallOnly.json"
        ),
        safe.MODULE: artifact_code(f"{_MODULE}/Safe4337Module.sol/Safe4337Module.json")
        + encode(["address"], [Version.V07.value]),
        safe.MODULE_SETUP: artifact_code(f"{_MODULE}/SafeModuleSetup.sol/SafeModuleSetup.json"),
    }
    return [
        _Creation(address=address, code=code, deployer=_SAFES_DEPLOYER)
        for address, code in published.items()
    ]


def _copied() -> dict[str, bytes]:
    """Return the creation code of what was deployed on Base in a way that is not published.

    Only the code is copied to the address; what a constructor stores (an owner) is left behind.
    """
    manager = script_code(f"{_METAMASK}/DelegationManager.cjs", "bytecode")
    delegate = script_code(f"{_METAMASK}/EIP7702StatelessDeleGator.cjs", "bytecode")
    parties = encode(["address", "address"], [delegation.MANAGER, Version.V07.value])
    proxy = script_code(f"{_REQUEST}/ERC20FeeProxy__factory.js", "_bytecode")
    return {
        delegation.MANAGER: manager + encode(["address"], [_DEPLOYER]),
        Code.METAMASK: delegate + parties,
        request_network.FEE_PROXY: proxy,
    }


async def _create(rpc: Rpc, sender: str, creation: _Creation) -> None:
    seed = b"\xff" + packed(creation.deployer) + creation.salt + keccak(creation.code)
    if keccak(seed)[12:] != packed(creation.address):
        raise DevToolError(f"the package's code is not that of {creation.address}")
    await _send(rpc, sender, creation.deployer, creation.salt + creation.code)


async def _place_multicall(rpc: Rpc) -> None:
    code = script_code("viem/_cjs/constants/contracts.js", "multicall3Bytecode")
    await rpc.call("anvil_impersonateAccount", _MULTICALLS_DEPLOYER)
    receipt = await _send(rpc, _MULTICALLS_DEPLOYER, None, code)
    await rpc.call("anvil_stopImpersonatingAccount", _MULTICALLS_DEPLOYER)
    if packed(receipt["contractAddress"]) != packed(multicall.MULTICALL3):
        raise DevToolError("Multicall3's deployer has sent something before")


async def _send(rpc: Rpc, sender: str, to: str | None, data: bytes) -> dict[str, str]:
    transaction = {"from": sender, "data": hex_of(data), "gas": hex(_GAS), "gasPrice": "0x0"}
    if to is not None:
        transaction["to"] = to
    tx_hash = await rpc.call("eth_sendTransaction", transaction)
    # A node with a block time would make the set-up wait for a block per transaction.
    if await rpc.call("eth_getTransactionReceipt", tx_hash) is None:
        await rpc.call("evm_mine")
    return await rpc.receipt(tx_hash)
