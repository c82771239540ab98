"""The session that migrates: waited for, pinned, and refused where the upgrade cannot run."""

from __future__ import annotations

import logging
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import pq
from sqlalchemy.exc import DBAPIError

from tests.support.closing import Session
from tests.support.database import Database
from tests.support.deadline import DEADLINE_S
from tests.support.processes import read_until
from tests.support.product import event, small_world, wait_until
from tests.support.roles import MakeRole, give_objects_to
from tests.support.server import Server, start_server
from tests.support.v034 import build_v034
from tests.support.walks import (
    advisory_locks,
    write_history,
)
from usage_rollup.errors import ConfigurationError
from usage_rollup.session.connection import policies_filter, snapshot, transaction, writing_snapshot
from usage_rollup.session.opening import DEFAULT_STARTUP_TIMEOUT_S, connect, startup_timeout_s

pytestmark = pytest.mark.process

HOSTILE = {
    "application_name": "somebody",
    "search_path": "nowhere",
    "row_security": "on",
    "client_encoding": "LATIN1",
    "TimeZone": "Asia/Kathmandu",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "iso_8601",
    "standard_conforming_strings": "off",
    "statement_timeout": "1h",
    "lock_timeout": "1h",
    "idle_in_transaction_session_timeout": "1h",
    "idle_session_timeout": "1h",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "jit": "on",
}
PINNED = {
    "application_name": "usage-rollup",
    "search_path": "pg_catalog, pg_temp",
    "row_security": "off",
    "client_encoding": "UTF8",
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "standard_conforming_strings": "on",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "jit": "off",
    "transaction_isolation": "read committed",
}


def set_on_database(database: Database, settings: dict[str, str], prefix: str = "") -> None:
    for name, value in settings.items():
        values = value if name in {"search_path", "DateStyle"} else f"'{value}'"
        database.execute(f"ALTER {prefix or 'DATABASE'} {database.name} SET {name} = {values}")


