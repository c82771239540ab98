"""What a policy hides is never taken for absent: not by an upgrade, a tick, a comparison or a trigger."""

from __future__ import annotations

import re

import psycopg
import pytest

from tests.support.catalog_snapshot import snapshot
from tests.support.closing import Session
from tests.support.database import Database
from tests.support.oracle import wrong_buckets
from tests.support.product import event, small_world, upsert_usage
from tests.support.roles import MakeRole, give_everything_to
from tests.support.rollup import heal, queued
from tests.support.v034 import generate_history
from tests.support.ways import WAYS

READ = ["agent", "agent_task_queue", "issue", "task_usage"]


def hide(database: Database, table: str) -> None:
    """Hide every row of a table from whom policies bind, its owner included."""
    database.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    database.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    database.execute(f"CREATE POLICY nobodys ON {table} USING (false)")


@pytest.fixture
def owned(v034: Database, make_role: MakeRole) -> tuple[Database, str]:
    """Return a v0.3.4 database with a history, and its owner, who is no superuser."""
    with v034.connect() as connection:
        generate_history(connection, 200)
    owner = make_role("owner")
    give_everything_to(v034, owner)
    return v034, owner


@pytest.fixture
def used(head: Database, make_role: MakeRole) -> tuple[Database, str]:
    """Return a database at head that belongs to a role, with one hour rolled up and one queued."""
    world = small_world(head.url)
    event(head.url, world, "2025-03-01 10:15+00")
    heal(head)
    owner = make_role("owner")
    give_everything_to(head, owner)
    head.execute(f"GRANT ALL ON alembic_version TO {owner}")
    event(head.url, world, "2025-03-02 10:15+00")
    assert queued(head) > 0
    return head, owner


@pytest.mark.parametrize("table", READ)
@pytest.mark.parametrize("migrator", ["the owner", "a superuser"])
def test_upgrade_is_refused_before_its_first_write_where_a_policy_binds_who_acts(
    owned: tuple[Database, str], table: str, migrator: str
) -> None:
    database, owner = owned
    hide(database, table)
    # The trap: to its owner the table is empty, and the guard of 103 passes over an empty one.
    with Session.connect(database.url_of(owner)) as session:
        assert session.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    url = database.url_of(owner) if migrator == "the owner" else database.url
    before = snapshot(database)
    refused = database.refused("upgrade", "head", DATABASE_URL=url)
    assert f"row security would hide rows from role {owner}: {table} (policies: nobodys)" in refused
    preflight = database.usage_rollup("preflight", DATABASE_URL=url)
    assert preflight.returncode == 1
    assert f"row security would hide rows from role {owner}: {table}" in preflight.stdout
    assert "there is no usage" not in preflight.stdout
    assert snapshot(database) == before
    # The hint is what cures it.
    (mend,) = [line for line in refused.splitlines() if line.startswith("HINT: ")]
    database.execute(mend.removeprefix("HINT: ").split(" or, as a superuser, ")[0])
    database.upgrade(DATABASE_URL=url)
    assert database.value("SELECT sum(event_count) FROM task_usage_hourly") == 200


def test_role_that_bypasses_policies_upgrades_a_database_full_of_them(
    owned: tuple[Database, str],
) -> None:
    database, owner = owned
    for table in READ:
        hide(database, table)
    database.execute(f"ALTER ROLE {owner} BYPASSRLS")
    database.upgrade(DATABASE_URL=database.url_of(owner))
    assert database.value("SELECT sum(event_count) FROM task_usage_hourly") == 200


def test_script_fails_where_a_policy_would_hide_usage(owned: tuple[Database, str]) -> None:
    database, owner = owned
    hide(database, "task_usage")
    said = WAYS["script"].fails(database, "upgrade", "097", "head")
    assert f"row security would hide rows from role {owner}: task_usage" in said
    assert database.revision is None


@pytest.mark.parametrize("command", ["tick", "verify", "status", "backfill"])
@pytest.mark.parametrize("table", ["task_usage", "agent_task_queue", "task_usage_hourly"])
def test_command_fails_in_a_sentence_where_a_policy_binds_its_role(
    used: tuple[Database, str], command: str, table: str
) -> None:
    database, owner = used
    hide(database, table)
    waiting, watermark = queued(database), state(database)
    result = database.usage_rollup(command, DATABASE_URL=database.url_of(owner))
    assert result.returncode not in (0, 3), result.stdout
    assert "Traceback" not in result.stderr
    # PostgreSQL's words, or those of a command that looks first.
    assert re.search(rf'row-level security policy for table "{table}"|hide rows .*: {table} ', result.stderr)
    assert "equals" not in result.stdout
    assert (queued(database), state(database)) == (waiting, watermark)
    database.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
    database.usage_rollup("tick", DATABASE_URL=database.url_of(owner))
    assert queued(database) == 0
    assert wrong_buckets(database.url) == []


def state(database: Database) -> object:
    return database.value("SELECT watermark_at FROM task_usage_hourly_rollup_state")


@pytest.mark.parametrize(
    "call", ["rollup_task_usage_hourly()", "rollup_task_usage_hourly_window('epoch', now())"]
)
def test_tick_that_a_server_or_pg_cron_runs_fails_under_a_policy_and_eats_no_queue(
    used: tuple[Database, str], call: str
) -> None:
    database, owner = used
    hide(database, "task_usage")
    waiting = queued(database)
    with (
        Session.connect(database.url_of(owner)) as session,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security policy"),
    ):
        session.execute(f"SELECT public.{call}")
    assert queued(database) == waiting


@pytest.mark.parametrize("table", ["task_usage_hourly_invalidation", "task_usage_hourly_rollup_state"])
def test_policy_on_a_private_table_fails_no_write_of_the_server_and_is_named(
    used: tuple[Database, str], table: str
) -> None:
    database, owner = used
    hide(database, table)
    waiting = queued(database)
    with Session.connect(database.url_of(owner), autocommit=True) as server:
        ((task,),) = server.execute("SELECT task_id FROM task_usage LIMIT 1").fetchall()
        upsert_usage(server, task, tokens=3)
        server.execute("UPDATE agent_task_queue SET issue_id = NULL")
        server.execute("DELETE FROM task_usage")
        server.execute("DELETE FROM issue")
        server.execute("TRUNCATE task_usage CASCADE")
    if table == "task_usage_hourly_invalidation":
        assert queued(database) == waiting
    else:
        # Whether the watermark has passed the event is not to be seen: so it is queued.
        assert queued(database) > waiting
    said = database.usage_rollup("status").stdout
    assert f"row security on public.{table} binds role {owner}" in said
    database.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    assert database.usage_rollup("backfill", "--repair").returncode == 0
    assert wrong_buckets(database.url) == []
