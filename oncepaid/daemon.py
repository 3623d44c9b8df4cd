"""The composition root: the only file that sees all stages, wired straight down."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from enum import StrEnum
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from db.cursor import CursorStore
from db.embedded import PREFIX, EmbeddedPostgres
from db.jobs import JobStore
from db.migrate import migrate
from db.payments import PaymentStore
from db.pool import Database
from db.reports import Reports
from listener.ranges import Watch
from listener.rpc import ChainReader, HttpRpc
from listener.service import Listener
from listener.subscription import Subscription
from oncepaid import __version__, sdnotify
from oncepaid.domain.chain import Address, BlockRef
from oncepaid.domain.errors import BadSetting
from oncepaid.domain.generation import Budget
from oncepaid.domain.matching import MatchingRules
from oncepaid.domain.pricing import Price
from oncepaid.gauges import refresh_gauges
from oncepaid.health import Health
from oncepaid.http import build_app, serve
from oncepaid.loops import Bell, Driver
from oncepaid.metrics import Metrics
from oncepaid.offers import build_services, publish_offers, with_names
from oncepaid.settings import Settings
from processors.claude import Claude
from processors.finisher import Finisher
from processors.generator import HEARTBEAT_S, Generator
from processors.matcher import Matcher
from processors.services import Service
from processors.settler import Settler

log = structlog.get_logger()

WORK_POLL_S: Final = 1.0
"""How soon a stage notices what another process left for it; in one process the bell is faster."""
SETTLE_POLL_S: Final = 2.0
SWEEP_S: Final = 60.0
STAGES: Final = ("listen", "match", "settle", "generate", "leases", "finish", "sweep")
LAG_CHECK_S: Final = 1.0


class Role(StrEnum):
    """Which stages a process runs."""

    LISTENER = "listener"
    WORKER = "worker"
    ALL = "all"


async def run_daemon(settings: Settings, role: Role) -> None:
    """Run until cancelled. Raises `BadSetting` where a setting cannot work."""
    _require(settings, role)
    services = build_services(settings)
    for model in {service.model for service in services.values()} - set(settings.claude.prices):
        log.warning("claude.model_without_price", model=model, assumed="the dearest")
    async with AsyncExitStack() as stack:
        metrics = Metrics(_registry())
        health = Health(("database", "node"))
        driver = Driver(health)
        reports: list[Reports] = []
        port = await stack.enter_async_context(
            serve(
                build_app(
                    health,
                    metrics.registry,
                    lambda: refresh_gauges(metrics, reports, settings.chain.chain_id),
                ),
                settings.http.address,
            )
        )
        log.info("daemon.starting", version=__version__, role=role, http_port=port)
        database = await open_database(stack, settings, driver)
        await driver.until_done("database", lambda: _prepare(database, settings, services))
        health.started("database")
        metrics.db_pool_in_use.set_function(lambda: database.in_use)
        reports.append(Reports(database))
        rpc = await stack.enter_async_context(
            HttpRpc(
                settings.chain.http_urls,
                chain_id=settings.chain.chain_id,
                token=Address(settings.chain.token),
                metrics=metrics,
            )
        )
        stages = Stages(settings, driver, metrics, database, rpc, services)
        async with asyncio.TaskGroup() as group:
            group.create_task(_watch_lag(metrics), name="lag")
            if role in (Role.WORKER, Role.ALL):
                await stages.start_work(group, stack)
            await driver.until_done("node", rpc.verify)
            await stages.start_chain(group, role)
            health.started("node")
            log.info("daemon.ready", endpoint=rpc.endpoint)
            sdnotify.notify("READY=1")


def _require(settings: Settings, role: Role) -> None:
    if not settings.chain.http_urls:
        raise BadSetting("chain.http_urls", "is missing: at least one HTTP endpoint of a node")
    if not settings.chain.recipients:
        raise BadSetting("chain.recipients", "is missing: the addresses that customers pay to")
    if role in (Role.WORKER, Role.ALL) and settings.claude.api_key is None:
        raise BadSetting("claude.api_key", "is missing (or the credential anthropic_api_key)")


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


async def open_database(stack: AsyncExitStack, settings: Settings, driver: Driver) -> Database:
    """Open the pool, waiting for a server that is away; closed with the stack."""
    url = settings.database.url.get_secret_value()
    if url.startswith(PREFIX):
        embedded = EmbeddedPostgres(url)
        stack.push_async_callback(asyncio.to_thread, embedded.close)
        url = await driver.until_done("database", lambda: asyncio.to_thread(embedded.start))
    database = await driver.until_done(
        "database", lambda: Database.connect(url, size=settings.database.pool_size)
    )
    stack.push_async_callback(database.close)
    return database


async def _prepare(database: Database, settings: Settings, services: dict[str, Service]) -> None:
    for name in await migrate(database):
        log.info("database.migrated", migration=name)
    await publish_offers(database, settings, services)


async def _watch_lag(metrics: Metrics) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_CHECK_S
        await asyncio.sleep(LAG_CHECK_S)
        metrics.event_loop_lag.set(max(0.0, loop.time() - due))


class Stages:
    """Builds the stages from values and starts their loops. Bells lead from each to the next."""

    def __init__(
        self,
        settings: Settings,
        driver: Driver,
        metrics: Metrics,
        database: Database,
        rpc: HttpRpc,
        services: dict[str, Service],
    ) -> None:
        self._settings = settings
        self._driver = driver
        self._metrics = metrics
        self._rpc = rpc
        self._services = with_names(services)
        self._work = JobStore(database)
        self._ledger = PaymentStore(database, settings.chain.chain_id)
        self._cursor = CursorStore(database, settings.chain.chain_id)
        self._bells = {name: Bell() for name in STAGES}

    async def start_work(self, group: asyncio.TaskGroup, stack: AsyncExitStack) -> None:
        """Start what needs no node: matching, generating, finishing, sweeping.

        With `stack` the calls under way are given back and the client is closed.
        """
        settings, metrics = self._settings, self._metrics
        rules = MatchingRules(
            recipients=settings.chain.watched,
            late_grace=timedelta(seconds=settings.matching.late_grace_s),
            amount_fallback=settings.matching.amount_fallback,
        )
        matcher = Matcher(
            self._ledger, rules=rules, metrics=metrics, announce=self._bells["settle"].ring
        )
        assert settings.claude.api_key is not None, "checked at start"
        claude = await stack.enter_async_context(
            Claude(
                api_key=settings.claude.api_key.get_secret_value(),
                base_url=settings.claude.base_url,
            )
        )
        generator = self._build_generator(claude)
        stack.push_async_callback(generator.stop)
        finisher = Finisher(
            self._work,
            budget=Budget(
                max_attempts=settings.claude.max_attempts,
                max_cost_usd=settings.claude.max_cost_usd_per_job,
            ),
            services=self._services,
            metrics=metrics,
        )
        self._drive(group, "match", matcher.step, WORK_POLL_S)
        self._drive(group, "generate", generator.step, WORK_POLL_S)
        self._drive(group, "finish", finisher.step, WORK_POLL_S)
        self._drive(group, "leases", generator.keep_leases, HEARTBEAT_S)
        self._drive(group, "sweep", self._sweep, SWEEP_S)

    async def start_chain(self, group: asyncio.TaskGroup, role: Role) -> None:
        """Start what talks to a node: listening and settling.

        Returns when the cursor is there: a payment after that will be found.
        """
        chain = self._settings.chain
        if role in (Role.WORKER, Role.ALL):
            settler = Settler(
                self._ledger,
                ChainReader(self._rpc),
                tiers=[tier.tier for tier in self._settings.confirmation.tiers],
                services=self._services,
                announce=self._bells["generate"].ring,
                metrics=self._metrics,
            )
            self._drive(group, "settle", settler.step, SETTLE_POLL_S)
        if role in (Role.LISTENER, Role.ALL):
            watch = Watch(
                token=Address(chain.token),
                recipients=chain.watched,
                start_block=chain.start_block,
                max_range_blocks=chain.max_range_blocks,
            )
            listener = Listener(
                self._rpc,
                self._cursor,
                self._ledger,
                watch=watch,
                announce=self._bells["match"].ring,
                metrics=self._metrics,
            )
            await self._driver.until_done("cursor", listener.prepare)
            self._drive(group, "listen", listener.step, chain.poll_interval_s)
            if chain.ws_urls:
                group.create_task(self._subscription(listener, watch).run(), name="subscription")

    def _drive(
        self,
        group: asyncio.TaskGroup,
        name: str,
        step: Callable[[], Awaitable[bool]],
        poll_s: float,
    ) -> None:
        group.create_task(
            self._driver.drive(name, step, bell=self._bells[name], poll_s=poll_s), name=name
        )

    def _build_generator(self, model: Claude) -> Generator:
        claude = self._settings.claude

        def announce() -> None:
            self._bells["finish"].ring()
            self._bells["generate"].ring()

        return Generator(
            self._work,
            model,
            services=self._services,
            prices={
                model: Price(
                    input_usd_per_mtok=price.input_usd_per_mtok,
                    output_usd_per_mtok=price.output_usd_per_mtok,
                )
                for model, price in claude.prices.items()
            },
            concurrency=claude.concurrency,
            max_cost_usd_per_day=claude.max_cost_usd_per_day,
            announce=announce,
            metrics=self._metrics,
        )

    async def _sweep(self) -> bool:
        matching = self._settings.matching
        freed = await self._work.release_amounts(
            self._settings.chain.chain_id,
            timedelta(seconds=matching.late_grace_s),
            timedelta(seconds=matching.quarantine_s),
        )
        if freed:
            log.info("job.amounts_released", count=freed)
        return False

    def _subscription(self, listener: Listener, watch: Watch) -> Subscription:
        bell = self._bells["listen"]

        def wake(block: BlockRef | None) -> None:
            listener.hear(block)
            bell.ring()

        return Subscription(
            self._settings.chain.ws_urls,
            watch.log_filter(),
            on_wake=wake,
            metrics=self._metrics,
        )
