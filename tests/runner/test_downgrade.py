"""The way back: what it refuses, what a v0.3.4 server finds after it, and what a killed one leaves."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from tests.support.crashes import Boundary, stopped_at, waits_at
from tests.support.database import ROOT, Database, MakeDatabase
from tests.support.deadline import DEADLINE_S
from tests.support.horizon import begin, without_margin
from tests.support.legacy import lose_raw_rows, roll_up_as_v034, where_legacy_is
from tests.support.oracle import differing_hours
from tests.support.pg_cron import JOBS, OURS, PG_CRON
from tests.support.product import (
    LONG_MODEL,
    World,
    event,
    small_world,
    task,
    upsert_usage,
    usage,
    wait_until,
)
from tests.support.roles import MakeRole, give_everything_to
from tests.support.rollup import hourly
from tests.support.server import Server
from tests.support.sessions import is_gone
from tests.support.v034 import build_v034, generate_history
from usage_rollup.contract import STEMS

Rows = list[tuple[Any, ...]]

TARGETS = ("102", "101", "100", "097")
STATES = ("task_usage_rollup_state", "task_usage_dashboard_rollup_state")
NAIVE_PIPELINE = ROOT / "tests" / "support" / "naive_pipeline.sql"
OUR_PIPELINE_AWAY = ROOT / "alembic" / "versions" / "102_task_usage_hourly_pipeline.down.sql"


# Keys by look-ups and a window over each row's own, where the product joins and groups.
EXPECTED = {
    "task_usage_daily": """
        SELECT DISTINCT day, workspace, runtime, provider, model,
            sum(i) OVER bucket, sum(o) OVER bucket, sum(r) OVER bucket, sum(w) OVER bucket,
            count(*) OVER bucket
        FROM (
            SELECT to_char(timezone((SELECT timezone FROM agent_runtime WHERE id = q.runtime_id),
                    tu.created_at), 'YYYY-MM-DD')::date AS day,
                (SELECT workspace_id FROM agent WHERE id = q.agent_id) AS workspace,
                q.runtime_id AS runtime, tu.provider, tu.model, tu.input_tokens AS i,
                tu.output_tokens AS o, tu.cache_read_tokens AS r, tu.cache_write_tokens AS w
            FROM task_usage tu, agent_task_queue q WHERE q.id = tu.task_id) AS raw
        WINDOW bucket AS (PARTITION BY day, workspace, runtime, provider, model)""",
    "task_usage_dashboard_daily": """
        SELECT day, workspace, agent, nullif(project, ''), model, sum(i), sum(o), sum(r), sum(w),
            count(*), sum(n)
        FROM (
            SELECT floor(extract(epoch FROM tu.created_at) / 86400)::int + date '1970-01-01' AS day,
                (SELECT workspace_id FROM agent WHERE id = q.agent_id) AS workspace, q.agent_id AS agent,
                coalesce((SELECT project_id::text FROM issue WHERE id = q.issue_id), '') AS project, tu.model,
                sum(tu.input_tokens) AS i, sum(tu.output_tokens) AS o, sum(tu.cache_read_tokens) AS r,
                sum(tu.cache_write_tokens) AS w, count(*) AS n
            FROM task_usage tu, agent_task_queue q WHERE q.id = tu.task_id
            GROUP BY 1, 2, 3, 4, 5, tu.task_id) AS tasks
        GROUP BY 1, 2, 3, 4, 5""",
}
FOUND = {
    "task_usage_daily": "SELECT bucket_date, workspace_id, runtime_id, provider, model, input_tokens,"
    " output_tokens, cache_read_tokens, cache_write_tokens, event_count FROM {}",
    "task_usage_dashboard_daily": "SELECT bucket_date, workspace_id, agent_id, project_id::text, model,"
    " input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, task_count, event_count"
    " FROM {}",
}


def legacy(database: Database, where: str = "public") -> dict[str, Rows]:
    """Return the rows of both legacy rollups, without the time they were written."""
    return {rollup: rows(database, query.format(f"{where}.{rollup}")) for rollup, query in FOUND.items()}


def rows(database: Database, query: str) -> Rows:
    """Return rows as one type and in one order, whatever computed them."""
    read = [
        tuple(int(value) if isinstance(value, Decimal) else value for value in row)
        for row in database.execute(query)
    ]
    return sorted(read, key=lambda row: [str(value) for value in row])


def assert_legacy_is_right(database: Database) -> None:
    found = legacy(database)
    assert found == {rollup: rows(database, query) for rollup, query in EXPECTED.items()}
    assert all(found.values())


def watermarks(database: Database) -> list[datetime]:
    return [database.value(f"SELECT watermark_at FROM {state}") for state in STATES]


def legacy_ticks(database: Database) -> None:
    database.execute("SELECT rollup_task_usage_daily(), rollup_task_usage_dashboard_daily()")


ZONES = ("UTC", "Asia/Kathmandu", "Australia/Lord_Howe", "America/New_York", "Pacific/Apia")

# Three bytes each, and nothing in it to compress: task_usage holds it, and no legacy rollup.
LONG_IN_BYTES = "".join(chr(0x4E00 + n * 7919 % 20_000) for n in range(883))

# Around a change of clocks in each zone that has one, and Apia's missing 2011-12-30.
CHANGES = ("2025-03-08", "2025-11-01", "2025-04-05", "2025-10-04", "2011-12-29")


def travelled(database: Database) -> World:
    """Write usage on runtimes in five zones: NULL projects, another workspace's issue, no issue, NULLs."""
    with database.connect(autocommit=True) as connection:
        world = small_world(connection)
        for number, zone in enumerate(ZONES):
            runtime = connection.execute(
                "INSERT INTO agent_runtime (workspace_id, daemon_id, name, runtime_mode, provider, timezone)"
                " VALUES (%s, %s, %s, 'local', 'claude', %s) RETURNING id",
                [world.workspaces[0], zone, zone, zone],
            ).fetchone()
            assert runtime is not None
            # The last issue is the other workspace's; the third has no project.
            for issue in (*world.issues, None):
                task_id = task(connection, world.agents[number % 2], runtime[0], issue)
                connection.execute(
                    "INSERT INTO task_usage (task_id, provider, model, input_tokens, output_tokens,"
                    " cache_read_tokens, cache_write_tokens, created_at, updated_at)"
                    " SELECT %(task)s, p, 'm' || n, n, 2 * n, 3 * n, 5 * n, at,"
                    " CASE WHEN n %% 3 <> 0 THEN at + interval '1 day' END"
                    " FROM unnest(%(days)s::date[]) WITH ORDINALITY AS d (day, o),"
                    " generate_series(0, 10) AS h, unnest(ARRAY['claude', 'codex']) AS p,"
                    " LATERAL (SELECT 11 * o + h AS n, (day + h * interval '5 hours 45 minutes')"
                    " AT TIME ZONE 'UTC' AS at) AS numbered",
                    {"task": task_id, "days": list(CHANGES)},
                )
        return world


