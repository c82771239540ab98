"""Changes that the product's own triggers do not see, and rights that ours have lost."""

from __future__ import annotations

import pytest

from tests.support.database import Database
from tests.support.product import World, event, small_world, task, upsert_usage
from tests.support.roles import MakeRole
from tests.support.rollup import TICK, WINDOW, heal, queued, wrong_hours

TEARDOWN = "SET LOCAL multica.workspace_teardown = 'on'"
REPLICA = "SET LOCAL session_replication_role = replica"

CHANGES = {
    "usage_deleted": "DELETE FROM task_usage WHERE created_at < '2025-03-01 12:00+00'",
    "tasks_deleted": "DELETE FROM agent_task_queue WHERE agent_id = %(agent)s",
    "usage_inserted": "INSERT INTO task_usage (task_id, model, created_at, updated_at)"
    " SELECT id, 'restored', '2024-05-01 10:15+00', NULL FROM agent_task_queue",
    "usage_corrected": "UPDATE task_usage SET input_tokens = 1",
    "tasks_moved": "UPDATE agent_task_queue SET agent_id = %(other)s",
    "issue_moved": "UPDATE issue SET project_id = NULL",
    "agent_moved": "UPDATE agent SET workspace_id = %(workspace)s",
    "issues_truncated": "TRUNCATE issue CASCADE",
    "usage_truncated": "TRUNCATE task_usage",
    # Where no foreign key is looked at, as in a replica's session, what hangs on them stays.
    "issues_deleted": "DELETE FROM issue",
    "agents_deleted": "DELETE FROM agent",
}


@pytest.fixture
def used(at_102: Database) -> tuple[Database, World]:
    world = small_world(at_102.url)
    for hour in range(10, 14):
        event(at_102.url, world, f"2025-03-01 {hour}:15+00")
    at_102.execute(WINDOW)
    assert wrong_hours(at_102) == []
    return at_102, world


@pytest.mark.parametrize("silence", [TEARDOWN, REPLICA], ids=["teardown", "replica"])
@pytest.mark.parametrize("change", CHANGES)
def test_change_is_rolled_up_though_the_product_s_triggers_are_silent(
    used: tuple[Database, World], silence: str, change: str
) -> None:
    database, world = used
    with database.connect() as connection:
        connection.execute(
            "CREATE OR REPLACE TRIGGER trg_tu_dirty_hourly BEFORE DELETE ON task_usage FOR EACH ROW"
            " WHEN (current_setting('multica.workspace_teardown', true) IS DISTINCT FROM 'on')"
            " EXECUTE FUNCTION enqueue_task_usage_hourly_dirty_for_tu()"
        )
        connection.execute(silence)
        connection.execute(
            CHANGES[change],
            {"agent": world.agents[0], "other": world.agents[1], "workspace": world.workspaces[1]},
        )
    assert queued(database) > 0
    database.execute(TICK)
    assert wrong_hours(database) == []


@pytest.mark.parametrize("silence", ["SELECT", REPLICA], ids=["", "replica"])
@pytest.mark.parametrize("statement", ["TRUNCATE", "DELETE FROM"])
@pytest.mark.parametrize("table", ["agent_task_queue", "issue", "agent"])
def test_owners_that_are_gone_are_rolled_up_where_no_foreign_key_takes_the_usage_along(
    used: tuple[Database, World], make_role: MakeRole, table: str, statement: str, silence: str
) -> None:
    database, _ = used
    for (dropped,) in database.execute(
        "SELECT format('ALTER TABLE %%s DROP CONSTRAINT %%I', conrelid::regclass, conname) FROM pg_constraint"
        " WHERE contype = 'f' AND confrelid = %s::regclass",
        table,
    ):
        database.execute(dropped)
    # The server's role, which has no right to the queue.
    role = make_role("server")
    database.execute(f"GRANT ALL ON task_usage, agent_task_queue, agent_runtime, issue, agent TO {role}")
    database.execute(f"GRANT ALL ON task_usage_daily_dirty, task_usage_dashboard_dirty TO {role}")
    with database.connect() as connection:
        connection.execute(silence)
        connection.execute(f"SET ROLE {role}")
        connection.execute(f"{statement} {table}")
    assert database.value("SELECT count(*) FROM task_usage") == 4
    assert queued(database) > 0
    assert database.value(TICK) > 0
    assert wrong_hours(database) == []