def by_database(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    set_on_database(database, HOSTILE)


def by_role(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    set_on_database(database, HOSTILE, "ROLE CURRENT_USER IN DATABASE")


def by_options(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    escaped = {name: value.replace(" ", "\\ ") for name, value in HOSTILE.items()}
    monkeypatch.setenv("PGOPTIONS", " ".join(f"-c {name}={value}" for name, value in escaped.items()))


@pytest.mark.parametrize("hostile", [by_database, by_role, by_options])
def test_session_settings_hold_whatever_the_environment_sets(
    head: Database,
    monkeypatch: pytest.MonkeyPatch,
    hostile: Callable[[Database, pytest.MonkeyPatch], None],
) -> None:
    hostile(head, monkeypatch)
    plain = head.connect()
    assert {name: plain.execute(f"SHOW {name}").fetchone() for name in HOSTILE} == {
        name: (value,) for name, value in HOSTILE.items()
    }
    with head.migration_connection() as session:
        assert {name: session.scalar(sa.text(f"SHOW {name}")) for name in PINNED} == PINNED
        session.rollback()
        assert {name: session.scalar(sa.text(f"SHOW {name}")) for name in PINNED} == PINNED


def test_application_name_of_the_url_is_not_the_runners(head: Database) -> None:
    url = f"{head.url}&application_name=somebody"
    with Session.connect(url) as plain:
        assert plain.execute("SHOW application_name").fetchone() == ("somebody",)
    with connect(url, 0) as pinned:
        assert pinned.execute("SHOW application_name").fetchone() == ("usage-rollup",)


def test_no_timeout_of_the_server_cuts_the_session_short(head: Database) -> None:
    timeouts = [
        name
        for (name,) in head.execute(
            "SELECT name FROM pg_settings WHERE context = 'user'"
            " AND name ~ '^(statement|lock|transaction|idle_.*session)_timeout$'"
        )
    ]
    assert {"statement_timeout", "lock_timeout"} < set(timeouts)
    set_on_database(head, dict.fromkeys(timeouts, "1h"))
    plain = head.connect()
    assert {name: plain.execute(f"SHOW {name}").fetchone() for name in timeouts} == dict.fromkeys(
        timeouts, ("1h",)
    )
    with head.migration_connection() as session:
        shown = {name: session.scalar(sa.text(f"SHOW {name}")) for name in timeouts}
    assert shown == dict.fromkeys(timeouts, "0")


def test_what_the_server_says_is_logged_unless_it_is_a_notice(
    head: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "usage_rollup")
    with connect(head.url, 0) as session:
        for level in ("DEBUG", "LOG", "NOTICE", "INFO", "WARNING"):
            session.execute(f"DO $$ BEGIN RAISE {level} 'of level {level}'; END $$".encode())
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "of level INFO"),
        ("WARNING", "of level WARNING"),
    ]


def test_no_statement_is_prepared_however_often_it_is_sent(head: Database) -> None:
    def prepared(session: psycopg.Connection) -> tuple[int] | None:
        for _ in range(10):
            session.execute("SELECT %s + 1", [1])
        return session.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()

    # The trap: the driver prepares by itself, on a process that a pooler may give to somebody else.
    assert prepared(head.connect(autocommit=True)) != (0,)
    with connect(head.url, 0) as session:
        assert prepared(session) == (0,)


# What belongs together.

Block = Callable[[sa.Connection], AbstractContextManager[None]]


@pytest.mark.parametrize(("block", "seen"), [(transaction, 1), (snapshot, 0), (writing_snapshot, 0)])
def test_transaction_reads_what_others_commit_meanwhile_and_a_snapshot_does_not(
    empty: Database, block: Block, seen: int
) -> None:
    empty.execute("CREATE TABLE written (n int)")
    count = sa.text("SELECT count(*) FROM public.written")
    with empty.migration_connection() as session:
        with block(session):
            assert session.scalar(count) == 0
            empty.execute("INSERT INTO written VALUES (1)")
            assert session.scalar(count) == seen
        # From here on each statement is its own again, and may write.
        session.execute(sa.text("INSERT INTO public.written VALUES (2)"))
        assert empty.value("SELECT count(*) FROM written") == 2


@pytest.mark.parametrize("block", [transaction, writing_snapshot])
def test_what_a_block_writes_is_committed_at_its_end_or_not_at_all(empty: Database, block: Block) -> None:
    empty.execute("CREATE TABLE written (n int)")
    insert = sa.text("INSERT INTO public.written VALUES (1)")
    with empty.migration_connection() as session:

        def fail() -> None:
            with block(session):
                session.execute(insert)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert empty.value("SELECT count(*) FROM written") == 0
        with block(session):
            session.execute(insert)
            assert empty.value("SELECT count(*) FROM written") == 0
        assert empty.value("SELECT count(*) FROM written") == 1


def test_snapshot_writes_nothing(empty: Database) -> None:
    empty.execute("CREATE TABLE written (n int)")
    with empty.migration_connection() as session:
        with pytest.raises(DBAPIError, match="read-only transaction"), snapshot(session):
            session.execute(sa.text("INSERT INTO public.written VALUES (1)"))
        session.execute(sa.text("INSERT INTO public.written VALUES (2)"))


def test_policies_hide_rows_from_their_block_alone(empty: Database) -> None:
    def filters(session: sa.Connection) -> bool:
        return bool(session.scalar(sa.text("SHOW row_security")) == "on")

    with empty.migration_connection() as session:
        assert not filters(session)
        with policies_filter(session):
            assert filters(session)
        assert not filters(session)
        with transaction(session):
            with policies_filter(session):
                assert filters(session)
            assert not filters(session)
        with pytest.raises(ZeroDivisionError), policies_filter(session):
            raise ZeroDivisionError
        assert not filters(session)


def test_upgrade_is_right_where_the_database_shadows_functions_and_shifts_days(v034: Database) -> None:
    write_history(v034)
    v034.execute("CREATE SCHEMA shadow")
    v034.execute(
        "CREATE FUNCTION shadow.date_trunc(text, timestamp) RETURNS timestamp LANGUAGE sql IMMUTABLE"
        " AS $$SELECT timestamp 'epoch'$$"
    )
    set_on_database(
        v034,
        {
            "search_path": "shadow, pg_catalog",
            "TimeZone": "Asia/Kathmandu",
            "default_transaction_isolation": "serializable",
            "standard_conforming_strings": "off",
        },
    )
    assert v034.value("SELECT date_trunc('hour', timestamp '2026-01-01 12:30') = timestamp 'epoch'")
    v034.upgrade()
    assert v034.revision == "104"
    assert v034.value("SELECT sum(event_count) FROM public.task_usage_hourly") == 400
    assert v034.value(
        "SELECT bool_and(EXTRACT(MINUTE FROM bucket_hour AT TIME ZONE 'UTC') = 0)"
        " FROM public.task_usage_hourly"
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", DEFAULT_STARTUP_TIMEOUT_S),
        ("  ", DEFAULT_STARTUP_TIMEOUT_S),
        ("0", 0),
        ("0s", 0),
        ("180", 180),
        (" 90s ", 90),
        ("3m", 180),
        ("1.5m", 90),
        ("2h", 7200),
    ],
)
def test_startup_timeout_is_a_number_with_or_without_a_unit(
    monkeypatch: pytest.MonkeyPatch, text: str, seconds: float
) -> None:
    monkeypatch.setenv("DATABASE_STARTUP_TIMEOUT", text)
    assert startup_timeout_s() == seconds


