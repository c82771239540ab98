"""`usage-rollup check`: what autogenerate does not see, compared with the reviewed snapshot."""

from __future__ import annotations

import json

import psycopg
import pytest

from tests.support.database import Database, MakeDatabase
from tests.support.go_runner import drop_legacy, drop_runtime_timezone, record, taken_by_go_to
from tests.support.later_release import apply_later_release
from tests.support.shapes import make_products
from tests.support.snapshot import SNAPSHOT
from tests.support.terminal import ESCAPES, on_a_terminal
from usage_rollup.contract import STEMS
from usage_rollup.schema import catalog
from usage_rollup.session.connection import snapshot

WINDOW = "function rollup_task_usage_hourly_window(timestamp with time zone, timestamp with time zone)"


def differing(database: Database) -> dict[str, str]:
    """Check, which must find differences; return the screen of each by its heading."""
    result = database.usage_rollup("check")
    assert result.returncode == 3, result.stdout + result.stderr
    *blocks, last = result.stdout.rstrip("\n").split("\n\n")
    assert f"objects that differ: {len(blocks)}; - is what the revisions make" in last
    return {block.split("\n")[0]: block for block in blocks}


def passes(database: Database) -> str:
    result = database.usage_rollup("check")
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# The snapshot


@pytest.mark.server
def test_snapshot_is_what_the_revisions_make(empty: Database) -> None:
    empty.upgrade()
    with empty.migration_connection() as connection, snapshot(connection):
        made = catalog.render(catalog.read(connection))
    file = SNAPSHOT.read_text("utf-8")
    assert file == made, "review the change, then write the snapshot anew: make snapshot"
    assert len(catalog.expected()) > 50
    assert catalog.render(catalog.expected()) == file


def test_snapshot_holds_every_object_whose_name_the_pipeline_claims(head: Database) -> None:
    objects = catalog.expected()
    for statement, kind in (
        (
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'task\\_usage\\_hourly%'",
            "table",
        ),
        ("SELECT proname FROM pg_proc WHERE proname LIKE '%task\\_usage\\_hour%'", "function"),
        ("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal", "trigger"),
    ):
        names = {row[0] for row in head.execute(statement)}
        described = {
            name.split("(")[0].split(".")[-1].split(" ")[-1] for name in objects if name.startswith(kind)
        }
        assert names
        assert names <= described


def test_snapshot_reads_back_what_it_wrote() -> None:
    odd = {"function f()": "AS $$\n\n  x\n    y  \n$$", "table t": "column a text"}
    assert catalog.parse(catalog.render(odd)) == odd


# What is found