# What a v0.3.4 server finds


def test_each_zone_has_its_own_days_after_the_way_back_from_103(v034: Database) -> None:
    travelled(v034)
    v034.upgrade("103")
    printed = v034.downgrade("102")
    assert "WARN" not in printed
    assert_legacy_is_right(v034)

    def days(zone: str) -> set[date]:
        return {
            row[0]
            for row in v034.execute(
                "SELECT bucket_date FROM task_usage_daily d JOIN agent_runtime r ON r.id = d.runtime_id"
                " WHERE r.timezone = %s AND bucket_date < '2012-01-01'",
                zone,
            )
        }

    # 2011-12-29 00:00 to 12-31 09:30 UTC: where clocks skip the 30th, and where they do not.
    assert days("UTC") == {date(2011, 12, day) for day in (29, 30, 31)}
    assert days("Pacific/Apia") == {date(2011, 12, day) for day in (28, 29, 31)}
    assert days("America/New_York") == {date(2011, 12, day) for day in (28, 29, 30, 31)}


@pytest.fixture(scope="module")
def with_history(server: Server) -> Iterator[Callable[[str], Database]]:
    """Return a function that clones a database with a history at head, `adopted` or `empty-born`."""
    names: list[str] = []

    def make(name: str, template: str | None = None) -> Database:
        server.create_database(name, template=template)
        names.append(name)
        return Database(server, name)

    templates: dict[str, str] = {}
    for born in ("adopted", "empty-born"):
        database = make(f"history_{uuid.uuid4().hex[:12]}")
        if born == "adopted":
            with database.connect() as connection:
                build_v034(connection)
        else:
            database.upgrade("097")
        travelled(database)
        with database.connect() as connection:
            generate_history(connection, 400)
        database.upgrade()
        templates[born] = database.name
    yield lambda born: make(f"test_{uuid.uuid4().hex[:12]}", templates[born])
    for name in names:
        server.drop_database(name)


