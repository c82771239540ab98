"""A status as Prometheus reads it: a file for node_exporter's textfile collector."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from ..hourly import slices
from ..reports import backfilling
from ..reports.status import Status


def text(s: Status) -> str:
    """Return the metrics of a status in the text format, version 0.0.4; what is not known has no sample."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Metrics(s))
    return generate_latest(registry).decode()


class _Metrics(Collector):
    def __init__(self, s: Status) -> None:
        self.s = s

    def collect(self) -> Iterator[GaugeMetricFamily]:
        s = self.s
        info = _labelled("info", "Where the database stands.", ("revision", "pipeline", "place"))
        info.add_metric([s.revision or "", s.pipeline or "", s.place.shape], 1)
        yield info
        refused = s.place.refused
        yield _gauge(
            "upgrade_refused", "Whether no upgrade can go on from where the database stands.", refused
        )
        pending = None if refused else len(s.place.pending)
        yield _gauge("pending_steps", "Steps that an upgrade has still to take.", pending)
        lag_means = (
            "How far the hourly rollup is behind the newest usage; the oldest's age if nothing was rolled up."
        )
        yield _gauge("lag_seconds", lag_means, s.lag_seconds)
        never_moved = (s.watermark or "").startswith(slices.NEVER_MOVED)
        yield _gauge(
            "watermark_timestamp_seconds",
            "Up to when all usage is rolled up or queued.",
            None if never_moved else _timestamp(s.watermark),
        )
        yield _gauge(
            "held_back", "Whether an open transaction holds the watermark back.", s.held_back is not None
        )
        yield from self._runs()
        yield from self._queues()
        b = s.backfill
        running = b is not None and b.state == backfilling.RUNNING
        yield _gauge("backfill_running", "Whether a backfill is at work.", running)
        yield _gauge("backfill_rows", "Usage rows in the plan of a backfill.", b.usage_rows if b else 0)
        yield _gauge(
            "backfill_walked_rows", "Usage rows of that plan already rolled up.", b.walked_rows if b else 0
        )
        yield _gauge("set_aside_buckets", "Buckets that PostgreSQL refused to store.", s.set_aside_buckets)
        yield _gauge("undated_rows", "Usage rows dated outside years 1-9998.", s.undated_rows)

    def _runs(self) -> Iterator[GaugeMetricFamily]:
        t, run = self.s.ticks, self.s.last_run
        scheduled = None if t is None else t.by is not None
        yield _gauge("scheduled", "Whether the database shows a schedule of ticks.", scheduled)
        finished = _timestamp(run.finished_at) if run else None
        yield _gauge("last_run_timestamp_seconds", "When a tick or another run last finished.", finished)
        yield _gauge("last_run_failed", "Whether it left an error.", None if run is None else bool(run.error))

    def _queues(self) -> Iterator[GaugeMetricFamily]:
        rows = _labelled("queue_rows", "Changes that wait to be rolled up.", ("queue",))
        size = _labelled("queue_bytes", "Disk space of a queue, its indexes included.", ("queue",))
        oldest = _labelled(
            "queue_oldest_timestamp_seconds", "When the oldest of them was queued.", ("queue",)
        )
        for queue in self.s.queues:
            rows.add_metric([queue.table], queue.rows)
            size.add_metric([queue.table], queue.bytes)
            if (at := _timestamp(queue.oldest_at)) is not None:
                oldest.add_metric([queue.table], at)
        yield from (rows, size, oldest)


def _gauge(name: str, means: str, value: float | None) -> GaugeMetricFamily:
    family = _labelled(name, means, ())
    if value is not None:
        family.add_metric([], value)
    return family


def _labelled(name: str, means: str, labels: tuple[str, ...]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"usage_rollup_{name}", means, labels=labels)


def _timestamp(time: str | None) -> float | None:
    """Return seconds since 1970, None for what is no point in time that a client can have."""
    try:
        return datetime.fromisoformat(time).timestamp() if time else None
    except ValueError:
        return None
