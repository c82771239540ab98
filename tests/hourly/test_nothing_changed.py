"""A statement that names a column and changes nothing queues nothing; what does change is queued."""

from __future__ import annotations

import pytest

from tests.support.database import Database
from tests.support.product import World, event, small_world, upsert_usage
from tests.support.rollup import TICK, UNQUEUE, WINDOW, queued, wrong_hours

# As the server says them: every column of the row, whatever the edit was.
EDITS = {
    "title_of_an_issue": "UPDATE issue SET title = 'edited', project_id = project_id, updated_at = now()",
    "status_of_a_task": "UPDATE agent_task_queue SET status = 'failed', runtime_id = runtime_id,"
    " issue_id = issue_id, agent_id = agent_id, completed_at = now()",
    "touch_of_an_agent": "UPDATE agent SET status = 'idle', workspace_id = workspace_id, updated_at = now()",
    "usage_written_as_it_was": "UPDATE task_usage SET model = model, input_tokens = input_tokens,"
    " created_at = created_at, updated_at = updated_at",
    "reported_again_with_the_same_figures": "INSERT INTO task_usage (task_id, provider, model, input_tokens)"
    " SELECT task_id, provider, model, input_tokens FROM task_usage"
    " ON CONFLICT (task_id, provider, model) DO UPDATE"
    " SET input_tokens = EXCLUDED.input_tokens, updated_at = now()",
    "nothing_to_delete": "DELETE FROM task_usage WHERE false",
}
MOVES = {
    "issue": "UPDATE issue SET title = title, project_id = NULL WHERE id = %(issue)s",
    "task_to_no_issue": "UPDATE agent_task_queue SET status = status, issue_id = NULL",
    "task_to_an_agent": "UPDATE agent_task_queue SET agent_id = %(agent)s",
    "agent": "UPDATE agent SET name = name, workspace_id = %(workspace)s WHERE id = %(agent)s",
}

# A later release makes three of the product's triggers again, and names no column for one of them.
TRIGGERS_MADE_AGAIN = """
CREATE OR REPLACE TRIGGER trg_atq_dirty_hourly BEFORE UPDATE OR DELETE ON agent_task_queue FOR EACH ROW
    WHEN (current_setting('multica.workspace_teardown', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION enqueue_task_usage_hourly_dirty_for_atq();
CREATE OR REPLACE TRIGGER trg_issue_delete_dirty_hourly BEFORE DELETE ON issue FOR EACH ROW
    WHEN (current_setting('multica.workspace_teardown', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION enqueue_task_usage_hourly_dirty_for_issue_delete();
CREATE OR REPLACE TRIGGER trg_tu_dirty_hourly BEFORE DELETE ON task_usage FOR EACH ROW
    WHEN (current_setting('multica.workspace_teardown', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION enqueue_task_usage_hourly_dirty_for_tu();
"""


@pytest.fixture(params=["ours", "made_again"])
def used(at_102: Database, request: pytest.FixtureRequest) -> tuple[Database, World]:
    world = small_world(at_102.url)
    for hour in range(10, 13):
        event(at_102.url, world, f"2025-03-01 {hour}:15+00")
    if request.param == "made_again":
        with at_102.connect() as connection:
            connection.execute(TRIGGERS_MADE_AGAIN.encode())
    at_102.execute(WINDOW)
    assert queued(at_102) == 0
    return at_102, world


@pytest.mark.parametrize("edit", EDITS)
def test_edit_that_changes_nothing_queues_nothing(used: tuple[Database, World], edit: str) -> None:
    database, _ = used
    before = database.value("SELECT array_agg(ctid::text ORDER BY ctid) FROM task_usage_hourly")
    database.execute(EDITS[edit])
    assert queued(database) == 0
    database.execute(TICK)
    assert database.value("SELECT array_agg(ctid::text ORDER BY ctid) FROM task_usage_hourly") == before


@pytest.mark.parametrize("move", MOVES)
def test_move_is_queued_whatever_else_its_statement_names(used: tuple[Database, World], move: str) -> None:
    database, world = used
    names = {"issue": world.issues[0], "agent": world.agents[1], "workspace": world.workspaces[1]}
    with database.connect() as connection:
        if move == "agent":
            connection.execute(MOVES["task_to_an_agent"], names)
            connection.execute(WINDOW)
        connection.execute(MOVES[move], names)
    assert queued(database) > 0
    database.execute(TICK)
    assert wrong_hours(database) == []


@pytest.mark.parametrize("column", ["updated_at", "created_at"])
def test_usage_that_is_only_dated_otherwise_is_queued(at_102: Database, column: str) -> None:
    # Not rolled up yet, and then dated below the watermark: time alone would not come for it again.
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00")
    at_102.execute(TICK)
    at_102.execute(UNQUEUE)
    upsert_usage(at_102.url, at_102.value("SELECT task_id FROM task_usage"), model="new")
    also = ", updated_at = updated_at - interval '1 hour'" if column == "created_at" else ""
    at_102.execute(f"UPDATE task_usage SET {column} = '2025-03-01 11:15+00' {also} WHERE model = 'new'")
    assert queued(at_102) > 0
    at_102.execute(TICK)
    assert wrong_hours(at_102) == []
