"""How a step asks for its table locks: for how long, and what it does without."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from tests.support.database import Database
from tests.support.deadline import DEADLINE_S
from tests.support.product import wait_until
from tests.support.walks import migrating_backend
from usage_rollup.runner import table_locks
from usage_rollup.session.connection import transaction

pytestmark = pytest.mark.server

LOCKS = {
    "SHARE ROW EXCLUSIVE": ["agent_task_queue", "issue", "task_usage"],
    "ACCESS EXCLUSIVE": ["task_usage_daily", "task_usage_dashboard_daily"],
}

# Tells what each lock_timeout is set to; a function of this name that comes before pg_catalog's.
TELLING = """
CREATE SCHEMA telling;
CREATE FUNCTION telling.set_config(text, text, boolean) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF $1 = 'lock_timeout' THEN
        RAISE INFO '%', $2;
    END IF;
    RETURN pg_catalog.set_config($1, $2, $3);
END $$
"""


def locked(session: sa.Connection) -> set[str]:
    """Return the tables that the session keeps all others from."""
    return {
        *session.scalars(
            sa.text(
                "SELECT c.relname FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
                " WHERE l.pid = pg_backend_pid() AND l.mode = 'AccessExclusiveLock' AND c.relkind = 'r'"
            )
        )
    }


@pytest.mark.parametrize("deadlock_timeout_ms", [1000, 3000])
def test_all_waiting_of_one_attempt_stays_below_deadlock_timeout(
    at_102: Database, deadlock_timeout_ms: int
) -> None:
    at_102.execute(TELLING)
    told: list[str | None] = []
    with at_102.connect(options="-c search_path=telling,pg_catalog -c lock_timeout=7min") as session:
        session.add_notice_handler(lambda notice: told.append(notice.message_primary))
        session.execute(f"SET deadlock_timeout = {deadlock_timeout_ms}".encode())
        session.execute(table_locks.statement(LOCKS, table_locks.ledgers("alembic_version")).encode())
    # The ledgers, then a mode after the other; afterwards it is what it was.
    *bounds, restored = told
    assert (len(bounds), restored) == (3, "7min")
    # Each of seven tables may have to be waited for.
    assert all(0 < 7 * int(bound or 0) < deadlock_timeout_ms for bound in bounds)


def test_table_that_goes_while_it_is_waited_for_is_done_without(at_102: Database) -> None:
    with ThreadPoolExecutor(1) as pool, at_102.migration_connection() as session:
        # So that it waits for the table until this is gone.
        session.exec_driver_sql("SET deadlock_timeout = '5min'")

        def lock() -> set[str]:
            with transaction(session):
                table_locks.lock_tables(session, LOCKS)
                return locked(session)

        with at_102.connect() as old:
            old.execute("DROP TABLE task_usage_daily")
            locking = pool.submit(lock)
            wait_until(lambda: migrating_backend(at_102, "task_usage_daily"), "it waits for the table")
            old.commit()
        assert locking.result(timeout=DEADLINE_S) == {"task_usage_dashboard_daily"}
