"""What happens in the demo: three jobs, each paid in another way, and a stray payment."""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from db.pool import Database
from db.reports import Reports, Row
from devchain.demo_daemon import DemoDaemon, DemoFailed
from devchain.demo_facts import Sent, problems_of_job, problems_of_stray, timeline_of
from devchain.demo_view import View, usdc
from devchain.pay import Bill, Way, bill_of, send_payment
from devchain.stack import Stack
from oncepaid.domain.payments import Reason

HOST_INSERT = """\
INSERT INTO jobs (job_uuid, skill_id, input_data)
SELECT gen_random_uuid(), id, $2 FROM skills WHERE service_key = $1
RETURNING job_uuid"""

_STRAY_UNITS = 750_000
_STRAY_S = 30.0
_METRICS = (
    'oncepaid_payments_total{reason="",status="credited"}',
    'oncepaid_payments_total{reason="no_memo"',
    'oncepaid_unmatched_usdc{reason="no_memo"}',
    'oncepaid_jobs{status="completed"}',
    "oncepaid_chain_cursor_block ",
    "oncepaid_subscription_up ",
)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A job and how it is paid; `by_host` means that no command of ours creates it."""

    title: str
    service: str
    text: str
    way: Way
    story: str
    by_host: bool = False


SCENES = (
    Scene(
        title="A memo behind the calldata",
        service="brainstorm",
        text="Ways to bring people into the small shops of our town",
        way=Way.MEMO,
        story="The payer's wallet calls transfer() with the job's memo behind the arguments, in an "
        "envelope of 24 bytes: {envelope}",
    ),
    Scene(
        title="A signed transferWithAuthorization whose nonce is the memo",
        service="write",
        text="A short text about a shop window whose shelves belong to the neighbours",
        way=Way.AUTHORIZATION,
        story="The payer only signs, and needs no gas: a relayer submits the authorization. Its "
        "nonce is the memo's envelope, {envelope}, and 8 more bytes.",
    ),
    Scene(
        title="A unique amount, from a wallet that can carry nothing",
        service="summarize",
        text="The council met on Monday. The old bridge will be repaired from May to September. "
        "Cars are sent over the mill road; bicycles and pedestrians may cross throughout.",
        way=Way.AMOUNT,
        story="The payer sends exactly {amount} USDC and no memo. No other open job waits for "
        "this amount: the price and some millionths.",
        by_host=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """All that runs during a demo; `job_s` is how long a job may take."""

    view: View
    config: Path
    chain: Stack
    daemon: DemoDaemon
    database: Database
    reports: Reports
    job_s: float


async def play(stage: Stage) -> list[str]:
    """Play all scenes and return what did not end as it should; raises DemoFailed if stuck."""
    problems = []
    for number, scene in enumerate(SCENES):
        stage.view.heading(f"{number + 1}. {scene.title}")
        problems += await _play_job(stage, scene, number)
    stage.view.heading(f"{len(SCENES) + 1}. A payment that is nobody's")
    problems += await _play_stray(stage)
    stage.view.heading("For the operator")
    problems += await _show_metrics(stage)
    return problems


async def _play_job(stage: Stage, scene: Scene, number: int) -> list[str]:
    view = stage.view
    uuid = await (_insert_as_host if scene.by_host else _create_job)(stage, scene)
    bill = bill_of(await _job(stage, uuid), stage.chain.merchant)
    amount = usdc(bill.units(scene.way))
    view.say(f"Job {uuid} waits for {amount} USDC.\n")
    view.say(scene.story.format(envelope="0x" + bill.envelope.hex(), amount=amount))
    sent = await _send(stage, bill, scene.way, number)
    view.lines([f"tx {sent.tx_hash}"], style="dim")
    with view.waiting("waiting for the result"):
        job = await _until_finished(stage, uuid)
    view.timeline(timeline_of(scene.way, sent, job))
    view.result(f"{scene.service}: the result", job["output_data"])
    return problems_of_job(scene.way, sent, job)


async def _create_job(stage: Stage, scene: Scene) -> str:
    """Create a job by the operator's command; returns its UUID."""
    words = ("job", "create", "--service", scene.service, "--input", scene.text)
    shown = ["$ oncepaid job create", f"--service {scene.service}", f"--input '{scene.text}'"]
    stage.view.lines([" \\\n      ".join(shown)], style="green")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "oncepaid", *words, "--config", str(stage.config), "--json"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise DemoFailed(f"`oncepaid job create`: {errors.decode(errors='replace').strip()}")
    return str(json.loads(output)["job_uuid"])


