"""The way back of the product's own runner on our schema: it runs, the server goes on, and we go up again."""

from __future__ import annotations

import pytest

from tests.support.database import Database, MakeDatabase
from tests.support.go_runner import GO_101_DOWN, GO_102, GO_102_DOWN, record, run_sql, unrecord
from tests.support.legacy import lose_raw_rows
from tests.support.oracle import differing_hours
from tests.support.product import event, small_world, task, upsert_usage, usage
from tests.support.roles import MakeRole
from tests.support.rollup import TICK, hourly, run_hook, wrong_hours
from usage_rollup.contract import STEMS


def gone_back(database: Database, to: str) -> None:
    """Undo 102, and 101 too where `to` is 100, as the Go runner does: files, then ledger rows."""
    run_sql(database, GO_102_DOWN)
    unrecord(database, STEMS["102"])
    if to == "100":
        run_sql(database, GO_101_DOWN)
        unrecord(database, STEMS["101"])


def use(database: Database) -> None:
    """Do all that a server does to usage, tasks, issues and agents; whatever fails raises."""
    with database.connect(autocommit=True) as connection:
        world = small_world(connection)
        reported = task(connection, world.agents[0], issue_id=world.issues[0])
        upsert_usage(connection, reported)
        upsert_usage(connection, reported, tokens=7)
        usage(connection, task(connection, world.agents[1]), "2025-03-01 10:15+00")
        event(connection, world, "2025-04-01 10:15+00", None, agent=2, issue=3)
        for statement in (
            "UPDATE task_usage SET created_at = created_at - interval '1 day', model = 'other'",
            f"UPDATE agent_task_queue SET issue_id = '{world.issues[1]}' WHERE id = '{reported}'",
            f"UPDATE agent_task_queue SET agent_id = '{world.agents[1]}', runtime_id = '{world.runtimes[1]}'",
            "UPDATE issue SET project_id = NULL, title = 'edited'",
            f"UPDATE agent SET workspace_id = '{world.workspaces[1]}', runtime_id = '{world.runtimes[1]}'"
            f" WHERE id = '{world.agents[1]}'",
            f"DELETE FROM task_usage WHERE task_id = '{reported}'",
            f"DELETE FROM issue WHERE id = '{world.issues[3]}'",
            f"DELETE FROM agent_task_queue WHERE id = '{reported}'",
            f"DELETE FROM agent WHERE id = '{world.agents[0]}'",
            f"DELETE FROM workspace WHERE id = '{world.workspaces[0]}'",
        ):
            connection.execute(statement.encode())
        usage(connection, task(connection, world.agents[1]), "2025-05-01 10:15+00")


@pytest.mark.parametrize("to", ["101", "100"])
def test_go_s_way_back_runs_on_our_schema_and_the_server_goes_on(at_102: Database, to: str) -> None:
    event(at_102.url, small_world(at_102.url), "2025-03-01 10:15+00")
    gone_back(at_102, to)
    use(at_102)
    at_102.execute("TRUNCATE task_usage")
    use(at_102)


def test_server_whose_role_may_do_no_more_than_its_own_goes_on_after_go_s_way_back(
    at_102: Database, make_role: MakeRole
) -> None:
    server = make_role("server")
    for granted in (
        "workspace",
        "agent_runtime",
        "agent",
        "project",
        "issue",
        "agent_task_queue",
        "task_usage",
    ):
        at_102.execute(f"GRANT ALL ON {granted} TO {server}")
    for legacy in ("task_usage_daily_dirty", "task_usage_dashboard_dirty"):
        at_102.execute(f"GRANT ALL ON {legacy} TO {server}")
    world = small_world(at_102.url)
    for undone in ("", GO_102_DOWN, GO_101_DOWN):
        run_sql(at_102, undone)
        report = task(at_102.url_of(server), world.agents[0], issue_id=world.issues[0])
        upsert_usage(at_102.url_of(server), report)
        upsert_usage(at_102.url_of(server), report, tokens=7)
        with at_102.connect(autocommit=True) as connection:
            connection.execute(f"SET ROLE {server}".encode())
            connection.execute("UPDATE agent_task_queue SET issue_id = %s", [world.issues[1]])
            connection.execute("UPDATE issue SET project_id = NULL")
            connection.execute("DELETE FROM agent_task_queue WHERE id = %s", [report])


@pytest.fixture
def undone(at_102: Database, request: pytest.FixtureRequest) -> Database:
    """Return a database of ours with a rollup, which the Go runner took back, used before and since."""
    use(at_102)
    at_102.execute(TICK)
    assert hourly(at_102) != []
    gone_back(at_102, request.param)
    use(at_102)
    return at_102


@pytest.mark.parametrize("undone", ["101", "100"], indirect=True)
def test_database_that_go_took_back_is_taken_on_by_its_ledger(undone: Database) -> None:
    undone.execute("DROP TABLE alembic_version")
    undone.upgrade("102")
    assert differing_hours(undone.url) == []
    undone.upgrade()
    assert wrong_hours(undone) == []


@pytest.mark.parametrize("undone", ["101", "100"], indirect=True)
def test_alembic_version_that_go_has_undone_is_named_with_what_puts_it_right(undone: Database) -> None:
    status = undone.usage_rollup("status")
    assert status.returncode == 0, status.stderr
    preflight = undone.usage_rollup("preflight")
    printed = undone.refused("upgrade", "head")
    assert preflight.returncode != 0
    for said in (preflight.stdout, printed):
        assert "`alembic downgrade 100`, then `alembic upgrade head`" in said
        assert "No function matches" not in said
    undone.downgrade("100")
    undone.upgrade()
    assert wrong_hours(undone) == []


@pytest.fixture
def undone_then_redone(make_database: MakeDatabase) -> Database:
    """Return a database whose Go runner undid our 102 in a walk, and did its own, which misses things."""
    database = make_database("102")
    for day in range(1, 4):
        event(database.url, small_world(database.url), f"2025-03-0{day} 10:15+00")
    database.execute("SELECT rollup_task_usage_hourly_plan(now(), 1)")
    for _ in range(2):
        database.execute("SELECT rollup_task_usage_hourly_slice()")
    database.execute("DELETE FROM task_usage_hourly_invalidation")
    gone_back(database, "101")
    run_sql(database, GO_102)
    record(database, STEMS["102"])
    lose_raw_rows(database, "created_at < '2025-03-02'")
    database.execute("UPDATE task_usage SET output_tokens = 7 WHERE created_at < '2025-03-03'")
    database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now()")
    database.execute("DROP TABLE alembic_version")
    return database


def test_our_102_over_what_go_put_back_distrusts_what_it_finds(undone_then_redone: Database) -> None:
    assert wrong_hours(undone_then_redone) != []
    undone_then_redone.upgrade("102")
    # Walked again, whatever the plan says, and so nothing is left to the proof.
    done = run_hook(undone_then_redone)
    assert (done.rows, done.repaired_hours) == (2, 0)
    undone_then_redone.upgrade()
    assert wrong_hours(undone_then_redone) == []
