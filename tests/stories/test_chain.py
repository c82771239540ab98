"""The chain itself: names, steps, reversal, and a failure that leaves nothing behind."""

from __future__ import annotations

import re
import signal
from collections import Counter
from pathlib import Path

import psycopg
import pytest
from alembic.config import Config
from alembic.script import Script, ScriptDirectory

from tests.support.crashes import Boundary, stopped_at, waits_at
from tests.support.database import ROOT, Database, MakeDatabase
from tests.support.outages import end_what_is_left
from tests.support.processes import finish
from tests.support.product import event, small_world, upsert_usage, usage, wait_until
from tests.support.roles import MakeRole, give_everything_to, owners
from tests.support.rollup import hourly
from tests.support.settings import HOSTILE_SETTINGS
from tests.support.v034 import V034_STEMS, generate_history
from tests.support.walks import migrating_backend
from usage_rollup.contract import BASELINE, HOURLY, LEGACY, STEMS
from usage_rollup.runner.adoption import OBJECTS

pytestmark = pytest.mark.server

REVISIONS = list(STEMS)

# Constraints the field knows by PostgreSQL's default names; the inventory leaves their indexes out.
DEFAULT_NAMED = {
    "user_email_key",
    "workspace_slug_key",
    "agent_runtime_workspace_id_daemon_id_provider_key",
    "task_usage_task_id_provider_model_key",
}


def chain() -> list[Script]:
    """Return the revisions as Alembic reads them, the oldest first."""
    directory = ScriptDirectory.from_config(Config(ROOT / "alembic.ini"))
    return list(directory.walk_revisions())[::-1]


def stamp(database: Database, target: str) -> None:
    result = database.alembic("stamp", target)
    assert result.returncode == 0, result.stdout


def written_stems(database: Database) -> list[str]:
    return sorted(database.ledger - set(V034_STEMS))


def stems(first: str, last: str) -> list[str]:
    return [stem for revision, stem in STEMS.items() if first <= revision <= last]


# Names


def test_revision_file_and_ledger_stem_share_one_name() -> None:
    assert {script.revision: Path(script.path).stem for script in chain()} == STEMS


def test_each_revision_opens_with_its_name_and_a_promise() -> None:
    for script in chain():
        stem = STEMS[script.revision]
        first_line = script.longdoc.splitlines()[0]
        assert first_line.startswith(f"{stem}: ")
        assert len(first_line) > len(stem) + 10


def test_the_chain_is_one_line_from_097_to_104() -> None:
    links = [(script.revision, script.down_revision) for script in chain()]
    assert links == list(zip(REVISIONS, [None, *REVISIONS], strict=False))
    assert not any(script.branch_labels or script.dependencies for script in chain())


# The inventory


def read_names(database: Database) -> set[str]:
    with database.migration_connection() as connection:
        objects = set(connection.exec_driver_sql(OBJECTS).scalars())
    own = DEFAULT_NAMED | {
        f"{name.removeprefix('table ')}_pkey" for name in objects if name.startswith("table ")
    }
    return {name for name in objects if name.removeprefix("index ") not in own}


def test_the_inventory_is_exactly_what_097_creates(empty: Database) -> None:
    empty.upgrade("097")
    assert read_names(empty) == BASELINE.names() | LEGACY.names()


def test_the_inventory_is_exactly_what_101_adds(make_database: MakeDatabase) -> None:
    before = read_names(make_database("100"))
    assert read_names(make_database("101")) - before == HOURLY.names()


# Forward and back


def test_an_empty_database_goes_to_head_and_gets_no_ledger(empty: Database) -> None:
    assert empty.revision is None
    empty.upgrade()
    assert empty.revision == "104"
    assert empty.value("SELECT to_regclass('public.schema_migrations') IS NULL")


def test_a_new_database_and_one_from_the_field_end_with_the_same_schema(
    empty: Database, head: Database
) -> None:
    empty.upgrade()
    head.execute("DROP TABLE schema_migrations")
    assert empty.catalog() == head.catalog()


