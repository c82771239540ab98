"""Who is in the way, and who is not: holders of locks by database, mode and kind, asked directly."""

from __future__ import annotations

import uuid

import psycopg
import pytest
import sqlalchemy as sa

from tests.support.database import Database, MakeDatabase
from tests.support.pg_cron import PG_CRON
from tests.support.product import event, small_world, wait_until
from tests.support.sessions import is_blocked
from usage_rollup.session import blockers
from usage_rollup.session.connection import transaction

pytestmark = pytest.mark.server

NOBODY = "a session that has just ended"

MODES = (
    *("ACCESS SHARE", "ROW SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE"),
    *("SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE"),
)


# Modes


def test_modes_that_keep_a_wanted_one_out_are_those_that_do_so_on_the_server(at_102: Database) -> None:
    holder, other = at_102.connect(), at_102.connect()

    def keeps_out(held: str, wanted: str) -> bool:
        with holder.transaction(force_rollback=True), other.transaction(force_rollback=True):
            holder.execute(f"LOCK TABLE issue IN {held} MODE")
            try:
                with other.transaction():
                    other.execute(f"LOCK TABLE issue IN {wanted} MODE NOWAIT")
            except psycopg.errors.LockNotAvailable:
                return True
            return False

    said = {wanted: set(held) for wanted, held in at_102.execute(blockers.CONFLICTS)}
    # As pg_locks writes them.
    held_as = {mode: f"{mode.title().replace(' ', '')}Lock" for mode in MODES}
    assert said == {wanted: {held_as[held] for held in MODES if keeps_out(held, wanted)} for wanted in MODES}


# Table locks


def of_table_locks(session: sa.Connection, mode: str) -> str:
    """Return who keeps `mode` on issue from this session."""
    wanted = f"SELECT 'public.issue'::regclass AS relation, '{mode}' AS mode"
    found = session.execute(sa.text(blockers.sql("table_locks", wanted=wanted))).one()
    return str(found.who)


def test_writer_is_in_the_way_of_share_row_exclusive_and_a_reader_is_not(at_102: Database) -> None:
    reader, writer = at_102.connect(), at_102.connect()
    reader.execute("SELECT FROM issue")
    reader.execute("SELECT FROM project FOR SHARE")
    with at_102.migration_connection() as session:
        assert of_table_locks(session, "SHARE ROW EXCLUSIVE") == NOBODY
        reader.execute("SELECT FROM issue FOR UPDATE")
        assert of_table_locks(session, "SHARE ROW EXCLUSIVE") == NOBODY
        writer.execute("UPDATE issue SET title = title")
        said = of_table_locks(session, "SHARE ROW EXCLUSIVE")
        assert said.startswith(f"pid {writer.info.backend_pid} (")
        assert f"pid {reader.info.backend_pid} (" not in said
        assert f"pid {reader.info.backend_pid} (" in of_table_locks(session, "EXCLUSIVE")


def test_who_only_waits_for_a_table_or_holds_it_in_this_very_session_is_not_in_the_way(
    at_102: Database,
) -> None:
    holder, waiter = at_102.connect(), at_102.connect()
    holder.execute("LOCK TABLE issue IN SHARE UPDATE EXCLUSIVE MODE")
    waiter.pgconn.send_query(b"BEGIN; LOCK TABLE issue IN SHARE UPDATE EXCLUSIVE MODE")
    wait_until(lambda: is_blocked(at_102, waiter), "another session waits for the table")
    with at_102.migration_connection() as session, transaction(session):
        session.exec_driver_sql("LOCK TABLE public.issue IN ROW EXCLUSIVE MODE")
        said = of_table_locks(session, "SHARE")
        assert said.startswith(f"pid {holder.info.backend_pid} (")
        assert said.count("pid ") == 1


def test_table_of_the_same_number_in_another_database_is_in_nobody_s_way(make_database: MakeDatabase) -> None:
    one, other = make_database("102"), make_database("102")
    # Clones of one template number their tables alike.
    assert one.value("SELECT 'issue'::regclass::oid") == other.value("SELECT 'issue'::regclass::oid")
    other.connect().execute("LOCK TABLE issue")
    with one.migration_connection() as session, other.migration_connection() as elsewhere:
        assert of_table_locks(elsewhere, "ACCESS SHARE") != NOBODY
        assert of_table_locks(session, "ACCESS SHARE") == NOBODY


