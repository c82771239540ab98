"""The world of a schedule: its rows, how it may begin, and what its sessions say."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.product import COUNTS, counts

# How a schedule begins: without usage; with usage that nobody has rolled up or queued, as before an
# upgrade; with the same usage rolled up.
STARTS = ("new", "history", "rolled_up")

# The history, and three slices of it that anybody may walk.
PLANNED = "planned"

# Rolled up, and then changed by hand: what only a comparison finds.
DAMAGED = "damaged"

_EMPTIED = (
    *("task_usage", "agent_task_queue", "issue", "project", "agent", "agent_runtime", "workspace"),
    *("task_usage_hourly", "task_usage_hourly_dirty", "task_usage_hourly_invalidation"),
    *("task_usage_hourly_backfill", "task_usage_hourly_set_aside"),
)
TABLES = (*_EMPTIED, "task_usage_hourly_rollup_state")

# A vacuum that comes by makes TRUNCATE fail, or not.
QUIET = "; ".join(f"ALTER TABLE public.{table} SET (autovacuum_enabled = off)" for table in TABLES)

# Statistics of a history, by which a proof is cut into parts; a start takes the rows away again.
STATISTICS = (
    "INSERT INTO task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, provider, model)"
    " SELECT h, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), '', ''"
    " FROM generate_series(timestamptz '2025-03-01 00:00+00', '2025-03-08 00:00+00', '6 hours') h;"
    " ANALYZE task_usage_hourly (bucket_hour)"
)


def _id(kind: str, number: int) -> str:
    """Return the same id of the same row in every schedule."""
    return f"'{'wragpitu'.index(kind):08x}-0000-4000-8000-{number:012x}'::uuid"


# Two workspaces; the second has one runtime, agent, project and issue, the first the others.
_WORLD = "; ".join(
    [
        *(
            f"INSERT INTO workspace (id, name, slug) VALUES ({_id('w', n)}, 'w{n}', 'w{n}')"
            " ON CONFLICT DO NOTHING"
            for n in range(2)
        ),
        *(
            "INSERT INTO agent_runtime (id, workspace_id, daemon_id, name, runtime_mode, provider)"
            f" VALUES ({_id('r', n)}, {_id('w', n // 2)}, 'r{n}', 'r{n}', 'local', 'claude')"
            " ON CONFLICT DO NOTHING"
            for n in range(3)
        ),
        *(
            "INSERT INTO agent (id, workspace_id, name, runtime_mode, runtime_id)"
            f" VALUES ({_id('a', n)}, {_id('w', n // 2)}, 'a{n}', 'local', {_id('r', n)})"
            " ON CONFLICT DO NOTHING"
            for n in range(3)
        ),
        *(
            "INSERT INTO project (id, workspace_id, title)"
            f" VALUES ({_id('p', n)}, {_id('w', n // 2)}, 'p{n}') ON CONFLICT DO NOTHING"
            for n in range(3)
        ),
        *(
            "INSERT INTO issue (id, workspace_id, title, creator_type, creator_id, number, project_id)"
            f" VALUES ({_id('i', n)}, {_id('w', n // 3)}, 'i{n}', 'member', {_id('u', 0)}, {n},"
            f" {('NULL', _id('p', 0), _id('p', 1), _id('p', 2))[n]}) ON CONFLICT DO NOTHING"
            for n in range(4)
        ),
        *(
            "INSERT INTO agent_task_queue (id, agent_id, runtime_id, issue_id, status)"
            f" VALUES ({_id('t', n)}, {_id('a', n % 3)}, {_id('r', n % 3)},"
            f" {(_id('i', 1), _id('i', 0), _id('i', 3), 'NULL')[n]}, 'completed') ON CONFLICT DO NOTHING"
            for n in range(4)
        ),
    ]
)


def _counts(tokens: int) -> str:
    return ", ".join(map(str, counts(tokens).values()))


_USAGE = (
    f"INSERT INTO task_usage (task_id, provider, model, {COUNTS}, created_at, updated_at) VALUES"
    f" ({_id('t', 0)}, 'claude', 'm0', {_counts(100)}, '2025-03-01 10:15+00', '2025-03-01 10:15+00'),"
    f" ({_id('t', 0)}, 'claude', 'm1', {_counts(200)}, '2025-03-01 11:15+00', '2025-03-03 11:15+00'),"
    f" ({_id('t', 1)}, 'claude', 'm0', {_counts(300)}, '2025-03-01 10:45+00', NULL),"
    f" ({_id('t', 2)}, 'claude', 'm0', {_counts(400)}, now() - interval '3 hours',"
    " now() - interval '1 hour'),"
    f" ({_id('t', 3)}, 'claude', 'm1', {_counts(500)}, '2025-03-07 10:45+00', NULL);"
    # The triggers see a replica's session too.
    " DELETE FROM task_usage_hourly_invalidation"
)

_RESET = (
    "BEGIN; SET LOCAL session_replication_role = replica;"
    + "".join(f" DELETE FROM {table};" for table in _EMPTIED)
    + f" {_WORLD};"
)
_ROLLED_UP = (
    f" {_USAGE}; SELECT rollup_task_usage_hourly_range('2025-03-01', '2025-04-01'),"
    " rollup_task_usage_hourly_range(date_trunc('day', now()) - interval '1 day', date_trunc('hour', now()));"
)
_START = {
    "new": "",
    "history": f" {_USAGE};",
    "rolled_up": _ROLLED_UP,
    PLANNED: f" {_USAGE}; UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch';"
    " SELECT rollup_task_usage_hourly_plan(clock_timestamp(), 2);",
    DAMAGED: f"{_ROLLED_UP} UPDATE task_usage_hourly SET input_tokens = input_tokens + 7"
    " WHERE bucket_hour = '2025-03-01 10:00+00';"
    " DELETE FROM task_usage_hourly WHERE bucket_hour = '2025-03-07 10:00+00';",
}
# At these, every event until now is rolled up.
_PASSED = {"rolled_up", DAMAGED}


def beginning(start: str) -> str:
    """Return what takes the database back to the rows of `start`, as one transaction."""
    watermark = "clock_timestamp()" if start in _PASSED else "'epoch'"
    return (
        f"{_RESET}{_START[start]}"
        f" UPDATE task_usage_hourly_rollup_state SET watermark_at = {watermark}; COMMIT"
    )


DATES = (
    *("'2025-03-01 10:30+00'::timestamptz", "'2025-03-01 11:30+00'::timestamptz"),
    *("'2025-03-05 10:30+00'::timestamptz", "now() - interval '26 hours'"),
    *(
        "now() - interval '1 second'",
        "now()",
        "'2200-01-01 10:30+00'::timestamptz",
        "'infinity'::timestamptz",
    ),
)


def statement(verb: str, a: int, b: int, step: int) -> str:
    """Return the SQL of a writer's or ticker's verb; `step` makes every number of tokens new."""
    return _STATEMENTS[verb](a, b, step)


def _upsert(task: int, model: int, step: int, created_at: str, updated_at: str) -> str:
    reported = ", ".join(f"{column} = EXCLUDED.{column}" for column in counts(step))
    return (
        f"INSERT INTO task_usage (task_id, provider, model, {COUNTS}, created_at, updated_at)"
        f" VALUES ({_id('t', task % 4)}, 'claude', 'm{model % 2}', {_counts(step)},"
        f" {created_at}, {updated_at})"
        f" ON CONFLICT (task_id, provider, model) DO UPDATE SET {reported}, updated_at = EXCLUDED.updated_at"
    )


def _one_count(step: int) -> str:
    """Return what sets one of the counts, another one in another step."""
    return f"{[*counts(step)][step % 4]} = {step}"


def _dated(a: int, b: int, step: int) -> str:
    date = DATES[b % len(DATES)]
    return _upsert(a, b, step, date, (date, "NULL", "now()")[a // 4])


def _which(a: int, b: int) -> str:
    return f"task_id = {_id('t', a % 4)} AND model = 'm{b % 2}'"


def _set_task(column: str, kind: str, count: int) -> Callable[[int, int, int], str]:
    def move(a: int, b: int, step: int) -> str:
        value = "NULL" if kind == "i" and b == 7 else _id(kind, b % count)
        return f"UPDATE agent_task_queue SET {column} = {value} WHERE id = {_id('t', a % 4)}"

    return move


def _delete(table: str, kind: str, count: int) -> Callable[[int, int, int], str]:
    return lambda a, b, step: f"DELETE FROM {table} WHERE id = {_id(kind, a % count)}"


def _tear_down(a: int, b: int, step: int) -> str:
    """Delete a workspace as releases since v0.4.16 do: their triggers silent, its buckets by hand."""
    workspace = _id("w", a % 2)
    deletions = [
        f"DELETE FROM task_usage_hourly WHERE workspace_id = {workspace};"
        f" DELETE FROM task_usage_hourly_dirty WHERE workspace_id = {workspace}",
        f"DELETE FROM workspace WHERE id = {workspace}",
    ]
    return "; ".join(
        [
            "SELECT pg_advisory_xact_lock(4246), set_config('multica.workspace_teardown', 'on', true)",
            *(deletions if b % 2 else reversed(deletions)),
        ]
    )


_STATEMENTS: dict[str, Callable[[int, int, int], str]] = {
    # Usage, as the server reports it and as it does not.
    "report": lambda a, b, step: _upsert(a, b, step, "now()", "now()"),
    "import": _dated,
    "correct": lambda a, b, step: (
        f"UPDATE task_usage SET {_one_count(step)}, updated_at = now() WHERE {_which(a, b)}"
    ),
    "correct_silently": lambda a, b, step: f"UPDATE task_usage SET {_one_count(step)} WHERE {_which(a, b)}",
    "correct_with_a_date": lambda a, b, step: (
        f"UPDATE task_usage SET {_one_count(step)},"
        f" updated_at = {(*DATES, 'NULL')[a % (len(DATES) + 1)]} WHERE {_which(a, b)}"
    ),
    "move_usage_in_time": lambda a, b, step: (
        f"UPDATE task_usage SET created_at = {DATES[b % len(DATES)]} WHERE task_id = {_id('t', a % 4)}"
    ),
    "move_usage_to_task": lambda a, b, step: (
        f"UPDATE task_usage SET task_id = {_id('t', b % 4)} WHERE {_which(a, b)}"
    ),
    "rename_model": lambda a, b, step: f"UPDATE task_usage SET model = 'm{b % 3}' WHERE {_which(a, b + 1)}",
    "delete_usage": lambda a, b, step: f"DELETE FROM task_usage WHERE task_id = {_id('t', a % 4)}",
    "truncate_usage": lambda a, b, step: "TRUNCATE task_usage",
    "truncate_tasks": lambda a, b, step: "TRUNCATE agent_task_queue CASCADE",
    # What usage belongs to.
    "delete_task": _delete("agent_task_queue", "t", 4),
    "delete_issue": _delete("issue", "i", 4),
    "delete_project": _delete("project", "p", 3),
    "delete_agent": _delete("agent", "a", 3),
    "delete_runtime": lambda a, b, step: (
        f"DELETE FROM agent WHERE runtime_id = {_id('r', a % 3)};"
        f" DELETE FROM agent_runtime WHERE id = {_id('r', a % 3)}"
    ),
    "delete_runtime_only": _delete("agent_runtime", "r", 3),
    "delete_workspace": _delete("workspace", "w", 2),
    "tear_down": _tear_down,
    "put_back": lambda a, b, step: _WORLD,
    # What the server says in every edit, and nothing else.
    "touch": lambda a, b, step: (
        f"UPDATE issue SET project_id = project_id, title = 'step {step}' WHERE id = {_id('i', a % 4)};"
        " UPDATE agent_task_queue SET runtime_id = runtime_id, status = 'failed'"
        f" WHERE id = {_id('t', b % 4)}"
    ),
    "move_issue": lambda a, b, step: (
        f"UPDATE issue SET project_id = {'NULL' if b == 7 else _id('p', b % 3)} WHERE id = {_id('i', a % 4)}"
    ),
    "move_task_to_issue": _set_task("issue_id", "i", 4),
    "move_task_to_agent": _set_task("agent_id", "a", 3),
    "move_task_to_runtime": _set_task("runtime_id", "r", 3),
    "merge_runtimes": lambda a, b, step: (
        f"UPDATE agent_task_queue SET runtime_id = {_id('r', b % 3)} WHERE runtime_id = {_id('r', a % 3)}"
    ),
    "move_agent": lambda a, b, step: (
        f"UPDATE agent SET workspace_id = {_id('w', b % 2)} WHERE id = {_id('a', a % 3)}"
    ),
    # The pipeline.
    "tick": lambda a, b, step: "SELECT rollup_task_usage_hourly()",
    "tick_without_time": lambda a, b, step: (
        "SELECT set_config('usage_rollup.tick_budget', '0', true); SELECT rollup_task_usage_hourly()"
    ),
    "window_of_the_queue": lambda a, b, step: (
        "SELECT rollup_task_usage_hourly_window('-infinity', '-infinity')"
    ),
    "window_of_everything": lambda a, b, step: (
        "SELECT rollup_task_usage_hourly_window('-infinity', 'infinity')"
    ),
    "prune": lambda a, b, step: f"SELECT prune_task_usage_hourly_dirty('{a % 2} days')",
}
