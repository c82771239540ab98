"""Who relied on the legacy rollups: pg_cron jobs, found by what they do, and roles that read the tables."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.database import Database
from tests.support.pg_cron import JOBS, PG_CRON
from tests.support.roles import MakeRole, give_everything_to

INSERT = "INSERT INTO cron.job (jobname, schedule, command) VALUES (%s, '*/5 * * * *', %s)"


def with_jobs(database: Database, *jobs: tuple[str | None, str]) -> None:
    database.execute(PG_CRON)
    for name, command in jobs:
        database.execute(INSERT, name, command)


def left(database: Database) -> list[tuple[str | None, str]]:
    return [(name, command) for name, _, command, _ in database.execute(JOBS)]


def warnings(printed: str, of: str) -> list[str]:
    return [line for line in printed.splitlines() if "WARN" in line and of in line]


# Jobs


@pytest.mark.parametrize("name", [None, "nightly numbers"])
@pytest.mark.parametrize(
    "command",
    [
        "SELECT rollup_task_usage_daily()",
        "select  public.rollup_task_usage_dashboard_daily ( ) ;",
        "SELECT * FROM rollup_task_usage_daily()",
        "SELECT rollup_task_usage_daily();\nSELECT rollup_task_usage_dashboard_daily();",
        "SELECT rollup_task_usage_daily_window('-infinity', 'infinity')",
    ],
)
def test_job_that_calls_a_legacy_rollup_goes_whatever_its_name(
    at_102: Database, name: str | None, command: str
) -> None:
    others = [
        ("vacuum", "VACUUM"),
        ("hourly", "SELECT rollup_task_usage_hourly()"),
        (None, "SELECT count(*) FROM task_usage_daily"),
    ]
    with_jobs(at_102, (name, command), *others)
    printed = at_102.upgrade("103")
    assert left(at_102) == others
    assert warnings(printed, "pg_cron") == []
    assert "pg_cron job hourly" in at_102.usage_rollup("status").stdout


def test_jobs_by_the_products_names_go_and_the_hourly_one_stays(at_102: Database) -> None:
    with_jobs(
        at_102,
        ("rollup_task_usage_daily", "CALL anything()"),
        ("rollup_task_usage_dashboard_daily", "SELECT rollup_task_usage_hourly()"),
    )
    printed = at_102.upgrade("103")
    # Given another command since, it is somebody's ticker.
    assert left(at_102) == [("rollup_task_usage_dashboard_daily", "SELECT rollup_task_usage_hourly()")]
    assert "rollup_task_usage_dashboard_daily, which does something else" in warnings(printed, "pg_cron")[0]


def test_job_that_does_something_else_too_or_is_not_ours_to_end_is_named_in_one_warning(
    at_102: Database,
) -> None:
    both = "SELECT rollup_task_usage_daily(); VACUUM"
    with_jobs(at_102, (None, both), ("guarded", "SELECT rollup_task_usage_daily()"))
    at_102.execute(
        "CREATE OR REPLACE FUNCTION cron.unschedule(job_id bigint) RETURNS boolean LANGUAGE plpgsql AS"
        " $$BEGIN RAISE insufficient_privilege USING MESSAGE = 'not yours'; END$$"
    )
    printed = at_102.upgrade("103")
    assert left(at_102) == [(None, both), ("guarded", "SELECT rollup_task_usage_daily()")]
    (warning,) = warnings(printed, "pg_cron")
    assert "number 1, which does something else besides; guarded (not yours)" in warning


def test_jobs_of_other_databases_stay(at_102: Database) -> None:
    # By what they do, by the product's names, by both; and one to warn of, were it here.
    others = [
        ("elsewhere", "SELECT rollup_task_usage_daily()"),
        ("rollup_task_usage_daily", "CALL anything()"),
        ("rollup_task_usage_dashboard_daily", "SELECT rollup_task_usage_dashboard_daily()"),
        (None, "SELECT rollup_task_usage_daily(); VACUUM"),
    ]
    with_jobs(at_102, *others)
    at_102.execute("UPDATE cron.job SET database = 'another'")
    at_102.execute(INSERT, "here", "SELECT rollup_task_usage_daily()")
    printed = at_102.upgrade("103")
    assert left(at_102) == others
    assert warnings(printed, "pg_cron") == []


def test_jobs_of_a_superuser_who_migrates_for_another_owner_go(at_102: Database, make_role: MakeRole) -> None:
    with_jobs(at_102, ("rollup_task_usage_daily", "SELECT rollup_task_usage_daily()"))
    # Who sees neither schema nor jobs.
    give_everything_to(at_102, make_role("owner"))
    at_102.upgrade("103")
    assert left(at_102) == []


@pytest.mark.parametrize("may_use", [True, False])
def test_owner_ends_jobs_of_its_own_where_it_may_and_is_not_stopped_where_it_may_not(
    at_102: Database, make_role: MakeRole, may_use: bool
) -> None:
    owner = make_role("owner")
    with_jobs(at_102, ("mine", "SELECT rollup_task_usage_daily()"))
    at_102.execute("UPDATE cron.job SET username = %s", owner)
    at_102.execute(INSERT, "another's", "SELECT rollup_task_usage_daily()")
    give_everything_to(at_102, owner)
    if may_use:
        at_102.execute(f"GRANT USAGE ON SCHEMA cron TO {owner}")
    at_102.upgrade("103", DATABASE_URL=at_102.url_of(owner))
    names = [name for name, _ in left(at_102)]
    assert names == ["another's"] if may_use else ["mine", "another's"]


def test_renamed_job_ticks_until_102_goes(at_102: Database) -> None:
    with_jobs(at_102, ("my ticks", "SELECT public.rollup_task_usage_hourly();"))
    assert "dashboards will not move" not in at_102.upgrade("head")
    assert "pg_cron job my ticks (*/5 * * * *)" in at_102.usage_rollup("status").stdout
    at_102.execute("UPDATE cron.job SET active = false")
    assert "nothing ticks here" in at_102.usage_rollup("status").stdout
    at_102.downgrade("101")
    assert left(at_102) == []


def test_jobs_that_do_more_than_tick_or_are_another_database_s_stay_when_102_goes(at_102: Database) -> None:
    both = "SELECT rollup_task_usage_hourly(); VACUUM"
    with_jobs(
        at_102,
        ("elsewhere", "SELECT rollup_task_usage_hourly()"),
        (None, both),
        ("nightly", both),
        ("window", "SELECT public.rollup_task_usage_hourly_window('epoch', 'infinity')"),
    )
    at_102.execute("UPDATE cron.job SET database = 'another' WHERE jobname = 'elsewhere'")
    printed = at_102.downgrade("101")
    elsewhere = ("elsewhere", "SELECT rollup_task_usage_hourly()")
    assert left(at_102) == [elsewhere, (None, both), ("nightly", both)]
    (warning,) = warnings(printed, "pg_cron")
    besides = "which does something else besides"
    assert f"will fail from now on: number 2, {besides}; nightly, {besides}; change" in warning


# Roles


def may_read(database: Database, role: str) -> bool:
    with database.connect(user=role, password=role) as session:
        try:
            session.execute("SELECT count(*) FROM task_usage_hourly")
        except psycopg.errors.InsufficientPrivilege:
            return False
    return True


def test_who_could_read_a_legacy_rollup_reads_the_hourly_one(at_102: Database, make_role: MakeRole) -> None:
    owner, reader, granter, stranger = (
        make_role(name) for name in ("owner", "reader", "granter", "stranger")
    )
    at_102.execute(
        f"GRANT SELECT, INSERT ON task_usage_daily TO {reader};"
        f"GRANT SELECT ON task_usage_dashboard_daily TO {granter} WITH GRANT OPTION;"
        f"GRANT INSERT ON task_usage_daily TO {stranger};"
    )
    give_everything_to(at_102, owner)
    assert not may_read(at_102, reader)
    printed = at_102.upgrade("103")
    assert may_read(at_102, reader)
    assert not may_read(at_102, stranger)
    with at_102.connect(user=granter, password=granter) as session:
        session.execute(f"GRANT SELECT ON task_usage_hourly TO {stranger}")
    assert may_read(at_102, stranger)
    granted = "SELECT has_table_privilege(%s, 'task_usage_hourly', 'INSERT')"
    assert at_102.value(granted, reader) is False
    assert warnings(printed, "roles") == []


def test_everybody_who_could_read_a_legacy_rollup_still_may(at_102: Database, make_role: MakeRole) -> None:
    reader = make_role("reader")
    at_102.execute("GRANT SELECT ON task_usage_daily TO PUBLIC")
    at_102.upgrade("103")
    assert may_read(at_102, reader)


def test_who_could_read_columns_only_is_named_in_one_warning(at_102: Database, make_role: MakeRole) -> None:
    one, other = make_role("one"), make_role("other")
    at_102.execute(
        f"GRANT SELECT (bucket_date, input_tokens) ON task_usage_daily TO {one}, {other};"
        f"GRANT SELECT (model) ON task_usage_dashboard_daily TO {one}"
    )
    (warning,) = warnings(at_102.upgrade("103"), "roles")
    assert f"GRANT SELECT ON public.task_usage_hourly TO {one}, {other}" in warning
    assert not may_read(at_102, one)


def test_who_could_read_all_of_one_reads_the_hourly_one_whatever_columns_of_the_other_it_could(
    at_102: Database, make_role: MakeRole
) -> None:
    reader, writer = make_role("reader"), make_role("writer")
    at_102.execute(
        f"GRANT SELECT ON task_usage_daily TO {reader};"
        f"GRANT SELECT (model) ON task_usage_dashboard_daily TO {reader};"
        f"GRANT UPDATE (model) ON task_usage_dashboard_daily TO {writer}"
    )
    assert warnings(at_102.upgrade("103"), "roles") == []
    assert may_read(at_102, reader)
    assert not may_read(at_102, writer)


def test_way_back_takes_what_103_let_read_and_leaves_who_could_before(
    at_102: Database, make_role: MakeRole
) -> None:
    before, writer, granter, stranger = (
        make_role(name) for name in ("before", "writer", "granter", "stranger")
    )
    at_102.execute(
        f"GRANT SELECT ON task_usage_daily TO {before}, {writer};"
        f"GRANT SELECT ON task_usage_daily TO {granter} WITH GRANT OPTION;"
        f"GRANT SELECT ON task_usage_hourly TO {before};"
        f"GRANT INSERT ON task_usage_hourly TO {writer};"
    )
    at_102.upgrade("103")
    with at_102.connect(user=granter, password=granter) as session:
        session.execute(f"GRANT SELECT ON task_usage_hourly TO {stranger}")
    assert all(may_read(at_102, role) for role in (before, writer, granter, stranger))
    at_102.downgrade("102")
    assert may_read(at_102, before)
    assert not any(may_read(at_102, role) for role in (writer, granter, stranger))
    assert at_102.value("SELECT has_table_privilege(%s, 'task_usage_hourly', 'INSERT')", writer)
