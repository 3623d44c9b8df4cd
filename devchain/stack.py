"""What a test, the demo or a benchmark needs beside the daemon: chain, token, payers, Claude."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from eth_utils.address import to_checksum_address

from devchain.anvil import BASE_CHAIN_ID, Anvil, start_anvil
from devchain.claude import Claude, start_claude
from devchain.rpc import Rpc
from devchain.usdc import Usdc, deploy_usdc
from devchain.wallet import Wallet

# The node's accounts: 0 owns the token, 1 administers its proxy.
_MERCHANT, _RELAYER, _FIRST_PAYER = 2, 3, 4
DEFAULT_FUNDS_UNITS = 1_000_000 * 10**6


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A running dev chain; `merchant` is the recipient address, `claude` is there if asked for."""

    anvil: Anvil
    rpc: Rpc
    usdc: Usdc
    merchant: str
    merchant_wallet: Wallet
    relayer: Wallet
    payers: tuple[Wallet, ...]
    claude: Claude | None


@asynccontextmanager
async def start_stack(
    *,
    payers: int = 3,
    funds_units: int = DEFAULT_FUNDS_UNITS,
    chain_id: int = BASE_CHAIN_ID,
    port: int = 0,
    block_time_s: float | None = None,
    with_claude: bool = False,
) -> AsyncIterator[Stack]:
    """Run a node with the token, and payers holding `funds_units` each, until the block ends."""
    async with AsyncExitStack() as stack:
        accounts = _FIRST_PAYER + payers
        node = start_anvil(
            chain_id=chain_id, port=port, block_time_s=block_time_s, accounts=accounts
        )
        anvil = await stack.enter_async_context(node)
        usdc = await deploy_usdc(await stack.enter_async_context(Rpc(anvil.http_url)))
        wallets = await _wallets(usdc, chain_id)
        for payer in wallets[_FIRST_PAYER:]:
            await usdc.mint(payer.address, funds_units)
        claude = await stack.enter_async_context(start_claude()) if with_claude else None
        yield Stack(
            anvil=anvil,
            rpc=usdc.rpc,
            usdc=usdc,
            merchant=wallets[_MERCHANT].address,
            merchant_wallet=wallets[_MERCHANT],
            relayer=wallets[_RELAYER],
            payers=tuple(wallets[_FIRST_PAYER:]),
            claude=claude,
        )


async def _wallets(usdc: Usdc, chain_id: int) -> list[Wallet]:
    """Return a wallet for each account of the node, with checksummed addresses."""
    addresses = await usdc.rpc.call("eth_accounts")
    return [
        Wallet(usdc=usdc, address=to_checksum_address(address), index=index, chain_id=chain_id)
        for index, address in enumerate(addresses)
    ]
