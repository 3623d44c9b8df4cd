"""Numbered migrations under a lock: applied once, in order, and never edited after they land."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final

from db.pool import Database
from oncepaid.domain.errors import Permanent

_LOCK: Final = 0x6F6E6365  # "once"; any number that no other application takes


LOCK_TIMEOUT_S: Final = 10


class MigrationMismatch(Permanent):
    """The database was migrated by files that differ from ours, or by a newer version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One `NNNN_name.sql`. `checksum` is the SHA-256 of its text, in hex."""

    number: int
    name: str
    sql: str
    checksum: str


def load_migrations() -> list[Migration]:
    """Return the migrations of this version, in order."""
    folder = resources.files("db") / "migrations"
    found = []
    for entry in folder.iterdir():
        if entry.name.endswith(".sql"):
            sql = entry.read_text(encoding="utf-8")
            found.append(
                Migration(
                    number=int(entry.name.partition("_")[0]),
                    name=entry.name.removesuffix(".sql"),
                    sql=sql,
                    checksum=hashlib.sha256(sql.encode()).hexdigest(),
                )
            )
    return sorted(found, key=lambda migration: migration.number)


async def missing_migrations(database: Database) -> int:
    """Return how many of this version's migrations the database has not had."""
    async with database.connection() as connection:
        if await connection.fetchval("SELECT to_regclass('oncepaid_migrations') IS NULL"):
            return len(load_migrations())
        rows = await connection.fetch("SELECT number FROM oncepaid_migrations")
    return len({m.number for m in load_migrations()} - {row["number"] for row in rows})


async def migrate(database: Database, migrations: Sequence[Migration] | None = None) -> list[str]:
    """Bring the database to this version and return the names of what was applied.

    All of it is one transaction: it is applied whole or not at all. Safe to repeat, also beside a
    running daemon. One of the version before goes on as long as none of this version reads the
    chain; the head of each migration says whether it may afterwards. Raises `MigrationMismatch`
    where the database knows a migration differently.
    """
    ours = load_migrations() if migrations is None else migrations
    async with database.transaction() as connection:
        # A long transaction of the host must not queue everybody behind us.
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        await connection.execute(
            """
            CREATE TABLE IF NOT EXISTS oncepaid_migrations (
                number bigint PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT now())
            """
        )
        rows = await connection.fetch("SELECT number, name, checksum FROM oncepaid_migrations")
        applied = {row["number"]: row for row in rows}
        _check(ours, {number: row["checksum"] for number, row in applied.items()})
        pending = [migration for migration in ours if migration.number not in applied]
        for migration in pending:
            await connection.execute(migration.sql, timeout=600)
            await connection.execute(
                "INSERT INTO oncepaid_migrations (number, name, checksum) VALUES ($1, $2, $3)",
                migration.number,
                migration.name,
                migration.checksum,
            )
    return [migration.name for migration in pending]


def _check(ours: Sequence[Migration], applied: dict[int, str]) -> None:
    by_number = {migration.number: migration for migration in ours}
    newer = sorted(set(applied) - set(by_number))
    if newer:
        raise MigrationMismatch(
            f"the database has migration {newer[0]:04}, which this version of oncepaid does not"
            " know; run the newer version"
        )
    for number, checksum in sorted(applied.items()):
        if by_number[number].checksum != checksum:
            raise MigrationMismatch(
                f"migration {by_number[number].name} was applied with other contents"
            )
