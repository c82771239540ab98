"""Who stands on what 103 and 104 drop is named before the first step, and on the way back likewise."""

from __future__ import annotations

import pytest

from tests.support.database import Database
from tests.support.go_runner import run_sql
from tests.support.verdicts import both_refuse, goes_through, mend, messages, refusals
from tests.support.ways import psql, script
from usage_rollup.session.options import Options

TRIGGER = "CREATE FUNCTION needless() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"

# What is created, and how it is named. Those of the first list stand on a legacy table and nothing else.
ON_TABLES = {
    "view": ("CREATE VIEW v AS SELECT * FROM task_usage_daily", "view public.v"),
    "view on a view": (
        "CREATE VIEW v AS SELECT * FROM task_usage_daily; CREATE VIEW w AS SELECT 1 FROM v",
        "view public.w, view public.v",
    ),
    "materialized view": (
        "CREATE MATERIALIZED VIEW v AS SELECT * FROM task_usage_dashboard_daily",
        "materialized view public.v",
    ),
    "rule": (
        "CREATE TABLE r (a int); CREATE RULE x AS ON INSERT TO r DO ALSO DELETE FROM task_usage_daily_dirty",
        "rule x on table public.r",
    ),
    "foreign key": (
        "CREATE TABLE f (id smallint REFERENCES task_usage_rollup_state)",
        "constraint f_id_fkey on table public.f",
    ),
    "policy": (
        "CREATE TABLE z (a int); CREATE POLICY p ON z USING (EXISTS (SELECT FROM task_usage_daily))",
        "policy p on table public.z",
    ),
    "function": (
        "CREATE FUNCTION f() RETURNS bigint LANGUAGE sql"
        " BEGIN ATOMIC SELECT count(*) FROM task_usage_daily; END",
        "function public.f()",
    ),
    "row type": ("CREATE TABLE z (a task_usage_daily[])", "column a of table public.z"),
    "child": ("CREATE TABLE z () INHERITS (task_usage_daily)", "table public.z"),
}
ON_OTHERS = {
    "trigger": (
        "CREATE TABLE f (id int); CREATE TRIGGER t BEFORE DELETE ON f FOR EACH ROW"
        " EXECUTE FUNCTION enqueue_task_usage_daily_dirty_for_tu()",
        "trigger t on table public.f",
    ),
    "trigger of the product's table": (
        "CREATE TRIGGER t BEFORE DELETE ON task_usage FOR EACH ROW"
        " EXECUTE FUNCTION enqueue_task_usage_daily_dirty_for_tu()",
        "trigger t on table public.task_usage",
    ),
    "trigger of a legacy table": (
        "CREATE TRIGGER t BEFORE DELETE ON task_usage_daily FOR EACH ROW"
        " EXECUTE FUNCTION enqueue_task_usage_daily_dirty_for_tu()",
        "trigger t on table public.task_usage_daily",
    ),
    "default": (
        "CREATE TABLE z (a float8 DEFAULT task_usage_rollup_lag_seconds())",
        "default value for column a of table public.z",
    ),
    "domain": (
        "CREATE DOMAIN d AS float8 CHECK (value > task_usage_rollup_lag_seconds())",
        "constraint d_check",
    ),
    "published column": (
        "CREATE PUBLICATION p FOR TABLE agent_runtime (id, timezone)",
        "publication of table public.agent_runtime in publication p",
    ),
    "published rows": (
        "CREATE PUBLICATION p FOR TABLE agent_runtime WHERE (timezone = 'UTC')",
        "publication of table public.agent_runtime in publication p",
    ),
    "generated column": (
        "ALTER TABLE agent_runtime ADD COLUMN z text GENERATED ALWAYS AS (upper(timezone)) STORED",
        "default value for column z of table public.agent_runtime",
    ),
    "policy on the column": (
        "CREATE POLICY p ON agent_runtime USING (timezone = 'UTC')",
        "policy p on table public.agent_runtime",
    ),
    # Moving the table would keep it, and dropping the function would not.
    "view of a table by a function": (
        "CREATE VIEW v AS SELECT task_usage_rollup_lag_seconds() FROM task_usage_daily",
        "view public.v",
    ),
    "view of the column": ("CREATE VIEW v AS SELECT timezone FROM agent_runtime", "view public.v"),
    "trigger of the column": (
        f"{TRIGGER}; CREATE TRIGGER t BEFORE UPDATE OF timezone ON agent_runtime FOR EACH ROW"
        " EXECUTE FUNCTION needless()",
        "trigger t on table public.agent_runtime",
    ),
}
# What goes with a table or column unasked.
HARMLESS = {
    "publication": "CREATE PUBLICATION p FOR TABLE task_usage_daily",
    "statistics": "CREATE STATISTICS s ON timezone, status FROM agent_runtime",
    "index": "CREATE INDEX i ON agent_runtime (timezone, status)",
    "check": "ALTER TABLE agent_runtime ADD CONSTRAINT c CHECK (timezone <> '')",
    "child of agent_runtime": "CREATE TABLE z () INHERITS (agent_runtime)",
    "view of a function of the same name": (
        "CREATE FUNCTION task_usage_rollup_lag_seconds(a int) RETURNS int LANGUAGE sql AS 'SELECT a';"
        "CREATE VIEW v AS SELECT task_usage_rollup_lag_seconds(1)"
    ),
    "view of another table": "CREATE VIEW v AS SELECT id, status FROM agent_runtime",
    "view of another schema's": (
        "CREATE SCHEMA s; CREATE TABLE s.task_usage_daily (a int); CREATE VIEW v AS TABLE s.task_usage_daily"
    ),
    "function with a string for a body": (
        "CREATE FUNCTION f() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM task_usage_daily'"
    ),
}


