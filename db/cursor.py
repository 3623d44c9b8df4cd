"""How far the chain has been read."""

from db.pool import Database
from oncepaid.domain.chain import BlockHash, BlockRef, Header


class CursorStore:
    """The `chain_cursor` row of one chain. `db.payments` moves it with the rows it covers."""

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

    async def start_at(self, header: Header) -> BlockRef:
        """Set the cursor of a first start; another daemon's, if it was faster, stands."""
        async with self._database.connection() as connection:
            await connection.execute(
                """
                INSERT INTO chain_cursor (chain_id, block_number, block_hash, block_time)
                VALUES ($1, $2, $3, $4) ON CONFLICT (chain_id) DO NOTHING
                """,
                self._chain_id,
                header.number,
                header.hash,
                header.time,
            )
        cursor = await self.load()
        assert cursor is not None, "the row was there or has just been inserted"
        return cursor
