"""`usage-rollup verify` on databases whose pipeline is the product's, and how its screen reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from tests.support.database import Database, MakeDatabase
from tests.support.deadline import DEADLINE_S
from tests.support.go_runner import taken_by_go_to
from tests.support.later_release import apply_later_release
from tests.support.product import World, event, small_world, usage
from tests.support.rollup import UNQUEUE
from tests.support.shapes import make_products
from tests.support.terminal import on_a_terminal
from tests.support.walks import wait_until_blocked, write_history
from usage_rollup.times import rfc3339

FALSIFY = (
    "UPDATE task_usage_hourly SET input_tokens = input_tokens + 1 WHERE bucket_hour = '2025-03-01 10:00+00'"
)


@pytest.fixture
def used(head: Database) -> tuple[Database, World]:
    """Return a database at head with usage in three hours, rolled up."""
    world = small_world(head.url)
    for hour in ("2025-03-01 10:15+00", "2025-03-01 12:20+00", "2025-04-01 10:25+00"):
        event(head.url, world, hour)
    head.execute("SELECT rollup_task_usage_hourly_window('-infinity', 'infinity')")
    head.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() - interval '5 minutes'")
    return head, world


@pytest.fixture(params=["D", "E"])
def products(used: tuple[Database, World], request: pytest.FixtureRequest) -> tuple[Database, World]:
    """Return a database of the product's own runner, before and after it added costs."""
    database, world = used
    return make_products(database, later=request.param == "E"), world


def test_verify_finds_the_products_rollup_equal_and_leaves_nothing_behind(
    products: tuple[Database, World],
) -> None:
    database, _ = products
    before = database.catalog()
    result = database.usage_rollup("verify")
    assert result.returncode == 0, result.stderr
    assert "the hourly rollup equals raw usage" in result.stdout
    assert database.catalog() == before
    verdict = json.loads(database.usage_rollup("verify", "--json").stdout)
    assert verdict["differences"] == verdict["set_aside"] == verdict["legacy_excess"] == []


def test_verify_finds_what_is_wrong_in_the_products_rollup(products: tuple[Database, World]) -> None:
    database, _ = products
    database.execute(FALSIFY)
    result = database.usage_rollup("verify", "--json")
    assert result.returncode == 3, result.stderr
    (difference,) = json.loads(result.stdout)["differences"]
    assert difference["hour"].startswith("2025-03-01T10:00:00")
    assert (int(difference["expected_tokens"]), int(difference["found_tokens"])) == (400, 401)
    database.execute("DELETE FROM task_usage_hourly")
    assert "hours that differ: 3" in database.usage_rollup("verify").stdout


def test_verify_judges_by_the_products_watermark_and_queue(products: tuple[Database, World]) -> None:
    database, world = products
    event(database.url, world)
    result = database.usage_rollup("verify")
    assert result.returncode == 0, result.stdout
    assert "hours pending, not judged: 1" in result.stdout

    database.execute("DELETE FROM task_usage WHERE created_at < '2025-03-01 11:00+00'")
    assert database.value("SELECT count(*) FROM task_usage_hourly_dirty") == 1
    result = database.usage_rollup("verify")
    assert result.returncode == 0, result.stdout
    assert "hours pending, not judged: 2" in result.stdout
    database.execute("DELETE FROM task_usage_hourly_dirty")
    assert database.usage_rollup("verify").returncode == 3


def test_usage_of_a_task_without_a_runtime_belongs_to_no_bucket(used: tuple[Database, World]) -> None:
    database = make_products(used[0], later=True)
    usage(
        database.url,
        database.value(
            "INSERT INTO agent_task_queue (agent_id, runtime_id, status, completed_at)"
            " VALUES (%s, NULL, 'completed', now()) RETURNING id",
            used[1].agents[0],
        ),
        "2025-03-05 10:15+00",
    )
    assert database.usage_rollup("verify").returncode == 0


def test_verify_says_which_columns_it_does_not_compare(used: tuple[Database, World]) -> None:
    database = make_products(used[0], later=False)
    assert "not compared" not in database.usage_rollup("verify").stdout
    apply_later_release(database, "213")
    assert (
        "not compared, later releases added them: cost_usd_ticks, uncosted_input_tokens,"
        in database.usage_rollup("verify").stdout
    )
    assert len(json.loads(database.usage_rollup("verify", "--json").stdout)["not_compared"]) == 5


