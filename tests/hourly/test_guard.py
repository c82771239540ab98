"""103's guard, met by an operator who runs the SQL by hand: no hook before it, no proof."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import errors

from tests.support.database import ROOT, Database
from tests.support.deadline import DEADLINE_S
from tests.support.legacy import LEGACY_TABLES
from tests.support.product import event, small_world, wait_until
from tests.support.rollup import MEASURES, corrupt, queued, run_hook
from tests.support.walks import advisory_locks
from usage_rollup.contract import LEGACY
from usage_rollup.errors import LockBusy
from usage_rollup.hourly import backfill
from usage_rollup.runner import table_locks
from usage_rollup.session.connection import transaction
from usage_rollup.session.options import Options

pytestmark = pytest.mark.server

SQL = (ROOT / "alembic" / "versions" / "103_drop_legacy_daily_rollups.up.sql").read_bytes()


LOCKED_TABLES = ["agent_task_queue", "issue", "task_usage", *LEGACY_TABLES]


def drop_by_hand(database: Database) -> None:
    """Run 103's SQL in one transaction of a session that proved nothing."""
    # Settings an operator's psql may bring along.
    with database.connect(options="-c TimeZone=Asia/Kathmandu -c DateStyle=German") as session:
        session.execute(SQL)


def refusal(database: Database) -> psycopg.errors.Diagnostic:
    """Run 103's SQL, which must refuse and change nothing; return the report."""
    before = database.catalog()
    with pytest.raises(psycopg.Error) as caught:
        drop_by_hand(database)
    report = caught.value.diag
    assert report.message_primary is not None
    assert report.message_primary.startswith("refusing to drop legacy daily rollups: "), caught.value
    assert report.message_detail
    assert report.message_hint
    assert database.catalog() == before
    return report


def legacy_tables(database: Database) -> int:
    """Return how many of the legacy tables are there."""
    count: int = database.value(
        "SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tablename = ANY (%s)",
        LEGACY_TABLES,
    )
    return count


@pytest.fixture
def used(at_102: Database) -> Database:
    """Return a database at 102 with usage that nothing has rolled up."""
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-01-10 10:20+00")
    event(at_102.url, world, "2025-03-11 23:59:59+00", None, agent=1, issue=2)
    event(at_102.url, world, agent=2, issue=3)
    return at_102


@pytest.fixture
def rolled_up(used: Database) -> Database:
    """Return a database at 102 whose usage is rolled up and proven, in a session that has ended."""
    run_hook(used)
    return used


def test_guard_passes_when_the_rollup_is_right(rolled_up: Database) -> None:
    drop_by_hand(rolled_up)
    assert legacy_tables(rolled_up) == 0


def test_guard_passes_when_there_is_no_usage(at_102: Database) -> None:
    drop_by_hand(at_102)
    assert legacy_tables(at_102) == 0


def test_guard_passes_without_usage_and_without_a_state_row(at_102: Database) -> None:
    at_102.execute("DELETE FROM task_usage_hourly_rollup_state")
    drop_by_hand(at_102)
    assert legacy_tables(at_102) == 0


def test_guard_passes_without_usage_and_without_a_state_table(at_102: Database) -> None:
    at_102.execute("DROP TABLE task_usage_hourly_rollup_state")
    drop_by_hand(at_102)
    assert legacy_tables(at_102) == 0


def test_guard_refuses_when_nothing_is_rolled_up_and_the_upgrade_heals_it(used: Database) -> None:
    report = refusal(used)
    assert "trails usage by more than one hour" in str(report.message_primary)
    assert "1970-01-01" in str(report.message_detail) or "01.01.1970" in str(report.message_detail)
    assert "alembic upgrade head" in str(report.message_hint)
    used.upgrade()
    assert legacy_tables(used) == 0


def test_guard_refuses_when_watermark_is_stale(rolled_up: Database) -> None:
    rolled_up.execute(
        "UPDATE task_usage_hourly_rollup_state SET watermark_at = now() - interval '61 minutes'"
    )
    assert "trails usage by more than one hour" in str(refusal(rolled_up).message_primary)
    # An hour and not a minute less: the limit is the contract's.
    rolled_up.execute(
        "UPDATE task_usage_hourly_rollup_state SET watermark_at = now() - interval '59 minutes'"
    )
    drop_by_hand(rolled_up)
    assert legacy_tables(rolled_up) == 0


