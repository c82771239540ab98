"""The plans of the pipeline's statements: the cost of what changed, whatever the statistics say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from tests.support.database import ROOT, Connection, Database, MakeDatabase
from tests.support.product import counts, small_world
from tests.support.rollup import UNQUEUE
from tests.support.walks import slices_of
from usage_rollup.hourly.backfill import backfill_before_103
from usage_rollup.session.options import Options

pytestmark = pytest.mark.server

GUARD = (ROOT / "alembic" / "versions" / "103_drop_legacy_daily_rollups.up.sql").read_bytes()

# What a recompute reads, in the order in which it reaches them.
RAW_TABLES = ("task_usage", "agent_task_queue", "agent", "issue")

# The history: every hour has the same tasks, and every task one row of each of two models.
FIRST_HOUR = datetime(2025, 1, 1, tzinfo=UTC)
TASKS_AN_HOUR = 12
MODELS = 2
HOURS = 300

# A function's own SET clauses do not last beyond it, so these are what a caller can bring along.
HOSTILE_SETTINGS = {
    "none": {},
    "dear index pages": {"random_page_cost": "1000", "cpu_index_tuple_cost": "10"},
    "free sequential pages": {"seq_page_cost": "0", "cpu_tuple_cost": "0"},
    "no hash joins": {"enable_hashjoin": "off"},
    "nested loops": {"enable_nestloop": "on", "enable_hashjoin": "off", "enable_mergejoin": "off"},
    "generic plans": {"plan_cache_mode": "force_generic_plan"},
    "compiled": {"jit": "on", "jit_above_cost": "0"},
    "parallel": {
        "parallel_setup_cost": "0",
        "parallel_tuple_cost": "0",
        "min_parallel_table_scan_size": "0",
        "min_parallel_index_scan_size": "0",
        "max_parallel_workers_per_gather": "4",
    },
    "little memory": {"work_mem": "64kB", "effective_cache_size": "8kB"},
    "joins as written": {"join_collapse_limit": "1", "from_collapse_limit": "1"},
    "no sorts, no hash aggregates": {"enable_sort": "off", "enable_hashagg": "off"},
}

Plan = dict[str, Any]


class Explained:
    """Keep the plan of every statement that a session runs, those inside functions too."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._logged: list[str] = []
        connection.add_notice_handler(self._keep)
        connection.execute("LOAD 'auto_explain'")
        for name, value in {
            "auto_explain.log_nested_statements": "on",
            "auto_explain.log_min_duration": "0",
            "auto_explain.log_analyze": "on",
            "auto_explain.log_timing": "off",
            "auto_explain.log_format": "json",
            "client_min_messages": "log",
        }.items():
            connection.execute("SELECT set_config(%s, %s, false)", [name, value])

    def _keep(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        _, found, plan = (diagnostic.message_primary or "").partition("plan:\n")
        if found:
            self._logged.append(plan)

    def plan(self, text: str) -> Plan:
        """Return the plan of the one statement run so far that contains `text`; then forget all."""
        # The outermost statement is over, and its plan told, when the next one takes its place.
        self._connection.execute("SELECT")
        plans: list[Plan] = [json.loads(plan) for plan in self._logged]
        self._logged.clear()
        matching = [plan for plan in plans if text in plan["Query Text"]]
        assert len(matching) == 1, [plan["Query Text"] for plan in plans]
        return matching[0]


@contextmanager
def explaining(
    database: Database, settings: dict[str, str], *before: str
) -> Iterator[tuple[Connection, Explained]]:
    """Lend a session whose plans are kept, after the statements `before`, under `settings`."""
    with database.connect() as connection:
        explained = Explained(connection)
        for statement in before:
            connection.execute(statement)
        for setting, value in settings.items():
            connection.execute("SELECT set_config(%s, %s, false)", [setting, value])
        yield connection, explained


def nodes(plan: Plan, *, ctes: bool = True) -> Iterator[Plan]:
    """Yield every node below and including the top one, without those of its CTEs if so wished."""
    yield plan
    for child in plan.get("Plans", ()):
        if ctes or not child.get("Subplan Name", "").startswith("CTE "):
            yield from nodes(child, ctes=ctes)


def types(plan: Plan, **kind: bool) -> list[str]:
    return [node["Node Type"] for node in nodes(plan, **kind)]


def objections(explained: Plan, tasks: int) -> list[str]:
    """Return what is wrong with a plan that aggregates an hour of `tasks` tasks."""
    plan = explained["Plan"]
    wrong = ["compiled"] if "JIT" in explained else []
    wrong += [f"{kind} in the plan" for kind in types(plan) if "Gather" in kind or "Bitmap" in kind]
    scans = [node for node in nodes(plan) if "Relation Name" in node]
    wrong += [f"{s['Node Type']} of {s['Relation Name']}" for s in scans if "Index" not in s["Node Type"]]
    for table in RAW_TABLES[1:]:
        of_table = [scan for scan in scans if scan["Relation Name"] == table]
        if [scan.get("Index Name") for scan in of_table] != [f"{table}_pkey"]:
            wrong.append(f"{table} is not reached once, by its primary key")
        # Fewer only where PostgreSQL remembers an answer.
        wrong += [
            f"{table} is reached {scan['Actual Loops']} times for {tasks} tasks"
            for scan in of_table
            if scan["Actual Loops"] > tasks or (table == "agent_task_queue" and scan["Actual Loops"] != tasks)
        ]
    joins = [kind for kind in types(plan, ctes=False) if "Join" in kind or kind == "Nested Loop"]
    if joins != ["Hash Join"]:
        wrong.append(f"joined by {joins}")
    return wrong


def write_people(database: Database, agents: int = 30, issues: int = 200) -> None:
    """Write what tasks hang on, and keep autovacuum from analysing any of it."""
    with database.connect() as connection:
        for table in RAW_TABLES:
            connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        connection.execute("ALTER TABLE task_usage_hourly SET (autovacuum_enabled = off)")
        small_world(connection)
        connection.execute(
            "INSERT INTO agent (workspace_id, name, runtime_mode, runtime_id)"
            " SELECT workspace_id, 'agent ' || n, 'local', id"
            " FROM generate_series(1, %s) AS n, (SELECT * FROM agent_runtime LIMIT 1) AS r",
            [agents],
        )
        connection.execute(
            "INSERT INTO issue (workspace_id, title, creator_type, creator_id, number)"
            " SELECT id, '', 'member', id, 1000 + n"
            " FROM generate_series(1, %s) AS n, (SELECT id FROM workspace LIMIT 1) AS w",
            [issues],
        )


def write_hours(database: Database, first: datetime, hours: int, tasks: int = TASKS_AN_HOUR) -> datetime:
    """Write `hours` hours of usage from `first` on, as if nobody had queued it; return the last one."""
    with database.connect() as connection:
        connection.execute("SET session_replication_role = replica")
        # Tasks are finished by the way, whose ids follow no order of time.
        connection.execute(
            """
            WITH people AS (
                SELECT array_agg(DISTINCT a.id) AS agents, array_agg(DISTINCT i.id) AS issues
                FROM agent a, issue i
            ), tasks AS (
                INSERT INTO agent_task_queue (id, agent_id, runtime_id, issue_id, status, created_at)
                SELECT gen_random_uuid(), a.id, a.runtime_id, p.issues[1 + n %% cardinality(p.issues)],
                    'completed', %(first)s + n / %(tasks)s * interval '1 hour'
                FROM people p, generate_series(0, %(hours)s * %(tasks)s - 1) AS n
                JOIN people q ON true
                JOIN agent a ON a.id = q.agents[1 + n %% cardinality(q.agents)]
                RETURNING id, created_at
            )
            INSERT INTO task_usage (task_id, provider, model, input_tokens, output_tokens, cache_read_tokens,
                cache_write_tokens, created_at, updated_at)
            SELECT id, 'claude', 'model ' || m, %(input_tokens)s, %(output_tokens)s, %(cache_read_tokens)s,
                %(cache_write_tokens)s, created_at + m * interval '1 second',
                created_at + m * interval '1 second'
            FROM tasks, generate_series(1, %(models)s) AS m
            """,
            {"first": first, "hours": hours, "tasks": tasks, "models": MODELS, **counts(100)},
        )
        connection.execute(UNQUEUE)
    return first + timedelta(hours=hours - 1)


def write_one_task(database: Database, rows: int) -> None:
    """Write one task of a year before the history, with usage of as many models as rows."""
    hour = write_hours(database, FIRST_HOUR - timedelta(days=365), 1, tasks=1)
    with database.connect() as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "INSERT INTO task_usage (task_id, provider, model, created_at, updated_at)"
            " SELECT task_id, 'other', 'model ' || m, created_at, updated_at"
            " FROM (SELECT * FROM task_usage WHERE created_at >= %s LIMIT 1) AS u,"
            " generate_series(1, %s) AS m",
            [hour, rows],
        )
        connection.execute(UNQUEUE)


