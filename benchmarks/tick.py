"""Measure ticks: after 1,000 changed rows, and after a mass of rows changed in one transaction."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import psycopg

from benchmarks.history import History
from benchmarks.results import Result

CHANGED_ROWS = 1_000
HOURS = 20

# Tasks of the history get usage of yesterday: 50 rows an hour, alone in their hours.
_WRITE = f"""
INSERT INTO task_usage (task_id, provider, model, input_tokens, created_at, updated_at)
SELECT id, 'bench', 'tick', 1, hour + random() * interval '59 minutes', now() - interval '10 minutes'
FROM (SELECT id, date_trunc('hour', now()) - (2 + row_number() OVER () % {HOURS}) * interval '1 hour' AS hour
      FROM (SELECT id FROM agent_task_queue LIMIT {CHANGED_ROWS}) AS tasks) AS hours
"""

# What somebody may do in one transaction on one day.
MASSES = {
    "an agent of 100,000 tasks moved": """
        UPDATE agent AS a
        SET workspace_id = (SELECT w.id FROM workspace w WHERE w.id <> a.workspace_id LIMIT 1)
        WHERE id = (SELECT agent_id FROM agent_task_queue GROUP BY 1 ORDER BY COUNT(*) DESC LIMIT 1)
    """,
    "100,000 tasks moved": """
        UPDATE agent_task_queue SET agent_id = (SELECT id FROM agent LIMIT 1)
        WHERE id IN (SELECT id FROM agent_task_queue LIMIT 100000)
    """,
    "300,000 rows imported, back-dated": """
        INSERT INTO task_usage (task_id, provider, model, input_tokens, created_at, updated_at)
        SELECT id, 'bench', 'import', 1, created_at, created_at FROM agent_task_queue LIMIT 300000
    """,
}

# A tick's own budget, see 102; what one range of a day may take on top of it.
BUDGET_S = 5.0

_TRIGGERS = "ALTER TABLE {table} {switch} TRIGGER USER"


def measure(url: str, rounds: int = 9) -> float:
    """Return the median of a tick, in seconds; the queue is emptied, so the rows are found by time."""
    samples = []
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET usage_rollup.tick_budget = '1h'")
        connection.execute(_WRITE)
        for _ in range(rounds):
            connection.execute("UPDATE task_usage SET input_tokens = input_tokens + 1 WHERE model = 'tick'")
            connection.execute(
                "UPDATE task_usage_hourly_rollup_state SET watermark_at = now() - interval '1 hour'"
            )
            connection.execute("TRUNCATE task_usage_hourly_invalidation")
            connection.execute("VACUUM task_usage, task_usage_hourly")
            samples.append(_tick(connection))
    return statistics.median(samples)


def masses(history: History, url: str) -> Iterator[Result]:
    """Yield what triggers add to each of MASSES, and the longest tick that follows, all rolled up."""
    with psycopg.connect(url, autocommit=True) as connection:
        for name, statement in MASSES.items():
            seconds = {
                switch: _rolled_back(connection, statement, switch) for switch in ("DISABLE", "ENABLE")
            }
            yield Result(
                f"{name}, to that without triggers",
                history.kind,
                history.rows,
                seconds["ENABLE"],
                seconds["ENABLE"] / seconds["DISABLE"],
            )
            connection.execute(statement)
            queued = _value(connection, "SELECT COUNT(*) FROM task_usage_hourly_invalidation")
            yield Result(f"{name}: queued", history.kind, history.rows, queued, unit="rows")
            ticks = [_tick(connection)]
            while _value(connection, "SELECT EXISTS (SELECT FROM task_usage_hourly_invalidation)"):
                ticks.append(_tick(connection))
            yield Result(
                f"{name}: longest of {len(ticks)} ticks",
                history.kind,
                history.rows,
                max(ticks),
                target=2 * BUDGET_S,
            )


def _rolled_back(connection: psycopg.Connection, statement: str, switch: str) -> float:
    with connection.transaction(force_rollback=True):
        for table in ("agent", "agent_task_queue", "task_usage"):
            connection.execute(_TRIGGERS.format(table=table, switch=switch))
        started = time.perf_counter()
        connection.execute(statement)
        return time.perf_counter() - started


def _tick(connection: psycopg.Connection) -> float:
    started = time.perf_counter()
    connection.execute("SELECT rollup_task_usage_hourly()")
    return time.perf_counter() - started


def _value(connection: psycopg.Connection, query: str) -> float:
    row = connection.execute(query).fetchone()
    assert row is not None
    return float(row[0])
