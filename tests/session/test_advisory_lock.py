"""Advisory locks of a session: whose count, and what is left of an attempt that failed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from tests.support.database import Database, MakeDatabase
from tests.support.deadline import DEADLINE_S
from tests.support.product import wait_until
from usage_rollup.contract import HOURLY_ROLLUP
from usage_rollup.errors import LockBusy, UnsuitableDatabase
from usage_rollup.session import advisory_lock

pytestmark = pytest.mark.server

HOLD = "SELECT pg_advisory_lock(4246)"
GIVE_BACK = sa.text("SELECT pg_advisory_unlock(4246)")

# Of one database: locks that are held, or waited for.
COUNT = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted = %s"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def held(database: Database) -> int:
    count: int = database.value(COUNT, True)
    return count


def wait_for_a_waiter(database: Database) -> None:
    wait_until(lambda: database.value(COUNT, False) == 1, "a session is blocked on 4246")


def test_shared_attempt_that_fails_on_one_session_keeps_nothing_on_another(head: Database) -> None:
    waiter = head.connect()
    with (
        ThreadPoolExecutor(1) as pool,
        head.migration_connection() as one,
        head.migration_connection() as other,
    ):
        advisory_lock.acquire_shared([one], HOURLY_ROLLUP)
        turn = pool.submit(waiter.execute, "SELECT pg_advisory_xact_lock(4246)")
        wait_for_a_waiter(head)
        # Who holds it already may have it once more; the other one is refused for the sake of the waiter.
        with pytest.raises(LockBusy):
            advisory_lock.acquire_shared([one, other], HOURLY_ROLLUP, patience_s=0)
        advisory_lock.release(one, HOURLY_ROLLUP, shared=True)
        turn.result(timeout=DEADLINE_S)
        advisory_lock.require_held(one)


def test_session_that_may_not_share_at_once_is_told_so_and_holds_nothing(head: Database) -> None:
    waiter = head.connect()
    with (
        ThreadPoolExecutor(1) as pool,
        head.migration_connection() as one,
        head.migration_connection() as other,
    ):
        assert advisory_lock.try_shared(one, HOURLY_ROLLUP)
        assert advisory_lock.try_shared(other, HOURLY_ROLLUP)
        advisory_lock.release(other, HOURLY_ROLLUP, shared=True)
        turn = pool.submit(waiter.execute, "SELECT pg_advisory_xact_lock(4246)")
        wait_for_a_waiter(head)
        assert not advisory_lock.try_shared(other, HOURLY_ROLLUP)
        advisory_lock.require_held(other)
        advisory_lock.require_held(one)
        advisory_lock.release(one, HOURLY_ROLLUP, shared=True)
        turn.result(timeout=DEADLINE_S)


def test_lock_of_another_database_is_nobodys_here(make_database: MakeDatabase) -> None:
    here, there = make_database("head"), make_database("head")
    waiter = there.connect()
    with ThreadPoolExecutor(1) as pool, there.connect(autocommit=True) as holder:
        holder.execute(HOLD)
        turn = pool.submit(waiter.execute, HOLD)
        wait_for_a_waiter(there)
        with there.migration_connection() as session:
            assert advisory_lock.is_held(session, HOURLY_ROLLUP)
            assert advisory_lock.is_waited_for(session, HOURLY_ROLLUP)
        with here.migration_connection() as session:
            assert not advisory_lock.is_held(session, HOURLY_ROLLUP)
            assert not advisory_lock.is_waited_for(session, HOURLY_ROLLUP)
            assert "a session that has just ended" in str(
                advisory_lock.describe_holders(session, HOURLY_ROLLUP)
            )
            advisory_lock.acquire(session, HOURLY_ROLLUP, patience_s=0)
            assert advisory_lock.is_held(session, HOURLY_ROLLUP)
            assert not advisory_lock.is_waited_for(session, HOURLY_ROLLUP)
        holder.execute("SELECT pg_advisory_unlock(4246)")
        turn.result(timeout=DEADLINE_S)


def test_lock_of_another_key_is_another_lock(head: Database) -> None:
    # The same lower half, and the same number as two keys.
    for other in ("4294967296 + 4246", "0, 4246"):
        holder = head.connect(autocommit=True)
        holder.execute(f"SELECT pg_advisory_lock({other})".encode())
        with head.migration_connection() as session:
            assert not advisory_lock.is_held(session, HOURLY_ROLLUP)
            advisory_lock.acquire(session, HOURLY_ROLLUP, patience_s=0)
        holder.close()


def test_what_this_process_holds_no_more_is_missed_whoever_holds_it_now(head: Database) -> None:
    with head.migration_connection() as session:
        advisory_lock.acquire(session, HOURLY_ROLLUP)
        advisory_lock.require_held(session)
        # As if another process served it.
        session.execute(GIVE_BACK)
        with head.connect(autocommit=True) as holder:
            holder.execute(HOLD)
            with pytest.raises(UnsuitableDatabase):
                advisory_lock.require_held(session)
        with pytest.raises(UnsuitableDatabase):
            advisory_lock.require_held(session)
        # What is given back need not be held.
        advisory_lock.release(session, HOURLY_ROLLUP)
        advisory_lock.require_held(session)


def test_lock_that_was_taken_twice_is_missed_until_it_is_given_back_twice(head: Database) -> None:
    with head.migration_connection() as session:
        advisory_lock.acquire(session, HOURLY_ROLLUP)
        advisory_lock.acquire(session, HOURLY_ROLLUP)
        advisory_lock.release(session, HOURLY_ROLLUP)
        assert held(head) == 1
        advisory_lock.require_held(session)
        session.execute(GIVE_BACK)
        with pytest.raises(UnsuitableDatabase):
            advisory_lock.require_held(session)
