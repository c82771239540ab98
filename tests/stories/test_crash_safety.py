"""Kill the runner or the server at every boundary: the same command, given again, ends in the same state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.crashes import (
    BOUNDARIES,
    add_orphan,
    clone_of_template,
    crash_the_server,
    final_state,
    kill_the_runner,
    server_at_102,
    stopped_at,
    undisturbed_run,
    versions,
    waits_at,
)
from tests.support.database import Database
from tests.support.deadline import DEADLINE_S
from tests.support.product import wait_until
from tests.support.server import Server
from tests.support.v034 import V034_STEMS
from usage_rollup.contract import STEMS

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("crash_safety")]

KILLS = ["SIGKILL of the runner", "crash of the server"]


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    """Return a server whose template has, besides its history, a bucket that only the proof finds."""
    with server_at_102(months=5) as server:
        add_orphan(Database(server, "template"))
        yield server


@pytest.fixture
def database(own: Server) -> Iterator[Database]:
    with clone_of_template(own) as database:
        yield database


@pytest.fixture(scope="module")
def undisturbed(own: Server) -> dict[str, Any]:
    """Return the end of a run that nothing disturbed."""
    return undisturbed_run(own)[1]


KILL: dict[str, Callable[[Database, Any], None]] = dict(
    zip(KILLS, (kill_the_runner, crash_the_server), strict=True)
)


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("name", BOUNDARIES)
def test_run_killed_at_a_boundary_ends_as_an_undisturbed_one(
    database: Database, undisturbed: dict[str, Any], name: str, kill: str
) -> None:
    boundary = BOUNDARIES[name]
    try:
        with stopped_at(database, boundary):
            # Nor does it wait for a server that is gone: tests/stories/test_outages.py has those that do.
            runner = database.spawn("alembic", "upgrade", "head", DATABASE_STARTUP_TIMEOUT="0")
            wait_until(
                lambda: waits_at(database, boundary) or runner.poll() is not None, "the run stops there"
            )
            assert runner.poll() is None, runner.communicate()
            KILL[kill](database, runner)
            printed, _ = runner.communicate(timeout=DEADLINE_S)
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


def test_undisturbed_run_is_what_it_should_be(undisturbed: dict[str, Any]) -> None:
    assert undisturbed["revision"] == "104"
    assert undisturbed["ledger"] == {*V034_STEMS, *STEMS.values()}
    assert undisturbed["legacy"] == []
    assert undisturbed["zone"] == 0
    assert undisturbed["caught up"] is True
    assert len(undisturbed["rollup"]) == 15
    assert all(row[0].year == 2025 for row in undisturbed["rollup"])