def test_hours_that_only_the_products_pipeline_stores_stop_nothing(products: tuple[Database, World]) -> None:
    database, world = products
    event(database.url, world, "20250-03-01 10:15+00", "2025-03-01 10:15+00")
    for hour in ("20250-03-01 10:00+00", "0044-03-15 10:00+00 BC"):
        database.execute(
            "INSERT INTO task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, provider, model)"
            " SELECT %s, workspace_id, runtime_id, agent_id, provider, model"
            " FROM task_usage_hourly ORDER BY bucket_hour DESC LIMIT 1",
            hour,
        )
    result = database.usage_rollup("verify")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "the hourly rollup equals raw usage: 3 hours compared" in result.stdout


def test_the_comparison_is_of_one_snapshot(products: tuple[Database, World]) -> None:
    database, _ = products
    meanwhile = database.connect()
    meanwhile.execute("LOCK TABLE task_usage_hourly IN ACCESS EXCLUSIVE MODE")
    verifying = database.spawn("usage-rollup", "verify")
    wait_until_blocked(database)
    meanwhile.execute(FALSIFY)
    meanwhile.commit()
    output, _ = verifying.communicate(timeout=DEADLINE_S)
    assert verifying.returncode == 0, output
    # The trap: what was committed while it waited is wrong.
    assert database.usage_rollup("verify").returncode == 3


def test_all_that_is_told_is_of_that_snapshot(at_102: Database) -> None:
    event(at_102.url, small_world(at_102.url), "2025-03-01 10:15+00")
    meanwhile = at_102.connect()
    # Read when the hours have been compared, and before the legacy rollups are.
    meanwhile.execute("LOCK TABLE task_usage_hourly_set_aside")
    verifying = at_102.spawn("usage-rollup", "verify", "--json")
    wait_until_blocked(at_102)
    meanwhile.execute(
        "INSERT INTO task_usage_daily (bucket_date, workspace_id, runtime_id, provider, model, input_tokens)"
        " VALUES ('2024-02-29', gen_random_uuid(), gen_random_uuid(), 'claude', 'gone', 77)"
    )
    meanwhile.commit()
    output, _ = verifying.communicate(timeout=30)
    assert json.loads(output)["legacy_excess"] == []
    # The trap: another look finds it.
    assert len(json.loads(at_102.usage_rollup("verify", "--json").stdout)["legacy_excess"]) == 1


def test_verify_works_between_101_and_102(make_database: MakeDatabase) -> None:
    database = make_database("101")
    event(database.url, small_world(database.url), "2025-03-01 10:15+00")
    result = database.usage_rollup("verify")
    assert result.returncode == 3, result.stderr
    assert "hours pending, not judged: 1" in result.stdout


def foreign(make: MakeDatabase) -> Database:
    database = make("empty")
    database.execute("CREATE TABLE somebodys (id int)")
    return database


@pytest.mark.parametrize(
    ("make", "said", "next_step"),
    [
        (lambda make: make("empty"), "rollup in this database: empty", "makes a new database of it"),
        (lambda make: make("v034"), "rollup in this database: v0.3.4, as", "a v0.3.4 server may run until"),
        (foreign, "rollup in this database: this database holds tables but no ledger", "DATABASE_URL"),
    ],
    ids=["empty", "v034", "foreign"],
)
@pytest.mark.parametrize("command", ["verify", "backfill"])
def test_without_an_hourly_rollup_the_places_own_next_step_is_named(
    make_database: MakeDatabase,
    make: Callable[[MakeDatabase], Database],
    said: str,
    next_step: str,
    command: str,
) -> None:
    result = make(make_database).usage_rollup(command)
    assert result.returncode == 1
    assert said in result.stderr
    assert next_step in result.stderr
    assert "upgrade 102` first" not in result.stderr


def test_verify_of_a_database_that_is_stuck_at_103_says_to_upgrade(make_database: MakeDatabase) -> None:
    database = taken_by_go_to(make_database, "102")
    event(database.url, small_world(database.url), "2025-03-01 10:15+00")
    said = database.usage_rollup("verify").stdout
    assert "the watermark has never moved; roll them up: stop the product's server" in said
    assert "usage-rollup backfill" not in said


