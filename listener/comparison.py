"""What is stored held against what a node says: which payments are missing, which are too many."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from oncepaid.domain.chain import BlockContents, BlockRef, Receipt, TransferLog
from oncepaid.domain.payments import StoredLog

MAX_ANCHORS: Final = 14
"""2^13 blocks: half an hour of Base since Denim, past what `finalized` lags."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """`missing` is told and not stored, `extra` stored and not told, `altered` stored otherwise."""

    missing: list[TransferLog]
    extra: list[StoredLog]
    altered: list[StoredLog]

    def __len__(self) -> int:
        return len(self.missing) + len(self.extra) + len(self.altered)


def compare(rows: Sequence[StoredLog], found: Sequence[TransferLog]) -> Difference:
    """Compare stored payments with the logs of the same blocks.

    Identity is the log, by its block's hash and its index. `rows` may also hold payments of other
    blocks, which share a transaction with a log that was found: they are `extra`.
    """
    told = {(log.block.hash, log.log_index): log for log in found}
    stored = {(row.block.hash, row.log_index): row for row in rows}
    return Difference(
        missing=[log for key, log in told.items() if key not in stored],
        extra=[row for key, row in stored.items() if key not in told],
        altered=[
            row for key, row in stored.items() if key in told and not is_log_of(row, told[key])
        ],
    )


def is_log_of(row: StoredLog, log: TransferLog) -> bool:
    """Say whether a stored payment is this log, in every fact that money depends on."""
    return row.block == log.block and _is_same(row, log)


class Standing(StrEnum):
    """What one node's block and receipt say of a stored payment."""

    PROVEN = "proven"
    """The receipt has its log, and the block is on the chain."""
    REPLACED = "replaced"
    """Another block stands at its height."""
    ABSENT = "absent"
    """Its block is there and the log is not in it: the receipt or the block itself says so."""
    UNKNOWN = "unknown"
    """The node does not have all that it takes to tell: it lags, or its backends differ."""


def standing_of(row: StoredLog, block: BlockContents | None, receipt: Receipt | None) -> Standing:
    """Say how a stored payment stands with what a node has at its height and of its transaction.

    That something is missing proves nothing: only a block without the transaction, or a receipt
    without the log, is evidence against a row.
    """
    if block is None:
        return Standing.UNKNOWN
    if block.ref != row.block:
        return Standing.REPLACED
    if receipt is not None and receipt.block == row.block:
        has_it = receipt.succeeded and any(_is_same(row, log) for log in receipt.transfers)
        return Standing.PROVEN if has_it else Standing.ABSENT
    if block.transactions is not None and row.tx_hash not in block.transactions:
        return Standing.ABSENT
    return Standing.UNKNOWN


def _is_same(row: StoredLog, log: TransferLog) -> bool:
    return (row.log_index, row.tx_hash, row.sender, row.recipient, row.units) == (
        log.log_index,
        log.tx_hash,
        log.sender,
        log.recipient,
        log.units,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RewindTo:
    """The highest checkpoint that is still on the chain."""

    ancestor: BlockRef


@dataclass(frozen=True, slots=True, kw_only=True)
class LookDeeper:
    """None of these checkpoints is on the chain; there may be older ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BelowFinalized:
    """A block that was final is not on the chain."""

    block: BlockRef


Walk = RewindTo | LookDeeper | BelowFinalized


def judge_walk(
    checkpoints: Sequence[BlockRef], on_chain: Collection[BlockRef], finalized: int
) -> Walk:
    """Say where checkpoints, the highest first, meet the chain.

    `finalized` is the highest block that was final: a checkpoint at or below it that is not on the
    chain is no reorganisation, but a contradiction that no daemon may resolve by itself.
    """
    for block in checkpoints:
        if block in on_chain:
            return RewindTo(ancestor=block)
        if block.number <= finalized:
            return BelowFinalized(block=block)
    return LookDeeper()


def anchors_below(number: int) -> list[int]:
    """Return heights below a first cursor, ever further apart, to which a reorg may lead back."""
    return [number - 2**power for power in range(MAX_ANCHORS) if number >= 2**power]