def test_each_step_writes_its_stem_in_the_ledger(v034: Database) -> None:
    for revision in REVISIONS[1:]:
        v034.upgrade(revision)
        assert v034.revision == revision
        assert written_stems(v034) == stems("100", revision)


def test_each_downgrade_removes_its_stem_and_restores_the_schema_of_the_revision_below(
    make_database: MakeDatabase,
) -> None:
    database = make_database("head")
    before, ledger = database.schema(in_order=False), database.ledger
    for revision in REVISIONS[-2::-1]:
        database.downgrade(revision)
        assert database.revision == revision
        assert written_stems(database) == stems("100", revision)
        reached, expected = database.schema(in_order=False), make_database(revision).schema(in_order=False)
        assert Counter(reached) - Counter(expected) == Counter(), f"left over at {revision}"
        assert Counter(expected) - Counter(reached) == Counter(), f"not back at {revision}"
    database.upgrade()
    assert database.schema(in_order=False) == before
    assert database.ledger == ledger


def test_a_new_database_goes_back_to_nothing_and_forward_again(empty: Database) -> None:
    empty.upgrade()
    before = empty.catalog()
    empty.downgrade("base")
    tables = empty.execute("SELECT relname FROM pg_stat_user_tables")
    assert tables == [("alembic_version",)]
    assert empty.value("SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace") == 0
    empty.upgrade()
    assert empty.catalog() == before


def test_history_survives_a_way_down_and_up(v034: Database) -> None:
    with v034.connect() as connection:
        generate_history(connection, 400)
    v034.upgrade()
    rolled_up = hourly(v034)
    assert rolled_up
    v034.downgrade("097")
    v034.upgrade()
    assert hourly(v034) == rolled_up


def test_102_applies_over_itself(at_102: Database) -> None:
    before = at_102.schema(in_order=False)
    stamp(at_102, "101")
    assert at_102.revision == "101"
    assert "102_task_usage_hourly_pipeline" in at_102.ledger
    at_102.upgrade("102")
    assert at_102.revision == "102"
    assert at_102.schema(in_order=False) == before


def test_102_103_and_104_apply_over_themselves_on_a_database_without_a_ledger(
    empty: Database,
) -> None:
    empty.upgrade()
    event(empty.url, small_world(empty.url))
    before = empty.catalog()
    stamp(empty, "101")
    assert empty.catalog() != before
    empty.upgrade()
    assert empty.catalog() == before


def test_a_second_upgrade_at_head_does_nothing(head: Database) -> None:
    before = head.catalog()
    assert "Running upgrade" not in head.upgrade()
    assert head.catalog() == before


# A step that fails


# What no look at the catalog can tell beforehand.
VETO = """
CREATE FUNCTION veto() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_event_trigger_dropped_objects() AS o
        WHERE o.object_identity = 'public.agent_runtime.timezone')
    THEN
        RAISE 'the zones stay';
    END IF;
END
$$;
CREATE EVENT TRIGGER veto ON sql_drop EXECUTE FUNCTION veto();
"""


def untimed(output: str) -> str:
    return re.sub(r"^\S+Z ", "", output, flags=re.MULTILINE)


def test_a_failing_step_leaves_nothing_behind_and_goes_through_once_its_reason_is_gone(
    make_database: MakeDatabase,
) -> None:
    database = make_database("103")
    database.execute(VETO)
    before = database.catalog()
    message = database.refused()
    assert message.count("FAILED:") == 1
    assert "104_drop_runtime_timezone" in message
    assert "the zones stay (SQLSTATE P0001)" in message
    assert database.catalog() == before
    assert untimed(database.refused()) == untimed(message)

    database.execute("DROP EVENT TRIGGER veto")
    database.upgrade()
    assert database.revision == "104"
    assert "104_drop_runtime_timezone" in database.ledger


def test_steps_before_the_failing_one_stay(v034: Database) -> None:
    v034.execute(VETO)
    v034.refused()
    assert v034.revision == "103"
    assert written_stems(v034) == stems("100", "103")


