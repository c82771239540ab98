"""Measure the hook beside the physical limit: one bare INSERT ... SELECT ... GROUP BY.

All figures of one run come from one server and one data set; ratios are what to quote. The bare
statement runs as typed into psql, and once more with the settings of the runner's session (work_mem, jit).
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time

import psycopg
import sqlalchemy as sa
from alembic.config import Config

from alembic import command
from benchmarks.demo import DATABASE, ROOT
from tests.support.server import open_server
from tests.support.v034 import build_v034, generate_history
from usage_rollup import advisory_lock, backfill
from usage_rollup.connection import migration_session

# fsync on: a slice's commit is part of what the walk costs.
SETTINGS = {"fsync": "on", "shared_buffers": "1GB", "max_wal_size": "8GB"}

# The same aggregate a DBA would type, into the same table with the same indexes.
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


def main() -> int:
    """Build one history, roll it up both ways three times, print the best of each and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with open_server(SETTINGS) as server:
        server.drop_database(DATABASE)
        url = server.create_database(DATABASE)
        with psycopg.connect(url) as connection:
            build_v034(connection)
            generate_history(connection, options.rows)
        os.environ["DATABASE_URL"] = url
        os.environ.pop("MIGRATION_DATABASE_URL", None)
        config = Config(ROOT / "alembic.ini")
        config.attributes["quiet"] = True
        command.upgrade(config, "102")
        bare, tuned, walk, proof = [], [], [], []
        with migration_session() as session:
            for _ in range(options.rounds):
                _empty(session)
                with psycopg.connect(url) as plain:
                    started = time.monotonic()
                    plain.execute(BARE)
                    plain.commit()
                    bare.append(time.monotonic() - started)
                _empty(session)
                tuned.append(_timed(lambda: session.exec_driver_sql(BARE), session))
                _empty(session)
                advisory_lock.acquire(session, advisory_lock.HOURLY_ROLLUP)
                walk.append(
                    _timed(lambda: backfill._walk_history(session, backfill._read_state(session)), session)
                )
                proof.append(_timed(lambda: backfill.repair(session), session))
                advisory_lock.release(session, advisory_lock.HOURLY_ROLLUP)
            buckets = session.scalar(sa.text("SELECT COUNT(*) FROM task_usage_hourly"))
        print(
            f"\nPostgreSQL {server.version // 10000}, {os.cpu_count()} cores, {platform.machine()};"
            f" {options.rows:,} rows, {buckets:,} buckets; best of {options.rounds}"
        )
        limit = min(bare)
        for name, seconds in (
            ("bare aggregate", limit),
            ("bare, our session", min(tuned)),
            ("walk", min(walk)),
            ("proof", min(proof)),
            ("walk and proof", min(map(sum, zip(walk, proof, strict=True)))),
        ):
            print(f"{name:<18}{seconds:8.2f} s {seconds / limit:8.2f} x")
    return 0


def _empty(session: sa.Connection) -> None:
    session.exec_driver_sql("TRUNCATE task_usage_hourly, task_usage_hourly_backfill")
    session.exec_driver_sql("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")
    session.commit()
    session.connection.dbapi_connection.autocommit = True  # type: ignore[union-attr]
    session.exec_driver_sql("CHECKPOINT")
    session.connection.dbapi_connection.autocommit = False  # type: ignore[union-attr]


def _timed(work: object, session: sa.Connection) -> float:
    started = time.monotonic()
    work()  # type: ignore[operator]
    session.commit()
    return time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
