"""Answer one question: does anything tick the hourly rollup?"""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

# The contract's name for the job; the product's own documentation uses it too.
JOB = "rollup_task_usage_hourly"

# Three of the usual five-minute periods: one tick may be late, and one may find the lock busy.
RECENT = timedelta(minutes=15)


def find(connection: sa.Connection) -> str | None:
    """Say who ticks, in words: a pg_cron job, or a run that finished a while ago; None when nobody does.

    Reads in the caller's transaction, on a database at any revision, and takes no lock. Sees only the
    pg_cron jobs of this role, and none when pg_cron lives in another database: there a recent run tells.
    """
    if connection.scalar(sa.text(_CRON_READABLE)):
        schedule = connection.scalar(sa.text(_SCHEDULE), {"job": JOB})
        if schedule is not None:
            return f"pg_cron job {JOB} ({schedule})"
    if connection.scalar(sa.text(_STATE_READABLE)):
        minutes = connection.scalar(sa.text(_RECENT_RUN), {"recent": RECENT})
        if minutes is not None:
            return "a run finished " + (f"{minutes} min ago" if minutes else "less than a minute ago")
    return None


_CRON_READABLE = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'cron' AND c.relname = 'job'
        AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))
"""

_STATE_READABLE = """
SELECT COALESCE(has_table_privilege(to_regclass('public.task_usage_hourly_rollup_state'), 'SELECT'), false)
"""

_SCHEDULE = """
SELECT schedule FROM cron.job
WHERE database = current_database() AND jobname = :job AND active ORDER BY jobid LIMIT 1
"""

# A server whose clock was set back may have finished a run in the future.
_RECENT_RUN = """
SELECT GREATEST(0, EXTRACT(EPOCH FROM clock_timestamp() - last_run_finished_at))::int / 60
FROM public.task_usage_hourly_rollup_state
WHERE id = 1 AND isfinite(last_run_finished_at) AND last_run_finished_at >= clock_timestamp() - :recent
"""
