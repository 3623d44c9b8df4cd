"""How far the chain has been read."""

from collections.abc import Sequence

from db.pool import Database
from db.ranges import add_checkpoints
from oncepaid.domain.chain import BlockHash, BlockRef, Header
from oncepaid.domain.errors import NotLeading


class CursorStore:
    """The `chain_cursor` row of one chain. `db.ranges` moves it with the rows it covers."""

    def __init__(self, database: Database, chain_id: int) -> None:
        self._database = database
        self._chain_id = chain_id

    async def load(self) -> BlockRef | None:
        """Return the block up to which everything is stored, or None on a first start."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                "SELECT block_number, block_hash FROM chain_cursor WHERE chain_id = $1",
                self._chain_id,
            )
        if row is None:
            return None
        return BlockRef(number=row["block_number"], hash=BlockHash(row["block_hash"]))

    async def start_at(
        self, header: Header, anchors: Sequence[Header] = (), *, epoch: int
    ) -> BlockRef:
        """Set the cursor of a first start; another daemon's, if it was faster, stands.

        `anchors` are blocks below it, to which a reorganisation may lead back. Nothing is set by
        a listener whose `epoch` is over.
        """
        async with self._database.transaction() as connection:
            started = await connection.fetchval(
                """
                INSERT INTO chain_cursor (chain_id, block_number, block_hash, block_time, epoch,
                                          start_number, checked_number)
                SELECT $1, $2, $3, $4, $5, $2, $2
                 WHERE EXISTS (SELECT FROM chain_leader
                                WHERE chain_id = $1 AND epoch = $5 FOR SHARE)
                ON CONFLICT (chain_id) DO NOTHING RETURNING 1
                """,
                *(self._chain_id, header.number, header.hash, header.time, epoch),
            )
            if started:
                await add_checkpoints(connection, self._chain_id, [header, *anchors])
        cursor = await self.load()
        if cursor is None:
            raise NotLeading("another daemon reads the chain now")
        return cursor
