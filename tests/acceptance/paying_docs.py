"""The examples of docs/paying.md: how they are found, and how they are run in Node."""

import asyncio
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from devchain.processes import node_file

ROOT: Final = Path(__file__).parents[2]
DOCUMENT: Final = ROOT / "docs" / "paying.md"
RUNNER: Final = ROOT / "devchain" / "paying" / "run.mjs"
TIMEOUT_S: Final = 60.0
_BLOCK = re.compile(r"^(?:<!-- run: (\S+) -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A block of code; `name` is None where it has no marker above it."""

    name: str | None
    language: str
    code: str


def examples(language: str) -> list[Example]:
    """Return the document's blocks of a language, in their order."""
    found = _BLOCK.findall(DOCUMENT.read_text(encoding="utf-8"))
    return [
        Example(name=name or None, language=kind, code=code)
        for name, kind, code in found
        if kind == language
    ]


async def run_in_page(
    work: Sequence[tuple[Example, Mapping[str, Any]]], environment: Mapping[str, str]
) -> None:
    """Run examples as they stand, each with the terms of a job; raises with what they printed."""
    node_file("viem/package.json")
    process = await asyncio.create_subprocess_exec(
        # Packages as a bundler for browsers resolves them.
        *("node", "--conditions=browser", str(RUNNER)),
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    given = [
        {"name": example.name, "code": example.code, "terms": terms} for example, terms in work
    ]
    try:
        async with asyncio.timeout(TIMEOUT_S):
            output, _ = await process.communicate(json.dumps(given).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise AssertionError(f"exit {process.returncode}:\n{output.decode(errors='replace')}")