@pytest.mark.parametrize("born", ["adopted", "empty-born"])
@pytest.mark.parametrize("target", TARGETS)
def test_down_up_down_ends_where_it_was(
    with_history: Callable[[str], Database], born: str, target: str
) -> None:
    database = with_history(born)
    catalog, rolled_up = schema_in_order(database), hourly(database)
    assert rolled_up
    database.downgrade(target)
    assert database.revision == target
    below, days = schema_in_order(database), legacy(database)
    assert_legacy_is_right(database)
    database.upgrade()
    assert schema_in_order(database) == catalog
    assert hourly(database) == rolled_up
    database.downgrade(target)
    assert schema_in_order(database) == below
    assert legacy(database) == days


def schema_in_order(database: Database) -> list[str]:
    """Return pg_dump's output and alembic_version; the ledger by its stems, not their times."""
    lines = [line for line in database.catalog().splitlines() if "datetime.datetime" not in line]
    has_ledger = any(line.startswith("CREATE TABLE public.schema_migrations") for line in lines)
    return lines + (sorted(database.ledger) if has_ledger else [])


def test_legacy_pipeline_goes_on_after_the_way_back(v034: Database) -> None:
    world = travelled(v034)
    v034.upgrade("103")
    v034.downgrade("102")
    assert v034.value("SELECT count(*) FROM task_usage_daily_dirty") == 0
    watermark, other = watermarks(v034)
    assert watermark == other
    before = legacy(v034)
    with v034.connect(autocommit=True) as connection:
        # The first moment the watermark has not passed: a tick goes there at once.
        late = task(connection, world.agents[2], issue_id=world.issues[3])
        usage(connection, late, watermark)
        connection.execute(
            "UPDATE task_usage SET input_tokens = 7, updated_at = %s WHERE model = 'm12'", [watermark]
        )
        connection.execute("UPDATE issue SET project_id = NULL WHERE id = %s", [world.issues[0]])
        connection.execute(
            "UPDATE agent_task_queue SET runtime_id = %s WHERE issue_id = %s",
            [world.runtimes[0], world.issues[1]],
        )
        connection.execute("DELETE FROM task_usage WHERE model = 'm13'")
    assert legacy(v034) == before
    legacy_ticks(v034)
    assert_legacy_is_right(v034)
    assert legacy(v034) != before


# Watermarks


def test_watermarks_do_not_pass_a_transaction_that_has_not_written_yet(head: Database) -> None:
    without_margin(head)
    world = small_world(head.url)
    event(head.url, world, "2025-03-01 10:15+00")
    task_id = task(head.url, world.agents[0])
    writer, began = begin(head, "SELECT 1")
    head.downgrade("102")
    assert watermarks(head) == [began, began]

    upsert_usage(writer, task_id)
    writer.execute("COMMIT")
    # The trap: to a watermark of the clock, or an instant past that start, the report is history.
    beyond = "SELECT rollup_task_usage_daily_window(%s, 'infinity')"
    assert head.value(beyond, began + timedelta(microseconds=1)) == 0
    assert head.value(beyond, watermarks(head)[0]) == 1
    head.execute("SELECT rollup_task_usage_dashboard_daily_window(%s, 'infinity')", watermarks(head)[1])
    assert_legacy_is_right(head)


def test_watermarks_do_not_heed_transactions_of_other_databases(
    head: Database, make_database: MakeDatabase
) -> None:
    without_margin(head)
    event(head.url, small_world(head.url), "2025-03-01 10:15+00")
    _, began = begin(make_database("empty"), "SELECT 1")
    head.downgrade("102")
    assert all(watermark > began for watermark in watermarks(head))


