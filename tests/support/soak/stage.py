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

from tests.support.database import Database
from tests.support.legacy import roll_up_as_v034
from tests.support.product import wait_until
from tests.support.server import ThrowAwayServer
from tests.support.soak.disk import Disk, small_disk
from tests.support.soak.plan import KINDS
from tests.support.soak.road import Road
from tests.support.soak.ticks import Ticks
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
    writers: Writers
    ticks: Ticks
    outputs: Path
    schema: list[str]  # of v0.3.4, before anything was done to it

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
        missing = {"pooler restart", "clock"} | (set() if self.disk else {"disk full"})
        return frozenset(KINDS.keys() - missing)


@contextmanager
def set_up(seed: str, rows: int) -> Iterator[Stage]:
    """Start a server of its own with a v0.3.4 database that has a history; end it all, and delete it."""
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk())
        server = ThrowAwayServer(_SETTINGS)
        stack.callback(server.close)
        outputs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="usage-rollup-soak-")))
        database = _database(server, disk, rows)
        road = Road(server.port)
        stack.callback(road.close)
        writers, ticks = Writers(database.url), Ticks(database)
        stage = Stage(server, database, road, disk, writers, ticks, outputs, database.schema(in_order=False))
        homes = [
            row[0] for row in database.execute("SELECT id FROM workspace ORDER BY slug LIMIT %s", WRITERS)
        ]
        writers.start(homes, seed)
        stack.callback(writers.stop)
        ticks.start()
        stack.callback(ticks.stop)
        yield stage


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
