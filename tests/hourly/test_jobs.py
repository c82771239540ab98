"""Several sessions walk the history at once: the same end, whoever waits, writes, dies or is killed."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from random import Random
from subprocess import Popen
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from tests.support.crashes import (
    BOUNDARIES,
    Boundary,
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
from tests.support.horizon import without_margin
from tests.support.oracle import differing_hours
from tests.support.processes import finish
from tests.support.product import LONG_MODEL, project, upsert_usage, wait_until
from tests.support.server import Server
from tests.support.walks import advisory_locks, blocked_at, committed_months, runners, slices, waiters
from usage_rollup.hourly.crew import crew
from usage_rollup.session import outages

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("jobs")]

MONTHS = [datetime(2025, month, 1, tzinfo=UTC) for month in range(1, 7)]
JANUARY, FEBRUARY, APRIL = MONTHS[0], MONTHS[1], MONTHS[3]


# Sessions of the run that wait, each with the moment's statement.
BLOCKED = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = 'usage-rollup' AND wait_event_type = 'Lock' ORDER BY 1"
)

# The run's leader is the session that also holds the lock of migration runs.
HOLDERS = (
    "SELECT l.mode, count(*)::int, count(DISTINCT l.pid)::int, count(*) FILTER (WHERE l.pid IN ("
    " SELECT r.pid FROM pg_locks r WHERE r.locktype = 'advisory' AND r.granted"
    " AND (r.classid::bigint << 32 | r.objid::bigint) = 7244554146635925501))::int"
    " FROM pg_locks l WHERE l.locktype = 'advisory' AND l.classid = 0 AND l.objid = 4246 AND l.granted"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " GROUP BY l.mode"
)


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    """Return a server that may crash, and be full."""
    with server_at_102(len(MONTHS), {"max_connections": "40"}) as server:
        yield server


@pytest.fixture
def database(own: Server) -> Iterator[Database]:
    with clone_of_template(own) as database:
        yield database


@pytest.fixture(scope="module")
def undisturbed(own: Server) -> dict[str, Any]:
    """Return the end of a run with one session that nothing disturbed."""
    printed, end = undisturbed_run(own)
    assert slices(printed) == len(MONTHS)
    return end


def start(database: Database, jobs: int, **environment: str) -> Popen[str]:
    return database.spawn("alembic", "-x", f"jobs={jobs}", "upgrade", "head", **environment)


def wait_until_walked(database: Database, runner: Popen[str], *months: datetime, blocked: int) -> None:
    """Wait until `months` are committed and so many sessions of the run wait for the test."""
    wait_until(
        lambda: (
            runner.poll() is not None
            or (committed_months(database) == list(months) and len(database.execute(BLOCKED)) == blocked)
        ),
        f"{months} walked, {blocked} sessions blocked",
    )
    assert runner.poll() is None, runner.communicate()


def watermark_is_unmoved(database: Database) -> bool:
    unmoved: bool = database.value("SELECT watermark_at = 'epoch' FROM task_usage_hourly_rollup_state")
    return unmoved


# ---------------------------------------------------------------------------------------------
# The walk
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        (("alembic", "-x", "jobs=3", "upgrade", "head"), {}),
        (("alembic", "-x", "jobs=12", "upgrade", "head"), {"JOBS": "1"}),
        (("./entrypoint.sh",), {"JOBS": "2"}),
        (("alembic", "-x", "jobs=auto", "upgrade", "head"), {"JOBS": "1"}),
    ],
    ids=["option", "more sessions than slices", "entrypoint", "as many as help"],
)
def test_several_sessions_end_exactly_as_one(
    database: Database, undisturbed: dict[str, Any], command: tuple[str, ...], environment: dict[str, str]
) -> None:
    printed = finish(database.spawn(*command, **environment))
    # Every slice once: not one of them was handed to two sessions.
    assert slices(printed) == len(MONTHS)
    assert "0 rows left" in printed
    assert final_state(database) == undisturbed
    wait_until(lambda: runners(database) == 0, "every session has ended")
    assert advisory_locks(database) == []


def note_who_walks(database: Database) -> None:
    """Let the database note which session walks which slice."""
    database.execute("CREATE TABLE walkers (id serial, pid int)")
    database.execute(
        "CREATE FUNCTION note_walker() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO public.walkers (pid) VALUES (pg_backend_pid()); RETURN NULL; END'"
    )
    database.execute(
        "CREATE TRIGGER note_walker AFTER UPDATE ON task_usage_hourly_backfill"
        " FOR EACH ROW EXECUTE FUNCTION note_walker()"
    )


def walkers(database: Database) -> list[int]:
    return [row[0] for row in database.execute("SELECT pid FROM walkers ORDER BY id")]


def test_by_default_one_session_begins_and_more_go_on(
    database: Database, undisturbed: dict[str, Any]
) -> None:
    note_who_walks(database)
    finish(database.spawn("usage-rollup", "backfill", JOBS="auto"))
    first, *others = walkers(database)
    assert len(others) == len(MONTHS) - 1
    assert first not in others
    finish(start(database, 1))
    database.execute("DROP TABLE walkers; DROP FUNCTION note_walker() CASCADE")
    assert final_state(database) == undisturbed


def test_by_default_nobody_is_added_beside_a_client_at_work(
    database: Database, undisturbed: dict[str, Any]
) -> None:
    note_who_walks(database)
    at_work = database.connect(autocommit=True)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(at_work.execute, "SELECT pg_sleep(600)")
        wait_until(
            lambda: database.value(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s AND state = 'active')",
                at_work.info.backend_pid,
            ),
            "a client is at work",
        )
        finish(database.spawn("usage-rollup", "backfill", JOBS="auto"))
        at_work.cancel()
        with pytest.raises(psycopg.errors.QueryCanceled):
            working.result(timeout=DEADLINE_S)
    assert len(walkers(database)) == len(MONTHS)
    assert len({*walkers(database)}) == 1
    finish(start(database, 1))
    database.execute("DROP TABLE walkers; DROP FUNCTION note_walker() CASCADE")
    assert final_state(database) == undisturbed


def test_who_asks_for_rest_gets_one_session_though_more_would_help(
    database: Database, undisturbed: dict[str, Any]
) -> None:
    note_who_walks(database)
    finish(database.spawn("usage-rollup", "backfill", "--sleep-between-slices", "1ms", JOBS="auto"))
    assert len(walkers(database)) == len(MONTHS)
    assert len({*walkers(database)}) == 1
    finish(start(database, 1))
    database.execute("DROP TABLE walkers; DROP FUNCTION note_walker() CASCADE")
    assert final_state(database) == undisturbed


@pytest.mark.parametrize("environment", [False, True], ids=["option", "environment"])
def test_all_walk_at_once_and_each_holds_4246_shared_on_its_own_session(
    database: Database, undisturbed: dict[str, Any], environment: bool
) -> None:
    with blocked_at(database, JANUARY), blocked_at(database, APRIL):
        runner = database.spawn("./entrypoint.sh", JOBS="3") if environment else start(database, 3)
        # Two sessions wait in a slice each; with one session nothing could be committed past January.
        wait_until_walked(database, runner, *MONTHS[1:3], *MONTHS[4:], blocked=2)
        assert database.execute(HOLDERS) == [("ShareLock", 4, 4, 1)]
        assert runners(database) == 4
        before = versions(database)
        assert database.value("SELECT rollup_task_usage_hourly()") == 0
        assert watermark_is_unmoved(database)
        assert versions(database) == before
    assert slices(finish(runner)) == len(MONTHS)
    assert final_state(database) == undisturbed


def test_leader_alone_holds_4246_during_the_proof_and_exclusively(
    database: Database, undisturbed: dict[str, Any]
) -> None:
    add_orphan(database)
    proof = BOUNDARIES["during_the_proof"]
    with stopped_at(database, proof):
        runner = start(database, 3)
        wait_until(lambda: waits_at(database, proof) or runner.poll() is not None, "the proof stops")
        assert runner.poll() is None, runner.communicate()
        wait_until(lambda: runners(database) == 1, "the workers' sessions have ended")
        assert database.execute(HOLDERS) == [("ExclusiveLock", 1, 1, 1)]
        assert database.value("SELECT rollup_task_usage_hourly()") == 0
    finish(runner)
    assert final_state(database) == undisturbed


def test_watermark_moves_once_when_every_slice_is_walked(database: Database) -> None:
    database.execute(
        "CREATE TABLE public.moved AS SELECT ''::text AS held, 0 AS months, true AS leader WHERE false;"
        "CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO public.moved SELECT"
        f" h.mode, (SELECT count(DISTINCT date_trunc('month', bucket_hour)) FROM public.task_usage_hourly),"
        f" h.leaders = h.sessions FROM ({HOLDERS}) AS h (mode, locks, sessions, leaders);"
        " RETURN NULL; END$$;"
        "CREATE TRIGGER watch AFTER UPDATE ON task_usage_hourly_rollup_state FOR EACH ROW"
        " WHEN (OLD.watermark_at IS DISTINCT FROM NEW.watermark_at) EXECUTE FUNCTION watch()"
    )
    finish(start(database, 3))
    assert database.execute("SELECT * FROM moved") == [("ExclusiveLock", len(MONTHS), True)]


def test_one_bad_bucket_is_set_aside_and_the_other_slices_go_on(
    database: Database, undisturbed: dict[str, Any]
) -> None:
    with database.connect() as connection:
        # The row keeps its updated_at, which is what the walk goes by.
        connection.execute("ALTER TABLE task_usage DISABLE TRIGGER trg_tu_dirty_hourly_write")
        connection.execute(
            "UPDATE task_usage SET model = %s WHERE created_at = '2025-03-11 10:15+00'", [LONG_MODEL]
        )
        connection.execute("ALTER TABLE task_usage ENABLE TRIGGER trg_tu_dirty_hourly_write")
    printed = finish(start(database, 3))
    assert len(re.findall("is set aside", printed)) >= 1
    assert slices(printed) == len(MONTHS)
    aside = datetime(2025, 3, 11, 10, tzinfo=UTC)
    assert database.execute("SELECT bucket_hour FROM task_usage_hourly_set_aside") == [(aside,)]
    assert final_state(database)["rollup"] == [row for row in undisturbed["rollup"] if row[0] != aside]


# ---------------------------------------------------------------------------------------------
# Who waits for 4246
# ---------------------------------------------------------------------------------------------


def test_session_that_waits_for_4246_gets_it_between_slices(
    database: Database, undisturbed: dict[str, Any]
) -> None:
    waiter = database.connect()
    with ThreadPoolExecutor(1) as pool, ExitStack() as february:
        with blocked_at(database, JANUARY):
            february.enter_context(blocked_at(database, FEBRUARY))
            runner = start(database, 2)
            wait_until_walked(database, runner, blocked=2)
            turn = pool.submit(waiter.execute, "SELECT pg_advisory_xact_lock(4246)")
            wait_until(lambda: waiters(database) == 1, "a session is blocked on 4246")
        try:
            wait_until(lambda: committed_months(database) == [JANUARY], "one of the two slices has ended")
            assert not turn.done()
            february.close()
            turn.result(timeout=DEADLINE_S)
            # The session that was done first has not begun another slice in the meantime.
            assert committed_months(database) == [JANUARY, FEBRUARY]
            assert database.execute(HOLDERS) == [("ExclusiveLock", 1, 1, 0)]
            waiter.commit()
        finally:
            if not turn.done():
                waiter.cancel()
                runner.kill()
    assert slices(finish(runner)) == len(MONTHS)
    assert final_state(database) == undisturbed


def test_session_that_waits_for_4246_before_the_workers_come_does_not_stop_the_walk(
    database: Database, undisturbed: dict[str, Any]
) -> None:
    waiter = database.connect()
    with ThreadPoolExecutor(1) as pool:
        with database.connect() as obstacle:
            # The leader reads this table when it has 4246, and before anybody walks.
            obstacle.execute("LOCK TABLE task_usage_hourly_backfill")
            runner = start(database, 2)
            wait_until(lambda: database.execute(BLOCKED), "the leader waits")
            assert database.execute(HOLDERS) == [("ExclusiveLock", 1, 1, 1)]
            turn = pool.submit(waiter.execute, "SELECT pg_advisory_xact_lock(4246)")
            wait_until(lambda: waiters(database) == 1, "a session is blocked on 4246")
        try:
            # A shared lock is refused while somebody is queued for the exclusive one.
            turn.result(timeout=DEADLINE_S)
            waiter.commit()
        finally:
            if not turn.done():
                waiter.cancel()
                runner.kill()
    assert slices(finish(runner)) == len(MONTHS)
    assert final_state(database) == undisturbed


# ---------------------------------------------------------------------------------------------
# Kills
# ---------------------------------------------------------------------------------------------


def terminate_the_runner(database: Database, runner: Popen[str]) -> None:
    runner.terminate()


@pytest.mark.parametrize(
    ("kill", "status", "again"),
    [
        (kill_the_runner, -signal.SIGKILL, 2),
        (terminate_the_runner, 143, 1),
        (crash_the_server, 75, 1),
    ],
)
def test_killed_parallel_walk_resumes_with_another_number_of_sessions(
    database: Database,
    undisturbed: dict[str, Any],
    kill: Callable[[Database, Popen[str]], None],
    status: int,
    again: int,
) -> None:
    walked = [*MONTHS[1:3], *MONTHS[4:]]
    try:
        with blocked_at(database, APRIL), blocked_at(database, JANUARY):
            # A server that does not look for its clients would not notice that they are gone.
            unwatched = f"{database.url}&options=-c%20client_connection_check_interval%3D0"
            runner = start(database, 3, DATABASE_STARTUP_TIMEOUT="0", DATABASE_URL=unwatched)
            wait_until_walked(database, runner, *walked, blocked=2)
            finished = versions(database)
            kill(database, runner)
            if kill is terminate_the_runner:
                finish(runner, status)
                # What the workers ran is cancelled in the server: both obstacles are still there.
                wait_until(lambda: runners(database) == 0, "no session is left behind")
                assert advisory_locks(database) == []
    except psycopg.OperationalError:
        # The obstacles went down with the server.
        assert kill is crash_the_server
    finally:
        if kill is crash_the_server:
            # Before the server is there again, or the run would go on by itself.
            finish(runner, status)
            database.server.restart()
    if kill in {kill_the_runner, crash_the_server}:
        if kill is kill_the_runner:
            finish(runner, status)
        wait_until(lambda: runners(database) == 0, "the sessions of the killed run have ended")
    assert database.revision == "102"
    assert watermark_is_unmoved(database)
    if kill is crash_the_server:
        # Slices are committed without waiting for the disk: the last ones go with their marks.
        assert set(committed_months(database)) <= set(walked)
        finished &= versions(database)
    else:
        assert committed_months(database) == walked
    redone = len(MONTHS) - len(committed_months(database))

    printed = finish(start(database, again))
    assert "resuming the backfill" in printed
    assert slices(printed) == redone
    assert finished <= versions(database)
    assert final_state(database) == undisturbed


def test_run_after_a_killed_one_waits_for_the_slices_it_left_running(
    database: Database, undisturbed: dict[str, Any]
) -> None:
    with blocked_at(database, JANUARY), blocked_at(database, APRIL):
        # Nor does the server look whether its clients are still there.
        unwatched = f"{database.url}&options=-c%20client_connection_check_interval%3D0"
        runner = start(database, 2, DATABASE_URL=unwatched)
        # One goes on past the obstacle of the other, to the next.
        wait_until_walked(database, runner, *MONTHS[1:3], blocked=2)
        orphans = database.execute(BLOCKED)
        runner.kill()
        finish(runner, -signal.SIGKILL)
        wait_until(lambda: runners(database) == 2, "the leader's session has ended")
        second = start(database, 2)
        wait_until(
            lambda: (
                database.value(
                    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
                    " AND query LIKE '%pg_try_advisory_lock%' AND application_name = 'usage-rollup')"
                )
                or second.poll() is not None
            ),
            "the second run asks for 4246",
        )
        assert second.poll() is None, second.communicate()
        assert database.execute(BLOCKED) == orphans
        assert database.execute(HOLDERS) == [("ShareLock", 2, 2, 0)]
        assert committed_months(database) == MONTHS[1:3]
    # What the orphans were in the middle of, nobody has committed.
    assert slices(finish(second)) == len(MONTHS) - 2
    assert final_state(database) == undisturbed


# ---------------------------------------------------------------------------------------------
# A server that goes on working
# ---------------------------------------------------------------------------------------------


def test_writer_who_commits_while_several_sessions_walk_loses_nothing(database: Database) -> None:
    random = Random(4)
    tasks = [row[0] for row in database.execute("SELECT id FROM agent_task_queue ORDER BY id")]
    agents = [row[0] for row in database.execute("SELECT id FROM agent ORDER BY id")]
    issues = [row[0] for row in database.execute("SELECT id FROM issue ORDER BY id")]
    workspace = database.value("SELECT id FROM workspace LIMIT 1")
    # April keeps its own: it is where the walk is held up.
    mortal = [
        row[0] for row in database.execute("SELECT task_id FROM task_usage WHERE created_at < '2025-03-01'")
    ]
    april = Boundary("task_usage_hourly", "INSERT", "NEW.bucket_hour = '2025-04-11 10:00+00'")
    written = 0
    stop = threading.Event()

    def write() -> None:
        nonlocal written
        with database.connect() as connection:
            new_project = project(connection, workspace)
            connection.commit()
            while not stop.is_set():
                match written % 5:
                    case 0:
                        upsert_usage(connection, random.choice(tasks), tokens=written)
                    case 1:
                        connection.execute(
                            "UPDATE issue SET project_id = %s WHERE id = %s",
                            [random.choice([new_project, None]), random.choice(issues)],
                        )
                    case 2:
                        connection.execute(
                            "UPDATE agent_task_queue SET agent_id = %s WHERE id = %s",
                            [random.choice(agents), random.choice(tasks)],
                        )
                    case 3:
                        connection.execute(
                            "UPDATE task_usage SET input_tokens = %s WHERE task_id = %s",
                            [written, random.choice(tasks)],
                        )
                    case 4 if len(mortal) > 2:
                        tasks.remove(mortal[-1])
                        connection.execute("DELETE FROM agent_task_queue WHERE id = %s", [mortal.pop()])
                connection.commit()
                written += 1

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        try:
            with stopped_at(database, april):
                runner = start(database, 3)
                wait_until(
                    lambda: waits_at(database, april) or runner.poll() is not None, "a session is in April"
                )
                assert runner.poll() is None, runner.communicate()
                wait_until(
                    lambda: database.value(
                        "SELECT count(*) = 1 FROM task_usage_hourly_backfill WHERE walked_at IS NULL"
                    ),
                    "the other sessions have walked what else there is",
                )
                begun = written
                wait_until(lambda: writer.done() or written > begun + 50, "the writer goes on")
            finish(runner)
        finally:
            stop.set()
        writer.result()
    assert database.revision == "104"
    assert differing_hours(database.url) == []
    # And when nothing is excused as pending any more.
    without_margin(database)
    database.execute("SELECT rollup_task_usage_hourly()")
    assert database.value("SELECT count(*) FROM task_usage_hourly_invalidation") == 0
    assert database.value("SELECT task_usage_hourly_rollup_lag_seconds() = 0")
    assert database.value("SELECT sum(event_count) FROM task_usage_hourly") == database.value(
        "SELECT count(*) FROM task_usage"
    )
    assert database.execute("SELECT task_usage_hourly_differences()") == []


# ---------------------------------------------------------------------------------------------
# What cannot be had
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", ["0", "100", "two", "-1", "1.5"])
def test_number_of_sessions_that_is_none_is_refused_before_anything_is_changed(
    database: Database, jobs: str
) -> None:
    before = final_state(database)
    for result, way in (
        (database.alembic("-x", f"jobs={jobs}", "upgrade", "head"), "-x jobs"),
        (database.alembic("upgrade", "head", JOBS=jobs), "JOBS"),
    ):
        assert result.returncode == 255
        assert re.search(rf"{way} is not auto or 1\.\.99: '{re.escape(jobs)}'$", result.stdout, re.MULTILINE)
        assert f"there is: {way}=auto|1..99" in result.stdout
        assert "Traceback" not in result.stdout
    assert final_state(database) == before


@pytest.fixture
def walker(database: Database) -> Iterator[str]:
    """Lend a role of its own, which may log in at first."""
    name = f"walker_{database.name}"
    database.execute(f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD '{name}'")
    yield name
    wait_until(lambda: runners(database) == 0, "the role's sessions have ended")
    database.execute(f"REASSIGN OWNED BY {name} TO postgres; DROP ROLE {name}")


def test_run_goes_on_alone_where_a_second_login_is_refused(
    database: Database, undisturbed: dict[str, Any], walker: str
) -> None:
    holder = database.connect(autocommit=True)
    holder.execute("SELECT pg_advisory_lock(4246)")
    runner = start(database, 2, DATABASE_URL=database.url_of(walker))
    wait_until(lambda: "try_advisory_lock" in str(said_last(database)), "it asks for 4246")
    database.execute(f"ALTER ROLE {walker} NOLOGIN")
    holder.close()
    printed = finish(runner)
    assert "1 of 2 sessions work: " in printed
    assert final_state(database) == undisturbed


def said_last(database: Database) -> list[Any]:
    """Return the last statements of the run's sessions that are idle."""
    return database.execute(
        "SELECT query FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'usage-rollup' AND state = 'idle'"
    )


