"""`oncepaid check`: one line for each thing that must be right before the daemon can work."""

import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

import typer
from prometheus_client import CollectorRegistry

from db.migrate import missing_migrations
from db.reports import Reports
from listener.ranges import Watch
from listener.rpc import ChainReader, HttpRpc, label_of
from listener.subscription import Subscription
from oncepaid.cli import AsJson, Config, database_of, load, run_async
from oncepaid.commands.output import print_json
from oncepaid.domain.chain import TRANSFER_TOPIC, Address
from oncepaid.domain.errors import OncepaidError, RangeRefused
from oncepaid.metrics import Metrics
from oncepaid.offers import build_services
from oncepaid.settings import Settings

MAX_HEAD_AGE_S: Final = 60
MAX_CLOCK_SKEW_S: Final = 5.0
LOG_RANGES: Final = (10_000, 2_000, 500, 100, 10)
"""Ranges of blocks that are tried, widest first, to learn what an endpoint serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's report."""

    subject: str
    ok: bool
    text: str


def register(app: typer.Typer) -> None:
    app.command()(check)


def check(config: Config = None, as_json: AsJson = False) -> None:
    """Check settings, database, nodes, token, Claude and clock; non-zero if any fails."""
    settings = load(config)
    findings: list[Finding] = []

    async def main() -> None:
        async for finding in _examine(settings):
            findings.append(finding)
            if not as_json:
                mark = "ok  " if finding.ok else "FAIL"
                typer.echo(f"{mark}  {finding.subject}: {finding.text}")
        if as_json:
            print_json([asdict(finding) for finding in findings])

    run_async(main())
    if not all(finding.ok for finding in findings):
        raise SystemExit(1)


async def _examine(settings: Settings) -> AsyncIterator[Finding]:
    yield _settings(settings)
    async for finding in _database(settings):
        yield finding
    if not settings.chain.http_urls:
        yield Finding(subject="node", ok=False, text="chain.http_urls is missing")
    for url in settings.chain.http_urls:
        yield await _node(settings, url)
    for url in settings.chain.ws_urls:
        yield await _websocket(settings, url)
    async for finding in _claude(settings):
        yield finding


def _settings(settings: Settings) -> Finding:
    try:
        services = build_services(settings)
    except OncepaidError as exc:
        return Finding(subject="settings", ok=False, text=str(exc))
    if not settings.chain.recipients:
        return Finding(subject="settings", ok=False, text="chain.recipients is missing")
    text = f"{_recipients(settings)}, services {', '.join(sorted(services))}"
    return Finding(subject="settings", ok=True, text=text)


def _recipients(settings: Settings) -> str:
    if settings.chain.watched is None:
        return "chain.recipients is *: only jobs with pay_to can be paid"
    return f"{len(settings.chain.recipients)} recipients"


async def _database(settings: Settings) -> AsyncIterator[Finding]:
    try:
        async with database_of(settings, migrated=False) as database:
            version, now = await Reports(database).server()
            missing = await missing_migrations(database)
    except OncepaidError as exc:
        yield Finding(subject="database", ok=False, text=str(exc))
        yield Finding(subject="clock", ok=False, text="cannot be compared without a database")
        return
    state = "migrated" if not missing else f"{missing} migrations missing: run oncepaid migrate"
    yield Finding(subject="database", ok=not missing, text=f"PostgreSQL {version}, {state}")
    skew = (datetime.now(UTC) - now).total_seconds()
    yield Finding(
        subject="clock",
        ok=abs(skew) < MAX_CLOCK_SKEW_S,
        text=f"{skew:+.1f} s against the database",
    )


async def _node(settings: Settings, url: str) -> Finding:
    chain = settings.chain
    token = Address(chain.token)
    subject = f"node {label_of(url)}"
    metrics = Metrics(CollectorRegistry())
    try:
        async with HttpRpc([url], chain_id=chain.chain_id, token=token, metrics=metrics) as rpc:
            await rpc.verify()
            header = await ChainReader(rpc).header("latest")
            if header is None:
                return Finding(subject=subject, ok=False, text="has no latest block")
            blocks = await _widest_range(rpc, token, header.number)
    except OncepaidError as exc:
        return Finding(subject=subject, ok=False, text=str(exc))
    age_s = time.time() - header.timestamp_ms / 1000
    text = f"chain {chain.chain_id}, head {header.number} is {age_s:.0f} s old, token has code,"
    return Finding(
        subject=subject,
        ok=age_s < MAX_HEAD_AGE_S and blocks > 0,
        text=f"{text} eth_getLogs serves {blocks} blocks"
        + (f": the head is older than {MAX_HEAD_AGE_S} s" if age_s >= MAX_HEAD_AGE_S else ""),
    )


async def _websocket(settings: Settings, url: str) -> Finding:
    watch = Watch(
        token=Address(settings.chain.token),
        recipients=settings.chain.watched,
        start_block="latest",
        max_range_blocks=1,
    )
    metrics = Metrics(CollectorRegistry())
    subscription = Subscription([url], watch.log_filter(), on_wake=lambda _: None, metrics=metrics)
    problem = await subscription.probe(url)
    text = problem or "takes a subscription"
    return Finding(subject=f"websocket {label_of(url)}", ok=problem is None, text=text)


async def _widest_range(rpc: HttpRpc, token: Address, head: int) -> int:
    """Return the widest of `LOG_RANGES` that the node serves; 0 for none."""
    nobody = "0x" + "0" * 63 + "1"
    for blocks in sorted({min(blocks, head + 1) for blocks in LOG_RANGES}, reverse=True):
        query = {
            "address": token,
            "topics": [TRANSFER_TOPIC, nobody, nobody],
            "fromBlock": hex(head - blocks + 1),
            "toBlock": hex(head),
        }
        try:
            await rpc.call("eth_getLogs", query)
        except RangeRefused:
            continue
        return blocks
    return 0


async def _claude(settings: Settings) -> AsyncIterator[Finding]:
    key = settings.claude.api_key
    if key is None:
        yield Finding(subject="claude", ok=False, text="claude.api_key is missing")
        return
    try:
        models = {service.model for service in build_services(settings).values()}
    except OncepaidError:
        models = {settings.claude.model}
    from processors.claude import Claude  # the SDK takes a second to import

    async with Claude(api_key=key.get_secret_value(), base_url=settings.claude.base_url) as claude:
        for model in sorted(models):
            problem = await claude.problem_of_model(model)
            yield Finding(
                subject=f"claude {model}", ok=problem is None, text=problem or "available"
            )
