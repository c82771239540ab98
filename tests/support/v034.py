"""Build a database as the product's Go runner leaves it at v0.3.4, and fill it with a history."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import sql
from psycopg.types.numeric import Int4

from usage_rollup import revisions

BASELINE = "097_autopilot_project_id"

# The stems that matter to somebody; every other number gets a neutral one, 26 of them two.
_NAMED = {
    72: ("072_task_usage_updated_at",),
    73: ("073_task_usage_daily_schema",),
    74: ("074_task_usage_daily_pipeline",),
    75: ("075_task_usage_daily_dirty",),
    76: ("076_task_usage_daily_triggers",),
    77: ("077_task_usage_daily_lag",),
    78: ("078_task_usage_daily_indexes",),
    81: ("081_agent_runtime_timezone",),
    82: ("082_task_usage_daily_runtime_timezone",),
    84: ("084_squad", "084_task_usage_dashboard_rollup"),
    97: (BASELINE,),
}
V034_STEMS: tuple[str, ...] = tuple(
    stem
    for number in range(1, 98)
    for stem in _NAMED.get(
        number,
        (f"{number:03}_v034_step", f"{number:03}_v034_step_b")[: 2 if 11 <= number <= 36 else 1],
    )
)

WORKSPACES = 5
USERS = 8
RUNTIMES = 3 * WORKSPACES
PROJECTS = 4 * WORKSPACES
ZONES = (
    *("UTC", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Europe/Berlin"),
    *("Australia/Adelaide", "Australia/Lord_Howe", "Pacific/Chatham", "America/St_Johns"),
    *("Asia/Shanghai", "America/Los_Angeles", "Pacific/Apia"),
)
# A task uses up to four neighbours of this ring. Two models appear under two providers, because
# the legacy dashboard's key has no provider; one provider is the column's default, the empty text.
MODELS = (
    ("claude", "claude-sonnet-4-5"),
    ("claude", "claude-haiku-4-5"),
    ("codex", "gpt-5-codex"),
    ("codex", "gpt-5-mini"),
    ("opencode", "claude-sonnet-4-5"),
    ("gemini", "gemini-2.5-pro"),
    ("", "gpt-5-mini"),
    ("cursor", "auto"),
)


@dataclass(frozen=True)
class History:
    """Count what `generate_history` wrote, and bound its instants."""

    workspaces: int
    users: int
    runtimes: int
    agents: int
    projects: int
    issues: int
    tasks: int  # pending ones without usage included
    usage_rows: int
    never_updated: int  # updated_at IS NULL
    corrected: int  # updated_at more than an hour after created_at
    since: datetime  # nothing was created earlier, `until`: nothing happened later
    until: datetime
    first_created_at: datetime | None
    last_created_at: datetime | None


def build_v034(conn: psycopg.Connection) -> None:
    """Create the v0.3.4 schema and its Go ledger in an empty database, in one transaction.

    Commits unless the caller is inside a transaction; a crash leaves nothing.
    """
    with conn.transaction():
        conn.execute(revisions.sql("097").encode())
        conn.execute(
            "CREATE TABLE public.schema_migrations ("
            " version text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        conn.execute(
            "INSERT INTO public.schema_migrations (version) SELECT unnest(%s::text[])",
            [list(V034_STEMS)],
        )


def generate_history(
    conn: psycopg.Connection,
    rows: int = 200_000,
    *,
    months: int = 18,
    agents: int = 60,
    seed: int = 1,
    until: datetime | None = None,
    analyze: bool = True,
) -> History:
    """Write `rows` rows of task_usage, and everything they hang on, over `months` months.

    The same seed, sizes and `until` give the same rows, ids included; another seed's history may
    stand beside it. `until` defaults to ten minutes before the database's clock; the newest row
    is at most 75 minutes older. One row in ten has updated_at NULL, one in twenty was corrected up
    to half a year after its creation; nothing lies after `until`. Commits unless the caller is
    inside a transaction; a crash leaves nothing. Needs the schema of v0.3.4 to 103.
    """
    tasks = rows // 10 * 4 + bisect_left((0, 1, 3, 6), rows % 10)  # see _USAGE
    bursts = tasks // 100 * 5 + bisect_left((0, 20, 36, 60, 78), tasks % 100)  # see _TASKS
    issues_each = max(1, tasks // (8 * WORKSPACES))
    with conn.transaction():
        since, until = _period(conn, months, until)
        counts = {
            "rows": rows,
            "tasks": tasks,
            "bursts": bursts,
            "agents": agents,
            "seed": seed,
            "issues_each": issues_each,
            "workspaces": WORKSPACES,
            "users": USERS,
            "runtimes": RUNTIMES,
            "projects": PROJECTS,
        }
        values = {
            # psycopg sends a small number as smallint, whose products overflow.
            **{name: Int4(count) for name, count in counts.items()},
            "since": since,
            "until": until,
            "zones": list(ZONES),
            "providers": [provider for provider, _ in MODELS],
            "models": [model for _, model in MODELS],
        }
        conn.execute(sql.SQL(_FUNCTIONS).format(seed=seed, slash_seed=f"/{seed}/"))
        for statement in (*_PEOPLE_AND_PLACES, _BURSTS, _TASKS):
            conn.execute(statement, values)
        with _indexes_built_afterwards(conn):
            conn.execute(_QUEUE, values)
            written = conn.execute(_USAGE, values).fetchone()
        assert written is not None
        conn.execute(_CLEAN_UP)
        if analyze:
            conn.execute(_ANALYZE)
    usage_rows, never_updated, corrected, first, last = written
    return History(
        workspaces=WORKSPACES,
        users=USERS,
        runtimes=RUNTIMES,
        agents=agents,
        projects=PROJECTS,
        issues=WORKSPACES * issues_each,
        tasks=tasks + agents,
        usage_rows=usage_rows,
        never_updated=never_updated,
        corrected=corrected,
        since=since,
        until=until,
        first_created_at=first,
        last_created_at=last,
    )


def _period(conn: psycopg.Connection, months: int, until: datetime | None) -> tuple[datetime, datetime]:
    """Return since and until; months are counted in UTC, whatever the session's zone."""
    row = conn.execute(
        """
        SELECT (u AT TIME ZONE 'UTC' - make_interval(months => %s)) AT TIME ZONE 'UTC', u
        FROM coalesce(%s::timestamptz, now() - interval '10 minutes') AS u
        """,
        (months, until),
    ).fetchone()
    assert row is not None
    return row[0], row[1]


