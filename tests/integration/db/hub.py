"""Databases of a host application as they stood before oncepaid, in several shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg

OLD_STATUSES: Final = (
    "pending", "paid", "in_progress", "completed", "delivered", "disputed", "refunded",
)  # fmt: skip
SKILLS: Final = (("Creative Concept", "12.50"), ("Code-Review 2.0", "0.25"), ("Ça & là", "3"))
SERVICE_KEYS: Final = ("creativeconcept", "codereview20", "al")

_LEGAL: Final = "status IN ({})".format(", ".join(f"'{status}'" for status in OLD_STATUSES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a hub declared its tables. The defaults are the plainest ones."""

    id_type: str = "bigserial"
    status_type: str = "text"
    checks: Sequence[str] = (f"CONSTRAINT jobs_status_check CHECK ({_LEGAL})",)
    time_type: str = "timestamptz"
    price_type: str = "numeric(20,6)"
    input_type: str = "jsonb"
    agent_type: str = "bigint"
    more_statuses: Sequence[str] = ()
    more_job_columns: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Type and value by name; every second row has null instead."""
    after: str = ""
    """SQL of the hub's own that runs behind its tables and rows."""


_TOUCH: Final = """
ALTER TABLE {0} ADD COLUMN updated_at timestamptz NOT NULL DEFAULT '2024-01-01 UTC';
CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON {0} FOR EACH ROW EXECUTE FUNCTION touch();
"""
_TOUCHING: Final = """
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN NEW.updated_at := now(); RETURN NEW; END $$;
""" + _TOUCH.format("jobs") + _TOUCH.format("skills")  # fmt: skip

SHAPES: Final[Mapping[str, Shape]] = {
    "plain": Shape(),
    "serial ids": Shape(id_type="serial", agent_type="integer"),
    "varchar status, unnamed check": Shape(
        status_type="varchar(20)", checks=(f"CHECK ({_LEGAL})",)
    ),
    "check as part of the column": Shape(status_type=f"varchar(20) CHECK ({_LEGAL})", checks=()),
    "two checks": Shape(
        checks=(f"CHECK ({_LEGAL})", "CONSTRAINT short CHECK (length(status) <= 20)")
    ),
    "no check": Shape(checks=()),
    "a status of its own": Shape(
        checks=(f"CONSTRAINT legal CHECK ({_LEGAL} OR status = 'archived')",),
        more_statuses=("archived",),
    ),
    "naive times": Shape(time_type="timestamp"),
    "narrow price": Shape(price_type="numeric(10,2)"),
    "unbounded price": Shape(price_type="numeric"),
    "finer price": Shape(price_type="numeric(24,8)"),
    "json": Shape(input_type="json"),
    "json as text": Shape(input_type="text"),
    "agents": Shape(agent_type="bigint NOT NULL REFERENCES agents (id)"),
    "more columns": Shape(
        more_job_columns={
            "buyer": ("text", "'somebody'"),
            "rating": ("integer CHECK (rating BETWEEN 1 AND 5)", "3"),
            "tags": ("text[]", "'{a,b}'"),
        }
    ),
    "times of its own": Shape(
        time_type="timestamp",
        more_job_columns={
            "paid_at": ("timestamp", "'2024-05-01 10:00'"),
            "started_at": ("timestamp", "'2024-05-01 11:00'"),
            "expires_at": ("timestamp", "'2024-05-02 10:00'"),
        },
    ),
    "check that old rows break": Shape(
        checks=(),
        after=f"""
        UPDATE jobs SET status = 'cancelled' WHERE id = 1;
        ALTER TABLE jobs ADD CONSTRAINT legal CHECK ({_LEGAL}) NOT VALID;
        """,
    ),
    "nullable expiry of its own": Shape(more_job_columns={"expires_at": ("timestamptz", "NULL")}),
    "view": Shape(
        price_type="numeric(10,2)",
        after="CREATE VIEW open_jobs AS SELECT *, price_usdc * 2 AS twice FROM jobs",
    ),
    "view of skills": Shape(
        price_type="numeric(10,2)", after="CREATE VIEW catalogue AS SELECT * FROM skills"
    ),
    "materialized view": Shape(
        price_type="numeric(10,2)",
        after="CREATE MATERIALIZED VIEW turnover AS SELECT sum(price_usdc) FROM jobs",
    ),
    "triggers that note each change": Shape(after=_TOUCHING),
    "deferred keys": Shape(
        after="""
        CREATE TABLE reviews (job_id bigint REFERENCES jobs (id) DEFERRABLE INITIALLY DEFERRED);
        ALTER TABLE jobs ADD FOREIGN KEY (skill_id) REFERENCES skills (id)
            DEFERRABLE INITIALLY DEFERRED;
        INSERT INTO reviews SELECT id FROM jobs;
        """
    ),
}


