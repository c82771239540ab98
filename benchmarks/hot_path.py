"""Measure what this project's triggers add to a usage report, upserted as the server does it.

Each upsert is a transaction of its own, committed durably. Blocks with and without the triggers
alternate, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import uuid

import psycopg
from alembic.config import Config

from alembic import command
from benchmarks.demo import DATABASE, ROOT
from benchmarks.walk import SETTINGS
from tests.support.server import open_server
from tests.support.v034 import build_v034, generate_history

UPSERT = """
INSERT INTO task_usage (task_id, provider, model, input_tokens, output_tokens)
VALUES (%s, 'anthropic', 'hot-path', 1, 1)
ON CONFLICT (task_id, provider, model) DO UPDATE
SET input_tokens = EXCLUDED.input_tokens, output_tokens = EXCLUDED.output_tokens, updated_at = now()
"""


def main() -> int:
    """Print the median of an insert and of an update, with the triggers and without, in microseconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=20, help="blocks of 200 reports each way")
    options = parser.parse_args()
    with open_server(SETTINGS) as server:
        server.drop_database(DATABASE)
        url = server.create_database(DATABASE)
        with psycopg.connect(url) as connection:
            build_v034(connection)
            generate_history(connection, 100_000)
        os.environ["DATABASE_URL"] = url
        os.environ.pop("MIGRATION_DATABASE_URL", None)
        command.upgrade(Config(ROOT / "alembic.ini"), "head")
        samples: dict[tuple[str, bool], list[float]] = {}
        with psycopg.connect(url, autocommit=True) as connection:
            tasks = [
                row[0]
                for row in connection.execute(
                    "SELECT id FROM agent_task_queue ORDER BY id LIMIT %s", (200 * options.blocks,)
                )
            ]
            for block in range(options.blocks):
                ids = tasks[block * 200 : (block + 1) * 200]
                for triggers in (True, False) if block % 2 else (False, True):
                    switch = "ENABLE" if triggers else "DISABLE"
                    connection.execute(f"ALTER TABLE task_usage {switch} TRIGGER trg_tu_dirty_hourly_write")
                    connection.execute("DELETE FROM task_usage WHERE model = 'hot-path'")
                    for kind in ("insert", "update"):
                        samples.setdefault((kind, triggers), []).extend(_timed(connection, ids))
        print(
            f"\nPostgreSQL {server.version // 10000}, {os.cpu_count()} cores; {len(tasks):,} reports each way"
        )
        for kind in ("insert", "update"):
            with_triggers, without = (statistics.median(samples[kind, on]) for on in (True, False))
            print(
                f"{kind}: {without:6.0f} us without, {with_triggers:6.0f} us with,"
                f" {with_triggers - without:+5.0f} us"
            )
    return 0


def _timed(connection: psycopg.Connection, tasks: list[uuid.UUID]) -> list[float]:
    samples = []
    for task in tasks:
        started = time.perf_counter()
        connection.execute(UPSERT, (task,), prepare=True)
        samples.append((time.perf_counter() - started) * 1e6)
    return samples


if __name__ == "__main__":
    sys.exit(main())