def analyze(database: Database) -> None:
    database.execute(f"ANALYZE {', '.join(RAW_TABLES)}, task_usage_hourly")


def never_analysed(database: Database) -> datetime:
    return write_hours(database, FIRST_HOUR, HOURS)


def analysed_when_one_row(database: Database) -> datetime:
    write_hours(database, FIRST_HOUR - timedelta(days=365), 1, tasks=1)
    analyze(database)
    return write_hours(database, FIRST_HOUR, HOURS)


def analysed_when_one_hour(database: Database) -> datetime:
    write_hours(database, FIRST_HOUR - timedelta(days=365), 1, tasks=2000)
    analyze(database)
    return write_hours(database, FIRST_HOUR, HOURS)


def analysed_when_one_task(database: Database) -> datetime:
    write_one_task(database, 3000)
    analyze(database)
    return write_hours(database, FIRST_HOUR, HOURS)


def well_analysed(database: Database) -> datetime:
    last = write_hours(database, FIRST_HOUR, HOURS)
    analyze(database)
    return last


STATISTICS: list[Callable[[Database], datetime]] = [
    never_analysed,
    analysed_when_one_row,
    analysed_when_one_hour,
    analysed_when_one_task,
    well_analysed,
]

of_any_statistics = pytest.mark.parametrize("statistics", STATISTICS, ids=lambda how: how.__name__)