@pytest.mark.parametrize(
    "text",
    ["soon", "-1", "s", ".", "m3", "3m30", "3x30s", "1e3", "nan", "inf", "5 m", "1,5", "٣", "²s"],
)
def test_startup_timeout_that_is_no_duration_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("DATABASE_STARTUP_TIMEOUT", text)
    with pytest.raises(ConfigurationError, match="DATABASE_STARTUP_TIMEOUT is not a duration"):
        startup_timeout_s()


def test_startup_timeout_beyond_a_year_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_STARTUP_TIMEOUT", "9999h")
    with pytest.raises(ConfigurationError, match="DATABASE_STARTUP_TIMEOUT is longer than a year"):
        startup_timeout_s()


def test_startup_timeout_that_is_no_duration_stops_alembic_before_it_connects(head: Database) -> None:
    output = head.refused("upgrade", "head", DATABASE_STARTUP_TIMEOUT="soon", DATABASE_URL="postgres:///")
    assert "DATABASE_STARTUP_TIMEOUT is not a duration: 'soon'" in output
    assert "HINT: use 180, 90s, 2m30s or 500ms" in output


# A server of this module's own, which tests may stop.


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    with start_server() as server:
        server.create_database("v034")
        with Database(server, "v034").connect() as connection:
            build_v034(connection)
        yield server


@pytest.fixture
def own(own_server: Server) -> Iterator[Database]:
    database = Database(own_server, f"own_{uuid.uuid4().hex[:8]}")
    own_server.create_database(database.name, template="v034")
    yield database
    database.end_sessions()
    own_server.restart()


def test_upgrade_waits_for_a_stopped_server_and_goes_on_when_it_is_started(own: Database) -> None:
    own.server.stop()
    assert pq.PGconn.ping(own.url.encode()) == pq.Ping.NO_RESPONSE
    process = own.spawn("alembic", "upgrade", "head")
    read_until(process, "waiting up to 180 s for the database")
    own.server.restart()
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output
    assert own.revision == "104"


def test_upgrade_waits_while_the_server_rejects_sessions(own: Database) -> None:
    data = Path(own.value("SHOW data_directory"))
    postmaster = int((data / "postmaster.pid").read_text().split()[0])
    keeper = own.connect()
    # A smart shutdown rejects new sessions as a start-up does, for as long as an old one stays.
    os.kill(postmaster, signal.SIGTERM)
    wait_until(lambda: pq.PGconn.ping(own.url.encode()) == pq.Ping.REJECT, "the server rejects sessions")
    process = own.spawn("alembic", "upgrade", "head")
    read_until(process, "waiting up to 180 s for the database")
    keeper.close()
    own.server.restart()
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output
    assert own.revision == "104"


def test_startup_timeout_zero_fails_at_once(own: Database) -> None:
    own.server.stop()
    output = own.refused(DATABASE_STARTUP_TIMEOUT="0")
    assert "cannot connect to the database: " in output
    assert "DATABASE_STARTUP_TIMEOUT says how long to wait" in output
    assert "waiting" not in output
    assert "multica" not in output.replace("HINT: ", "")


def test_startup_timeout_ends_the_wait_and_says_how_long_it_was(own: Database) -> None:
    own.server.stop()
    output = own.refused(DATABASE_STARTUP_TIMEOUT="1")
    assert "waiting up to 1 s for the database" in output
    assert "cannot connect to the database after " in output


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("postgres:multica@", "postgres:wr0ng@"), 'password authentication failed for user "postgres"'),
        (("postgres:multica@", "nobody_here:multica@"), 'user "nobody_here"'),
        (("test_", "no_such_test_"), 'database "no_such_test_'),
        (("sslmode=disable", "sslmode=require"), "SSL"),
    ],
)
def test_refused_login_is_final(v034: Database, change: tuple[str, str], told: str) -> None:
    url = v034.url.replace(*change)
    assert url != v034.url
    output = v034.refused(DATABASE_URL=url, DATABASE_STARTUP_TIMEOUT="5s")
    assert told in output
    assert "waiting" not in output
    assert output.count("FAILED: cannot connect to the database: ") == 1
    assert len(output[output.index("FAILED:") :].splitlines()) == 2
    assert "wr0ng" not in output
    assert ":multica@" not in output