def test_guard_passes_at_a_lag_of_exactly_an_hour_and_not_a_moment_more(rolled_up: Database) -> None:
    behind = (
        "UPDATE task_usage_hourly_rollup_state"
        " SET watermark_at = task_usage_hourly_latest_event() - interval '1 hour {}'"
    )
    rolled_up.execute(behind.format("1 microsecond"))
    assert "trails usage by more than one hour" in str(refusal(rolled_up).message_primary)
    rolled_up.execute(behind.format(""))
    drop_by_hand(rolled_up)
    assert legacy_tables(rolled_up) == 0


def test_guard_refuses_when_the_state_row_is_missing(rolled_up: Database) -> None:
    rolled_up.execute("DELETE FROM task_usage_hourly_rollup_state")
    assert "state row of the hourly rollup is missing" in str(refusal(rolled_up).message_primary)
    rolled_up.upgrade()
    assert legacy_tables(rolled_up) == 0


def test_guard_refuses_when_the_watermark_lies_in_the_future(rolled_up: Database) -> None:
    rolled_up.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() + interval '1 minute'")
    report = refusal(rolled_up)
    assert "lies in the future" in str(report.message_primary)

    # The hook refuses as well; what the hint says to type mends it.
    rolled_up.refused()
    command, _, rest = str(report.message_hint).partition(";")
    assert "alembic upgrade head" in rest
    rolled_up.execute(command)
    rolled_up.upgrade()
    assert legacy_tables(rolled_up) == 0


def test_guard_refuses_a_fresh_watermark_over_an_empty_rollup(used: Database) -> None:
    used.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now()")
    # Rows inserted with another timestamp than now() are queued: what is queued is not lost.
    used.execute("TRUNCATE task_usage_hourly_invalidation")
    report = refusal(used)
    assert "does not match raw usage" in str(report.message_primary)
    # As the session writes times.
    assert "Hours that differ: 3, from 10.01.2025 15:45:00" in str(report.message_detail)
    used.upgrade()
    assert legacy_tables(used) == 0


def test_guard_refuses_when_one_bucket_is_wrong(rolled_up: Database) -> None:
    bucket = "bucket_hour = '2025-01-10 10:00+00'"
    for measure in MEASURES:
        corrupt(rolled_up, bucket, measure)
        report = refusal(rolled_up)
        assert "does not match raw usage" in str(report.message_primary), measure
        assert "Hours that differ: 1" in str(report.message_detail), measure
        rolled_up.execute(f"UPDATE task_usage_hourly SET {measure} = {measure} - 1 WHERE {bucket}")
    corrupt(rolled_up)
    rolled_up.upgrade()
    assert legacy_tables(rolled_up) == 0


BUCKET_OF_NOTHING = """
INSERT INTO task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, provider, model)
VALUES ('2024-02-29 00:00+00', gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), '', '')
"""


def test_guard_refuses_when_a_bucket_is_left_without_raw_rows(rolled_up: Database) -> None:
    rolled_up.execute(BUCKET_OF_NOTHING)
    assert "Hours that differ: 1" in str(refusal(rolled_up).message_detail)
    rolled_up.upgrade()
    assert legacy_tables(rolled_up) == 0


def test_guard_refuses_what_is_left_over_when_there_is_no_usage_at_all(at_102: Database) -> None:
    at_102.execute(BUCKET_OF_NOTHING)
    assert "Hours that differ: 1" in str(refusal(at_102).message_detail)
    at_102.upgrade()
    assert legacy_tables(at_102) == 0


def test_guard_passes_over_what_is_queued(rolled_up: Database) -> None:
    rolled_up.execute("DELETE FROM task_usage WHERE created_at = '2025-01-10 10:20+00'")
    assert queued(rolled_up) > 0
    drop_by_hand(rolled_up)
    assert legacy_tables(rolled_up) == 0


