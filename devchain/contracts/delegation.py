"""ERC-7710: somebody acts for an account, by MetaMask's DelegationManager."""

from eth_abi.abi import encode
from eth_account import Account

from devchain.contracts.delegated import Delegated, Mode
from devchain.contracts.sending import Call, encode_call, packed, send
from devchain.wallet import Wallet

MANAGER = "0xdb9B1e94B5b69Df7e401DDbedE43491141047dB3"
_ROOT = b"\xff" * 32
_TYPES = {
    "Delegation": [
        {"name": "delegate", "type": "address"},
        {"name": "delegator", "type": "address"},
        {"name": "authority", "type": "bytes32"},
        {"name": "caveats", "type": "Caveat[]"},
        {"name": "salt", "type": "uint256"},
    ],
    "Caveat": [
        {"name": "enforcer", "type": "address"},
        {"name": "terms", "type": "bytes"},
    ],
}


async def redeem(delegator: Delegated, delegate: Wallet, call: Call, *, tail: bytes = b"") -> str:
    """Have `delegate` make a call of his own choice as the account that has delegated to him.

    What the account signed says nothing of the call: the delegate chooses its bytes, and `tail`.
    """
    modes = [Mode.SINGLE.value.ljust(32, b"\0")]
    executions = [packed(call.to) + call.value.to_bytes(32) + call.data]
    data = encode_call(
        "redeemDelegations(bytes[],bytes32[],bytes[])",
        [_signed_delegation(delegator, delegate.address)],
        modes,
        executions,
    )
    return await send(delegate, MANAGER, data + tail)


def _signed_delegation(delegator: Delegated, delegate: str) -> bytes:
    """Return the encoded chain of one delegation that has no caveats."""
    domain = {
        "name": "DelegationManager",
        "version": "1",
        "chainId": delegator.wallet.chain_id,
        "verifyingContract": MANAGER,
    }
    no_caveats: list[object] = []
    terms = (delegate, delegator.address, _ROOT, no_caveats, 0)
    names = [entry["name"] for entry in _TYPES["Delegation"]]
    message = dict(zip(names, terms, strict=True))
    key = delegator.wallet.private_key
    signed = Account.sign_typed_data(key, domain, _TYPES, message)
    kind = "(address,address,bytes32,(address,bytes,bytes)[],uint256,bytes)[]"
    return encode([kind], [[(*terms, bytes(signed.signature))]])
