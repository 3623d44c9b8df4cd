"""Creating jobs, as `oncepaid job create` does; a host application may use a plain INSERT."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import asyncpg

from db.pool import Database
from oncepaid.domain.chain import Address
from oncepaid.domain.errors import NoFreeAmount
from oncepaid.domain.memo import Memo

_NO_FREE_AMOUNT: Final = "OP001"
"""SQLSTATE that `oncepaid_fill_job_terms` raises."""

_CREATE: Final = """
INSERT INTO jobs (skill_id, job_uuid, input_data, price_usdc, pay_to)
SELECT id, gen_random_uuid(),
       (jsonb_populate_record(
           NULL::jobs, jsonb_build_object('input_data', $2::jsonb))).input_data,
       $3, $4
  FROM skills
 WHERE oncepaid_service_key(service_key, name) = $1
   AND coalesce(is_active, true) AND coalesce($3::numeric, price_usdc) IS NOT NULL
 ORDER BY id LIMIT 1
RETURNING id, job_uuid::text AS job_uuid, price_usdc, memo, unique_amount_units,
          nullif(expires_at::timestamptz, 'infinity') AS expires_at
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A new job, as its payer must know it. `expires_at` is None where it never expires."""

    id: int
    uuid: str
    price_usdc: Decimal | None
    memo: Memo
    unique_amount_units: int | None
    expires_at: datetime | None


class OrderStore:
    """The customer's side of `jobs`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        *,
        service_key: str,
        input_data: dict[str, Any],
        price_usdc: Decimal | None,
        pay_to: Address | None,
    ) -> Order | None:
        """Insert a pending job; None where no active skill with a price has that key.

        Raises `NoFreeAmount` where the database has no unique amount for it.
        """
        try:
            async with self._database.connection() as connection:
                row = await connection.fetchrow(
                    _CREATE, service_key, input_data, price_usdc, pay_to
                )
        except asyncpg.PostgresError as exc:
            if exc.sqlstate == _NO_FREE_AMOUNT:
                raise NoFreeAmount(_in_one_line(exc)) from exc
            raise
        if row is None:
            return None
        return Order(
            id=row["id"],
            uuid=row["job_uuid"],
            price_usdc=row["price_usdc"],
            memo=Memo(row["memo"]),
            unique_amount_units=row["unique_amount_units"],
            expires_at=row["expires_at"],
        )


def _in_one_line(error: asyncpg.PostgresError) -> str:
    """What was raised, why, and what to do about it."""
    more = [part for part in (error.detail, error.hint) if part]
    return " ".join([f"{error.args[0]}.", *more]) if more else str(error)
