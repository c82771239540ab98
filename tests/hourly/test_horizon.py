"""task_usage_hourly_horizon(): a time that no transaction began before that has written usage and is open."""

from __future__ import annotations

import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from psycopg import IsolationLevel

from tests.support.database import Connection, Database, MakeDatabase
from tests.support.deadline import DEADLINE_S
from tests.support.horizon import begin, named_at_once, rewrite_function, stuck_writer, without_margin
from tests.support.oracle import differing_hours
from tests.support.product import event, small_world, task, upsert_usage, usage, wait_until
from tests.support.roles import MakeRole
from tests.support.rollup import TICK, WATERMARK, wrong_hours
from tests.support.server import start_server
from tests.support.sessions import is_blocked, is_polling
from tests.support.v034 import build_v034

pytestmark = pytest.mark.server

CLOCK = "SELECT clock_timestamp()"
FIVE_MINUTES = timedelta(minutes=5)

# Text, because psycopg's datetime knows no infinity.
HORIZON = "SELECT task_usage_hourly_horizon(%s)::text"
AT_ONCE = "0 seconds"
LONG = "20 seconds"
WRITE = "enqueue_task_usage_hourly_dirty_for_tu_write()"
HELD_BACK_BY = "task_usage_hourly_held_back_by()"
BOUNDED = f"-c statement_timeout={DEADLINE_S:.0f}s"

# What makes old writers queue what they write.
OF_WRITES = "trg_tu_dirty_hourly_write"
# The lock that every writer of usage holds until its transaction ends.
WRITES = "LOCK TABLE task_usage IN ROW EXCLUSIVE MODE"
READS_AND_WRITES_ELSEWHERE = [
    pytest.param((), id="only_begun"),
    pytest.param(("SELECT FROM task_usage",), id="has_read"),
    pytest.param(("SELECT FROM task_usage FOR SHARE",), id="has_locked_a_row"),
    pytest.param(("UPDATE issue SET title = title",), id="has_written_elsewhere"),
]


def horizon(connection: Connection, wait: str = AT_ONCE) -> datetime | None:
    """Return the horizon, None for -infinity."""
    row = connection.execute(HORIZON, [wait]).fetchone()
    assert row is not None
    return None if row[0] == "-infinity" else datetime.fromisoformat(row[0])


def horizon_of(db: Database, wait: str = AT_ONCE) -> datetime | None:
    """Return the horizon as a session of its own sees it."""
    with db.connect(autocommit=True, options="-c TimeZone=UTC") as connection:
        return horizon(connection, wait)


def at_horizon(db: Database, **conninfo: str) -> Connection:
    return db.connect(autocommit=True, options=f"{BOUNDED} -c TimeZone=UTC", **conninfo)


def login(db: Database, role: str) -> Connection:
    return at_horizon(db, user=role, password=role)


# The clock


def test_horizon_of_a_quiet_database_is_five_minutes_ago(at_102: Database) -> None:
    before = at_102.value(CLOCK)
    found = horizon_of(at_102)
    assert found is not None
    assert before - FIVE_MINUTES <= found <= at_102.value(CLOCK) - FIVE_MINUTES


@pytest.mark.parametrize("open_transactions", [0, 1, 3])
def test_horizon_is_never_later_than_five_minutes_ago(at_102: Database, open_transactions: int) -> None:
    for _ in range(open_transactions):
        begin(at_102, "SELECT FROM workspace")
    found = horizon_of(at_102)
    assert found is not None
    assert found <= at_102.value(CLOCK) - FIVE_MINUTES


# Transactions this role may see


def test_transaction_that_has_written_usage_bounds_the_horizon_by_its_start(at_102: Database) -> None:
    without_margin(at_102)
    writer, began = begin(at_102, WRITES)
    assert horizon_of(at_102) == began
    assert horizon_of(at_102, LONG) == began
    writer.execute("COMMIT")
    found = horizon_of(at_102)
    assert found is not None
    assert found > began