def test_what_lost_sessions_leave_is_ended_without_opening_others(
    database: Database, walker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.url_of(walker))

    def work(leader: sa.Connection) -> None:
        with crew(leader) as workers:
            assert workers.grow(2) == 2
            for session in workers.sessions:
                workers.begin(session, lambda worker: worker.scalar(sa.text("SELECT pg_sleep(600)")))
            wait_until(lambda: at_sleep(database) == 2, "both are at work")
            database.execute(f"ALTER ROLE {walker} NOLOGIN")
            database.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE query = 'SELECT pg_sleep(600)'"
            )
            wait_until(lambda: all(session.invalidated for session in workers.sessions), "both are lost")

    outages.in_session(work)


def at_sleep(database: Database) -> int:
    count: int = database.value(
        "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'"
    )
    return count


def test_server_without_room_for_all_workers_is_walked_by_those_it_takes(
    database: Database, undisturbed: dict[str, Any]
) -> None:
    filling: list[psycopg.Connection[Any]] = []
    full = False
    while not full:
        try:
            filling.append(database.connect(autocommit=True))
        except psycopg.OperationalError:
            full = True
    # Room for the leader and one of three workers.
    watching = filling.pop()
    for _ in range(2):
        filling.pop().close()
    wait_until(
        lambda: (
            watching.execute("SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL").fetchone()
            == (len(filling) + 1,)
        ),
        "two sessions have ended",
    )
    printed = finish(start(database, 3))
    assert len(re.findall("1 of 3 sessions work: .*too many clients", printed)) == 1
    for connection in (watching, *filling):
        connection.close()
    wait_until(
        lambda: database.value("SELECT count(*) = 1 FROM pg_stat_activity WHERE datid IS NOT NULL"), ""
    )
    assert slices(printed) == len(MONTHS)
    assert final_state(database) == undisturbed
