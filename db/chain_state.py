"""How far a chain was read, asked again and final, as rows tell of it."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from oncepaid.domain.chain import BlockHash, BlockRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The end of a range that was stored, and how long ago by the database's clock."""

    block: BlockRef
    time: datetime
    age: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainState:
    """The cursor with all that is known of the way behind it.

    `checked` None: no range was asked a second time yet. `finalized` -1: none was final yet.
    """

    cursor: BlockRef
    start: int | None
    checked: int | None
    finalized: int
    conflict: str | None


def chain_state_of(row: asyncpg.Record) -> ChainState:
    """Return the state that a row of `chain_cursor` tells of."""
    return ChainState(
        cursor=BlockRef(number=row["block_number"], hash=BlockHash(row["block_hash"])),
        start=row["start_number"],
        checked=row["checked_number"],
        finalized=row["finalized_number"],
        conflict=row["conflict"],
    )
