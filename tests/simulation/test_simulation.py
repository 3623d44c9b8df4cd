"""Random schedules of everything, against the reference ledger. A failing seed replays:

pytest tests/simulation/test_simulation.py --seed 8071
"""

import gc
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Final

import pytest

from tests.scoring import Score
from tests.simulation.checks import play
from tests.simulation.conftest import silence

ROWS: Final = ("F12", "F13", "F15", "F16", "F17")
A_SLICE: Final = 400
ALL: Final = 100_000
AT_ONCE: Final = 500
SHOWN: Final = 5


def seeds_of(config: pytest.Config, many: range) -> range:
    """Return the seeds to play: those asked for, or the one of the command line."""
    seed: int | None = config.getoption("seed", None)
    return many if seed is None else range(seed, seed + 1)


def play_all(seeds: range) -> list[str]:
    """Play schedules and return the stories of those that went wrong."""
    with _no_collector():
        return [story for story in map(play, seeds) if story is not None]


@contextmanager
def _no_collector() -> Iterator[None]:
    """A schedule's blocks know each other by thousands: looking for cycles takes a third of it."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()


@pytest.mark.usefixtures("silent")
@pytest.mark.fault(*ROWS)
def test_schedules(score: Score, pytestconfig: pytest.Config) -> None:
    """After faults end, the ledger is what the reference makes of the final chain alone."""
    seeds = seeds_of(pytestconfig, range(A_SLICE))
    score(len(seeds))
    stories = play_all(seeds)
    assert not stories, "\n".join(stories[:SHOWN])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.fault(*ROWS)
def test_many_schedules(score: Score, pytestconfig: pytest.Config) -> None:
    """The same on all cores, some minutes long."""
    seeds = seeds_of(pytestconfig, range(A_SLICE, A_SLICE + ALL))
    score(len(seeds))
    parts = [seeds[at : at + AT_ONCE] for at in range(0, len(seeds), AT_ONCE)]
    # Not forked: threads of other tests would be missing in a copy of this process.
    context = multiprocessing.get_context("spawn")
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=silence) as pool:
        stories = [story for part in pool.map(play_all, parts) for story in part]
    assert not stories, f"{len(stories)} seeds failed\n" + "\n".join(stories[:SHOWN])