# ---------------------------------------------------------------------------------------------
# An hour out of a longer history
# ---------------------------------------------------------------------------------------------


@of_any_statistics
def test_aggregate_of_an_hour_takes_the_one_good_plan_whatever_statistics_and_settings(
    at_102: Database, statistics: Callable[[Database], datetime]
) -> None:
    write_people(at_102)
    hour = statistics(at_102)
    found: dict[str, list[str]] = {}
    plain: dict[str, list[str]] = {}
    for name, settings in HOSTILE_SETTINGS.items():
        with explaining(at_102, settings) as (connection, explained):
            for function, text, wrong in (
                ("rollup_task_usage_hourly_aggregate", BY_LOOK_UP, found),
                ("task_usage_hourly_expected", "task_usage_hourly_expected", plain),
            ):
                rows = connection.execute(
                    f"SELECT count(*), sum(event_count) FROM {function}(%s, %s)",
                    [hour, hour + timedelta(hours=1)],
                ).fetchone()
                assert rows is not None
                assert rows[1] == TASKS_AN_HOUR * MODELS
                if complaints := objections(explained.plan(text), TASKS_AN_HOUR):
                    wrong[name] = complaints
    # The trap: the same aggregate said in the plainest way is at the mercy of all of them.
    assert plain
    assert found == {}


# ---------------------------------------------------------------------------------------------
# A large share of a history
# ---------------------------------------------------------------------------------------------


# What the two ways to aggregate say.
BY_SCAN, BY_LOOK_UP = "expected(p_from, p_to) ORDER BY", "WITH tasks AS MATERIALIZED"


def objections_to_a_scan(explained: Plan) -> list[str]:
    """Return what is wrong with a plan that aggregates a history: each table once, joined by hash."""
    plan = explained["Plan"]
    wrong = ["compiled"] if "JIT" in explained else []
    wrong += [f"{kind} in the plan" for kind in types(plan) if "Gather" in kind or kind == "Nested Loop"]
    scans = [node for node in nodes(plan) if "Relation Name" in node]
    if sorted(scan["Relation Name"] for scan in scans) != sorted(RAW_TABLES):
        wrong.append("a table is read more than once")
    wrong += [
        f"{scan['Relation Name']} is read {scan['Actual Loops']} times"
        for scan in scans
        if scan["Actual Loops"] != 1
    ]
    joins = {kind for kind in types(plan) if "Join" in kind}
    if joins != {"Hash Join"}:
        wrong.append(f"joined by {joins}")
    return wrong


