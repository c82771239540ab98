"""The way back besides rows: how things were set, and a watermark that claims nothing unseen."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from tests.support.database import Database, MakeDatabase
from tests.support.go_runner import GO_102, record, run_sql
from tests.support.legacy import LEGACY_TABLES, roll_up_as_v034
from tests.support.oracle import differing_hours
from tests.support.product import World, event, small_world
from tests.support.roles import MakeRole, give_everything_to
from tests.support.rollup import TICK, WATERMARK, hourly, row_versions, wrong_hours
from tests.support.v034 import generate_history
from usage_rollup.contract import STEMS

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def history(database: Database) -> None:
    with database.connect() as connection:
        generate_history(connection, 300, months=2, agents=6)


@pytest.fixture
def used(v034: Database) -> Database:
    """Return a database at 102 whose history is rolled up."""
    history(v034)
    v034.upgrade("102")
    set_right(v034)
    assert wrong_hours(v034) == []
    return v034


def set_right(database: Database) -> None:
    """Tick until the watermark is past every event, as a scheduler would."""
    for _ in range(100):
        database.execute(TICK)
        if not database.value(
            "SELECT task_usage_hourly_latest_event() > watermark_at FROM task_usage_hourly_rollup_state"
        ):
            return


def change_everything(database: Database) -> None:
    """Delete, move and correct what is old, none of which its time tells."""
    database.execute("DELETE FROM task_usage WHERE id IN (SELECT id FROM task_usage ORDER BY id LIMIT 100)")
    database.execute("UPDATE issue SET project_id = NULL")
    database.execute(
        "UPDATE agent_task_queue SET runtime_id = (SELECT min(id::text)::uuid FROM agent_runtime)"
    )
    database.execute("UPDATE task_usage SET input_tokens = input_tokens + 1")


# The watermark


def test_what_changed_while_nothing_watched_is_not_below_the_watermark_afterwards(used: Database) -> None:
    used.downgrade("101")
    assert used.value(WATERMARK) == EPOCH
    change_everything(used)
    used.upgrade("102")
    # The trap: what is in the rollup is wrong.
    assert wrong_hours(used) != []
    assert differing_hours(used.url) == []
    assert used.value(WATERMARK) == EPOCH
    set_right(used)
    assert wrong_hours(used) == []
    used.upgrade()
    assert used.usage_rollup("verify").returncode == 0


def test_tick_after_the_way_back_takes_out_what_was_deleted_while_nothing_watched(used: Database) -> None:
    used.downgrade("101")
    used.execute("DELETE FROM task_usage")
    used.upgrade("102")
    assert hourly(used) != []
    assert differing_hours(used.url) == []
    used.execute(TICK)
    assert hourly(used) == []


def test_what_no_tick_finds_by_time_after_the_way_back_is_queued(used: Database) -> None:
    world = small_world(used.url)
    event(used.url, world, "1969-07-20 20:17+00")
    event(used.url, world, "2020-03-01 10:15+00")
    # The very beginning of the hour after the one that is emptied.
    event(used.url, world, "2020-03-01 11:00+00")
    used.execute(TICK)
    assert wrong_hours(used) == []
    used.downgrade("101")
    used.execute("DELETE FROM task_usage WHERE created_at = '2020-03-01 10:15+00'")
    used.execute("UPDATE task_usage SET cache_write_tokens = 7 WHERE created_at < '1970-01-01'")
    used.upgrade("102")
    set_right(used)
    assert wrong_hours(used) == []


def test_watermark_that_somebody_moved_at_101_is_distrusted_and_that_is_said(used: Database) -> None:
    used.downgrade("101")
    used.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = '2026-06-01 12:00+00'")
    printed = used.upgrade("102")
    assert printed.count("the watermark of the hourly rollup was 2026-06-01 12:00:00+00;") == 1
    assert used.value(WATERMARK) == EPOCH
    assert "the watermark of the hourly rollup was" not in used.downgrade("101") + used.upgrade("102")


def test_what_the_go_release_s_pipeline_did_not_see_is_found(make_database: MakeDatabase) -> None:
    stuck = make_database("101")
    stuck.execute("DROP TABLE alembic_version")
    run_sql(stuck, GO_102)
    record(stuck, STEMS["102"])
    history(stuck)
    # What its window left, and deletions and moves that its triggers missed since.
    stuck.execute(
        "INSERT INTO task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, provider, model)"
        " SELECT date_trunc('hour', created_at), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(),"
        " provider, model FROM task_usage LIMIT 20"
    )
    stuck.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() - interval '5 minutes'")
    stuck.upgrade("102")
    assert wrong_hours(stuck) != []
    assert differing_hours(stuck.url) == []
    stuck.upgrade()
    assert wrong_hours(stuck) == []


def test_walk_after_the_way_back_writes_nothing_where_nothing_changed(used: Database) -> None:
    used.downgrade("101")
    before = row_versions(used)["task_usage_hourly"]
    used.upgrade()
    assert row_versions(used)["task_usage_hourly"] == before


def test_preflight_at_101_distrusts_the_watermark_as_the_upgrade_will(used: Database) -> None:
    used.downgrade("101")
    used.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() + interval '1 day'")
    found = json.loads(used.usage_rollup("preflight", "--json").stdout)
    assert found["refusals"] == []
    assert found["guard"]["walks"]
    assert found["backfill"]["rows"] == 300
    used.upgrade()


# How things were set

SET = """
ALTER TABLE task_usage_daily OWNER TO {owner};
ALTER FUNCTION rollup_task_usage_daily() OWNER TO {owner};
ALTER FUNCTION enqueue_task_usage_dashboard_dirty_for_tu() SECURITY DEFINER;
REVOKE INSERT ON task_usage_daily_dirty FROM postgres;
REVOKE EXECUTE ON FUNCTION rollup_task_usage_daily() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION rollup_task_usage_daily() TO {reader} WITH GRANT OPTION;
-- The longest signature, longer than a name may be.
REVOKE EXECUTE ON FUNCTION rollup_task_usage_dashboard_daily_window(timestamptz, timestamptz) FROM PUBLIC;
GRANT SELECT ON task_usage_daily, task_usage_dashboard_dirty TO PUBLIC;
GRANT SELECT, DELETE ON task_usage_daily TO {reader} WITH GRANT OPTION;
GRANT INSERT, UPDATE ON task_usage_daily, task_usage_dashboard_dirty TO {reader};
GRANT SELECT (bucket_date, model), UPDATE (model) ON task_usage_dashboard_daily TO {reader};
GRANT SELECT (model) ON task_usage_dashboard_daily TO {owner} WITH GRANT OPTION;
GRANT SELECT (timezone) ON agent_runtime TO {reader};
COMMENT ON COLUMN agent_runtime.timezone IS 'Somebody''s; own';
COMMENT ON TABLE task_usage_daily IS NULL;
COMMENT ON TABLE task_usage_daily_dirty IS E'It''s a "queue";\nof ours %s %I';
COMMENT ON COLUMN task_usage_dashboard_daily.model IS 'A model';
COMMENT ON INDEX idx_task_usage_daily_runtime_date IS 'An index';
COMMENT ON CONSTRAINT uq_task_usage_dashboard_dirty_key ON task_usage_dashboard_dirty IS 'A constraint';
COMMENT ON FUNCTION rollup_task_usage_daily_window(timestamptz, timestamptz) IS 'A function';
COMMENT ON TRIGGER trg_atq_dirty_rollup ON agent_task_queue IS 'A trigger';
ALTER TABLE agent_task_queue ENABLE ALWAYS TRIGGER trg_atq_dirty_rollup;
ALTER TABLE issue DISABLE TRIGGER trg_issue_delete_dirty_dashboard;
ALTER TABLE issue ENABLE REPLICA TRIGGER trg_issue_project_dirty_dashboard;
ALTER TABLE task_usage_daily SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
ALTER INDEX idx_task_usage_dashboard_daily_agent_date SET (fillfactor = 60);
ALTER TABLE task_usage_dashboard_dirty REPLICA IDENTITY FULL;
ALTER TABLE task_usage_daily REPLICA IDENTITY USING INDEX task_usage_daily_pkey;
ALTER TABLE task_usage_rollup_state REPLICA IDENTITY NOTHING;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT TRUNCATE ON TABLES TO {reader};
"""


@pytest.fixture
def set_by_hand(v034: Database, make_role: MakeRole) -> tuple[Database, str, str]:
    """Return a v0.3.4 database whose legacy rollups are set in every way, and the two roles."""
    owner, reader = make_role("owner"), make_role("reader")
    v034.upgrade("097")
    run_sql(v034, SET.format(owner=owner, reader=reader))
    return v034, owner, reader


@pytest.mark.server
@pytest.mark.parametrize("target", ["102", "097"])
def test_way_back_leaves_owners_grants_comments_and_replica_identity_as_they_were(
    set_by_hand: tuple[Database, str, str], target: str
) -> None:
    database, _, _ = set_by_hand
    database.upgrade(target)
    before = database.schema(in_order=False)
    for _ in range(2):
        database.upgrade()
        printed = database.downgrade(target)
        assert "WARN" not in printed
        assert database.schema(in_order=False) == before


def test_second_way_back_restores_what_was_set_between(v034: Database, make_role: MakeRole) -> None:
    first, second = make_role("first"), make_role("second")
    v034.execute(f"GRANT SELECT ON task_usage_daily TO {first}")
    v034.execute("COMMENT ON FUNCTION task_usage_rollup_lag_seconds() IS 'first'")
    v034.upgrade()
    v034.downgrade("102")
    v034.execute(f"REVOKE ALL ON task_usage_daily FROM {first}")
    v034.execute(f"GRANT SELECT ON task_usage_daily TO {second}")
    v034.execute("COMMENT ON FUNCTION task_usage_rollup_lag_seconds() IS 'second'")
    before = v034.schema(in_order=False)
    v034.upgrade()
    v034.downgrade("102")
    assert v034.schema(in_order=False) == before


def test_what_is_remembered_again_is_what_is_there_the_second_time(
    set_by_hand: tuple[Database, str, str],
) -> None:
    database, _, reader = set_by_hand
    database.upgrade("102")
    remember = "SELECT rollup_task_usage_hourly_remember_legacy('103')"
    database.execute(remember)
    # Undone by somebody else meanwhile: nobody has used it up.
    run_sql(
        database,
        f"ALTER TABLE task_usage_daily OWNER TO {reader}; REVOKE ALL ON task_usage_daily FROM PUBLIC;"
        "COMMENT ON TABLE task_usage_daily IS 'since'; ALTER TABLE task_usage_daily SET (fillfactor = 50);"
        "ALTER TABLE task_usage_daily REPLICA IDENTITY FULL;"
        "ALTER TABLE task_usage_daily_dirty REPLICA IDENTITY USING INDEX task_usage_daily_dirty_pkey;"
        "ALTER TABLE agent_task_queue DISABLE TRIGGER trg_atq_dirty_rollup;"
        "ALTER FUNCTION enqueue_task_usage_dashboard_dirty_for_tu() SECURITY INVOKER",
    )
    otherwise = (
        "SELECT s.kind, s.name FROM (TABLE task_usage_hourly_legacy_settings"
        " EXCEPT SELECT * FROM task_usage_hourly_legacy_settings_now('103')) AS s"
        " WHERE s.step = '103' ORDER BY 1, s.relation"
    )
    assert database.execute(otherwise) == [
        ("function", "enqueue_task_usage_dashboard_dirty_for_tu()"),
        ("table", ""),
        ("table", ""),
        ("trigger", "trg_atq_dirty_rollup"),
    ]
    database.execute(remember)
    assert database.execute(otherwise) == []


def test_way_back_from_102_sets_no_grant_or_option_back(
    make_database: MakeDatabase, make_role: MakeRole
) -> None:
    database, earlier, later = make_database("101"), make_role("earlier"), make_role("later")
    database.execute(
        f"GRANT SELECT ON task_usage_hourly TO {earlier}; ALTER TABLE task_usage_hourly SET (fillfactor = 70)"
    )
    database.upgrade("102")
    database.execute(
        f"REVOKE SELECT ON task_usage_hourly FROM {earlier}; GRANT SELECT ON task_usage_hourly TO {later};"
        "ALTER TABLE task_usage_hourly SET (fillfactor = 80)"
    )
    set_since = "SELECT relacl::text, reloptions FROM pg_class WHERE relname = 'task_usage_hourly'"
    before = database.execute(set_since)
    database.downgrade("101")
    assert database.execute(set_since) == before


def test_nothing_is_remembered_any_more_once_it_is_restored(head: Database) -> None:
    remembered = "SELECT step, count(*) FROM task_usage_hourly_legacy_settings GROUP BY 1 ORDER BY 1"
    assert [step for step, _ in head.execute(remembered)] == ["102", "103", "104"]
    head.downgrade("103")
    # Set while 103 is done: nobody sets it back.
    head.execute("COMMENT ON COLUMN agent_runtime.timezone IS 'since'")
    head.downgrade("102")
    assert [step for step, _ in head.execute(remembered)] == ["102"]
    assert (
        head.value(
            "SELECT col_description('agent_runtime'::regclass, attnum) FROM pg_attribute"
            " WHERE attrelid = 'agent_runtime'::regclass AND attname = 'timezone'"
        )
        == "since"
    )


def test_roles_that_are_gone_are_named_and_the_rest_is_restored(v034: Database, make_role: MakeRole) -> None:
    stays = make_role("stays")
    v034.execute("CREATE ROLE gone_owner; CREATE ROLE gone_reader")
    v034.execute(f"GRANT SELECT ON task_usage_daily TO {stays}")
    v034.upgrade("102")
    before = v034.schema(in_order=False)
    v034.execute("GRANT SELECT ON task_usage_daily TO gone_reader")
    # With nothing left to it but that it owns it.
    v034.execute(
        "ALTER FUNCTION rollup_task_usage_daily() OWNER TO gone_owner;"
        " REVOKE ALL ON FUNCTION rollup_task_usage_daily() FROM gone_owner"
    )
    v034.upgrade()
    for role in ("gone_owner", "gone_reader"):
        v034.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    printed = v034.downgrade("102")
    assert printed.count("WARN") == 1
    assert "is not given back: gone_owner, gone_reader" in printed
    assert v034.schema(in_order=False) == before


def test_owner_that_may_not_be_set_is_left_to_the_operator_in_a_statement(
    v034: Database, make_role: MakeRole
) -> None:
    runner, other = make_role("runner"), make_role("other")
    give_everything_to(v034, runner)
    v034.execute(f"GRANT CREATE ON DATABASE {v034.name} TO {runner}")
    v034.execute(f"GRANT {other} TO {runner}")
    v034.execute(f"ALTER TABLE task_usage_daily OWNER TO {other}; GRANT SELECT ON task_usage_daily TO PUBLIC")
    as_runner = {"DATABASE_URL": v034.url_of(runner)}
    v034.upgrade("head", **as_runner)
    v034.execute(f"REVOKE {other} FROM {runner}")
    printed = v034.downgrade("102", **as_runner)
    statement = f"ALTER TABLE public.task_usage_daily OWNER TO {other}"
    assert printed.count("WARN") == 1
    assert f"not as it was before the upgrade: {statement} (" in printed
    # The right that comes with owning it is given to the other at least.
    assert v034.value(f"SELECT has_table_privilege('{other}', 'task_usage_daily', 'INSERT')")
    assert v034.value(f"SELECT has_table_privilege('{runner}', 'task_usage_daily', 'INSERT')")
    v034.execute(statement)


@pytest.mark.parametrize("inherits", [True, False])
def test_role_that_is_no_superuser_restores_what_members_of_it_own(
    v034: Database, make_role: MakeRole, inherits: bool
) -> None:
    runner, other = make_role("runner"), make_role("other")
    give_everything_to(v034, runner)
    v034.execute(f"GRANT CREATE ON DATABASE {v034.name} TO {runner}")
    v034.execute(f"GRANT {other} TO {runner}; GRANT ALL ON SCHEMA public TO {other}")
    v034.execute(f"ALTER TABLE task_usage_daily OWNER TO {other}")
    v034.execute(f"ALTER FUNCTION rollup_task_usage_daily() OWNER TO {other}")
    v034.execute(
        "GRANT SELECT ON task_usage_daily TO PUBLIC; COMMENT ON TABLE task_usage_daily IS 'other''s'"
    )
    as_runner = {"DATABASE_URL": v034.url_of(runner)}
    v034.upgrade("102", **as_runner)
    before = v034.schema(in_order=False)
    v034.upgrade("head", **as_runner)
    if not inherits:
        # From PostgreSQL 16 on a membership keeps how it was granted.
        v034.execute(
            f"REVOKE {other} FROM {runner}; ALTER ROLE {runner} NOINHERIT; GRANT {other} TO {runner}"
        )
    assert "WARN" not in v034.downgrade("103", **as_runner) + v034.downgrade("102", **as_runner)
    assert v034.schema(in_order=False) == before


def test_kept_tables_bring_along_how_they_are_set_now(v034: Database, make_role: MakeRole) -> None:
    reader = make_role("reader")
    event(v034.url, small_world(v034.url), "2025-03-01 10:15+00")
    roll_up_as_v034(v034)
    v034.execute("COMMENT ON TABLE task_usage_daily IS 'before'")
    v034.execute("COMMENT ON FUNCTION rollup_task_usage_daily() IS 'before'")
    v034.upgrade(KEEP_LEGACY="true")
    v034.execute("COMMENT ON TABLE legacy_usage.task_usage_daily IS 'since'")
    v034.execute(f"GRANT SELECT ON legacy_usage.task_usage_daily TO {reader}")
    v034.downgrade("102")
    assert v034.value("SELECT obj_description('task_usage_daily'::regclass)") == "since"
    assert v034.value(f"SELECT has_table_privilege('{reader}', 'task_usage_daily', 'SELECT')")
    assert v034.value("SELECT obj_description('rollup_task_usage_daily()'::regprocedure)") == "before"


def test_103_and_its_way_back_do_without_what_was_remembered(head: Database, at_102: Database) -> None:
    head.execute("DELETE FROM task_usage_hourly_legacy_settings")
    head.downgrade("102")
    assert head.schema(in_order=False) == at_102.schema(in_order=False)


def test_102_s_way_back_does_without_what_was_remembered(make_database: MakeDatabase) -> None:
    database = make_database("102")
    database.execute("DELETE FROM task_usage_hourly_legacy_settings")
    database.downgrade("101")
    assert database.schema(in_order=False) == make_database("101").schema(in_order=False)


@pytest.mark.parametrize("identity", ["NOTHING", "DEFAULT", "FULL"])
def test_102_leaves_the_tables_of_101_with_the_replica_identity_and_comments_it_found(
    make_database: MakeDatabase, identity: str
) -> None:
    database = make_database("101")
    database.execute(f"ALTER TABLE task_usage_hourly_dirty REPLICA IDENTITY {identity}")
    database.execute("COMMENT ON TABLE task_usage_hourly IS 'the Go release''s'")
    database.execute("COMMENT ON COLUMN task_usage_hourly_rollup_state.watermark_at IS NULL")
    before = database.schema()
    database.upgrade("102")
    # Put over itself, as after an adoption, it remembers what was there before the first time.
    database.execute("UPDATE alembic_version SET version_num = '101'")
    database.upgrade()
    assert (
        database.value(
            "SELECT count(*) FROM pg_class WHERE relreplident = 'f'"
            " AND relname IN ('task_usage_hourly', 'task_usage_hourly_dirty')"
        )
        == 2
    )
    database.downgrade("101")
    assert database.schema(in_order=False) == sorted(line.strip().rstrip(",") for line in before)


# A publication


@pytest.mark.parametrize(
    ("publication", "tells_rows_apart"),
    [
        ("FOR ALL TABLES", True),
        ("FOR TABLES IN SCHEMA public", True),
        ("FOR ALL TABLES WITH (publish = 'update')", True),
        ("FOR ALL TABLES WITH (publish = 'delete')", True),
        ("FOR ALL TABLES WITH (publish = 'insert, truncate')", False),
        ("FOR TABLE issue", False),
    ],
)
def test_server_s_updates_do_not_fail_after_the_way_back_under_a_publication(
    head: Database, publication: str, tells_rows_apart: bool
) -> None:
    world = small_world(head.url)
    event(head.url, world, "2025-03-01 10:15+00")
    head.execute(f"CREATE PUBLICATION everything {publication}")
    head.downgrade("097")
    work_as_the_server(head, world)
    full = {
        row[0]
        for row in head.execute(
            "SELECT relname FROM pg_class WHERE relreplident = 'f' AND relnamespace = 'public'::regnamespace"
        )
    }
    dashboard = {"task_usage_dashboard_daily", "task_usage_dashboard_dirty"}
    assert full == (dashboard if tells_rows_apart else set())
    assert full <= set(LEGACY_TABLES)


@pytest.mark.parametrize("kept", ["true", "false"])
@pytest.mark.parametrize("queue", ["task_usage_daily_dirty", "task_usage_dashboard_dirty"])
def test_server_s_updates_do_not_fail_after_the_way_back_where_a_published_queue_had_no_replica_identity(
    v034: Database, queue: str, kept: str
) -> None:
    world = small_world(v034.url)
    event(v034.url, world, "2025-03-01 10:15+00")
    v034.execute(f"ALTER TABLE {queue} REPLICA IDENTITY NOTHING")
    # A window has something to do on the way back.
    roll_up_as_v034(v034)
    work_on_issues(v034, world)
    v034.upgrade(KEEP_LEGACY=kept)
    v034.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    v034.downgrade("097")
    work_as_the_server(v034, world)
    assert v034.value("SELECT relreplident FROM pg_class WHERE relname = %s", queue) == "f"


def work_on_issues(database: Database, world: World) -> None:
    """Change what v0.3.4's triggers queue."""
    for issue in (world.issues[1], world.issues[0], None):
        database.execute("UPDATE agent_task_queue SET issue_id = %s", issue)
    database.execute("UPDATE issue SET project_id = NULL")


def work_as_the_server(database: Database, world: World) -> None:
    """Change what v0.3.4's triggers queue, and take the queues to their rollups."""
    work_on_issues(database, world)
    database.execute("SELECT rollup_task_usage_daily(), rollup_task_usage_dashboard_daily()")
