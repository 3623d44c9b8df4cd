"""The daemon as its own process, for tests and benchmarks: its log lines are the signals."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import aiohttp

from devchain.processes import LOOPBACK, DevToolError
from devchain.stack import Stack

Event = dict[str, Any]
START_TIMEOUT_S = 30.0
_LINE_LIMIT_BYTES = 1 << 22


def config_of(stack: Stack, database_url: str, **overrides: Mapping[str, object]) -> str:
    """Return a settings file for a stack; `overrides` are sections whose keys replace ours."""
    sections: dict[str, dict[str, object]] = {
        "chain": {
            "recipients": [stack.merchant],
            "http_urls": [stack.anvil.http_url],
            "ws_urls": [stack.anvil.ws_url],
        },
        "claude": {
            "api_key": "test-key",
            "base_url": stack.claude.base_url if stack.claude else "http://127.0.0.1:9",
        },
        "database": {"url": database_url},
        "http": {"listen": f"{LOOPBACK}:0"},
    }
    for name, keys in overrides.items():
        sections.setdefault(name, {}).update(keys)
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        for name, keys in sections.items()
    )


class Process(Protocol):
    """What is asked of a daemon's process, however it was started."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    @property
    def stdout(self) -> asyncio.StreamReader | None: ...
    def send_signal(self, signal: int) -> None: ...
    def kill(self) -> None: ...
    async def wait(self) -> int: ...


@dataclass(kw_only=True)
class Daemon:
    """A running `oncepaid run`. `events` are its parsed log lines, in order.

    `hear` is called after each of them.
    """

    process: Process
    config: Path
    hear: Callable[[], None] = lambda: None
    events: list[Event] = field(default_factory=list)
    other_output: list[str] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def wait_for(
        self, name: str, *, count: int = 1, timeout_s: float = 30.0, **fields: object
    ) -> Event:
        """Return the `count`-th event of that name with these fields, waiting for it."""
        return await self.wait_until(
            lambda event: (
                event.get("event") == name
                and all(event.get(key) == value for key, value in fields.items())
            ),
            what=f"{name} {fields or ''} x{count}",
            count=count,
            timeout_s=timeout_s,
        )

    async def wait_until(
        self, fits: Callable[[Event], bool], *, what: str, count: int = 1, timeout_s: float = 30.0
    ) -> Event:
        """Return the `count`-th event that fits; raises DevToolError with the log's end if late."""

        def found() -> list[Event]:
            return [event for event in self.events if fits(event)]

        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(
                    lambda: len(found()) >= count or self.process.returncode is not None
                )
        except TimeoutError:
            pass
        if len(found()) < count:
            tail = "\n".join(map(str, [*self.events[-15:], *self.other_output[-15:]]))
            raise DevToolError(f"no {what} (exit {self.process.returncode}):\n{tail}")
        return found()[count - 1]

    @property
    def http_port(self) -> int:
        """The port of `/metrics`, known once the daemon said `daemon.starting`."""
        return int(next(e["http_port"] for e in self.events if e["event"] == "daemon.starting"))

    async def get(self, path: str) -> tuple[int, str]:
        """Return status and body of one of its HTTP endpoints."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{LOOPBACK}:{self.http_port}{path}") as response,
        ):
            return response.status, await response.text()

    async def metrics(self) -> dict[str, float]:
        """Return every sample of `/metrics`, keyed as it is printed there."""
        _, text = await self.get("/metrics")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def send(self, number: signal.Signals) -> None:
        """Send the daemon a signal."""
        self.process.send_signal(number)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        if self.process.returncode is None:
            self.send(number)
        return await self.process.wait()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            async with self._changed:
                if isinstance(event, dict):
                    self.events.append(event)
                else:
                    self.other_output.append(line.decode(errors="replace").rstrip())
                self._changed.notify_all()
            self.hear()
        await self.process.wait()
        async with self._changed:
            self._changed.notify_all()

    @classmethod
    async def spawn(cls, config: Path, *arguments: str, env: Mapping[str, str]) -> Self:
        """Start the process without waiting for anything."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("ONCEPAID", "ANTHROPIC"))}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "oncepaid", "run", "--config", str(config), *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**clean, **env},
            limit=_LINE_LIMIT_BYTES,
        )
        return cls(process=process, config=config)


@asynccontextmanager
async def start_daemon(
    folder: Path,
    config: str,
    *arguments: str,
    wait_for: str | None = "daemon.ready",
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Daemon]:
    """Run the daemon with a settings file in `folder` until the block ends, then kill it.

    Enters the block once the event `wait_for` was logged; at once where it is None.
    """
    path = folder / "oncepaid.toml"
    path.write_text(config)
    async with follow(await Daemon.spawn(path, *arguments, env=env or {})) as daemon:
        if wait_for is not None:
            await daemon.wait_for(wait_for, timeout_s=START_TIMEOUT_S)
        yield daemon


@asynccontextmanager
async def follow(daemon: Daemon) -> AsyncIterator[Daemon]:
    """Read a started daemon's log lines until the block ends, then kill it."""
    reader = asyncio.create_task(daemon._read(), name="devchain.daemon")
    try:
        yield daemon
    finally:
        if daemon.process.returncode is None:
            daemon.process.kill()
        await daemon.process.wait()
        await reader
