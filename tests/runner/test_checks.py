"""One list of checks: preflight, upgrade, downgrade and scripts refuse alike, before anything is changed.

What stands on the things that the steps drop is in test_dependents.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from tests.support.catalog_snapshot import snapshot
from tests.support.database import Database, MakeDatabase
from tests.support.go_runner import run_sql, taken_by_go_to, unrecord
from tests.support.legacy import where_legacy_is
from tests.support.pg_cron import PG_CRON
from tests.support.product import event, small_world
from tests.support.roles import MakeRole, give_everything_to, give_objects_to, owners
from tests.support.verdicts import both_refuse, goes_through, mend, messages, refusals
from tests.support.ways import psql, script
from usage_rollup.contract import BASELINE, BUILT_BY_THE_WALK, HOURLY, LEGACY, STEMS
from usage_rollup.runner import footprint
from usage_rollup.session.options import Options

NEEDLESS = "CREATE FUNCTION needless() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"


def script_refuses_alike(database: Database, start: str, *facts: str) -> None:
    before = snapshot(database)
    done = psql(database, script(database, "upgrade", f"{start}:head"))
    assert done.returncode != 0
    assert snapshot(database) == before
    for fact in facts:
        assert fact in done.stderr


# What the steps stand on is read from the revisions


def test_functions_of_102_are_read_from_it_as_the_catalog_has_them(at_102: Database) -> None:
    found = {
        (name, tuple(arguments), types, defaults, result)
        for name, arguments, types, defaults, result in at_102.execute(
            "SELECT proname, COALESCE(proargnames[1:pronargs], '{}'),"
            " replace(oidvectortypes(proargtypes), 'public.', ''), pronargdefaults,"
            " replace(pg_get_function_result(oid), 'public.', '') FROM pg_proc"
            " WHERE pronamespace = 'public'::regnamespace"
        )
    }
    read = [*footprint.functions("102"), *footprint.functions("097")]
    assert {(f.name, f.arguments, f.types, f.defaults, f.result) for f in read} == found


def test_tables_and_triggers_of_102_are_read_from_it_as_the_catalog_has_them(at_102: Database) -> None:
    columns: dict[str, set[str]] = {}
    for table, column in at_102.execute(
        "SELECT relname, attname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid"
        " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0"
        " AND relname LIKE 'task_usage_hourly%'"
    ):
        columns.setdefault(table, set()).add(column)
    assert footprint.private_tables() == {t: c for t, c in columns.items() if t not in HOURLY.columns}
    triggers = at_102.execute(
        "SELECT c.relname::text, t.tgname::text, p.proname::text FROM pg_trigger t"
        " JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid"
        " WHERE NOT t.tgisinternal AND t.tgname LIKE '%hourly%'"
    )
    assert sorted(footprint.triggers()) == sorted(triggers)


# Owners


def test_everything_that_belongs_to_others_is_named_at_once_and_what_mends_it_works(
    v034: Database, make_role: MakeRole
) -> None:
    app, other = make_role("app"), make_role("other")
    give_everything_to(v034, app)
    for table in ("agent", "user", "task_usage_daily"):
        v034.execute(f'ALTER TABLE "{table}" OWNER TO {other}')
    v034.execute(f"ALTER FUNCTION rollup_task_usage_dashboard_daily() OWNER TO {other}")
    found = both_refuse(v034, url=v034.url_of(app))
    assert messages(found) == (
        f"not all that the steps alter or call belongs to the owner of task_usage, {app}:"
        f' table "user" ({other}), table agent ({other}), table task_usage_daily ({other}),'
        f" function rollup_task_usage_dashboard_daily() ({other})"
    )
    script_refuses_alike(v034, "097", found[0].message, found[0].hint or "")
    mend(v034, *found)
    goes_through(v034, v034.url_of(app))


@pytest.mark.parametrize(
    "owned",
    [f"TABLE {t}" for t in sorted({*BASELINE.columns, *LEGACY.columns} - {"workspace", "project"})]
    + [f"FUNCTION {name}" for name in LEGACY.functions.split()],
)
def test_a_superuser_is_told_of_each_single_owner_before_the_first_step(
    v034: Database, make_role: MakeRole, owned: str
) -> None:
    app, other = make_role("app"), make_role("other")
    give_everything_to(v034, app)
    kind, name = owned.split()
    if name == "task_usage":
        return
    v034.execute(f'ALTER {kind} "{name}" OWNER TO {other}')
    (reason,) = refusals(v034)
    assert f"({other})" in reason.message
    mend(v034, reason)
    assert refusals(v034) == []


def test_at_head_no_owner_matters(head: Database, make_role: MakeRole) -> None:
    other = make_role("other")
    head.execute(f"ALTER TABLE agent_runtime OWNER TO {other}")
    goes_through(head)


def test_a_superuser_that_owns_task_usage_may_alter_what_belongs_to_others(
    v034: Database, make_role: MakeRole
) -> None:
    other = make_role("other")
    v034.execute(f"ALTER TABLE agent OWNER TO {other}")
    v034.execute(f"ALTER FUNCTION rollup_task_usage_daily() OWNER TO {other}")
    goes_through(v034)


def test_functions_of_the_products_102_are_among_what_must_belong_to_the_owner(
    make_database: MakeDatabase, make_role: MakeRole
) -> None:
    stuck, app, other = taken_by_go_to(make_database, "102"), make_role("app"), make_role("other")
    give_everything_to(stuck, app)
    stuck.execute(f"ALTER FUNCTION task_usage_hour_bucket(timestamptz) OWNER TO {other}")
    stuck.execute(f"ALTER TABLE task_usage_hourly_dirty OWNER TO {other}")
    found = both_refuse(stuck, url=stuck.url_of(app))
    assert f"table task_usage_hourly_dirty ({other}), function task_usage_hour_bucket(" in messages(found)
    mend(stuck, *found)
    goes_through(stuck, stuck.url_of(app))


@pytest.mark.parametrize("parent", ["user", "agent_runtime"])
def test_children_of_a_table_that_gets_or_loses_a_column_must_belong_to_the_owner_too(
    v034: Database, make_role: MakeRole, parent: str
) -> None:
    app, other = make_role("app"), make_role("other")
    run_sql(v034, f'CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.child () INHERITS ("{parent}")')
    give_everything_to(v034, app)
    v034.execute(f"GRANT USAGE ON SCHEMA elsewhere TO {app}; ALTER TABLE elsewhere.child OWNER TO {other}")
    found = both_refuse(v034, url=v034.url_of(app))
    assert f": table elsewhere.child ({other})" in messages(found)
    mend(v034, *found)
    goes_through(v034, v034.url_of(app))


def test_kept_tables_that_somebody_else_has_taken_over_stop_the_way_back(
    v034: Database, make_role: MakeRole
) -> None:
    app, other = make_role("app"), make_role("other")
    give_everything_to(v034, app)
    v034.upgrade(KEEP_LEGACY="true")
    v034.execute(f"ALTER TABLE legacy_usage.task_usage_daily OWNER TO {other}")
    before = v034.catalog()
    said = v034.refused("downgrade", "102")
    assert f": table legacy_usage.task_usage_daily ({other})" in said
    assert v034.catalog() == before
    v034.downgrade("103")


def test_the_way_back_is_refused_for_owners_before_its_first_step(
    head: Database, make_role: MakeRole
) -> None:
    app, other = make_role("app"), make_role("other")
    give_everything_to(head, app)
    head.execute(f'ALTER TABLE "user" OWNER TO {other}')
    before = head.catalog()
    said = head.refused("downgrade", "097")
    assert f'table "user" ({other})' in said
    assert head.catalog() == before
    # No step as far as 100 alters it.
    head.downgrade("100")
    done = psql(head, script(head, "downgrade", "100:097"))
    assert f'table "user" ({other})' in done.stderr


# Who acts


def test_a_login_that_switches_its_role_at_once_keeps_it(v034: Database, make_role: MakeRole) -> None:
    app, vault = make_role("app"), make_role("vault", "NOINHERIT")
    give_objects_to(v034, app)
    v034.execute(f"GRANT ALL ON SCHEMA public TO {app}")
    v034.execute(f"GRANT CREATE ON DATABASE {v034.name} TO {app}")
    v034.execute(f"GRANT {app} TO {vault}")
    v034.execute(f"ALTER ROLE {vault} IN DATABASE {v034.name} SET role = {app}")
    url = v034.url_of(vault)
    assert refusals(v034, url) == []
    v034.upgrade("head", DATABASE_URL=url, KEEP_LEGACY="true")
    assert set(owners(v034)) == {app}
    assert (
        v034.value("SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'alembic_version'") == app
    )
    assert (
        v034.value("SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'legacy_usage'") == app
    )
    v034.downgrade("097", DATABASE_URL=url)
    assert set(owners(v034)) == {app}


def test_a_member_that_may_not_become_the_owner_is_told_what_to_grant(
    v034: Database, make_role: MakeRole
) -> None:
    app, migrator = make_role("app"), make_role("migrator", "NOINHERIT")
    give_everything_to(v034, app)
    v034.execute(f"GRANT {app} TO {migrator}")
    (reason,) = both_refuse(v034, url=v034.url_of(migrator))
    assert reason.message.startswith(f"role {migrator} may not act for the owner of: agent, ")
    v034.execute(f"REVOKE {app} FROM {migrator}; ALTER ROLE {migrator} INHERIT; GRANT {app} TO {migrator}")
    goes_through(v034, v034.url_of(migrator))


# Grants


@pytest.mark.parametrize(
    ("revoke", "message"),
    [
        ("ALTER TABLE schema_migrations OWNER TO CURRENT_USER", "may not read schema_migrations"),
        (
            "ALTER TABLE schema_migrations OWNER TO CURRENT_USER; GRANT SELECT ON schema_migrations TO {app}",
            "may not write schema_migrations: it lacks INSERT",
        ),
        ("REVOKE ALL ON SCHEMA public FROM {app}", "may not create objects in schema public"),
        ("REVOKE ALL ON SCHEMA public FROM {app}, PUBLIC", "may not use schema public"),
        ("REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC", "may not use the language plpgsql"),
        (
            "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);"
            "GRANT SELECT, INSERT, DELETE ON alembic_version TO {app}",
            "may not write alembic_version: it lacks UPDATE",
        ),
    ],
)
def test_a_missing_grant_is_refused_with_the_one_that_mends_it(
    v034: Database, make_role: MakeRole, revoke: str, message: str
) -> None:
    app = make_role("app")
    give_everything_to(v034, app)
    run_sql(v034, revoke.format(app=app))
    url = v034.url_of(app)
    found = both_refuse(v034, url=url)
    assert messages(found) == f"role {app} {message}"
    mend(v034, *found)
    goes_through(v034, url)


def test_the_right_to_make_a_schema_is_asked_for_only_where_legacy_tables_are_to_be_kept(
    v034: Database, make_role: MakeRole
) -> None:
    app = make_role("app")
    give_everything_to(v034, app)
    url = v034.url_of(app)
    assert refusals(v034, url) == []
    found = both_refuse(v034, url=url, options=Options(keep_legacy=True), KEEP_LEGACY="true")
    assert messages(found) == f"role {app} may not create schema legacy_usage to keep the legacy rollups in"
    mend(v034, *found)
    assert refusals(v034, url, Options(keep_legacy=True)) == []


def test_a_stranger_is_refused_at_head_for_what_it_may_not_read_and_for_nothing_else(
    head: Database, make_role: MakeRole
) -> None:
    stranger = make_role("stranger")
    head.refused(DATABASE_URL=head.url_of(stranger))
    head.execute(f"GRANT SELECT ON alembic_version, schema_migrations TO {stranger}")
    head.upgrade(DATABASE_URL=head.url_of(stranger))


def test_a_schema_that_is_theirs_and_empty_spares_the_right_to_make_one(
    v034: Database, make_role: MakeRole
) -> None:
    app, other = make_role("app"), make_role("other")
    give_everything_to(v034, app)
    refusal = f"role {app} may not create schema legacy_usage to keep the legacy rollups in"

    def refused(*statements: str) -> bool:
        for statement in statements:
            v034.execute(statement)
        found = messages(refusals(v034, v034.url_of(app), Options(keep_legacy=True)))
        assert found in ("", refusal)
        return bool(found)

    assert not refused(f"CREATE SCHEMA legacy_usage AUTHORIZATION {app}")
    assert refused("CREATE SEQUENCE legacy_usage.notes")
    assert refused("DROP SEQUENCE legacy_usage.notes", "CREATE TYPE legacy_usage.task_usage_daily AS ENUM ()")
    assert refused("DROP TYPE legacy_usage.task_usage_daily", f"ALTER SCHEMA legacy_usage OWNER TO {other}")
    assert refused(f"GRANT ALL ON SCHEMA legacy_usage TO {app}")
    # Only a superuser's could not be turned against them.
    assert not refused("ALTER SCHEMA legacy_usage OWNER TO CURRENT_USER")
    for right in ("CREATE", "USAGE"):
        assert refused(f"REVOKE {right} ON SCHEMA legacy_usage FROM {app}")
        assert not refused(f"GRANT {right} ON SCHEMA legacy_usage TO {app}")
    v034.upgrade(DATABASE_URL=v034.url_of(app), KEEP_LEGACY="true")
    assert where_legacy_is(v034) == {"legacy_usage"}


def test_a_role_that_may_use_pg_cron_and_not_read_its_jobs_is_told_what_to_grant(
    at_102: Database, make_role: MakeRole
) -> None:
    app = make_role("app")
    at_102.execute(PG_CRON)
    at_102.execute("REVOKE SELECT ON cron.job FROM PUBLIC")
    give_everything_to(at_102, app)
    assert refusals(at_102, at_102.url_of(app)) == []
    at_102.execute(f"GRANT USAGE ON SCHEMA cron TO {app}")
    found = both_refuse(at_102, url=at_102.url_of(app))
    assert messages(found) == f"role {app} may use pg_cron and not read its jobs"
    mend(at_102, *found)
    goes_through(at_102, at_102.url_of(app))


def test_an_index_that_a_killed_walk_has_dropped_takes_the_right_to_build_it(
    at_102: Database, make_role: MakeRole
) -> None:
    app = make_role("app")
    give_objects_to(at_102, app)
    url = at_102.url_of(app)
    for index in BUILT_BY_THE_WALK.split():
        definition = at_102.value("SELECT pg_get_indexdef(%s::regclass)", index)
        assert refusals(at_102, url) == []
        at_102.execute(f"DROP INDEX {index}")
        assert messages(refusals(at_102, url)) == f"role {app} may not create objects in schema public"
        at_102.execute(definition)


# Planted objects


@pytest.mark.parametrize(
    ("plant", "named"),
    [
        ("CREATE TABLE task_usage_hourly (id int)", "table task_usage_hourly"),
        ("CREATE VIEW task_usage_hourly_dirty AS SELECT 1", "view task_usage_hourly_dirty"),
        ("CREATE TYPE task_usage_hourly AS ENUM ('a')", "type task_usage_hourly"),
        (
            "CREATE TABLE t (a int); CREATE INDEX idx_task_usage_hourly_dirty_enqueued_at ON t (a)",
            "index idx_task_usage_hourly_dirty_enqueued_at",
        ),
        ("CREATE TABLE task_usage_hourly_invalidation (a int)", "table task_usage_hourly_invalidation"),
        ("CREATE SEQUENCE task_usage_hourly_backfill", "sequence task_usage_hourly_backfill"),
        (
            "CREATE FUNCTION task_usage_hour_bucket(ts timestamptz) RETURNS text LANGUAGE sql AS 'SELECT 1'",
            "function public.task_usage_hour_bucket(ts timestamp with time zone)",
        ),
        (
            "CREATE FUNCTION task_usage_hour_bucket(x timestamptz) RETURNS timestamptz LANGUAGE sql"
            " AS 'SELECT x'",
            "function public.task_usage_hour_bucket(x timestamp with time zone)",
        ),
        (
            "CREATE PROCEDURE rollup_task_usage_hourly() LANGUAGE sql AS 'SELECT 1'",
            "procedure public.rollup_task_usage_hourly()",
        ),
        (
            f"{NEEDLESS}; CREATE TRIGGER trg_tu_dirty_hourly BEFORE UPDATE ON task_usage FOR EACH ROW"
            " EXECUTE FUNCTION needless()",
            "trigger trg_tu_dirty_hourly on task_usage",
        ),
    ],
)
def test_an_object_in_the_way_is_named_with_the_statement_that_removes_it(
    v034: Database, plant: str, named: str
) -> None:
    run_sql(v034, plant)
    found = both_refuse(v034)
    assert messages(found) == f"{named} is in the way: it is neither the product's nor this chain's"
    script_refuses_alike(v034, "097", found[0].message)
    mend(v034, *found)
    goes_through(v034)


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (
            "CREATE TABLE alembic_version (version_num varchar(32));ALTER TABLE alembic_version OWNER TO {r}",
            "table alembic_version belongs to {r}, who is neither the owner of task_usage nor a superuser",
        ),
        (
            "CREATE TABLE alembic_version (version_num varchar(32)); " + NEEDLESS + "; CREATE TRIGGER t"
            " BEFORE INSERT ON alembic_version FOR EACH ROW EXECUTE FUNCTION needless()",
            "trigger t on alembic_version would be run by every step",
        ),
        (
            "CREATE TABLE alembic_version (version_num varchar(32));"
            " CREATE RULE r AS ON INSERT TO alembic_version DO INSTEAD NOTHING",
            "rule r on alembic_version would be run by every step",
        ),
        ("CREATE VIEW alembic_version AS SELECT 1", "view alembic_version is not what a version table is"),
        ("CREATE TABLE alembic_version (id int)", "table alembic_version is not what a version table is"),
        (
            NEEDLESS + "; ALTER FUNCTION needless() OWNER TO {r}; CREATE TRIGGER t"
            " BEFORE INSERT ON schema_migrations FOR EACH ROW EXECUTE FUNCTION needless()",
            "trigger t on schema_migrations would be run by every step",
        ),
        (
            "CREATE FUNCTION task_usage_hour_bucket(ts timestamptz) RETURNS timestamptz LANGUAGE sql"
            " AS 'SELECT ts'; ALTER FUNCTION task_usage_hour_bucket(timestamptz) OWNER TO {r}",
            "not all that the steps alter or call belongs to the owner of task_usage, postgres: function"
            " task_usage_hour_bucket(ts timestamp with time zone) ({r})",
        ),
    ],
)
def test_what_a_role_that_may_only_create_in_public_has_planted_is_never_run(
    v034: Database, make_role: MakeRole, plant: str, message: str
) -> None:
    stranger = make_role("stranger")
    v034.execute(f"GRANT CREATE ON SCHEMA public TO {stranger}")
    run_sql(v034, plant.format(r=stranger))
    found = both_refuse(v034)
    assert messages(found) == message.format(r=stranger)
    script_refuses_alike(v034, "097", found[0].message)
    mend(v034, *found)
    goes_through(v034)


@pytest.mark.parametrize("related", ["group", "member"])
def test_who_could_act_for_the_owner_anyway_is_no_stranger(
    v034: Database, make_role: MakeRole, related: str
) -> None:
    app, other = make_role("app"), make_role("other")
    give_everything_to(v034, app)
    v034.execute(f"ALTER TABLE schema_migrations OWNER TO {other}; GRANT ALL ON schema_migrations TO {app}")
    (reason,) = refusals(v034, v034.url_of(app))
    assert reason.message.startswith(f"table schema_migrations belongs to {other}, who is neither ")
    v034.execute(f"GRANT {other} TO {app}" if related == "group" else f"GRANT {app} TO {other}")
    goes_through(v034, v034.url_of(app))


def test_a_trigger_of_a_strangers_on_the_hourly_tables_is_never_fired(
    at_102: Database, make_role: MakeRole
) -> None:
    stranger = make_role("stranger")
    event(at_102.url, small_world(at_102.url))
    run_sql(
        at_102,
        f"GRANT CREATE ON SCHEMA public TO {stranger}; {NEEDLESS};"
        f"ALTER FUNCTION needless() OWNER TO {stranger}; CREATE TRIGGER t BEFORE INSERT ON task_usage_hourly"
        " FOR EACH ROW EXECUTE FUNCTION needless()",
    )
    found = both_refuse(at_102)
    assert f"trigger t on task_usage_hourly would run code of {stranger}" in messages(found)
    mend(at_102, *found)
    goes_through(at_102)


@pytest.mark.parametrize(
    "table", [*HOURLY.columns, "task_usage_hourly_invalidation", "task_usage_hourly_backfill"]
)
def test_a_rule_on_what_is_written_is_named_with_what_drops_it(at_102: Database, table: str) -> None:
    event(at_102.url, small_world(at_102.url), "2025-03-01 10:15+00")
    run_sql(at_102, f"CREATE RULE r AS ON INSERT TO {table} DO INSTEAD NOTHING")
    found = both_refuse(at_102)
    assert messages(found) == f"rule r on {table} changes what is written there"
    mend(at_102, *found)
    goes_through(at_102)


DOUBTS = {
    "CREATE TRIGGER t BEFORE INSERT ON schema_migrations FOR EACH ROW EXECUTE FUNCTION needless()": (
        "ALTER TABLE schema_migrations DISABLE TRIGGER t",
        "trigger t on schema_migrations calls needless() for each step that is recorded, and may refuse it",
    ),
    "CREATE TRIGGER t BEFORE INSERT ON task_usage_hourly FOR EACH ROW EXECUTE FUNCTION needless()": (
        "ALTER TABLE public.task_usage_hourly DISABLE TRIGGER t",
        "trigger t on task_usage_hourly calls needless() for what is rolled up, and may refuse or change it",
    ),
    "CREATE EVENT TRIGGER t ON ddl_command_end EXECUTE FUNCTION watch()": (
        "ALTER EVENT TRIGGER t DISABLE",
        "event trigger t calls watch() whenever a step makes, alters or drops something, and may refuse it",
    ),
}


@pytest.mark.parametrize("plant", DOUBTS)
def test_what_may_refuse_a_step_is_a_doubt_until_it_is_switched_off(at_102: Database, plant: str) -> None:
    run_sql(
        at_102,
        f"{NEEDLESS}; CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; {plant}",
    )
    switch_off, doubt = DOUBTS[plant]

    def doubts() -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads(at_102.usage_rollup("preflight", "--json").stdout)["doubts"]
        return found

    assert [(d["message"], d["hint"]) for d in doubts()] == [(doubt, f"if it does: {switch_off}")]
    assert refusals(at_102) == []
    at_102.execute(switch_off)
    assert doubts() == []


def test_a_schema_legacy_usage_of_somebody_elses_is_left_alone(v034: Database, make_role: MakeRole) -> None:
    stranger = make_role("stranger")
    v034.execute(f"CREATE SCHEMA legacy_usage AUTHORIZATION {stranger}")
    v034.upgrade(KEEP_LEGACY="true")
    assert v034.value("SELECT to_regclass('legacy_usage_2.task_usage_daily') IS NOT NULL")
    v034.downgrade("097")
    assert v034.value("SELECT to_regclass('public.task_usage_daily') IS NOT NULL")


@pytest.mark.parametrize(
    "plant",
    [
        "CREATE VIEW task_usage_daily AS SELECT 1",
        "CREATE FUNCTION task_usage_rollup_lag_seconds() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TABLE t (a int); CREATE INDEX idx_task_usage_daily_runtime_date ON t (a)",
        f"{NEEDLESS}; CREATE TRIGGER trg_tu_dirty_rollup BEFORE UPDATE ON task_usage FOR EACH ROW"
        " EXECUTE FUNCTION needless()",
    ],
)
def test_names_that_are_taken_stop_the_way_back_before_its_first_step(head: Database, plant: str) -> None:
    run_sql(head, plant)
    before = head.catalog()
    said = head.refused("downgrade", "102")
    assert "is in the way" in said
    assert head.catalog() == before
    head.downgrade("103")


# Positions that are believed


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda make: make("v034"), "097"),
        (lambda make: taken_by_go_to(make, "101"), "101"),
        (lambda make: taken_by_go_to(make, "102"), "101"),
        (lambda make: make("102"), "102"),
    ],
    ids=["A", "at_101", "B", "ours"],
)
def test_a_stamp_is_not_believed_and_the_one_that_mends_it_is_printed(
    make_database: MakeDatabase, make: Callable[[MakeDatabase], Database], shown: str
) -> None:
    database = make(make_database)
    assert database.alembic("stamp", "head").returncode == 0
    (reason,) = both_refuse(database)
    assert reason.message.startswith("alembic_version says 104_drop_runtime_timezone, but ledger and schema")
    assert reason.hint == f"put it right, then run this again: alembic stamp --purge {shown}"
    assert reason.message in database.refused("downgrade", "097")
    assert database.alembic(*reason.hint.split(": alembic ")[1].split()).returncode == 0
    goes_through(database)


def test_a_ledger_that_only_says_104_is_not_believed(v034: Database) -> None:
    v034.execute("INSERT INTO schema_migrations SELECT unnest(%s::text[])", list(STEMS.values())[1:])
    (reason, *_) = both_refuse(v034)
    assert "the ledger records 100_user_timezone, but the schema does not show it" in reason.message


def test_a_stem_that_the_ledger_lost_is_named_with_the_row_that_mends_it(head: Database) -> None:
    unrecord(head, STEMS["103"])
    found = both_refuse(head)
    assert messages(found) == f"schema_migrations lacks {STEMS['103']}, although alembic_version says 104"
    mend(head, *found)
    goes_through(head)


def test_another_applications_version_table_leaves_a_way_forward(v034: Database) -> None:
    run_sql(
        v034,
        "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);"
        "INSERT INTO alembic_version VALUES ('ae1027')",
    )
    (reason,) = both_refuse(v034)
    assert "VERSION_TABLE=usage_rollup_version" in (reason.hint or "")
    assert refusals(v034, options=Options(version_table="usage_rollup_version")) == []
    v034.upgrade("102", VERSION_TABLE="usage_rollup_version")
    applied = script(v034, "-x", "version-table=usage_rollup_version", "upgrade", "102:head")
    assert psql(v034, applied).returncode == 0
    assert v034.value("SELECT version_num FROM usage_rollup_version") == "104"
    assert v034.value("SELECT version_num FROM alembic_version") == "ae1027"
    assert "104 (head)" in v034.alembic("current", VERSION_TABLE="usage_rollup_version").stdout
    status = v034.usage_rollup("status", VERSION_TABLE="usage_rollup_version")
    assert re.search("^revision +104$", status.stdout, re.MULTILINE)
    v034.downgrade("097", VERSION_TABLE="usage_rollup_version")


def test_a_version_table_of_several_rows_is_refused_with_the_stamp_that_mends_it(at_102: Database) -> None:
    at_102.execute("INSERT INTO alembic_version VALUES ('104')")
    (reason,) = both_refuse(at_102)
    assert reason.message == "alembic_version holds several rows: 102, 104"
    assert at_102.alembic(*(reason.hint or "").split(": alembic ")[1].split()).returncode == 0
    goes_through(at_102)


def test_every_reason_is_told_at_once_each_with_its_hint(v034: Database, make_role: MakeRole) -> None:
    app, other = make_role("app"), make_role("other")
    give_everything_to(v034, app)
    v034.execute("DROP FUNCTION task_usage_rollup_lag_seconds")
    v034.execute(f"ALTER TABLE agent OWNER TO {other}")
    v034.execute("CREATE TABLE task_usage_hourly (id int)")
    v034.execute("CREATE VIEW report AS SELECT * FROM task_usage_daily")
    found = both_refuse(v034, url=v034.url_of(app))
    assert len(found) == 4
    assert all(reason.hint for reason in found)
    script_refuses_alike(v034, "097", "4 reasons to refuse; nothing was changed", *(r.message for r in found))


def test_overload_of_a_stranger_is_to_be_dropped_and_not_given_to_the_owner(
    v034: Database, make_role: MakeRole
) -> None:
    app, other = make_role("app"), make_role("other")
    give_everything_to(v034, app)
    overload = "rollup_task_usage_daily_window(p_from date, p_to date)"
    v034.execute(f"CREATE FUNCTION {overload} RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint'")
    v034.execute(f"ALTER FUNCTION {overload} OWNER TO {other}")
    (reason,) = both_refuse(v034, url=v034.url_of(app))
    assert reason.hint == f"if nobody needs it: DROP FUNCTION public.{overload}"
    mend(v034, reason)
    goes_through(v034, v034.url_of(app))


CALLED = {
    "pg_try_advisory_lock(bigint)": "what takes the run's lock",
    "pg_advisory_unlock(bigint)": "what gives it up",
    "pg_try_advisory_xact_lock(bigint)": "what a tick takes",
    "pg_sleep(double precision)": "what waits",
}


@pytest.mark.parametrize("function", CALLED)
def test_function_of_the_catalog_that_may_not_be_called_is_named(
    v034: Database, make_role: MakeRole, function: str
) -> None:
    app = make_role("app")
    give_everything_to(v034, app)
    v034.execute(f"REVOKE EXECUTE ON FUNCTION pg_catalog.{function} FROM PUBLIC")
    found = both_refuse(v034, url=v034.url_of(app))
    assert messages(found) == f"role {app} may not call {function}"
    mend(v034, *found)
    goes_through(v034, v034.url_of(app))


@pytest.mark.parametrize("table", ["user", "workspace", "project", "task_usage"])
def test_way_back_to_nothing_is_refused_where_row_security_would_hide_rows(
    empty: Database, make_role: MakeRole, table: str
) -> None:
    app = make_role("app")
    empty.execute(f"GRANT ALL ON SCHEMA public TO {app}; GRANT CREATE ON DATABASE {empty.name} TO {app}")
    url = empty.url_of(app)
    empty.upgrade(DATABASE_URL=url)
    empty.downgrade("097", DATABASE_URL=url)
    empty.execute(f'ALTER TABLE "{table}" ENABLE ROW LEVEL SECURITY')
    empty.execute(f'ALTER TABLE "{table}" FORCE ROW LEVEL SECURITY')
    before = empty.catalog()
    said = empty.refused("downgrade", "base", DATABASE_URL=url)
    assert f"row security would hide rows from role {app}: {table}" in said
    assert "SQLSTATE" not in said
    assert empty.catalog() == before
    empty.execute(f"ALTER ROLE {app} BYPASSRLS")
    empty.downgrade("base", DATABASE_URL=url)
