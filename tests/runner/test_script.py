"""`alembic ... --sql`: what is special to scripts; the rest is in stories/test_upgrade_both_ways.py."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.database import ROOT, Database, MakeDatabase
from tests.support.deadline import DEADLINE_S
from tests.support.go_runner import GO_102, run_sql, taken_by_go_to
from tests.support.horizon import stuck_writer
from tests.support.processes import read_until
from tests.support.product import event, small_world, upsert_usage, wait_until
from tests.support.roles import MakeRole, give_everything_to
from tests.support.rollup import WATERMARK
from tests.support.walks import (
    advisory_locks,
    blocked_at,
    committed_months,
    runners,
    wait_until_blocked,
    waiters,
    write_history,
)
from tests.support.ways import ALL_ALONE, psql, script
from usage_rollup.contract import MIGRATION_RUN


def start(database: Database, text: str) -> subprocess.Popen[str]:
    """Start psql on a script and return while it runs."""
    process = subprocess.Popen(
        [database.server.program("psql"), *ALL_ALONE, "-f", "-", database.url],
        env=database.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.close()
    # communicate() would write to it.
    process.stdin = None
    return process


def apply(database: Database, *arguments: str, **extra: str) -> str:
    """Make a script and run it to its end; return what psql said besides results."""
    done = psql(database, script(database, *arguments, **extra))
    assert done.returncode == 0, done.stderr
    return done.stderr


def refused(database: Database, text: str, *options: str) -> str:
    """Run a script that must fail before anything is changed; return what psql said."""
    before = database.catalog()
    done = psql(database, text, *options)
    assert done.returncode != 0, done.stdout
    assert database.catalog() == before
    return done.stderr


def slices(said: str) -> list[str]:
    return re.findall(r"INFO:  slice (\d+): ", said)


# The same end as online


def test_walk_of_a_script_takes_a_slice_a_month(v034: Database) -> None:
    months = write_history(v034)
    assert slices(apply(v034, "upgrade", "097:head")) == [str(n + 1) for n in range(len(months))]


def test_downgrade_script_takes_an_empty_database_back_to_nothing(empty: Database) -> None:
    empty.upgrade()
    apply(empty, "downgrade", "head:base")
    assert empty.value("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 2
    assert empty.revision is None


def test_script_with_nothing_to_do_is_empty(v034: Database) -> None:
    assert script(v034, "upgrade", "104:head").strip() == ""


# Sessions it may meet


def test_new_objects_of_a_script_belong_to_the_owner_of_task_usage(
    v034: Database, make_role: MakeRole
) -> None:
    owner = make_role("owner")
    give_everything_to(v034, owner)
    apply(v034, "upgrade", "097:head")
    owners = v034.execute(
        "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relname ~ '^task_usage_hourly'"
    )
    assert owners == [(owner,)]


# Where it must not begin


@pytest.mark.parametrize(
    ("point", "step", "place"),
    [
        ("empty", "097:head", "base"),
        ("v034", "head", "097"),
        ("v034", "100:head", "097"),
        ("v034", "102:head", "097"),
        ("102", "097:head", "102"),
        ("102", "101:head", "102"),
        ("102", "103:head", "102"),
        ("head", "102:head", "104"),
    ],
)
def test_script_for_another_place_is_refused(
    make_database: MakeDatabase, point: str, step: str, place: str
) -> None:
    database = make_database(point)
    said = refused(database, script(database, "upgrade", step))
    begins = step.partition(":")[0] if ":" in step else "base"
    assert f"this script begins at {begins}, and this database stands at {place}" in said
    if place == "104":
        assert "HINT:  nothing is left to upgrade" in said
    else:
        assert f"HINT:  make the script by `alembic upgrade {place}:head --sql`" in said


@pytest.mark.parametrize(
    ("point", "step", "place"), [("102", "head:097", "102"), ("v034", "head:097", "base")]
)
def test_downgrade_script_for_another_place_is_refused(
    make_database: MakeDatabase, point: str, step: str, place: str
) -> None:
    database = make_database(point)
    said = refused(database, script(database, "downgrade", step))
    assert f"this script begins at 104, and this database stands at {place}" in said
    if place == "base":
        assert "HINT:  nothing is left to downgrade" in said
    else:
        assert f"HINT:  make the script by `alembic downgrade {place}:097 --sql`" in said


def test_script_for_where_the_ledger_stands_is_refused_when_102_is_done_anew(
    make_database: MakeDatabase,
) -> None:
    stuck = taken_by_go_to(make_database, "102")
    said = refused(stuck, script(stuck, "upgrade", "102:head"))
    assert "begins at 102, and this database stands at 101" in said


def test_go_102_alone_is_no_102(make_database: MakeDatabase) -> None:
    database = make_database("101")
    run_sql(database, GO_102)
    assert "stands at 101" in refused(database, script(database, "upgrade", "102:head"))


def test_script_in_one_transaction_is_refused_at_once(v034: Database) -> None:
    # The lock is taken by a statement that commits between its attempts; only waiting shows it.
    holder = v034.connect(autocommit=True)
    holder.execute("SELECT pg_advisory_lock(7244554146635925501)")
    said = refused(v034, script(v034, "upgrade", "097:head"), *ALL_ALONE, "-1")
    assert "invalid transaction termination" in said


def test_script_is_refused_several_jobs(v034: Database) -> None:
    made = v034.run("alembic", "-x", "jobs=4", "upgrade", "097:head", "--sql")
    assert made.returncode != 0
    assert "a script has one session and cannot walk with 4 jobs" in made.stdout
    assert "BEGIN" not in made.stdout


def test_bad_option_writes_no_script(v034: Database) -> None:
    made = v034.run("alembic", "-x", "keep-legacy=perhaps", "upgrade", "097:head", "--sql")
    assert made.returncode != 0
    assert "-x keep-legacy is not true or false: 'perhaps'" in made.stdout
    assert "BEGIN" not in made.stdout


@pytest.mark.parametrize("step", ["upgrade head", "upgrade 097:head", "downgrade head:base"])
def test_no_gap_of_a_text_is_left_open(empty: Database, step: str) -> None:
    gap = re.compile(r"(?<![:\w\[]):[a-z_]+\b")
    assert gap.search("VALUES (:settings)")
    # What lies in versions/ has none to close.
    files = (ROOT / "alembic" / "versions").glob("**/*.sql")
    own = {line for path in files for line in path.read_text("utf-8").splitlines()}
    lines = [line for line in script(empty, *step.split()).splitlines() if line not in own]
    assert [line for line in lines if gap.search(line)] == []


# Failing closed


def test_client_that_goes_on_after_an_error_does_no_later_step(at_102: Database) -> None:
    write_history(at_102, 50, months=1)
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() + interval '1 day'")
    text = script(at_102, "upgrade", "102:head")
    before = at_102.catalog()
    done = psql(at_102, text, "-X")
    assert "the watermark of the hourly rollup lies in the future" in done.stderr
    assert "refusing to drop legacy daily rollups" in done.stderr
    assert "the step before this one was not done" in done.stderr
    assert at_102.catalog() == before
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")


def test_script_without_its_walk_is_stopped_by_the_guard(at_102: Database) -> None:
    write_history(at_102, 50, months=1)
    text = script(at_102, "upgrade", "102:head")
    cut = re.sub(r"DO \$backfill\$.*?\$backfill\$;", "", text, flags=re.DOTALL)
    assert cut != text
    assert "refusing to drop legacy daily rollups" in refused(at_102, cut)


def test_script_gives_way_to_a_reader_and_tells_who_it_is(v034: Database) -> None:
    reader = v034.connect()
    reader.execute('SELECT FROM "user"')
    running = start(v034, script(v034, "upgrade", "097:100"))
    said = ""
    assert running.stdout is not None
    while "waiting for table locks" not in said:
        said = running.stdout.readline()
    assert f"in the way: pid {reader.info.backend_pid} (postgres, " in said
    # Adopted, and nothing more.
    assert v034.revision == "097"
    reader.rollback()
    assert running.wait(60) == 0, running.communicate()
    assert v034.revision == "100"


# The walk


def test_killed_script_goes_on_with_the_slices_that_are_left(v034: Database) -> None:
    months = write_history(v034)
    apply(v034, "upgrade", "097:102")
    text = script(v034, "upgrade", "102:head")
    with blocked_at(v034, months[3]):
        running = start(v034, text)
        backend = wait_until_blocked(v034)
        v034.execute("SELECT pg_terminate_backend(%s)", backend)
        assert running.wait(60) != 0
    assert committed_months(v034) == months[:3]
    assert v034.revision == "102"
    assert v034.value(f"SELECT ({WATERMARK}) = 'epoch'")
    versions = dict(v034.execute("SELECT ctid, xmin::text FROM task_usage_hourly"))
    said = apply(v034, "upgrade", "102:head")
    assert len(slices(said)) == len(months) - 3
    assert versions.items() <= dict(v034.execute("SELECT ctid, xmin::text FROM task_usage_hourly")).items()


def test_script_whose_psql_was_killed_ends_and_can_be_taken_up_again(at_102: Database) -> None:
    months = write_history(at_102)
    with blocked_at(at_102, months[2]):
        running = start(at_102, script(at_102, "upgrade", "102:head"))
        wait_until_blocked(at_102)
        running.kill()
        running.wait()
    # The walk may go on to its end before the server finds nobody to tell; no step follows it.
    wait_until(lambda: runners(at_102) == 0, "the session has ended")
    assert at_102.revision == "102"
    assert advisory_locks(at_102) == []
    apply(at_102, "upgrade", "102:head")
    assert committed_months(at_102) == months


def test_script_holds_4246_from_the_walk_until_103_has_committed(at_102: Database) -> None:
    months = write_history(at_102)
    reader = at_102.connect()
    reader.execute("SELECT FROM task_usage_daily")
    with blocked_at(at_102, months[0]):
        running = start(at_102, script(at_102, "upgrade", "102:head"))
        wait_until_blocked(at_102)
        assert set(advisory_locks(at_102)) == {4246, 7244554146635925501}
        assert at_102.value("SELECT rollup_task_usage_hourly()") == 0
    # At the locks of 103 the walk and the proof are over.
    wait_until(
        lambda: at_102.value(f"SELECT ({WATERMARK}) > 'epoch'") and at_102.execute(WAITS_FOR_TABLES),
        "103 waits for its tables",
    )
    assert at_102.value("SELECT rollup_task_usage_hourly()") == 0
    reader.rollback()
    assert running.wait(60) == 0, running.communicate()
    assert at_102.revision == "104"


WAITS_FOR_TABLES = """
SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'DO $lock$%'
    AND state = 'active'
