"""What is stored held against what a node says: which payments are missing, which are too many."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from oncepaid.domain.chain import BlockRef, TransferLog
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
    return (
        row.block == log.block
        and row.log_index == log.log_index
        and row.tx_hash == log.tx_hash
        and (row.sender, row.recipient, row.units) == (log.sender, log.recipient, log.units)
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