def test_watermarks_of_a_quiet_database_are_five_minutes_ago(head: Database) -> None:
    event(head.url, small_world(head.url), "2025-03-01 10:15+00")
    # Whoever has no transaction open may not write one's start any more.
    head.connect(autocommit=True).execute("SELECT 1")
    # One in the future is a lie, and not believed.
    head.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() + interval '1 day'")
    before = head.value("SELECT now() - interval '5 minutes'")
    head.downgrade("102")
    after = head.value("SELECT now() - interval '5 minutes'")
    assert all(before <= watermark <= after for watermark in watermarks(head))
    head.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")


def test_watermarks_are_a_day_before_the_hourly_one_where_a_session_hides_its_transaction(
    head: Database, make_role: MakeRole
) -> None:
    event(head.url, small_world(head.url), "2025-03-01 10:15+00")
    hourly_watermark = head.value("SELECT watermark_at FROM task_usage_hourly_rollup_state")
    with hidden(head, make_role) as url:
        head.downgrade("102", DATABASE_URL=url)
    assert watermarks(head) == [hourly_watermark - timedelta(days=1)] * 2
    assert_legacy_is_right(head)


def test_watermarks_begin_anew_where_a_session_hides_its_transaction_and_the_hourly_one_is_a_lie(
    head: Database, make_role: MakeRole
) -> None:
    event(head.url, small_world(head.url), "2025-03-01 10:15+00")
    head.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() + interval '1 day'")
    with hidden(head, make_role) as url:
        head.downgrade("102", DATABASE_URL=url)
    assert watermarks(head) == [datetime(1970, 1, 1, tzinfo=UTC)] * 2
    head.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")


@contextmanager
def hidden(database: Database, make_role: MakeRole) -> Iterator[str]:
    """Lend the URL of a role that owns everything and cannot see the start of a transaction that is open."""
    runner = make_role("runner")
    give_everything_to(database, runner)
    database.execute(f"GRANT CREATE ON DATABASE {database.name} TO {runner}")
    writer, _ = begin(database, "SELECT 1")
    yield database.url_of(runner)
    writer.execute("COMMIT")


# What is said


def test_undoing_104_says_that_every_zone_is_utc_again_where_there_are_runtimes(head: Database) -> None:
    said = "the time zone of every runtime is UTC again"
    assert said not in head.downgrade("103")
    head.upgrade()
    small_world(head.url)
    assert head.downgrade("103").count(said) == 1
    assert head.execute("SELECT DISTINCT timezone FROM agent_runtime") == [("UTC",)]
    assert said not in head.downgrade("102")


def test_job_that_ticks_is_unscheduled_with_102_and_not_before(head: Database) -> None:
    head.execute(PG_CRON)
    assert head.usage_rollup("schedule").returncode == 0
    head.downgrade("102")
    assert head.execute(JOBS) == OURS
    # A step that fails leaves the job with the function it calls.
    head.execute("CREATE VIEW v AS SELECT task_usage_hour_bucket(now())")
    head.refused("downgrade", "097")
    assert head.execute(JOBS) == OURS
    head.execute("DROP VIEW v")
    head.downgrade("097")
    assert head.execute(JOBS) == []


# Refusals


@pytest.mark.parametrize("spelling", ["-6", "097-1"])
def test_way_back_to_nothing_is_refused_at_once_on_an_adopted_database(head: Database, spelling: str) -> None:
    before = head.catalog()
    printed = head.refused("downgrade", spelling)
    assert "refusing to remove the v0.3.4 baseline: the product's own runner made this database" in printed
    assert "alembic downgrade 097" in printed
    assert "Running downgrade" not in printed
    assert head.catalog() == before


def test_last_step_to_nothing_is_refused_on_an_adopted_database(v034: Database) -> None:
    v034.upgrade("097")
    before = v034.catalog()
    assert "the product's own runner made this database" in v034.refused("downgrade", "-1")
    assert v034.catalog() == before


@pytest.mark.parametrize(("target", "newest"), [("base", "106_step"), ("-1", "213_usage_cost")])
def test_every_way_back_is_refused_when_the_ledger_stands_past_105(
    head: Database, target: str, newest: str
) -> None:
    head.execute("INSERT INTO schema_migrations VALUES ('105_issue_metadata'), (%s)", newest)
    before = head.catalog()
    printed = head.refused("downgrade", target)
    assert f"refusing to downgrade: the product's own runner has gone on to {newest}" in printed
    assert "restore a backup" in printed
    assert head.catalog() == before
    # Nothing to undo is nothing to refuse.
    head.downgrade("head")