@pytest.mark.parametrize(
    ("change", "heading", "lines"),
    [
        (
            "ALTER TABLE task_usage_hourly ADD COLUMN note text",
            "changed: table task_usage_hourly",
            ["  +column note text"],
        ),
        (
            "ALTER TABLE task_usage DISABLE TRIGGER trg_tu_dirty_hourly_write",
            "changed: trigger task_usage.trg_tu_dirty_hourly_write",
            ["  -enabled", "  +disabled"],
        ),
        (
            "DROP TRIGGER trg_agent_dirty_hourly ON agent",
            "missing: trigger agent.trg_agent_dirty_hourly",
            ["  -CREATE TRIGGER trg_agent_dirty_hourly AFTER UPDATE ON public.agent"],
        ),
        (
            "COMMENT ON TABLE task_usage_hourly IS 'mine'",
            "changed: table task_usage_hourly",
            ["  -comment 'task_usage summed by UTC hour", "  +comment 'mine'"],
        ),
        (
            "COMMENT ON FUNCTION rollup_task_usage_hourly() IS NULL",
            "changed: function rollup_task_usage_hourly()",
            ["  -comment '"],
        ),
        (
            "ALTER TABLE task_usage_hourly_rollup_state"
            " DROP CONSTRAINT task_usage_hourly_rollup_state_id_check",
            "changed: table task_usage_hourly_rollup_state",
            ["  -constraint task_usage_hourly_rollup_state_id_check CHECK ((id = 1))"],
        ),
        (
            "ALTER TABLE task_usage_hourly REPLICA IDENTITY DEFAULT",
            "changed: table task_usage_hourly",
            ["  -replica identity full", "  +replica identity default"],
        ),
        (
            "DROP INDEX idx_task_usage_hourly_workspace_project_time; CREATE INDEX"
            " idx_task_usage_hourly_workspace_project_time ON task_usage_hourly"
            " (workspace_id, project_id, bucket_hour DESC)",
            "changed: table task_usage_hourly",
            [
                "  -index idx_task_usage_hourly_workspace_project_time btree"
                " (workspace_id, project_id, bucket_hour DESC) WHERE (project_id IS NOT NULL)",
                "  +index idx_task_usage_hourly_workspace_project_time btree"
                " (workspace_id, project_id, bucket_hour DESC)",
            ],
        ),
        (
            "ALTER FUNCTION rollup_task_usage_hourly() RESET search_path",
            "changed: function rollup_task_usage_hourly()",
            ["  - SET search_path TO 'pg_catalog', 'pg_temp'"],
        ),
        (
            "DROP FUNCTION task_usage_hourly_undated()",
            "missing: function task_usage_hourly_undated()",
            ["  -CREATE OR REPLACE FUNCTION public.task_usage_hourly_undated()"],
        ),
        (
            "CREATE FUNCTION rollup_task_usage_hourly(p_again boolean) RETURNS bigint"
            " LANGUAGE sql AS 'SELECT 0'",
            "unexpected: function rollup_task_usage_hourly(boolean)",
            ["  +CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly(p_again boolean)"],
        ),
        (
            "CREATE FUNCTION task_usage_rollup_lag_seconds() RETURNS float8"
            " LANGUAGE sql AS 'SELECT 0.0::float8'",
            "unexpected: function task_usage_rollup_lag_seconds()",
            ["  +CREATE OR REPLACE FUNCTION public.task_usage_rollup_lag_seconds()"],
        ),
        (
            "CREATE TABLE task_usage_daily (id int)",
            "unexpected: table task_usage_daily",
            ["  +column id integer"],
        ),
        (
            "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END';"
            "CREATE TRIGGER trg_tu_dirty_rollup BEFORE DELETE ON task_usage"
            " FOR EACH ROW EXECUTE FUNCTION nothing()",
            "unexpected: trigger task_usage.trg_tu_dirty_rollup",
            ["  +CREATE TRIGGER trg_tu_dirty_rollup BEFORE DELETE ON public.task_usage", "  +enabled"],
        ),
        (
            "ALTER TABLE agent_runtime ADD COLUMN timezone text NOT NULL DEFAULT 'UTC'",
            "changed: table agent_runtime",
            ["  +column timezone text NOT NULL"],
        ),
        (
            'ALTER TABLE "user" DROP COLUMN timezone',
            "changed: table user",
            ["  -column timezone text"],
        ),
        (
            "ALTER TABLE task_usage ALTER COLUMN updated_at SET NOT NULL",
            "changed: table task_usage",
            [
                "  -column updated_at timestamp with time zone",
                "  +column updated_at timestamp with time zone",
            ],
        ),
        (
            "DROP INDEX idx_task_usage_updated_at",
            "changed: table task_usage",
            ["  -index idx_task_usage_updated_at btree (updated_at)"],
        ),
        (
            "ALTER TABLE task_usage ALTER COLUMN model TYPE varchar(80)",
            "changed: table task_usage",
            ["  -column model text NOT NULL", "  +column model character varying(80) NOT NULL"],
        ),
    ],
)
def test_change_by_hand_is_shown(head: Database, change: str, heading: str, lines: list[str]) -> None:
    head.execute(change)
    shown = differing(head)
    assert list(shown) == [heading]
    body = shown[heading].split("\n")[1:]
    for line in lines:
        assert any(printed.startswith(line) for printed in body), shown[heading]
    assert not any(line[2:3] not in "-+@ " for line in body), shown[heading]


def test_function_replaced_by_hand_is_shown_with_the_lines_around_the_change(head: Database) -> None:
    definition = head.value("SELECT pg_get_functiondef('task_usage_hourly_sum(numeric)'::regprocedure)")
    head.execute(definition.replace("LEAST", "GREATEST", 1))
    shown = differing(head)["changed: function task_usage_hourly_sum(numeric)"]
    changed = [line for line in shown.split("\n")[1:] if line[2] in "+-"]
    assert len(changed) == 2
    assert changed[1] == "  +" + changed[0][3:].replace("LEAST", "GREATEST", 1)
    assert "\n  @@ " in shown
    assert "\n   AS $function$\n" in shown


