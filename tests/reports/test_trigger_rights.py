"""Whether the rollup's triggers may queue: tables and functions may change hands apart from each other."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.database import Database
from tests.support.product import event, small_world
from tests.support.roles import MakeRole, give_everything_to
from tests.support.rollup import heal, queued
from usage_rollup.reports.trigger_rights import TriggerRights, find

OURS = """
SELECT oid::regprocedure::text FROM pg_proc
WHERE prosecdef AND prorettype = 'trigger'::regtype AND pronamespace = 'public'::regnamespace
"""
RIGHTS = [
    "SELECT ON public.task_usage_hourly_rollup_state",
    "INSERT ON public.task_usage_hourly_invalidation",
]


def read(database: Database) -> list[TriggerRights]:
    with database.migration_connection() as connection:
        return find(connection)


@pytest.fixture
def used(head: Database) -> Database:
    """Return a database with usage that is rolled up, and nothing queued."""
    event(head.url, small_world(head.url), "2025-03-01 10:15+00")
    heal(head)
    assert queued(head) == 0
    return head


def give_functions_to(database: Database, role: str) -> None:
    for (function,) in database.execute(OURS):
        database.execute(f"ALTER FUNCTION {function} OWNER TO {role}")


def line(screen: str) -> str:
    (found,) = [row for row in screen.splitlines() if row.startswith("triggers")]
    return found


@pytest.mark.parametrize("point", ["everything is the server's", "a superuser's"])
def test_nothing_is_said_where_the_functions_belong_to_who_owns_the_tables(
    used: Database, make_role: MakeRole, point: str
) -> None:
    if point == "everything is the server's":
        give_everything_to(used, make_role("owner"))
    assert read(used) == []
    assert "triggers" not in used.usage_rollup("status").stdout


def test_functions_left_behind_without_rights_are_named_with_what_mends_them(
    used: Database, make_role: MakeRole
) -> None:
    left_behind = make_role("left_behind")
    give_functions_to(used, left_behind)
    # The trap: the product's write goes through, and nobody hears of it.
    used.execute("UPDATE task_usage SET input_tokens = 7")
    assert queued(used) == 0
    (found,) = read(used)
    assert (found.owner, found.missing) == (left_behind, RIGHTS)
    for command in ("status", "preflight"):
        said = line(used.usage_rollup(command).stdout)
        assert "changes are not queued" in said
        assert left_behind in said
        assert "usage-rollup backfill --repair" in said
    problems = json.loads(used.usage_rollup("status", "--json").stdout)["problems"]
    assert [problem for problem in problems if problem.startswith("changes are not queued")]
    ticked = used.usage_rollup("tick")
    assert ticked.returncode == 0
    assert "changes are not queued" in ticked.stderr
    assert json.loads(used.usage_rollup("status", "--json").stdout)["trigger_rights"][0]["missing"] == RIGHTS
    for grant in re.findall(r"GRANT [^;]*", found.mend):
        used.execute(grant)
    assert used.usage_rollup("backfill", "--repair").returncode == 0
    assert [rights.missing for rights in read(used)] == [[]]
    assert "changes are not queued" not in used.usage_rollup("tick").stderr
    used.execute("UPDATE task_usage SET input_tokens = 8")
    assert queued(used) == 1


def test_functions_of_another_role_that_has_the_rights_are_named_with_what_gives_them_back(
    used: Database, make_role: MakeRole
) -> None:
    server, before = make_role("server"), make_role("before")
    give_everything_to(used, server)
    give_functions_to(used, before)
    used.execute("; ".join(f"GRANT {right} TO {before}" for right in RIGHTS))
    said = line(used.usage_rollup("status").stdout)
    assert f"belong to role {before} and task_usage to role {server}" in said
    assert "changes are not queued" not in said
    (found,) = read(used)
    used.execute(found.mend)
    assert read(used) == []


def test_without_rights_in_the_schema_the_product_goes_on_and_it_is_said(
    used: Database, make_role: MakeRole
) -> None:
    role = make_role("role")
    give_functions_to(used, role)
    used.execute("; ".join(f"GRANT {right} TO {role}" for right in RIGHTS))
    used.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    used.execute("UPDATE task_usage SET input_tokens = 9")
    used.execute("UPDATE issue SET project_id = NULL")
    assert queued(used) == 0
    (found,) = read(used)
    assert found.missing == ["USAGE ON SCHEMA public"]
    used.execute(found.mend.split("; then")[0])
    assert [rights.missing for rights in read(used)] == [[]]
    used.execute("UPDATE task_usage SET input_tokens = 10")
    assert queued(used) == 1
    heal(used)


def test_before_102_and_on_the_products_functions_there_is_nothing_to_say(v034: Database) -> None:
    assert read(v034) == []
