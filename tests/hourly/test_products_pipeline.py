"""Catching up where a product release has its own pipeline: only ever through its own window."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.support.database import Database
from tests.support.product import event, small_world
from tests.support.shapes import make_products
from tests.support.walks import advisory_locks
from usage_rollup.hourly import products_pipeline
from usage_rollup.hourly.catch_up import catch_up
from usage_rollup.session.connection import migration_session
from usage_rollup.session.options import Options

pytestmark = pytest.mark.server

FIRST = datetime(2025, 1, 10, 10, 20, tzinfo=UTC)


@pytest.fixture(params=["D", "E"])
def products(head: Database, request: pytest.FixtureRequest) -> Database:
    """Return a database past 104 whose own runner migrated it and never ticked: forty hours of usage."""
    with head.connect() as connection:
        world = small_world(connection)
        for hour in range(40):
            at = FIRST + hour * timedelta(hours=7)
            event(connection, world, at, None if hour % 4 == 0 else at + timedelta(seconds=30))
    make_products(head, later=request.param == "E")
    head.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")
    head.execute("TRUNCATE task_usage_hourly, task_usage_hourly_dirty")
    return head


def differing_hours(database: Database) -> int:
    """Count the hours in which the rollup is not the aggregate of raw usage, pending or not."""
    count: int = database.value(
        """
        WITH oracle AS (
            SELECT date_trunc('hour', tu.created_at), a.workspace_id, q.runtime_id, q.agent_id, i.project_id,
                tu.provider, tu.model, SUM(tu.input_tokens)::bigint, COUNT(*)
            FROM task_usage tu JOIN agent_task_queue q ON q.id = tu.task_id JOIN agent a ON a.id = q.agent_id
            LEFT JOIN issue i ON i.id = q.issue_id GROUP BY 1, 2, 3, 4, 5, 6, 7
        ), hourly AS (
            SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model, input_tokens,
                event_count FROM task_usage_hourly
        )
        SELECT COUNT(DISTINCT date_trunc) FROM (
            (TABLE oracle EXCEPT TABLE hourly) UNION (TABLE hourly EXCEPT TABLE oracle)) AS differing
        """
    )
    return count


def window(database: Database) -> str:
    text: str = database.value(
        "SELECT pg_get_functiondef('rollup_task_usage_hourly_window(timestamptz,timestamptz)'::regprocedure)"
    )
    return text


def test_watermark_of_1970_is_caught_up_through_the_installed_window(products: Database) -> None:
    installed = window(products)
    assert differing_hours(products) == 40
    result = products.usage_rollup("backfill")
    assert result.returncode == 0, result.stderr
    assert "usage rows rolled up: 40" in result.stdout
    assert differing_hours(products) == 0
    assert products.value(
        "SELECT watermark_at > now() - interval '10 minutes' FROM task_usage_hourly_rollup_state"
    )
    # Nothing of ours stays behind.
    assert window(products) == installed
    assert products.value("SELECT to_regclass('public.task_usage_hourly_backfill') IS NULL")
    assert advisory_locks(products) == []


def test_killed_catch_up_goes_on_where_it_stopped(
    products: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products_pipeline, "STEP_ROWS", 7)
    monkeypatch.setenv("DATABASE_URL", products.url)
    # The window refuses what is created in the tenth hour: as good as a kill, and it is visible.
    products.execute(
        "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN RAISE EXCEPTION 'stopped by the test'; END$$;"
        "CREATE TRIGGER stop BEFORE INSERT ON task_usage_hourly FOR EACH ROW"
        f" WHEN (NEW.bucket_hour > '{FIRST + timedelta(hours=70)}') EXECUTE FUNCTION stop()"
    )
    assert products.usage_rollup("backfill").returncode == 1
    stopped_at = products.value("SELECT watermark_at FROM task_usage_hourly_rollup_state")
    assert stopped_at < FIRST + timedelta(hours=71)
    products.execute("DROP TRIGGER stop ON task_usage_hourly")
    assert products.usage_rollup("backfill").returncode == 0
    assert differing_hours(products) == 0


def test_steps_of_a_row_budget_end_as_one_step(products: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products_pipeline, "STEP_ROWS", 7)
    monkeypatch.setenv("DATABASE_URL", products.url)
    with migration_session() as session:
        done = catch_up(session, Options())
    assert (done.slices, done.rows) == (6, 40)
    assert differing_hours(products) == 0


def test_repair_recomputes_the_hours_that_differ(products: Database) -> None:
    products.usage_rollup("backfill")
    products.execute("UPDATE task_usage_hourly SET input_tokens = 0 WHERE bucket_hour < '2025-01-12'")
    products.execute("DELETE FROM task_usage_hourly WHERE bucket_hour > '2025-01-20'")
    differing = differing_hours(products)
    assert products.usage_rollup("verify").returncode == 3
    result = products.usage_rollup("backfill", "--repair")
    assert result.returncode == 0, result.stderr
    assert f"hours repaired: {differing}" in result.stdout
    assert products.usage_rollup("verify").returncode == 0


def test_part_of_a_history_cannot_be_had_here(products: Database) -> None:
    result = products.usage_rollup("backfill", "--months-back", "1", "--force-partial")
    assert result.returncode == 1
    assert "can only be caught up completely" in result.stderr
    assert products.value("SELECT count(*) FROM task_usage_hourly") == 0
    products.usage_rollup("backfill")


def test_catch_up_does_not_pass_an_open_transaction(products: Database) -> None:
    writer = products.connect()
    (began,) = writer.execute("SELECT now()").fetchone() or (None,)
    world = small_world(writer)
    event(writer, world)
    products.usage_rollup("backfill")
    writer.commit()
    assert products.value("SELECT watermark_at FROM task_usage_hourly_rollup_state") <= began
    with products.connect(autocommit=True) as connection:
        connection.execute("SELECT rollup_task_usage_hourly_window('-infinity', 'infinity')")
