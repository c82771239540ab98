"""Usage the rollup cannot show and totals only the legacy rollups hold: named, kept, and mended; verify."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.database import NOWHERE, ROOT, Database
from tests.support.legacy import lose_raw_rows, roll_up_as_v034, where_legacy_is
from tests.support.oracle import differing_hours
from tests.support.product import LONG_MODEL, World, event, small_world, task, upsert_usage, usage
from tests.support.roles import MakeRole, give_everything_to
from tests.support.rollup import TICK, WINDOW, heal, row_versions, run_hook

UNDATED = "SELECT count(*) FROM task_usage_hourly_undated()"


TEN = datetime(2025, 3, 1, 10, tzinfo=UTC)


def buckets(database: Database) -> list[tuple[Any, ...]]:
    return database.execute(
        "SELECT bucket_hour, agent_id, input_tokens FROM task_usage_hourly ORDER BY 1, 2, 3"
    )


# One bad row stops nobody else (H18, I10)


@pytest.fixture
def absurd(v034: Database) -> tuple[Database, World]:
    """Return a v0.3.4 database in which one report of an hour has a model name that fits no bucket."""
    world = small_world(v034.url)
    event(v034.url, world, "2025-03-01 10:15+00", agent=2, issue=3)
    event(v034.url, world, "2025-03-01 10:20+00", agent=1)
    event(v034.url, world, "2025-03-01 10:25+00")
    event(v034.url, world, "2025-04-01 10:25+00")
    v034.execute(f"UPDATE task_usage SET model = '{LONG_MODEL}' WHERE created_at = '2025-03-01 10:25+00'")
    return v034, world


def test_walk_sets_a_bucket_aside_that_fits_no_row_and_goes_on(absurd: tuple[Database, World]) -> None:
    database, world = absurd
    printed = database.upgrade("102")
    assert "set aside" not in printed
    # The trap: the sum of that hour cannot be stored as it is.
    with pytest.raises(Exception, match="index row size"):
        database.execute(
            "INSERT INTO task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, provider, model)"
            f" SELECT '{TEN}', workspace_id, runtime_id, id, 'claude', '{LONG_MODEL}' FROM agent LIMIT 1"
        )
    printed = database.upgrade()
    assert "buckets that are set aside, see task_usage_hourly_set_aside: 1" in printed
    ((hour, agent, start, error),) = database.execute(
        "SELECT bucket_hour, agent_id, label_start, error FROM task_usage_hourly_set_aside"
    )
    assert (hour, agent) == (TEN, world.agents[0])
    assert start.startswith("claude/c4ca4238a0b923820dcc")
    assert len(start) == 80
    assert "index row size" in error
    assert {row[:2] for row in buckets(database)} == {
        (TEN, world.agents[1]),
        (TEN, world.agents[2]),
        (datetime(2025, 4, 1, 10, tzinfo=UTC), world.agents[0]),
    }
    assert database.revision == "104"


def test_set_aside_usage_keeps_the_legacy_rollups(absurd: tuple[Database, World]) -> None:
    database, _ = absurd
    roll_up_as_v034(database)
    printed = database.upgrade()
    assert where_legacy_is(database) == {"legacy_usage"}
    # The step, and the summary.
    told = [line for line in printed.splitlines() if "legacy_usage" in line]
    assert len(told) == 2, printed
    assert "some usage is set aside" in told[0]
    model = database.value("SELECT model FROM task_usage WHERE created_at = '2025-03-01 10:25+00'")
    kept = database.value("SELECT input_tokens FROM legacy_usage.task_usage_daily WHERE model = %s", model)
    assert kept == 100


def test_set_aside_usage_does_not_keep_the_legacy_rollups_of_who_does_not_want_them(
    absurd: tuple[Database, World],
) -> None:
    database, _ = absurd
    assert database.alembic("-x", "keep-legacy=false", "upgrade", "head").returncode == 0
    assert where_legacy_is(database) == set()
    assert database.value("SELECT count(*) FROM task_usage_hourly_set_aside") == 1


def test_tick_sets_a_bucket_aside_and_rolls_the_rest_of_its_hour_up(head: Database) -> None:
    world = small_world(head.url)
    event(head.url, world, "2025-03-01 10:15+00", agent=2, issue=3)
    event(head.url, world, "2025-03-01 10:20+00")
    head.execute(TICK)
    head.execute(f"UPDATE task_usage SET model = '{LONG_MODEL}' WHERE created_at = '2025-03-01 10:20+00'")
    event(head.url, world, "2025-03-01 10:40+00", agent=2, issue=3)
    head.execute(TICK)
    assert buckets(head) == [(TEN, world.agents[2], 200)]
    assert head.execute("SELECT bucket_hour, agent_id FROM task_usage_hourly_set_aside") == [
        (TEN, world.agents[0])
    ]
    assert head.value("SELECT count(*) FROM task_usage_hourly_invalidation") == 0

    # A row that is set aside is no difference, and verify names it.
    verdict = head.usage_rollup("verify")
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr
    assert f"set aside: 2025-03-01 10:00 agent {world.agents[0]}: index row size" in verdict.stdout


@pytest.mark.parametrize(
    "mended",
    [
        "UPDATE task_usage SET model = 'short', updated_at = now()",
        "UPDATE task_usage SET model = 'short'",
        "DELETE FROM task_usage",
    ],
)
def test_set_aside_bucket_leaves_with_the_tick_after_it_was_mended(head: Database, mended: str) -> None:
    world = small_world(head.url)
    event(head.url, world, "2025-03-01 10:15+00", agent=2, issue=3)
    event(head.url, world, "2025-03-01 10:20+00")
    head.execute(f"UPDATE task_usage SET model = '{LONG_MODEL}' WHERE created_at = '2025-03-01 10:20+00'")
    head.execute(TICK)
    assert head.value("SELECT count(*) FROM task_usage_hourly_set_aside") == 1
    # A tick of another hour leaves the report where it is.
    event(head.url, world, "2025-03-01 12:20+00")
    head.execute(TICK)
    assert head.value("SELECT count(*) FROM task_usage_hourly_set_aside") == 1

    head.execute(f"{mended} WHERE length(model) > 2000")
    # An event of now is below the watermark five minutes later; the window goes there at once.
    head.execute(WINDOW)
    assert head.value("SELECT count(*) FROM task_usage_hourly_set_aside") == 0
    models = {
        row[0] for row in head.execute("SELECT model FROM task_usage_hourly WHERE bucket_hour = %s", TEN)
    }
    assert models == {"claude-sonnet-4-5"} | ({"short"} if "short" in mended else set())
    assert differing_hours(head.url) == []


def test_sums_beyond_bigint_saturate_and_keep_nothing(v034: Database) -> None:
    world = small_world(v034.url)
    for minute in (10, 20, 30):
        event(v034.url, world, f"2025-03-01 10:{minute}+00", tokens=2**62 + 7)
    event(v034.url, world, "2025-03-01 10:15+00", agent=2, issue=3)
    with pytest.raises(Exception, match="out of range"):
        v034.execute("SELECT sum(input_tokens)::bigint FROM task_usage")
    v034.upgrade()
    assert {agent: tokens for _, agent, tokens in buckets(v034)} == {
        world.agents[0]: 2**63 - 1,
        world.agents[2]: 100,
    }
    assert v034.value("SELECT count(*) FROM task_usage_hourly_set_aside") == 0
    assert where_legacy_is(v034) == set()
    assert v034.usage_rollup("verify").returncode == 0


@pytest.mark.parametrize(
    "created_at", ["-infinity", "infinity", "20250-01-01 00:00+00", "9999-01-01 00:00+00", "0044-03-15 BC"]
)
def test_usage_dated_outside_readable_years_is_reported_and_stops_nothing(
    v034: Database, created_at: str
) -> None:
    with v034.connect(autocommit=True) as connection:
        world = small_world(connection)
        event(connection, world, "2025-03-01 10:15+00")
        absurd = event(connection, world, created_at, None)
    printed = v034.upgrade()
    assert "usage rows dated outside years 1-9998, see task_usage_hourly_undated(): 1" in printed
    assert v034.execute("SELECT usage_id FROM task_usage_hourly_undated()") == [(absurd,)]
    assert where_legacy_is(v034) == {"legacy_usage"}
    assert [row[0] for row in buckets(v034)] == [TEN]
    v034.execute(TICK)
    assert v034.usage_rollup("verify").returncode == 0

    v034.execute("UPDATE task_usage SET created_at = '2025-03-01 11:15+00' WHERE id = %s", absurd)
    v034.execute(TICK)
    assert v034.value(UNDATED) == 0
    assert [row[0].hour for row in buckets(v034)] == [10, 11]


def test_usage_dated_in_the_first_and_last_readable_year_is_rolled_up(v034: Database) -> None:
    with v034.connect(autocommit=True) as connection:
        world = small_world(connection)
        for created_at in ("0001-01-01 00:00+00", "9998-12-31 23:59+00"):
            event(connection, world, created_at, None)
    v034.upgrade()
    assert v034.value(UNDATED) == 0
    assert where_legacy_is(v034) == set()
    assert v034.value("SELECT sum(event_count) FROM task_usage_hourly") == 2


# What only the legacy rollups hold (H23)


@pytest.fixture
def used(v034: Database) -> tuple[Database, World]:
    """Return a v0.3.4 database with usage in two months, and both legacy rollups up to date."""
    world = small_world(v034.url)
    event(v034.url, world, "2025-03-01 10:15+00", agent=2, issue=3)
    event(v034.url, world, "2025-03-01 10:20+00", agent=1)
    event(v034.url, world, "2025-04-01 10:25+00")
    roll_up_as_v034(v034)
    return v034, world


def test_totals_whose_raw_rows_are_gone_are_kept_and_a_line_says_so(used: tuple[Database, World]) -> None:
    database, _ = used
    lose_raw_rows(database, "created_at < '2025-03-15'")
    printed = database.upgrade()
    # The step, and the summary.
    told = [line for line in printed.splitlines() if "legacy_usage" in line]
    assert len(told) == 2, printed
    # Two days of two workspaces, in each of the two rollups.
    assert "4 daily totals exist only there" in told[0]
    assert where_legacy_is(database) == {"legacy_usage"}
    assert database.value("SELECT count(*) FROM legacy_usage.task_usage_daily") == 3
    assert database.value("SELECT count(*) FROM legacy_usage.task_usage_dashboard_daily") == 3
    # The pipelines are gone all the same.
    assert database.value("SELECT to_regproc('public.rollup_task_usage_daily') IS NULL")
    assert (
        database.value("SELECT count(*) FROM pg_trigger WHERE tgname ~ '(dirty_rollup|dirty_dashboard)$'")
        == 0
    )
    assert database.revision == "104"


@pytest.mark.parametrize("counted", [None, ""])
def test_103_by_hand_counts_the_totals_itself(used: tuple[Database, World], counted: str | None) -> None:
    database, _ = used
    lose_raw_rows(database, "created_at < '2025-03-15'")
    database.upgrade("102")
    run_hook(database)
    # No setting, or one that an earlier transaction of the session has left empty.
    with database.connect() as session:
        if counted is not None:
            session.execute("SELECT set_config('usage_rollup.legacy_excess', %s, false)", [counted])
        told: list[str | None] = []
        session.add_notice_handler(lambda notice: told.append(notice.message_primary))
        session.execute((ROOT / "alembic" / "versions" / "103_drop_legacy_daily_rollups.up.sql").read_bytes())
    assert where_legacy_is(database) == {"legacy_usage"}
    assert told[-1] == ("the legacy rollups are kept in schema legacy_usage: 4 daily totals exist only there")


def test_totals_that_raw_usage_reproduces_are_dropped(used: tuple[Database, World]) -> None:
    database, _ = used
    printed = database.upgrade()
    assert "legacy_usage" not in printed
    assert where_legacy_is(database) == set()


@pytest.mark.parametrize(
    ("choice", "lost", "kept"),
    [("true", False, True), ("true", True, True), ("false", True, False), ("false", False, False)],
)
def test_operator_decides_whether_the_legacy_rollups_are_kept(
    used: tuple[Database, World], choice: str, lost: bool, kept: bool
) -> None:
    database, _ = used
    if lost:
        lose_raw_rows(database)
    result = database.alembic("-x", f"keep-legacy={choice}", "upgrade", "head")
    assert result.returncode == 0, result.stdout
    assert where_legacy_is(database) == ({"legacy_usage"} if kept else set())
    assert ("kept in schema legacy_usage" in result.stdout) is kept


def test_legacy_rollups_that_were_kept_once_do_not_block_a_second_upgrade(
    used: tuple[Database, World],
) -> None:
    database, _ = used
    keep = ("-x", "keep-legacy=true", "upgrade", "head")
    assert database.alembic(*keep).returncode == 0
    database.downgrade("102")
    assert where_legacy_is(database) == {"public"}
    result = database.alembic(*keep)
    assert result.returncode == 0, result.stdout
    assert "public" not in where_legacy_is(database)


def test_older_copy_that_the_way_back_left_is_kept_beside_the_new_one(
    used: tuple[Database, World],
) -> None:
    database, _ = used
    database.upgrade(KEEP_LEGACY="true")
    # Half a copy does not move back.
    database.execute("DROP TABLE legacy_usage.task_usage_dashboard_dirty")
    database.downgrade("102")
    older = database.execute("SELECT ctid, xmin FROM legacy_usage.task_usage_daily")
    for copies in (2, 3):
        database.upgrade(KEEP_LEGACY="true")
        assert where_legacy_is(database) == {
            "legacy_usage",
            *(f"legacy_usage_{n}" for n in range(2, copies + 1)),
        }
        # As somebody may have taken from the newest copy, too.
        database.execute(f"DROP TABLE legacy_usage_{copies}.task_usage_rollup_state")
        database.downgrade("102")
    assert database.execute("SELECT ctid, xmin FROM legacy_usage.task_usage_daily") == older


@pytest.mark.parametrize(
    ("there", "kept_in"),
    [
        ("CREATE TABLE legacy_usage.notes (id int)", "legacy_usage"),
        # A table cannot move to where one of its indexes would meet its name.
        (
            "CREATE TABLE legacy_usage.notes (id int CONSTRAINT task_usage_daily_pkey PRIMARY KEY)",
            "legacy_usage_2",
        ),
        ("CREATE VIEW legacy_usage.task_usage_daily AS SELECT 1", "legacy_usage_2"),
        ("CREATE SEQUENCE legacy_usage.task_usage_rollup_state", "legacy_usage_2"),
        # Nor where one of its types would.
        ("CREATE TYPE legacy_usage.task_usage_daily", "legacy_usage_2"),
        ("CREATE DOMAIN legacy_usage._task_usage_daily AS text", "legacy_usage_2"),
        ("CREATE TYPE legacy_usage.task_usage AS ENUM ()", "legacy_usage"),
    ],
)
def test_what_else_is_in_the_schema_is_in_nobodys_way_unless_it_bears_one_of_the_names(
    used: tuple[Database, World], there: str, kept_in: str
) -> None:
    database, _ = used
    database.execute("CREATE SCHEMA legacy_usage")
    database.execute(there)
    database.upgrade(KEEP_LEGACY="true")
    assert where_legacy_is(database) == {kept_in}


@pytest.mark.parametrize("granted", ["USAGE, CREATE", "USAGE", "CREATE"])
def test_schema_that_a_superuser_made_is_used_where_the_owner_may_work_in_it(
    used: tuple[Database, World], make_role: MakeRole, granted: str
) -> None:
    database, _ = used
    owner = make_role("owner")
    give_everything_to(database, owner)
    database.execute(f"CREATE SCHEMA legacy_usage; GRANT {granted} ON SCHEMA legacy_usage TO {owner}")
    database.upgrade(KEEP_LEGACY="true")
    kept = {"legacy_usage" if granted == "USAGE, CREATE" else "legacy_usage_2"}
    assert where_legacy_is(database) == kept


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("keep-legacy=maybe", "-x keep-legacy is not true or false: 'maybe'"),
        ("keep-legacy=", "-x keep-legacy is not true or false: ''"),
        ("keep-legacy", "-x keep-legacy is not true or false: ''"),
        ("keep-legacy=TRUE", "-x keep-legacy is not true or false: 'TRUE'"),
        ("keep_legacy=true", "no such option: -x keep_legacy=true"),
    ],
)
def test_unknown_option_or_value_is_refused_before_anything_changes(
    v034: Database, option: str, told: str
) -> None:
    before = v034.catalog()
    printed = v034.refused("-x", option, "upgrade", "head")
    assert told in printed
    assert "there is: -x keep-legacy=true|false" in printed
    assert v034.catalog() == before


# What a legacy rollup may hold although nothing is lost.
NO_LOSS = {
    # The runtime's day, not UTC's: 20:00 UTC is tomorrow in Kathmandu.
    "day_of_the_runtime": (
        "UPDATE agent_runtime SET timezone = 'Asia/Kathmandu';"
        " UPDATE task_usage SET created_at = created_at + interval '10 hours', updated_at = NULL"
    ),
    "zone_that_postgresql_does_not_know": "UPDATE agent_runtime SET timezone = 'Mars/Olympus'",
}
AFTER_THE_ROLLUP = {
    # Rows older than migration 082 are days of UTC, whatever the runtime's zone is today.
    "utc_day_older_than_082": (
        "UPDATE task_usage_daily SET updated_at = '2025-01-01';"
        " ALTER TABLE agent_runtime DISABLE TRIGGER USER;"
        " UPDATE agent_runtime SET timezone = 'Pacific/Apia'"
    ),
    "issue_moved": "UPDATE issue SET project_id = NULL",
    "task_moved_to_another_agent": (
        "UPDATE agent_task_queue SET agent_id = (SELECT id FROM agent a WHERE a.workspace_id ="
        " (SELECT workspace_id FROM agent b WHERE b.id = agent_task_queue.agent_id)"
        " AND a.id <> agent_task_queue.agent_id LIMIT 1)"
        " WHERE agent_id IN (SELECT id FROM agent WHERE workspace_id IN"
        " (SELECT workspace_id FROM agent GROUP BY 1 HAVING count(*) > 1))"
    ),
}


@pytest.mark.parametrize("case", [*NO_LOSS, *AFTER_THE_ROLLUP])
def test_legacy_totals_that_are_filed_otherwise_are_no_loss(v034: Database, case: str) -> None:
    world = small_world(v034.url)
    event(v034.url, world, "2025-03-01 10:15+00", agent=2, issue=3)
    event(v034.url, world, "2025-03-01 22:20+00", agent=1)
    event(v034.url, world, "2025-04-01 02:25+00")
    if case in NO_LOSS:
        v034.execute(NO_LOSS[case])
        if case != "zone_that_postgresql_does_not_know":
            roll_up_as_v034(v034)
    else:
        roll_up_as_v034(v034)
        v034.execute(AFTER_THE_ROLLUP[case])
    printed = v034.upgrade()
    assert "legacy_usage" not in printed
    assert where_legacy_is(v034) == set()


# The legacy rollups never noticed such a move, and comparing over all workspaces would let one's surplus
# hide another's loss.
def test_agents_moved_between_workspaces_make_103_keep_the_legacy_tables_to_be_safe(v034: Database) -> None:
    event(v034.url, small_world(v034.url), "2025-03-01 10:15+00")
    roll_up_as_v034(v034)
    v034.execute(
        "UPDATE agent SET workspace_id ="
        " (SELECT id FROM workspace w WHERE w.id <> agent.workspace_id LIMIT 1)"
    )
    assert "daily totals exist only there" in v034.upgrade()
    assert where_legacy_is(v034) == {"legacy_usage"}


# usage-rollup verify and backfill --repair


@pytest.fixture
def rolled_up(head: Database) -> tuple[Database, World]:
    """Return a database at head with usage in three hours, rolled up."""
    world = small_world(head.url)
    event(head.url, world, "2025-03-01 10:15+00", agent=2, issue=3)
    event(head.url, world, "2025-03-01 10:20+00", agent=1)
    event(head.url, world, "2025-03-01 12:20+00", agent=1)
    event(head.url, world, "2025-04-01 10:25+00")
    head.execute(WINDOW)
    head.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() - interval '5 minutes'")
    return head, world


def falsify(database: Database, hour: str = "2025-03-01 10:00+00") -> None:
    database.execute(
        "UPDATE task_usage_hourly SET input_tokens = input_tokens + 1 WHERE bucket_hour = %s", hour
    )


def test_verify_exits_0_when_rollup_and_raw_usage_are_equal(rolled_up: tuple[Database, World]) -> None:
    database, _ = rolled_up
    before = row_versions(database)
    result = database.usage_rollup("verify")
    assert result.returncode == 0, result.stderr
    assert "the hourly rollup equals raw usage" in result.stdout
    assert "hours pending, not judged: 0" in result.stdout
    assert row_versions(database) == before
    assert json.loads(database.usage_rollup("verify", "--json").stdout)["differences"] == []


def test_verify_exits_3_with_a_table_of_the_hours_that_differ(rolled_up: tuple[Database, World]) -> None:
    database, _ = rolled_up
    falsify(database)
    result = database.usage_rollup("verify")
    assert result.returncode == 3, result.stderr
    (row,) = [line for line in result.stdout.splitlines() if "2025-03-01 10:00" in line]
    assert re.search(r"\b2\b.*\b2\b.*\b800\b.*\b802\b", row)
    assert str(database.value("SELECT id FROM task_usage ORDER BY created_at LIMIT 1")) in row
    assert "hours that differ: 1; mend them: usage-rollup backfill --repair" in result.stdout
    heal(database)


def test_verify_prints_one_json_object(rolled_up: tuple[Database, World]) -> None:
    database, _ = rolled_up
    falsify(database)
    result = database.usage_rollup("verify", "--json")
    assert result.returncode == 3
    verdict = json.loads(result.stdout)
    (difference,) = verdict["differences"]
    assert difference["hour"].startswith("2025-03-01T10:00:00")
    assert (difference["expected_events"], difference["found_events"]) == (2, 2)
    assert (int(difference["expected_tokens"]), int(difference["found_tokens"])) == (800, 802)
    assert len(difference["usage_ids"]) == 2
    assert verdict["pending_hours"] == 0
    assert verdict["set_aside"] == verdict["legacy_excess"] == []
    heal(database)


@pytest.mark.parametrize(
    ("since", "status"),
    [
        ("2025-03-01", 3),
        ("2025-03-01T10:59:59", 3),
        ("2025-03-01T11:00:00", 0),
        ("2025-03-02", 0),
    ],
)
def test_verify_since_compares_from_that_hour_on(
    rolled_up: tuple[Database, World], since: str, status: int
) -> None:
    database, _ = rolled_up
    falsify(database)
    # The command's zone, and the server's, are not UTC.
    result = database.usage_rollup("verify", "--since", since, TZ="Asia/Kathmandu", PGTZ="Asia/Kathmandu")
    assert result.returncode == status, result.stdout
    heal(database)


@pytest.mark.parametrize("why", ["queued", "above_the_watermark"])
def test_verify_does_not_judge_what_is_pending(rolled_up: tuple[Database, World], why: str) -> None:
    database, world = rolled_up
    if why == "queued":
        database.execute("DELETE FROM task_usage WHERE created_at = '2025-03-01 12:20+00'")
    else:
        upsert_usage(database.url, task(database.url, world.agents[0]))
    result = database.usage_rollup("verify")
    assert result.returncode == 0, result.stdout
    assert "hours pending, not judged: 1" in result.stdout


def test_verify_before_102_says_what_to_do(v034: Database) -> None:
    for result in (v034.usage_rollup("verify"), v034.usage_rollup("verify", "--json")):
        assert result.returncode == 1
        assert "HINT: `usage-rollup preflight`, then `usage-rollup upgrade`" in result.stderr


def test_verify_works_beside_open_writers_for_a_role_that_may_only_read(
    rolled_up: tuple[Database, World], make_role: MakeRole
) -> None:
    database, world = rolled_up
    role = make_role("reader")
    database.execute(
        f"ALTER ROLE {role} SET default_transaction_read_only = on;"
        f" GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
    )
    writer = database.connect()
    reported = task(writer, world.agents[0])
    upsert_usage(writer, reported)
    writer.execute("DELETE FROM task_usage WHERE created_at = '2025-03-01 12:20+00'")
    ticking = database.connect()
    ticking.execute(TICK)
    before = row_versions(database)
    result = database.usage_rollup("verify", DATABASE_URL=database.url_of(role))
    assert result.returncode == 0, result.stdout + result.stderr
    assert row_versions(database) == before


def test_verify_names_what_only_the_legacy_rollups_hold(used: tuple[Database, World]) -> None:
    database, world = used
    lose_raw_rows(database, "created_at < '2025-03-15'")
    database.upgrade("102")
    run_hook(database)
    result = database.usage_rollup("verify", "--json")
    assert result.returncode == 0, result.stdout
    excess = json.loads(result.stdout)["legacy_excess"]
    assert {(x["rollup"], x["day"], x["workspace_id"]) for x in excess} == {
        (rollup, "2025-03-01", str(workspace))
        for rollup in ("task_usage_daily", "task_usage_dashboard_daily")
        for workspace in world.workspaces
    }
    assert {(int(x["legacy_tokens"]), int(x["raw_tokens"])) for x in excess} == {(400, 0)}
    assert "only in" in database.usage_rollup("verify").stdout


def test_repair_recomputes_exactly_the_hours_that_differ(rolled_up: tuple[Database, World]) -> None:
    database, _ = rolled_up
    versions = "SELECT ctid::text, xmin::text FROM task_usage_hourly WHERE bucket_hour {} %s ORDER BY 1"
    falsify(database)
    others = database.execute(versions.format("<>"), TEN)
    wrong = database.execute(versions.format("="), TEN)
    watermark = database.value("SELECT watermark_at FROM task_usage_hourly_rollup_state")
    assert database.usage_rollup("verify").returncode == 3

    result = database.usage_rollup("backfill", "--repair")
    assert result.returncode == 0, result.stderr
    assert "hours repaired: 1" in result.stdout
    assert database.execute(versions.format("<>"), TEN) == others
    assert database.execute(versions.format("="), TEN) != wrong
    assert database.value("SELECT watermark_at FROM task_usage_hourly_rollup_state") == watermark
    assert database.usage_rollup("verify").returncode == 0

    before = row_versions(database)
    assert "hours repaired: 0" in database.usage_rollup("backfill", "--repair").stdout
    assert row_versions(database) == before


def test_backfill_walks_a_rollup_that_was_never_scheduled(head: Database) -> None:
    world = small_world(head.url)
    event(head.url, world, "2025-03-01 10:15+00")
    event(head.url, world, "2025-05-01 10:15+00")
    head.execute("DELETE FROM task_usage_hourly_invalidation")
    head.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")
    result = head.usage_rollup("backfill")
    assert result.returncode == 0, result.stderr
    assert "rolled up: 2 usage rows into 2 buckets, in 1 slice\n" in result.stdout
    assert head.usage_rollup("verify").returncode == 0


@pytest.fixture
def nowhere() -> dict[str, str]:
    return {"DATABASE_URL": NOWHERE, "DATABASE_STARTUP_TIMEOUT": "0"}


@pytest.mark.parametrize("command", [("verify",), ("backfill",), ("backfill", "--repair")])
def test_exit_status_75_means_try_again(
    head: Database, nowhere: dict[str, str], command: tuple[str, ...]
) -> None:
    result = head.usage_rollup(*command, **nowhere)
    assert result.returncode == 75, result.stderr
    assert result.stderr.startswith("usage-rollup: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("command", "url"),
    [
        (("verify",), ""),
        (("verify",), "mysql://somewhere/else"),
        (("verify", "--since", "yesterday"), None),
        (("verify", "--unknown"), None),
        (("unknown",), None),
    ],
)
def test_exit_status_2_means_a_wrong_command_or_configuration(
    head: Database, command: tuple[str, ...], url: str | None
) -> None:
    result = head.usage_rollup(*command, **({} if url is None else {"DATABASE_URL": url}))
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr


@pytest.mark.parametrize("command", [("backfill",), ("backfill", "--repair")])
def test_exit_status_1_means_refused(rolled_up: tuple[Database, World], command: tuple[str, ...]) -> None:
    database, world = rolled_up
    # A trigger that spoils every repair: the rollup cannot be made to tell the truth.
    usage(database.url, task(database.url, world.agents[0]), "2025-03-05 10:15+00")
    database.execute("DELETE FROM task_usage_hourly_invalidation")
    database.execute(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN NEW.input_tokens := NEW.input_tokens + 1; RETURN NEW; END'"
    )
    database.execute(
        "CREATE TRIGGER spoil BEFORE INSERT ON task_usage_hourly FOR EACH ROW EXECUTE FUNCTION spoil()"
    )
    result = database.usage_rollup(*command)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "still differ from raw usage" in result.stderr
    database.execute("DROP TRIGGER spoil ON task_usage_hourly; DROP FUNCTION spoil()")
    assert database.usage_rollup("backfill", "--repair").returncode == 0
