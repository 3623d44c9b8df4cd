"""The daemon dies before and after every await that matters; nothing is lost, nothing doubled."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from devchain.stack import start_stack
from tests.conftest import new_database
from tests.fakes.claude_server import start_claude_server
from tests.faults.cast import Cast
from tests.faults.crashing_daemon import store_methods
from tests.faults.forking import Zygote, zygote
from tests.faults.scenario import play, play_first_start

__all__ = ["zygote"]

WORKERS = 3
OFTEN = 30
"""How often a round is passed depends on the machine; a third of so many is always reached."""
NEVER_REACHED: dict[str, str] = {}
"""Store methods that the story does not reach, and why."""
SLICE = (
    "CursorStore.start_at:commit:after",
    "RangeStore.store_range:after",
    "RangeStore.rewind:commit:before",
    "RangeStore.repair:commit:after",
    "PaymentStore.credit:commit:before",
    "ReversalStore.reverse_orphaned:commit:after",
    "claude:after",
    "JobStore.finish_answered:commit:before",
)
Play = Callable[[Cast], Coroutine[None, None, None]]


@dataclass(frozen=True, kw_only=True)
class Crash:
    """Where one daemon dies."""

    point: str
    hit: int = 1
    by_signal: bool = False


class Theatre:
    """Where stories are told, each with a database of its own, at most `WORKERS` at a time."""

    def __init__(self, zygote: Zygote, server_url: str, template: str, folder: Path) -> None:
        self._zygote = zygote
        self._server_url = server_url
        self._template = template
        self._folder = folder

    @asynccontextmanager
    async def stage(self, number: int) -> AsyncIterator[Callable[[str], Cast]]:
        """A chain and a Claude; call it with a database's URL."""
        folder = self._folder / f"stage-{number}"
        folder.mkdir(exist_ok=True)
        async with AsyncExitStack() as exits:
            stack = await exits.enter_async_context(start_stack())
            claude = await exits.enter_async_context(start_claude_server())
            yield lambda url: Cast(self._zygote, stack, claude, url, folder)

    async def record(self, play: Play, *, template: str | None) -> Counter[str]:
        """Tell the story without a crash; returns how often each point was passed."""
        record = self._folder / f"points-{play.__name__}"
        async with self.stage(0) as cast_for, new_database(self._server_url, template) as url:
            cast = cast_for(url)
            async with cast.on_stage(cast.request(record=str(record))):
                await play(cast)
        return Counter(record.read_text().splitlines())

    async def crash_at(self, play: Play, crashes: Sequence[Crash], *, template: str | None) -> None:
        """Tell the story once for each crash. Raises AssertionError with all that failed."""
        waiting = list(reversed(crashes))
        failed: list[str] = []

        async def work(number: int) -> None:
            async with self.stage(number) as cast_for:
                while waiting and len(failed) < 10:
                    crash = waiting.pop()
                    started = time.monotonic()
                    async with new_database(self._server_url, template) as url:
                        if problem := await _problem_of(cast_for(url), play, crash):
                            failed.append(f"{crash}: {problem}")
                    print(f"{time.monotonic() - started:5.1f} s, {len(waiting)} to go: {crash}")

        async with asyncio.TaskGroup() as group:
            for number in range(min(WORKERS, len(crashes))):
                group.create_task(work(number))
        assert not failed, "\n\n".join(failed)


async def _problem_of(cast: Cast, play: Play, crash: Crash) -> str | None:
    request = cast.request(at=crash.point, hit=crash.hit, by_signal=crash.by_signal)
    try:
        async with cast.on_stage(request):
            await play(cast)
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"
    return None if cast.crashed else "was not reached"


def _crashes_at(points: Counter[str]) -> list[Crash]:
    """Return a crash for each point: every other pair of them dies in mid-story.

    What every round passes does nothing yet in the first of them.
    """
    return [
        Crash(
            point=point,
            hit=points[point] // 3 if number % 4 > 1 and points[point] >= OFTEN else 1,
            by_signal=number % 2 == 1,
        )
        for number, point in enumerate(sorted(points))
    ]


@pytest.fixture
def theatre(zygote: Zygote, postgres_url: str, template: str, tmp_path: Path) -> Theatre:
    """Where stories are told."""
    return Theatre(zygote, postgres_url, template, tmp_path)


@pytest.mark.fault("F1")
async def test_the_story_passes_every_store_method(theatre: Theatre, template: str) -> None:
    """A method that nobody crashes in proves nothing: a new one must come into the story."""
    points = await theatre.record(play, template=template)
    names = {f"{cls.__name__}.{name}" for cls, name in store_methods()}
    assert len(names) > 20
    missed = {name for name in names if f"{name}:after" not in points}
    assert missed == set(NEVER_REACHED)
    assert {"claude:after", "node.eth_getLogs:after"} <= set(points)


@pytest.mark.fault("F1")
async def test_some_crash_points(theatre: Theatre, template: str) -> None:
    """A slice of all: around the transactions that move money."""
    crashes = [Crash(point=point, by_signal=n % 2 == 1) for n, point in enumerate(SLICE)]
    await theatre.crash_at(play, crashes, template=template)


@pytest.mark.slow
@pytest.mark.fault("F1")
async def test_every_crash_point(theatre: Theatre, template: str) -> None:
    """All points that one telling of the story passes."""
    crashes = _crashes_at(await theatre.record(play, template=template))
    print(f"{len(crashes)} crashes")
    await theatre.crash_at(play, crashes, template=template)


@pytest.mark.slow
@pytest.mark.fault("F1")
async def test_every_crash_point_of_migrating(theatre: Theatre) -> None:
    """Between any two statements of the migrations, on an empty database."""
    points = await theatre.record(play_first_start, template=None)
    of_migrating = Counter({p: 1 for p in points if p.startswith(("migrate", "CatalogueStore"))})
    assert len(of_migrating) > 10
    await theatre.crash_at(play_first_start, _crashes_at(of_migrating), template=None)