def test_statement_that_deletes_much_queues_a_row_an_hour(used: tuple[Database, World]) -> None:
    database, world = used
    for number in range(20):
        event(database.url, world, "2025-03-01 10:30+00", model=f"m{number}")
    database.execute(WINDOW)
    database.execute("DELETE FROM task_usage")
    assert queued(database) == 4
    database.execute(TICK)
    assert database.value("SELECT count(*) FROM task_usage_hourly") == 0


# Rights

LOST = {
    "queue_of_another_owner": (
        "ALTER TABLE task_usage_hourly_invalidation OWNER TO postgres",
        "REVOKE ALL ON task_usage_hourly_invalidation FROM {owner}",
    ),
    "state_of_another_owner": (
        "ALTER TABLE task_usage_hourly_rollup_state OWNER TO postgres",
        "REVOKE ALL ON task_usage_hourly_rollup_state FROM {owner}",
    ),
    "queue_behind_a_policy_of_another_owner": (
        "ALTER TABLE task_usage_hourly_invalidation ENABLE ROW LEVEL SECURITY",
    ),
    "no_queue": ("DROP TABLE task_usage_hourly_invalidation CASCADE",),
    "no_state": ("DROP TABLE task_usage_hourly_rollup_state",),
    "no_schema": ("REVOKE USAGE ON SCHEMA public FROM PUBLIC, {owner}",),
    "no_bucket_function": ("DROP FUNCTION task_usage_hour_bucket(timestamptz)",),
}


@pytest.mark.parametrize("lost", LOST)
def test_server_goes_on_whatever_right_or_object_the_triggers_have_lost(
    at_102: Database, make_role: MakeRole, lost: str
) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00")
    at_102.execute(WINDOW)
    owner, server = make_role("owner"), make_role("server")
    at_102.execute(
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {server}; GRANT USAGE ON SCHEMA public TO {server}"
    )
    for (function,) in at_102.execute(
        "SELECT oid::regprocedure::text FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace AND prosecdef"
    ):
        at_102.execute(f"ALTER FUNCTION {function} OWNER TO {owner}")
    at_102.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {owner}")
    for statement in LOST[lost]:
        at_102.execute(statement.format(owner=owner))

    with at_102.connect(user=server, password=server) as connection:
        reported = task(connection, world.agents[0], issue_id=world.issues[0])
        upsert_usage(connection, reported)
        upsert_usage(connection, reported, tokens=7)
        connection.execute(
            "UPDATE public.task_usage SET created_at = '2025-03-02 10:15+00', updated_at = NULL"
        )
        connection.execute("UPDATE public.agent_task_queue SET agent_id = %s", [world.agents[1]])
        connection.execute("UPDATE public.issue SET project_id = NULL")
        connection.execute("UPDATE public.agent SET workspace_id = %s", [world.workspaces[1]])
        connection.execute("DELETE FROM public.task_usage WHERE task_id = %s", [reported])
        connection.execute("DELETE FROM public.issue")
        connection.execute("TRUNCATE public.task_usage")
        connection.execute("DELETE FROM public.agent")
    if lost.endswith("another_owner") or lost == "no_schema":
        # What nobody queued.
        heal(at_102)


def test_report_is_queued_where_a_policy_may_hide_the_watermark(
    at_102: Database, make_role: MakeRole
) -> None:
    reported = task(at_102.url, small_world(at_102.url).agents[0])
    owner, write = make_role("owner"), "enqueue_task_usage_hourly_dirty_for_tu_write()"
    at_102.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {owner}")
    at_102.execute(f"ALTER FUNCTION {write} OWNER TO {owner}")
    upsert_usage(at_102.url, reported)
    assert queued(at_102) == 0
    at_102.execute("ALTER TABLE task_usage_hourly_rollup_state ENABLE ROW LEVEL SECURITY")
    upsert_usage(at_102.url, reported, tokens=7)
    assert queued(at_102) == 1


def test_security_definer_functions_are_not_everybody_s_to_call(at_102: Database) -> None:
    definers = at_102.execute(
        "SELECT oid::regprocedure::text FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace AND prosecdef"
        " AND has_function_privilege('public', oid, 'EXECUTE')"
    )
    assert definers == []
