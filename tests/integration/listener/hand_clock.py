"""A clock that tests move by hand, and a client that goes by it."""

from prometheus_client import CollectorRegistry

from listener.rpc import HttpRpc
from oncepaid.metrics import Metrics
from tests.fakes.blocks import CHAIN_ID, TOKEN
from tests.fakes.node import FakeNode


class HandClock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.now += seconds


def client_of(*nodes: FakeNode, clock: HandClock, metrics: Metrics | None = None) -> HttpRpc:
    """Return a client of these nodes, the preferred one first."""
    return HttpRpc(
        [node.url for node in nodes],
        chain_id=CHAIN_ID,
        token=TOKEN,
        metrics=metrics or Metrics(CollectorRegistry()),
        clock=clock,
    )
