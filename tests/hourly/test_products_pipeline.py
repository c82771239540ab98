"""Catching up where a product release has its own pipeline: only ever through its own window."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tests.support.database import Database
from tests.support.deadline import DEADLINE_S
from tests.support.later_release import apply_later_release
from tests.support.oracle import wrong_buckets, wrong_costs
from tests.support.product import LONG_MODEL, World, event, small_world, wait_until
from tests.support.rollup import corrupt
from tests.support.shapes import make_products
from tests.support.walks import advisory_locks, wait_until_blocked, waiters
from usage_rollup.contract import MIGRATION_RUN
from usage_rollup.errors import UnsuitableDatabase
from usage_rollup.hourly import products_pipeline
from usage_rollup.hourly.backfill import Backfill
from usage_rollup.hourly.catch_up import catch_up, repair
from usage_rollup.session import advisory_lock
from usage_rollup.session.connection import migration_session
from usage_rollup.session.options import Options

FIRST = datetime(2025, 1, 10, 10, 20, tzinfo=UTC)


def write_history(database: Database) -> World:
    """Write forty hours of usage that nobody has rolled up or queued."""
    with database.connect() as connection:
        world = small_world(connection)
        for hour in range(40):
            at = FIRST + hour * timedelta(hours=7)
            event(connection, world, at, None if hour % 4 == 0 else at + timedelta(seconds=30))
    return world


def forget(database: Database) -> None:
    """Forget what is queued and what has been rolled up."""
    database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")
    database.execute("TRUNCATE task_usage_hourly, task_usage_hourly_dirty")
    unqueue(database)


def unqueue(database: Database) -> None:
    if database.value("SELECT to_regclass('public.task_usage_hourly_invalidation') IS NOT NULL"):
        database.execute("TRUNCATE task_usage_hourly_invalidation")


@pytest.fixture(params=["D", "E"])
def products(head: Database, request: pytest.FixtureRequest) -> Database:
    """Return a database past 104 whose own runner migrated it and never ticked: forty hours of usage."""
    write_history(head)
    make_products(head, later=request.param == "E")
    forget(head)
    return head


@pytest.fixture(params=["D", "E", "ours, then a later release"])
def rolled_up(head: Database, request: pytest.FixtureRequest) -> tuple[Database, World]:
    """Return a database with a window of the product's, which has rolled forty hours up."""
    world = write_history(head)
    if request.param in {"D", "E"}:
        make_products(head, later=request.param == "E")
    else:
        apply_later_release(head)
    forget(head)
    assert head.usage_rollup("backfill").returncode == 0
    assert wrong_buckets(head.url) == []
    return head, world


def unnoticed(database: Database, world: World, at: datetime, **what: Any) -> None:
    """Write usage below the watermark, as if no trigger had seen it."""
    event(database.url, world, at, at, **what)
    unqueue(database)


def window(database: Database) -> str:
    text: str = database.value(
        "SELECT pg_get_functiondef('rollup_task_usage_hourly_window(timestamptz,timestamptz)'::regprocedure)"
    )
    return text


def test_watermark_of_1970_is_caught_up_through_the_installed_window(products: Database) -> None:
    installed = window(products)
    assert len(wrong_buckets(products.url)) == 40
    result = products.usage_rollup("backfill")
    assert result.returncode == 0, result.stderr
    assert "rolled up: 40 usage rows into" in result.stdout
    assert wrong_buckets(products.url) == []
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
    assert wrong_buckets(products.url) == []


def test_steps_of_a_row_budget_end_as_one_step(products: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products_pipeline, "STEP_ROWS", 7)
    monkeypatch.setenv("DATABASE_URL", products.url)
    with migration_session() as session:
        done = catch_up(session, Options())
    assert (done.slices, done.rows) == (6, 40)
    assert wrong_buckets(products.url) == []


def test_session_that_waits_for_4246_gets_it_between_two_steps(
    products: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products_pipeline, "STEP_ROWS", 7)
    waiter = products.connect()

    def catch_up_here() -> Backfill:
        with products.migration_connection() as session:
            return catch_up(session, Options())

    with ThreadPoolExecutor(2) as pool:
        with products.connect() as obstacle:
            obstacle.execute("LOCK TABLE task_usage_hourly IN SHARE MODE")
            catching_up = pool.submit(catch_up_here)
            wait_until_blocked(products)
            turn = pool.submit(waiter.execute, "SELECT pg_advisory_xact_lock(4246)")
            wait_until(lambda: waiters(products) == 1, "a session waits for 4246")
        turn.result(timeout=DEADLINE_S)
        assert 0 < products.value("SELECT sum(event_count) FROM task_usage_hourly") < 40
        waiter.commit()
        assert catching_up.result().slices == 6


