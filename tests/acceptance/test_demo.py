"""`oncepaid demo` as a newcomer runs it: shows all, tells the truth, leaves nothing behind."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from devchain import processes
from devchain.demo_daemon import take_api_key
from devchain.demo_facts import Sent, problems_of_job, problems_of_stray, timeline_of
from devchain.demo_view import View
from devchain.pay import Way
from oncepaid.commands.demo import _installed

TIMEOUT_S = 90.0
# What a developer may have set for another project must not reach the demo.
FOREIGN = {
    "ONCEPAID__DATABASE__URL": "postgresql://nobody@127.0.0.1:9/nothing",
    "ONCEPAID__CHAIN__CHAIN_ID": "1",
    "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
    "PGPORT": "9",
}


@dataclass(kw_only=True)
class Demo:
    """A running demo, in a folder of its own."""

    process: asyncio.subprocess.Process
    folder: Path
    output: str = ""

    @property
    def kept(self) -> Path:
        return self.folder / ".demo"

    @property
    def config(self) -> Path:
        return self.kept / "oncepaid.toml"

    async def read_until(self, text: str) -> str:
        """Return all output up to the line with `text`."""
        assert self.process.stdout is not None
        async with asyncio.timeout(TIMEOUT_S):
            while text not in self.output:
                line = await self.process.stdout.readline()
                assert line, f"ended without {text!r}:\n{self.output}"
                self.output += line.decode()
        return self.output

    async def end(self) -> int:
        """Return the exit code, with the rest of the output read."""
        assert self.process.stdout is not None
        async with asyncio.timeout(TIMEOUT_S):
            self.output += (await self.process.stdout.read()).decode()
            return await self.process.wait()

    async def command(self, *words: str) -> str:
        """Run another command beside the demo and return what it printed."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *words, "--config", str(self.config)),
            cwd=self.folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode()

    def leftovers(self) -> list[str]:
        """Return processes that know of this demo's folder, and folders of it."""
        mark = str(self.folder).encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                known = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark in known and int(entry.name) != os.getpid():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found + [str(path) for path in self.folder.glob("oncepaid-demo-*")]


@asynccontextmanager
async def start_demo(folder: Path, *arguments: str) -> AsyncIterator[Demo]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "oncepaid", "demo", *arguments),
        cwd=folder,
        env={**os.environ, **FOREIGN, "TMPDIR": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    demo = Demo(process=process, folder=folder)
    try:
        yield demo
    finally:
        if process.returncode is None:
            process.terminate()
            await demo.end()


async def test_all_is_shown_and_nothing_is_left(tmp_path: Path) -> None:
    async with start_demo(tmp_path) as demo:
        code = await demo.end()
    assert code == 0, demo.output
    assert demo.output.count("job completed") == 3
    assert "Payment 4 is unmatched (no_memo): It carries no memo" in demo.output
    assert "3 jobs completed, 1 payment unmatched (no_memo)" in demo.output
    for way in ("memo behind the calldata", "memo in the signed nonce", "its unique amount"):
        assert f"matched to the job, by {'the ' * ('memo' in way)}{way}" in demo.output
    for part in ("The Slow Lane", "What the Window Learned", "Bicycles and pedestrians"):
        assert part in demo.output
    assert re.search(r"http://127\.0\.0\.1:\d+/metrics", demo.output)
    assert 'oncepaid_jobs{status="completed"} 3.0' in demo.output
    assert "\x1b" not in demo.output
    assert demo.leftovers() == []
    assert not demo.kept.exists()


async def test_an_interrupt_stops_everything(tmp_path: Path) -> None:
    async with start_demo(tmp_path) as demo:
        await demo.read_until("waits for 0.50 USDC")
        demo.process.send_signal(signal.SIGINT)
        demo.process.send_signal(signal.SIGTERM)
        assert await demo.end() in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert "Traceback" not in demo.output
    assert demo.leftovers() == []


async def test_a_dead_daemon_is_a_failure(tmp_path: Path) -> None:
    async with start_demo(tmp_path) as demo:
        output = await demo.read_until("`oncepaid run`, process")
        found = re.search(r"process (\d+)", output)
        assert found is not None
        os.kill(int(found[1]), signal.SIGKILL)
        assert await demo.end() == 1
    assert "the daemon ended by itself with exit code -9" in demo.output
    assert "lines of the daemon's log" in demo.output
    assert '"event":"daemon.ready"' in demo.output
    assert "Traceback" not in demo.output
    assert demo.leftovers() == []


async def test_kept_it_takes_further_jobs(tmp_path: Path) -> None:
    async with start_demo(tmp_path, "--keep") as demo:
        await demo.read_until("The daemon's log is .demo/daemon.log")
        made = await demo.command(
            *("oncepaid", "job", "create", "--service", "concept", "--input", "A bakery", "--json")
        )
        uuid = json.loads(made)["job_uuid"]
        assert "paid 0.500000 USDC" in await demo.command("devchain.pay", uuid)
        async with asyncio.timeout(TIMEOUT_S):
            while '"completed"' not in await demo.command(
                "oncepaid", "job", "show", uuid, "--json"
            ):
                pass
        demo.process.send_signal(signal.SIGINT)
        assert await demo.end() == 0
    assert demo.config.is_file()
    assert "Traceback" not in demo.output
    assert demo.leftovers() == []


def test_it_leaves_a_folder_that_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from devchain.demo_daemon import DemoFailed, demo_folder

    (tmp_path / ".demo").mkdir()
    (tmp_path / ".demo/precious").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DemoFailed, match="not a demo's"), demo_folder(keep=True):
        pass
    assert (tmp_path / ".demo/precious").exists()


