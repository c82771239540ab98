"""Measure a tick after 1,000 changed rows, whatever the history behind them."""

from __future__ import annotations

import statistics
import time

import psycopg

from benchmarks.history import History

CHANGED_ROWS = 1_000
HOURS = 20

# Tasks of the history get usage of yesterday: 50 rows an hour, alone in their hours.
_WRITE = f"""
INSERT INTO task_usage (task_id, provider, model, input_tokens, created_at, updated_at)
SELECT id, 'bench', 'tick', 1, hour + random() * interval '59 minutes', now() - interval '10 minutes'
FROM (SELECT id, date_trunc('hour', now()) - (2 + row_number() OVER () % {HOURS}) * interval '1 hour' AS hour
      FROM (SELECT id FROM agent_task_queue LIMIT {CHANGED_ROWS}) AS tasks) AS hours
"""


def measure(history: History, rounds: int = 9) -> float:
    """Return the median of a tick, in seconds; the queue is emptied, so the rows are found by time."""
    samples = []
    with psycopg.connect(history.url, autocommit=True) as connection:
        connection.execute("SET usage_rollup.tick_budget = '1h'")
        connection.execute(_WRITE)
        for _ in range(rounds):
            connection.execute("UPDATE task_usage SET input_tokens = input_tokens + 1 WHERE model = 'tick'")
            connection.execute(
                "UPDATE task_usage_hourly_rollup_state SET watermark_at = now() - interval '1 hour'"
            )
            connection.execute("TRUNCATE task_usage_hourly_invalidation")
            connection.execute("VACUUM task_usage, task_usage_hourly")
            started = time.perf_counter()
            connection.execute("SELECT rollup_task_usage_hourly()")
            samples.append(time.perf_counter() - started)
    return statistics.median(samples)