@pytest.mark.parametrize("revision", REVISIONS[1:])
def test_version_row_ledger_stem_and_step_commit_together(make_database: MakeDatabase, revision: str) -> None:
    database = make_database(REVISIONS[REVISIONS.index(revision) - 1])
    if revision == "100":
        database.upgrade("097")  # adoption is a transaction of its own
    # What stops here is all but committed.
    at_the_ledger = Boundary("schema_migrations", "INSERT")
    with stopped_at(database, at_the_ledger):
        before = database.catalog()
        runner = database.spawn("alembic", "upgrade", revision)
        wait_until(lambda: waits_at(database, at_the_ledger), "the step at its ledger row")
        # First the runner, which would begin the step again in another session.
        runner.kill()
        finish(runner, -signal.SIGKILL)
        end_what_is_left(database)
    assert database.catalog() == before
    assert database.revision != revision

    database.upgrade(revision)
    assert database.revision == revision
    assert STEMS[revision] in database.ledger


def test_a_step_killed_while_it_waits_for_its_table_leaves_nothing_behind(
    make_database: MakeDatabase,
) -> None:
    database = make_database("103")
    before = database.catalog()
    with database.connect() as reader:
        reader.execute("SELECT count(*) FROM agent_runtime")
        runner = database.spawn("alembic", "upgrade", "head")
        wait_until(lambda: migrating_backend(database, "agent_runtime"), "104 waiting for its lock")
        runner.kill()
        finish(runner, -signal.SIGKILL)
        end_what_is_left(database)
    assert database.catalog() == before

    database.upgrade()
    assert database.revision == "104"


# Who owns what


def report_usage_as(database: Database, role: str) -> None:
    """Do what the server does all day, as the role the server connects as."""
    with database.connect(user=role, password=role) as connection:
        world = small_world(connection)
        for agent in range(3):
            event(connection, world, agent=agent)
        connection.execute("UPDATE issue SET project_id = NULL")
        connection.execute("UPDATE agent_task_queue SET issue_id = NULL")
        connection.execute("DELETE FROM task_usage")
        event(connection, world, "2025-01-01 10:00+00", None)
        connection.commit()
        connection.execute("SELECT rollup_task_usage_hourly()")


def test_new_objects_belong_to_the_owner_of_task_usage_when_a_superuser_migrates(
    make_role: MakeRole, make_database: MakeDatabase
) -> None:
    v034 = make_database("v034")
    product = make_role("product")
    give_everything_to(v034, product)
    v034.upgrade()
    assert set(owners(v034)) == {product}
    assert "task_usage_hourly_invalidation" in owners(v034)[product]
    report_usage_as(v034, product)
    v034.downgrade("097")
    assert set(owners(v034)) == {product}


def test_new_objects_belong_to_the_owner_of_task_usage_when_a_member_of_it_migrates(
    make_role: MakeRole, make_database: MakeDatabase
) -> None:
    v034 = make_database("v034")
    product = make_role("product")
    migrator = make_role("migrator", f"IN ROLE {product}")
    give_everything_to(v034, product)
    with v034.connect() as connection:
        generate_history(connection, 100)
    url = v034.url_of(migrator)
    v034.upgrade(DATABASE_URL=url)
    assert v034.revision == "104"
    assert set(owners(v034)) == {product}
    assert "task_usage_hourly_invalidation" in owners(v034)[product]
    report_usage_as(v034, product)
    v034.downgrade("097", DATABASE_URL=url)
    assert set(owners(v034)) == {product}


def test_a_role_that_is_no_member_of_the_owner_is_refused_before_anything_is_changed(
    make_role: MakeRole, make_database: MakeDatabase
) -> None:
    v034 = make_database("v034")
    product, stranger = make_role("product"), make_role("stranger")
    give_everything_to(v034, product)
    v034.execute(f"GRANT ALL ON SCHEMA public TO {stranger}")
    v034.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {stranger}")
    before = v034.catalog()
    message = v034.refused("upgrade", "head", DATABASE_URL=v034.url_of(stranger))
    assert f"GRANT {product} TO {stranger}" in message
    assert v034.catalog() == before