def test_verify_says_what_a_partial_backfill_left_out(at_102: Database) -> None:
    write_history(at_102)
    at_102.execute(UNQUEUE)
    assert at_102.usage_rollup("backfill", "--months-back", "2", "--force-partial").returncode == 0
    before = rfc3339(at_102.value("SELECT before_hour::text FROM task_usage_hourly_left_out"))
    said = at_102.usage_rollup("verify").stdout
    assert (
        f"mend them: usage-rollup backfill, which rolls up what a partial backfill left out before {before}"
        in said
    )
    assert json.loads(at_102.usage_rollup("verify", "--json").stdout)["left_out_before"] == before
    assert at_102.usage_rollup("backfill").returncode == 0
    assert json.loads(at_102.usage_rollup("verify", "--json").stdout)["left_out_before"] is None


@pytest.mark.parametrize("columns", [80, 140])
def test_no_number_and_no_id_is_cut_on_a_terminal(used: tuple[Database, World], columns: int) -> None:
    database, _ = used
    database.execute(
        "UPDATE task_usage SET input_tokens = 9223372036854775807 WHERE created_at < '2025-03-02'"
    )
    database.execute("DELETE FROM task_usage_hourly_invalidation")
    screen = on_a_terminal(database, "verify", columns=columns)
    assert "9,223,372,036,854,776,107" in screen
    assert "…" not in screen
    for row in database.execute("SELECT id FROM task_usage WHERE created_at < '2025-03-02'"):
        assert str(row[0]) in screen
    assert max(map(len, screen.splitlines())) <= columns
    database.execute("INSERT INTO task_usage_hourly_invalidation DEFAULT VALUES")


# Nothing to judge


def nothing_judged(database: Database, *arguments: str) -> str:
    """Verify, which must have judged nothing; return the line that says so."""
    result = database.usage_rollup("verify", *arguments)
    assert result.returncode == 3, result.stdout + result.stderr
    assert "equals" not in result.stdout
    verdict = json.loads(database.usage_rollup("verify", *arguments, "--json").stdout)
    assert (verdict["equal"], verdict["judged_hours"], verdict["differences"]) == (False, 0, [])
    return result.stdout.splitlines()[0]


@pytest.mark.parametrize("watermark", ["= '1970-01-01 00:00+00'", "= '-infinity'", None])
def test_verify_does_not_say_equals_where_the_watermark_never_moved(head: Database, watermark: str) -> None:
    event(head.url, small_world(head.url), "2025-03-01 10:15+00")
    head.execute("TRUNCATE task_usage_hourly_invalidation")
    if watermark is None:
        head.execute("DELETE FROM task_usage_hourly_rollup_state")
    else:
        head.execute(f"UPDATE task_usage_hourly_rollup_state SET watermark_at {watermark}")
    line = nothing_judged(head)
    assert line == (
        "nothing was judged: 1 hour with usage, all pending, the watermark has never moved;"
        " roll them up: usage-rollup backfill"
    )
    assert head.usage_rollup("backfill").returncode == 0
    result = head.usage_rollup("verify")
    assert (result.returncode, result.stdout.splitlines()[0]) == (
        0,
        "the hourly rollup equals raw usage: 1 hour compared",
    )


def test_verify_does_not_say_equals_where_all_is_queued(used: tuple[Database, World]) -> None:
    database, _ = used
    database.execute("INSERT INTO task_usage_hourly_invalidation DEFAULT VALUES")
    assert "3 hours with usage, all pending; the next ticks roll them up" in nothing_judged(database)
    assert database.usage_rollup("tick").returncode == 0
    assert database.usage_rollup("verify").returncode == 0


def test_verify_does_not_say_equals_beyond_the_data(used: tuple[Database, World]) -> None:
    database, _ = used
    assert nothing_judged(database, "--since", "2025-05-01") == (
        "nothing was judged: there is no usage from 2025-05-01 00:00 UTC on, the newest is of"
        " 2025-04-01 10:00 UTC; ask for an earlier time with --since"
    )
    result = database.usage_rollup("verify", "--since", "2025-04-01")
    assert result.returncode == 0
    assert "equals raw usage: 1 hour compared" in result.stdout
    database.execute("TRUNCATE task_usage_hourly_invalidation")


def test_what_is_counted_begins_where_the_question_does(used: tuple[Database, World]) -> None:
    database, world = used
    event(database.url, world)
    database.execute(
        "INSERT INTO task_usage_hourly_invalidation (bucket_hour) VALUES ('2025-03-01 10:00+00')"
    )

    def counted(*arguments: str) -> tuple[int, int]:
        verdict = json.loads(database.usage_rollup("verify", *arguments, "--json").stdout)
        return verdict["judged_hours"], verdict["pending_hours"]

    assert counted() == (2, 2)
    assert counted("--since", "2025-03-01T10:59:59") == (2, 2)
    assert counted("--since", "2025-03-01T11:00:00") == (2, 1)
    assert counted("--since", "2025-04-01") == (1, 1)


