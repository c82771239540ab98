"""What a soak plays on: a server, a database on a small disk, the road to it, writers and ticks."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.database import Database
from tests.support.legacy import roll_up_as_v034
from tests.support.pgbouncer import PgBouncer, pgbouncer
from tests.support.product import wait_until
from tests.support.server import ThrowAwayServer
from tests.support.soak.clock import Clock, steppable_clock
from tests.support.soak.disk import Disk, small_disk
from tests.support.soak.plan import KINDS, POOLER
from tests.support.soak.road import Road
from tests.support.soak.ticks import Ticks
from tests.support.soak.watch import Watch
from tests.support.soak.writers import Writers
from tests.support.v034 import build_v034, generate_history

NAME = "soak"

# A writer has one of the history's five workspaces; the last one is nobody's.
WRITERS = 4

# Not the test server's ten minutes: ticks and deletions of workspaces have to share 4246.
_SETTINGS = {"usage_rollup.tick_budget": "5s", "log_lock_waits": "on", "log_line_prefix": "%m [%p] %a "}


@dataclass
class Stage:
    """Everything a cycle and its faults reach for."""

    server: ThrowAwayServer
    database: Database
    road: Road
    disk: Disk | None
    clock: Clock | None
    pooler: PgBouncer | None
    writers: Writers
    ticks: Ticks
    watch: Watch
    outputs: Path
    schema: list[str]  # of v0.3.4, before anything was done to it

    def lead(self, *, pooled: bool) -> None:
        """Let the road lead through the pooler, or straight to the server."""
        assert self.pooler is not None or not pooled
        self.road.upstream = self.pooler.port if self.pooler and pooled else self.server.port

    def raise_findings(self) -> None:
        """Raise what writers, ticks or the watch have found beside the commands."""
        for one in (self.writers, self.ticks, self.watch):
            one.raise_findings()

    @property
    def road_url(self) -> str:
        """Return the database's URL by way of the road."""
        return re.sub(r"(@127\.0\.0\.1:)[0-9]+/", rf"\g<1>{self.road.port}/", self.database.url)

    @contextmanager
    def admin(self, name: str = "soak fault") -> Iterator[psycopg.Connection[Any]]:
        """Open a session past the road that commits every statement by itself."""
        with psycopg.connect(self.database.url, autocommit=True, application_name=name) as session:
            yield session

    def keep(self) -> str:
        """Keep server and disk when the stage is left; return the command that starts the server again."""
        if self.disk is not None:
            self.disk.kept = True
        return self.server.keep()

    def possible(self) -> frozenset[str]:
        """Return the kinds of faults that can be had here."""
        had = {"disk full": self.disk, "clock": self.clock, POOLER: self.pooler}
        return frozenset(kind for kind in KINDS if had.get(kind, True))


@contextmanager
def set_up(seed: str, rows: int) -> Iterator[Stage]:
    """Start a server of its own with a v0.3.4 database that has a history; end it all, and delete it."""
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk())
        clock = stack.enter_context(steppable_clock())
        server = ThrowAwayServer(_SETTINGS, environment=clock.environment if clock else {})
        stack.callback(server.close)
        outputs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="usage-rollup-soak-")))
        database = _database(server, disk, rows)
        road, pooler = Road(server.port), _pooler(server, stack)
        stack.callback(road.close)
        writers, ticks, watch = Writers(database.url), Ticks(database), Watch(database.url)
        schema = database.schema(in_order=False)
        stage = Stage(server, database, road, disk, clock, pooler, writers, ticks, watch, outputs, schema)
        homes = [
            row[0] for row in database.execute("SELECT id FROM workspace ORDER BY slug LIMIT %s", WRITERS)
        ]
        writers.start(homes, seed)
        stack.callback(writers.stop)
        ticks.start()
        stack.callback(ticks.stop)
        watch.start()
        stack.callback(watch.stop)
        yield stage


def _pooler(server: ThrowAwayServer, stack: ExitStack) -> PgBouncer | None:
    """Start a pooler in session mode, where one can be had."""
    try:
        # A session that nobody uses ends soon, so that the judge sees who has left one.
        return stack.enter_context(
            pgbouncer(server, pool_mode="session", server_idle_timeout=1, server_login_retry=1)
        )
    except pytest.skip.Exception:
        return None


def _database(server: ThrowAwayServer, disk: Disk | None, rows: int) -> Database:
    database = Database(server, NAME)
    admin = Database(server, "postgres")
    if disk is not None:
        place = disk.directory / "tablespace"
        place.mkdir()
        owner = server.directory.stat()
        os.chown(place, owner.st_uid, owner.st_gid)
        admin.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
    admin.execute(f"CREATE DATABASE {NAME} TEMPLATE template0" + (" TABLESPACE small" if disk else ""))
    with database.connect() as connection:
        build_v034(connection)
        generate_history(connection, rows, months=8, agents=30)
        # Nobody's rows may go with the workspace of another writer.
        connection.execute(
            "UPDATE agent_task_queue q SET issue_id = NULL FROM agent a, issue i"
            " WHERE a.id = q.agent_id AND i.id = q.issue_id AND a.workspace_id <> i.workspace_id"
        )
    database.end_sessions()
    roll_up_as_v034(database)
    return database


def wait_for_server(stage: Stage) -> None:
    """Wait until the server takes sessions again."""

    def answers() -> bool:
        try:
            with stage.admin():
                return True
        except psycopg.OperationalError:
            return False

    wait_until(answers, "the server takes sessions")
