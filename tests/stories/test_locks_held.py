"""Locks that others hold, and those a run takes: each wait has an end and names who it was for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from tests.support.database import Database, MakeDatabase
from tests.support.deadline import DEADLINE_S
from tests.support.processes import finish, read_until
from tests.support.product import event, small_world, wait_until
from tests.support.walks import committed_months, write_history
from tests.support.ways import WAYS, Way
from usage_rollup import revisions
from usage_rollup.contract import STEMS
from usage_rollup.session import advisory_lock

pytestmark = pytest.mark.process


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


# Weaker ones keep nobody from reading or writing, and wait for nobody who does.
STRONG = [
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
]

# What a step holds when it is recorded, and a transaction of the hook when it commits.
LOOK = f"""
CREATE SCHEMA looking;
CREATE TABLE looking.relations AS SELECT oid, relname::text AS name FROM pg_class LIMIT 0;
CREATE TABLE looking.held (told_by text, operation text, stem text, name text, mode text);
CREATE FUNCTION looking.look() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO looking.held
    SELECT TG_TABLE_NAME, TG_OP, to_jsonb(COALESCE(NEW, OLD)) ->> 'version', r.name, l.mode
    FROM pg_locks l JOIN looking.relations r ON r.oid = l.relation
    WHERE l.pid = pg_backend_pid() AND l.mode = ANY ('{{{",".join(STRONG)}}}'::text[]);
    RETURN NULL;
END $$;
"""


def look_at(database: Database, *tables: str) -> None:
    """Have each commit of a transaction that wrote one of `tables` write down its strong locks."""
    with database.connect() as connection:
        connection.execute(LOOK.encode())
        for table in tables:
            connection.execute(
                f"CREATE CONSTRAINT TRIGGER z_look AFTER INSERT OR UPDATE OR DELETE ON {table}"
                " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION looking.look()".encode()
            )


def remember_relations(database: Database) -> None:
    """What is made from here on is locked by nobody else."""
    database.execute(
        "WITH gone AS (DELETE FROM looking.relations)"
        " INSERT INTO looking.relations SELECT oid, relname FROM pg_class"
        " WHERE relnamespace <> 'looking'::regnamespace AND relkind IN ('r', 'p')"
    )


def held(database: Database) -> set[tuple[Any, ...]]:
    return set(database.execute("SELECT name, mode FROM looking.held"))


def named(revision: str, direction: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the tables that a step names, the ledgers besides."""
    module = revisions.scripts().get_revision(revision).module
    locks: list[dict[str, list[str]]] = []
    monkeypatch.setattr(module, "apply_sql", lambda *_, lock=None, **__: locks.append(lock or {}))
    getattr(module, direction)()
    tables = [table for table_list in locks[0].values() for table in table_list]
    return {"alembic_version", "schema_migrations", *(table.split(".")[-1] for table in tables)}


@pytest.mark.parametrize("keep_legacy", ["true", "false"])
def test_every_strong_lock_of_a_step_is_asked_for_before_anything_is_changed(
    v034: Database, monkeypatch: pytest.MonkeyPatch, keep_legacy: str
) -> None:
    write_history(v034, 50, months=1)
    look_at(v034, "schema_migrations")
    steps = [r for r in STEMS if r > "097"]
    for direction, targets in (("upgrade", steps), ("downgrade", ["097", *steps[:-1]][::-1])):
        for step, target in zip(steps if direction == "upgrade" else steps[::-1], targets, strict=True):
            remember_relations(v034)
            v034.execute("TRUNCATE looking.held")
            getattr(v034, direction)(target, KEEP_LEGACY=keep_legacy)
            tables = {name for name, _ in held(v034)}
            assert tables, f"nothing seen of {direction} {step}"
            assert tables <= named(step, direction, monkeypatch), f"{direction} {step}"


def test_the_hook_and_a_tick_keep_out_only_who_reads_or_writes_the_hourly_table(at_102: Database) -> None:
    # More than a slice, so that its indexes are dropped and built again.
    write_history(at_102, 50, months=1)
    look_at(
        at_102, "task_usage_hourly_backfill", "task_usage_hourly_rollup_state", "task_usage_hourly_left_out"
    )
    remember_relations(at_102)
    at_102.upgrade("103")
    at_102.usage_rollup("tick")
    seen = held(at_102)
    assert {name for name, mode in seen} <= {"task_usage_hourly"}


# What others hold

MINE = "somebody who holds it"
HELD = {
    "a row of the ledger": "INSERT INTO schema_migrations (version) SELECT :next_stem",
    "the ledger": "LOCK TABLE schema_migrations",
    "a row of alembic_version": "SELECT FROM alembic_version FOR UPDATE",
    "alembic_version": "LOCK TABLE alembic_version",
    "task_usage": "LOCK TABLE task_usage",
    "the hourly table": "LOCK TABLE task_usage_hourly",
    "the hourly table, against writers": "LOCK TABLE task_usage_hourly IN SHARE MODE",
    "the state row": "SELECT FROM task_usage_hourly_rollup_state FOR UPDATE",
}
LEDGERS = [held for held in HELD if "ledger" in held or "alembic" in held]
ROLLUP = [held for held in HELD if held not in LEDGERS]