def test_hours_without_any_bucket_are_judged_too(used: tuple[Database, World]) -> None:
    database, _ = used
    database.execute("DELETE FROM task_usage_hourly WHERE bucket_hour < '2025-04-01'")
    verdict = json.loads(database.usage_rollup("verify", "--json").stdout)
    assert (verdict["judged_hours"], len(verdict["differences"])) == (3, 2)
    assert database.usage_rollup("backfill", "--repair").returncode == 0


@pytest.mark.parametrize("gone", ["task_usage", "task_usage_hourly"])
def test_newest_hour_is_one_that_reports_can_show_whichever_side_has_it(
    used: tuple[Database, World], gone: str
) -> None:
    database, world = used
    event(database.url, world, "20250-03-01 10:15+00", "2025-03-01 10:15+00")
    for change in ("SELECT 1", f"DELETE FROM {gone}"):
        database.execute(change)
        database.execute("TRUNCATE task_usage_hourly_invalidation")
        assert "the newest is of 2025-04-01 10:00 UTC" in nothing_judged(database, "--since", "2025-05-01")
    database.execute("DELETE FROM task_usage; DELETE FROM task_usage_hourly")


@pytest.mark.parametrize("since", [(), ("--since", "2025-05-01")])
def test_without_usage_there_is_nothing_to_judge_and_all_is_well(
    head: Database, since: tuple[str, ...]
) -> None:
    result = head.usage_rollup("verify", *since)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == "there is no usage, and nothing is rolled up"
    assert json.loads(head.usage_rollup("verify", *since, "--json").stdout)["equal"] is True


# More than anybody reads


def test_many_hours_are_told_by_day_after_the_advice_and_one_by_one_on_demand(
    used: tuple[Database, World],
) -> None:
    database, world = used
    with database.connect() as connection:
        for number in range(110):
            event(connection, world, f"2025-06-{1 + number // 24:02} {number % 24:02}:30+00")
    database.execute("TRUNCATE task_usage_hourly_invalidation")
    database.execute("DELETE FROM task_usage_hourly")
    result = database.usage_rollup("verify")
    assert result.returncode == 3, result.stderr
    first, *days = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert " ".join(first) == "hours that differ: 113; mend them: usage-rollup backfill --repair"
    assert ["2025-06-01", "24", "24", "0", "9,600", "0"] in days
    assert ["2025-06-05", "14", "14", "0", "5,600", "0"] in days
    assert "every hour: usage-rollup verify --all, or --json" in result.stdout
    assert "2025-06-01 10:00" not in result.stdout
    assert "2025-06-01 10:00" in database.usage_rollup("verify", "--all").stdout
    assert len(json.loads(database.usage_rollup("verify", "--json").stdout)["differences"]) == 113
    assert database.usage_rollup("backfill", "--repair").returncode == 0


# In a pipe


def test_in_a_pipe_an_hour_is_a_line_with_its_numbers_to_the_right(used: tuple[Database, World]) -> None:
    database, _ = used
    database.execute(
        "UPDATE task_usage SET input_tokens = 9223372036854775807 WHERE created_at < '2025-03-02'"
    )
    database.execute("DELETE FROM task_usage_hourly_invalidation")
    for encoding in ("utf-8", "ascii"):
        # A width that is lent to all children of a terminal is no width of a pipe.
        result = database.usage_rollup("verify", COLUMNS="40", PYTHONIOENCODING=encoding)
        assert result.returncode == 3, result.stderr
        head, *hours, _, _ = result.stdout.splitlines()
        assert all(re.match(r"20\d\d-\d\d-\d\d \d\d:00 ", hour) for hour in hours)
        ends = [hour.index("9,223,372,036,854,776,107") + len("9,223,372,036,854,776,107") for hour in hours]
        assert set(ends) == {head.index("tokens expected") + len("tokens expected")}
        for row in database.execute("SELECT id FROM task_usage WHERE created_at < '2025-03-02'"):
            assert str(row[0]) in result.stdout
    database.execute("INSERT INTO task_usage_hourly_invalidation DEFAULT VALUES")
