"""Measure what this project's triggers add to what the server writes all day.

Each statement is a transaction of its own, committed durably. Blocks with and without the triggers
alternate, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Iterator

import psycopg

from benchmarks.history import History
from benchmarks.results import Result

UPSERT = """
INSERT INTO task_usage (task_id, provider, model, input_tokens, output_tokens)
VALUES (%s, 'anthropic', 'hot-path', 1, 1)
ON CONFLICT (task_id, provider, model) DO UPDATE
SET input_tokens = EXCLUDED.input_tokens, output_tokens = EXCLUDED.output_tokens, updated_at = now()
"""

# In this order: the first report of a task, the same again, and what has nothing to do with usage.
STATEMENTS = {
    "a report, insert": ("task_usage", UPSERT),
    "a report, the same again": ("task_usage", UPSERT),
    "a title edited": ("issue", "UPDATE issue SET title = title || '.' WHERE id = %s"),
}

A_BLOCK = 200

TARGET_US = 60


def measure(history: History, url: str, blocks: int = 20) -> Iterator[Result]:
    """Yield medians in microseconds and what the triggers add, on a copy that is at head."""
    samples: dict[tuple[str, str], list[float]] = {}
    with psycopg.connect(url, autocommit=True) as connection:
        tasks, issues = (
            [
                row[0]
                for row in connection.execute(f"SELECT id FROM {table} ORDER BY id LIMIT {A_BLOCK * blocks}")
            ]
            for table in ("agent_task_queue", "issue")
        )
        for block in range(blocks):
            ids = slice(block * A_BLOCK, (block + 1) * A_BLOCK)
            for switch in ("ENABLE", "DISABLE") if block % 2 else ("DISABLE", "ENABLE"):
                connection.execute("DELETE FROM task_usage WHERE model = 'hot-path'")
                for table in ("task_usage", "issue"):
                    connection.execute(f"ALTER TABLE {table} {switch} TRIGGER USER")
                for name, (table, statement) in STATEMENTS.items():
                    rows = (tasks if table == "task_usage" else issues)[ids]
                    samples.setdefault((name, switch), []).extend(_timed(connection, statement, rows))
    for name in STATEMENTS:
        added, without = (statistics.median(samples[name, switch]) for switch in ("ENABLE", "DISABLE"))
        yield Result(f"{name}, without triggers", history.kind, history.rows, without, unit="us")
        yield Result(
            f"{name}, what triggers add",
            history.kind,
            history.rows,
            added - without,
            target=TARGET_US,
            unit="us",
        )


def _timed(connection: psycopg.Connection, statement: str, ids: list[uuid.UUID]) -> list[float]:
    samples = []
    for one in ids:
        started = time.perf_counter()
        connection.execute(statement, (one,), prepare=True)
        samples.append((time.perf_counter() - started) * 1e6)
    return samples
