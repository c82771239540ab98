"""Measure what this project's triggers add to a usage report, upserted as the server does it.

Each upsert is a transaction of its own, committed durably. Blocks with and without the triggers
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

REPORTS_A_BLOCK = 200


def measure(history: History, blocks: int = 20) -> Iterator[Result]:
    """Yield medians of an insert and of an update, in microseconds, and what the triggers add."""
    samples: dict[tuple[str, bool], list[float]] = {}
    with psycopg.connect(history.url, autocommit=True) as connection:
        tasks = [
            row[0]
            for row in connection.execute(
                "SELECT id FROM agent_task_queue ORDER BY id LIMIT %s", (REPORTS_A_BLOCK * blocks,)
            )
        ]
        for block in range(blocks):
            ids = tasks[block * REPORTS_A_BLOCK : (block + 1) * REPORTS_A_BLOCK]
            for triggers in (True, False) if block % 2 else (False, True):
                switch = "ENABLE" if triggers else "DISABLE"
                connection.execute(f"ALTER TABLE task_usage {switch} TRIGGER trg_tu_dirty_hourly_write")
                connection.execute("DELETE FROM task_usage WHERE model = 'hot-path'")
                for kind in ("insert", "update"):
                    samples.setdefault((kind, triggers), []).extend(_timed(connection, ids))
    for kind in ("insert", "update"):
        with_triggers, without = (statistics.median(samples[kind, on]) for on in (True, False))
        yield Result(f"a report, {kind}, without triggers", "usual", history.rows, without, unit="us")
        yield Result(
            f"a report, {kind}, what triggers add",
            "usual",
            history.rows,
            with_triggers - without,
            target=60,
            unit="us",
        )


def _timed(connection: psycopg.Connection, tasks: list[uuid.UUID]) -> list[float]:
    samples = []
    for task in tasks:
        started = time.perf_counter()
        connection.execute(UPSERT, (task,), prepare=True)
        samples.append((time.perf_counter() - started) * 1e6)
    return samples
