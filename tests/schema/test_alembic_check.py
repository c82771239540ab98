"""`alembic check`: clean wherever the chain ends, and not where somebody changed a table by hand."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from tests.support.database import Database, MakeDatabase
from tests.support.go_runner import taken_by_go_to
from tests.support.product import event, small_world
from tests.support.roles import MakeRole
from tests.support.shapes import make_products
from tests.support.v034 import generate_history
from usage_rollup.contract import HOURLY
from usage_rollup.schema.metadata import METADATA

CLEAN = "No new upgrade operations detected."


def assert_clean(database: Database) -> None:
    """Run both checks: neither sees a difference."""
    result = database.alembic("check")
    assert result.returncode == 0, result.stdout
    assert CLEAN in result.stdout
    check = database.usage_rollup("check")
    assert check.returncode == 0, check.stdout + check.stderr
    assert "the schema equals revision 104" in check.stdout


def empty_born(make_database: MakeDatabase) -> Database:
    database = make_database("empty")
    database.upgrade()
    return database


def adopted_with_a_history(make_database: MakeDatabase) -> Database:
    database = make_database("v034")
    with database.connect() as connection:
        generate_history(connection, 400)
    database.upgrade()
    return database


def stuck_at_103(make_database: MakeDatabase) -> Database:
    database = taken_by_go_to(make_database, "102")
    event(database.url, small_world(database.url), "2025-03-01 10:20+00", None)
    database.upgrade()
    return database


def down_and_up_again(make_database: MakeDatabase) -> Database:
    database = make_database("head")
    database.downgrade("100")
    database.upgrade()
    return database


def products_own(make_database: MakeDatabase) -> Database:
    database = make_products(make_database("head"), later=False)
    database.upgrade()
    return database


def products_later(make_database: MakeDatabase) -> Database:
    database = make_products(make_database("head"), later=True)
    database.upgrade()
    return database


@pytest.mark.server
@pytest.mark.parametrize(
    "made",
    [
        empty_born,
        adopted_with_a_history,
        stuck_at_103,
        down_and_up_again,
        products_own,
        products_later,
    ],
)
def test_both_checks_are_clean_at_head(
    make_database: MakeDatabase, made: Callable[[MakeDatabase], Database]
) -> None:
    assert_clean(made(make_database))


ODD_SETTINGS = {
    "search_path": "''",
    "TimeZone": "'Asia/Kathmandu'",
    "DateStyle": "'German'",
    "IntervalStyle": "'sql_standard'",
    "default_transaction_isolation": "serializable",
    "extra_float_digits": "-15",
    "quote_all_identifiers": "on",
    # The last: from here on nothing else can be set.
    "default_transaction_read_only": "on",
}


def test_both_checks_are_clean_whatever_the_database_sets(head: Database) -> None:
    for name, value in ODD_SETTINGS.items():
        head.execute(f'ALTER DATABASE "{head.name}" SET {name} = {value}')
    assert head.value("SHOW default_transaction_read_only") == "on"
    assert_clean(head)


def test_both_checks_are_clean_for_a_role_that_may_only_read_the_ledgers(
    head: Database, make_role: MakeRole
) -> None:
    role = make_role("reader")
    head.execute(
        f"ALTER ROLE {role} SET default_transaction_read_only = on;"
        f"GRANT SELECT ON alembic_version, schema_migrations TO {role}"
    )
    session = head.connect(user=role, password=role)
    with session, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        session.execute("CREATE TEMPORARY TABLE not_here (id int)")
    url = head.url_of(role)
    result = head.alembic("check", DATABASE_URL=url)
    assert (result.returncode, CLEAN in result.stdout) == (0, True), result.stdout
    check = head.usage_rollup("check", DATABASE_URL=url)
    assert check.returncode == 0, check.stdout + check.stderr


def test_what_the_product_adds_to_its_own_tables_is_left_alone(head: Database) -> None:
    head.execute(
        "CREATE TABLE comment (id uuid PRIMARY KEY, issue_id uuid REFERENCES issue);"
        "ALTER TABLE issue ADD COLUMN due_on date, ADD COLUMN origin_id uuid REFERENCES comment,"
        " ADD CONSTRAINT issue_origin UNIQUE (origin_id), ADD CHECK (priority <> '');"
        "CREATE INDEX idx_issue_due ON issue (due_on);"
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER touch BEFORE UPDATE ON task_usage FOR EACH ROW EXECUTE FUNCTION touch();"
        "COMMENT ON TABLE task_usage IS 'by the product';"
        "COMMENT ON COLUMN task_usage.model IS 'by the product';"
        """ALTER TABLE agent RENAME CONSTRAINT agent_status_check TO agent_status_valid"""
    )
    assert_clean(head)


def test_columns_of_later_releases_need_their_step_in_the_ledger(head: Database) -> None:
    head.execute("ALTER TABLE task_usage_hourly ADD COLUMN cost_usd_ticks bigint NOT NULL DEFAULT 0")
    assert "cost_usd_ticks" in head.refused("check")
    head.execute("INSERT INTO schema_migrations (version) VALUES ('213_task_usage_authoritative_cost')")
    assert_clean(head)


def test_check_below_head_says_so(at_102: Database) -> None:
    before = at_102.catalog()
    assert "Target database is not up to date" in at_102.refused("check")
    assert at_102.catalog() == before


@pytest.mark.parametrize("table", sorted(table.name for table in METADATA.tables.values()))
def test_column_added_by_hand_to_a_table_of_ours_is_found(head: Database, table: str) -> None:
    head.execute(f"ALTER TABLE {table} ADD COLUMN note text")
    output = head.refused("check")
    assert "New upgrade operations detected: [('remove_column', 'public', '" + table in output
    assert "'note'" in output


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            "ALTER TABLE task_usage_hourly DROP COLUMN updated_at",
            "('add_column', 'public', 'task_usage_hourly'",
        ),
        ("ALTER TABLE task_usage_hourly ALTER COLUMN task_count TYPE int", "modify_type"),
        ("ALTER TABLE task_usage_hourly ALTER COLUMN provider DROP NOT NULL", "modify_nullable"),
        ("ALTER TABLE task_usage_hourly ALTER COLUMN task_count DROP DEFAULT", "modify_default"),
        ("ALTER TABLE task_usage_hourly ALTER COLUMN task_count SET DEFAULT 1", "modify_default"),
        (
            "ALTER TABLE task_usage_hourly_rollup_state ALTER COLUMN watermark_at SET DEFAULT '2001-01-01'",
            "modify_default",
        ),
        ("DROP INDEX idx_task_usage_hourly_workspace_project_time", "add_index"),
        (
            "DROP INDEX idx_task_usage_hourly_runtime_time;"
            "CREATE INDEX idx_task_usage_hourly_runtime_time ON task_usage_hourly (runtime_id, bucket_hour)",
            "idx_task_usage_hourly_runtime_time",
        ),
        (
            "ALTER TABLE task_usage_hourly DROP CONSTRAINT uq_task_usage_hourly_key,"
            " ADD CONSTRAINT uq_task_usage_hourly_key UNIQUE"
            " (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model)",
            "uq_task_usage_hourly_key",
        ),
        ("CREATE INDEX by_hand ON task_usage_hourly_dirty (model)", "remove_index"),
        (
            "ALTER TABLE task_usage_hourly ADD FOREIGN KEY (project_id) REFERENCES project",
            "remove_fk",
        ),
        (
            "ALTER TABLE task_usage_hourly_rollup_state"
            " DROP CONSTRAINT task_usage_hourly_rollup_state_id_check",
            "task_usage_hourly_rollup_state_id_check",
        ),
        ("DROP TABLE task_usage_hourly_left_out", "add_table"),
        ("CREATE TABLE task_usage_hourly_copy (id int)", "remove_table"),
        ("CREATE TABLE task_usage_daily (id int)", "remove_table"),
    ],
)
def test_change_by_hand_is_found(head: Database, change: str, found: str) -> None:
    head.execute(change)
    output = head.refused("check")
    assert "New upgrade operations detected: " in output
    assert found in output


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE agent_runtime ADD COLUMN timezone text",
        'ALTER TABLE "user" DROP COLUMN timezone',
        "ALTER TABLE task_usage ALTER COLUMN updated_at SET NOT NULL",
        "DROP INDEX idx_task_usage_created_at_legacy",
        "ALTER TABLE agent DROP CONSTRAINT agent_workspace_name_unique",
        "ALTER TABLE workspace DROP COLUMN slug",
        "ALTER TABLE project RENAME TO elsewhere",
    ],
)
def test_change_to_a_table_of_the_product_is_found_by_the_command(head: Database, change: str) -> None:
    head.execute(change)
    result = head.alembic("check")
    assert (result.returncode, CLEAN in result.stdout) == (0, True), result.stdout
    assert head.usage_rollup("check").returncode == 3


def test_every_column_is_documented_in_a_sentence() -> None:
    columns = [column for table in METADATA.tables.values() for column in table.columns]
    assert len(columns) > 50
    for column in columns:
        assert column.doc, column
        assert column.doc[0].isupper(), column
        assert column.doc.endswith("."), column
        assert column.doc.count(". ") == 0, column


def test_metadata_and_inventory_name_the_same_columns() -> None:
    named = {
        f"column {table}.{column.name}"
        for table in HOURLY.columns
        for column in METADATA.tables[f"public.{table}"].columns
    }
    assert named == {name for name in HOURLY.names() if name.startswith("column ")}
