"""A real PostgreSQL for every test: one server, a template per revision point, a clone per test."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.support import releases
from tests.support.database import Database, MakeDatabase
from tests.support.oracle import differing_hours
from tests.support.processes import heed_sigint
from tests.support.roles import MakeRole
from tests.support.server import Server, open_server
from tests.support.v034 import build_v034

# Or every command that is started would compile this project anew, and all of the revisions every time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

heed_sigint()

# For many small databases, perhaps in memory: every DROP DATABASE looks through all buffers, and autovacuum
# would begin a process every few seconds.
SMALL = {"shared_buffers": "64MB", "max_wal_size": "512MB", "autovacuum_naptime": "1h"}

# The real v0.3.4 after our own upgrade.
OURS_AT_HEAD = "ours at head"


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with open_server(SMALL, in_memory=True) as server, server.administered():
        yield server


@pytest.fixture(scope="session")
def templates(server: Server) -> Callable[[str], str]:
    """Return a function from a point to a template database that stands there.

    Points: `empty`; `v034`, as the Go runner leaves it; a revision, reached by our own upgrade from
    v034 without usage; a release, as its catalog says; `ours at head`, from
    such a v0.3.4; and `ours at <release>`, which the product's runner has taken on from there.
    """
    built: dict[str, str] = {}
    prefix = f"template_{uuid.uuid4().hex[:8]}"

    def template(point: str) -> str:
        if point not in built:
            name = f"{prefix}_{point}"
            source = _below(point)
            server.create_database(name, template=template(source) if source else None)
            _take_to(Database(server, name), point)
            built[point] = name
        return built[point]

    return template


def _below(point: str) -> str | None:
    """Return the point whose template a point begins with."""
    if point in {"empty", "v034", *releases.RELEASES}:
        return None
    if point == OURS_AT_HEAD:
        return "v0.3.4"
    return OURS_AT_HEAD if point.startswith("ours at ") else "v034"


def _take_to(database: Database, point: str) -> None:
    """Take a copy of the template below a point to that point."""
    release = point.removeprefix("ours at ")
    if point == OURS_AT_HEAD:
        database.upgrade()
    elif point == "v034" or release in releases.RELEASES:
        with database.connect() as connection:
            if point == "v034":
                build_v034(connection)
            elif point == release:
                releases.build(connection, release)
            else:
                releases.take_on(connection, release)
    elif point != "empty":
        database.upgrade(point)


@pytest.fixture
def make_role(server: Server, request: pytest.FixtureRequest) -> Iterator[MakeRole]:
    """Return a function that makes a login role, gone when the test ends; its password is its name.

    A failed test keeps its roles, as it keeps its databases.
    """
    made: list[str] = []

    def make(prefix: str, attributes: str = "") -> str:
        name = f"{prefix}_{uuid.uuid4().hex[:12]}"
        server.create_role(name, attributes)
        made.append(name)
        return name

    yield make
    if not getattr(request.node, "failed", False):
        for name in reversed(made):
            server.drop_role(name)


@pytest.fixture
def make_database(
    server: Server,
    templates: Callable[[str], str],
    make_role: MakeRole,
    request: pytest.FixtureRequest,
) -> Iterator[MakeDatabase]:
    """Return a function that clones the template of a point; every clone ends with the oracle.

    It asks for make_role so that databases go before the roles that own something in them.
    """
    made: list[Database] = []

    def make(point: str) -> Database:
        name = f"test_{uuid.uuid4().hex[:12]}"
        server.create_database(name, template=templates(point))
        made.append(Database(server, name, shares=True))
        return made[-1]

    yield make

    failed = getattr(request.node, "failed", False)
    for database in made:
        database.end_sessions()
        if failed:
            request.node.add_report_section(
                "teardown", "database kept", f"psql '{database.url}' (while its server runs)"
            )
            continue
        differing = differing_hours(database.url)
        server.drop_database(database.name)
        assert differing == [], f"rollup and raw usage differ in {differing}"


def at(point: str) -> Callable[[MakeDatabase], Database]:
    """Make a fixture that returns a database without usage that stands at a point."""

    def database(make_database: MakeDatabase) -> Database:
        return make_database(point)

    return database


empty = pytest.fixture(at("empty"))
v034 = pytest.fixture(at("v034"))
at_102 = pytest.fixture(at("102"))
head = pytest.fixture(at("head"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, or one worker would go on with it when all the others have ended."""
    items.sort(key=lambda item: not any(map(item.get_closest_marker, ("long", "packaging", "process"))))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.failed:  # type: ignore[attr-defined]
        item.failed = True  # type: ignore[attr-defined]
    return report