def test_prepared_transaction_is_named_in_its_own_database_with_what_ends_it(
    make_database: MakeDatabase,
) -> None:
    one, other = make_database("102"), make_database("102")
    gids = {database.name: f"left {uuid.uuid4()}" for database in (one, other)}
    for database in (one, other):
        writer = database.connect()
        small_world(writer)
        writer.execute(f"PREPARE TRANSACTION '{gids[database.name]}'")
    try:
        for database in (one, other):
            with database.migration_connection() as session:
                said = of_table_locks(session, "SHARE")
            assert said.startswith(f"prepared transaction '{gids[database.name]}' (postgres, since 20")
            assert said.count("prepared transaction") == 1
    finally:
        for database in (one, other):
            database.execute(f"ROLLBACK PREPARED '{gids[database.name]}'")


# Advisory locks


def test_only_who_holds_this_advisory_lock_in_this_database_is_named(make_database: MakeDatabase) -> None:
    one, other = make_database("102"), make_database("102")
    elsewhere = other.connect(autocommit=True)
    elsewhere.execute("SELECT pg_advisory_lock(4246)")
    # Keys that are halves, and another that ends alike.
    one.connect(autocommit=True).execute(
        "SELECT pg_advisory_lock(0, 4246), pg_advisory_lock(4246 + (1 << 16))"
    )
    one.connect(autocommit=True).execute("SELECT pg_advisory_lock((1::bigint << 32) + 4246)")
    with one.migration_connection() as session:
        assert blockers.of_advisory_lock(session, 4246).who == NOBODY
        holder, waiter = one.connect(autocommit=True), one.connect(autocommit=True)
        holder.execute("SELECT pg_advisory_lock(4246)")
        waiter.pgconn.send_query(b"SELECT pg_advisory_lock(4246)")
        wait_until(lambda: is_blocked(one, waiter), "another session waits for the lock")
        found = blockers.of_advisory_lock(session, 4246)
        pid = holder.info.backend_pid
        assert found.who.startswith(f"pid {pid} (")
        assert found.who.count("pid ") == 1
        assert found.hint == f"wait for that session, or end it: SELECT pg_terminate_backend({pid})"


# A statement's wait for a lock


def of_a_wait(session: sa.Connection) -> tuple[str, str]:
    """Return which tables a statement of ours may have waited for, and who held them."""
    said = blockers.lock_wait(session, psycopg.errors.LockNotAvailable())
    tables = said.message.removesuffix(" was not free in time: another session holds a lock that this needs")
    assert said.detail is not None
    return tables, said.detail.removeprefix("in the way: ")


# What statements of ours would wait for, by the table that is named.
IN_THE_WAY = {
    "agent": "LOCK TABLE agent",
    "task_usage": "REINDEX INDEX idx_task_usage_created_at",
    "task_usage_daily": "LOCK TABLE legacy_usage_2.task_usage_daily",
    "task_usage_hourly": "LOCK TABLE task_usage_hourly IN SHARE MODE",
    "task_usage_hourly_backfill": "LOCK TABLE task_usage_hourly_backfill IN SHARE ROW EXCLUSIVE MODE",
    "task_usage_hourly_dirty": "LOCK TABLE task_usage_hourly_dirty IN EXCLUSIVE MODE",
    "task_usage_hourly_invalidation": "LOCK TABLE task_usage_hourly_invalidation IN SHARE MODE",
    "task_usage_hourly_left_out": "INSERT INTO task_usage_hourly_left_out VALUES (now())",
    "task_usage_hourly_rollup_state": "SELECT FROM task_usage_hourly_rollup_state FOR UPDATE",
    "schema_migrations": "INSERT INTO schema_migrations VALUES ('somebody''s')",
    "alembic_version": "SELECT FROM alembic_version FOR UPDATE",
    "pg_description": "LOCK TABLE pg_catalog.pg_description",
    "job": "LOCK TABLE cron.job IN SHARE MODE",
}
# What keeps none of them waiting.
IN_NOBODYS_WAY = (
    "SELECT FROM task_usage",
    "SELECT FROM task_usage_hourly",
    # A server that writes usage, and queues its change.
    "DELETE FROM task_usage",
    # Of the tables that we only read, what keeps writers out.
    "LOCK TABLE task_usage IN EXCLUSIVE MODE",
    "LOCK TABLE task_usage_daily IN SHARE MODE",
    # No row is held yet.
    "LOCK TABLE task_usage_hourly IN ROW EXCLUSIVE MODE",
    "LOCK TABLE task_usage_hourly IN ROW SHARE MODE",
    "LOCK TABLE task_usage_hourly IN SHARE UPDATE EXCLUSIVE MODE",
    "LOCK TABLE somebody_s",
    "LOCK TABLE elsewhere.task_usage_hourly",
    "LOCK TABLE usage_rollup_version",
    # A worker of the run itself.
    "SELECT pg_advisory_lock_shared(4246); UPDATE task_usage_hourly_rollup_state SET last_run_rows = 0",
)