@pytest.mark.parametrize("statements", READS_AND_WRITES_ELSEWHERE)
def test_transaction_that_has_written_no_usage_holds_nothing_back(
    at_102: Database, statements: tuple[str, ...]
) -> None:
    without_margin(at_102)
    _, began = begin(at_102, *statements)
    found = horizon_of(at_102)
    assert found is not None
    assert found > began


def test_writer_that_still_waits_for_its_lock_holds_nothing_back(at_102: Database) -> None:
    without_margin(at_102)
    holder = at_102.connect()
    holder.execute("LOCK TABLE task_usage IN SHARE MODE")
    writer, began = begin(at_102, options=BOUNDED)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(writer.execute, WRITES)
        wait_until(lambda: is_blocked(at_102, writer), "the writer waits")
        found = horizon_of(at_102)
        holder.rollback()
        writing.result()
    assert found is not None
    assert found > began
    assert horizon_of(at_102) == began


@pytest.mark.parametrize("statements", READS_AND_WRITES_ELSEWHERE)
@pytest.mark.parametrize(
    "switched_off",
    # Enabled for some sessions only is not enough: a restore plays replica, a server does not.
    ["DISABLE TRIGGER", "ENABLE TRIGGER", "ENABLE REPLICA TRIGGER", "DROP TRIGGER"],
)
def test_every_open_transaction_counts_where_writers_do_not_queue_themselves(
    at_102: Database, statements: tuple[str, ...], switched_off: str
) -> None:
    without_margin(at_102)
    at_102.execute(
        f"DROP TRIGGER {OF_WRITES} ON task_usage"
        if switched_off == "DROP TRIGGER"
        else f"ALTER TABLE task_usage {switched_off} {OF_WRITES}"
    )
    # A session that is in no transaction is nobody's bound.
    at_102.connect(autocommit=True)
    writer, began = begin(at_102, *statements)
    if not statements:
        # Neither a lock nor a transaction id gives this one away.
        assert at_102.execute(
            "SELECT backend_xid, backend_xmin, state, (SELECT count(*) FROM pg_locks l"
            " WHERE l.pid = a.pid AND l.locktype = 'relation')"
            " FROM pg_stat_activity a WHERE pid = %s",
            writer.info.backend_pid,
        ) == [(None, None, "idle in transaction", 0)]
    assert horizon_of(at_102) == began


def test_oldest_of_several_open_transactions_bounds_the_horizon(at_102: Database) -> None:
    without_margin(at_102)
    oldest, first = begin(at_102, WRITES)
    _, second = begin(at_102, WRITES)
    assert horizon_of(at_102) == first
    oldest.execute("ROLLBACK")
    assert horizon_of(at_102) == second


def test_transaction_of_another_database_is_ignored(at_102: Database, make_database: MakeDatabase) -> None:
    without_margin(at_102)
    elsewhere = make_database("102")
    _, began = begin(elsewhere, WRITES)
    before = at_102.value(CLOCK)
    found = horizon_of(at_102)
    assert found is not None
    assert found >= before > began


def test_caller_s_own_transaction_is_ignored(at_102: Database) -> None:
    without_margin(at_102)
    caller = at_102.connect(options="-c TimeZone=UTC")
    caller.execute(WRITES)
    before = at_102.value(CLOCK)
    found = horizon(caller)
    assert found is not None
    assert found >= before
    caller.rollback()


@pytest.mark.parametrize("level", [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ])
def test_horizon_sees_what_began_since_it_was_last_asked_in_the_same_transaction(
    at_102: Database, level: IsolationLevel
) -> None:
    without_margin(at_102)
    seen = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
    caller = at_102.connect(options="-c TimeZone=UTC")
    caller.isolation_level = level
    assert horizon(caller) is not None
    caller.execute(seen, [0])
    writer, began = begin(at_102, WRITES)
    # The trap: the transaction keeps the first report of the sessions that it has read.
    assert caller.execute(seen, [writer.info.backend_pid]).fetchone() == (0,)
    assert horizon(caller) == began
    caller.rollback()