def test_guard_believes_its_own_session_s_proof_of_this_watermark_and_of_no_other(
    rolled_up: Database,
) -> None:
    proof = (
        "SELECT set_config('usage_rollup.proof', {}, true)"
        " FROM task_usage_hourly_rollup_state WHERE watermark_at IS NOT NULL"
    )
    with rolled_up.connect() as session:
        session.execute("UPDATE task_usage_hourly SET event_count = 7")
        for other in (
            "''",
            "'proven'",
            "(watermark_at - interval '1 microsecond')::text",
            "(watermark_at + interval '1 microsecond')::text",
        ):
            with session.transaction(force_rollback=True):
                session.execute(proof.format(other))
                with pytest.raises(errors.ObjectNotInPrerequisiteState, match="does not match raw usage"):
                    session.execute(SQL)
        # What it has just compared it does not compare again, under locks that keep the server out.
        session.execute(proof.format("watermark_at::text"))
        session.execute(SQL)
        session.rollback()


PATIENCE = b"interval '5 seconds'"


def is_waiting(database: Database, session: psycopg.Connection) -> bool:
    """Tell whether the guard, run by `session`, is between two attempts to take 4246."""
    waits: bool = database.value(
        "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s", session.info.backend_pid
    )
    return waits


def test_guard_refuses_while_another_session_goes_on_writing_the_rollup(rolled_up: Database) -> None:
    assert SQL.count(PATIENCE) == 1
    writer = rolled_up.connect(autocommit=True)
    writer.execute("SELECT pg_advisory_lock(4246)")
    with rolled_up.connect() as session, pytest.raises(errors.LockNotAvailable) as caught:
        session.execute(SQL.replace(PATIENCE, b"interval '200 milliseconds'"))
    report = caught.value.diag
    assert report.message_primary == (
        "refusing to drop legacy daily rollups: another session is writing the hourly rollup"
    )
    assert report.message_detail == "Advisory lock 4246 is held."
    assert "alembic upgrade head" in str(report.message_hint)
    assert legacy_tables(rolled_up) == 6


def test_guard_waits_for_a_tick_that_is_running(rolled_up: Database) -> None:
    tick = rolled_up.connect()
    tick.execute("SELECT pg_advisory_xact_lock(4246), public.rollup_task_usage_hourly()")
    with ThreadPoolExecutor(1) as pool, rolled_up.connect() as session:
        # Only the tick's end may end the wait.
        dropping = pool.submit(session.execute, SQL.replace(PATIENCE, b"interval '1 hour'"))
        wait_until(lambda: is_waiting(rolled_up, session), "the guard waits for 4246")
        # It keeps nobody from a table meanwhile.
        assert exclusive_locks(rolled_up) == 0
        tick.commit()
        dropping.result(timeout=DEADLINE_S)
    assert legacy_tables(rolled_up) == 0


def test_guard_holds_4246_until_its_transaction_ends_and_no_longer(rolled_up: Database) -> None:
    with rolled_up.connect() as session:
        session.execute(SQL)
        assert advisory_locks(rolled_up) == [4246]
        session.rollback()
        assert advisory_locks(rolled_up) == []


def test_guard_waits_for_a_tick_whatever_tables_others_have_locked(rolled_up: Database) -> None:
    rolled_up.execute("CREATE TABLE elsewhere ()")
    rolled_up.connect().execute("LOCK TABLE elsewhere IN ACCESS EXCLUSIVE MODE")
    tick = rolled_up.connect()
    tick.execute("SELECT pg_advisory_xact_lock(4246)")
    with ThreadPoolExecutor(1) as pool, rolled_up.connect() as session:
        dropping = pool.submit(session.execute, SQL.replace(PATIENCE, b"interval '1 hour'"))
        wait_until(lambda: is_waiting(rolled_up, session) or dropping.done(), "the guard waits for 4246")
        tick.commit()
        dropping.result(timeout=30)
    assert legacy_tables(rolled_up) == 0


def test_guard_does_not_wait_under_table_locks_for_which_the_tick_waits(rolled_up: Database) -> None:
    tick = rolled_up.connect()
    tick.execute("SELECT pg_advisory_xact_lock(4246)")
    with (
        ThreadPoolExecutor(1) as pool,
        rolled_up.connect(options=f"-c statement_timeout={DEADLINE_S:.0f}s") as session,
    ):
        session.execute("LOCK TABLE task_usage IN ACCESS EXCLUSIVE MODE")
        ticking = pool.submit(tick.execute, "SELECT public.rollup_task_usage_hourly()")
        wait_until(
            lambda: rolled_up.value(
                "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pid = %s)", tick.info.backend_pid
            ),
            "the tick waits for task_usage",
        )
        # Were it to wait, each would wait for the other.
        with pytest.raises(errors.LockNotAvailable, match="another session is writing the hourly rollup"):
            session.execute(SQL.replace(PATIENCE, b"interval '1 hour'"))
        session.rollback()
        ticking.result(timeout=DEADLINE_S)
    tick.commit()


