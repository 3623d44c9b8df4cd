"""What the daemon tells the database of its settings: payment terms and the skills it sells."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

import asyncpg

from db.pool import Database
from oncepaid.domain.chain import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A configured service as a skill. `price_usdc` None leaves the price to the host."""

    service_key: str
    name: str
    description: str | None
    price_usdc: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where money is to go: for what host applications tell their payers.

    `token_name` is the one of its EIP-712 domain. `recipient` is for jobs that name none; None
    where the settings name none either.
    """

    chain_id: int
    token: Address
    token_name: str
    recipient: Address | None


_TERMS = """
UPDATE payment_terms
   SET job_lifetime = $1, amount_fallback = $2, chain_id = $3, token = $4, token_name = $5,
       recipient = $6
"""

_PUBLISH = """
INSERT INTO skills (name, description, price_usdc, category, is_active, service_key)
SELECT $2, $3, $4, 'oncepaid', true, $1
 WHERE NOT EXISTS (
       SELECT FROM skills
        WHERE oncepaid_service_key(service_key, name) = $1)
"""

_REPRICE = """
UPDATE skills SET price_usdc = $2
 WHERE service_key = $1 AND category = 'oncepaid' AND agent_id IS NULL
   AND price_usdc IS DISTINCT FROM $2
"""


class CatalogueStore:
    """`payment_terms` and our own rows of `skills` (category `oncepaid`, no agent)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def publish(
        self,
        *,
        job_lifetime: timedelta,
        amount_fallback: bool,
        destination: Destination,
        offers: Sequence[Offer],
    ) -> list[str]:
        """Write the terms that new jobs get, and a skill for every service that has none.

        A skill that a hub made is never changed; of ours, the price follows the settings. Returns
        the keys of services for which the hub's own constraints allow no skill of ours.
        """
        refused = []
        async with self._database.transaction() as connection:
            # Two daemons that start together must not both insert.
            await connection.execute("LOCK TABLE payment_terms IN SHARE ROW EXCLUSIVE MODE")
            await connection.execute(
                _TERMS,
                job_lifetime,
                amount_fallback,
                destination.chain_id,
                destination.token,
                destination.token_name,
                destination.recipient,
            )
            for offer in offers:
                key, price = offer.service_key, offer.price_usdc
                try:
                    async with connection.transaction():
                        await connection.execute(
                            _PUBLISH, key, offer.name, offer.description, price
                        )
                except asyncpg.IntegrityConstraintViolationError:
                    refused.append(key)
                    continue
                await connection.execute(_REPRICE, key, price)
        return refused