def test_105_and_stems_below_100_are_no_reason_to_refuse(head: Database) -> None:
    others = {"105_issue_metadata", "098_user_onboarding_runtime_choice", "096_pending_check_suite"}
    for stem in others:
        head.execute("INSERT INTO schema_migrations VALUES (%s)", stem)
    head.downgrade("102")
    assert head.ledger >= others
    assert {STEMS["103"], STEMS["104"]} & head.ledger == set()
    head.upgrade()
    assert {STEMS["103"], STEMS["104"]} <= head.ledger


def test_product_s_triggers_are_not_left_without_their_tables(at_102: Database) -> None:
    # Stuck at 103, adopted at 101, and 102 has not been put over it yet.
    for path in (OUR_PIPELINE_AWAY, NAIVE_PIPELINE):
        with at_102.connect() as connection:
            connection.execute(path.read_bytes())
    at_102.execute("UPDATE alembic_version SET version_num = '101'")
    before = at_102.catalog()
    assert "`alembic upgrade 102` replaces them" in at_102.refused("downgrade", "100")
    assert at_102.catalog() == before
    at_102.upgrade("102")
    at_102.downgrade("100")
    event(at_102.url, small_world(at_102.url))
    at_102.execute("DELETE FROM task_usage")


# Kept tables


@pytest.fixture
def kept(v034: Database) -> tuple[Database, World]:
    """Return a database at head that keeps the legacy rollups of a month whose raw rows are gone."""
    with v034.connect(autocommit=True) as connection:
        world = small_world(connection)
        event(connection, world, "2025-03-01 10:15+00", agent=2, issue=3)
        event(connection, world, "2025-03-01 10:20+00", agent=1, issue=None)
        event(connection, world, "2025-04-01 10:25+00")
    roll_up_as_v034(v034)
    for state in STATES:
        v034.execute(f"UPDATE {state} SET watermark_at = '2025-05-01'")
    lose_raw_rows(v034, "created_at < '2025-03-15'")
    assert "kept in schema legacy_usage" in v034.upgrade()
    return v034, world


def test_kept_tables_move_back_and_are_rolled_forward_in_every_cycle(kept: tuple[Database, World]) -> None:
    database, world = kept
    was = legacy(database, "legacy_usage")
    for cycle in range(1, 3):
        usage(database.url, task(database.url, world.agents[0]), f"2026-0{cycle}-01 10:00+00", "now")
        printed = database.downgrade("102" if cycle == 1 else "097")
        assert "the legacy rollups are back from schema legacy_usage" in printed
        assert where_legacy_is(database) == {"public"}
        assert database.value("SELECT to_regnamespace('legacy_usage') IS NULL")
        assert database.value("SELECT min(watermark_at) > '2026-06-01' FROM task_usage_rollup_state")
        now = legacy(database)
        for rollup, rows in was.items():
            added = [row for row in now[rollup] if row not in rows]
            assert [row for row in rows if row not in now[rollup]] == []
            assert [row[0] for row in added] == [date(2026, cycle, 1)]
        was = now
        assert "kept in schema legacy_usage:" in database.upgrade()
        assert legacy(database, "legacy_usage") == was
    database.downgrade("102")
    # The pipelines work on the tables that came back.
    database.execute("DELETE FROM task_usage")
    legacy_ticks(database)
    assert {row[0] for rows in legacy(database).values() for row in rows} == {date(2025, 3, 1)}


def test_kept_watermarks_do_not_go_back(kept: tuple[Database, World]) -> None:
    database, _ = kept
    # A moment ago, where those of a rollup that is built anew are five minutes ago.
    for state in STATES:
        database.execute(f"UPDATE legacy_usage.{state} SET watermark_at = now()")
    was = [database.value(f"SELECT watermark_at FROM legacy_usage.{state}") for state in STATES]
    database.downgrade("102")
    assert watermarks(database) == was


def test_kept_tables_bring_the_catalog_of_102_back(
    kept: tuple[Database, World], make_database: MakeDatabase
) -> None:
    database, _ = kept
    database.downgrade("102")
    assert database.schema(in_order=False) == make_database("102").schema(in_order=False)


