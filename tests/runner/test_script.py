"""`alembic ... --sql`: scripts that psql runs to the same end as the runner itself."""

from __future__ import annotations

import re
import subprocess
from datetime import timedelta
from functools import cache
from typing import Any

import pytest

from tests.support import programs
from tests.support.database import NOWHERE, ROOT, Database, MakeDatabase
from tests.support.go_runner import GO_102, record, run_sql, taken_by_go_to, unrecord
from tests.support.oracle import differing_hours
from tests.support.product import event, small_world, upsert_usage, wait_until
from tests.support.roles import MakeRole, give_everything_to
from tests.support.rollup import WATERMARK, hourly
from tests.support.settings import HOSTILE_SETTINGS
from tests.support.v034 import V034_STEMS, generate_history
from tests.support.walks import (
    advisory_locks,
    blocked_at,
    committed_months,
    history_months,
    runners,
    wait_until_blocked,
    write_history,
)
from usage_rollup.contract import STEMS

pytestmark = pytest.mark.server

ALL_ALONE = ["-X", "-v", "ON_ERROR_STOP=1"]

LEGACY_ROWS = (
    "SELECT bucket_date, workspace_id, runtime_id, provider, model, input_tokens, event_count"
    " FROM task_usage_daily ORDER BY 1, 2, 3, 4, 5",
    "SELECT bucket_date, workspace_id, agent_id, project_id, model, input_tokens, task_count, event_count"
    " FROM task_usage_dashboard_daily ORDER BY 1, 2, 3, 4, 5",
)


def script(database: Database, *arguments: str, **extra: str) -> str:
    """Return what `alembic ... --sql` writes, made where no database can be reached."""
    return made(arguments, tuple(database.environment(**{"DATABASE_URL": NOWHERE, **extra}).items()))