def test_session_that_does_not_report_is_waited_for(at_102: Database) -> None:
    silent, began = begin(at_102, WRITES, options="-c track_activities=off")
    assert began is None
    assert horizon_of(at_102) is None
    silent.execute("COMMIT")
    assert horizon_of(at_102) is not None


# Transactions this role may not see


def test_invisible_open_transaction_leaves_no_horizon_after_the_wait(
    at_102: Database, make_role: MakeRole
) -> None:
    caller = login(at_102, make_role("runner"))
    assert horizon(caller) is not None
    writer, began = begin(at_102, WRITES)
    assert began is not None
    assert caller.execute(
        "SELECT xact_start, state FROM pg_stat_activity WHERE pid = %s", [writer.info.backend_pid]
    ).fetchone() == (None, None)
    assert horizon(caller, AT_ONCE) is None
    assert horizon(caller, "50 milliseconds") is None
    writer.execute("COMMIT")
    assert horizon(caller) is not None


def test_invisible_transaction_that_ends_during_the_wait_leaves_a_horizon_before_the_wait(
    at_102: Database, make_role: MakeRole
) -> None:
    without_margin(at_102)
    caller = login(at_102, make_role("runner"))
    writer, _ = begin(at_102, WRITES)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(horizon, caller, LONG)
        wait_until(lambda: is_polling(at_102, caller), "the horizon waits for the transaction")
        # One that began since is no reason to wait: whatever it writes is dated later.
        _, later = begin(at_102, WRITES)
        writer.execute("COMMIT")
        found = waiting.result()
    assert found is not None
    assert found < later


def test_role_that_may_read_all_statistics_need_not_wait(at_102: Database, make_role: MakeRole) -> None:
    without_margin(at_102)
    caller = login(at_102, make_role("runner", "IN ROLE pg_read_all_stats"))
    _, began = begin(at_102, WRITES)
    assert horizon(caller) == began


def test_role_sees_its_own_transactions_without_any_grant(at_102: Database, make_role: MakeRole) -> None:
    without_margin(at_102)
    role = make_role("runner")
    caller, writer = login(at_102, role), login(at_102, role)
    writer.execute("BEGIN")
    at_102.execute(f"GRANT INSERT ON task_usage TO {role}")
    writer.execute(WRITES)
    (began,) = at_102.execute(
        "SELECT xact_start FROM pg_stat_activity WHERE pid = %s", writer.info.backend_pid
    )[0]
    assert horizon(caller) == began


def test_tick_without_a_horizon_drains_the_queue_and_leaves_the_watermark(
    at_102: Database, make_role: MakeRole
) -> None:
    role = make_role("runner")
    at_102.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
    caller = login(at_102, role)
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00")
    begin(at_102, WRITES)
    before = at_102.value(WATERMARK)
    assert caller.execute(TICK).fetchone() == (1,)
    assert at_102.value(WATERMARK) == before
    assert wrong_hours(at_102) == []


# Prepared transactions


@pytest.mark.parametrize("end", ["COMMIT PREPARED", "ROLLBACK PREPARED"])
def test_prepared_transaction_that_wrote_usage_leaves_no_horizon_until_it_is_resolved(
    at_102: Database, end: str
) -> None:
    world = small_world(at_102.url)
    reported = task(at_102.url, world.agents[0])
    gid = uuid.uuid4().hex
    with at_102.connect() as writer:
        upsert_usage(writer, reported)
        writer.execute(f"PREPARE TRANSACTION '{gid}'")
    try:
        # Nobody has it open any more.
        writers = "SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND datname = %s"
        assert at_102.value(writers, at_102.name) == 0
        assert horizon_of(at_102) is None
        at_102.execute(TICK)
        assert at_102.value(WATERMARK) == datetime(1970, 1, 1, tzinfo=UTC)
    finally:
        at_102.execute(f"{end} '{gid}'")
    assert horizon_of(at_102) is not None
    at_102.execute(TICK)
    assert at_102.value(WATERMARK) > datetime(1971, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "statement",
    ["UPDATE issue SET title = title", "SELECT FROM task_usage", "SELECT FROM task_usage FOR SHARE"],
)
def test_prepared_transaction_that_did_not_write_usage_is_ignored(at_102: Database, statement: str) -> None:
    event(at_102.url, small_world(at_102.url), "2025-03-01 10:15+00")
    gid = uuid.uuid4().hex
    with at_102.connect() as writer:
        writer.execute(statement)
        writer.execute("UPDATE workspace SET name = name")
        writer.execute(f"PREPARE TRANSACTION '{gid}'")
    try:
        assert horizon_of(at_102) is not None
    finally:
        at_102.execute(f"ROLLBACK PREPARED '{gid}'")


