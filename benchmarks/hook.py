"""Measure the hook beside the physical limit: one bare INSERT ... SELECT ... GROUP BY."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import sqlalchemy as sa

from benchmarks.history import History
from benchmarks.results import Result
from usage_rollup.contract import HOURLY_ROLLUP
from usage_rollup.hourly import backfill
from usage_rollup.session import advisory_lock
from usage_rollup.session.connection import migration_session
from usage_rollup.session.options import Options

# The same aggregate a DBA would type into psql, into the same table with the same indexes.
BARE = """
INSERT INTO task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider,
    model, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, task_count, event_count)
SELECT task_usage_hour_bucket(tu.created_at), a.workspace_id, q.runtime_id, q.agent_id, i.project_id,
    tu.provider, tu.model, SUM(tu.input_tokens), SUM(tu.output_tokens), SUM(tu.cache_read_tokens),
    SUM(tu.cache_write_tokens), COUNT(DISTINCT tu.task_id), COUNT(*)
FROM task_usage tu JOIN agent_task_queue q ON q.id = tu.task_id JOIN agent a ON a.id = q.agent_id
LEFT JOIN issue i ON i.id = q.issue_id
GROUP BY 1, 2, 3, 4, 5, 6, 7
"""

# Walk and walk with proof, as multiples of the bare aggregate.
TARGETS = {
    ("usual", 1): (1.1, 1.6),
    ("usual", 2): (0.75, 1.2),
    ("low aggregation", 1): (1.3, None),
}


def measure(history: History, rounds: int, jobs: tuple[int, ...] = (1, 2)) -> Iterator[Result]:
    """Take turns between bare statement and walks, so that what else the machine does falls on all.

    The best of `rounds` each. Leaves the history rolled up and proven.
    """
    bare: list[float] = []
    walks: dict[int, list[float]] = {number: [] for number in jobs}
    proofs: list[float] = []
    with migration_session() as session:
        for _ in range(rounds):
            _empty(session)
            started = time.monotonic()
            with psycopg.connect(history.url) as plain:
                plain.execute(BARE)
            bare.append(time.monotonic() - started)
            for number in jobs:
                _empty(session)
                options = Options(jobs=number)
                with _holding_4246(session):
                    started = time.monotonic()
                    backfill._walk_history(session, options, backfill._read_state(session))
                    walks[number].append(time.monotonic() - started)
                    started = time.monotonic()
                    backfill.repair(session, options)
                    proofs.append(time.monotonic() - started)
        buckets = session.scalar(sa.text("SELECT COUNT(*) FROM task_usage_hourly"))
    limit, proof = min(bare), min(proofs)
    kind, rows = history.kind, history.rows
    yield Result("buckets", kind, rows, buckets or 0, unit="")
    yield Result("bare aggregate", kind, rows, limit)
    yield Result("proof", kind, rows, proof, proof / limit)
    for number in jobs:
        walk = min(walks[number])
        large = history.rows >= 1_000_000  # below, what a walk costs beside its rows outweighs them
        targets = TARGETS.get((history.kind, number), (None, None)) if large else (None, None)
        name = "walk" if number == 1 else f"walk, {number} jobs"
        yield Result(name, kind, rows, walk, walk / limit, targets[0])
        yield Result(f"{name}, and proof", kind, rows, walk + proof, (walk + proof) / limit, targets[1])


def _empty(session: sa.Connection) -> None:
    session.exec_driver_sql("TRUNCATE task_usage_hourly, task_usage_hourly_backfill")
    session.exec_driver_sql("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")
    session.exec_driver_sql("CHECKPOINT")


@contextmanager
def _holding_4246(session: sa.Connection) -> Iterator[None]:
    advisory_lock.acquire(session, HOURLY_ROLLUP)
    yield
    advisory_lock.release(session, HOURLY_ROLLUP)
