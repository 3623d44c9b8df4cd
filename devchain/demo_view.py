"""What the demo prints. Data goes out as plain text: brackets in it are never markup."""

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.status import Status
from rich.table import Table
from rich.text import Text

from devchain.demo_facts import Moment
from oncepaid.domain.money import format_usdc

_MAX_WIDTH = 100
_TITLES = ("title", "name")
_UNLABELLED = ("body", "text", "description")


def usdc(units: int) -> str:
    """Return `500000` as `"0.50"`, and an amount with parts of a cent in full."""
    return format_usdc(units).removesuffix("0000")


class View:
    """The demo's output, for a terminal or a file."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, emoji=False, markup=False)
        self._console.width = min(self._console.width, _MAX_WIDTH)

    def waiting(self, text: str) -> Status:
        """Return a context in which a terminal shows that something is under way."""
        return self._console.status(Text(text, style="dim"))

    def title(self, text: str, below: str) -> None:
        """Begin the output."""
        self._console.print(Text(text, style="bold"))
        self._console.print(Text(f"{below}\n"))

    def heading(self, text: str) -> None:
        """Begin a part."""
        self._console.print()
        self._console.print(Rule(Text(text, style="bold"), align="left", style="dim"))

    def say(self, text: str, style: str = "") -> None:
        """Print a paragraph."""
        self._console.print(Text(text, style=style))

    def lines(self, lines: Iterable[str], style: str = "") -> None:
        """Print lines that are to be copied or compared: never folded."""
        for line in lines:
            self._console.print(Text(f"  {line}", style=style), soft_wrap=True)

    def facts(self, facts: Mapping[str, str]) -> None:
        """Print names and what they stand for."""
        table = _grid()
        for name, text in facts.items():
            table.add_row(Text(name, style="dim"), Text(text))
        self._console.print(_indented(table))

    def timeline(self, moments: Sequence[Moment]) -> None:
        """Print what happened when."""
        table = _grid()
        table.columns[0].justify = "right"
        for moment in moments:
            table.add_row(Text(f"{moment.after_ms:,.0f} ms", style="cyan"), Text(moment.text))
        self._console.print()
        self._console.print(_indented(table))
        self._console.print()

    def result(self, title: str, output: Any) -> None:
        """Print a job's result for people to read."""
        body = Group(*_spaced(_blocks(output)))
        self._console.print(Panel(body, title=Text(title), title_align="left", padding=(1, 2)))

    def failed(self, problems: Sequence[str], log: Sequence[str]) -> None:
        """Print what went wrong, and the end of the daemon's log."""
        self.heading("The demo failed")
        for problem in problems:
            self.say(problem, style="red")
        if log:
            self.say(f"The last {len(log)} lines of the daemon's log:")
            self.lines(log, style="dim")


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    return table


def _indented(inside: RenderableType) -> Padding:
    return Padding(inside, (0, 0, 0, 2), expand=False)


def _spaced(blocks: Sequence[RenderableType]) -> list[RenderableType]:
    """Put an empty line between blocks."""
    return [part for block in blocks for part in (Text(), block)][1:]


def _blocks(value: Any) -> list[RenderableType]:
    """Return a JSON value as paragraphs, bullets and numbered items."""
    if not isinstance(value, dict):
        return [_of(value)]
    blocks: list[RenderableType] = []
    # PostgreSQL's jsonb forgets the order of keys.
    for key, inside in sorted(value.items(), key=lambda pair: pair[0] not in _TITLES):
        if key in _TITLES and isinstance(inside, str):
            blocks.append(Text(inside, style="bold"))
        elif len(value) == 1 or key in _UNLABELLED:
            blocks.append(_of(inside))
        else:
            blocks.append(Group(Text(_label(key), style="bold cyan"), _of(inside)))
    return blocks


def _of(value: Any) -> RenderableType:
    match value:
        case [dict(), *_]:
            return Group(*_spaced([_item(number, one) for number, one in enumerate(value, 1)]))
        case list():
            return _bullets(value)
        case dict():
            return _indented(Group(*_blocks(value)))
        case _:
            return Text(str(value))


def _item(number: int, item: Any) -> RenderableType:
    """Return a numbered item, its title or first field as its name."""
    fields = item.items() if isinstance(item, dict) else [("", item)]
    parts: list[RenderableType] = []
    for key, value in sorted(fields, key=lambda pair: pair[0] not in _TITLES):
        if not isinstance(value, str):
            parts += [Text(f"{_label(key)}:"), _indented(_of(value))]
        elif not parts:
            parts.append(Text(value, style="bold"))
        else:
            parts.append(Text(value if key in _UNLABELLED else f"{_label(key)}: {value}"))
    table = Table.grid(padding=(0, 1))
    table.add_row(Text(f"{number}."), Group(*parts))
    return table


def _bullets(values: Sequence[Any]) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    for value in values:
        table.add_row(Text("•"), _of(value))
    return table


def _label(key: str) -> str:
    return key.replace("_", " ").capitalize()


def command(*words: str) -> str:
    """Return a command line that works in the directory of the demo, without its environment."""
    program = Path(sys.executable).with_name("oncepaid")
    if not program.exists():
        return shlex.join([python(), "-m", "oncepaid", *words])
    return shlex.join([_short(program), *words])


def python() -> str:
    """Return the path of this Python as one would type it here."""
    return _short(Path(sys.executable))


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
