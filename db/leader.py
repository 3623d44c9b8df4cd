"""Who of several daemons reads the chain.

A leader holds two things, because each of them covers what the other cannot see:

- an advisory lock that is named by its epoch, on a connection of its own. It ends with its session,
  so that another daemon takes over at once from a process that died;
- a lease on the database's clock. It runs out where a process only hangs (SIGSTOP, a machine that
  the network has lost): there the session, and with it the lock, lives on.

Either may be wrong: a connection breaks while its process is well, a process wakes up after its
lease. So neither guards the rows. Each take-over raises the epoch in the cursor's row, every write
of a listener asks for its own epoch there: one that leads no more writes nothing.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Final

import asyncpg
import structlog

from db.pool import PARTING_ERRORS, break_off, open_connection, translated_errors

log = structlog.get_logger()

STANDBY_S: Final = 1.0
LEASE: Final = timedelta(seconds=6)
"""Longer than a pause between renewals with the longest statement that can still succeed."""
COMMAND_TIMEOUT_S: Final = 3.0
CLOSE_TIMEOUT_S: Final = 2.0

_MAKE_ROW: Final = "INSERT INTO chain_leader (chain_id) VALUES ($1) ON CONFLICT DO NOTHING"

# One statement, so that a process that hangs cannot hang in the middle of it and keep the row. The
# session's lock is taken even where another has it: that can only be a session whose take-over was
# rolled back, and then the lease alone speaks for us. `clock_timestamp`, because the statement may
# have waited for the row.
_TAKE_OVER: Final = """
WITH held AS MATERIALIZED (
    SELECT epoch, holder, lease_until FROM chain_leader WHERE chain_id = $1 FOR UPDATE
), judged AS MATERIALIZED (
    SELECT epoch, holder, lease_until < clock_timestamp() AS is_over,
           pg_try_advisory_xact_lock(hashtextextended(
               format('oncepaid leader %s %s', $1::bigint, epoch), 0)) AS is_gone
      FROM held
), taken AS (
    UPDATE chain_leader l
       SET epoch = judged.epoch + 1, holder = $2, lease_until = clock_timestamp() + $3
      FROM judged
     WHERE l.chain_id = $1 AND (judged.is_gone OR judged.is_over)
    RETURNING l.epoch, judged.holder AS before, judged.is_gone,
              pg_try_advisory_lock(hashtextextended(
                  format('oncepaid leader %s %s', $1::bigint, l.epoch), 0)) AS is_locked
), fenced AS (
    UPDATE chain_cursor SET epoch = taken.epoch FROM taken WHERE chain_id = $1
)
SELECT epoch, before, CASE WHEN epoch = 1 THEN 'first' WHEN is_gone THEN 'gone' ELSE 'lease over'
                      END AS because
  FROM taken
"""

# A cursor that was made by somebody who led no more has an old epoch, which would keep us out.
_RENEW_IF_OURS: Final = """
WITH kept AS (
    UPDATE chain_leader SET lease_until = clock_timestamp() + $3
     WHERE chain_id = $1 AND epoch = $2
    RETURNING epoch
), fenced AS (
    UPDATE chain_cursor c SET epoch = kept.epoch
      FROM kept WHERE c.chain_id = $1 AND c.epoch < kept.epoch
)
SELECT epoch FROM kept
"""

_GIVE_UP_IF_OURS: Final = """
UPDATE chain_leader SET lease_until = '-infinity' WHERE chain_id = $1 AND epoch = $2
"""


def _ignore(_: int | None) -> None:
    pass


class Leader:
    """One daemon's part in who leads on one chain: `step` takes the lead, keeps it, or stands by.

    `on_change` hears each new `epoch`. Not for two tasks at once.
    """

    def __init__(
        self,
        url: str,
        chain_id: int,
        *,
        name: str,
        on_change: Callable[[int | None], None] = _ignore,
    ) -> None:
        self._url = url
        self._chain_id = chain_id
        self._name = name
        self._on_change = on_change
        self._connection: asyncpg.Connection | None = None
        self._epoch: int | None = None

    @property
    def epoch(self) -> int | None:
        """The epoch to write with; None while standing by. It may be over already."""
        return self._epoch

    async def step(self) -> bool:
        """Renew the lease, or take the lead where nobody has it. False: nothing is left to do.

        Raises `DatabaseUnavailable`; then we stand by, and the session of before is over.
        """
        try:
            with translated_errors():
                connection = self._connection or await self._connect()
                if self._epoch is None:
                    await self._take_over(connection)
                else:
                    await self._renew(connection, self._epoch)
        except BaseException as exc:
            await self._lose(type(exc).__name__)
            raise
        return False

    async def close(self) -> None:
        """Give the lead up, so that another can have it at once. Bounded, never raises."""
        connection, epoch = self._connection, self._epoch
        self._connection = None
        if connection is None:
            return
        try:
            with suppress(*PARTING_ERRORS):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    if epoch is not None:
                        await connection.execute(_GIVE_UP_IF_OURS, self._chain_id, epoch)
                    await connection.close()
        finally:
            connection.terminate()
            if epoch is not None:
                self._change(None)
                log.info("leader.given_up", epoch=epoch)

    async def _connect(self) -> asyncpg.Connection:
        connection = await open_connection(self._url, command_timeout_s=COMMAND_TIMEOUT_S)
        self._connection = connection
        await connection.execute(_MAKE_ROW, self._chain_id)
        return connection

    async def _take_over(self, connection: asyncpg.Connection) -> None:
        row = await connection.fetchrow(_TAKE_OVER, self._chain_id, self._name, LEASE)
        if row is None:
            return
        self._change(row["epoch"])
        log.info("leader.taken", epoch=row["epoch"], before=row["before"], because=row["because"])

    async def _renew(self, connection: asyncpg.Connection, epoch: int) -> None:
        if await connection.fetchval(_RENEW_IF_OURS, self._chain_id, epoch, LEASE) is None:
            await self._lose("another leads")

    async def _lose(self, because: str) -> None:
        """Stand by and end the session, with the lock of its epoch; the next one starts afresh."""
        connection, epoch = self._connection, self._epoch
        self._connection = None
        if epoch is not None:
            self._change(None)
            log.warning("leader.lost", epoch=epoch, because=because)
        if connection is not None:
            # A statement that waits for a lock must not take the lead when nobody listens.
            await break_off(connection)

    def _change(self, epoch: int | None) -> None:
        self._epoch = epoch
        self._on_change(epoch)