def test_a_member_that_inherits_nothing_migrates_or_is_refused_before_anything_is_changed(
    make_role: MakeRole, make_database: MakeDatabase
) -> None:
    v034 = make_database("v034")
    product = make_role("product")
    migrator = make_role("migrator", f"NOINHERIT IN ROLE {product}")
    give_everything_to(v034, product)
    # What the runner asks for by name, and no more.
    v034.execute(f"GRANT CREATE ON SCHEMA public TO {migrator}")
    v034.execute(f"GRANT SELECT, INSERT, DELETE ON schema_migrations TO {migrator}")
    with v034.connect() as connection:
        generate_history(connection, 100)
    before = v034.catalog()
    result = v034.alembic("upgrade", "head", DATABASE_URL=v034.url_of(migrator))
    assert "Traceback" not in result.stdout
    if result.returncode == 0:
        assert set(owners(v034)) == {product}
    else:
        assert v034.catalog() == before, result.stdout


# What surrounds the session


def test_settings_of_the_database_do_not_change_the_way_back(make_database: MakeDatabase) -> None:
    plain, hostile = make_database("head"), make_database("head")
    for database in (plain, hostile):
        event(database.url, small_world(database.url), "2025-03-01 20:20+00", None)
    for name, value in HOSTILE_SETTINGS.items():
        hostile.execute(f"ALTER DATABASE {hostile.name} SET {name} = '{value}'")
    for database in (plain, hostile):
        database.downgrade("097")
    hostile.execute(f"ALTER DATABASE {hostile.name} RESET ALL")
    assert hostile.schema(in_order=False) == plain.schema(in_order=False)
    for table in ("task_usage_daily", "task_usage_dashboard_daily"):
        days = f"SELECT bucket_date, model, input_tokens FROM {table}"
        assert hostile.execute(days) == plain.execute(days) != []


def test_usage_is_rolled_up_and_removed_under_a_publication_for_all_tables(v034: Database) -> None:
    world = small_world(v034.url)
    event(v034.url, world, "2025-03-01 10:20+00", None)
    v034.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    v034.upgrade()
    task_id = v034.value("SELECT task_id FROM task_usage")

    v034.execute(
        "INSERT INTO task_usage_hourly_dirty SELECT bucket_hour, workspace_id, runtime_id,"
        " agent_id, project_id, provider, model FROM task_usage_hourly"
    )
    usage(v034.url, task_id, "2025-03-01 10:40+00", None, model="other")
    upsert_usage(v034.url, task_id, tokens=7)
    v034.execute("SELECT rollup_task_usage_hourly_window('-infinity', 'infinity')")
    assert v034.value("SELECT sum(input_tokens) FROM task_usage_hourly") == 107
    v034.execute("UPDATE issue SET project_id = NULL")
    v034.execute("DELETE FROM task_usage")
    v034.execute("SELECT rollup_task_usage_hourly_window('-infinity', 'infinity')")
    assert v034.value("SELECT count(*) FROM task_usage_hourly") == 0

    # The trap: without the replica identity the same delete fails.
    usage(v034.url, task_id, "2025-03-01 10:40+00", None)
    v034.execute("SELECT rollup_task_usage_hourly_window('-infinity', 'infinity')")
    v034.execute("ALTER TABLE task_usage_hourly REPLICA IDENTITY DEFAULT")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        v034.execute("DELETE FROM task_usage_hourly")


def test_a_database_with_a_publication_for_all_tables_goes_back_and_forward(head: Database) -> None:
    head.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    event(head.url, small_world(head.url), "2025-03-01 10:20+00", None)
    head.downgrade("097")
    head.upgrade()
    assert head.value("SELECT sum(event_count) FROM task_usage_hourly") == 1
