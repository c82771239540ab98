"""Stop a run at a chosen boundary, kill it or its server there, and compare where the next one ends."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from subprocess import Popen
from typing import Any

from tests.support.database import Database
from tests.support.oracle import differing_hours
from tests.support.product import event, small_world
from tests.support.rollup import hourly
from tests.support.server import Server, start_server
from tests.support.v034 import build_v034

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
        "task_usage_hourly_backfill", "UPDATE", "NEW.from_hour = '2025-03-01 10:00+00'", months=2
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


@contextmanager
def server_at_102(months: int, settings: dict[str, str] | None = None) -> Iterator[Server]:
    """Start a server that may crash: its database `template` has a history of so many months, at 102."""
    with start_server({"usage_rollup.slice_rows": "3"} | (settings or {})) as server:
        server.create_database("template")
        database = Database(server, "template")
        with database.connect() as connection:
            build_v034(connection)
            world = small_world(connection)
            for month in range(1, months + 1):
                for day in (1, 11, 21):
                    event(connection, world, f"2025-0{month}-{day} 10:15+00", agent=day % 3, issue=day % 3)
        database.upgrade("102")
        yield server


@contextmanager
def clone_of_template(server: Server) -> Iterator[Database]:
    """Copy the database `template`; the copy ends with the oracle."""
    database = Database(server, f"test_{uuid.uuid4().hex[:12]}")
    server.create_database(database.name, template="template")
    yield database
    database.end_sessions()
    differing = differing_hours(database.url)
    server.drop_database(database.name)
    assert differing == []


def add_orphan(database: Database) -> None:
    """Add the bucket of ORPHAN_HOUR."""
    database.execute(
        "INSERT INTO task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, provider, model)"
        f" SELECT '{ORPHAN_HOUR}', workspace_id, runtime_id, id, '', 'orphan' FROM agent LIMIT 1"
    )


def final_state(database: Database) -> dict[str, Any]:
    """Return what two runs over the same data must agree on."""
    return {
        "rollup": hourly(database),
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


def kill_the_runner(database: Database, runner: Popen[str]) -> None:
    runner.kill()


def crash_the_server(database: Database, runner: Popen[str]) -> None:
    database.server.stop("immediate")


def undisturbed_run(server: Server) -> tuple[str, dict[str, Any]]:
    """Upgrade a copy of `template` that nothing disturbs; return what was printed, and its end."""
    server.create_database("undisturbed", template="template")
    database = Database(server, "undisturbed")
    printed = database.upgrade()
    return printed, final_state(database)
