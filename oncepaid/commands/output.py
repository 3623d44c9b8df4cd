"""What commands print: tables for people, JSON for scripts."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from oncepaid.domain.money import format_usdc

WIDTH_OF_FILES = 250


def print_json(value: Any) -> None:
    """Print one JSON document; bytes as 0x hex, decimals as strings, times in ISO 8601."""
    typer.echo(json.dumps(value, default=_plain, indent=2, ensure_ascii=False))


def print_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], title: str) -> None:
    """Print chosen columns of rows as a table."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(shown(column, row[column]) for column in columns))
    _console().print(table)


def print_fields(fields: Mapping[str, Any], title: str) -> None:
    """Print one thing as a table of its fields."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(name.replace("_", " "), shown(name, value))
    _console().print(table)


def _console() -> Console:
    """A file or a pipe has no width of its own: nothing is folded there."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH_OF_FILES)


def shown(column: str, value: Any) -> str:
    """Return a value as a person reads it; amounts in units become USDC."""
    match value:
        case None:
            return "-"
        case Decimal() | int() if column.endswith("amount_units"):
            return f"{format_usdc(int(value))} USDC"
        case datetime():
            return value.strftime("%Y-%m-%d %H:%M:%S")
        case dict() | list():
            return json.dumps(value, default=_plain, indent=2, ensure_ascii=False)
        case str():
            return value
        case _:
            return str(_plain(value))


def _plain(value: Any) -> Any:
    match value:
        case bytes():
            return "0x" + value.hex()
        case datetime():
            return value.isoformat()
        case Decimal():
            # PostgreSQL's numeric(78, 0) may come as 5.0E+5.
            exponent = value.as_tuple().exponent
            is_count = isinstance(exponent, int) and exponent >= 0
            return int(value) if is_count else format(value, "f")
        case _:
            return str(value)