@contextmanager
def holding(database: Database, held: str, stem: str = "") -> Iterator[int]:
    """Hold it in a session beside a live writer, and yield the session's pid."""
    live = database.connect(application_name="a live writer")
    world = small_world(live)
    live.commit()
    event(live, world)
    holder = database.connect(application_name=MINE)
    # TABLE locks need no writer beside.
    if HELD[held] == "LOCK TABLE task_usage":
        live.rollback()
    holder.execute(HELD[held].replace(":next_stem", f"'{stem}'").encode())
    yield holder.info.backend_pid
    holder.rollback()
    live.rollback()


def busy(database: Database, *command: str) -> str:
    """Run a command of Alembic that must end in time, to be run again; return what it said."""
    done = database.alembic("-x", "lock-timeout=1s", *command)
    assert done.returncode == 75, done.stdout
    return done.stdout


def names_the_holder(said: str, pid: int) -> None:
    assert f"in the way: pid {pid} (postgres, {MINE}, idle in transaction since 20" in said
    assert f"SELECT pg_terminate_backend({pid})" in said
    assert "a live writer" not in said
    assert "<pid>" not in said


def test_a_ledger_row_of_somebody_else_keeps_no_login_waiting(v034: Database) -> None:
    with holding(v034, "a row of the ledger", STEMS["100"]) as pid:
        process = v034.spawn("alembic", "upgrade", "100")
        said = read_until(process, "waiting for table locks")
        # The trap: the step's INSERT would wait for that row, under its lock on "user".
        assert f"in the way: pid {pid} (" in said
        with v034.connect(options=f"-c lock_timeout={DEADLINE_S:.0f}s") as login:
            login.execute('SELECT FROM "user"')
    finish(process)
    assert v034.revision == "100"


def test_no_table_of_the_product_is_asked_for_before_the_ledger_is_free(v034: Database) -> None:
    v034.upgrade("097")
    reader = v034.connect(application_name="a reader")
    reader.execute('SELECT FROM "user"')
    with holding(v034, "a row of the ledger", STEMS["100"]) as pid:
        said = busy(v034, "upgrade", "100")
    names_the_holder(said, pid)
    assert "a reader" not in said
    reader.rollback()
    v034.upgrade("100")


@pytest.mark.parametrize("held", LEDGERS)
@pytest.mark.parametrize("step", ["100", "102", "103", "104"])
def test_a_held_ledger_ends_each_step_with_its_holder_named(
    make_database: MakeDatabase, step: str, held: str
) -> None:
    before = {"100": "097", "102": "101", "103": "102", "104": "103"}[step]
    database = make_database(before)
    schema = database.catalog()
    with holding(database, held, STEMS[step]) as pid:
        said = busy(database, "upgrade", step)
    names_the_holder(said, pid)
    assert database.catalog() == schema
    database.upgrade(step)


@pytest.mark.parametrize("held", LEDGERS)
def test_a_held_ledger_ends_the_way_back_with_its_holder_named(head: Database, held: str) -> None:
    if held == "a row of the ledger":
        head.execute("DELETE FROM schema_migrations WHERE version = 'somebody''s'")
    schema = head.catalog()
    with holding(head, held, "somebody''s") as pid:
        said = busy(head, "downgrade", "103")
    names_the_holder(said, pid)
    assert head.catalog() == schema
    head.downgrade("103")


@pytest.mark.parametrize("held", LEDGERS)
def test_a_held_ledger_ends_an_adoption_with_its_holder_named(make_database: MakeDatabase, held: str) -> None:
    database = make_database("101")
    database.execute("DELETE FROM alembic_version" if "alembic" in held else "DROP TABLE alembic_version")
    before = database.catalog()
    with holding(database, held, STEMS["102"]) as pid:
        said = busy(database, "upgrade", "101")
    names_the_holder(said, pid)
    if "alembic" in held:
        assert database.catalog() == before
    database.upgrade("101")
    assert database.revision == "101"


def test_a_stamp_waits_for_the_version_no_longer_than_it_may(head: Database) -> None:
    with holding(head, "a row of alembic_version") as pid:
        names_the_holder(busy(head, "stamp", "103"), pid)
    assert head.revision == "104"


COMMANDS = {
    "backfill": ("backfill",),
    "repair": ("backfill", "--repair"),
    "jobs": ("backfill", "--jobs", "2"),
    "tick": ("tick",),
}


@pytest.mark.parametrize("held", ROLLUP)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_held_rollup_ends_each_command_with_75_and_its_holder_named(
    at_102: Database, command: str, held: str
) -> None:
    months = write_history(at_102)
    with holding(at_102, held) as pid:
        done = at_102.usage_rollup(*COMMANDS[command], LOCK_TIMEOUT="1s")
    assert done.returncode == 75, done.stderr
    names_the_holder(done.stderr, pid)
    done = at_102.usage_rollup("backfill")
    assert done.returncode == 0, done.stderr
    assert committed_months(at_102)[: len(months)] == months


