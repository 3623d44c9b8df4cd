"""A contract that says whatever it is told to say, in the words of Request Network's proxy."""

from typing import Final

from eth_abi.abi import encode
from eth_utils.crypto import keccak

from devchain.rpc import Rpc

_TOPIC: Final = keccak(
    text="TransferWithReferenceAndFee(address,address,uint256,bytes,uint256,address)"
)
_NOBODY: Final = "0x" + "0" * 40
_CODE: Final = (
    # calldatacopy(0, 32, calldatasize - 32)
    bytes.fromhex("602036036020600037")
    # log2(0, calldatasize - 32, the topic, the first word of the calldata)
    + bytes.fromhex("6000357f")
    + _TOPIC
    + bytes.fromhex("602036036000a200")
)


async def place_look_alike(rpc: Rpc, address: str) -> None:
    """Put the contract there: it logs its calldata, whose first word is the hash of a reference."""
    await rpc.call("anvil_setCode", address, "0x" + _CODE.hex())


def look_alike_event(token: str, to: str, units: int, reference: bytes) -> bytes:
    """Return the calldata that makes it tell of a payment with this reference, without a fee."""
    kinds = ("address", "address", "uint256", "uint256", "address")
    return keccak(reference) + encode(kinds, (token, to, units, 0, _NOBODY))
