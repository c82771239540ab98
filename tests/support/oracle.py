"""The oracle, written apart from the product's own: rollup equals the aggregate of raw usage."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tests.support.closing import Session

# (oracle EXCEPT hourly) and (hourly EXCEPT oracle), by the contract's definition. An hour is judged
# unless an event in it has not been passed by the watermark, or something is queued: any queued row
# here excuses its hour, and a queued task, issue or agent the hours of its usage; so does a bucket that
# is set aside, which tests of that look at themselves.
_DIFFERENCE = """
WITH raw AS (
    SELECT date_trunc('hour', tu.created_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS bucket_hour,
        COALESCE(tu.updated_at, tu.created_at) AS event, a.workspace_id, q.runtime_id, q.agent_id,
        i.project_id, tu.provider, tu.model, tu.input_tokens, tu.output_tokens,
        tu.cache_read_tokens, tu.cache_write_tokens, tu.task_id, q.issue_id
    FROM task_usage tu JOIN agent_task_queue q ON q.id = tu.task_id
    JOIN agent a ON a.id = q.agent_id LEFT JOIN issue i ON i.id = q.issue_id
    -- Hours that clients can read; anything else is reported, not rolled up.
    WHERE tu.created_at >= '0001-01-01 00:00+00' AND tu.created_at < '9999-01-01 00:00+00'
        AND q.runtime_id IS NOT NULL
), oracle AS (
    SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model,
        GREATEST(LEAST(SUM(input_tokens), 9223372036854775807), -9223372036854775808) AS i,
        GREATEST(LEAST(SUM(output_tokens), 9223372036854775807), -9223372036854775808) AS o,
        GREATEST(LEAST(SUM(cache_read_tokens), 9223372036854775807), -9223372036854775808) AS r,
        GREATEST(LEAST(SUM(cache_write_tokens), 9223372036854775807), -9223372036854775808) AS w,
        COUNT(DISTINCT task_id) AS tasks, COUNT(*) AS events
    FROM raw GROUP BY 1, 2, 3, 4, 5, 6, 7
), hourly AS (
    SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model,
        input_tokens::numeric AS i, output_tokens::numeric AS o, cache_read_tokens::numeric AS r,
        cache_write_tokens::numeric AS w, task_count AS tasks, event_count AS events
    FROM task_usage_hourly
), differing AS (
    ((TABLE oracle EXCEPT TABLE hourly) UNION (TABLE hourly EXCEPT TABLE oracle))
)
"""
DIFFERING = f"""
{_DIFFERENCE}
SELECT DISTINCT bucket_hour FROM differing
WHERE bucket_hour NOT IN (
    SELECT bucket_hour FROM raw
    WHERE event >= (SELECT watermark_at FROM task_usage_hourly_rollup_state)
    UNION SELECT bucket_hour FROM task_usage_hourly_dirty
    UNION SELECT raw.bucket_hour FROM raw JOIN task_usage_hourly_invalidation v
        ON (v.task_id = raw.task_id AND v.bucket_hour IS NULL)
        OR v.issue_id = raw.issue_id OR v.agent_id = raw.agent_id
    UNION SELECT bucket_hour FROM task_usage_hourly_invalidation WHERE bucket_hour IS NOT NULL
    UNION SELECT bucket_hour FROM task_usage_hourly_set_aside
    UNION SELECT bucket_hour FROM task_usage_hourly WHERE EXISTS (
        SELECT FROM task_usage_hourly_invalidation
        WHERE num_nonnulls(bucket_hour, task_id, issue_id, agent_id) = 0))
ORDER BY 1
"""

# Whatever is pending, queued or set aside.
WRONG = f"""
{_DIFFERENCE}
SELECT DISTINCT bucket_hour, agent_id, project_id, provider, left(model, 20) FROM differing
WHERE bucket_hour >= '0001-01-01 00:00+00' AND bucket_hour < '9999-01-01 00:00+00' ORDER BY 1, 2, 3, 4, 5
"""

# What 213 added, as the contract defines it, in rows that a window which knows it has written.
_WRONG_COSTS = """
SELECT h.bucket_hour, h.agent_id, h.project_id, h.provider, h.model
FROM task_usage_hourly h
JOIN LATERAL (
    SELECT COALESCE(SUM(tu.cost_usd_ticks), 0) AS cost,
        COALESCE(SUM(tu.input_tokens) FILTER (WHERE tu.cost_usd_ticks IS NULL), 0) AS i,
        COALESCE(SUM(tu.output_tokens) FILTER (WHERE tu.cost_usd_ticks IS NULL), 0) AS o,
        COALESCE(SUM(tu.cache_read_tokens) FILTER (WHERE tu.cost_usd_ticks IS NULL), 0) AS r,
        COALESCE(SUM(tu.cache_write_tokens) FILTER (WHERE tu.cost_usd_ticks IS NULL), 0) AS w
    FROM task_usage tu JOIN agent_task_queue q ON q.id = tu.task_id LEFT JOIN issue i ON i.id = q.issue_id
    WHERE tu.created_at >= h.bucket_hour AND tu.created_at < h.bucket_hour + interval '1 hour'
        AND (q.agent_id, q.runtime_id, tu.provider, tu.model)
        = (h.agent_id, h.runtime_id, h.provider, h.model)
        AND i.project_id IS NOT DISTINCT FROM h.project_id
) raw ON (raw.cost, raw.i, raw.o, raw.r, raw.w) IS DISTINCT FROM (
    h.cost_usd_ticks, h.uncosted_input_tokens, h.uncosted_output_tokens, h.uncosted_cache_read_tokens,
    h.uncosted_cache_write_tokens)
WHERE h.uncosted_input_tokens IS NOT NULL
"""


def differing_hours(url: str) -> list[datetime]:
    """Return the hours in which a committed rollup is wrong; none where there is no rollup yet."""
    with Session.connect(url, options="-c TimeZone=UTC") as connection:
        ready = connection.execute(
            "SELECT to_regclass('public.task_usage_hourly_invalidation') IS NOT NULL"
            " AND to_regclass('public.task_usage_hourly_rollup_state') IS NOT NULL"
        ).fetchone()
        if not ready or not ready[0]:
            return []
        connection.execute("SET search_path = public")
        return [row[0] for row in connection.execute(DIFFERING)]


def wrong_buckets(url: str) -> list[tuple[Any, ...]]:
    """Return the buckets of dated hours that are wrong: hour, agent, project, provider, start of the model.

    Nothing excuses one: neither the watermark, nor a queue, nor that it is set aside.
    """
    return _rows(url, WRONG)


def wrong_costs(url: str) -> list[tuple[Any, ...]]:
    """Return what differs in the columns that later releases add."""
    return _rows(url, _WRONG_COSTS)


def _rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with Session.connect(url, options="-c TimeZone=UTC -c search_path=public") as connection:
        return connection.execute(query).fetchall()