@contextmanager
def _indexes_built_afterwards(conn: psycopg.Connection) -> Iterator[None]:
    """Drop the two large tables' foreign keys and indexes but the primary keys, and restore them.

    Everything is in the caller's transaction. Building them over the finished rows takes a third
    of the time of keeping them up row by row, and checks the rows all the same.
    """
    pieces = conn.execute(_REBUILT).fetchall()
    for drop, _ in pieces:
        conn.execute(drop)
    yield
    for _, create in pieces:
        conn.execute(create)


# Pseudo-random numbers are hashes of a purpose, the seed and the row's number: the partitioning
# hashes, whose values PostgreSQL keeps between releases. Only +, *, / and sqrt touch them, which
# IEEE 754 rounds alike everywhere.
_FUNCTIONS = """
CREATE FUNCTION pg_temp.u(purpose text, n bigint) RETURNS float8 IMMUTABLE LANGUAGE sql AS
$$SELECT (hashint8extended(n, hashtextextended(purpose, {seed})) & 16777215)::float8 / 16777216$$;
CREATE FUNCTION pg_temp.pick(purpose text, n bigint, choices bigint) RETURNS bigint
IMMUTABLE LANGUAGE sql AS $$SELECT floor(pg_temp.u(purpose, n) * choices)::bigint$$;
CREATE FUNCTION pg_temp.id(kind text, n bigint) RETURNS uuid IMMUTABLE LANGUAGE sql AS
$$SELECT md5(kind || {slash_seed} || n::text)::uuid$$;
"""
_ANALYZE = """
ANALYZE public."user", public.workspace, public.agent_runtime, public.agent, public.project,
        public.issue, public.agent_task_queue, public.task_usage
"""
_CLEAN_UP = """
DROP TABLE pg_temp.v034_task, pg_temp.v034_burst;
DROP FUNCTION pg_temp.u, pg_temp.pick, pg_temp.id;
"""

