"""A session is lost in mid-run: the same run ends as an undisturbed one, or it says that it gave up."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.crashes import (
    BOUNDARIES,
    Boundary,
    add_orphan,
    clone_of_template,
    final_state,
    server_at_102,
    stopped_at,
    undisturbed_run,
    waits_at,
)
from tests.support.database import Database, MakeDatabase
from tests.support.outages import end_every_session, end_sessions, proxy
from tests.support.pgbouncer import pgbouncer
from tests.support.processes import finish, read_until
from tests.support.product import wait_until
from tests.support.roles import MakeRole, give_everything_to
from tests.support.server import Server
from tests.support.sessions import is_gone
from tests.support.v034 import V034_STEMS
from tests.support.walks import (
    advisory_locks,
    blocked_at,
    committed_months,
    history_months,
    runners,
    slices,
    wait_until_blocked,
    write_history,
)
from usage_rollup.contract import MIGRATION_RUN, STEMS

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("outages")]

AGAIN = "run the same command again; what was committed stays"
LOST = "the session was lost: "
OPEN_AGAIN = "a session is open again"

# What a transaction sends that records a step, or walks a slice.
STEP = re.compile(rb"(UPDATE|INSERT INTO|DELETE FROM) public.alembic_version")
SLICE = re.compile(rb"rollup_task_usage_hourly_slice")

# Sessions of the run that wait for a lock.
WAITING = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = 'usage-rollup' AND wait_event_type = 'Lock' ORDER BY 1"
)


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    """Return a server that may crash, whose template has a bucket that only the proof finds."""
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


def terminate(database: Database) -> None:
    end_sessions(database)


def restart(database: Database) -> None:
    database.server.restart()


def crash(database: Database) -> None:
    database.server.stop("immediate")
    database.server.restart()


def kill_its_backend(database: Database) -> None:
    """Kill the run's process in the server, which ends all others with it and recovers by itself."""
    pid = database.value("SELECT pid FROM pg_stat_activity WHERE application_name = 'usage-rollup'")
    os.kill(pid, signal.SIGKILL)


def survived(printed: str, losses: int = 1) -> None:
    """Insist that a run said once for each loss that it lost its session, and that it went on."""
    assert printed.count(LOST) == losses, printed
    assert printed.count(OPEN_AGAIN) == losses, printed


# An upgrade, wherever it stands


def upgrade_through(database: Database, boundary: Boundary, outage: Callable[[Database], None]) -> str:
    """Upgrade; where it comes to the boundary, have the outage. Return what was printed."""
    with stopped_at(database, boundary):
        run = database.spawn("alembic", "upgrade", "head")
        wait_until(lambda: waits_at(database, boundary) or run.poll() is not None, "the run stops there")
        assert run.poll() is None, run.communicate()
        outage(database)
    return finish(run)


@pytest.mark.parametrize("outage", [terminate, crash])
@pytest.mark.parametrize("name", BOUNDARIES)
def test_upgrade_survives_an_outage_at_every_boundary(
    database: Database, undisturbed: dict[str, Any], name: str, outage: Callable[[Database], None]
) -> None:
    survived(upgrade_through(database, BOUNDARIES[name], outage))
    assert final_state(database) == undisturbed


@pytest.mark.parametrize("outage", [restart, kill_its_backend])
@pytest.mark.parametrize(
    "name", ["before_the_commit_of_the_third_slice", "during_the_proof", "inside_103_before_its_commit"]
)
def test_upgrade_survives_a_restart_and_a_backend_that_is_killed(
    database: Database, undisturbed: dict[str, Any], name: str, outage: Callable[[Database], None]
) -> None:
    survived(upgrade_through(database, BOUNDARIES[name], outage))
    assert final_state(database) == undisturbed


