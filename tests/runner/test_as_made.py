"""What the steps read and write is refused before the first write where it is not as it was made."""

from __future__ import annotations

import pytest

from tests.support.database import Database, MakeDatabase
from tests.support.go_runner import taken_by_go_to
from tests.support.roles import MakeRole, give_everything_to
from tests.support.verdicts import both_refuse, goes_through, mend, messages
from usage_rollup.contract import HOURLY, LEGACY
from usage_rollup.runner import footprint

COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY(%s) AND a.attnum > 0 AND NOT a.attisdropped
"""
CONSTRAINTS = """
SELECT conname FROM pg_constraint WHERE contype IN ('c', 'f', 'u', 'x') AND conrelid = ANY(%s::regclass[])
"""


@pytest.mark.server
def test_columns_are_read_from_the_revisions_as_the_catalog_shows_them(at_102: Database) -> None:
    made = {**footprint.columns("097"), **footprint.columns("101")}
    assert {*HOURLY.columns, *LEGACY.columns, "task_usage"} <= made.keys()
    found = {(table, name): kind for table, name, kind in at_102.execute(COLUMNS, list(made))}
    assert found == {(table, name): kind for table, kinds in made.items() for name, kind in kinds.items()}


@pytest.mark.server
def test_constraints_of_the_hourly_tables_are_known_by_name(at_102: Database) -> None:
    tables = [f"public.{table}" for table in footprint.hourly_tables()]
    assert {name for (name,) in at_102.execute(CONSTRAINTS, tables)} <= footprint.constraints()


def test_rights_that_an_owner_has_revoked_from_itself_are_named_and_mended_at_once(
    make_database: MakeDatabase, make_role: MakeRole
) -> None:
    database, app = taken_by_go_to(make_database, "102"), make_role("app")
    give_everything_to(database, app)
    database.execute(
        f"REVOKE SELECT, TRIGGER ON task_usage FROM {app}; REVOKE ALL ON task_usage_daily FROM {app};"
        f" REVOKE INSERT, DELETE ON task_usage_hourly FROM {app}; REVOKE SELECT ON agent_runtime FROM {app};"
        f" REVOKE EXECUTE ON FUNCTION rollup_task_usage_hourly() FROM PUBLIC, {app}"
    )
    reasons = both_refuse(database, url=database.url_of(app))
    assert messages(reasons).splitlines() == [
        f"role {app} lacks EXECUTE on rollup_task_usage_hourly",
        f"role {app} lacks INSERT, DELETE on task_usage_hourly",
        f"role {app} lacks SELECT on agent_runtime",
        f"role {app} lacks SELECT, TRIGGER on task_usage",
        f"role {app} lacks SELECT, UPDATE on task_usage_daily",
    ]
    mend(database, *reasons)
    goes_through(database, database.url_of(app))


def test_table_of_somebody_else_s_that_no_step_alters_has_to_be_read(
    at_102: Database, make_role: MakeRole
) -> None:
    app, other = make_role("app"), make_role("other")
    give_everything_to(at_102, app)
    at_102.execute(f"ALTER TABLE agent OWNER TO {other}")
    reasons = both_refuse(at_102, url=at_102.url_of(app))
    assert messages(reasons) == f"role {app} lacks SELECT on agent"
    mend(at_102, *reasons)
    goes_through(at_102, at_102.url_of(app))


def test_way_back_reads_it_too_and_says_so_before_its_first_step(head: Database, make_role: MakeRole) -> None:
    app, other = make_role("app"), make_role("other")
    give_everything_to(head, app)
    head.execute(f"ALTER TABLE agent OWNER TO {other}")
    said = head.refused("downgrade", "102", DATABASE_URL=head.url_of(app))
    assert f"role {app} lacks SELECT on agent" in said
    assert head.revision == "104"
    head.downgrade("103", DATABASE_URL=head.url_of(app))
    head.execute(f"GRANT SELECT ON agent TO {app}")
    head.downgrade("102", DATABASE_URL=head.url_of(app))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            "ALTER TABLE task_usage ALTER COLUMN model TYPE varchar(200)",
            "column model of task_usage is character varying(200), not text",
        ),
        (
            "ALTER TABLE task_usage_hourly ADD COLUMN region text NOT NULL",
            "task_usage_hourly takes no row of ours: nothing fills column region",
        ),
        (
            "ALTER TABLE schema_migrations ALTER COLUMN applied_at DROP DEFAULT",
            "schema_migrations takes no row of ours: nothing fills column applied_at",
        ),
        (
            "ALTER TABLE task_usage_hourly ADD CONSTRAINT ck CHECK (event_count > 9)",
            "constraint ck on task_usage_hourly is none of this chain's and may refuse what is written there",
        ),
        (
            "CREATE TABLE alembic_version (version_num varchar(2) NOT NULL)",
            "column version_num of alembic_version is character varying(2), which holds no revision",
        ),
    ],
)
def test_what_would_refuse_a_row_is_named_and_mended(
    make_database: MakeDatabase, spoil: str, message: str
) -> None:
    database = taken_by_go_to(make_database, "102")
    database.execute(spoil)
    reasons = both_refuse(database)
    assert messages(reasons) == message
    mend(database, *reasons)
    goes_through(database)


def test_a_pipeline_of_ours_that_lacks_a_part_is_not_gone_on_with(at_102: Database) -> None:
    at_102.execute("DROP FUNCTION task_usage_hourly_differences; DROP TABLE task_usage_hourly_left_out")
    assert messages(both_refuse(at_102)) == (
        "refusing to drop legacy daily rollups: the hourly pipeline is not installed:"
        " parts of 102_task_usage_hourly_pipeline are missing:"
        " function task_usage_hourly_differences, table task_usage_hourly_left_out"
    )
    at_102.downgrade("100")
    goes_through(at_102)


def test_a_child_of_the_runtimes_must_belong_to_the_owner(v034: Database, make_role: MakeRole) -> None:
    app, other = make_role("app"), make_role("other")
    v034.execute("CREATE TABLE old_runtimes () INHERITS (agent_runtime)")
    give_everything_to(v034, app)
    v034.execute(f"ALTER TABLE old_runtimes OWNER TO {other}")
    reasons = both_refuse(v034, url=v034.url_of(app))
    assert f"table old_runtimes ({other})" in messages(reasons)
    mend(v034, *reasons)
    goes_through(v034, v034.url_of(app))


def test_a_ledger_without_a_key_is_written_all_the_same(make_database: MakeDatabase) -> None:
    # The second has 102 in its ledger already, which is done anew.
    for database in (make_database("v034"), taken_by_go_to(make_database, "102")):
        database.execute("ALTER TABLE schema_migrations DROP CONSTRAINT schema_migrations_pkey")
        goes_through(database)
        assert database.value("SELECT count(*) - count(DISTINCT version) FROM schema_migrations") == 0