def test_several_sessions_are_refused_where_only_one_can_work(products: Database) -> None:
    for command in (["backfill"], ["backfill", "--repair"]):
        refused = products.usage_rollup(*command, "--jobs", "2")
        assert refused.returncode == 2
        assert "its window serves one session, not 2 jobs" in refused.stderr
    assert products.value("SELECT count(*) FROM task_usage_hourly") == 0
    assert products.usage_rollup("backfill", JOBS="1").returncode == 0


def test_nothing_is_rolled_up_by_a_session_that_has_lost_a_lock(products: Database) -> None:
    with products.migration_connection() as session:
        advisory_lock.acquire(session, MIGRATION_RUN)
        session.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_RUN})
        with pytest.raises(UnsuitableDatabase):
            catch_up(session, Options())
        products.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now()")
        with pytest.raises(UnsuitableDatabase):
            repair(session, Options())
    assert products.value("SELECT count(*) FROM task_usage_hourly") == 0
    assert products.usage_rollup("backfill", "--repair").returncode == 0


def test_schema_public_is_in_reach_for_as_long_as_the_window_works(
    products: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products_pipeline, "STEP_ROWS", 7)
    with products.migration_connection() as session:
        before = session.scalar(sa.text("SHOW search_path"))
        catch_up(session, Options())
        assert session.scalar(sa.text("SHOW search_path")) == before == "pg_catalog, pg_temp"


def test_repair_recomputes_the_keys_that_are_wrong(rolled_up: tuple[Database, World]) -> None:
    database, world = rolled_up
    corrupt(database, "bucket_hour < '2025-01-12'")
    database.execute("DELETE FROM task_usage_hourly WHERE bucket_hour > '2025-01-20'")
    unnoticed(database, world, FIRST, model="another")
    differing = len({row[0] for row in wrong_buckets(database.url)})
    assert database.usage_rollup("verify").returncode == 3
    kept = database.execute(
        "SELECT ctid::text FROM task_usage_hourly WHERE bucket_hour BETWEEN '2025-01-12' AND '2025-01-20'"
    )
    result = database.usage_rollup("backfill", "--repair")
    assert result.returncode == 0, result.stderr
    assert f"hours repaired: {differing}" in result.stdout
    assert wrong_buckets(database.url) == []
    assert database.value("SELECT count(*) FROM task_usage_hourly_dirty") == 0
    assert kept == database.execute(
        "SELECT ctid::text FROM task_usage_hourly WHERE bucket_hour BETWEEN '2025-01-12' AND '2025-01-20'"
    )
    if has_costs(database):
        assert wrong_costs(database.url) == []
    assert "hours repaired: 0" in database.usage_rollup("backfill", "--repair").stdout


def has_costs(database: Database) -> bool:
    found: bool = database.value(
        "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'task_usage_hourly'::regclass"
        " AND attname = 'cost_usd_ticks')"
    )
    return found


def test_bucket_that_the_window_refuses_stops_the_repair_of_no_other(
    rolled_up: tuple[Database, World],
) -> None:
    database, world = rolled_up
    corrupt(database)
    for model in ("vast", LONG_MODEL):
        for _ in range(2):
            unnoticed(database, world, FIRST + timedelta(hours=7), tokens=2**62, model=model)
    unnoticed(database, world, FIRST + timedelta(hours=14), model=LONG_MODEL)
    unnoticed(database, world, FIRST + timedelta(hours=14), agent=1)
    result = database.usage_rollup("backfill", "--repair")
    assert result.returncode == 1
    assert (
        "2 of 40 hours could not be repaired through the product's window: 2025-01-10 17:00 UTC"
        in result.stderr
    )
    assert "Traceback" not in result.stderr
    assert "DETAIL: hours repaired: 38" in result.stderr
    # Their neighbours in the same hours are right.
    assert {(row[0], row[4][:4]) for row in wrong_buckets(database.url)} == {
        (FIRST.replace(hour=17, minute=0), "vast"),
        (FIRST.replace(hour=17, minute=0), LONG_MODEL[:4]),
        (FIRST.replace(day=11, hour=0, minute=0), LONG_MODEL[:4]),
    }

    with database.connect() as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("DELETE FROM task_usage WHERE length(model) > 1000 OR model = 'vast'")
    unqueue(database)
    assert wrong_buckets(database.url) == []


