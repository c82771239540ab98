"""What must hold after every commit of a schedule, and what at its end, as SQL."""

from __future__ import annotations

from tests.support.oracle import DIFFERING

# Of the last watermark, and whether a later release's pipeline is installed: hours that are wrong, the
# watermark, whether it went back, whether it lies beyond the clock, who holds 4246, who writes without it.
JUDGE = f"""
PREPARE judge (timestamptz, boolean) AS
WITH held AS (
    SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted
        AND classid = 0 AND objid = 4246 AND objsubid = 1
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
)
SELECT
    -- The product's own window files undated usage too.
    (SELECT string_agg(d.bucket_hour::text, ', ') FROM ({DIFFERING}) AS d
     WHERE NOT $2 OR d.bucket_hour >= '0001-01-01 00:00+00' AND d.bucket_hour < '9999-01-01 00:00+00'),
    s.watermark_at::text, s.watermark_at < $1, s.watermark_at > clock_timestamp(),
    (SELECT string_agg(pid::text, ' ') FROM held),
    (SELECT string_agg(l.pid::text, ' ') FROM pg_locks l
     WHERE l.relation = 'task_usage_hourly'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND l.pid <> pg_backend_pid() AND l.pid NOT IN (SELECT pid FROM held))
FROM task_usage_hourly_rollup_state s
"""

QUEUED = (
    "SELECT (SELECT count(*) FROM task_usage_hourly_invalidation)"
    " + (SELECT count(*) FROM task_usage_hourly_dirty) + (SELECT count(*) FROM task_usage_hourly_set_aside)"
)

DATED_LATER = (
    "SELECT EXISTS (SELECT FROM task_usage WHERE COALESCE(updated_at, created_at) > clock_timestamp())"
)

BEHIND = (
    "SELECT EXISTS (SELECT FROM task_usage, task_usage_hourly_rollup_state"
    " WHERE COALESCE(updated_at, created_at) BETWEEN watermark_at AND clock_timestamp())"
)