def test_prepared_transaction_of_another_database_is_ignored(
    at_102: Database, make_database: MakeDatabase
) -> None:
    elsewhere = make_database("102")
    world = small_world(elsewhere.url)
    gid = uuid.uuid4().hex
    with elsewhere.connect() as writer:
        event(writer, world)
        writer.execute(f"PREPARE TRANSACTION '{gid}'")
    try:
        assert horizon_of(elsewhere) is None
        assert horizon_of(at_102) is not None
    finally:
        elsewhere.execute(f"ROLLBACK PREPARED '{gid}'")


def test_move_prepared_before_a_tick_is_right_after_it_commits(at_102: Database) -> None:
    world = small_world(at_102.url)
    moved = task(at_102.url, world.agents[0])
    usage(at_102.url, moved, "2025-03-01 10:15+00")
    gid = uuid.uuid4().hex
    with at_102.connect() as writer:
        writer.execute("UPDATE agent_task_queue SET agent_id = %s", [world.agents[1]])
        writer.execute(f"PREPARE TRANSACTION '{gid}'")
    try:
        at_102.execute(TICK)
        at_102.execute(TICK)
        assert at_102.value(f"SELECT ({WATERMARK}) > now() - interval '1 hour'")
    finally:
        at_102.execute(f"COMMIT PREPARED '{gid}'")
    assert at_102.value(TICK) == 2
    assert differing_hours(at_102.url) == []


# A writer that stays open


def test_watermark_that_passes_an_open_writer_loses_its_row(at_102: Database) -> None:
    # "Five minutes ago" is to a writer open for longer what the clock is to this one.
    at_102.execute(
        "CREATE OR REPLACE FUNCTION task_usage_hourly_horizon(p_wait interval DEFAULT '2 seconds')"
        " RETURNS timestamptz LANGUAGE sql AS $$ SELECT clock_timestamp() $$"
    )
    world = small_world(at_102.url)
    reported = task(at_102.url, world.agents[0])
    writer, _ = begin(at_102)
    upsert_usage(writer, reported)
    at_102.execute(TICK)
    writer.execute("COMMIT")
    at_102.execute(TICK)
    assert len(differing_hours(at_102.url)) == 1
    at_102.execute("INSERT INTO task_usage_hourly_invalidation (task_id) VALUES (%s)", reported)
    assert at_102.value(TICK) == 1


def test_no_tick_passes_an_open_writer_and_its_row_is_rolled_up_when_it_commits(at_102: Database) -> None:
    without_margin(at_102)
    world = small_world(at_102.url)
    reported = task(at_102.url, world.agents[0])
    event(at_102.url, world, "2025-03-01 10:15+00")
    writer, began = begin(at_102)
    upsert_usage(writer, reported)
    for _ in range(3):
        at_102.execute(TICK)
        assert at_102.value(WATERMARK) <= began
    assert at_102.value(WATERMARK) == began
    writer.execute("COMMIT")
    assert at_102.value("SELECT count(*) FROM task_usage_hourly_invalidation") == 0

    assert at_102.value(TICK) == 1
    assert at_102.value(WATERMARK) > began
    assert differing_hours(at_102.url) == []
    assert at_102.value("SELECT sum(event_count) FROM task_usage_hourly") == 2


