"""A local Ethereum node (anvil) with Base's chain id, free gas and unlocked, funded accounts."""

import platform
import re
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from devchain.processes import LOOPBACK, Child, DevToolError, node_file, start_child
from devchain.rpc import Rpc

BASE_CHAIN_ID = 8453
MNEMONIC = "test test test test test test test test test test test junk"
_LISTENING = re.compile(r"Listening on 127\.0\.0\.1:(\d+)")
_PACKAGES = {
    ("Linux", "x86_64"): "linux-amd64",
    ("Linux", "aarch64"): "linux-arm64",
    ("Darwin", "x86_64"): "darwin-amd64",
    ("Darwin", "arm64"): "darwin-arm64",
}
_BLOCK_GAS_LIMIT = 2_000_000_000
# Older states are dropped, blocks and logs are not. It bounds how deep `anvil_reorg` can go.
_STATES_IN_MEMORY = 512
# anvil makes a folder for old states, below the home folder unless told otherwise, even if it is
# to keep none, and a killed one leaves it there. It goes on without if it cannot make it.
_NO_FOLDER = "/dev/null"


@dataclass(frozen=True, kw_only=True)
class Anvil:
    """A running node."""

    port: int
    chain_id: int
    child: Child

    @property
    def http_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://{LOOPBACK}:{self.port}"

    def freeze(self) -> None:
        """Make the node hang: connections stay open and nothing answers."""
        self.child.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        self.child.send(signal.SIGCONT)

    async def stop(self) -> None:
        """Stop the node now; leaving the context is then harmless."""
        await self.child.stop()


@asynccontextmanager
async def start_anvil(
    *,
    chain_id: int = BASE_CHAIN_ID,
    port: int = 0,
    block_time_s: float | None = None,
    accounts: int = 32,
    slots_in_an_epoch: int = 2,
    state_file: Path | None = None,
) -> AsyncIterator[Anvil]:
    """Run a node on loopback until the block ends; port 0 takes any free one.

    Without `block_time_s` each transaction is mined at once. `safe` and `finalized` lag the head
    by one and two times `slots_in_an_epoch` blocks. With `state_file` the chain is loaded from
    that file if it exists, and saved there at a stop, so that a node can come back with its past.
    Raises DevToolError if the node is not installed or does not start.
    """
    argv = _argv(chain_id, port, block_time_s, accounts, slots_in_an_epoch, state_file)
    # SIGTERM lets the node write its state; without a state file there is nothing to save.
    stop_signal = signal.SIGTERM if state_file else signal.SIGKILL
    async with start_child(argv, ready=_LISTENING, stop_signal=stop_signal) as child:
        yield Anvil(port=int(child.ready[1]), chain_id=chain_id, child=child)


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A transaction of a fork: signed bytes (0x-hex) or its fields, in the fork's `block`-th one.

    The lowest block of a fork is number 0. Those of one block are mined in their order.
    """

    transaction: str | Mapping[str, str]
    block: int = 0


async def mine(rpc: Rpc, count: int, *, seconds_later: int | None = None) -> None:
    """Mine so many blocks at once, the first one `seconds_later` by the chain's time."""
    if seconds_later is not None:
        await rpc.call("evm_increaseTime", seconds_later)
    await rpc.call("anvil_mine", hex(count))


async def reorg(rpc: Rpc, depth: int, placed: Sequence[Placed] = ()) -> None:
    """Replace the last `depth` blocks by as many, which hold these transactions and no others.

    The node sends no `removed` logs for it (anvil 1.7.1). Empty blocks for empty ones are the same.
    """
    await rpc.call("anvil_reorg", depth, [[one.transaction, one.block] for one in placed])


async def roll_back(rpc: Rpc, depth: int) -> None:
    """Take the last `depth` blocks away; their transactions are forgotten."""
    await rpc.call("anvil_rollback", depth)


def _argv(
    chain_id: int,
    port: int,
    block_time_s: float | None,
    accounts: int,
    slots_in_an_epoch: int,
    state_file: Path | None,
) -> list[str]:
    options: dict[str, object] = {
        "--host": LOOPBACK,
        "--port": port,
        "--chain-id": chain_id,
        "--accounts": accounts,
        "--mnemonic": MNEMONIC,
        "--balance": 1_000_000,
        "--gas-limit": _BLOCK_GAS_LIMIT,
        "--base-fee": 0,
        "--gas-price": 0,
        "--order": "fifo",
        "--prune-history": _STATES_IN_MEMORY,
        "--cache-path": _NO_FOLDER,
        "--slots-in-an-epoch": slots_in_an_epoch,
        "--color": "never",
    }
    options |= {"--block-time": block_time_s} if block_time_s is not None else {}
    options |= {"--state": state_file} if state_file is not None else {}
    flags = ["--no-request-size-limit", "--disable-min-priority-fee"]
    pairs = [str(part) for option in options.items() for part in option]
    return [str(_binary()), *pairs, *flags]


def _binary() -> Path:
    system = (platform.system(), platform.machine())
    if system not in _PACKAGES:
        raise DevToolError(f"there is no anvil for {' '.join(system)}")
    return node_file(f"@foundry-rs/anvil-{_PACKAGES[system]}/bin/anvil")
