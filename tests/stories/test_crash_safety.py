"""Kill the runner, its session or the server at every boundary: the same command ends in the same state."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.database import Database
from tests.support.oracle import differing_hours
from tests.support.product import event, small_world, wait_until
from tests.support.server import Server, start_server
from tests.support.v034 import V034_STEMS, build_v034
from usage_rollup.runner.adoption import STEMS

# What the test holds and a trigger of the test asks for.
KEY = 815

# A bucket without raw rows in a month that no walk comes by: only the proof finds it, and repairs it.
ORPHAN_HOUR = "2001-01-01 00:00+00"


@dataclass(frozen=True)
class Boundary:
    """Where the run stops: at a row where a trigger of the test waits, or at a lock that the test holds."""

    table: str
    event: str = ""
    condition: str = "true"
    mode: str = ""
    revision: str = "102"  # committed before the kill
    months: int = 5  # of the history, rolled up and committed before the kill


BOUNDARIES = {
    "before_the_commit_of_the_third_slice": Boundary(
        "task_usage_hourly_backfill", "UPDATE", "NEW.from_hour = '2025-03-01 00:00+00'", months=2
    ),
    "after_the_commit_of_the_second_slice": Boundary(
        "task_usage_hourly", "INSERT", "NEW.bucket_hour >= '2025-03-01 00:00+00'", months=2
    ),
    "after_the_last_slice_before_the_watermark_moves": Boundary(
        "task_usage_hourly_backfill", "DELETE", "OLD.from_hour > '2002-01-01'"
    ),
    "during_the_proof": Boundary("task_usage_hourly_backfill", "INSERT", "NEW.from_hour < '2002-01-01'"),
    "during_the_repair": Boundary("task_usage_hourly_backfill", "UPDATE", "NEW.from_hour < '2002-01-01'"),
    "between_the_hook_and_103": Boundary("task_usage_daily", mode="ACCESS EXCLUSIVE"),
    "inside_103_while_it_asks_for_its_locks": Boundary("task_usage_rollup_state", mode="ACCESS SHARE"),
    "inside_103_before_its_commit": Boundary("schema_migrations", "INSERT", "NEW.version LIKE '103%'"),
    "between_103_and_104": Boundary("agent_runtime", mode="ACCESS SHARE", revision="103"),
}

KILLS = ["SIGKILL of the runner", "end of its session", "crash of the server"]


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    """Return a server that may crash: its database `template` has a history of five months, at 102."""
    with start_server() as server:
        server.create_database("template")
        database = Database(server, "template")
        with database.connect() as connection:
            build_v034(connection)
            world = small_world(connection)
            for month in range(1, 6):
                for day in (1, 11, 21):
                    event(connection, world, f"2025-0{month}-{day} 10:15+00", agent=day % 3, issue=None)
        database.upgrade("102")
        database.execute(
            "INSERT INTO task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, provider, model)"
            f" SELECT '{ORPHAN_HOUR}', workspace_id, runtime_id, id, '', 'orphan' FROM agent LIMIT 1"
        )
        yield server


@pytest.fixture(scope="module")
def undisturbed(own: Server) -> dict[str, Any]:
    """Return the end of a run that nothing disturbed."""
    own.create_database("undisturbed", template="template")
    database = Database(own, "undisturbed")
    database.upgrade()
    return final_state(database)


@pytest.fixture
def database(own: Server) -> Iterator[Database]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    own.create_database(name, template="template")
    database = Database(own, name)
    yield database
    database.end_sessions()
    own.drop_database(name)


def final_state(database: Database) -> dict[str, Any]:
    """Return what two runs over the same data must agree on."""
    return {
        "rollup": database.execute(
            "SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model,"
            " input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, task_count, event_count"
            " FROM task_usage_hourly ORDER BY 1, 2, 3, 4, 5, 6, 7"
        ),
        "revision": database.revision,
        "ledger": database.ledger,
        "unfinished": database.value("SELECT count(*) FROM task_usage_hourly_backfill"),
        "queued": database.value("SELECT count(*) FROM task_usage_hourly_invalidation"),
        "caught up": database.value("SELECT task_usage_hourly_rollup_lag_seconds() = 0"),
        "legacy": database.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relname LIKE 'task_usage%daily%'"
        ),
        "zone": database.value(
            "SELECT count(*) FROM pg_attribute WHERE attrelid = 'agent_runtime'::regclass"
            " AND attname = 'timezone' AND NOT attisdropped"
        ),
    }


def versions(database: Database) -> set[tuple[Any, ...]]:
    """Return the row versions of the history in the rollup: a row written again is another version."""
    return set(
        database.execute(
            "SELECT ctid::text, xmin::text FROM task_usage_hourly WHERE bucket_hour > '2002-01-01'"
        )
    )


@contextmanager
def stopped_at(database: Database, boundary: Boundary) -> Iterator[None]:
    """Hold up whoever comes to `boundary` until the block ends."""
    if boundary.event:
        row = "OLD" if boundary.event == "DELETE" else "NEW"
        database.execute(
            "CREATE FUNCTION public.stop_here() RETURNS trigger LANGUAGE plpgsql AS"
            f" 'BEGIN PERFORM pg_advisory_xact_lock({KEY}); RETURN {row}; END'"
        )
        database.execute(
            f"CREATE TRIGGER a_stop BEFORE {boundary.event} ON {boundary.table} FOR EACH ROW"
            f" WHEN ({boundary.condition}) EXECUTE FUNCTION public.stop_here()"
        )
    obstacle = database.connect(application_name="in the way")
    try:
        obstacle.execute("SELECT pg_advisory_xact_lock(%s)", [KEY])
        if boundary.mode:
            obstacle.execute(f"LOCK TABLE {boundary.table} IN {boundary.mode} MODE")
        yield
    finally:
        obstacle.close()


def waits_at(database: Database, boundary: Boundary) -> int | None:
    """Return the pid of the run's session while it waits at the boundary."""
    waiting = (
        ("l.locktype = 'advisory' AND l.objid = %s", KEY)
        if boundary.event
        else ("l.relation = %s::regclass", boundary.table)
    )
    rows = database.execute(
        "SELECT s.pid FROM pg_stat_activity s JOIN pg_locks l USING (pid)"
        f" WHERE s.datname = current_database() AND NOT l.granted AND {waiting[0]}",
        waiting[1],
    )
    return rows[0][0] if rows else None


