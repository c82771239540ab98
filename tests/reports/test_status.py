"""`usage-rollup status`: facts at every shape and revision, holes at a glance, and whether anything ticks."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.database import NOWHERE, Database, MakeDatabase
from tests.support.go_runner import taken_by_go_to
from tests.support.horizon import begin, stuck_writer
from tests.support.pg_cron import PG_CRON
from tests.support.processes import finish
from tests.support.product import LONG_MODEL, World, event, small_world, task, upsert_usage
from tests.support.roles import MakeRole, give_everything_to
from tests.support.rollup import TICK, WINDOW, heal
from tests.support.shapes import make_products
from tests.support.terminal import ESCAPES, on_a_terminal
from tests.support.walks import wait_until_blocked
from usage_rollup.reports.status import Status, status

CAUGHT_UP = "UPDATE task_usage_hourly_rollup_state SET watermark_at = now() - interval '5 minutes'"


def read(database: Database) -> Status:
    with database.migration_connection() as connection:
        return status(connection)


def line(screen: str, label: str) -> str:
    """Return what a screen says under a label."""
    (value,) = [row.removeprefix(label).strip() for row in screen.splitlines() if row.startswith(label)]
    return value


@pytest.fixture
def used(head: Database) -> tuple[Database, World]:
    """Return a database at head with usage on four days in two months a year apart, rolled up."""
    world = small_world(head.url)
    for hour in ("2024-01-31 23:15+00", "2025-03-01 10:15+00", "2025-03-02 12:20+00", "2025-03-04 10:25+00"):
        event(head.url, world, hour)
        event(head.url, world, hour, agent=1)
    head.execute(WINDOW)
    head.execute(CAUGHT_UP)
    return head, world


@pytest.mark.parametrize(
    ("point", "revision", "place", "next_step"),
    [
        ("empty", "none", "empty", "look at DATABASE_URL"),
        ("v034", "none", "v0.3.4, as the product's own runner left it", "`usage-rollup preflight`"),
        ("101", "101", "migrated by this runner to 101_", "`usage-rollup upgrade 102`"),
        ("102", "102", "migrated by this runner to 102_", "`usage-rollup backfill` beside the v0.3.4 server"),
        ("103", "103", "migrated by this runner to 103_", "`usage-rollup upgrade`"),
        ("head", "104", "migrated by this runner to its newest revision", None),
    ],
)
def test_status_names_place_and_next_step_at_every_revision(
    make_database: MakeDatabase, point: str, revision: str, place: str, next_step: str | None
) -> None:
    database = make_database(point)
    result = database.usage_rollup("status")
    assert result.returncode == 0, result.stderr
    assert line(result.stdout, "place").startswith(place)
    assert line(result.stdout, "revision") == revision
    if next_step:
        assert next_step in line(result.stdout, "next")
    else:
        assert "\nnext" not in result.stdout
    assert [row for row in result.stdout.splitlines() if row.endswith(" -")] == []
    assert ("\nwatermark" in result.stdout) == (point not in ("empty", "v034"))
    if point in ("102", "103", "head"):
        assert line(result.stdout, "pipeline") == "ours"
        assert line(result.stdout, "lock 4246").startswith("free")
    if point != "empty":
        assert line(result.stdout, "ledger").startswith(f"{len(database.ledger)} rows, newest ")


def test_status_names_a_database_that_is_stuck_at_103_and_advises_no_backfill_with_its_functions(
    make_database: MakeDatabase,
) -> None:
    stuck = taken_by_go_to(make_database, "102")
    event(stuck.url, small_world(stuck.url), "2025-03-01 10:15+00")
    screen = stuck.usage_rollup("status").stdout
    assert line(screen, "place").startswith("stuck before 103: the product's own runner got as far as 102")
    assert "`usage-rollup upgrade`" in line(screen, "next")
    assert line(screen, "data lag").startswith("all usage there is")
    assert "usage-rollup backfill" not in screen
    assert line(screen, "ticks").startswith("not needed before 103")


@pytest.mark.parametrize(
    ("tables", "place", "next_step"),
    [
        ("schema_migrations (version bigint, dirty boolean)", "schema_migrations is not", "DATABASE_URL"),
        ("alembic_version (version_num varchar(32))", "alembic_version holds 1a2b", "VERSION_TABLE"),
        ("widget (id int)", "this database holds tables but no ledger", "point DATABASE_URL"),
        ("task_usage (id int)", "this database holds tables but no ledger", "point DATABASE_URL"),
    ],
)
def test_status_says_of_a_foreign_database_what_it_is_and_what_to_do(
    empty: Database, tables: str, place: str, next_step: str
) -> None:
    empty.execute(f"CREATE TABLE {tables}")
    if tables.startswith("alembic"):
        empty.execute("INSERT INTO alembic_version VALUES ('1a2b')")
    result = empty.usage_rollup("status")
    assert (result.returncode, result.stderr) == (0, "")
    assert line(result.stdout, "place").startswith(place)
    assert next_step in line(result.stdout, "next")
    assert "\nwatermark" not in result.stdout
    probe = empty.usage_rollup("status", "--exit-code")
    assert (probe.returncode, probe.stdout.count("\n")) == (3, 1)
    assert place in probe.stdout


@pytest.mark.parametrize("later", [False, True], ids=["D", "E"])
def test_status_reads_a_database_of_the_products_own_runner(
    used: tuple[Database, World], later: bool
) -> None:
    database = make_products(used[0], later=later)
    before = database.catalog()
    found = read(database)
    assert (found.revision, found.pipeline, found.set_aside_buckets) == (None, "the product's", None)
    assert found.newest_in_ledger == (
        "272_rollup_task_usage_hourly_xact_lock" if later else "105_issue_metadata"
    )
    assert [day.state for day in found.coverage or ()] == ["complete"] * 4
    assert database.catalog() == before


def test_lag_is_that_of_the_data_where_the_products_own_function_says_fresh(
    used: tuple[Database, World],
) -> None:
    database = make_products(used[0], later=False)
    database.execute(
        "UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch', last_run_finished_at = now()"
    )
    assert database.value("SELECT task_usage_hourly_rollup_lag_seconds()") < 60
    screen = database.usage_rollup("status").stdout
    assert line(screen, "data lag").startswith("all usage there is, the watermark has never moved")
    assert "catch up: usage-rollup backfill" in line(screen, "data lag")


@pytest.mark.parametrize(
    ("watermark", "said"),
    [
        ("'2025-03-04 10:25+00'", "none"),
        ("'2025-03-04 10:20+00'", "5 min behind the newest usage"),
        (
            "'2025-03-02 08:25+00'",
            "2 d 2 h behind the newest usage; catch up: usage-rollup backfill",
        ),
        (
            "'9000-01-01 00:00+00'",
            "not known: the watermark of the hourly rollup lies in the future: 9000-01-01 00:00:00 UTC",
        ),
        ("'infinity'", "not known: the watermark of the hourly rollup lies in the future: infinity"),
    ],
)
def test_lag_is_said_in_words(used: tuple[Database, World], watermark: str, said: str) -> None:
    database, _ = used
    database.execute(f"UPDATE task_usage_hourly_rollup_state SET watermark_at = {watermark}")
    assert line(database.usage_rollup("status").stdout, "data lag") == said


@pytest.mark.parametrize(("watermark", "stuck"), [("now() - interval '2 hours'", True), ("'epoch'", False)])
def test_status_names_who_holds_the_watermark_back_and_advises_no_backfill_that_cannot_help(
    used: tuple[Database, World], watermark: str, stuck: bool
) -> None:
    database, world = used
    event(database.url, world)
    database.execute(f"UPDATE task_usage_hourly_rollup_state SET watermark_at = {watermark}")
    writer = stuck_writer(database, application_name="the importer")
    pid = writer.info.backend_pid
    screen = database.usage_rollup("status").stdout
    assert line(screen, "held back").startswith(f"by pid {pid} (")
    assert "the importer, idle in transaction since " in line(screen, "held back")
    assert f"SELECT pg_terminate_backend({pid})" in line(screen, "held back")
    assert ("usage-rollup backfill" not in line(screen, "data lag")) == stuck
    assert ("no backfill can help" in line(screen, "data lag")) == stuck
    found = json.loads(database.usage_rollup("status", "--json").stdout)
    assert found["held_back"]["stuck"] == stuck
    writer.rollback()
    heal(database)
    database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now()")
    assert read(database).held_back is None


def test_reader_holds_nothing_back_and_is_not_named(used: tuple[Database, World]) -> None:
    database, _ = used
    stuck_writer(database).rollback()
    begin(database, "SELECT FROM task_usage")
    assert read(database).held_back is None


def test_a_hole_is_seen_at_a_glance(used: tuple[Database, World]) -> None:
    database, world = used
    event(database.url, world, "2025-03-05 10:25+00")
    database.execute("DELETE FROM task_usage_hourly WHERE bucket_hour = '2025-03-02 12:00+00'")
    database.execute(
        "DELETE FROM task_usage_hourly WHERE bucket_hour = '2025-03-01 10:00+00' AND agent_id = %s",
        world.agents[0],
    )
    result = database.usage_rollup("status")
    assert result.returncode == 0
    assert "2025-03  +X.=~.........................." in result.stdout
    assert line(result.stdout, "coverage") == "2 of 5 days with usage complete, 1 pending; holes: 1"
    assert "2025-03-01 to 2025-03-02: 1 of 4 usage rows" in result.stdout
    assert "mend them: usage-rollup backfill --repair" in result.stdout
    heal(database)
    assert "holes: none" in database.usage_rollup("status").stdout


def test_what_is_pending_in_a_day_does_not_hide_its_hole(used: tuple[Database, World]) -> None:
    database, world = used
    event(database.url, world, "2025-03-02 20:15+00")
    assert [day.state for day in read(database).coverage or ()] == [
        "complete",
        "complete",
        "pending",
        "complete",
    ]
    database.execute("DELETE FROM task_usage_hourly WHERE bucket_hour = '2025-03-02 12:00+00'")
    assert [day.state for day in read(database).coverage or ()][2] == "not rolled up"
    heal(database)


def test_a_bucket_without_raw_usage_is_a_hole_too(used: tuple[Database, World]) -> None:
    database, _ = used
    database.execute(
        "UPDATE task_usage_hourly SET bucket_hour = '2025-03-09 10:00+00'"
        " WHERE bucket_hour = '2025-03-02 12:00+00'"
    )
    screen = database.usage_rollup("status").stdout
    assert "2025-03  =X.=....+" in screen
    assert "2025-03-09: 2 of 0 usage rows" in screen
    heal(database)


def test_a_bucket_that_is_set_aside_is_no_hole_and_its_usage_is_what_to_correct(
    used: tuple[Database, World],
) -> None:
    database, world = used
    event(database.url, world, "2025-03-02 12:40+00", model=LONG_MODEL)
    event(database.url, world, "2025-03-09 12:40+00", model=LONG_MODEL)
    event(database.url, world, "2025-03-09 12:40+00", agent=1)
    database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = '2025-03-01'")
    database.execute("SELECT rollup_task_usage_hourly_window('2025-03-01', '2025-03-10')")
    database.execute(CAUGHT_UP)
    screen = database.usage_rollup("status").stdout
    assert line(screen, "coverage") == "5 of 5 days with usage complete; holes: none"
    assert line(screen, "set aside").startswith(
        "2 buckets that PostgreSQL refused to store; correct that usage"
    )
    assert "--repair" not in screen
    assert "the hourly rollup equals raw usage" in database.usage_rollup("verify").stdout
    # What else is missing from such an hour is a hole all the same.
    database.execute("DELETE FROM task_usage_hourly WHERE bucket_hour = '2025-03-09 12:00+00'")
    assert "2025-03-09: 0 of 1 usage rows" in database.usage_rollup("status").stdout
    heal(database)


def test_what_a_partial_backfill_left_out_is_said_for_ever_after(used: tuple[Database, World]) -> None:
    database, _ = used
    database.execute("DELETE FROM task_usage_hourly WHERE bucket_hour < '2025-03-02'")
    database.execute("INSERT INTO task_usage_hourly_left_out (before_hour) VALUES ('2025-03-01 00:00+00')")
    screen = database.usage_rollup("status", "--all").stdout
    assert line(screen, "left out").startswith("hours before 2025-03-01 00:00:00 UTC, on purpose by ")
    assert "2024-01  ..............................o\n" in screen
    assert "2025-03  X=.=" in screen
    assert "2 of 3 days with usage complete, 1 left out; holes: 1" in screen
    heal(database)


def test_the_strip_ends_with_the_newest_24_months_unless_asked_for_all(used: tuple[Database, World]) -> None:
    database, world = used
    event(database.url, world, "2021-06-05 10:25+00")
    # A clock that was wrong once must not push the present out of sight.
    event(database.url, world, "2199-12-31 10:25+00", "2025-03-05 10:25+00")
    database.execute(WINDOW)
    screen = database.usage_rollup("status").stdout
    assert "2021-06  " not in screen
    assert "older usage since 2021-06: usage-rollup status --all" in screen
    assert "2025-03  ==.=" in screen
    assert "2025-04 to 2199-11: no usage" in screen
    everything = database.usage_rollup("status", "--all").stdout
    assert "2021-06  ....=" in everything
    assert "2021-07 to 2023-12: no usage" in everything
    assert "2024-02 to 2025-02: no usage" in everything
    # The count is of everything, whatever is shown.
    assert (
        line(screen, "coverage")
        == line(everything, "coverage")
        == "6 of 6 days with usage complete; holes: none"
    )


def test_a_bucket_that_is_set_aside_hides_none_of_another_project(used: tuple[Database, World]) -> None:
    database, _ = used
    database.execute(
        "INSERT INTO task_usage_hourly_set_aside (bucket_hour, workspace_id, runtime_id, agent_id,"
        " project_id, label_digest, label_start, sqlstate, error)"
        " SELECT bucket_hour, workspace_id, runtime_id, agent_id, gen_random_uuid(),"
        " task_usage_hourly_label_digest(provider, model), '', '54000', 'too long'"
        " FROM task_usage_hourly"
    )
    screen = database.usage_rollup("status").stdout
    assert line(screen, "coverage").endswith("days with usage complete; holes: none")


def test_status_names_what_is_queued_set_aside_undated_and_unfinished(used: tuple[Database, World]) -> None:
    database, world = used
    database.execute("UPDATE issue SET project_id = NULL WHERE id = %s", world.issues[0])
    database.execute(
        "INSERT INTO task_usage_hourly_dirty (bucket_hour, workspace_id, runtime_id, agent_id, provider,"
        " model, enqueued_at) SELECT bucket_hour, workspace_id, runtime_id, agent_id, provider, model,"
        " '2025-03-09 10:00+00' FROM task_usage_hourly LIMIT 1"
    )
    database.execute(
        "INSERT INTO task_usage_hourly_set_aside (bucket_hour, workspace_id, runtime_id, agent_id,"
        " label_digest, label_start, sqlstate, error)"
        " VALUES ('2025-03-09 10:00+00', %s, %s, %s, '', '', '54000', 'too long')",
        world.workspaces[0],
        world.runtimes[0],
        world.agents[0],
    )
    event(database.url, world, "infinity", "2025-03-09 10:00+00")
    database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")
    database.execute("SELECT rollup_task_usage_hourly_plan(now(), 4)")
    database.execute("SELECT rollup_task_usage_hourly_slice()")
    screen = database.usage_rollup("status").stdout
    assert re.search(
        r"task_usage_hourly_dirty 1 row, [0-9]+ kB, oldest [0-9,]+ d [0-9]+ h old; it grows", screen
    )
    assert re.search(r"task_usage_hourly_invalidation 2 rows, [0-9]+ kB, oldest [0-9]+ s old\n", screen)
    assert line(screen, "set aside").startswith("1 bucket that PostgreSQL refused to store; ")
    assert line(screen, "undated").startswith("1 usage row dated outside years 1-9998, set aside too;")
    assert line(screen, "backfill").startswith("interrupted at ")


def test_status_tells_of_the_last_run_and_its_error(head: Database) -> None:
    assert line(head.usage_rollup("status").stdout, "last run") == "never"
    head.execute(TICK)
    assert "0 rows changed" in line(head.usage_rollup("status").stdout, "last run")
    # As words, whatever it looks like.
    head.execute("UPDATE task_usage_hourly_rollup_state SET last_error = 'no [bold]space[/bold] left'")
    assert "said: no [bold]space[/bold] left" in line(head.usage_rollup("status").stdout, "last run")


def test_times_are_said_to_people_in_one_way_by_every_command(used: tuple[Database, World]) -> None:
    database, _ = used
    database.execute(TICK)
    holder = database.connect(application_name="the server")
    holder.execute("SELECT pg_advisory_xact_lock(4246)")
    screens = [database.usage_rollup(command).stdout for command in ("status", "verify", "history")]
    holder.rollback()
    screens.append(database.usage_rollup("tick").stdout)
    for screen in screens:
        found = re.findall(
            r"[0-9]{4}-[0-9]{2}-[0-9]{2}.[0-9]{2}:[0-9]{2}:.*?(?=[,;)]|  | ->|$)", screen, re.M
        )
        assert found
        assert [at for at in found if not re.fullmatch("[-0-9]{10} [:0-9]{8} UTC", at)] == []
    for command in ("status", "verify", "tick"):
        report = database.usage_rollup(command, "--json").stdout
        assert re.search(r'"watermark(_after)?": "[-0-9]{10}T[:0-9]{8}Z"', report)


def test_status_names_who_holds_4246_and_waits_for_nobody(used: tuple[Database, World]) -> None:
    database, world = used
    holder = database.connect(application_name="the server")
    holder.execute("SELECT pg_advisory_xact_lock(4246)")
    holder.execute("DELETE FROM task_usage WHERE created_at < '2025-03-02'")
    upsert_usage(holder, task(holder, world.agents[0]))
    held = line(database.usage_rollup("status").stdout, "lock 4246")
    assert held.startswith(f"held by pid {holder.info.backend_pid} (")
    assert "the server, idle in transaction since " in held
    holder.rollback()


def test_status_writes_nothing_and_needs_no_more_than_reading(
    used: tuple[Database, World], make_role: MakeRole
) -> None:
    database, _ = used
    role = make_role("reader")
    database.execute(PG_CRON)
    database.execute(
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};"
        f" ALTER ROLE {role} SET default_transaction_read_only = on"
    )
    # The job table is not for this role, which is no reason to fail.
    result = database.usage_rollup("status", DATABASE_URL=database.url_of(role))
    assert result.returncode == 0, result.stderr
    assert "4 of 4 days with usage complete" in result.stdout


def test_all_that_status_tells_is_of_one_moment(used: tuple[Database, World]) -> None:
    database, _ = used
    meanwhile = database.connect()
    meanwhile.execute("LOCK TABLE task_usage_hourly_set_aside")
    process = database.spawn("usage-rollup", "status", "--json", "--max-lag", "1h")
    wait_until_blocked(database)
    # What was read before it waits, and what it waits for.
    meanwhile.execute("UPDATE task_usage_hourly_rollup_state SET last_error = 'meanwhile'")
    meanwhile.execute(
        "INSERT INTO task_usage_hourly_set_aside (bucket_hour, workspace_id, runtime_id, agent_id,"
        " label_digest, label_start, sqlstate, error) VALUES ('2025-03-09 10:00+00', gen_random_uuid(),"
        " gen_random_uuid(), gen_random_uuid(), '', '', '54000', 'too long')"
    )
    meanwhile.commit()
    found = json.loads(finish(process))
    assert (found["last_run"]["error"], found["set_aside_buckets"]) == (None, 0)
    found = read(database)
    assert found.last_run is not None
    assert (found.last_run.error, found.set_aside_buckets) == ("meanwhile", 1)


def test_status_prints_one_json_object(used: tuple[Database, World]) -> None:
    database, _ = used
    result = database.usage_rollup("status", "--json")
    assert result.returncode == 0
    found = json.loads(result.stdout)
    assert (found["revision"], found["pipeline"], found["lag_seconds"]) == ("104", "ours", 0)
    assert found["coverage"][0] == {
        "day": "2024-01-31",
        "usage_rows": 2,
        "rolled_up_rows": 2,
        "state": "complete",
    }


def test_status_exits_75_when_the_database_is_away(empty: Database) -> None:
    result = empty.usage_rollup("status", DATABASE_URL=NOWHERE, DATABASE_STARTUP_TIMEOUT="0")
    assert result.returncode == 75, result.stderr


@pytest.mark.parametrize("columns", [80, 140])
def test_the_screen_fits_a_terminal_and_is_coloured(used: tuple[Database, World], columns: int) -> None:
    database, _ = used
    database.execute("UPDATE task_usage_hourly_rollup_state SET last_error = repeat('word ', 60)")
    screen = on_a_terminal(database, "status", columns=columns, colours=True)
    assert "\x1b[32m" in screen
    # Nothing ticks here.
    assert re.search(r"ticks\b[^\n]*\x1b\[1;31mnothing ticks here", screen)
    plain = ESCAPES.sub("", screen)
    assert max(map(len, plain.splitlines())) <= columns
    assert plain.count("word") == 60
    assert "…" not in plain


@pytest.mark.parametrize(("lag", "colour"), [("61 minutes", "1;31"), ("59 minutes", "32")])
def test_a_lag_of_more_than_an_hour_is_red(used: tuple[Database, World], lag: str, colour: str) -> None:
    database, _ = used
    database.execute(
        "UPDATE task_usage_hourly_rollup_state"
        f" SET watermark_at = task_usage_hourly_latest_event() - interval '{lag}'"
    )
    screen = on_a_terminal(database, "status", columns=140, colours=True)
    assert re.search(rf"data lag\b[^\n]*\x1b\[{colour}m", screen)


def test_in_a_pipe_a_fact_is_a_line_without_escape_codes(used: tuple[Database, World]) -> None:
    database, _ = used
    database.execute("UPDATE task_usage_hourly_rollup_state SET last_error = repeat('word ', 60)")
    screen = database.usage_rollup("status").stdout
    assert "\x1b" not in screen
    assert line(screen, "last run").count("word") == 60


# Without the right to make temporary objects


@pytest.mark.parametrize("later", [False, True])
def test_without_temporary_functions_status_tells_the_rest_and_verify_what_to_grant(
    make_database: MakeDatabase, make_role: MakeRole, later: bool
) -> None:
    database = make_products(make_database("head"), later=later)
    event(database.url, small_world(database.url), "2025-03-01 10:15+00")
    owner = make_role("owner")
    give_everything_to(database, owner)
    database.execute(f"REVOKE TEMPORARY ON DATABASE {database.name} FROM PUBLIC")
    url = database.url_of(owner)
    grant = f"GRANT TEMPORARY ON DATABASE {database.name} TO {owner}"

    told = database.usage_rollup("status", DATABASE_URL=url)
    assert told.returncode == 0, told.stderr
    assert line(told.stdout, "pipeline") == "the product's"
    assert "\ndata lag" not in told.stdout
    assert "\ncoverage" not in told.stdout
    assert line(told.stdout, "not asked").endswith(grant)
    assert database.usage_rollup("tick", DATABASE_URL=url).returncode == 0
    for command in ("verify", "backfill"):
        refused = database.usage_rollup(command, DATABASE_URL=url)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"HINT: {grant}" in refused.stderr
    assert grant in database.usage_rollup("preflight", DATABASE_URL=url).stdout

    database.execute(grant)
    told = database.usage_rollup("status", DATABASE_URL=url)
    assert "not asked" not in told.stdout
    assert "\ncoverage" in told.stdout
