"""What the database needs at least, typed by somebody who knows it."""

from __future__ import annotations

import time

import psycopg

_AGGREGATE = """
SELECT task_usage_hour_bucket(tu.created_at) AS bucket_hour, a.workspace_id, q.runtime_id, q.agent_id,
    i.project_id, tu.provider, tu.model, SUM(tu.input_tokens) AS input_tokens,
    SUM(tu.output_tokens) AS output_tokens, SUM(tu.cache_read_tokens) AS cache_read_tokens,
    SUM(tu.cache_write_tokens) AS cache_write_tokens, COUNT(DISTINCT tu.task_id) AS task_count,
    COUNT(*) AS event_count
FROM task_usage tu JOIN agent_task_queue q ON q.id = tu.task_id JOIN agent a ON a.id = q.agent_id
LEFT JOIN issue i ON i.id = q.issue_id
GROUP BY 1, 2, 3, 4, 5, 6, 7
"""

# One statement, into the table with its five indexes, as a DBA would type it into psql.
_BARE = f"""
INSERT INTO task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider,
    model, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, task_count, event_count)
{_AGGREGATE}
"""

# The engine's own limit: a new table, which parallel workers may fill, and its indexes afterwards. Tasks are
# unique in a bucket, and COUNT(DISTINCT) would keep it from aggregating in parallel.
_LIMIT = [
    f"CREATE TABLE bench_limit AS {_AGGREGATE.replace('COUNT(DISTINCT tu.task_id)', 'COUNT(*)')}",
    "CREATE UNIQUE INDEX ON bench_limit"
    " (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model)",
    "CREATE INDEX ON bench_limit (workspace_id, bucket_hour DESC)",
    "CREATE INDEX ON bench_limit (runtime_id, bucket_hour DESC)",
    "CREATE INDEX ON bench_limit (workspace_id, agent_id, bucket_hour DESC)",
    "CREATE INDEX ON bench_limit (workspace_id, project_id, bucket_hour DESC) WHERE project_id IS NOT NULL",
]


def measure(url: str) -> tuple[float, float, int]:
    """Return the seconds of the bare aggregate and of the limit, and the number of buckets; leave nothing."""
    with psycopg.connect(url, autocommit=True) as connection:
        bare = _seconds(connection, [_BARE])
        row = connection.execute("SELECT COUNT(*) FROM task_usage_hourly").fetchone()
        connection.execute("TRUNCATE task_usage_hourly")
        connection.execute("CHECKPOINT")
        limit = _seconds(connection, _LIMIT)
        connection.execute("DROP TABLE bench_limit")
        connection.execute("CHECKPOINT")
    assert row is not None
    return bare, limit, row[0]


def _seconds(connection: psycopg.Connection, statements: list[str]) -> float:
    started = time.monotonic()
    for statement in statements:
        connection.execute(statement)
    return time.monotonic() - started