def test_newest_of_several_kept_copies_moves_back_and_the_others_stay(kept: tuple[Database, World]) -> None:
    database, _ = kept
    was = legacy(database, "legacy_usage")
    database.execute("ALTER SCHEMA legacy_usage RENAME TO legacy_usage_10")
    # Somebody's own, and not one of them.
    others = ("legacy_usage", "legacy_usage_2", "legacy_usage_before", "our_legacy_usage_11")
    for older in others:
        database.execute(f"CREATE SCHEMA {older}")
        for (table,) in database.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'legacy_usage_10'"
        ):
            database.execute(f"CREATE TABLE {older}.{table} (LIKE legacy_usage_10.{table})")
    database.downgrade("102")
    assert legacy(database) == was
    assert where_legacy_is(database) == {"public", *others}
    assert database.value("SELECT to_regnamespace('legacy_usage_10') IS NULL")


def test_schema_in_which_somebody_put_something_else_stays(kept: tuple[Database, World]) -> None:
    database, _ = kept
    database.execute("CREATE TABLE legacy_usage.notes AS SELECT 'mine' AS note")
    database.downgrade("102")
    assert where_legacy_is(database) == {"public"}
    assert database.value("SELECT note FROM legacy_usage.notes") == "mine"


def test_incomplete_copy_stays_where_it_is_and_the_rollups_are_built_from_raw_rows(
    kept: tuple[Database, World],
) -> None:
    database, _ = kept
    database.execute("DROP TABLE legacy_usage.task_usage_dashboard_dirty")
    was = legacy(database, "legacy_usage")
    printed = database.downgrade("102")
    assert printed.count("schema legacy_usage holds only") == 1
    assert_legacy_is_right(database)
    assert legacy(database, "legacy_usage") == was
    assert legacy(database) != was


def test_kept_rollup_that_its_window_cannot_roll_forward_comes_back_as_it_was(
    kept: tuple[Database, World],
) -> None:
    database, world = kept
    was = legacy(database, "legacy_usage")
    for _ in range(2):
        usage(database.url, task(database.url, world.agents[0]), "2026-01-01 10:00+00", tokens=2**62)
    printed = database.downgrade("102")
    assert "task_usage_daily stays as it was kept, not rolled forward: bigint out of range" in printed
    assert "task_usage_dashboard_daily stays as it was kept" in printed
    assert legacy(database) == was
    assert {watermark.date() for watermark in watermarks(database)} == {date(2025, 5, 1)}


def test_kept_rollup_whose_window_meets_too_long_a_model_name_comes_back_as_it_was(
    kept: tuple[Database, World],
) -> None:
    database, world = kept
    was = legacy(database, "legacy_usage")
    event(database.url, world, "2026-01-01 10:00+00", model=LONG_IN_BYTES)
    printed = database.downgrade("102")
    assert "task_usage_daily stays as it was kept, not rolled forward: index row size" in printed
    assert "task_usage_dashboard_daily stays as it was kept, not rolled forward: index row size" in printed
    assert legacy(database) == was
    assert {watermark.date() for watermark in watermarks(database)} == {date(2025, 5, 1)}


def test_kept_tables_are_rolled_forward_and_stay_writable_under_a_publication_for_all_tables(
    v034: Database,
) -> None:
    event(v034.url, small_world(v034.url), "2025-03-01 10:15+00")
    roll_up_as_v034(v034)
    v034.execute("UPDATE issue SET project_id = NULL")
    assert v034.value("SELECT count(*) FROM task_usage_dashboard_dirty") == 2
    v034.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    # The trap: v0.3.4's own window may not delete there.
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        v034.execute("SELECT rollup_task_usage_dashboard_daily_window('-infinity', '-infinity')")
    v034.upgrade(KEEP_LEGACY="true")
    identities = "SELECT relname, relreplident FROM pg_class WHERE relname ~ '^task_usage_da' ORDER BY 1"
    before = dict(v034.execute(identities))
    v034.downgrade("102")
    assert_legacy_is_right(v034)
    # Those without a primary key: v0.3.4's windows and triggers would be refused there.
    without = {"task_usage_dashboard_daily": "f", "task_usage_dashboard_dirty": "f"}
    assert dict(v034.execute(identities)) == before | without