def test_upgrade_survives_the_loss_of_its_session_during_analyze(
    database: Database, undisturbed: dict[str, Any]
) -> None:
    # Its statistics are missing, and to make them an index's function is called.
    database.execute(
        "CREATE FUNCTION public.waits(timestamptz) RETURNS int LANGUAGE plpgsql IMMUTABLE AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock_shared(815); RETURN 1; END'"
    )
    database.execute("CREATE INDEX slow ON public.task_usage (public.waits(created_at))")
    database.execute("DELETE FROM pg_statistic WHERE starelid = 'public.task_usage'::regclass")
    with database.connect() as obstacle:
        obstacle.execute("SELECT pg_advisory_xact_lock(815)")
        run = database.spawn("alembic", "upgrade", "head")
        wait_until(lambda: database.execute(WAITING) or run.poll() is not None, "it waits")
        pid = database.value(WAITING)
        assert database.value("SELECT query FROM pg_stat_activity WHERE pid = %s", pid).startswith("ANALYZE")
        terminate(database)
    survived(finish(run))
    database.execute("DROP INDEX slow")
    assert final_state(database) == undisturbed


@pytest.mark.parametrize("revision", sorted(STEMS)[1:])
def test_step_whose_session_is_lost_before_its_commit_is_begun_again(
    make_database: MakeDatabase, revision: str
) -> None:
    database = make_database("v034")
    at_its_ledger_row = Boundary("schema_migrations", "INSERT", f"NEW.version LIKE '{revision}%'")
    survived(upgrade_through(database, at_its_ledger_row, terminate))
    assert database.revision == "104"
    assert database.ledger == {*V034_STEMS, *STEMS.values()}


def test_session_lost_while_it_waits_for_the_lock_of_runs_waits_for_it_again(at_102: Database) -> None:
    holder = at_102.connect(autocommit=True)
    holder.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_RUN])
    run = at_102.spawn("alembic", "upgrade", "head")
    wait_until(lambda: runners(at_102) == 1, "the upgrade is connected")
    terminate(at_102)
    read_until(run, OPEN_AGAIN)
    assert at_102.revision == "102"
    holder.close()
    finish(run)
    assert at_102.revision == "104"


@pytest.mark.parametrize("target", ["101", "097"])
def test_downgrade_survives_the_loss_of_its_session_in_a_step(
    make_database: MakeDatabase, target: str
) -> None:
    database = make_database("head")
    boundary = Boundary("schema_migrations", "DELETE", "OLD.version LIKE '102%'")
    with stopped_at(database, boundary):
        run = database.spawn("alembic", "downgrade", target)
        wait_until(lambda: waits_at(database, boundary) or run.poll() is not None, "it stops in a step")
        assert run.poll() is None, run.communicate()
        assert database.revision == "102"
        terminate(database)
    survived(finish(run))
    assert database.revision == target
    assert STEMS["102"] not in database.ledger


# A commit whose reply never came


def test_upgrade_of_which_every_reply_to_a_commit_of_a_step_is_lost_ends_well(v034: Database) -> None:
    with proxy(v034) as way:
        way.lose_commit_after = STEP
        survived(finish(v034.spawn("alembic", "upgrade", "head", DATABASE_URL=way.url)), losses=6)
        assert way.commits_lost == 6
    assert v034.revision == "104"
    assert v034.ledger == {*V034_STEMS, *STEMS.values()}


def test_backfill_of_which_every_reply_to_a_commit_of_a_slice_is_lost_ends_well(at_102: Database) -> None:
    months = write_history(at_102)
    with proxy(at_102) as way:
        way.lose_commit_after, way.most_commits_lost = SLICE, len(months)
        printed = finish(at_102.spawn("usage-rollup", "backfill", DATABASE_URL=way.url))
        assert way.commits_lost == len(months)
    survived(printed, losses=len(months))
    assert committed_months(at_102) == months


@pytest.mark.parametrize(
    ("start", "command", "end"),
    [
        ("head", ("downgrade", "-1"), "103"),
        ("head", ("downgrade", "-2"), "102"),
        ("v034", ("upgrade", "+1"), "100"),
        ("102", ("upgrade", "+2"), "104"),
        ("102", ("downgrade", "102-1"), "101"),
    ],
)
def test_relative_target_is_one_place_however_often_the_session_is_lost(
    make_database: MakeDatabase, start: str, command: tuple[str, ...], end: str
) -> None:
    database = make_database(start)
    with proxy(database) as way:
        way.lose_commit_after = STEP
        finish(database.spawn("alembic", *command, DATABASE_URL=way.url))
        assert way.commits_lost >= 1
    assert database.revision == end