async def build(connection: asyncpg.Connection, shape: Shape) -> None:
    """Create the hub's tables with two rows of every old status; some hold nulls."""
    id_type, time = shape.id_type, shape.time_type
    reference = id_type.replace("serial", "int")
    more = [f"{name} {kind}" for name, (kind, _) in shape.more_job_columns.items()]
    jobs = ",\n".join(
        [
            f"id {id_type} PRIMARY KEY",
            "job_uuid uuid UNIQUE NOT NULL DEFAULT gen_random_uuid()",
            f"skill_id {reference} NOT NULL REFERENCES skills (id)",
            f"input_data {shape.input_type} NOT NULL",
            f"output_data {shape.input_type}",
            f"status {shape.status_type} NOT NULL DEFAULT 'pending'",
            f"price_usdc {shape.price_type}",
            f"created_at {time} DEFAULT now()",
            f"completed_at {time}",
            *more,
            *shape.checks,
        ]
    )
    await connection.execute(
        f"""
        CREATE TABLE agents (id bigserial PRIMARY KEY, name text);
        INSERT INTO agents (name) VALUES ('Ada');
        CREATE TABLE skills (
            id {id_type} PRIMARY KEY, agent_id {shape.agent_type}, name text NOT NULL,
            description text, category text, price_usdc {shape.price_type}, estimated_time text,
            is_active boolean DEFAULT true, created_at {time} DEFAULT now());
        CREATE TABLE jobs ({jobs});
        """
    )
    await _fill(connection, shape)
    if shape.after:
        await connection.execute(shape.after)


async def _fill(connection: asyncpg.Connection, shape: Shape) -> None:
    for name, price in SKILLS:
        await connection.execute(
            f"INSERT INTO skills (agent_id, name, price_usdc) VALUES (1, $1, '{price}')", name
        )
    for status in (*OLD_STATUSES, *shape.more_statuses):
        await connection.execute(
            f"""
            INSERT INTO jobs (skill_id, input_data, output_data, status, price_usdc, created_at)
            VALUES (1, '{{"prompt":  "old"}}', '{{"title": "old"}}', '{status}', 12.25,
                    '2024-02-29 12:34:56.789'),
                   (2, '{{"b": 1, "a": "ü"}}', NULL, '{status}', NULL, '2024-03-01')
            """
        )
    for name, (_, value) in shape.more_job_columns.items():
        await connection.execute(f"UPDATE jobs SET {name} = {value} WHERE id % 2 = 1")


async def contents(
    connection: asyncpg.Connection, columns: Mapping[str, Sequence[str]]
) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of tables, of these columns only, by id; JSON as the text it is."""
    return {
        table: [
            tuple(row)
            for row in await connection.fetch(f"SELECT {', '.join(names)} FROM {table} ORDER BY id")
        ]
        for table, names in columns.items()
    }


async def columns_of(connection: asyncpg.Connection, table: str) -> list[str]:
    rows = await connection.fetch(
        """
        SELECT attname FROM pg_attribute
         WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
        """,
        table,
    )
    return [row["attname"] for row in rows]