@pytest.mark.server
def test_index_left_invalid_by_a_failed_concurrent_build_is_found(head: Database) -> None:
    insert = "INSERT INTO task_usage_hourly_backfill VALUES ('{}', '2026-01-02', 1, '2026-01-02')"
    for hour in ("2026-01-01 00:00+00", "2026-01-01 01:00+00"):
        head.execute(insert.format(hour))
    with pytest.raises(psycopg.errors.UniqueViolation):
        head.execute("CREATE UNIQUE INDEX CONCURRENTLY by_hand ON task_usage_hourly_backfill (usage_rows)")
    head.execute("DELETE FROM task_usage_hourly_backfill")
    head.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idx_issue_parent'::regclass",
    )
    assert differing(head) == {
        "changed: table issue": "changed: table issue\n"
        "  -index idx_issue_parent btree (parent_issue_id)\n"
        "  +index idx_issue_parent btree (parent_issue_id) INVALID",
        "changed: table task_usage_hourly_backfill": "changed: table task_usage_hourly_backfill\n"
        "  +index by_hand UNIQUE btree (usage_rows) INVALID",
    }


def test_all_differences_are_shown_at_once_and_counted(head: Database) -> None:
    head.execute("DROP TRIGGER trg_agent_dirty_hourly ON agent; COMMENT ON TABLE task_usage_hourly IS NULL")
    assert list(differing(head)) == [
        "changed: table task_usage_hourly",
        "missing: trigger agent.trg_agent_dirty_hourly",
    ]


# How it is shown


def test_json_is_one_object_with_every_difference(head: Database) -> None:
    result = head.usage_rollup("check", "--json")
    assert result.returncode == 0
    found = json.loads(result.stdout)
    assert (found["equal"], found["revision"], found["differences"]) == (True, "104", [])
    head.execute("ALTER TABLE task_usage DISABLE TRIGGER trg_tu_dirty_hourly")
    result = head.usage_rollup("check", "--json")
    assert result.returncode == 3
    found = json.loads(result.stdout)
    assert found["equal"] is False
    assert found["differences"] == [
        {
            "object": "trigger task_usage.trg_tu_dirty_hourly",
            "kind": "changed",
            "diff": ["-enabled", "+disabled"],
        }
    ]


@pytest.mark.server
def test_equal_is_one_line(head: Database) -> None:
    assert passes(head) == f"the schema equals revision 104: {len(catalog.expected())} objects compared\n"


@pytest.mark.parametrize("columns", [80, 140])
def test_terminal_shows_colours_and_a_pipe_none(head: Database, columns: int) -> None:
    head.execute("ALTER TABLE task_usage DISABLE TRIGGER trg_tu_dirty_hourly")
    screen = on_a_terminal(head, "check", columns=columns, colours=True)
    assert "\x1b[31menabled" in screen
    assert "\x1b[32mdisabled" in screen
    plain = [line.rstrip() for line in ESCAPES.sub("", screen).splitlines()]
    assert {"  -enabled", "  +disabled"} <= set(plain)
    assert max(map(len, plain)) <= columns
    assert "\x1b" not in head.usage_rollup("check").stdout


# Not at head


@pytest.mark.parametrize(
    ("point", "says"),
    [
        ("empty", "this one is empty"),
        ("v034", "has no alembic_version and would be taken over at 097_autopilot_project_id"),
        ("102", "this one stands at 102_task_usage_hourly_pipeline"),
    ],
)
def test_database_below_head_is_refused_and_says_where_it_stands(
    make_database: MakeDatabase, point: str, says: str
) -> None:
    below = make_database(point)
    result = below.usage_rollup("check")
    assert result.returncode == 1
    assert result.stdout == ""
    assert says in result.stderr
    assert "HINT: alembic upgrade head" in result.stderr


def test_database_past_104_that_was_never_taken_over_is_refused(head: Database) -> None:
    result = make_products(head, later=True).usage_rollup("check")
    assert result.returncode == 1
    assert "has no alembic_version and would be taken over at 104_drop_runtime_timezone" in result.stderr


def test_revision_of_another_application_is_refused(head: Database) -> None:
    head.execute("UPDATE alembic_version SET version_num = 'ae1027a6acf4'")
    result = head.usage_rollup("check")
    assert result.returncode == 1
    assert "ae1027a6acf4, which is no revision of this chain" in result.stderr


# Later product releases


PIPELINE = "known variant: the product's own pipeline"
COSTS = "known variant: 213 (v0.4.10)"
TEARDOWN = "known variant: 243 (v0.4.16)"
NO_RUNTIME = "known variant: 251 (v0.4.17)"
TICK = "known variant: 272 (v0.4.23)"