@cache
def made(arguments: tuple[str, ...], environment: tuple[tuple[str, str], ...]) -> str:
    """Make a script; once only, because nothing of the database that will run it can get into it."""
    done = programs.run("alembic", (*arguments, "--sql"), cwd=ROOT, env=dict(environment), timeout_s=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def psql(
    database: Database, text: str, *options: str, user: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script as a DBA would: the first error ends it."""
    url = database.server.url(database.name, user=user, socket=True) if user else database.url
    return subprocess.run(
        [database.server.program("psql"), *(options or ALL_ALONE), "-f", "-", url],
        input=text,
        env=database.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


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


def history(*databases: Database) -> None:
    """Write the same history into each, its times included."""
    until = databases[0].value("SELECT now() - interval '10 minutes'")
    for database in databases:
        with database.connect() as connection:
            generate_history(connection, 600, months=5, agents=6, until=until)


def slices(said: str) -> list[str]:
    return re.findall(r"INFO:  slice (\d+): ", said)


def zones(database: Database) -> list[tuple[Any, ...]]:
    return database.execute("SELECT name, timezone FROM agent_runtime ORDER BY name")


# The same end as online


@pytest.mark.parametrize("steps", [["097:head"], ["097:102", "102:head"], ["097:100", "100:103", "103:104"]])
def test_upgrade_script_ends_where_the_runner_ends(make_database: MakeDatabase, steps: list[str]) -> None:
    online, offline = make_database("v034"), make_database("v034")
    history(online, offline)
    online.upgrade()
    for step in steps:
        said = apply(offline, "upgrade", step)
        assert "WARNING" not in said
    assert offline.schema() == online.schema()
    assert hourly(offline) == hourly(online) != []
    assert offline.ledger == {*V034_STEMS, *STEMS.values()}
    assert advisory_locks(offline) == []
    # The watermark is a horizon, and a later run of the runner finds nothing to do.
    assert offline.value(f"SELECT clock_timestamp() - ({WATERMARK})") >= timedelta(minutes=5)
    assert offline.value("SELECT task_usage_hourly_rollup_lag_seconds()") < 3600
    assert "Running upgrade" not in offline.upgrade()


def test_walk_of_a_script_takes_a_slice_a_month(v034: Database) -> None:
    months = write_history(v034)
    assert slices(apply(v034, "upgrade", "097:head")) == [str(n + 1) for n in range(len(months))]


def test_script_takes_over_a_database_stuck_at_103(make_database: MakeDatabase) -> None:
    stuck = taken_by_go_to(make_database, "102")
    with stuck.connect() as connection:
        generate_history(connection, 300, months=3, agents=6)
    said = refused(stuck, script(stuck, "upgrade", "102:head"))
    assert "begins at 102, and this database stands at 101" in said
    assert "HINT:  make the script by `alembic upgrade 101:head --sql`" in said
    apply(stuck, "upgrade", "101:head")
    assert stuck.revision == "104"
    assert hourly(stuck) != []


def test_script_completes_the_ledger_after_a_crash_of_the_go_runner(make_database: MakeDatabase) -> None:
    crashed = taken_by_go_to(make_database, "100")
    unrecord(crashed, STEMS["100"])
    apply(crashed, "upgrade", "100:head")
    assert crashed.ledger == {*V034_STEMS, *STEMS.values()}


def test_script_from_nothing_builds_what_the_runner_builds(make_database: MakeDatabase) -> None:
    online, offline = make_database("empty"), make_database("empty")
    online.upgrade()
    apply(offline, "upgrade", "head")
    assert offline.catalog() == online.catalog()


@pytest.mark.parametrize("target", ["102", "097"])
def test_downgrade_script_ends_where_the_runner_ends(make_database: MakeDatabase, target: str) -> None:
    online, offline = make_database("v034"), make_database("v034")
    history(online, offline)
    for database in (online, offline):
        database.upgrade()
    online.downgrade(target)
    said = apply(offline, "downgrade", f"head:{target}")
    assert "the time zone of every runtime is UTC again" in said
    assert offline.schema() == online.schema()
    for rows in LEGACY_ROWS:
        assert offline.execute(rows) == online.execute(rows) != []
    assert zones(offline) == zones(online)
    apply(offline, "upgrade", f"{target}:head")
    assert hourly(offline) != []


def test_downgrade_script_takes_an_empty_database_back_to_nothing(empty: Database) -> None:
    empty.upgrade()
    apply(empty, "downgrade", "head:base")
    assert empty.value("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 2
    assert empty.revision is None


def test_script_serves_a_database_without_a_ledger_that_this_chain_made(empty: Database) -> None:
    empty.upgrade("097")
    event(empty.url, small_world(empty.url), "2025-03-01 10:20+00")
    apply(empty, "upgrade", "097:head")
    assert empty.revision == "104"
    assert empty.value("SELECT to_regclass('public.schema_migrations')") is None


def test_options_of_the_run_travel_in_the_script(v034: Database) -> None:
    write_history(v034, 50, months=1)
    said = apply(v034, "-x", "keep-legacy=true", "upgrade", "097:head")
    assert "the legacy rollups are kept in schema legacy_usage: as asked for" in said
    assert v034.value("SELECT to_regclass('legacy_usage.task_usage_daily') IS NOT NULL")


def test_script_with_nothing_to_do_is_empty(v034: Database) -> None:
    assert script(v034, "upgrade", "104:head").strip() == ""


# Sessions it may meet


def test_settings_of_the_database_do_not_change_what_a_script_does(make_database: MakeDatabase) -> None:
    plain, hostile = make_database("v034"), make_database("v034")
    history(plain, hostile)
    for name, value in HOSTILE_SETTINGS.items():
        hostile.execute(f"ALTER DATABASE {hostile.name} SET {name} = '{value}'")
    apply(plain, "upgrade", "097:head")
    apply(hostile, "upgrade", "097:head")
    hostile.execute(f"ALTER DATABASE {hostile.name} RESET ALL")
    assert hostile.schema() == plain.schema()
    assert hourly(hostile) == hourly(plain) != []


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


def test_script_is_refused_where_alembic_version_contradicts_the_schema(at_102: Database) -> None:
    at_102.execute("UPDATE alembic_version SET version_num = '101'")
    for step in ("101:head", "102:head"):
        said = refused(at_102, script(at_102, "upgrade", step))
        assert "stands at 102, its alembic_version at 101" in said
        assert "connected to it, adopts it" in said


def test_script_names_what_is_missing_of_v034(v034: Database) -> None:
    v034.execute("DROP INDEX idx_task_usage_updated_at")
    said = refused(v034, script(v034, "upgrade", "097:head"))
    assert "not a complete v0.3.4: missing index idx_task_usage_updated_at" in said


def test_script_does_not_touch_tables_without_a_ledger(v034: Database) -> None:
    v034.execute("DROP TABLE schema_migrations")
    assert "no ledger (schema_migrations)" in refused(v034, script(v034, "upgrade", "097:head"))


def test_script_does_not_adopt_where_ledger_and_schema_contradict_each_other(v034: Database) -> None:
    record(v034, STEMS["103"])
    said = refused(v034, script(v034, "upgrade", "097:head"))
    assert f"the ledger disagrees about {STEMS['103']}" in said


def test_script_in_one_transaction_is_refused_at_once(v034: Database) -> None:
    # The lock is taken by a statement that commits between its attempts; only waiting shows it.
    holder = v034.connect(autocommit=True)
    holder.execute("SELECT pg_advisory_lock(7244554146635925501)")
    said = refused(v034, script(v034, "upgrade", "097:head"), *ALL_ALONE, "-1")
    assert "invalid transaction termination" in said


@pytest.mark.parametrize(
    ("stems", "target", "reason"),
    [
        (["105_issue_metadata", "106_more"], "head:102", "has gone on to 106_more"),
        ([], "head:base", "the product's own runner made this database"),
    ],
)
def test_downgrade_script_is_refused_as_the_runner_refuses(
    head: Database, stems: list[str], target: str, reason: str
) -> None:
    record(head, *stems)
    assert reason in refused(head, script(head, "downgrade", target))
    assert reason in head.refused("downgrade", target.partition(":")[2])


def test_downgrade_script_is_refused_over_the_products_own_pipeline(make_database: MakeDatabase) -> None:
    products = taken_by_go_to(make_database, "104")
    assert "are the product's own" in refused(products, script(products, "downgrade", "head:097"))


def test_downgrade_script_to_nothing_is_refused_over_rows(empty: Database) -> None:
    empty.upgrade()
    small_world(empty.url)
    assert "holds rows" in refused(empty, script(empty, "downgrade", "head:base"))


def test_bad_option_writes_no_script(v034: Database) -> None:
    made = v034.run("alembic", "-x", "keep-legacy=perhaps", "upgrade", "097:head", "--sql")
    assert made.returncode != 0
    assert "no such option" in made.stdout
    assert "BEGIN" not in made.stdout


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


def test_script_is_refused_while_another_migration_runs(v034: Database) -> None:
    holder = v034.connect(autocommit=True)
    holder.execute("SELECT pg_advisory_lock(7244554146635925501)")
    said = refused(v034, script(v034, "-x", "lock-timeout=0.2s", "upgrade", "097:head"))
    assert "another migration runs: advisory lock 7244554146635925501" in said
    assert f"held by pid {holder.info.backend_pid} (" in said


def test_script_is_refused_while_somebody_else_writes_the_rollup(at_102: Database) -> None:
    write_history(at_102, 50, months=1)
    holder = at_102.connect(autocommit=True)
    holder.execute("SELECT pg_advisory_lock(4246)")
    text = script(at_102, "-x", "lock-timeout=0.2s", "upgrade", "102:head")
    said = refused(at_102, text)
    assert "advisory lock 4246 (hourly rollup) was not free within 00:00:00.2" in said
    assert f"held by pid {holder.info.backend_pid} (" in said
    holder.execute("SELECT pg_advisory_unlock(4246)")
    assert psql(at_102, text).returncode == 0


def test_script_gives_way_to_a_reader_and_says_which_tables_it_wants(v034: Database) -> None:
    reader = v034.connect()
    reader.execute('SELECT FROM "user"')
    given_up = psql(v034, script(v034, "-x", "lock-timeout=0.5s", "upgrade", "097:100"))
    assert given_up.returncode != 0
    assert "could not lock in time: user" in given_up.stderr
    assert f"in the way: pid {reader.info.backend_pid} (" in given_up.stderr
    # Adopted, and nothing more.
    assert v034.revision == "097"
    running = start(v034, script(v034, "upgrade", "097:100"))
    wait_until_blocked(v034)
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
        wait_until(
            lambda: at_102.execute(QUEUED_ON_4246) or deletion.poll() is not None, "the deletion queues"
        )
        assert deletion.poll() is None, deletion.communicate()
    assert deletion.wait(60) == 0
    assert running.wait(60) == 0, running.communicate()


QUEUED_ON_4246 = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 4246 AND NOT granted"


def test_script_repairs_what_differs_before_103(at_102: Database) -> None:
    months = write_history(at_102)
    at_102.execute(
        "INSERT INTO task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, provider, model)"
        " SELECT '2020-01-01 00:00+00', workspace_id, runtime_id, id, '', 'orphan' FROM agent LIMIT 1"
    )
    said = apply(at_102, "upgrade", "102:head")
    assert "1 hours of the rollup differ from raw usage; recomputing them" in said
    assert committed_months(at_102) == history_months(at_102) == months
    assert differing_hours(at_102.url) == []


def test_script_stops_without_a_horizon(at_102: Database) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:20+00")
    writer = at_102.connect()
    event(writer, world)
    writer.execute("PREPARE TRANSACTION 'left'")
    said = refused(at_102, script(at_102, "upgrade", "102:head"))
    assert "no safe horizon" in said
    assert "prepared: left since " in said
    assert at_102.value(f"SELECT ({WATERMARK}) = 'epoch'")
    at_102.execute("COMMIT PREPARED 'left'")


def test_script_stops_when_the_watermark_cannot_follow_and_names_who_holds_it_back(at_102: Database) -> None:
    write_history(at_102, 50, months=1)
    definition = at_102.value(
        "SELECT pg_get_functiondef('task_usage_hourly_horizon(interval)'::regprocedure)"
    )
    # No test can wait until a transaction is an hour old.
    at_102.execute(definition.replace("interval '5 minutes'", "interval '3 hours'"))
    reader = at_102.connect()
    reader.execute("SELECT 1")
    stopped = psql(at_102, script(at_102, "upgrade", "102:head"))
    assert stopped.returncode != 0
    assert "the watermark cannot follow: it trails by " in stopped.stderr
    assert f"held back by pid {reader.info.backend_pid} (" in stopped.stderr
    assert at_102.revision == "102"
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


def test_go_102_alone_is_no_102(make_database: MakeDatabase) -> None:
    database = make_database("101")
    run_sql(database, GO_102)
    assert "stands at 101" in refused(database, script(database, "upgrade", "102:head"))