def test_writer_that_a_tick_has_passed_queues_what_it_writes(at_102: Database) -> None:
    without_margin(at_102)
    world = small_world(at_102.url)
    reported = task(at_102.url, world.agents[0])
    writer, began = begin(at_102, "SELECT FROM task_usage")
    at_102.execute(TICK)
    assert at_102.value(WATERMARK) > began
    upsert_usage(writer, reported)
    writer.execute("COMMIT")
    assert at_102.value("SELECT count(*) FROM task_usage_hourly_invalidation") == 1
    assert at_102.value(TICK) == 1
    assert wrong_hours(at_102) == []


def test_transactions_of_one_message_share_their_start_and_lose_nothing(at_102: Database) -> None:
    without_margin(at_102)
    reported = task(at_102.url, small_world(at_102.url).agents[0])
    held = at_102.connect(autocommit=True)
    held.execute("SELECT pg_advisory_lock(99)")
    server = at_102.connect(autocommit=True, options=BOUNDED)
    # Without parameters it is one message, whatever it holds.
    message = (
        "BEGIN; UPDATE task_usage SET input_tokens = 1 WHERE false; COMMIT; SELECT pg_advisory_lock(99);"
        f" BEGIN; INSERT INTO task_usage (task_id, model) VALUES ('{reported}', 'm'); COMMIT"
    )
    with ThreadPoolExecutor(1) as pool:
        reporting = pool.submit(server.execute, message.encode())
        wait_until(lambda: is_blocked(at_102, server), "the second transaction is about to begin")
        at_102.execute(TICK)
        watermark = at_102.value(WATERMARK)
        held.execute("SELECT pg_advisory_unlock(99)")
        reporting.result()
    # The trap: it began after the tick, and is dated before it.
    assert at_102.value("SELECT updated_at FROM task_usage") < watermark
    assert at_102.value(TICK) == 1
    assert wrong_hours(at_102) == []


def test_writer_older_than_four_minutes_queues_what_it_writes_whatever_the_watermark_says(
    at_102: Database,
) -> None:
    # A tick that has passed it and has not committed shows no watermark.
    rewrite_function(at_102, WRITE, "'4 minutes'::pg_catalog.interval", "'0'::pg_catalog.interval")
    reported = task(at_102.url, small_world(at_102.url).agents[0])
    writer, _ = begin(at_102)
    upsert_usage(writer, reported)
    writer.execute("COMMIT")
    assert at_102.value("SELECT count(*) FROM task_usage_hourly_invalidation") == 1


# Who holds it back


def test_writer_that_holds_the_horizon_back_is_named(at_102: Database) -> None:
    rewrite_function(at_102, HELD_BACK_BY, "clock_timestamp() - interval '5 minutes'", "clock_timestamp()")
    assert at_102.execute("SELECT * FROM task_usage_hourly_held_back_by()") == []
    writer, _ = begin(at_102, WRITES, application_name="nightly import")
    ((who, hint),) = at_102.execute("SELECT who, hint FROM task_usage_hourly_held_back_by()")
    pid = writer.info.backend_pid
    assert who.startswith(f"pid {pid} (postgres, nightly import, idle in transaction since 20")
    assert hint == f"wait for that session, or end it: SELECT pg_terminate_backend({pid})"


def test_of_many_who_hold_the_horizon_back_three_are_named_and_first_whose_start_is_hidden(
    at_102: Database,
) -> None:
    named_at_once(at_102)
    for name in ("first", "second", "third"):
        begin(at_102, WRITES, application_name=name)
    begin(at_102, WRITES, application_name="hidden", options="-c track_activities=off")
    ((who, hint),) = at_102.execute("SELECT who, hint FROM task_usage_hourly_held_back_by()")
    assert re.findall(r"pid \d+ \(postgres, (\w+), ", who) == ["hidden", "first", "second"]
    named = re.findall(r"pid (\d+) ", who)
    assert re.findall(r"pg_terminate_backend\((\d+)\)", hint) == named


