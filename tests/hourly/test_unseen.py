"""What changes usage past the triggers: named by status, check and preflight, and truly unseen."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.database import Database, MakeDatabase
from tests.support.product import event, small_world, wait_until
from tests.support.roles import MakeRole
from tests.support.rollup import UNQUEUE, queued
from tests.support.server import Server, start_server
from tests.support.shapes import make_products
from tests.support.v034 import build_v034
from usage_rollup.hourly import unseen

pytestmark = pytest.mark.server


def found(database: Database) -> list[unseen.Unseen]:
    with database.migration_connection() as connection:
        return unseen.find(connection)


def told(database: Database) -> set[str]:
    """Return what the commands tell is not queued, each line once; without a traceback."""
    lines = set()
    for command in ("status", "check", "preflight"):
        result = database.usage_rollup(command)
        assert "Traceback" not in result.stderr
        here = [line for line in result.stdout.splitlines() if line.startswith("not queued")]
        assert here, f"{command}: {result.stdout}{result.stderr}"
        lines |= {line.removeprefix("not queued").lstrip(": ") for line in here}
    return lines


@pytest.mark.parametrize("point", ["v034", "101", "102", "head", "v0.4.32", "ours at v0.4.32"])
def test_nothing_is_said_of_a_database_as_it_should_be(make_database: MakeDatabase, point: str) -> None:
    database = make_database(point)
    assert found(database) == []
    assert "not queued" not in database.usage_rollup("status").stdout


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("DISABLE", "disabled, so what they should queue is not queued"),
        ("ENABLE REPLICA", "enabled for replicas only"),
        ("ENABLE", "not enabled ALWAYS"),
    ],
)
def test_a_trigger_of_ours_that_does_not_always_fire_is_named_with_what_mends_it(
    head: Database, state: str, says: str
) -> None:
    for trigger in ("trg_tu_dirty_hourly_gone", "trg_tu_dirty_hourly_write"):
        head.execute(f"ALTER TABLE task_usage {state} TRIGGER {trigger}")
    (line,) = told(head)
    assert line.startswith(f"triggers of the hourly rollup are {says}")
    assert "trg_tu_dirty_hourly_gone on task_usage, trg_tu_dirty_hourly_write on task_usage" in line
    assert head.usage_rollup("check").returncode == 3
    (spot,) = found(head)
    head.execute(spot.mend.split("; then")[0])
    assert found(head) == []


def test_disabled_trigger_of_the_products_pipeline_is_named(make_database: MakeDatabase) -> None:
    database = make_products(make_database("head"), later=False)
    database.upgrade()
    assert found(database) == []
    database.execute("ALTER TABLE agent_task_queue DISABLE TRIGGER trg_atq_dirty_hourly")
    (line,) = told(database)
    assert "disabled, so what they should queue is not queued: trg_atq_dirty_hourly" in line
    assert "ALTER TABLE public.agent_task_queue ENABLE TRIGGER trg_atq_dirty_hourly" in line


def test_trigger_of_the_products_pipeline_that_fires_for_replicas_alone_is_named_and_always_is_well(
    make_database: MakeDatabase,
) -> None:
    database = make_products(make_database("head"), later=False)
    change = "ALTER TABLE agent_task_queue ENABLE {} TRIGGER trg_atq_dirty_hourly"
    database.execute(change.format("ALWAYS"))
    assert found(database) == []
    database.execute(change.format("REPLICA"))
    (spot,) = found(database)
    assert (
        "enabled for replicas only, so what others change is not queued: trg_atq_dirty_hourly" in spot.meaning
    )
    database.execute(spot.mend.split("; then")[0])
    assert found(database) == []


def test_triggers_of_others_are_none_of_ours(head: Database) -> None:
    head.execute(
        "CREATE FUNCTION enqueue_something() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER trg_dirty_hourly_somebody_s BEFORE UPDATE ON task_usage FOR EACH ROW"
        " EXECUTE FUNCTION enqueue_something();"
        "ALTER TABLE task_usage DISABLE TRIGGER trg_dirty_hourly_somebody_s"
    )
    # The contract's four do nothing in our pipeline, so that they may be switched off.
    head.execute("ALTER TABLE agent_task_queue DISABLE TRIGGER trg_atq_dirty_hourly")
    assert found(head) == []


def test_roles_that_play_replica_are_named_where_the_products_triggers_are_all_there_is(
    make_database: MakeDatabase, make_role: MakeRole
) -> None:
    ours, products = make_database("head"), make_products(make_database("head"), later=True)
    products.upgrade()
    role = make_role("restore")
    for database in (ours, products):
        database.execute(
            f'ALTER ROLE {role} IN DATABASE "{database.name}" SET session_replication_role = replica'
        )
    # Ours fire for them.
    assert found(ours) == []
    (line,) = told(products)
    assert f"sessions of role {role} in database {products.name} play replica" in line
    products.execute(line.split("; ")[1])
    assert found(products) == []


REPLICA = {
    "ALTER DATABASE {database} SET": "database {database}",
    "ALTER ROLE {role} SET": "role {role}",
    "ALTER ROLE {role} IN DATABASE {database} SET": "role {role} in database {database}",
    "ALTER ROLE ALL SET": "every role",
}


@pytest.mark.parametrize("how", REPLICA)
def test_however_sessions_are_made_replicas_it_is_named_with_what_mends_it(
    make_database: MakeDatabase, make_role: MakeRole, how: str
) -> None:
    products, other = make_products(make_database("head"), later=True), make_database("empty")
    names = {"role": make_role("restore"), "database": products.name}
    setting = how.format(**names) + " session_replication_role = {}"
    try:
        products.execute(setting.format("origin"))
        assert found(products) == []
        products.execute(setting.format("replica"))
        (spot,) = found(products)
        assert spot.meaning.startswith(f"sessions of {REPLICA[how].format(**names)} play replica")
        products.execute(spot.mend.split("; then")[0])
        assert found(products) == []
    finally:
        products.execute(how.format(**names).removesuffix(" SET") + " RESET session_replication_role")
    # That of another database is no matter here.
    products.execute(f"ALTER DATABASE {other.name} SET session_replication_role = replica")
    assert found(products) == []


def test_role_that_may_nothing_is_told_as_well(head: Database, make_role: MakeRole) -> None:
    role = make_role("nobody")
    head.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    head.execute("ALTER TABLE issue DISABLE TRIGGER trg_issue_dirty_hourly_move")
    result = head.usage_rollup("status", "--json", DATABASE_URL=head.url_of(role))
    assert result.returncode == 0, result.stderr
    (spot,) = json.loads(result.stdout)["unseen"]
    assert "trg_issue_dirty_hourly_move on issue" in spot["meaning"]


@pytest.mark.parametrize(
    ("table", "named"),
    [("agent", True), ("task_usage_hourly", True), ("task_usage_hourly_dirty", True), ("workspace", False)],
)
def test_subscription_is_named_by_what_it_writes_here(head: Database, table: str, named: bool) -> None:
    head.execute(
        f"CREATE SUBSCRIPTION s_{head.name} CONNECTION 'dbname=nowhere' PUBLICATION p"
        " WITH (connect = false, slot_name = NONE)"
    )
    # As a refresh would, which needs the publisher.
    head.execute(
        "INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate)"
        " SELECT s.oid, %s::regclass, 'r' FROM pg_subscription s WHERE s.subname = %s",
        table,
        f"s_{head.name}",
    )
    try:
        writes = [f"subscription s_{head.name} writes {table}"] if named else []
        assert [spot.meaning.partition(":")[0] for spot in found(head)] == writes
    finally:
        head.execute(f"DROP SUBSCRIPTION s_{head.name}")


# A real subscription


@pytest.fixture(scope="module")
def logical() -> Iterator[Server]:
    with start_server({"wal_level": "logical"}) as server:
        yield server


def test_deletes_that_a_subscription_applies_are_not_queued_and_it_is_named(logical: Server) -> None:
    databases = []
    for name in ("publisher", "subscriber"):
        logical.create_database(name)
        databases.append(Database(logical, name))
        with databases[-1].connect() as connection:
            build_v034(connection)
        databases[-1].upgrade("102" if name == "subscriber" else "head")
    publisher, subscriber = databases
    tables = 'workspace, "user", agent_runtime, agent, project, issue, agent_task_queue, task_usage'
    publisher.execute(f"CREATE PUBLICATION usage FOR TABLE {tables}")
    publisher.execute("SELECT pg_create_logical_replication_slot('usage', 'pgoutput')")
    subscriber.execute(
        f"CREATE SUBSCRIPTION usage CONNECTION '{publisher.url}' PUBLICATION usage"
        " WITH (create_slot = false, copy_data = false)"
    )
    try:
        warned = subscriber.upgrade("103")
        assert "stops where" not in warned
        warned = subscriber.upgrade()
        assert "subscription usage stops where its publisher still has agent_runtime.timezone" in warned
        event(publisher.url, small_world(publisher.url), "2025-03-01 10:15+00")
        wait_until(lambda: queued(subscriber) == 1, "the usage that arrived is queued")
        assert subscriber.usage_rollup("backfill").returncode == 0
        assert subscriber.usage_rollup("verify").returncode == 0
        subscriber.execute(UNQUEUE)
        publisher.execute("DELETE FROM task_usage")
        wait_until(lambda: not subscriber.execute("SELECT 1 FROM task_usage"), "the delete arrived")
        # What the message says, and no more.
        assert queued(subscriber) == 0
        (line,) = told(subscriber)
        assert line.startswith(
            "subscription usage writes agent, agent_task_queue, issue, task_usage: rows that it inserts"
            " or updates are queued, rows that it deletes are not"
        )
        assert subscriber.usage_rollup("verify").returncode == 3
        assert subscriber.usage_rollup("backfill", "--repair").returncode == 0
        assert subscriber.usage_rollup("verify").returncode == 0
        assert found(publisher) == []
    finally:
        subscriber.execute("ALTER SUBSCRIPTION usage DISABLE")
        subscriber.execute("ALTER SUBSCRIPTION usage SET (slot_name = NONE)")
        subscriber.execute("DROP SUBSCRIPTION usage")
