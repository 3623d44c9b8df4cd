"""Every metric of the daemon. Labels come from enums and configuration only, never from data."""

from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from oncepaid import __version__

disable_created_metrics()  # type: ignore[no-untyped-call]  # because: untyped upstream

_STAGE_BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30),
    *(60, 120, 300, 600, 1200, 1800, 3600),
)
_RPC_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_REORG_BUCKETS: Final = (1, 2, 3, 5, 10, 25, 50, 100, 600, 6000)
_PAID_TO_RESULT_BUCKETS: Final = (1, 2, 5, 10, 15, 20, 30, 45, 60, 120, 180, 300, 600, 1800, 3600)


def process_registry() -> CollectorRegistry:
    """Return a registry that tells of this process, too."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


class Metrics:
    """Created once by the composition root; stages get it passed in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._chain(registry)
        self._nodes(registry)
        self._money(registry)
        self._work(registry)
        build = Gauge(
            "oncepaid_build_info",
            "Always 1; the label says which build.",
            ["version"],
            registry=registry,
        )
        build.labels(version=__version__).set(1)
        self.event_loop_lag = Gauge(
            "oncepaid_event_loop_lag_seconds",
            "How late the event loop woke up at the last check.",
            registry=registry,
        )
        self.db_pool_in_use = Gauge(
            "oncepaid_db_pool_in_use", "Busy database connections.", registry=registry
        )

    def _chain(self, registry: CollectorRegistry) -> None:
        self.head_block = Gauge(
            "oncepaid_chain_head_block", "Highest block that the node told of.", registry=registry
        )
        self.cursor_block = Gauge(
            "oncepaid_chain_cursor_block",
            "Block up to which all payments are stored.",
            registry=registry,
        )
        self.head_timestamp = Gauge(
            "oncepaid_chain_head_timestamp_seconds", "Time of the head block.", registry=registry
        )
        self.cursor_timestamp = Gauge(
            "oncepaid_chain_cursor_timestamp_seconds",
            "Time of the cursor's block.",
            registry=registry,
        )
        self.subscription_up = Gauge(
            "oncepaid_subscription_up",
            "1 while a websocket subscription is open.",
            registry=registry,
        )
        self.subscription_reconnects = Counter(
            "oncepaid_subscription_reconnects_total",
            "Websocket connections that had to be made again.",
            ["reason"],
            registry=registry,
        )
        self.checked_block = Gauge(
            "oncepaid_chain_checked_block",
            "Block up to which every range was asked a second time.",
            registry=registry,
        )
        self.reorgs = Counter(
            "oncepaid_reorgs_total",
            "Times that the chain was reorganised below the cursor.",
            registry=registry,
        )
        self.reorg_depth = Histogram(
            "oncepaid_reorg_depth_blocks",
            "Blocks that a reorganisation took the cursor back: at least its depth.",
            buckets=_REORG_BUCKETS,
            registry=registry,
        )
        self.chain_halted = Gauge(
            "oncepaid_chain_halted",
            "1 while no endpoint has a new block.",
            registry=registry,
        )
        self.chain_conflict = Gauge(
            "oncepaid_chain_conflict",
            "1 while the chain contradicts what was final, and nothing is credited.",
            registry=registry,
        )
        self.is_leader = Gauge(
            "oncepaid_listener_is_leader",
            "1 while this process is the one that reads the chain.",
            registry=registry,
        )

    def _nodes(self, registry: CollectorRegistry) -> None:
        self.rpc_requests = Counter(
            "oncepaid_rpc_requests_total",
            "Calls to a node; each call of a batch counts.",
            ["endpoint", "method", "outcome"],
            registry=registry,
        )
        self.rpc_seconds = Histogram(
            "oncepaid_rpc_request_seconds",
            "Time of one HTTP request to a node; a batch is labelled by its first call.",
            ["endpoint", "method"],
            buckets=_RPC_BUCKETS,
            registry=registry,
        )
        self.endpoint_up = Gauge(
            "oncepaid_endpoint_up",
            "1 while an endpoint is trusted, 0 while it rests after failures or was refused.",
            ["endpoint"],
            registry=registry,
        )
        self.subscription_missed_logs = Counter(
            "oncepaid_subscription_missed_logs_total",
            "Payments that were found without the subscription having told of them.",
            registry=registry,
        )
        self.disagreements = Counter(
            "oncepaid_provider_disagreements_total",
            "Facts that one endpoint told and another one, or a later look, did not.",
            registry=registry,
        )

    def _money(self, registry: CollectorRegistry) -> None:
        self.payments = Counter(
            "oncepaid_payments_total",
            "Payments that a daemon moved to a status; not those that a command did.",
            ["status", "reason"],
            registry=registry,
        )
        self.payments_usdc = Counter(
            "oncepaid_payments_usdc_total",
            "USDC of the payments that a daemon moved to a status.",
            ["status"],
            registry=registry,
        )
        self.unmatched_usdc = Gauge(
            "oncepaid_unmatched_usdc",
            "USDC that lies unmatched now.",
            ["reason"],
            registry=registry,
        )
        self.revenue_usdc = Counter(
            "oncepaid_revenue_usdc_total", "USDC credited to jobs.", ["service"], registry=registry
        )
        self.lost_usdc = Gauge(
            "oncepaid_lost_usdc",
            "USDC that was credited, is gone from the chain, and was not made good.",
            registry=registry,
        )
        self.violations = Counter(
            "oncepaid_invariant_violations_total",
            "Findings of the audit that must never be.",
            ["invariant"],
            registry=registry,
        )

    def _work(self, registry: CollectorRegistry) -> None:
        self.stage_seconds = Histogram(
            "oncepaid_stage_seconds",
            "Time to a stage from the one before; `seen` counts from the block's time.",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=registry,
        )
        self.paid_to_result = Histogram(
            "oncepaid_paid_to_result_seconds",
            "Time from the block of the paying transfer to the finished job.",
            ["service"],
            buckets=_PAID_TO_RESULT_BUCKETS,
            registry=registry,
        )
        self.jobs = Gauge("oncepaid_jobs", "Jobs by status.", ["status"], registry=registry)
        self.oldest_job_age = Gauge(
            "oncepaid_oldest_job_age_seconds",
            "Age of the oldest job in a status, 0 where there is none.",
            ["status"],
            registry=registry,
        )
        self.claude_requests = Counter(
            "oncepaid_claude_requests_total",
            "Claude calls by how they ended.",
            ["model", "outcome"],
            registry=registry,
        )
        self.claude_tokens = Counter(
            "oncepaid_claude_tokens_total",
            "Tokens, as the API counted them.",
            ["model", "kind"],
            registry=registry,
        )
        self.claude_cost_usd = Counter(
            "oncepaid_claude_cost_usd_total",
            "Dollars spent, by the prices in the settings.",
            ["service"],
            registry=registry,
        )

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Record a stage's time; clocks that disagree give 0, never a negative time."""
        self.stage_seconds.labels(stage=stage).observe(max(0.0, seconds))
