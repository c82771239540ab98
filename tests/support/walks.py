"""Stop an upgrade at a chosen slice of its walk, on purpose and without sleeping.

A slice inserts whole hours into an hourly table that is empty there, and those before them are committed. A
test's open transaction that has inserted one of the same keys makes that insert wait, visibly, until the test
lets go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import psycopg

from tests.support.database import Database
from tests.support.product import wait_until
from tests.support.v034 import generate_history

_BLOCKED = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'usage-rollup' AND wait_event_type = 'Lock'
"""

_MONTHS = """
SELECT DISTINCT date_trunc('month', {column} AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' FROM {table} ORDER BY 1
"""

# The rows in their order, but as many of them in each month, the first at its beginning.
_AS_MANY_EACH_MONTH = """
WITH numbered AS (
    SELECT id, row_number() OVER (ORDER BY created_at, id) - 1 AS n, count(*) OVER () AS rows,
        min(created_at) OVER () AS first, max(created_at) OVER () AS last
    FROM task_usage
), months AS (
    SELECT month, lead(month) OVER (ORDER BY month) AS next, row_number() OVER (ORDER BY month) - 1 AS number,
        count(*) OVER () AS months
    FROM (SELECT DISTINCT date_trunc('month', created_at, 'UTC') AS month FROM task_usage) AS found
)
UPDATE task_usage AS tu SET created_at = m.month
    + (LEAST(m.next, n.last) - m.month) * (n.n % each.rows) / each.rows
FROM numbered AS n
CROSS JOIN LATERAL (SELECT ceil(n.rows::numeric / (SELECT count(*) FROM months))::int AS rows) AS each
JOIN months AS m ON m.number = n.n / each.rows
WHERE tu.id = n.id
"""


def write_history(database: Database, rows: int = 400, months: int = 6) -> list[datetime]:
    """Write a history and return its months in UTC: a walk takes one slice for each."""
    with database.connect() as connection:
        generate_history(connection, rows, months=months, agents=6)
        connection.execute(_AS_MANY_EACH_MONTH)
    months_there = history_months(database)
    slices_of(database, -(-rows // len(months_there)))
    return months_there


def slices_of(database: Database, rows: int) -> None:
    """Let walks that begin from now on take slices of so many usage rows."""
    database.execute(f"ALTER DATABASE {database.name} SET usage_rollup.slice_rows = '{rows}'")


def history_months(database: Database) -> list[datetime]:
    """Return the months of raw usage in UTC."""
    return [row[0] for row in database.execute(_MONTHS.format(column="created_at", table="task_usage"))]


def committed_months(database: Database) -> list[datetime]:
    """Return the months that are rolled up, as any other session sees them."""
    query = _MONTHS.format(column="bucket_hour", table="task_usage_hourly")
    return [row[0] for row in database.execute(query)]


@contextmanager
def blocked_at(database: Database, month: datetime) -> Iterator[psycopg.Connection[Any]]:
    """Make the slice that rolls up `month` wait as long as the block lasts; needs the schema of 102."""
    with database.connect(application_name="in the way") as connection:
        connection.execute(
            """
            INSERT INTO task_usage_hourly
                (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model)
            SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model
            FROM task_usage_hourly_expected(%(month)s, %(month)s + interval '1 month')
            ORDER BY bucket_hour LIMIT 1
            """,
            {"month": month},
        )
        yield connection
        # Its server may be down by then.
        with suppress(psycopg.OperationalError):
            connection.rollback()


def wait_until_blocked(database: Database) -> int:
    """Wait until the upgrade waits for a lock; return the pid of its backend."""
    wait_until(lambda: database.execute(_BLOCKED), "the upgrade waits for a lock")
    pid: int = database.value(_BLOCKED)
    return pid


def migrating_backend(database: Database, relation: str) -> int | None:
    """Return the pid of the migration session while it waits for a lock on `relation`."""
    rows = database.execute(
        "SELECT l.pid FROM pg_locks l JOIN pg_stat_activity s USING (pid)"
        " WHERE l.relation = %s::regclass AND NOT l.granted AND s.application_name = 'usage-rollup'"
        " AND s.datname = current_database()",
        relation,
    )
    return rows[0][0] if rows else None


def runners(database: Database) -> int:
    """Count the sessions of upgrades."""
    count: int = database.value(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'usage-rollup'"
    )
    return count


def advisory_locks(database: Database) -> list[int]:
    """Return the keys of the advisory locks that any session holds or waits for."""
    return [
        row[0]
        for row in database.execute(
            "SELECT classid::bigint << 32 | objid::bigint FROM pg_locks WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    ]


def waiters(database: Database) -> int:
    """Count the sessions that are blocked on 4246."""
    count: int = database.value(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4246 AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return count


def slices(output: str) -> int:
    """Count the slices that an upgrade or a backfill reported."""
    return len(re.findall(r"(?:\]|Z) slice \d+: ", output))