@pytest.mark.parametrize(("age", "said"), [("9 minutes", False), ("11 minutes", True)])
def test_tick_says_who_holds_it_back_by_more_than_ten_minutes(at_102: Database, age: str, said: bool) -> None:
    stuck_writer(at_102, age=age)
    at_102.execute(TICK)
    assert at_102.value("SELECT last_error IS NOT NULL FROM task_usage_hourly_rollup_state") is said


def test_tick_that_cannot_move_the_watermark_writes_down_who_holds_it_back(
    at_102: Database, make_role: MakeRole
) -> None:
    role = make_role("runner")
    at_102.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
    writer, _ = begin(at_102, WRITES)
    login(at_102, role).execute(TICK)
    error = at_102.value("SELECT last_error FROM task_usage_hourly_rollup_state")
    assert error.startswith(f"the watermark is held back by pid {writer.info.backend_pid} (")
    assert error.endswith(f"; or GRANT pg_read_all_stats TO {role}")
    writer.execute("COMMIT")
    login(at_102, role).execute(TICK)
    assert at_102.value("SELECT last_error FROM task_usage_hourly_rollup_state") is None


def test_prepared_transaction_that_holds_the_horizon_back_is_named(at_102: Database) -> None:
    gid = uuid.uuid4().hex
    with at_102.connect() as writer:
        writer.execute(WRITES)
        writer.execute("UPDATE workspace SET name = name")
        writer.execute(f"PREPARE TRANSACTION '{gid}'")
    try:
        ((who, hint),) = at_102.execute("SELECT who, hint FROM task_usage_hourly_held_back_by()")
        assert who.startswith(f"prepared transaction '{gid}' (postgres, since 20")
        assert f"ROLLBACK PREPARED '{gid}' or COMMIT PREPARED '{gid}'" in hint
    finally:
        at_102.execute(f"ROLLBACK PREPARED '{gid}'")


# Processes that are nobody's session


def test_autovacuum_is_neither_waited_for_nor_a_bound() -> None:
    settings = {"autovacuum_naptime": "1s", "autovacuum_max_workers": "1"}
    with start_server(settings) as server:
        server.create_database("multica")
        db = Database(server, "multica")
        with db.connect() as connection:
            build_v034(connection)
        db.upgrade("102")
        without_margin(db)
        db.execute("CREATE ROLE runner LOGIN PASSWORD 'runner'")
        # As slow as it can be, so that it is at work for as long as this test looks.
        db.execute(
            "CREATE TABLE swollen (filler text) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 1,"
            " autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_insert_threshold = -1,"
            " autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)"
        )
        db.execute("INSERT INTO swollen SELECT repeat('x', 700) FROM generate_series(1, 2000)")
        db.execute("DELETE FROM swollen")
        at_work = (
            "SELECT xact_start FROM pg_stat_activity WHERE backend_type = 'autovacuum worker'"
            " AND query LIKE 'autovacuum: VACUUM%swollen%' AND xact_start IS NOT NULL"
        )
        wait_until(lambda: db.execute(at_work), "autovacuum is at work")
        before = db.value(CLOCK)
        began = db.value(at_work)
        with login(db, "runner") as runner:
            # Where writers queue themselves, and where every open transaction counts.
            for state in ("ENABLE ALWAYS", "DISABLE"):
                db.execute(f"ALTER TABLE task_usage {state} TRIGGER {OF_WRITES}")
                for found in (horizon_of(db), horizon(runner)):
                    assert found is not None
                    assert found >= before > began
            # The trap: to this role it is a transaction like any other it may not see.
            assert runner.execute(
                "SELECT count(*) FROM pg_stat_activity s JOIN pg_locks l ON l.pid = s.pid"
                " AND l.locktype = 'virtualxid' WHERE s.datname = current_database()"
                " AND s.pid <> pg_backend_pid() AND s.xact_start IS NULL"
            ).fetchone() == (1,)
        assert db.value(at_work) == began
