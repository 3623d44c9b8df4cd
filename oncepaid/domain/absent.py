"""Why nothing is stored of a transaction: from what a node tells of it, and how far was read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from oncepaid.domain.chain import TRANSFER_TOPIC, ZERO_ADDRESS, Address, Receipt, address_in
from oncepaid.domain.wording import usdc

MAX_TOLD: Final = 20
"""Transfers of one transaction that are told of, those to us first."""
_TOPIC: Final = bytes.fromhex(TRANSFER_TOPIC[2:])
_TOPICS: Final = 3
"""Of an ERC-20 transfer; an NFT's has one more."""
_WORD: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What counts, and where it was looked for: above `start`, up to `cursor`.

    `recipients` None: every recipient of the token. The numbers are None while nothing was read.
    """

    token: Address
    recipients: frozenset[Address] | None
    cursor: int | None
    start: int | None

    def is_ours(self, recipient: Address) -> bool:
        return self.recipients is None or recipient in self.recipients


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moved:
    token: Address
    sender: Address
    recipient: Address
    value: int


def explain_absent(receipt: Receipt | None, watched: Watched, *, is_known: bool) -> list[str]:
    """Return sentences about a transaction of which the tables know nothing.

    `is_known` says whether the node has the transaction at all; `receipt` is None while it is in no
    block.
    """
    if not is_known:
        return [
            "The node knows no such transaction: the hash is wrong, it was made on another chain,"
            " or it was dropped before it came into a block."
        ]
    if receipt is None:
        return ["The transaction is in no block yet: it waits in the node's pool."]
    number = receipt.block.number
    if not receipt.succeeded:
        return [f"The transaction failed in block {number}: it moved nothing."]
    moved = sorted(_moved(receipt), key=lambda found: not watched.is_ours(found.recipient))
    told = [_told(found, number, watched) for found in moved[:MAX_TOLD]]
    if len(moved) > MAX_TOLD:
        told.append(f"There are {len(moved) - MAX_TOLD} transfers more.")
    return told or [f"The transaction in block {number} transfers no token at all."]


def _moved(receipt: Receipt) -> Iterator[_Moved]:
    for event in receipt.events:
        topics = event.topics
        if len(topics) != _TOPICS or topics[0] != _TOPIC or len(event.data) != _WORD:
            continue
        sender, recipient = address_in(topics[1]), address_in(topics[2])
        if sender is None or recipient is None:
            continue
        yield _Moved(
            token=event.address,
            sender=sender,
            recipient=recipient,
            value=int.from_bytes(event.data),
        )


def _told(moved: _Moved, number: int, watched: Watched) -> str:
    sender = "newly made money" if moved.sender == ZERO_ADDRESS else moved.sender
    way = f"from {sender} to {moved.recipient}"
    if moved.token != watched.token:
        return (
            f"Another token, {moved.token}, was moved {way}: only {watched.token} (chain.token)"
            " counts."
        )
    if not watched.is_ours(moved.recipient):
        return f"{usdc(moved.value)} went {way}, which is none of chain.recipients."
    if moved.value == 0:
        return f"A transfer of 0 USDC {way} proves nothing: nobody has to agree to one."
    return f"{usdc(moved.value)} went {way}, which is ours. {_why_not_read(number, watched)}"


def _why_not_read(number: int, watched: Watched) -> str:
    if watched.cursor is None:
        return "The chain was never read: start the daemon."
    if number > watched.cursor:
        return (
            f"Block {number} is not read yet: the cursor is at {watched.cursor},"
            f" {number - watched.cursor} below."
        )
    rescan = f"`oncepaid rescan --from {number} --to {number}` stores it"
    if watched.start is not None and number <= watched.start:
        return f"Reading began after block {watched.start}, and this is block {number}: {rescan}."
    return f"Block {number} was read without it, by a node that left it out: {rescan}."