@pytest.mark.parametrize("change", [*ON_TABLES, *ON_OTHERS])
def test_who_stands_on_what_is_dropped_is_named_before_the_first_step(v034: Database, change: str) -> None:
    statements, named = (ON_TABLES | ON_OTHERS)[change]
    run_sql(v034, statements)
    found = both_refuse(v034)
    assert messages(found) == f"others stand on what is about to be dropped: {named}"
    keeping = "or keep them and the legacy tables: alembic -x keep-legacy=true upgrade head"
    assert (keeping in (found[0].hint or "")) == (change in ON_TABLES)
    mend(v034, *found)
    goes_through(v034)


@pytest.mark.parametrize("change", ON_TABLES)
def test_who_stands_on_a_legacy_table_keeps_it_where_the_tables_are_kept(v034: Database, change: str) -> None:
    run_sql(v034, ON_TABLES[change][0])
    assert refusals(v034, options=Options(keep_legacy=True)) == []
    v034.upgrade(KEEP_LEGACY="true")
    assert v034.revision == "104"


def test_who_wants_the_legacy_tables_dropped_is_not_told_to_keep_them(v034: Database) -> None:
    run_sql(v034, ON_TABLES["view"][0])
    (reason,) = refusals(v034, options=Options(keep_legacy=False))
    assert reason.hint == "DROP VIEW public.v"


@pytest.mark.parametrize("change", HARMLESS)
def test_what_goes_with_a_table_or_column_is_in_nobodys_way(v034: Database, change: str) -> None:
    run_sql(v034, HARMLESS[change])
    goes_through(v034)


@pytest.mark.server
def test_a_member_of_an_extension_is_named_with_what_sets_it_free(v034: Database) -> None:
    v034.execute("ALTER EXTENSION plpgsql ADD FUNCTION task_usage_rollup_lag_seconds()")
    found = both_refuse(v034)
    assert messages(found) == "function task_usage_rollup_lag_seconds belongs to extension plpgsql"
    mend(v034, *found)
    goes_through(v034)


def test_an_event_trigger_is_named_and_decides_nothing(v034: Database) -> None:
    run_sql(
        v034,
        "CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"
        "CREATE EVENT TRIGGER watching ON ddl_command_start EXECUTE FUNCTION watch()",
    )
    printed = v034.usage_rollup("preflight")
    assert printed.returncode == 0
    named = "event trigger watching calls watch() whenever a step makes, alters or drops something"
    assert f"may refuse: {named}" in printed.stdout
    assert named in v034.upgrade()


def test_all_are_named_at_once_and_a_script_names_them_too(v034: Database) -> None:
    run_sql(v034, ON_TABLES["view"][0])
    run_sql(v034, ON_OTHERS["policy on the column"][0])
    run_sql(v034, ON_OTHERS["default"][0])
    found = both_refuse(v034)
    assert "view public.v" in messages(found)
    assert "default value for column a of table public.z, policy p on table" in messages(found)
    before = v034.catalog()
    done = psql(v034, script(v034, "upgrade", "097:head"))
    assert v034.catalog() == before
    assert all(reason.message in done.stderr for reason in found)


@pytest.mark.parametrize(
    ("change", "stops", "passes"),
    [
        ("CREATE VIEW v AS SELECT * FROM task_usage_hourly", "100", "101"),
        ("CREATE VIEW v AS SELECT task_usage_hour_bucket(now())", "101", "102"),
        ("CREATE VIEW v AS SELECT * FROM task_usage_hourly_set_aside", "101", "102"),
        ('CREATE VIEW v AS SELECT timezone FROM "user"', "097", "100"),
    ],
)
def test_the_way_back_names_who_stands_on_what_it_drops_before_its_first_step(
    head: Database, change: str, stops: str, passes: str
) -> None:
    head.execute(change)
    before = head.catalog()
    said = head.refused("downgrade", stops)
    assert "others stand on what is about to be dropped: view public.v" in said
    assert "HINT: DROP VIEW public.v" in said
    assert head.catalog() == before
    head.downgrade(passes)