async def _insert_as_host(stage: Stage, scene: Scene) -> str:
    """Create a job as a host application does; returns its UUID."""
    stage.view.say("A host application makes this job, by a plain INSERT of its own:")
    stage.view.lines(HOST_INSERT.splitlines(), style="green")
    async with stage.database.connection() as connection:
        values = (scene.service, {"prompt": scene.text})
        return str(await connection.fetchval(HOST_INSERT, *values))


async def _send(stage: Stage, bill: Bill, way: Way, number: int) -> Sent:
    chain = stage.chain
    payer = chain.payers[number % len(chain.payers)]
    sent_at_s = time.time()
    tx_hash = await send_payment(bill, way, payer=payer, relayer=chain.relayer)
    receipt = await chain.rpc.receipt(tx_hash)
    return Sent(
        tx_hash=tx_hash,
        sent_at_s=sent_at_s,
        receipt_at_s=time.time(),
        block_number=int(receipt["blockNumber"], 16),
    )


async def _job(stage: Stage, uuid: str) -> Row:
    job = await stage.reports.job(uuid)
    if job is None:
        raise DemoFailed(f"job {uuid} is not in the database")
    return job


async def _until_finished(stage: Stage, uuid: str) -> Row:
    async def probe() -> Row | None:
        job = await _job(stage, uuid)
        if any(attempt["outcome"] == "not_authorized" for attempt in job["attempts"]):
            raise DemoFailed("Anthropic's API refuses the key in ANTHROPIC_API_KEY, or the model")
        return job if job["status"] in ("completed", "failed") else None

    return await stage.daemon.until(f"job {uuid} is finished", probe, timeout_s=stage.job_s)


async def _play_stray(stage: Stage) -> list[str]:
    view, payer = stage.view, stage.chain.payers[0]
    view.say(f"Somebody sends {usdc(_STRAY_UNITS)} USDC, without a memo; no job has this amount.")
    tx_hash = await payer.transfer(stage.chain.merchant, _STRAY_UNITS)
    view.lines([f"tx {tx_hash}"], style="dim")

    async def probe() -> Sequence[Row] | None:
        rows = await stage.reports.payment(tx_hash)
        return rows if rows and all(row["status"] != "seen" for row in rows) else None

    rows = await stage.daemon.until(f"a decision about {tx_hash}", probe, timeout_s=_STRAY_S)
    for row in rows:
        sentence = Reason(row["reason"]).sentence if row["reason"] else ""
        view.say(f"\nPayment {row['id']} is {row['status']} ({row['reason']}): {sentence}")
    view.say("It credits no job; the money is counted and waits for an operator's decision.")
    return problems_of_stray(rows)


async def _show_metrics(stage: Stage) -> list[str]:
    url, view = stage.daemon.http_url, stage.view
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        async with session.get(f"{url}/metrics") as reply:
            metrics = (await reply.text()).splitlines()
        async with session.get(f"{url}/readyz") as reply:
            status, ready = reply.status, await reply.text()
    view.say(f"Metrics are scraped at {url}/metrics, where it now says, among others:")
    view.lines(line for line in metrics if line.startswith(_METRICS))
    view.say(f"{url}/readyz answers {status} {ready}")
    return [] if status == 200 else [f"the daemon is not ready: {ready}"]