@pytest.mark.parametrize("held", ROLLUP)
def test_a_held_rollup_ends_the_hook_with_its_holder_named(way: Way, at_102: Database, held: str) -> None:
    write_history(at_102)
    with holding(at_102, held) as pid:
        said = way.fails(at_102, "upgrade", "102", "head", lock_timeout="1s")
    names_the_holder(said, pid)
    assert at_102.revision == "102"
    way.upgrade(at_102, "102")


@pytest.mark.parametrize("held", ["a row of the ledger", "alembic_version"])
def test_a_held_ledger_ends_a_script_with_its_holder_named(v034: Database, held: str) -> None:
    v034.upgrade("100")
    with holding(v034, held, STEMS["101"]) as pid:
        said = WAYS["script"].fails(v034, "upgrade", "100", "101", lock_timeout="1s")
    names_the_holder(said, pid)
    assert v034.revision == "100"


@pytest.mark.parametrize("held", ["task_usage", "the hourly table"])
def test_a_table_that_cannot_be_read_ends_verify_with_75_and_its_holder_named(
    at_102: Database, held: str
) -> None:
    with holding(at_102, held) as pid:
        done = at_102.usage_rollup("verify", LOCK_TIMEOUT="1s")
    assert done.returncode == 75, done.stderr
    names_the_holder(done.stderr, pid)


def test_a_tick_that_anybody_calls_gives_4246_back_while_the_state_row_is_held(at_102: Database) -> None:
    event(at_102.url, small_world(at_102.url))
    with holding(at_102, "the state row"), pytest.raises(psycopg.errors.LockNotAvailable):
        at_102.execute("SELECT rollup_task_usage_hourly()")
    with at_102.connect() as patient:
        patient.execute("SET LOCAL lock_timeout = '7min'")
        patient.execute("SELECT rollup_task_usage_hourly()")
        assert patient.execute("SHOW lock_timeout").fetchone() == ("7min",)


@pytest.mark.parametrize("schema", ["legacy_usage", "legacy_usage_2"])
def test_kept_tables_that_are_read_end_the_way_back_before_anything_is_locked(
    v034: Database, schema: str
) -> None:
    write_history(v034, 50, months=1)
    # The first of the names may be taken.
    v034.execute("CREATE SCHEMA legacy_usage")
    if schema != "legacy_usage":
        v034.execute("CREATE TABLE legacy_usage.task_usage_daily ()")
    v034.upgrade(KEEP_LEGACY="true")
    v034.downgrade("103")
    reader = v034.connect(application_name=MINE)
    reader.execute(f"SELECT FROM {schema}.task_usage_rollup_state")
    said = busy(v034, "downgrade", "102")
    assert "could not lock " in said
    names_the_holder(said, reader.info.backend_pid)
    reader.rollback()
    v034.downgrade("102")


def test_tables_of_other_schemas_are_not_locked(v034: Database) -> None:
    v034.execute('CREATE SCHEMA elsewhere; CREATE TABLE elsewhere."user" ()')
    holder = v034.connect()
    holder.execute('LOCK TABLE elsewhere."user"')
    done = v034.alembic("-x", "lock-timeout=1s", "upgrade", "100")
    assert done.returncode == 0, done.stdout


# What is said meanwhile


@pytest.mark.parametrize("key", [7244554146635925501, 4246])
def test_waiting_for_an_advisory_lock_is_announced_with_its_holder_and_its_end(
    at_102: Database, key: int
) -> None:
    holder = at_102.connect(autocommit=True, application_name=MINE)
    holder.execute("SELECT pg_advisory_lock(%s)", (key,))
    process = at_102.spawn("alembic", "-x", "lock-timeout=5m", "upgrade", "head")
    said = read_until(process, "waiting for advisory lock")
    pid = holder.info.backend_pid
    assert re.search(
        rf"waiting for advisory lock {key} \([a-z ]+\), [12]\d\d s more at most;"
        rf" held by pid {pid} \(postgres, {MINE}, idle since 20",
        said,
    )
    holder.close()
    finish(process)


def test_a_script_announces_its_wait_for_an_advisory_lock(at_102: Database) -> None:
    holder = at_102.connect(autocommit=True, application_name=MINE)
    holder.execute("SELECT pg_advisory_lock(4246)")
    said = WAYS["script"].fails(at_102, "upgrade", "102", "head", lock_timeout="5s")
    assert re.search(
        r"INFO: waiting for advisory lock 4246 \(hourly rollup\), \d s more at most;"
        rf" held by pid {holder.info.backend_pid} \(",
        said,
    )


def test_waiting_is_announced_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, head: Database
) -> None:
    monkeypatch.setattr(advisory_lock, "_SAY_AFTER_S", 0.05)
    monkeypatch.setattr(advisory_lock, "_SAY_EVERY_S", 0.05)
    holder = head.connect(autocommit=True)
    holder.execute("SELECT pg_advisory_lock(4246)")
    caplog.set_level("INFO")
    with head.migration_connection() as session, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(advisory_lock.acquire, session, 4246)
        wait_until(lambda: caplog.text.count("waiting for advisory lock 4246") > 1, "it is said again")
        holder.close()
        waiting.result(timeout=DEADLINE_S)