def test_without_devchain_it_names_make_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "devchain.demo", None)
    with pytest.raises(SystemExit) as ended:
        _installed()
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (1, 1)
    assert "`make demo`" in said


def test_without_node_modules_it_names_make_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "_NODE_MODULES", tmp_path)
    with pytest.raises(SystemExit) as ended:
        _installed()
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (1, 1)
    assert "`make demo`" in said


def test_the_environment_is_cleaned_and_the_key_taken() -> None:
    environment = {**FOREIGN, "ANTHROPIC_API_KEY": "sk-1", "HOME": "/root", "NO_PROXY": "example"}
    assert take_api_key(environment) == "sk-1"
    assert environment == {
        "HOME": "/root",
        "NO_PROXY": "example,127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    assert take_api_key({"ANTHROPIC_API_KEY": ""}) is None


SENT = Sent(tx_hash="0xaa", sent_at_s=1000.0, receipt_at_s=1000.01, block_number=7)


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(1000 + seconds, UTC)


def payment(**changes: Any) -> dict[str, Any]:
    row = {"tx_hash": "0xaa", "status": "credited", "reason": None, "memo_source": "calldata"}
    times = {"seen_at": at(0.02), "matched_at": at(0.03), "credited_at": at(0.04)}
    return {**row, **times, **changes}


def job(**changes: Any) -> dict[str, Any]:
    attempt = {"started_at": at(0.05), "finished_at": at(0.9), "outcome": "succeeded"}
    answer = {"model": "m", "input_tokens": 1, "output_tokens": 2, "message": None}
    row = {
        "job_uuid": "j",
        "service_key": "write",
        "status": "completed",
        "output_data": {"body": "b"},
        "completed_at": at(1.0),
        "payments": [payment()],
        "attempts": [{**attempt, **answer}],
    }
    return {**row, **changes}


def test_a_good_job_has_no_problem() -> None:
    assert problems_of_job(Way.MEMO, SENT, job()) == []
    assert problems_of_stray([payment(status="unmatched", reason="no_memo")]) == []


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (job(status="failed"), "is failed, not completed"),
        (job(status="in_progress", completed_at=None), "is in_progress, not completed"),
        (job(output_data=None), "without a result"),
        (job(output_data={}), "without a result"),
        (job(payments=[]), "has 0 payments"),
        (job(payments=[payment(), payment()]), "has 2 payments"),
        (job(payments=[payment(tx_hash="0xbb")]), "not the one that was sent"),
        (job(payments=[payment(status="matched")]), "is matched, not credited"),
        (job(payments=[payment(memo_source=None)]), "its memo was found in None"),
    ],
)
def test_a_job_in_a_wrong_state_is_told(row: dict[str, Any], told: str) -> None:
    (problem,) = problems_of_job(Way.MEMO, SENT, row)
    assert told in problem


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [payment()],
        [payment(status="unmatched", reason="unknown_memo")],
        [payment(status="unmatched", reason="no_memo")] * 2,
    ],
)
def test_a_stray_payment_in_a_wrong_state_is_told(rows: list[dict[str, Any]]) -> None:
    assert len(problems_of_stray(rows)) == 1


def test_the_timeline_is_in_the_order_of_time_and_leaves_out_what_never_happened() -> None:
    times = [moment.after_ms for moment in timeline_of(Way.MEMO, SENT, job())]
    assert times == pytest.approx([0, 10, 20, 30, 40, 50, 900, 1000])
    unpaid = job(status="pending", completed_at=None, payments=[], attempts=[])
    assert len(timeline_of(Way.MEMO, SENT, unpaid)) == 2


def test_results_of_any_shape_are_readable(capsys: pytest.CaptureFixture[str]) -> None:
    output = {
        "body": "A [bold] paragraph.",
        "title": "The title",
        "key_points": ["first", 2],
        "findings": [{"severity": "major", "title": "A bug", "lines": [1, 2]}],
        "nothing": None,
    }
    for value in (output, {}, None, "text", [1]):
        View().result("result", value)
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    shown = [line for line in lines if line]
    assert shown[1:4] == ["The title", "A [bold] paragraph.", "Key points"]
    assert "• first" in shown
    assert "1. A bug" in shown
    assert "Severity: major" in shown
