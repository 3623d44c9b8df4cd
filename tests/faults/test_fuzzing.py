"""Bytes of strangers, by the million: no exception, no work without a bound."""

import asyncio
import re
import sys

import pytest

from tests.fuzzing.targets import TARGETS

RUNS = {
    "calldata": 150_000,
    "references": 100_000,
    "suffixes": 1_000_000,
    "answers": 200_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("target", sorted(TARGETS))
async def test_fuzzing_finds_nothing(target: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.fuzzing", target, "--runs", str(RUNS[target])),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    text = output.decode(errors="replace")
    assert process.returncode == 0, text[-4000:]
    done = re.search(r"stat::number_of_executed_units:\s*(\d+)", text)
    assert done is not None, text[-1000:]
    assert int(done[1]) >= RUNS[target]
