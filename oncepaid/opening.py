"""The database of a daemon: opened however long it takes, migrated, told of what is sold."""

import asyncio
from contextlib import AsyncExitStack

import structlog

from db.embedded import PREFIX, EmbeddedPostgres
from db.migrate import migrate
from db.pool import Database
from oncepaid.loops import Driver
from oncepaid.offers import publish_offers
from oncepaid.settings import Settings
from processors.services import Service

log = structlog.get_logger()


async def open_database(stack: AsyncExitStack, settings: Settings, driver: Driver) -> Database:
    """Open the pool, waiting for a server that is away; closed with the stack."""
    url = settings.database.url.get_secret_value()
    if url.startswith(PREFIX):
        embedded = EmbeddedPostgres(url)
        stack.push_async_callback(asyncio.to_thread, embedded.close)
        url = await driver.until_done("database", lambda: asyncio.to_thread(embedded.start))
    database = await driver.until_done(
        "database", lambda: Database.connect(url, size=settings.database.pool_size)
    )
    stack.push_async_callback(database.close)
    return database


async def prepare_database(
    database: Database, settings: Settings, services: dict[str, Service]
) -> None:
    """Migrate, and tell the database of what is sold. Raises `Retryable` errors."""
    for name in await migrate(database):
        log.info("database.migrated", migration=name)
    await publish_offers(database, settings, services)