"""


def test_session_blocked_on_4246_gets_it_between_two_slices(at_102: Database) -> None:
    months = write_history(at_102)
    with blocked_at(at_102, months[1]):
        running = start(at_102, script(at_102, "upgrade", "102:head"))
        wait_until_blocked(at_102)
        # As workspace deletion does.
        deletion = start(
            at_102, "BEGIN; SELECT pg_advisory_xact_lock(4246); SELECT count(*) FROM issue; COMMIT;"
        )
        wait_until(lambda: waiters(at_102) or deletion.poll() is not None, "the deletion queues")
        assert deletion.poll() is None, deletion.communicate()
    assert deletion.wait(60) == 0
    assert running.wait(60) == 0, running.communicate()


def test_script_goes_on_only_when_whoever_got_4246_between_two_slices_gives_it_back(at_102: Database) -> None:
    months = write_history(at_102)
    with ThreadPoolExecutor(1) as pool, at_102.connect() as waiter:
        with blocked_at(at_102, months[1]):
            running = start(at_102, script(at_102, "upgrade", "102:head"))
            wait_until_blocked(at_102)
            turn = pool.submit(waiter.execute, "SELECT pg_advisory_xact_lock(4246)")
            wait_until(lambda: waiters(at_102), "a session waits for 4246")
        turn.result(timeout=DEADLINE_S)
        said = read_until(running, "waiting for advisory lock 4246")
        assert f"held by pid {waiter.info.backend_pid} " in said
        assert committed_months(at_102) == months[:2]
        waiter.commit()
    assert running.wait(60) == 0, running.communicate()
    assert committed_months(at_102) == months


def test_script_gives_4246_to_nobody_who_waits_for_that_of_another_database(
    at_102: Database, make_database: MakeDatabase
) -> None:
    months = write_history(at_102)
    # Who gives 4246 away has it again a moment later, so whoever does says so.
    at_102.execute(UNLOCKING_SAYS_SO)
    other = make_database("empty")
    with ThreadPoolExecutor(1) as pool, other.connect() as holder, other.connect() as waiter:
        holder.execute("SELECT pg_advisory_xact_lock(4246)")
        turn = pool.submit(waiter.execute, "SELECT pg_advisory_xact_lock(4246)")
        wait_until(lambda: waiters(other), "a session of another database waits for its 4246")
        said = apply(at_102, "upgrade", "102:head")
        assert waiters(other)
        holder.commit()
        turn.result(timeout=DEADLINE_S)
    assert len(slices(said)) == len(months)
    assert said.count("4246 is given back") == 1
    assert said.index("4246 is given back") > said.index("the hourly rollup matches raw usage")


# Renamed and not replaced: a built-in function is called by its number, whatever its body is.
UNLOCKING_SAYS_SO = """
ALTER FUNCTION pg_catalog.pg_advisory_unlock(bigint) RENAME TO pg_advisory_unlock_in_silence;
CREATE FUNCTION pg_catalog.pg_advisory_unlock(bigint) RETURNS boolean LANGUAGE plpgsql
AS $$ BEGIN RAISE INFO '% is given back', $1; RETURN pg_advisory_unlock_in_silence($1); END $$;
"""


def test_script_rests_between_slices_without_4246(at_102: Database) -> None:
    months = write_history(at_102)
    running = start(at_102, script(at_102, "-x", "sleep-between-slices=1h", "upgrade", "102:head"))
    wait_until(lambda: at_102.execute(RESTS) or running.poll() is not None, "the script rests")
    assert at_102.execute(RESTS), running.communicate()
    assert committed_months(at_102) == months[:1]
    assert advisory_locks(at_102) == [MIGRATION_RUN]
    # Whoever comes meanwhile need not wait.
    at_102.execute("SELECT pg_advisory_lock(4246)")
    at_102.execute(f"SELECT pg_terminate_backend(pid) FROM ({RESTS}) AS r")
    assert running.wait(60) != 0


# Once it has walked a slice, and has nobody to wait for.
RESTS = """
SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%DO $backfill$%'
    AND wait_event = 'PgSleep' AND EXISTS (SELECT FROM task_usage_hourly)