# Sessions that are not quite dead


def test_half_dead_session_is_ended_before_another_one_works(at_102: Database) -> None:
    months = write_history(at_102)
    with proxy(at_102) as way:
        with blocked_at(at_102, months[2]):
            run = at_102.spawn("usage-rollup", "backfill", DATABASE_URL=way.url)
            before = wait_until_blocked(at_102)
            # The server has not heard of it, and its process goes on waiting in the slice, with 4246.
            way.cut_clients()
            read_until(run, OPEN_AGAIN)
            assert is_gone(at_102, before)
            assert wait_until_blocked(at_102) != before
        finish(run)
    assert committed_months(at_102) == months


def test_half_dead_session_that_cannot_be_ended_is_waited_for(at_102: Database, make_role: MakeRole) -> None:
    months = write_history(at_102)
    owner, login = make_role("owner"), make_role("login")
    give_everything_to(at_102, owner)
    at_102.execute(f"GRANT {owner} TO {login}; ALTER ROLE {login} SET role = {owner}")
    url = at_102.url_of(login)
    with proxy(at_102) as way:
        url = way.url.replace(at_102.url.split("@")[0], url.split("@")[0])
        with blocked_at(at_102, months[2]):
            run = at_102.spawn("usage-rollup", "backfill", DATABASE_URL=url)
            before = wait_until_blocked(at_102)
            way.cut_clients()
            read_until(run, OPEN_AGAIN)
            polls = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                f" AND application_name = 'usage-rollup' AND pid <> {before}"
                " AND query LIKE '%%pg_try_advisory_lock%%'"
            )
            wait_until(lambda: at_102.value(polls), "the new session asks for 4246")
            assert not is_gone(at_102, before)
        wait_until(
            lambda: (
                at_102.value("SELECT state FROM pg_stat_activity WHERE pid = %s", before)
                == "idle in transaction"
            ),
            "the slice's statement has ended, and nobody commits it",
        )
        # Its lock keeps the new session from work, and its slice is not committed.
        assert committed_months(at_102) == months[:2]
        assert at_102.value(polls)
        way.cut_server()
        finish(run)
    assert committed_months(at_102) == months


# Several sessions


def start_with_two(database: Database) -> Any:
    return database.spawn("alembic", "-x", "jobs=2", "upgrade", "head")


@pytest.mark.parametrize("victim", ["a worker", "the leader", "all"])
def test_walk_of_two_workers_survives_the_loss_of(
    database: Database, undisturbed: dict[str, Any], victim: str
) -> None:
    months = history_months(database)
    with blocked_at(database, months[0]), blocked_at(database, months[3]):
        run = start_with_two(database)
        wait_until(lambda: len(database.execute(WAITING)) == 2 or run.poll() is not None, "both wait")
        assert run.poll() is None, run.communicate()
        if victim == "all":
            terminate(database)
        else:
            of_it = "=" if victim == "a worker" else "<>"
            which = f"wait_event_type {of_it} 'Lock'"
            database.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM (SELECT pid FROM pg_stat_activity"
                f" WHERE datname = current_database() AND application_name = 'usage-rollup' AND {which}"
                " LIMIT 1) AS one"
            )
    survived(finish(run))
    assert final_state(database) == undisturbed
    wait_until(lambda: runners(database) == 0, "every session has ended")
    assert advisory_locks(database) == []


@pytest.mark.parametrize(("limit", "others"), [(1, 0), (2, 1), (3, 2)])
def test_walk_goes_on_with_the_sessions_that_the_role_may_have(
    at_102: Database, make_role: MakeRole, limit: int, others: int
) -> None:
    months = write_history(at_102)
    owner = make_role("owner", f"CONNECTION LIMIT {limit}")
    give_everything_to(at_102, owner)
    printed = finish(
        at_102.spawn("usage-rollup", "backfill", "--jobs", "5", DATABASE_URL=at_102.url_of(owner))
    )
    assert printed.count(f"{max(1, others)} of 5 sessions work: ") == 1
    assert "too many connections for role" in printed
    assert committed_months(at_102) == months


