"""The option that replays one schedule, and silence: a schedule logs thousands of events."""

from collections.abc import Iterator

import pytest
import structlog


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, metavar="N", help="play the simulation of this seed only")


def silence() -> None:
    """Log nothing below `critical`, which nothing is."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


@pytest.fixture
def silent() -> Iterator[None]:
    before = structlog.get_config()
    silence()
    yield
    structlog.configure(**before)
