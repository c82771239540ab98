"""Upgrades and ways back, told twice: by the runner, and by the script it writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.database import Database, MakeDatabase
from tests.support.go_runner import drop_legacy, record, run_sql, taken_by_go_to, unrecord
from tests.support.legacy import lose_raw_rows, roll_up_as_v034, where_legacy_is
from tests.support.oracle import differing_hours, wrong_buckets
from tests.support.product import LONG_MODEL, event, small_world
from tests.support.roles import MakeRole, give_everything_to
from tests.support.rollup import WATERMARK, hourly, queued, run_hook
from tests.support.settings import HOSTILE_SETTINGS
from tests.support.shapes import make_products
from tests.support.v034 import V034_STEMS, generate_history
from tests.support.walks import advisory_locks, committed_months, write_history
from tests.support.ways import WAYS, Script, Way, refused
from usage_rollup.contract import BASELINE, STEMS
from usage_rollup.runner.adoption import ANOTHER_TABLE

GO_FUNCTIONS = "SELECT count(*) FROM pg_proc WHERE prosrc LIKE '%/* go%'"


@pytest.fixture(params=sorted(WAYS))
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


def history(*databases: Database) -> None:
    """Write the same history into each, its times included."""
    until = databases[0].value("SELECT now() - interval '10 minutes'")
    for database in databases:
        with database.connect() as connection:
            generate_history(connection, 600, months=5, agents=6, until=until)


def rows(database: Database) -> list[list[tuple[Any, ...]]]:
    """Return what all rollups that are there hold, without the time it was written, and the time zones."""
    kept = []
    for table, but in [
        ("task_usage_hourly", "updated_at"),
        ("task_usage_daily", "updated_at"),
        ("task_usage_dashboard_daily", "updated_at"),
        ("agent_runtime", "id"),
    ]:
        if database.value("SELECT to_regclass(%s) IS NOT NULL", f"public.{table}"):
            found = database.execute(f"SELECT to_jsonb(t) - '{but}' FROM public.{table} t ORDER BY 1")
            kept.append([row for row in found if table != "agent_runtime" or row[0].get("timezone")])
    return kept


# The same end


@pytest.mark.server
def test_both_ways_end_with_the_same_catalog_and_rollup(make_database: MakeDatabase) -> None:
    online, offline = make_database("v034"), make_database("v034")
    history(online, offline)
    online.upgrade()
    for start, target in (("097", "100"), ("100", "103"), ("103", "104")):
        assert "WARNING" not in Script().upgrade(offline, start, target)
    assert offline.schema() == online.schema()
    assert rows(offline) == rows(online)
    assert rows(online)[0]
    assert offline.ledger == online.ledger == {*V034_STEMS, *STEMS.values()}
    assert "Running upgrade" not in offline.upgrade()


@pytest.mark.server
def test_both_ways_build_the_same_from_nothing(make_database: MakeDatabase) -> None:
    online, offline = make_database("empty"), make_database("empty")
    online.upgrade()
    Script().upgrade(offline, "base")
    assert offline.catalog() == online.catalog()


@pytest.mark.server
@pytest.mark.parametrize("target", ["102", "097"])
def test_both_ways_back_end_with_the_same_catalog_and_rollups(
    make_database: MakeDatabase, target: str
) -> None:
    online, offline = make_database("v034"), make_database("v034")
    history(online, offline)
    for database, way in ((online, WAYS["runner"]), (offline, WAYS["script"])):
        database.upgrade()
        assert "the time zone of every runtime is UTC again" in way.downgrade(database, "head", target)
    assert offline.schema() == online.schema()
    assert rows(offline) == rows(online)
    assert all(rows(online))
    Script().upgrade(offline, target)
    assert rows(offline)[0]


# Where the product's own runner stopped


def test_a_v034_with_later_stems_below_100_is_adopted_and_goes_to_head(way: Way, v034: Database) -> None:
    later = ("096_pending_check_suite", "098_contact_sales_inquiries")
    record(v034, *later)
    said = way.upgrade(v034, "097")
    assert (
        "adopting a database of the product's own runner at 097_autopilot_project_id (126 rows in its ledger)"
        in said
    )
    assert v034.revision == "104"
    assert v034.ledger == {*V034_STEMS, *later, *STEMS.values()}
    assert advisory_locks(v034) == []
    assert "adopting" not in way.upgrade(v034, "104")


def test_a_database_stuck_at_103_is_adopted_at_101_and_receives_this_pipeline(
    way: Way, make_database: MakeDatabase, head: Database
) -> None:
    stuck = taken_by_go_to(make_database, "102")
    with stuck.connect() as connection:
        usage_rows = generate_history(connection, 400).usage_rows
    assert stuck.value(GO_FUNCTIONS) == 9
    assert "at 101_task_usage_hourly_schema (127 rows" in way.upgrade(stuck, "101")
    assert stuck.revision == "104"
    assert stuck.ledger == {*V034_STEMS, *STEMS.values()}
    assert stuck.schema() == head.schema()
    assert stuck.value("SELECT sum(event_count) FROM task_usage_hourly") == usage_rows


# The functions of 102 are replaced, so its step is run, not recorded.
@pytest.mark.parametrize(("done", "goes_on"), [("100", "100"), ("102", "101"), ("103", "103")])
def test_a_step_that_was_done_but_not_recorded_is_recorded_and_not_done_again(
    way: Way, make_database: MakeDatabase, done: str, goes_on: str
) -> None:
    crashed = taken_by_go_to(make_database, done)
    unrecord(crashed, STEMS[done])
    said = way.upgrade(crashed, goes_on)
    assert f"adopting a database of the product's own runner at {STEMS[goes_on]} (" in said
    assert (f"ahead of it by {STEMS[done]}" in said) == (done == goes_on)
    assert crashed.revision == "104"
    assert crashed.ledger == {*V034_STEMS, *STEMS.values()}


def test_a_database_of_ours_that_the_go_runner_took_further_is_adopted_forward(
    way: Way, make_database: MakeDatabase, head: Database
) -> None:
    ours = make_database("102")
    drop_legacy(ours)
    assert "ahead of it by 103_drop_legacy_daily_rollups" in way.upgrade(ours, "103")
    assert ours.revision == "104"
    assert ours.ledger == {*V034_STEMS, *STEMS.values()}
    assert ours.schema() == head.schema()


def test_a_database_without_a_ledger_that_this_chain_made_gets_none(way: Way, empty: Database) -> None:
    empty.upgrade("097")
    event(empty.url, small_world(empty.url), "2025-03-01 10:20+00")
    assert "adopting" not in way.upgrade(empty, "097")
    assert empty.revision == "104"
    assert empty.value("SELECT to_regclass('public.schema_migrations')") is None


def test_a_version_set_back_is_where_an_upgrade_goes_on(way: Way, at_102: Database) -> None:
    before = at_102.schema()
    at_102.execute("UPDATE alembic_version SET version_num = '101'")
    way.upgrade(at_102, "101", "102")
    assert at_102.revision == "102"
    assert at_102.schema() == before


# Refused, in the same words


def without_ledger(database: Database) -> None:
    database.execute("DROP TABLE schema_migrations")


def another_applications_ledger(database: Database) -> None:
    without_ledger(database)
    database.execute("CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty boolean NOT NULL)")


def another_applications_version(database: Database) -> None:
    database.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    database.execute("INSERT INTO alembic_version VALUES ('ae1027a6acf4')")


def another_products_tables(database: Database) -> None:
    for table in BASELINE.columns:
        database.execute(f'ALTER TABLE "{table}" RENAME TO "{table}s"')


def ledger_before_097(database: Database) -> None:
    unrecord(database, STEMS["097"])


def index_missing(database: Database) -> None:
    database.execute("DROP INDEX idx_task_usage_updated_at")


def recorded_103(database: Database) -> None:
    record(database, STEMS["103"])


def gap(database: Database) -> None:
    database.execute('ALTER TABLE "user" ADD COLUMN timezone text')
    recorded_104 = (STEMS[r] for r in STEMS if r not in {"097", "103"})
    record(database, *recorded_104)


UPGRADES = [
    (
        without_ledger,
        "this database holds tables but no ledger (schema_migrations) and no alembic_version, so nothing"
        " says which product release made it",
        "start the product's release v0.3.4 on it once, or point DATABASE_URL at the right database",
    ),
    (
        another_applications_ledger,
        "schema_migrations is not the product's ledger: it has no column version of type text",
        "point DATABASE_URL at the product's database",
    ),
    (
        another_applications_version,
        "alembic_version holds ae1027a6acf4, which is no revision of this chain",
        "point DATABASE_URL at the product's database, or use the release of this package that wrote it;"
        f" where the table is another application's, {ANOTHER_TABLE}",
    ),
    (
        another_products_tables,
        "this is not the product's database: it holds a schema_migrations table and none of the"
        " product's tables",
        "point DATABASE_URL at the right database",
    ),
    (
        ledger_before_097,
        "this database is older than v0.3.4: its ledger lacks 097_autopilot_project_id",
        "upgrade the product to v0.3.4 first, then run this again",
    ),
    (
        index_missing,
        "this database is not a complete v0.3.4: missing index idx_task_usage_updated_at",
        "upgrade the product to v0.3.4 first, then run this again",
    ),
    (
        recorded_103,
        "the ledger records 103_drop_legacy_daily_rollups, but the schema does not show it: still there:"
        " table task_usage_daily, table task_usage_daily_dirty, table task_usage_dashboard_daily, table"
        " task_usage_dashboard_dirty, table task_usage_dashboard_rollup_state, table task_usage_rollup_state",
        "restore what is named above, or, if the step was undone on purpose, delete its row from"
        " schema_migrations",
    ),
    (
        gap,
        "a step is missing in the middle: 103_drop_legacy_daily_rollups is not recorded or not done,"
        " although 104_drop_runtime_timezone is",
        "restore the database from a backup taken before the steps were mixed up",
    ),
]


@pytest.mark.parametrize(
    ("change", "message", "hint"), UPGRADES, ids=[change.__name__ for change, *_ in UPGRADES]
)
def test_what_cannot_be_adopted_is_refused_in_the_same_words(
    way: Way, v034: Database, change: Callable[[Database], None], message: str, hint: str
) -> None:
    change(v034)
    said = refused(way, v034, "upgrade", "097", "head")
    assert f"{message}\n" in said
    assert f"HINT: {hint}\n" in said


def past_105(head: Database) -> None:
    record(head, "105_issue_metadata", "106_more")


def products_pipeline(head: Database) -> None:
    make_products(head, later=False).upgrade()


def gone_on(head: Database) -> None:
    head.execute("UPDATE alembic_version SET version_num = '102'")


def nothing(head: Database) -> None:
    pass


def rows_of_its_own(head: Database) -> None:
    without_ledger(head)
    small_world(head.url)


WAYS_BACK = [
    (
        past_105,
        "head",
        "102",
        "refusing to downgrade: the product's own runner has gone on to 106_more, and its later steps"
        " stand on this schema",
    ),
    (
        products_pipeline,
        "head",
        "097",
        "refusing to downgrade: the functions of the hourly rollup here are the product's own, not those"
        " of this chain",
    ),
    (
        gone_on,
        "102",
        "100",
        "refusing to downgrade: alembic_version says 102, and ledger and schema show 104",
    ),
    (
        nothing,
        "head",
        "base",
        "refusing to remove the v0.3.4 baseline: the product's own runner made this database, its ledger"
        " schema_migrations exists",
    ),
    (
        rows_of_its_own,
        "head",
        "base",
        "refusing to remove the v0.3.4 baseline: these tables hold rows: workspace, agent_runtime, agent,"
        " project, issue",
    ),
]


@pytest.mark.parametrize(
    ("change", "start", "target", "message"), WAYS_BACK, ids=[change.__name__ for change, *_ in WAYS_BACK]
)
def test_a_way_back_that_could_not_be_finished_is_refused_in_the_same_words(
    way: Way, head: Database, change: Callable[[Database], None], start: str, target: str, message: str
) -> None:
    change(head)
    said = refused(way, head, "downgrade", start, target)
    assert f"{message}\n" in said
    assert "HINT: " in said
    head.execute("UPDATE alembic_version SET version_num = '104'")


# Locks


HELD = {
    "SELECT pg_advisory_lock(7244554146635925501)": (
        "advisory lock 7244554146635925501 (migration run) was not free within 0 s; held by"
    ),
    "SELECT pg_advisory_lock(4246)": "advisory lock 4246 (hourly rollup) was not free within 0 s; held by",
    "SELECT FROM task_usage_daily": "task_usage_dashboard_rollup_state within 0 s\nDETAIL: in the way:",
}


@pytest.mark.parametrize("hold", HELD)
def test_busy_lock_ends_the_wait_and_the_holder_and_its_end_are_named(
    way: Way, at_102: Database, hold: str
) -> None:
    write_history(at_102, 50, months=1)
    holder = at_102.connect(application_name="somebody")
    holder.execute(hold)
    said = way.fails(at_102, "upgrade", "102", "head", lock_timeout="0.2s")
    pid = holder.info.backend_pid
    assert f"{HELD[hold]} pid {pid} (postgres, somebody, idle in transaction since 20" in said
    assert f"HINT: wait for that session, or end it: SELECT pg_terminate_backend({pid})" in said
    assert at_102.revision == "102"
    # What the hint says works.
    at_102.execute(f"SELECT pg_terminate_backend({pid})")
    way.upgrade(at_102, "102")


@pytest.mark.server
def test_prepared_transaction_that_holds_tables_is_named_with_what_ends_it(
    way: Way, make_database: MakeDatabase
) -> None:
    database = make_database("101")
    writer = database.connect()
    event(writer, small_world(writer))
    writer.execute("PREPARE TRANSACTION 'it''s left'")
    said = way.fails(database, "upgrade", "101", "102", lock_timeout="0.2s")
    ending = "ROLLBACK PREPARED 'it''s left'"
    database.execute(ending)
    assert "in the way: prepared transaction 'it''s left' (postgres, since 20" in said
    assert f"end it: {ending} or COMMIT PREPARED 'it''s left'" in said
    way.upgrade(database, "101", "102")


# The walk


def test_hours_that_differ_are_recomputed_before_103(way: Way, at_102: Database) -> None:
    months = write_history(at_102)
    at_102.execute(
        "INSERT INTO task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, provider, model)"
        " SELECT '2020-01-01 00:00+00', workspace_id, runtime_id, id, '', 'orphan' FROM agent LIMIT 1"
    )
    assert "hours of the rollup that differ from raw usage: 1; recomputing them" in way.upgrade(at_102, "102")
    assert committed_months(at_102) == months
    assert differing_hours(at_102.url) == []


def test_hours_that_differ_after_two_recomputes_stop_the_upgrade(way: Way, at_102: Database) -> None:
    write_history(at_102, 50, months=1)
    at_102.execute("""
        CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN NEW.event_count := NEW.event_count + 1; RETURN NEW; END';
        CREATE TRIGGER spoil BEFORE INSERT OR UPDATE ON task_usage_hourly
            FOR EACH ROW EXECUTE FUNCTION spoil()
    """)
    said = way.fails(at_102, "upgrade", "102", "head")
    assert said.count("recomputing them") == 2
    assert "hours of the hourly rollup that still differ from raw usage after recomputing: " in said
    assert at_102.revision == "102"
    # Nothing is planned that nobody walks.
    assert at_102.value("SELECT count(*) FROM task_usage_hourly_backfill") == 0
    at_102.execute("DROP FUNCTION spoil CASCADE")
    way.upgrade(at_102, "102")


def test_tables_without_statistics_are_analysed_before_the_walk_and_the_rollup_after_it(
    way: Way, at_102: Database
) -> None:
    write_history(at_102, 50, months=1)
    # As after a restore.
    at_102.execute("DELETE FROM pg_statistic WHERE starelid > 16383")
    # Autovacuum may come by the queue meanwhile.
    has_statistics = (
        "SELECT DISTINCT tablename FROM pg_stats WHERE schemaname = 'public' AND tablename ~ '^task_usage'"
        " AND tablename <> 'task_usage_hourly_invalidation'"
    )
    assert at_102.execute(has_statistics) == []
    way.upgrade(at_102, "102")
    assert set(at_102.execute(has_statistics)) == {("task_usage",), ("task_usage_hourly",)}


def test_table_that_something_else_is_vacuuming_is_left_to_it_and_not_waited_for(
    way: Way, at_102: Database
) -> None:
    write_history(at_102, 50, months=1)
    at_102.execute("DELETE FROM pg_statistic WHERE starelid > 16383")
    # What a vacuum holds; 103 itself locks neither.
    at_102.connect().execute("LOCK TABLE agent, task_usage_hourly IN SHARE UPDATE EXCLUSIVE MODE")
    way.upgrade(at_102, "102", lock_timeout="1s")
    assert at_102.revision == "104"


def test_lag_of_exactly_an_hour_is_no_reason_to_walk(way: Way, at_102: Database) -> None:
    write_history(at_102, 50, months=1)
    run_hook(at_102)
    behind = "UPDATE task_usage_hourly_rollup_state SET watermark_at = {}"
    at_102.execute(behind.format("task_usage_hourly_latest_event() - interval '1 hour'"))
    before = at_102.value(WATERMARK)
    said = way.upgrade(at_102, "102")
    assert "nothing to roll up: the hourly rollup is up to date" in said
    assert at_102.value(WATERMARK) == before


def test_lag_of_a_moment_more_than_an_hour_is_walked(way: Way, at_102: Database) -> None:
    write_history(at_102, 50, months=1)
    run_hook(at_102)
    behind = "UPDATE task_usage_hourly_rollup_state SET watermark_at = {}"
    at_102.execute(behind.format("task_usage_hourly_latest_event() - interval '1 hour 1 microsecond'"))
    before = at_102.value(WATERMARK)
    assert " slice 1: " in way.upgrade(at_102, "102")
    assert at_102.value(WATERMARK) > before


def test_state_row_that_is_missing_is_put_back_and_the_history_walked(way: Way, at_102: Database) -> None:
    months = write_history(at_102)
    at_102.execute("DELETE FROM task_usage_hourly_rollup_state")
    way.upgrade(at_102, "102")
    assert committed_months(at_102) == months
    assert at_102.value(f"SELECT ({WATERMARK}) > 'epoch'")


def test_usage_that_is_gone_since_a_killed_walk_leaves_neither_buckets_nor_a_plan(
    way: Way, at_102: Database
) -> None:
    write_history(at_102)
    at_102.execute("SELECT rollup_task_usage_hourly_plan(now() - interval '5 minutes', 100)")
    at_102.execute("SELECT rollup_task_usage_hourly_slice()")
    at_102.execute("TRUNCATE task_usage")
    assert hourly(at_102) != []
    assert "there is no usage yet" in way.upgrade(at_102, "102")
    assert hourly(at_102) == []
    assert at_102.value("SELECT count(*) FROM task_usage_hourly_backfill") == 0
    assert at_102.value(f"SELECT ({WATERMARK}) > now() - interval '1 hour'")


def test_what_is_queued_is_rolled_up_before_103_although_nothing_is_walked(
    way: Way, at_102: Database
) -> None:
    write_history(at_102, 50, months=1)
    run_hook(at_102)
    at_102.execute(
        "DELETE FROM task_usage WHERE id IN (SELECT id FROM task_usage ORDER BY created_at LIMIT 9)"
    )
    assert queued(at_102) > 0
    assert wrong_buckets(at_102.url) != []
    assert "the hourly rollup is up to date" in way.upgrade(at_102, "102")
    assert queued(at_102) == 0
    assert wrong_buckets(at_102.url) == []


def test_what_was_left_out_is_walked_as_one_range_before_the_proof(way: Way, at_102: Database) -> None:
    write_history(at_102, months=6)
    assert at_102.usage_rollup("backfill", "--months-back", "2", "--force-partial").returncode == 0
    watermark = at_102.value("SELECT watermark_at FROM task_usage_hourly_rollup_state")
    said = way.upgrade(at_102, "102")
    # What was written meanwhile lies behind it.
    assert at_102.value("SELECT watermark_at FROM task_usage_hourly_rollup_state") == watermark
    assert "rolling up what a partial backfill left out" in said
    assert "slice 4: " in said
    assert "slice 5: " not in said
    assert "recomputing" not in said
    assert wrong_buckets(at_102.url) == []


def test_what_was_left_out_once_is_no_longer_said_to_be_when_all_is_proven(
    way: Way, at_102: Database
) -> None:
    write_history(at_102, 50, months=1)
    at_102.execute("INSERT INTO task_usage_hourly_left_out (before_hour) VALUES ('2020-01-01 00:00+00')")
    way.upgrade(at_102, "102")
    assert at_102.value("SELECT count(*) FROM task_usage_hourly_left_out") == 0


def test_watermark_in_the_future_is_refused_with_what_mends_it(way: Way, at_102: Database) -> None:
    write_history(at_102, 50, months=1)
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() + interval '1 day'")
    said = refused(way, at_102, "upgrade", "102", "head")
    assert "the watermark of the hourly rollup lies in the future: 20" in said
    mends = "UPDATE public.task_usage_hourly_rollup_state SET watermark_at = 'epoch' WHERE id = 1;"
    assert f"HINT: {mends}" in said
    at_102.execute(mends)
    way.upgrade(at_102, "102")


def test_legacy_tables_are_kept_when_asked_for(way: Way, v034: Database) -> None:
    write_history(v034, 50, months=1)
    said = way.upgrade(v034, "097", keep_legacy="true")
    assert "the legacy rollups are kept in schema legacy_usage: as asked for" in said
    assert v034.value("SELECT to_regclass('legacy_usage.task_usage_daily') IS NOT NULL")


def test_kept_tables_and_their_schema_belong_to_the_owner_of_task_usage_whoever_migrates(
    way: Way, v034: Database, make_role: MakeRole
) -> None:
    owner = make_role("owner")
    give_everything_to(v034, owner)
    write_history(v034, 50, months=1)
    # Who migrates is a superuser, and makes what the owner may not.
    assert not v034.value("SELECT has_database_privilege(%s, current_database(), 'CREATE')", owner)
    way.upgrade(v034, "097", keep_legacy="true")
    assert (
        v034.value("SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'legacy_usage'") == owner
    )
    assert v034.execute(
        "SELECT DISTINCT relowner::regrole::text FROM pg_class"
        " WHERE relnamespace = 'legacy_usage'::regnamespace"
    ) == [(owner,)]
    way.downgrade(v034, "head", "102")
    assert v034.value("SELECT to_regnamespace('legacy_usage') IS NULL")
    assert (
        v034.value("SELECT relowner::regrole::text FROM pg_class WHERE relname = 'task_usage_daily'") == owner
    )


def test_what_the_rollup_does_not_show_is_said_and_keeps_the_legacy_rollups(way: Way, v034: Database) -> None:
    world = small_world(v034.url)
    for created_at in ("2025-03-01 10:15+00", "2025-03-02 10:15+00"):
        event(v034.url, world, created_at)
    event(v034.url, world, "2025-03-02 11:15+00", model=LONG_MODEL)
    roll_up_as_v034(v034)
    lose_raw_rows(v034, "created_at < '2025-03-02'")
    event(v034.url, world, "infinity", None)
    said = way.upgrade(v034, "097")
    # A day of each of the two rollups.
    for told in (
        "buckets that are set aside, see task_usage_hourly_set_aside: 1",
        "usage rows dated outside years 1-9998, see task_usage_hourly_undated(): 1",
        "daily totals that exist only in the legacy rollups: 2",
        "in schema legacy_usage: 2 daily totals exist only there, and some usage is set aside",
    ):
        assert told in said
    assert where_legacy_is(v034) == {"legacy_usage"}


# What surrounds the session


def test_settings_of_the_database_do_not_change_the_result(way: Way, make_database: MakeDatabase) -> None:
    plain, hostile = make_database("v034"), make_database("v034")
    history(plain, hostile)
    for name, value in HOSTILE_SETTINGS.items():
        hostile.execute(f"ALTER DATABASE {hostile.name} SET {name} = '{value}'")
    assert hostile.value("SHOW TimeZone") == "Asia/Kathmandu"
    assert hostile.value("SELECT to_regclass('task_usage') IS NULL")
    for database in (plain, hostile):
        way.upgrade(database, "097")
    hostile.execute(f"ALTER DATABASE {hostile.name} RESET ALL")
    assert rows(hostile) == rows(plain)
    assert rows(plain)[0]
    assert hostile.schema() == plain.schema()
    assert hostile.ledger == plain.ledger


def test_another_applications_tables_are_left_alone(way: Way, empty: Database) -> None:
    run_sql(empty, "CREATE TABLE orders (id bigint PRIMARY KEY)")
    assert "holds tables but no ledger" in refused(way, empty, "upgrade", "097", "head")