def test_walk_goes_on_with_the_sessions_that_a_pooler_has_left(at_102: Database) -> None:
    months = write_history(at_102)
    with pgbouncer(at_102.server, pool_mode="session", default_pool_size=3) as pool:
        url = pool.url(at_102.name)
        printed = finish(at_102.spawn("usage-rollup", "backfill", "--jobs", "5", DATABASE_URL=url))
    assert printed.count("2 of 5 sessions work: ") == 1
    assert committed_months(at_102) == months


# Commands that only look, and the tick


@pytest.mark.parametrize(
    ("command", "table"),
    [
        (("usage-rollup", "verify"), "task_usage_hourly"),
        (("usage-rollup", "status"), "task_usage"),
        (("usage-rollup", "preflight"), "task_usage"),
        (("usage-rollup", "tick"), "task_usage_hourly_rollup_state"),
        (("usage-rollup", "backfill", "--repair"), "task_usage_hourly"),
        (("usage-rollup", "backfill", "--dry-run"), "task_usage"),
        (("alembic", "current"), "alembic_version"),
        (("alembic", "check"), "alembic_version"),
        (("alembic", "history", "-i"), "alembic_version"),
    ],
)
def test_command_prints_once_although_its_session_is_lost(
    head: Database, command: tuple[str, ...], table: str
) -> None:
    expected = head.run(*command)
    with head.connect() as obstacle:
        obstacle.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        run = head.spawn(*command)
        wait_until(lambda: head.execute(WAITING) or run.poll() is not None, "it waits")
        assert run.poll() is None, run.communicate()
        terminate(head)
    printed = finish(run, expected.returncode)
    survived(printed)
    # The labels; a tick's times differ.
    lines = [line[:14] for line in expected.stdout.splitlines()]
    assert [line[:14] for line in printed.splitlines() if line[:14] in lines] == lines


@pytest.mark.parametrize("command", [("current",), ("history", "-i")])
def test_command_that_lost_its_session_after_it_printed_prints_no_more(
    head: Database, command: tuple[str, ...]
) -> None:
    expected = head.run("alembic", *command)
    with proxy(head) as way:
        way.lose_commit_after, way.most_commits_lost = re.compile(rb"FROM public.alembic_version"), 1
        run = head.spawn("alembic", *command, DATABASE_URL=way.url)
        printed = finish(run)
        assert way.commits_lost == 1
    survived(printed)
    assert [line for line in printed.splitlines() if line in expected.stdout.splitlines()] == (
        expected.stdout.splitlines()
    )


def test_check_that_lost_its_session_while_it_compared_tells_each_difference_once(head: Database) -> None:
    # Of one missing table it is sure; of the other it asks the ledger, whether a later release is installed.
    missing = {"task_usage_hourly": "elsewhere", "task_usage_hourly_backfill": "elsewhere_too"}
    for name, other in missing.items():
        head.execute(f"ALTER TABLE {name} RENAME TO {other}")
    with head.connect() as obstacle:
        obstacle.execute("LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE")
        run = head.spawn("alembic", "check")
        wait_until(lambda: head.execute(WAITING) or run.poll() is not None, "it waits")
        assert run.poll() is None, run.communicate()
        terminate(head)
    printed = finish(run, 255)
    survived(printed)
    assert printed.splitlines()[-1].count("('add_table', Table('task_usage_hourly',") == 1
    for name, other in missing.items():
        head.execute(f"ALTER TABLE {other} RENAME TO {name}")


def test_tick_is_not_in_the_way_of_itself(at_102: Database) -> None:
    with proxy(at_102) as way:
        with at_102.connect() as obstacle:
            obstacle.execute("SELECT FROM task_usage_hourly_rollup_state FOR UPDATE")
            run = at_102.spawn("usage-rollup", "tick", DATABASE_URL=way.url)
            before = wait_until_blocked(at_102)
            # In the server it goes on, and holds 4246.
            way.cut_clients()
            read_until(run, OPEN_AGAIN)
            assert is_gone(at_102, before)
            wait_until_blocked(at_102)
        finish(run)