def test_kept_tables_that_somebody_reads_are_not_waited_for_long(kept: tuple[Database, World]) -> None:
    database, _ = kept
    database.downgrade("103")
    before = database.catalog()
    with database.connect() as reader:
        reader.execute("SELECT FROM legacy_usage.task_usage_daily")
        refused = database.refused("-x", "lock-timeout=1s", "downgrade", "102")
        assert (
            "legacy_usage.task_usage_dashboard_rollup_state within 1 s\nDETAIL: in the way: pid " in refused
        )
    assert database.catalog() == before
    database.downgrade("102")


# Usage that no window could file


def test_absurd_usage_is_left_out_of_what_is_rebuilt_and_stops_nothing(v034: Database) -> None:
    with v034.connect(autocommit=True) as connection:
        world = small_world(connection)
        event(connection, world, "2025-03-01 10:15+00", agent=2, issue=3)
        for created_at in ("infinity", "4713-01-01 BC", "294276-12-31 23:00+00"):
            event(connection, world, created_at, None)
        event(connection, world, "2025-03-01 10:25+00")
        for _ in range(3):
            event(connection, world, "2025-04-01 10:25+00", tokens=2**62)
    v034.execute(f"UPDATE task_usage SET model = '{LONG_MODEL}' WHERE created_at = '2025-03-01 10:25+00'")
    v034.execute("UPDATE agent_runtime SET timezone = 'Mars/Olympus'")
    # The trap: the pipeline's own window cannot.
    with pytest.raises(psycopg.Error):
        v034.execute("SELECT rollup_task_usage_daily_window('-infinity', 'infinity')")
    assert v034.alembic("-x", "keep-legacy=false", "upgrade", "103").returncode == 0
    printed = v034.downgrade("102")
    assert "4 usage rows are left out of the legacy rollups" in printed
    assert "PostgreSQL knows no time zone Mars/Olympus" in printed
    for rows in legacy(v034).values():
        assert [(row[0], row[5]) for row in rows] == [
            (date(2025, 3, 1), 100),
            (date(2025, 4, 1), 2**63 - 1),
        ]


def test_model_name_is_too_long_by_its_bytes(v034: Database) -> None:
    world = small_world(v034.url)
    event(v034.url, world, "2025-03-01 10:15+00")
    event(v034.url, world, "2025-03-01 10:25+00", model=LONG_IN_BYTES)
    assert v034.alembic("-x", "keep-legacy=false", "upgrade", "103").returncode == 0
    assert "1 usage rows are left out of the legacy rollups" in v034.downgrade("102")
    assert all(len(rows) == 1 for rows in legacy(v034).values())


# Killed


@pytest.mark.parametrize(
    ("revision", "how"),
    [
        *((revision, "SIGKILL") for revision in STEMS if revision > "097"),
        ("103", "SIGTERM"),
    ],
)
def test_way_back_killed_at_a_step_is_where_it_was_before_that_step_and_can_be_repeated(
    head: Database, revision: str, how: str
) -> None:
    event(head.url, small_world(head.url), "2025-03-01 10:15+00")
    order = list(STEMS)
    if revision != "104":
        head.downgrade(revision)
    target = order[order.index(revision) - 1]
    # What stops here is all but committed.
    at_the_ledger = Boundary("schema_migrations", "DELETE")
    with stopped_at(head, at_the_ledger):
        before = head.catalog()
        process = head.spawn("alembic", "downgrade", target)
        wait_until(lambda: waits_at(head, at_the_ledger), "the step at its ledger row")
        pid = waits_at(head, at_the_ledger)
        assert pid is not None
        process.send_signal(getattr(signal, how))
        printed, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == {"SIGKILL": -9, "SIGTERM": 143}[how]
        assert "Traceback" not in printed
    wait_until(lambda: is_gone(head, pid), "its session is over")
    assert head.catalog() == before
    head.downgrade(target)
    assert head.revision == target
    assert STEMS[revision] not in head.ledger


def test_way_back_interrupted_after_103_goes_up_again(head: Database) -> None:
    event(head.url, small_world(head.url), "2025-03-01 10:15+00")
    catalog = schema_in_order(head)
    head.downgrade("102")
    assert_legacy_is_right(head)
    head.upgrade()
    assert schema_in_order(head) == catalog
    head.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now()")
    assert differing_hours(head.url) == []
