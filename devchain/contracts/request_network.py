"""Request Network's ERC20FeeProxy: a transfer with a reference, and one of a fee beside it."""

from devchain.contracts.sending import encode_call, send
from devchain.wallet import Wallet

FEE_PROXY = "0x1892196E80C4c17ea5100Da765Ab48c1fE2Fb814"


async def pay_with_reference(
    payer: Wallet,
    to: str,
    units: int,
    reference: bytes,
    *,
    fee_units: int = 0,
    fee_to: str | None = None,
    proxy: str = FEE_PROXY,
    tail: bytes = b"",
) -> str:
    """Pay from an account that has approved `proxy` for both amounts."""
    data = encode_call(
        "transferFromWithReferenceAndFee(address,address,uint256,bytes,uint256,address)",
        *(payer.usdc.address, to, units, reference, fee_units, fee_to or to),
    )
    return await send(payer, proxy, data + tail)