@of_any_statistics
def test_aggregate_by_scan_reads_each_table_once_whatever_statistics_and_settings(
    at_102: Database, statistics: Callable[[Database], datetime]
) -> None:
    write_people(at_102)
    last = statistics(at_102)
    function = "rollup_task_usage_hourly_aggregate_by_scan"

    def objections_under(settings: dict[str, str], *before: str) -> list[str]:
        with explaining(at_102, settings, *before) as (connection, explained):
            rows = connection.execute(
                f"SELECT sum(event_count) FROM {function}(%s, %s)",
                [FIRST_HOUR, last + timedelta(hours=1)],
            ).fetchone()
            assert rows == (HOURS * TASKS_AN_HOUR * MODELS,)
            found = objections_to_a_scan(explained.plan(BY_SCAN))
            connection.rollback()
        return found

    # The trap: nested loops, where somebody has set that nothing else is to be tried.
    trap = f"ALTER FUNCTION {function} RESET ALL"
    assert objections_under(HOSTILE_SETTINGS["nested loops"], trap, "SET search_path = public")
    found = {name: objections_under(settings) for name, settings in HOSTILE_SETTINGS.items()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_a_large_slice_is_read_by_scan_and_a_small_one_by_look_up(at_102: Database) -> None:
    write_people(at_102)
    well_analysed(at_102)
    pages = at_102.value(
        "SELECT sum(pg_relation_size(t)) / current_setting('block_size')::int"
        " FROM unnest(ARRAY['agent_task_queue', 'agent', 'issue']::regclass[]) AS t"
    )
    rows = int(4 * pages)
    pays = "SELECT task_usage_hourly_scan_pays(%s)"
    assert [at_102.value(pays, number) for number in (rows, rows + 1)] == [False, True]
    slices_of(at_102, rows)
    with at_102.connect() as connection:
        explained = Explained(connection)
        connection.execute("SELECT rollup_task_usage_hourly_plan(now(), 1000000)")
        connection.execute("SELECT rollup_task_usage_hourly_slice()")
        assert explained.plan(BY_SCAN)
        connection.execute("UPDATE task_usage_hourly_backfill SET usage_rows = %s", [rows])
        connection.execute("SELECT rollup_task_usage_hourly_slice()")
        assert explained.plan(BY_LOOK_UP)
        connection.rollback()


@of_any_statistics
def test_recompute_never_compares_by_nested_loops(
    at_102: Database, statistics: Callable[[Database], datetime]
) -> None:
    write_people(at_102)
    last = statistics(at_102)
    roll_up(at_102)

    def compares_by(settings: dict[str, str], *before: str) -> set[str]:
        """Return how an hour and a day of the history are compared; nothing is kept."""
        joined: set[str] = set()
        with explaining(at_102, settings, *before) as (connection, explained):
            for first in (last, last - timedelta(hours=23)):
                connection.execute(
                    "SELECT rollup_task_usage_hourly_recompute(%s, %s)", [first, last + timedelta(hours=1)]
                )
                plan = explained.plan("WITH expected AS MATERIALIZED")["Plan"]
                joined |= {kind for kind in types(plan) if "Join" in kind or kind == "Nested Loop"}
            connection.rollback()
        return joined

    hostile = HOSTILE_SETTINGS["nested loops"]
    trap = "ALTER FUNCTION rollup_task_usage_hourly_recompute RESET ALL"
    assert "Nested Loop" in compares_by(hostile, trap)
    found = {name: compares_by(settings) for name, settings in HOSTILE_SETTINGS.items()}
    assert {name: joined for name, joined in found.items() if "Nested Loop" in joined} == {}
    assert all(found.values())


def roll_up(database: Database) -> None:
    """Roll up everything there is, and say so."""
    database.execute(
        "SELECT rollup_task_usage_hourly_range(lower(r), upper(r))"
        " FROM unnest(task_usage_hourly_unwalked()) AS r"
    )
    database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now()")


def reads(connection: Connection) -> dict[str, int]:
    """Return how many rows and index entries of each raw table this transaction has read."""
    return dict(
        connection.execute(
            """
            SELECT c.relname, pg_stat_get_xact_tuples_returned(c.oid) + (
                SELECT sum(pg_stat_get_xact_tuples_returned(i.indexrelid))
                FROM pg_index i WHERE i.indrelid = c.oid)
            FROM unnest(%s::text[]) AS t JOIN pg_class c ON c.oid = ('public.' || t)::regclass
            """,
            [list(RAW_TABLES)],
        ).fetchall()
    )


# While planning, PostgreSQL looks up both ends of an index to estimate a range or a join.
PLANNERS_LOOKS = 8


def read_by(connection: Connection, statement: str | bytes, *parameters: Any) -> dict[str, int]:
    """Run a statement, take it back, and return what it read of the raw tables."""
    connection.execute("SET LOCAL max_parallel_workers_per_gather = 0")
    # What earlier transactions read counts until it is reported.
    before = reads(connection)
    connection.execute(statement, parameters or None)
    read = {table: int(count - before[table]) for table, count in reads(connection).items()}
    connection.rollback()
    return read


@pytest.mark.parametrize("analysed", [False, True], ids=["never_analysed", "well_analysed"])
def test_hour_and_tick_read_the_same_rows_whatever_the_size_of_the_history(
    make_database: MakeDatabase, analysed: bool
) -> None:
    found = []
    for hours in (100, 400):
        database = make_database("102")
        write_people(database)
        # The last hour is the same one, of the same age.
        hour = write_hours(database, FIRST_HOUR - timedelta(hours=hours), hours)
        roll_up(database)
        database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = %s", hour)
        if analysed:
            analyze(database)
        bounds = hour, hour + timedelta(hours=1)
        with database.connect() as connection:
            plainest = read_by(connection, "SELECT * FROM task_usage_hourly_expected(%s, %s)", *bounds)
            # The trap: by row, or all there are.
            assert plainest["agent_task_queue"] > TASKS_AN_HOUR
            found.append(
                (
                    read_by(connection, "SELECT rollup_task_usage_hourly_range(%s, %s)", *bounds),
                    read_by(connection, "SELECT rollup_task_usage_hourly()"),
                )
            )
    for of_short_history, of_long_history in zip(*found, strict=True):
        assert of_short_history["agent_task_queue"] == of_long_history["agent_task_queue"]
        assert abs(of_short_history["task_usage"] - of_long_history["task_usage"]) <= PLANNERS_LOOKS
        for read in (of_short_history, of_long_history):
            for table in RAW_TABLES[1:]:
                assert read[table] <= TASKS_AN_HOUR + PLANNERS_LOOKS, table
            # Which hours, which tasks, their rows.
            assert read["task_usage"] <= 3 * TASKS_AN_HOUR * MODELS + 3 * PLANNERS_LOOKS


# ---------------------------------------------------------------------------------------------
# The oracle
# ---------------------------------------------------------------------------------------------

DIFFERENCES = "SELECT task_usage_hourly_differences()"
# Its one statement, into which the comparison itself is inlined.
COMPARES = "SELECT DISTINCT k.bucket_hour"


def force_parallel(connection: Connection) -> None:
    settings = {**HOSTILE_SETTINGS["parallel"], "work_mem": "64kB", "parallel_leader_participation": "off"}
    for name, value in settings.items():
        connection.execute("SELECT set_config(%s, %s, false)", [name, value])


def full_joins(plan: Plan) -> list[str]:
    return [node["Node Type"] for node in nodes(plan) if node.get("Join Type") == "Full"]


def parallel_hashes(plan: Plan) -> list[str]:
    return [
        kind["Node Type"] for kind in nodes(plan) if "Hash" in kind["Node Type"] and kind["Parallel Aware"]
    ]


@of_any_statistics
def test_oracle_joins_by_hash_and_never_by_parallel_hash(
    at_102: Database, statistics: Callable[[Database], datetime]
) -> None:
    write_people(at_102)
    statistics(at_102)
    roll_up(at_102)
    with at_102.connect() as connection:
        explained = Explained(connection)
        connection.execute(DIFFERENCES)
        assert full_joins(explained.plan(COMPARES)["Plan"]) == ["Hash Join"]

        force_parallel(connection)
        connection.execute(DIFFERENCES)
        plan = explained.plan(COMPARES)["Plan"]
        assert full_joins(plan) == ["Hash Join"]
        assert parallel_hashes(plan) == []
        assert [kind for kind in types(plan) if "Gather" in kind], "nothing runs in parallel"

        # The trap: left to itself PostgreSQL would.
        connection.execute("ALTER FUNCTION task_usage_hourly_differences RESET enable_parallel_hash")
        connection.execute("ALTER FUNCTION task_usage_hourly_differences RESET enable_sort")
        connection.execute(DIFFERENCES)
        assert parallel_hashes(explained.plan(COMPARES)["Plan"]) != []
        connection.rollback()


def test_oracle_gives_the_same_answer_in_parallel(at_102: Database) -> None:
    write_people(at_102)
    last = never_analysed(at_102)
    roll_up(at_102)
    wrong, missing, left_over = (FIRST_HOUR + timedelta(hours=n) for n in (3, 77, 200))
    orphan = last + timedelta(hours=5)
    with at_102.connect() as connection:
        connection.execute("UPDATE task_usage_hourly SET input_tokens = 1 WHERE bucket_hour = %s", [wrong])
        connection.execute("DELETE FROM task_usage_hourly WHERE bucket_hour = %s", [missing])
        connection.execute(
            "INSERT INTO task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, provider, model)"
            " SELECT hour, workspace_id, runtime_id, agent_id, provider, 'gone'"
            " FROM unnest(%s) AS hour, (SELECT * FROM task_usage_hourly LIMIT 1) AS h",
            [[left_over, orphan]],
        )

        def answer() -> list[datetime]:
            return [row[0] for row in connection.execute(DIFFERENCES)]

        expected = [wrong, missing, left_over, orphan]
        assert answer() == expected
        force_parallel(connection)
        assert answer() == expected
        # And when the caller's own statement is a worker's.
        forced = "debug_parallel_query" if at_102.server.version >= 160000 else "force_parallel_mode"
        connection.execute("SELECT set_config(%s, 'on', false)", [forced])
        assert answer() == expected
        connection.rollback()


# ---------------------------------------------------------------------------------------------
# Statistics for the walk
# ---------------------------------------------------------------------------------------------


def analysed(database: Database) -> dict[str, int]:
    """Return how often each raw table has been analysed by command."""
    return {
        row[0]: row[1]
        for row in database.execute(
            "SELECT relname::text, analyze_count::int FROM pg_stat_all_tables"
            " WHERE schemaname = 'public' AND relname = ANY (%s)",
            list(RAW_TABLES),
        )
    }


def products_rows(database: Database) -> list[Any]:
    return [
        database.execute(f"SELECT ctid::text, xmin::text, id FROM {table} ORDER BY ctid")
        for table in (*RAW_TABLES, "workspace", "project", "agent_runtime")
    ]


def run_hook(connection: sa.Connection) -> None:
    assert backfill_before_103(connection, Options(jobs=1)).rows == HOURS * TASKS_AN_HOUR * MODELS


def test_hook_analyses_what_has_no_statistics_and_changes_nothing_else_of_the_product(
    at_102: Database,
) -> None:
    write_people(at_102)
    write_hours(at_102, FIRST_HOUR, HOURS)
    at_102.execute("ANALYZE agent")
    assert analysed(at_102) == {"task_usage": 0, "agent_task_queue": 0, "agent": 1, "issue": 0}
    catalog, rows = at_102.catalog(), products_rows(at_102)
    with at_102.migration_connection() as connection:
        run_hook(connection)
        assert analysed(at_102) == dict.fromkeys(RAW_TABLES, 1)
        # Another walk has all it needs.
        at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")
        run_hook(connection)
    assert analysed(at_102) == dict.fromkeys(RAW_TABLES, 1)
    assert at_102.catalog() == catalog
    assert products_rows(at_102) == rows


def test_hook_does_not_wait_for_a_table_that_is_being_vacuumed(at_102: Database) -> None:
    write_people(at_102)
    write_hours(at_102, FIRST_HOUR, HOURS)
    vacuum = at_102.connect()
    vacuum.execute("LOCK TABLE agent_task_queue, issue IN SHARE UPDATE EXCLUSIVE MODE")
    with at_102.migration_connection() as connection:
        # It would end here.
        connection.exec_driver_sql("SET lock_timeout = '2s'")
        run_hook(connection)
    assert analysed(at_102) == {"task_usage": 1, "agent_task_queue": 0, "agent": 1, "issue": 0}


# ---------------------------------------------------------------------------------------------
# The guard of 103
# ---------------------------------------------------------------------------------------------


def test_guard_reads_usage_again_only_without_the_proof_of_its_session(at_102: Database) -> None:
    write_people(at_102)
    write_hours(at_102, FIRST_HOUR, HOURS)
    with at_102.migration_connection() as migration:
        run_hook(migration)
        session = migration.connection.driver_connection
        assert isinstance(session, psycopg.Connection)
        session.autocommit = False
        proven = read_by(session, GUARD)
        session.execute("SELECT set_config('usage_rollup.proof', '', false)")
        session.commit()
        unproven = read_by(session, GUARD)
    assert unproven["task_usage"] >= HOURS * TASKS_AN_HOUR * MODELS
    assert unproven["agent_task_queue"] >= HOURS * TASKS_AN_HOUR
    # Whether there is any, and both ends of it.
    assert proven["task_usage"] <= 10
    assert proven["agent_task_queue"] == proven["agent"] == proven["issue"] == 0