# A server that comes back as another


def test_server_that_comes_back_in_recovery_is_waited_for_until_it_is_promoted(
    database: Database, undisturbed: dict[str, Any]
) -> None:
    with blocked_at(database, history_months(database)[2]):
        run = database.spawn("alembic", "upgrade", "head")
        wait_until_blocked(database)
        database.server.restart(standby=True)
    wait_until(lambda: runners(database) == 1, "the run has a session on the standby")
    assert database.value("SELECT pg_is_in_recovery()")
    assert database.value("SELECT pg_promote()")
    survived(finish(run))
    assert final_state(database) == undisturbed


# Giving up


def test_run_whose_session_is_ended_every_time_gives_up(at_102: Database) -> None:
    months = write_history(at_102)
    with blocked_at(at_102, months[1]):
        run = at_102.spawn("usage-rollup", "upgrade", "--json")
        end_every_session(at_102, run)
        printed = finish(run, 75)
    assert AGAIN in printed
    assert "terminating connection due to administrator command (SQLSTATE 57P01)" in printed
    # Once after the first slice, and four times where nothing came after it.
    assert printed.count(LOST) == 5
    assert committed_months(at_102) == months[:1]


@pytest.mark.parametrize("command", ["upgrade", "backfill"])
def test_server_that_is_gone_for_good_is_waited_for_and_then_given_up(
    database: Database, command: str
) -> None:
    months = history_months(database)
    try:
        with blocked_at(database, months[1]):
            run = database.spawn("usage-rollup", command, "--json", DATABASE_STARTUP_TIMEOUT="2s")
            wait_until_blocked(database)
            database.server.stop()
        printed = finish(run, 75)
    finally:
        database.server.restart()
    said = json.loads(printed[printed.index("{") : printed.index("\n}\n") + 2])
    assert said["status"] == 75
    assert said["error"].startswith("the session was lost, and no other could be opened: ")
    assert said["hint"] == AGAIN
    assert "it was lost by: terminating connection" in said["detail"]
    assert slices(database.upgrade()) >= len(months) - 1


def test_signal_ends_a_run_that_waits_for_a_server(database: Database) -> None:
    with blocked_at(database, history_months(database)[1]):
        run = database.spawn("usage-rollup", "backfill")
        wait_until_blocked(database)
        database.server.stop()
        try:
            read_until(run, LOST)
            run.send_signal(signal.SIGTERM)
            finish(run, 143)
        finally:
            database.server.restart()
    database.upgrade()


# Locks that are held no longer


def test_slice_is_not_begun_without_its_lock(at_102: Database) -> None:
    months = write_history(at_102)
    lose_lock(at_102, 4246, "task_usage_hourly")
    printed = finish(at_102.spawn("usage-rollup", "backfill"), 1)
    assert "this connection goes through a pooler in transaction mode" in printed
    assert "MIGRATION_DATABASE_URL" in printed
    assert committed_months(at_102) == months[:1]
    at_102.execute("DROP FUNCTION public.lose_lock CASCADE")


def test_step_is_not_begun_without_its_lock(at_102: Database) -> None:
    lose_lock(at_102, MIGRATION_RUN, "schema_migrations")
    printed = at_102.refused()
    assert "this connection goes through a pooler in transaction mode" in printed
    assert at_102.revision == "103"


def lose_lock(database: Database, key: int, table: str) -> None:
    """Have the session that updates `table` give an advisory lock back, as if it were another session."""
    database.execute(
        "CREATE FUNCTION public.lose_lock() RETURNS trigger LANGUAGE plpgsql AS"
        f" 'BEGIN PERFORM pg_advisory_unlock({key}); RETURN NULL; END'"
    )
    database.execute(
        f"CREATE TRIGGER lose_lock AFTER INSERT OR UPDATE ON {table}"
        " FOR EACH ROW EXECUTE FUNCTION public.lose_lock()"
    )
