"""Gauges that are read from the tables when somebody scrapes."""

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from db.reports import Reports
from oncepaid.domain.errors import Retryable
from oncepaid.domain.jobs import JobStatus
from oncepaid.domain.money import UNITS_PER_USDC
from oncepaid.domain.payments import Reason
from oncepaid.metrics import Metrics

log = structlog.get_logger()

REFRESH_TIMEOUT_S: Final = 3.0


async def refresh_gauges(metrics: Metrics, reports: Sequence[Reports], chain_id: int) -> None:
    """Read the tables into the gauges; keeps the old values while the database is away."""
    if not reports:
        return
    try:
        async with asyncio.timeout(REFRESH_TIMEOUT_S):
            snapshot = await reports[0].snapshot()
    except (Retryable, TimeoutError) as exc:
        log.warning("metrics.stale", error=str(exc))
        return
    for cursor in snapshot.cursors:
        if cursor["chain_id"] == chain_id:
            metrics.cursor_block.set(cursor["block_number"])
            metrics.cursor_timestamp.set(cursor["block_time"].timestamp())
            metrics.checked_block.set(cursor["checked_number"] or 0)
            metrics.chain_conflict.set(cursor["conflict"] is not None)
    metrics.lost_usdc.set(snapshot.lost_units / UNITS_PER_USDC)
    for status in JobStatus:
        metrics.jobs.labels(status=status).set(snapshot.jobs.get(status, 0))
        age_s = snapshot.oldest_job_age_s.get(status, 0.0)
        metrics.oldest_job_age.labels(status=status).set(max(0.0, age_s))
    for reason in Reason:
        units = snapshot.unmatched_units.get(reason, 0)
        metrics.unmatched_usdc.labels(reason=reason).set(units / UNITS_PER_USDC)