def test_products_own_pipeline_is_named_and_passes(make_database: MakeDatabase) -> None:
    database = make_products(make_database("head"), later=False)
    database.upgrade()
    shown = passes(database)
    assert PIPELINE in shown
    assert "not compared: function bodies and comments" in shown
    # 105 leaves the product's tables as they are.
    assert "not compared: the product's tables" not in shown
    database.execute("DROP INDEX idx_task_usage_updated_at")
    assert list(differing(database)) == ["changed: table task_usage"]


def test_pipeline_of_the_go_release_under_another_name_passes(make_database: MakeDatabase) -> None:
    database = taken_by_go_to(make_database, "104")
    record(database, "105_issue_metadata")
    database.upgrade()
    assert PIPELINE in passes(database)


def test_later_release_with_its_own_pipeline_is_named_and_passes(make_database: MakeDatabase) -> None:
    database = make_products(make_database("head"), later=True)
    database.upgrade()
    shown = passes(database)
    for variant in (PIPELINE, COSTS, TEARDOWN, NO_RUNTIME):
        assert variant in shown
    assert "not compared: the product's tables: its ledger stands at 272_" in shown


@pytest.mark.parametrize(
    ("step", "variant"), [("213", COSTS), ("243", TEARDOWN), ("251", NO_RUNTIME), ("272", TICK)]
)
def test_product_step_on_top_of_ours_is_named_and_passes(head: Database, step: str, variant: str) -> None:
    apply_later_release(head, step)
    head.execute("DELETE FROM schema_migrations WHERE version ~ '^2'")
    differing(head)
    record(head, f"{step}_under_another_name")
    shown = passes(head)
    assert variant in shown
    assert shown.count("known variant") == 1


def test_products_103_and_104_on_ours_pass(make_database: MakeDatabase) -> None:
    ours = make_database("102")
    drop_legacy(ours)
    drop_runtime_timezone(ours)
    record(ours, STEMS["103"], STEMS["104"], "105_issue_metadata")
    ours.upgrade()
    assert "known variant" not in passes(ours)


@pytest.mark.parametrize(
    ("change", "heading"),
    [
        ("ALTER TABLE task_usage_hourly ADD COLUMN note text", "changed: table task_usage_hourly"),
        (
            "ALTER TABLE task_usage_hourly ALTER cost_usd_ticks DROP NOT NULL",
            "changed: table task_usage_hourly",
        ),
        (
            "DROP FUNCTION prune_task_usage_hourly_dirty(interval)",
            "missing: function prune_task_usage_hourly_dirty(interval)",
        ),
        (
            "DROP FUNCTION rollup_task_usage_hourly_window(timestamptz, timestamptz);"
            "CREATE FUNCTION rollup_task_usage_hourly_window(a timestamptz, b timestamptz) RETURNS bigint"
            " LANGUAGE sql AS 'SELECT 0::bigint'",
            f"changed: {WINDOW}",
        ),
        (
            "ALTER TABLE task_usage DISABLE TRIGGER trg_tu_dirty_hourly",
            "changed: trigger task_usage.trg_tu_dirty_hourly",
        ),
        ("CREATE TABLE task_usage_rollup_state (id int)", "unexpected: table task_usage_rollup_state"),
        (
            "CREATE TABLE task_usage_hourly_left_out (id int)",
            "changed: table task_usage_hourly_left_out",
        ),
    ],
)
def test_what_no_known_variant_explains_is_a_difference(
    make_database: MakeDatabase, change: str, heading: str
) -> None:
    database = make_products(make_database("head"), later=True)
    database.upgrade()
    database.execute(change)
    assert list(differing(database)) == [heading]


def test_pipeline_of_ours_that_lost_its_heart_is_not_taken_for_the_products(head: Database) -> None:
    head.execute("DROP TABLE task_usage_hourly_invalidation CASCADE")
    assert "missing: table task_usage_hourly_invalidation" in differing(head)


def test_steps_of_the_go_runner_that_are_not_in_the_ledger_are_differences(head: Database) -> None:
    apply_later_release(head)
    head.execute("DELETE FROM schema_migrations WHERE version ~ '^2'")
    shown = differing(head)
    assert f"changed: {WINDOW}" in shown
    assert "changed: function rollup_task_usage_hourly()" in shown
    assert "changed: trigger task_usage.trg_tu_dirty_hourly" in shown
    assert "changed: table agent" in shown
    assert "changed: table agent_task_queue" in shown