def test_guard_refuses_when_the_pipeline_is_not_installed(rolled_up: Database) -> None:
    rolled_up.execute("DROP FUNCTION task_usage_hourly_differences")
    report = refusal(rolled_up)
    assert "the hourly pipeline is not installed" in str(report.message_primary)
    assert "alembic downgrade 100" in str(report.message_hint)


def test_guard_refuses_without_the_hourly_table(rolled_up: Database) -> None:
    with rolled_up.connect() as session:
        session.execute("DROP TABLE task_usage_hourly")
        with pytest.raises(errors.ObjectNotInPrerequisiteState, match="pipeline is not installed"):
            session.execute(SQL)
        session.rollback()


def test_database_without_the_state_table_is_told_what_mends_it(rolled_up: Database) -> None:
    rolled_up.execute("DROP TABLE task_usage_hourly_rollup_state")
    assert "task_usage_hourly_rollup_state" in str(refusal(rolled_up).message_detail)
    # As typed in the runner's container, whose database has a ledger.
    assert "`alembic downgrade 100`" in rolled_up.refused()
    rolled_up.downgrade("100")
    rolled_up.upgrade()
    assert legacy_tables(rolled_up) == 0


@pytest.mark.parametrize(
    ("created_at", "updated_at"),
    [
        ("2125-01-01 00:00+00", "2125-01-01 00:00+00"),
        ("2025-02-01 00:00+00", "2125-01-01 00:00+00"),
        ("2125-01-01 00:00+00", None),
        ("2025-02-01 00:00+00", "infinity"),
        ("infinity", "infinity"),
        ("infinity", None),
        ("2025-02-01 00:00+00", "-infinity"),
        ("-infinity", None),
    ],
)
def test_guard_is_not_held_for_ever_by_a_row_with_an_absurd_date(
    used: Database, created_at: str, updated_at: str | None
) -> None:
    with used.connect(autocommit=True) as connection:
        event(connection, small_world(connection), created_at, updated_at)
    with used.migration_connection() as connection:
        backfill.backfill_before_103(connection, Options(jobs=1))
    # What the comparison of the first release would say, for dates in the future.
    trailing = used.value(
        "SELECT max(COALESCE(updated_at, created_at)) > watermark_at + interval '1 hour'"
        " FROM task_usage, task_usage_hourly_rollup_state GROUP BY watermark_at"
    )
    assert trailing == ((updated_at or created_at) in {"infinity", "2125-01-01 00:00+00"})
    drop_by_hand(used)
    assert legacy_tables(used) == 0
    # What was dropped by hand stops nobody.
    used.upgrade()


def test_guard_passes_when_nothing_is_left_to_drop(used: Database) -> None:
    refusal(used)
    for table in LEGACY_TABLES:
        used.execute(f"DROP TABLE {table}")
    used.execute("DELETE FROM task_usage_hourly_rollup_state")
    drop_by_hand(used)
    assert used.value("SELECT to_regproc('public.rollup_task_usage_daily') IS NULL")
    used.execute("INSERT INTO task_usage_hourly_rollup_state (id) VALUES (1)")


def test_guard_refuses_as_long_as_one_legacy_table_is_left(used: Database) -> None:
    with used.connect() as session:
        for left in LEGACY_TABLES:
            with session.transaction(force_rollback=True):
                for table in LEGACY_TABLES:
                    if table != left:
                        session.execute(f"DROP TABLE {table}")
                with pytest.raises(errors.ObjectNotInPrerequisiteState, match="trails usage"):
                    session.execute(SQL)


def test_nothing_of_the_legacy_rollups_is_left(rolled_up: Database) -> None:
    drop_by_hand(rolled_up)
    triggers = [name for names in LEGACY.triggers.values() for name in names.split()]
    left = rolled_up.execute(
        "SELECT proname FROM pg_proc WHERE proname = ANY (%s)"
        " UNION ALL SELECT tgname FROM pg_trigger WHERE tgname = ANY (%s)"
        " UNION ALL SELECT relname FROM pg_class WHERE relname = ANY (%s)",
        LEGACY.functions.split(),
        triggers,
        [*LEGACY.columns, *LEGACY.indexes.split()],
    )
    assert left == []