"""


def test_script_leaves_to_103_what_its_walk_has_proven_and_counted(at_102: Database) -> None:
    write_history(at_102, 50, months=1)
    text = script(at_102, "upgrade", "102:head")
    walk, end, _ = text.partition("$backfill$;")
    assert end
    left = (
        "SELECT 'left for 103: ' || concat_ws(', ',"
        " current_setting('usage_rollup.proof') = watermark_at::text,"
        " current_setting('usage_rollup.legacy_excess'))"
        " FROM public.task_usage_hourly_rollup_state"
    )
    done = psql(at_102, f"{walk}{end}\n{left};")
    assert "left for 103: t, 0" in done.stdout, done.stderr


def test_session_that_goes_on_after_a_script_holds_no_lock_of_it(at_102: Database) -> None:
    write_history(at_102, 50, months=1)
    held = (
        "SELECT 'locks left: ' || count(*) FROM pg_locks"
        " WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    )
    done = psql(at_102, f"{script(at_102, 'upgrade', '102:head')}\n{held};")
    assert "locks left: 0" in done.stdout, done.stderr
    assert at_102.revision == "104"


def test_script_stops_without_a_horizon(at_102: Database) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:20+00")
    writer = at_102.connect()
    event(writer, world)
    writer.execute("PREPARE TRANSACTION 'left'")
    said = refused(at_102, script(at_102, "upgrade", "102:head"))
    assert "no safe horizon" in said
    assert "prepared and left: prepared transaction 'left' (postgres, since 20" in said
    assert at_102.value(f"SELECT ({WATERMARK}) = 'epoch'")
    at_102.execute("COMMIT PREPARED 'left'")


def test_script_stops_when_the_watermark_cannot_follow_and_names_who_holds_it_back(at_102: Database) -> None:
    write_history(at_102, 50, months=1)
    definition = at_102.value(
        "SELECT pg_get_functiondef('task_usage_hourly_horizon(interval)'::regprocedure)"
    )
    # No test can wait until a transaction is an hour old.
    writer = stuck_writer(at_102)
    stopped = psql(at_102, script(at_102, "upgrade", "102:head"))
    assert stopped.returncode != 0
    assert "the watermark cannot follow: it trails by " in stopped.stderr
    pid = writer.info.backend_pid
    assert f"held back by pid {pid} (" in stopped.stderr
    assert f"end it: SELECT pg_terminate_backend({pid}); then run a script made by" in stopped.stderr
    assert at_102.revision == "102"
    writer.rollback()
    at_102.execute(definition)
    apply(at_102, "upgrade", "102:head")


def test_usage_reported_while_a_script_walks_is_not_passed_over(at_102: Database) -> None:
    months = write_history(at_102)
    task = at_102.value("SELECT id FROM agent_task_queue LIMIT 1")
    writer = at_102.connect()
    began = writer.execute("SELECT now()").fetchone()
    with blocked_at(at_102, months[-1]):
        running = start(at_102, script(at_102, "upgrade", "102:head"))
        wait_until_blocked(at_102)
        upsert_usage(writer, task, model="late")
        writer.commit()
    assert running.wait(60) == 0, running.communicate()
    assert began is not None
    assert at_102.value(WATERMARK) <= began[0]


def test_empty_database_starts_at_the_horizon(at_102: Database) -> None:
    apply(at_102, "upgrade", "102:head")
    assert at_102.value(f"SELECT ({WATERMARK}) > now() - interval '1 hour'")


@pytest.mark.parametrize("rest", ["0", "0.01s"])
def test_rest_between_slices_changes_nothing_else(at_102: Database, rest: str) -> None:
    months = write_history(at_102)
    said = apply(at_102, "-x", f"sleep-between-slices={rest}", "upgrade", "102:head")
    assert len(slices(said)) == len(months)