def test_window_that_does_nothing_is_not_taken_for_a_repair(rolled_up: tuple[Database, World]) -> None:
    database, _ = rolled_up
    theirs = window(database)
    database.execute(
        "CREATE OR REPLACE FUNCTION rollup_task_usage_hourly_window(p_from timestamptz, p_to timestamptz)"
        " RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint'"
    )
    corrupt(database, "bucket_hour < '2025-01-11'")
    for _ in range(2):
        result = database.usage_rollup("backfill", "--repair")
        assert result.returncode == 1
        assert "the window left it as it was" in result.stderr
    database.execute(theirs)
    database.usage_rollup("backfill", "--repair")
    assert wrong_buckets(database.url) == []


def test_window_that_does_nothing_is_not_taken_for_a_backfill(products: Database) -> None:
    # The trap: the watermark moves, rows are counted, and nothing is there.
    theirs = window(products)
    products.execute(
        "CREATE OR REPLACE FUNCTION rollup_task_usage_hourly_window(p_from timestamptz, p_to timestamptz)"
        " RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint'"
    )
    result = products.usage_rollup("backfill")
    assert result.returncode == 1
    assert "hours of the hourly rollup that differ from raw usage: 40\n" in result.stderr
    assert "rolled up: 40 usage rows into 0 buckets" in result.stderr
    assert "`usage-rollup backfill --repair`" in result.stderr
    products.execute(theirs)
    assert products.usage_rollup("backfill", "--repair").returncode == 0
    assert products.usage_rollup("backfill").returncode == 0
    assert wrong_buckets(products.url) == []


# Another key of the hour, queued by somebody else while it is repaired.
SOMEBODY_ELSE = """
CREATE FUNCTION queue_too() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.task_usage_hourly_dirty
        (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model)
    VALUES (NEW.bucket_hour, NEW.workspace_id, NEW.runtime_id, NEW.agent_id, NEW.project_id,
        'somebody', 'else');
    RETURN NULL;
END
$$;
CREATE TRIGGER queue_too AFTER INSERT ON task_usage_hourly_dirty FOR EACH ROW
    WHEN (NEW.provider <> 'somebody') EXECUTE FUNCTION queue_too()
"""


def test_repair_leaves_in_the_queue_what_others_put_there(rolled_up: tuple[Database, World]) -> None:
    database, _ = rolled_up
    corrupt(database, "bucket_hour < '2025-01-11'")
    database.execute(
        "INSERT INTO task_usage_hourly_dirty"
        " (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model, enqueued_at)"
        " SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model,"
        " now() - interval '1 year' FROM task_usage_hourly ORDER BY bucket_hour DESC LIMIT 3"
    )
    database.execute(SOMEBODY_ELSE)
    result = database.usage_rollup("backfill", "--repair")
    assert result.returncode == 0, result.stderr
    assert "hours repaired: 2" in result.stdout
    assert wrong_buckets(database.url) == []
    assert database.value("SELECT count(*) FROM task_usage_hourly_dirty") == 2 + 3


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_repair_tries_again_what_collided_with_another_session(
    rolled_up: tuple[Database, World], state: str
) -> None:
    database, _ = rolled_up
    corrupt(database, "bucket_hour < '2025-01-11'")
    database.execute(
        "CREATE SEQUENCE collisions;"
        "CREATE FUNCTION collide() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF nextval('collisions') < 3 THEN RAISE EXCEPTION USING ERRCODE = '{state}'; END IF;"
        " RETURN NEW; END $$;"
        "CREATE TRIGGER collide BEFORE UPDATE ON task_usage_hourly FOR EACH ROW EXECUTE FUNCTION collide()"
    )
    result = database.usage_rollup("backfill", "--repair")
    assert result.returncode == 0, result.stderr
    assert wrong_buckets(database.url) == []


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
