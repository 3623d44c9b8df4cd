"""What an operator sees of a daemon in trouble: `/readyz`, and how long a stop takes."""

import json
import signal
import time
from typing import Final

from devchain.daemon import Daemon
from tests.faults.at_rest import until

STOP_LIMIT_S: Final = 15.0
NOTICED_S: Final = 15.0


async def until_reason(daemon: Daemon, part: str, timeout_s: float = NOTICED_S) -> None:
    """Wait until `/readyz` names a part as the reason why the daemon is not ready."""

    async def is_named() -> bool:
        status, text = await daemon.get("/readyz")
        return status == 503 and part in json.loads(text)["reasons"]

    await until(is_named, f"/readyz names the {part}", timeout_s)


async def until_ready(daemon: Daemon) -> None:
    """Wait until `/readyz` has nothing to complain of."""

    async def is_ready() -> bool:
        return (await daemon.get("/readyz"))[0] == 200

    await until(is_ready, "the daemon is ready again")


async def stops_in_time(daemon: Daemon) -> None:
    """Send SIGTERM and check that all is over soon."""
    began = time.monotonic()
    assert await daemon.stop(signal.SIGTERM) == 0
    assert time.monotonic() - began < STOP_LIMIT_S