def waits_for_legacy_table(database: Database) -> bool:
    """Tell whether a session is waiting to drop a legacy table."""
    waits: bool = database.value(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
        " AND relation = 'public.task_usage_daily'::regclass)"
    )
    return waits


def test_103_gives_way_to_a_reader_and_live_queries_go_on(rolled_up: Database) -> None:
    reader = rolled_up.connect(application_name="a long report")
    reader.execute("SELECT count(*) FROM task_usage_daily")
    live = rolled_up.connect(autocommit=True, options=f"-c lock_timeout={DEADLINE_S:.0f}s")

    # The trap: the same SQL without the runner's way of locking makes every later query queue.
    with ThreadPoolExecutor(1) as pool, rolled_up.connect() as naive:
        naive.execute("LOCK TABLE task_usage IN ACCESS EXCLUSIVE MODE")
        dropping = pool.submit(naive.execute, SQL.decode())
        wait_until(lambda: waits_for_legacy_table(rolled_up), "the naive drop waits for the reader")
        with (
            rolled_up.connect(autocommit=True, options="-c lock_timeout=50ms") as impatient,
            pytest.raises(errors.LockNotAvailable),
        ):
            impatient.execute("SELECT count(*) FROM task_usage")
        naive.cancel()
        with pytest.raises(errors.QueryCanceled):
            dropping.result()

    migration = rolled_up.spawn("alembic", "upgrade", "head")
    for _ in range(2):
        wait_until(lambda: waits_for_legacy_table(rolled_up), "103 asks for its locks")
        live.execute("SELECT count(*) FROM task_usage")
    assert migration.poll() is None
    reader.rollback()
    printed, _ = migration.communicate(timeout=DEADLINE_S)
    assert migration.returncode == 0, printed
    assert legacy_tables(rolled_up) == 0


def exclusive_locks(database: Database) -> int:
    locks: int = database.value("SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock'")
    return locks


def test_what_a_step_may_wait_for_under_its_locks_is_what_it_was_before(at_102: Database) -> None:
    for before in ("0", "7min"):
        with at_102.migration_connection() as connection, transaction(connection):
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{before}'")
            table_locks.lock_tables(connection, {"ACCESS EXCLUSIVE": LOCKED_TABLES})
            assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == before


def test_103_names_the_reader_it_could_not_get_past(
    at_102: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_locks, "PATIENCE_S", 0.2)
    reader = at_102.connect(application_name="a long report")
    reader.execute("SELECT count(*) FROM task_usage_dashboard_daily")
    with at_102.migration_connection() as connection:
        with pytest.raises(LockBusy) as caught, transaction(connection):
            table_locks.lock_tables(connection, {"ACCESS EXCLUSIVE": LOCKED_TABLES})
        message = str(caught.value)
        assert f"pid {reader.info.backend_pid} (postgres, a long report, idle in transaction" in message
        assert "pg_terminate_backend" in message
        assert exclusive_locks(at_102) == 0

        reader.rollback()
        with transaction(connection):
            table_locks.lock_tables(connection, {"ACCESS EXCLUSIVE": LOCKED_TABLES})
            assert exclusive_locks(at_102) == len(LOCKED_TABLES)


def test_103_names_a_prepared_transaction_it_could_not_get_past(
    at_102: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_locks, "PATIENCE_S", 0.2)
    gid = f"forgotten {uuid.uuid4()}"
    session = at_102.connect(autocommit=True)
    session.execute("BEGIN")
    session.execute("LOCK TABLE issue IN ROW EXCLUSIVE MODE")
    session.execute("CREATE TABLE prepared_here ()")
    session.execute(f"PREPARE TRANSACTION '{gid}'")
    try:
        with (
            at_102.migration_connection() as connection,
            pytest.raises(LockBusy) as caught,
            transaction(connection),
        ):
            table_locks.lock_tables(connection, {"ACCESS EXCLUSIVE": LOCKED_TABLES})
    finally:
        at_102.execute(f"ROLLBACK PREPARED '{gid}'")
    assert gid in str(caught.value)
