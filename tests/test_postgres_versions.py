"""PostgreSQL 15 to 18 are tested by running everything on each; 14 is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from tests.support.binaries import RELEASES, fetched
from tests.support.database import ROOT, Database
from tests.support.server import Server, start_server
from usage_rollup.session.opening import MINIMUM_VERSION

pytestmark = [pytest.mark.xdist_group("postgres_14")]


@pytest.fixture(scope="module")
def on_14() -> Iterator[Database]:
    with start_server(installed=fetched(14)) as server:
        yield Database(server, "postgres")


@pytest.mark.server
def test_these_tests_run_on_the_major_that_was_asked_for(server: Server) -> None:
    assert server.version // 10000 >= MINIMUM_VERSION
    if (asked := os.environ.get("PG")) and not os.environ.get("PG_BIN"):
        assert server.version // 10000 == int(asked)


def test_every_major_from_the_oldest_on_is_in_the_target_that_tests_all() -> None:
    (majors,) = re.findall(r"for major in ([\d ]+); do", (ROOT / "Makefile").read_text())
    assert [int(major) for major in majors.split()] == [
        major for major in RELEASES if major >= MINIMUM_VERSION
    ]


def test_alembic_refuses_postgresql_14_with_one_sentence_and_changes_nothing(on_14: Database) -> None:
    before = on_14.catalog()
    message = on_14.refused("upgrade", "head")
    assert message.splitlines()[0] == "FAILED: PostgreSQL 15 or newer is required, this server is 14"
    assert message.splitlines()[1].startswith("HINT: upgrade the server")
    assert on_14.catalog() == before


@pytest.mark.parametrize(
    "command",
    ["upgrade", "preflight", "backfill", "tick", "schedule", "unschedule", "verify", "check", "status"],
)
def test_command_refuses_postgresql_14_with_one_sentence(command: str, on_14: Database) -> None:
    done = on_14.usage_rollup(command)
    assert done.returncode == 1
    assert "PostgreSQL 15 or newer is required, this server is 14" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
