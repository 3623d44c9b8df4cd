"""What the listener's parts read of a ledger: shapes that `db` fits."""

from datetime import datetime, timedelta
from typing import Protocol

from oncepaid.domain.chain import BlockRef


class Checkpoint(Protocol):
    """The end of a range that was stored."""

    @property
    def block(self) -> BlockRef: ...
    @property
    def time(self) -> datetime: ...
    @property
    def age(self) -> timedelta: ...


class ChainState(Protocol):
    """How far the chain was read, asked again, and final."""

    @property
    def cursor(self) -> BlockRef: ...
    @property
    def start(self) -> int | None: ...
    @property
    def checked(self) -> int | None: ...
    @property
    def finalized(self) -> int: ...
    @property
    def conflict(self) -> str | None: ...