def kill_the_runner(database: Database, runner: Any) -> None:
    runner.kill()


def end_its_session(database: Database, runner: Any) -> None:
    # 103 and 104 give way and come back, so the session is looked up and ended in one statement.
    wait_until(
        lambda: database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'usage-rollup' AND datname = current_database()"
        ),
        "the session is ended",
    )


def crash_the_server(database: Database, runner: Any) -> None:
    database.server.stop("immediate")


KILL: dict[str, Callable[[Database, Any], None]] = dict(
    zip(KILLS, (kill_the_runner, end_its_session, crash_the_server), strict=True)
)


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("name", BOUNDARIES)
def test_run_killed_at_a_boundary_ends_as_an_undisturbed_one(
    database: Database, undisturbed: dict[str, Any], name: str, kill: str
) -> None:
    boundary = BOUNDARIES[name]
    try:
        with stopped_at(database, boundary):
            runner = database.spawn("alembic", "upgrade", "head")
            wait_until(
                lambda: waits_at(database, boundary) or runner.poll() is not None, "the run stops there"
            )
            assert runner.poll() is None, runner.communicate()
            KILL[kill](database, runner)
            printed, _ = runner.communicate(timeout=30)
            assert runner.returncode != 0
            assert "Traceback" not in printed
    finally:
        if kill == "crash of the server":
            database.server.restart()

    wait_until(
        lambda: (
            not database.value(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'usage-rollup'"
                " AND datname = current_database()"
            )
        ),
        "the killed run is gone",
    )
    # Committed is what the killed run had finished, nothing of the step it was in.
    assert database.revision == boundary.revision
    assert (STEMS["103"] in database.ledger) is (boundary.revision >= "103")
    months = (
        "SELECT count(DISTINCT date_trunc('month', bucket_hour AT TIME ZONE 'UTC')) FROM task_usage_hourly"
    )
    rolled_up = database.value(f"{months} WHERE bucket_hour > '2002-01-01'")
    if kill == "crash of the server" and boundary.revision == "102":
        # Slices are committed without waiting for the disk: the last ones go with their cursor.
        assert rolled_up <= boundary.months
    else:
        assert rolled_up == boundary.months
    finished = versions(database)

    database.upgrade()
    assert final_state(database) == undisturbed
    assert finished <= versions(database)
    assert differing_hours(database.url) == []


def test_undisturbed_run_is_what_it_should_be(undisturbed: dict[str, Any]) -> None:
    assert undisturbed["revision"] == "104"
    assert undisturbed["ledger"] == {*V034_STEMS, *STEMS.values()}
    assert undisturbed["legacy"] == []
    assert undisturbed["zone"] == 0
    assert undisturbed["caught up"] is True
    assert len(undisturbed["rollup"]) == 15
    assert all(row[0].year == 2025 for row in undisturbed["rollup"])
