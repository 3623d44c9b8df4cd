"""For the pure rules: many examples, no deadline since machines may be busy, and Python's stack."""

import sys

import pytest
from hypothesis import settings

settings.register_profile("unit", deadline=None, max_examples=100)
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def _stack_of_the_daemon() -> None:
    # web3 brings py_ecc, which raises the limit to 100,000 for the whole process: there, JSON that
    # is nested too deep ends in a segmentation fault. The daemon imports neither.
    sys.setrecursionlimit(1000)