_PEOPLE_AND_PLACES = (
    """
    INSERT INTO public."user" (id, name, email, created_at, updated_at)
    SELECT pg_temp.id('user', n), 'User ' || n, format('user-%%s-%%s@example.test', %(seed)s, n),
           %(since)s, %(since)s
    FROM generate_series(0, %(users)s - 1) AS n
    """,
    """
    INSERT INTO public.workspace
           (id, name, slug, issue_prefix, issue_counter, created_at, updated_at)
    SELECT pg_temp.id('workspace', n), 'Workspace ' || n,
           format('workspace-%%s-%%s', %(seed)s, n), 'W' || n, %(issues_each)s,
           %(since)s, %(since)s
    FROM generate_series(0, %(workspaces)s - 1) AS n
    """,
    """
    INSERT INTO public.agent_runtime
           (id, workspace_id, daemon_id, name, runtime_mode, provider, status, last_seen_at,
            owner_id, timezone, created_at, updated_at)
    SELECT pg_temp.id('runtime', n), pg_temp.id('workspace', mod(n, %(workspaces)s)),
           'daemon-' || n, 'Runtime ' || n,
           CASE WHEN mod(n, 4) = 0 THEN 'cloud' ELSE 'local' END,
           (ARRAY['claude', 'codex', 'gemini'])[1 + mod(n, 3)],
           CASE WHEN mod(n, 3) = 0 THEN 'offline' ELSE 'online' END, %(until)s,
           pg_temp.id('user', mod(n, %(users)s)),
           (%(zones)s::text[])[1 + mod(n, cardinality(%(zones)s::text[]))], %(since)s, %(since)s
    FROM generate_series(0, %(runtimes)s - 1) AS n
    """,
    """
    INSERT INTO public.agent
           (id, workspace_id, name, runtime_mode, status, owner_id, runtime_id, created_at,
            updated_at)
    SELECT pg_temp.id('agent', n), pg_temp.id('workspace', mod(n, %(workspaces)s)), 'Agent ' || n,
           'local', 'idle', pg_temp.id('user', mod(n, %(users)s)),
           pg_temp.id('runtime', mod(n, %(runtimes)s)), %(since)s, %(since)s
    FROM generate_series(0, %(agents)s - 1) AS n
    """,
    """
    INSERT INTO public.project (id, workspace_id, title, status, created_at, updated_at)
    SELECT pg_temp.id('project', n), pg_temp.id('workspace', mod(n, %(workspaces)s)),
           'Project ' || n, 'in_progress', %(since)s, %(since)s
    FROM generate_series(0, %(projects)s - 1) AS n
    """,
    # Three issues in ten have no project.
    """
    INSERT INTO public.issue
           (id, workspace_id, title, status, creator_type, creator_id, number, project_id,
            created_at, updated_at)
    SELECT pg_temp.id('issue', n), pg_temp.id('workspace', mod(n, %(workspaces)s)), 'Issue ' || n,
           'in_progress', 'member', pg_temp.id('user', pg_temp.pick('creator', n, %(users)s)),
           n / %(workspaces)s + 1,
           CASE WHEN pg_temp.u('filed', n) < 0.7
                THEN pg_temp.id('project', mod(n, %(workspaces)s) + %(workspaces)s
                                * pg_temp.pick('project', n, %(projects)s / %(workspaces)s)) END,
           %(since)s, %(since)s
    FROM generate_series(0, %(workspaces)s * %(issues_each)s - 1) AS n
    """,
)

# Indexes that belong to a constraint go and come with it.
_REBUILT = """
SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
       format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname,
              pg_get_constraintdef(oid))
FROM pg_constraint
WHERE conrelid IN ('public.agent_task_queue'::regclass, 'public.task_usage'::regclass)
  AND contype IN ('f', 'u')
UNION ALL
SELECT format('DROP INDEX %s', indexrelid::regclass), pg_get_indexdef(indexrelid)
FROM pg_index
WHERE indrelid IN ('public.agent_task_queue'::regclass, 'public.task_usage'::regclass)
  AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u'))
"""

# A burst is one agent's work of an hour or so, begun in the order of n and more often as time goes
# by; the last one ends near `until`. One burst in ten may have run elsewhere than on the agent's
# runtime of today.
_BURSTS = """
CREATE TEMPORARY TABLE v034_burst AS
SELECT n, agent, mod(agent, %(workspaces)s) AS workspace,
       CASE WHEN pg_temp.u('moved', n) < 0.1
            THEN mod(agent, %(workspaces)s) + %(workspaces)s
                 * pg_temp.pick('runtime', n, %(runtimes)s / %(workspaces)s)
            ELSE mod(agent, %(runtimes)s) END AS runtime,
       progress,
       %(since)s + sqrt(progress) * sqrt(sqrt(progress))
                   * (%(until)s - interval '75 minutes' - %(since)s) AS begun_at
FROM (SELECT n, pg_temp.pick('agent', n, %(agents)s) AS agent,
             CASE WHEN n < %(bursts)s - 1 THEN (n + pg_temp.u('begun', n)) / %(bursts)s ELSE 1 END
             AS progress
      FROM generate_series(0, %(bursts)s - 1) AS n) AS burst
"""