@pytest.fixture
def crowded(at_102: Database) -> Database:
    event(at_102.url, small_world(at_102.url), "2025-03-01 10:15+00")
    at_102.execute(PG_CRON)
    at_102.execute(
        "CREATE SCHEMA legacy_usage_2; CREATE TABLE legacy_usage_2.task_usage_daily ();"
        "CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.task_usage_hourly ();"
        "CREATE TABLE somebody_s (); CREATE TABLE usage_rollup_version ()"
    )
    return at_102


def test_who_keeps_a_statement_of_ours_waiting_is_named_with_the_table(crowded: Database) -> None:
    with crowded.migration_connection() as session:
        assert of_a_wait(session) == ("a table", NOBODY)
        for table, statement in IN_THE_WAY.items():
            with crowded.connect() as holder:
                holder.execute(statement)
                named, who = of_a_wait(session)
                assert named == table
                assert who.startswith(f"pid {holder.info.backend_pid} ("), table
                assert who.count("pid ") == 1
                holder.rollback()
        session.exec_driver_sql("SET usage_rollup.version_table = 'usage_rollup_version'")
        with crowded.connect() as holder:
            holder.execute("LOCK TABLE usage_rollup_version IN SHARE MODE")
            assert of_a_wait(session)[0] == "usage_rollup_version"
            holder.rollback()


def test_who_keeps_no_statement_of_ours_waiting_is_not_named(crowded: Database) -> None:
    with crowded.migration_connection() as session:
        for statement in IN_NOBODYS_WAY:
            with crowded.connect() as holder:
                holder.execute(statement)
                assert of_a_wait(session) == ("a table", NOBODY), statement
                holder.rollback()


def test_mode_that_is_still_waited_for_keeps_out_who_comes_later(crowded: Database) -> None:
    reader, waiter = crowded.connect(), crowded.connect()
    reader.execute("SELECT FROM task_usage_hourly")
    waiter.pgconn.send_query(b"BEGIN; LOCK TABLE task_usage_hourly")
    wait_until(lambda: is_blocked(crowded, waiter), "another session waits for the table")
    with crowded.migration_connection() as session:
        named, who = of_a_wait(session)
    assert named == "task_usage_hourly"
    assert who.startswith(f"pid {waiter.info.backend_pid} (")
    assert who.count("pid ") == 1


def test_wait_is_not_for_who_is_in_another_database_or_for_this_session_itself(
    make_database: MakeDatabase,
) -> None:
    one, other = make_database("102"), make_database("102")
    other.connect().execute("LOCK TABLE task_usage_hourly")
    with (
        one.migration_connection() as session,
        other.migration_connection() as elsewhere,
        transaction(session),
    ):
        session.exec_driver_sql("LOCK TABLE public.task_usage_hourly")
        assert of_a_wait(elsewhere)[0] == "task_usage_hourly"
        assert of_a_wait(session) == ("a table", NOBODY)
