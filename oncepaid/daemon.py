"""The composition root: the only file that sees all stages, wired straight down."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from enum import StrEnum
from typing import Final

import structlog

from db.audit import AuditStore
from db.cursor import CursorStore
from db.jobs import JobStore
from db.leader import STANDBY_S, Leader
from db.payments import PaymentStore
from db.pool import Database
from db.ranges import RangeStore
from db.refunds import RefundStore
from db.reports import Reports
from db.reversals import ReversalStore
from listener.auditor import AUDIT_S, Audit, Auditor
from listener.ranges import Watch
from listener.refund_watch import REFUNDS_S, RefundWatch
from listener.rpc import ChainReader, HttpRpc
from listener.second_look import FinalityMark, SecondLook
from listener.service import Listener
from listener.subscription import Subscription
from listener.witness import Witness
from oncepaid import __version__, sdnotify
from oncepaid.domain.chain import Address, BlockRef
from oncepaid.domain.errors import BadSetting
from oncepaid.domain.money import parse_usdc
from oncepaid.domain.payments import ObservedPayment
from oncepaid.gauges import refresh_gauges
from oncepaid.health import Health
from oncepaid.http import build_app, serve
from oncepaid.loops import PERMANENT_RETRY_S, Bell, Driver, then
from oncepaid.metrics import Metrics, process_registry
from oncepaid.offers import build_services, with_names
from oncepaid.opening import open_database, prepare_database
from oncepaid.settings import Settings
from oncepaid.values import budget_of, prices_of, rules_of, tiers_of, watch_of
from processors.claude import Claude
from processors.finisher import Finisher
from processors.generator import HEARTBEAT_S, Generator
from processors.matcher import Matcher
from processors.reverser import Reverser
from processors.services import Service
from processors.settler import SecondOpinion, Settler

log = structlog.get_logger()

WORK_POLL_S: Final = 1.0
"""How soon a stage notices what another process left for it; in one process the bell is faster."""
SETTLE_POLL_S: Final = 2.0
SWEEP_S: Final = 60.0
TEND_S: Final = 5.0
SECOND_LOOK_S: Final = 30.0
"""With what `second_look.AFTER` adds, well under the 2 minutes that Base takes to `safe`."""
MARK_S: Final = 30.0
STAGES: Final = (
    *("lead", "listen", "tend", "second_look", "mark", "match", "settle", "reverse"),
    *("generate", "leases", "finish", "amounts", "reconsider", "audit", "refunds"),
)
LAG_CHECK_S: Final = 1.0
CHAIN_FIRST_S: Final = 10.0
"""How long work waits for a first look at the chain; a node that is away holds it up no longer."""


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
        metrics = Metrics(process_registry())
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
        await driver.until_done("database", lambda: prepare_database(database, settings, services))
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
            health.add_note("chain", lambda: rpc.pulse_note)
            await stages.start_chain(group, stack, role)
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
        self._database = database
        self._services = with_names(services)
        self._work = JobStore(database)
        self._ledger = PaymentStore(database, settings.chain.chain_id)
        self._ranges = RangeStore(database, settings.chain.chain_id)
        self._reversals = ReversalStore(database, settings.chain.chain_id)
        self._cursor = CursorStore(database, settings.chain.chain_id)
        self._bells = {name: Bell() for name in STAGES}
        self._hear: Callable[[BlockRef | None], None] = lambda _: None
        self._chain_seen = asyncio.Event()

    async def start_work(self, group: asyncio.TaskGroup, stack: AsyncExitStack) -> None:
        """Start what needs no node: matching, generating, finishing, sweeping.

        With `stack` the calls under way are given back and the client is closed.
        """
        settings, metrics = self._settings, self._metrics
        matcher = Matcher(
            self._ledger,
            rules=rules_of(settings),
            metrics=metrics,
            announce=self._bells["settle"].ring,
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
            budget=budget_of(settings),
            services=self._services,
            metrics=metrics,
        )
        reverser = Reverser(self._reversals, announce=self._ring("match", "settle"))
        self._drive(group, "match", matcher.step, WORK_POLL_S)
        self._drive(group, "reverse", reverser.step, WORK_POLL_S)
        group.create_task(self._generate(generator), name="generate")
        self._drive(group, "finish", finisher.step, WORK_POLL_S)
        self._drive(group, "leases", generator.keep_leases, HEARTBEAT_S)
        self._drive(group, "amounts", self._release_amounts, SWEEP_S)
        self._drive(group, "reconsider", self._reconsider, SWEEP_S)

    async def _generate(self, generator: Generator) -> None:
        # The chain may have been reorganised while nobody looked: money that is gone must not be
        # worked for.
        with suppress(TimeoutError):
            async with asyncio.timeout(CHAIN_FIRST_S):
                await self._chain_seen.wait()
        await self._driver.drive(
            "generate", generator.step, bell=self._bells["generate"], poll_s=WORK_POLL_S
        )

    async def start_chain(
        self, group: asyncio.TaskGroup, stack: AsyncExitStack, role: Role
    ) -> None:
        """Start what talks to a node: listening and settling.

        Returns when the cursor is there: a payment after that will be found.
        """
        self._drive(group, "tend", self._rpc.tend, TEND_S)
        if role in (Role.WORKER, Role.ALL):
            self._start_settling(group)
        if role in (Role.LISTENER, Role.ALL):
            await self._start_listening(group, stack)
        else:
            self._chain_seen.set()

    def _start_settling(self, group: asyncio.TaskGroup) -> None:
        confirmation = self._settings.confirmation
        from_units = parse_usdc(confirmation.second_endpoint_from)
        if self._rpc.count == 1:
            log.warning(
                "confirmation.one_endpoint", from_usdc=str(confirmation.second_endpoint_from)
            )
        settler = Settler(
            self._ledger,
            ChainReader(self._rpc),
            tiers=tiers_of(self._settings),
            services=self._services,
            second=SecondOpinion(
                witness=Witness(self._rpc, Address(self._settings.chain.token)),
                from_units=from_units,
            ),
            announce=self._bells["generate"].ring,
            metrics=self._metrics,
        )
        self._drive(group, "settle", settler.step, SETTLE_POLL_S)

    async def _start_listening(self, group: asyncio.TaskGroup, stack: AsyncExitStack) -> None:
        chain, metrics = self._settings.chain, self._metrics
        leader = self._build_leader()
        self._driver.health.add_note(
            "listener", lambda: None if leader.epoch else "another daemon reads the chain"
        )
        stack.push_async_callback(leader.close)
        await self._driver.until_done("lead", leader.step)
        # Whoever stands by must try often: a lead that was lost is to be taken within 10 s.
        self._drive(group, "lead", leader.step, STANDBY_S, retry_cap_s=STANDBY_S)
        watch = watch_of(self._settings)
        subscription = self._build_subscription(watch)
        announce = self._ring("match", "reverse")

        def read(head: BlockRef, payments: Sequence[ObservedPayment]) -> None:
            self._chain_seen.set()
            subscription.reconciled(head, payments)

        listener = Listener(
            self._rpc,
            self._cursor,
            self._ranges,
            lead=leader,
            watch=watch,
            announce=announce,
            on_read=read,
            metrics=metrics,
        )
        self._hear = listener.hear
        await self._driver.until_done("cursor", listener.prepare)
        if leader.epoch is None:
            self._chain_seen.set()  # another daemon looks
        self._drive(group, "listen", listener.step, chain.poll_interval_s)
        if chain.ws_urls:
            group.create_task(subscription.run(), name="subscription")
        self._start_looking_back(group, leader, watch, announce)

    def _start_looking_back(
        self,
        group: asyncio.TaskGroup,
        leader: Leader,
        watch: Watch,
        announce: Callable[[], None],
    ) -> None:
        """Start what looks again at blocks that were read: doubts, finality, refunds, audit."""
        chain, metrics = self._settings.chain, self._metrics
        second_look = SecondLook(
            self._rpc, self._ranges, lead=leader, watch=watch, metrics=metrics, announce=announce
        )
        age = None if chain.finality_tags else timedelta(seconds=chain.finalized_age_s)
        mark = FinalityMark(self._rpc, self._ranges, lead=leader, age=age)
        refunds = RefundWatch(
            self._rpc,
            RefundStore(self._database, chain.chain_id),
            lead=leader,
            watch=watch,
            metrics=metrics,
        )
        books = AuditStore(self._database, chain.chain_id)
        audit = Auditor(Audit(self._rpc, self._ranges, books, watch), lead=leader, metrics=metrics)
        # Each lets the next one go further.
        look = then(second_look.step, self._ring("mark"))
        self._drive(group, "second_look", look, SECOND_LOOK_S)
        self._drive(group, "mark", then(mark.step, self._ring("refunds")), MARK_S)
        self._drive(group, "refunds", refunds.step, REFUNDS_S)
        self._drive(group, "audit", audit.step, AUDIT_S)

    def _build_leader(self) -> Leader:
        def changed(epoch: int | None) -> None:
            self._metrics.is_leader.set(epoch is not None)
            self._bells["listen"].ring()

        name = f"{socket.gethostname()}:{os.getpid()}"
        return Leader(
            self._database.url, self._settings.chain.chain_id, name=name, on_change=changed
        )

    def _ring(self, *names: str) -> Callable[[], None]:
        def ring() -> None:
            for name in names:
                self._bells[name].ring()

        return ring

    def _drive(
        self,
        group: asyncio.TaskGroup,
        name: str,
        step: Callable[[], Awaitable[bool]],
        poll_s: float,
        *,
        retry_cap_s: float = PERMANENT_RETRY_S,
    ) -> None:
        loop = self._driver.drive(
            name, step, bell=self._bells[name], poll_s=poll_s, retry_cap_s=retry_cap_s
        )
        group.create_task(loop, name=name)

    def _build_generator(self, model: Claude) -> Generator:
        claude = self._settings.claude

        return Generator(
            self._work,
            model,
            services=self._services,
            prices=prices_of(self._settings),
            concurrency=claude.concurrency,
            max_cost_usd_per_day=claude.max_cost_usd_per_day,
            announce=self._ring("finish", "generate"),
            metrics=self._metrics,
        )

    async def _release_amounts(self) -> bool:
        matching = self._settings.matching
        freed = await self._work.release_amounts(
            self._settings.chain.chain_id,
            timedelta(seconds=matching.late_grace_s),
            timedelta(seconds=matching.quarantine_s),
        )
        if freed:
            log.info("job.amounts_released", count=freed)
        return False

    async def _reconsider(self) -> bool:
        if again := await self._ledger.reconsider():
            log.info("payment.reconsidered", count=again)
            self._bells["match"].ring()
        return False

    def _build_subscription(self, watch: Watch) -> Subscription:
        def wake(block: BlockRef | None) -> None:
            self._hear(block)
            self._bells["listen"].ring()

        return Subscription(
            self._settings.chain.ws_urls,
            watch.log_filter(),
            on_wake=wake,
            metrics=self._metrics,
        )