def test_unknown_host_is_one_sentence(v034: Database) -> None:
    output = v034.refused(
        DATABASE_URL="postgres://u:s3cret@no-such-host.invalid/db", DATABASE_STARTUP_TIMEOUT="0"
    )
    assert "cannot connect to the database: " in output
    assert "no-such-host.invalid" in output
    assert "s3cret" not in output
    assert len(output[output.index("FAILED:") :].splitlines()) == 2


# Databases that do not suit.


def unsuitable(database: Database, url: str | None = None) -> str:
    """Return the one sentence, without its hint, of an upgrade that changed nothing."""
    before = database.catalog()
    output = database.refused(DATABASE_URL=url or database.url)
    message, hint = output[output.index("FAILED: ") :].splitlines()
    assert hint.startswith("HINT: ")
    assert database.catalog() == before
    assert advisory_locks(database) == []
    return message.removeprefix("FAILED: ")


def test_standby_is_refused(own: Database) -> None:
    data = Path(own.value("SHOW data_directory"))
    own.server.stop()
    (data / "standby.signal").touch(mode=0o644)
    try:
        own.server.restart()
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            own.execute("CREATE TABLE t ()")
        assert unsuitable(own) == "this server is a standby: it replays a primary and cannot be changed"
    finally:
        own.server.stop()
        (data / "standby.signal").unlink()


def test_read_only_sessions_are_refused(v034: Database) -> None:
    set_on_database(v034, {"default_transaction_read_only": "on"})
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        v034.execute("CREATE TABLE t ()")
    assert unsuitable(v034) == (
        "sessions of role postgres are read-only here (default_transaction_read_only)"
    )


def test_usage_in_another_schema_is_refused(v034: Database) -> None:
    v034.execute("CREATE SCHEMA elsewhere")
    v034.execute("ALTER TABLE task_usage SET SCHEMA elsewhere")
    assert unsuitable(v034) == "task_usage is in schema elsewhere, not in public"


def test_role_that_is_no_member_of_the_owner_is_refused(v034: Database, make_role: MakeRole) -> None:
    stranger = make_role("stranger")
    message = unsuitable(v034, v034.url_of(stranger))
    assert message.startswith(f"role {stranger} may not act for the owner of: agent, agent_runtime, ")
    assert "task_usage" in message


def test_owner_that_may_not_create_in_public_is_refused(v034: Database, make_role: MakeRole) -> None:
    owner = make_role("owner")
    give_objects_to(v034, owner)
    url = v034.url_of(owner)
    assert unsuitable(v034, url) == f"role {owner} may not create objects in schema public"
    # The hint is what cures it.
    v034.execute(f"GRANT CREATE ON SCHEMA public TO {owner}")
    v034.upgrade(DATABASE_URL=url)
    assert v034.revision == "104"


def test_member_of_the_owner_migrates_and_new_objects_belong_to_the_owner(
    v034: Database, make_role: MakeRole
) -> None:
    event(v034.url, small_world(v034.url), "2026-01-01 12:30+00")
    owner, migrator = make_role("owner"), make_role("migrator")
    give_objects_to(v034, owner)
    v034.execute(f"GRANT CREATE ON SCHEMA public TO {owner}")
    url = v034.url_of(migrator)
    unsuitable(v034, url)
    v034.execute(f"GRANT {owner} TO {migrator}")
    # alembic_version is the migrating role's own.
    v034.execute(f"GRANT CREATE ON SCHEMA public TO {migrator}")
    v034.upgrade(DATABASE_URL=url)
    assert v034.revision == "104"
    assert v034.value("SELECT sum(event_count) FROM task_usage_hourly") == 1
    assert v034.execute(
        "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relname LIKE 'task_usage_hourly%'"
        " UNION SELECT DISTINCT pg_get_userbyid(proowner) FROM pg_proc WHERE proname LIKE '%usage_hourly%'"
    ) == [(owner,)]
