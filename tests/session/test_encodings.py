"""Whatever a database, a role, a client or a terminal is encoded in: rolled up, shown, and never fatal."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.support.database import BIN, Database
from tests.support.oracle import differing_hours, wrong_buckets
from tests.support.product import event, small_world
from tests.support.roles import MakeRole, give_everything_to
from tests.support.server import Server
from tests.support.shapes import make_products
from tests.support.v034 import build_v034
from tests.support.ways import WAYS, Way

# A byte that is no UTF-8, and one that is: what comes out of the first is bytes.
WRITE_ODD = """
UPDATE task_usage SET model = 'mod' || chr(232) || 'le ' || repeat('x', 10)
WHERE id = (SELECT id FROM task_usage ORDER BY created_at LIMIT 1)
"""

COMMANDS = ("preflight", "status", "verify", "tick", "schedule", "check", "backfill")


@dataclass
class Encoded(Database):
    """A database whose text a test may read, as far as it is UTF-8; the commands choose for themselves."""

    @property
    def url(self) -> str:
        return f"{self.server.url(self.name)}&client_encoding=UTF8"


@pytest.fixture
def encoded(server: Server) -> Iterator[Callable[[str], Database]]:
    """Return a function that makes a v0.3.4 database in an encoding, with usage of an odd model."""
    made: list[Encoded] = []

    def make(encoding: str) -> Database:
        database = Encoded(server, f"test_{uuid.uuid4().hex[:12]}")
        Database(server, "postgres").execute(
            f"CREATE DATABASE {database.name} TEMPLATE template0 ENCODING '{encoding}'"
            " LC_COLLATE 'C' LC_CTYPE 'C'"
        )
        made.append(database)
        with database.connect() as connection:
            build_v034(connection)
            world = small_world(connection)
            event(connection, world, "2025-03-01 10:15+00")
            event(connection, world, "2025-03-01 11:15+00")
            connection.execute(WRITE_ODD)
        return database

    yield make
    for database in made:
        database.end_sessions()
        assert differing_hours(database.url) == []
        server.drop_database(database.name)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_database_of_any_encoding_goes_up_and_down(
    encoded: Callable[[str], Database], encoding: str, way: Way
) -> None:
    database = encoded(encoding)
    way.upgrade(database, "097", "head")
    assert database.value("SELECT count(*) FROM task_usage_hourly WHERE model LIKE '%xxx'") == 1
    assert differing_hours(database.url) == []
    way.downgrade(database, "104", "100")
    way.upgrade(database, "100", "head")


def set_aside(database: Database) -> None:
    """Have a bucket with the odd model set aside, so that commands show its name."""
    database.execute(
        "INSERT INTO task_usage_hourly_set_aside SELECT bucket_hour, workspace_id, runtime_id, agent_id,"
        " project_id, 'digest', 'start', '54000', left(model, 9) FROM task_usage_hourly"
        " ORDER BY bucket_hour LIMIT 1"
    )


@pytest.mark.parametrize(("encoding", "shown"), [("SQL_ASCII", r"mod\xe8le"), ("LATIN1", "modèle")])
def test_commands_show_what_a_database_holds(
    encoded: Callable[[str], Database], encoding: str, shown: str
) -> None:
    database = encoded(encoding)
    database.upgrade()
    set_aside(database)
    for command in COMMANDS:
        done = database.usage_rollup(command)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in ({0, 1} if command == "schedule" else {0}), done.stdout + done.stderr
    assert shown in database.usage_rollup("verify").stdout
    (found,) = json.loads(database.usage_rollup("verify", "--json").stdout)["set_aside"]
    assert found["error"].encode("utf-8", "surrogateescape")[:3] == b"mod"
    # A terminal or a file that is not UTF-8 either: the program itself, because the stream is made for it.
    plain = database.run(str(BIN / "usage-rollup"), "verify", PYTHONIOENCODING="ascii")
    assert plain.returncode == 0, plain.stderr
    assert r"mod\xe8le" in plain.stdout
    database.execute("DELETE FROM task_usage_hourly_set_aside")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_repair_through_the_products_window_finds_the_bucket_by_its_bytes(
    encoded: Callable[[str], Database], encoding: str
) -> None:
    database = encoded(encoding)
    database.upgrade()
    database.execute("DROP TABLE schema_migrations")
    database.execute("CREATE TABLE schema_migrations (version text PRIMARY KEY)")
    make_products(database, later=False)
    assert database.usage_rollup("backfill").returncode == 0
    database.execute("UPDATE task_usage_hourly SET input_tokens = 0")
    done = database.usage_rollup("backfill", "--repair")
    assert done.returncode == 0, done.stderr
    assert database.value("SELECT count(*) FROM task_usage_hourly WHERE input_tokens = 0") == 0


@pytest.mark.parametrize("place", ["role", "database", "environment"])
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_KR"])
def test_encoding_that_somebody_set_is_not_the_sessions(
    v034: Database, make_role: MakeRole, place: str, encoding: str
) -> None:
    event(v034.url, small_world(v034.url), "2025-03-01 10:15+00", model="modèle 🎼")
    owner = make_role("owner")
    give_everything_to(v034, owner)
    environment = {"DATABASE_URL": v034.url_of(owner)}
    if place == "role":
        v034.execute(f"ALTER ROLE {owner} SET client_encoding = '{encoding}'")
    elif place == "database":
        v034.execute(f"ALTER DATABASE {v034.name} SET client_encoding = '{encoding}'")
    else:
        environment["PGCLIENTENCODING"] = encoding
    v034.upgrade(**environment)
    for command in COMMANDS:
        done = v034.usage_rollup(command, **environment)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in ({0, 1} if command == "schedule" else {0}), done.stdout + done.stderr
    if place == "database":
        v034.execute(f"ALTER DATABASE {v034.name} RESET client_encoding")
    assert wrong_buckets(v034.url) == []


def test_refusal_in_another_encoding_is_legible(v034: Database) -> None:
    # Of a login, too: that comes before any statement could set anything.
    refused = v034.refused(
        "current",
        DATABASE_URL=v034.server.url("nirgendwo-ü"),
        PGCLIENTENCODING="LATIN1",
        DATABASE_STARTUP_TIMEOUT="0",
    )
    assert 'database "nirgendwo-ü" does not exist' in refused
