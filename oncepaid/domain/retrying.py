"""How long to wait before the next try."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponential back-off with full jitter: uniform in [0, min(cap, base·2^n)], but ≥ `floor`.

    Full jitter spreads the herd best for the load it causes (AWS Architecture Blog, "Exponential
    Backoff And Jitter").
    """

    base_s: float
    cap_s: float
    floor_s: float = 0.0

    def delay_s(self, failures: int, uniform: Callable[[], float]) -> float:
        """Return the seconds to wait after `failures` failures in a row (1 for the first).

        `uniform` returns a float in [0, 1), as `random.random` does.
        """
        # 2**64 is past every cap; a larger exponent would overflow a float.
        ceiling = min(self.cap_s, self.base_s * 2.0 ** min(max(failures - 1, 0), 64))
        return max(self.floor_s, ceiling * uniform())


LOOP_BACKOFF: Final = Backoff(base_s=0.2, cap_s=5.0, floor_s=0.05)
"""For a stage whose database or node is away: soon again, but never a storm."""
RECONNECT_BACKOFF: Final = Backoff(base_s=0.5, cap_s=10.0, floor_s=0.1)
"""For a websocket that dropped; the reconcile tick covers the time without one."""
GENERATION_BACKOFF: Final = Backoff(base_s=2.0, cap_s=300.0, floor_s=0.5)
"""For a Claude call that may succeed later."""