# 100 tasks make five bursts of 16 to 24, and up to five in a row belong to one issue. One such
# group in ten has no issue; one in two hundred has one of another workspace, because usage belongs
# to the agent's workspace and not to the issue's.
_TASKS = """
CREATE TEMPORARY TABLE v034_task AS
SELECT t.n, t.burst, pg_temp.id('task', t.n) AS id, b.agent, b.runtime,
       CASE WHEN pg_temp.u('issue', t.n / 5) < 0.1 THEN NULL
            ELSE mod(b.workspace + (pg_temp.u('elsewhere', t.n / 5) < 0.005)::int, %(workspaces)s)
                 + %(workspaces)s * floor(
                   %(issues_each)s * (0.95 * b.progress + 0.05 * pg_temp.u('recent', t.n / 5))
                   )::bigint
       END AS issue,
       b.begun_at + make_interval(secs => place * 150 + 60 * pg_temp.u('gap', t.n)) AS created_at,
       make_interval(secs => 2 + 58 * pg_temp.u('wait', t.n)) AS waited,
       make_interval(secs => 20 + 500 * pg_temp.u('work', t.n)) AS worked
FROM (SELECT n, n / 100 * 5 + part AS burst,
             mod(n, 100) - (ARRAY[0, 20, 36, 60, 78])[part + 1] AS place
      FROM (SELECT n, width_bucket(mod(n, 100), ARRAY[20, 36, 60, 78]) AS part
            FROM generate_series(0, %(tasks)s - 1) AS n) AS numbered) AS t
JOIN v034_burst AS b ON b.n = t.burst
ORDER BY t.n
"""

_QUEUE = """
INSERT INTO public.agent_task_queue
       (id, agent_id, issue_id, status, dispatched_at, started_at, completed_at, created_at,
        runtime_id)
SELECT id, pg_temp.id('agent', agent), pg_temp.id('issue', issue),
       CASE WHEN pg_temp.u('end', n) < 0.06 THEN 'failed'
            WHEN pg_temp.u('end', n) < 0.08 THEN 'cancelled' ELSE 'completed' END,
       created_at + waited / 2, created_at + waited, created_at + waited + worked, created_at,
       pg_temp.id('runtime', runtime)
FROM v034_task
UNION ALL
SELECT pg_temp.id('pending', n), pg_temp.id('agent', n),
       pg_temp.id('issue', mod(n, %(workspaces)s)
                  + %(workspaces)s * pg_temp.pick('pending', n, %(issues_each)s)),
       'queued', NULL, NULL, NULL, %(until)s - make_interval(secs => 600 * pg_temp.u('sent', n)),
       pg_temp.id('runtime', mod(n, %(runtimes)s))
FROM generate_series(0, %(agents)s - 1) AS n
"""

# Four tasks in a row have one, two, three and four rows: ten, numbered by n.
_USAGE = """
WITH event AS (
    SELECT n, task, (%(providers)s::text[])[model] AS provider,
           (%(models)s::text[])[model] AS model, created_at
    FROM (SELECT t.n / 4 * 10 + (ARRAY[0, 1, 3, 6])[1 + mod(t.n, 4)] + slot AS n, t.id AS task,
                 1 + mod(pg_temp.pick('model', t.burst, 8) + slot, 8) AS model,
                 t.created_at + t.waited + t.worked + slot * interval '0.3 seconds' AS created_at
          FROM v034_task AS t
          JOIN (VALUES (0), (1), (2), (3)) AS slots (slot) ON slot <= mod(t.n, 4)) AS numbered
    WHERE n < %(rows)s
),
written AS (
    INSERT INTO public.task_usage
           (id, task_id, provider, model, input_tokens, output_tokens, cache_read_tokens,
            cache_write_tokens, created_at, updated_at)
    SELECT pg_temp.id('usage', n), task, provider, model,
           (200 + 30000 * pg_temp.u('input', n) * pg_temp.u('input', n))::bigint,
           (50 + 8000 * pg_temp.u('output', n) * pg_temp.u('output', n))::bigint,
           (2000000 * pg_temp.u('read', n) * pg_temp.u('read', n) * pg_temp.u('read', n))::bigint,
           (100000 * pg_temp.u('write', n) * pg_temp.u('write', n))::bigint,
           created_at,
           CASE WHEN pg_temp.u('updated', n) < 0.1 THEN NULL
                WHEN pg_temp.u('updated', n) < 0.15
                THEN created_at + pg_temp.u('late', n)
                     * LEAST(%(until)s - created_at, interval '182 days')
                ELSE created_at + make_interval(secs => 90 * pg_temp.u('soon', n)) END
    FROM event
    RETURNING created_at, updated_at
)
SELECT count(*), count(*) FILTER (WHERE updated_at IS NULL),
       count(*) FILTER (WHERE updated_at > created_at + interval '1 hour'),
       min(created_at), max(created_at)
FROM written
"""
