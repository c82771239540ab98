"""A pooler that lends our server process is refused before anything is set; another one is left clean."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
import sqlalchemy as sa

from tests.support.database import Connection, Database
from tests.support.pgbouncer import pgbouncer
from tests.support.pool import Pool
from tests.support.processes import finish
from tests.support.product import wait_until
from tests.support.roles import MakeRole
from tests.support.soak.road import Road
from tests.support.walks import advisory_locks, blocked_at, wait_until_blocked, write_history
from usage_rollup.errors import DatabaseUnavailable, SessionLost, UnsuitableDatabase
from usage_rollup.session import pool_mode, poolers
from usage_rollup.session.connection import connect, engine
from usage_rollup.session.pool_mode import Client, judge

pytestmark = pytest.mark.process

SHARED = "this connection goes through a pooler in transaction mode"

MakePool = Callable[..., Pool]


# How a pooler is judged, on pools of ours.


@pytest.fixture
def make_pool(empty: Database) -> MakePool:
    def make(**options: object) -> Pool:
        return Pool(start=lambda: empty.connect(autocommit=True), **options)  # type: ignore[arg-type]

    return make


def judged(*pools: Pool) -> None:
    """Judge a client of the first pool; its probes become clients of each pool in turn."""
    turn = itertools.cycle(reversed(pools))
    judge(pools[0].client(), lambda: next(turn).client())


SIZES = pytest.mark.parametrize("size", [1, 2, 5, 20])
WARM = pytest.mark.parametrize("warm", [0, 1, 3, 20])
ORDER = pytest.mark.parametrize("in_turn", [False, True], ids=["last free first", "in turn"])


@SIZES
@WARM
@ORDER
def test_pool_that_lends_processes_is_found(make_pool: MakePool, size: int, warm: int, in_turn: bool) -> None:
    pool = make_pool(size=size, mode="transaction", in_turn=in_turn)
    pool.warm(warm)
    with pytest.raises(UnsuitableDatabase, match=SHARED):
        judged(pool)
    assert len(pool.free) == pool.started, "every process is given back"


@SIZES
@WARM
@ORDER
def test_pool_in_session_mode_is_found_to_be_one(
    make_pool: MakePool, size: int, warm: int, in_turn: bool
) -> None:
    pool = make_pool(size=size, mode="session", in_turn=in_turn)
    pool.warm(warm)
    judged(pool)
    assert len(pool.free) == pool.started - 1, "every process but ours is given back"


def test_process_that_others_use_at_that_moment_is_found_to_be_lent(make_pool: MakePool) -> None:
    pool = make_pool(size=20, mode="transaction")
    at_work: list[Connection] = []

    def others() -> None:
        # Whoever comes next finds none free: one is started for each, as in session mode.
        at_work.extend(pool.free)
        pool.free.clear()
        for process in at_work:
            process.execute("SELECT 1")

    pool.others = others
    with pytest.raises(UnsuitableDatabase, match=SHARED):
        judged(pool)


def test_process_that_others_have_used_in_between_is_found_to_be_lent(make_pool: MakePool) -> None:
    pool = make_pool(size=20, mode="transaction")
    ours = pool.client()
    # Bound to its process as in session mode, which another client uses all the same.
    ours.ask("BEGIN")
    process = ours.process
    assert process is not None
    ours.ask("COMMIT")
    pool.free.remove(process)

    def probe() -> Client:
        client = pool.client()
        pool.others = lambda: process.execute("SELECT 1")
        return client

    mine = make_pool(size=1, mode="session", free=[process])
    with pytest.raises(UnsuitableDatabase, match=SHARED) as refused:
        judge(mine.client(), probe)
    assert "has served somebody else" in str(refused.value)


def test_two_poolers_behind_one_name_are_told_apart(make_pool: MakePool) -> None:
    shared = [make_pool(size=20, mode="transaction") for _ in range(2)]
    with pytest.raises(UnsuitableDatabase, match=SHARED):
        judged(*shared)
    judged(*(make_pool(size=20, mode="session") for _ in range(2)))


def test_pool_with_more_free_processes_than_are_tried_is_refused(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_mode, "PROBES", 3)
    pool = make_pool(size=9, mode="session")
    pool.warm(9)
    with pytest.raises(UnsuitableDatabase, match="3 sessions did not tell whether it shares them"):
        judged(pool)


def test_pooler_that_lets_nobody_else_connect_cannot_be_judged(make_pool: MakePool) -> None:
    def refuse() -> Client:
        raise psycopg.OperationalError("no more connections allowed (max_client_conn)")

    with pytest.raises(DatabaseUnavailable, match="no more connections allowed"):
        judge(make_pool(size=9, mode="session").client(), refuse)


def test_login_that_switches_its_role_sees_when_its_processes_were_started(
    empty: Database, make_role: MakeRole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_mode, "PROBES", pool_mode.STARTED)
    login, role = make_role("login"), make_role("app")
    empty.execute(f"GRANT {role} TO {login}")
    empty.execute(f"ALTER ROLE {login} SET role = {role}")

    def start() -> Connection:
        return psycopg.connect(empty.url_of(login), autocommit=True)

    pool = Pool(start=start, size=9, mode="session")
    judged(pool)
    for process in pool.free:
        process.close()


def test_direct_session_costs_no_second_one(empty: Database) -> None:
    with connect(empty.url, 0):
        assert empty.value("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()") == 2


# A real pooler.


@pytest.fixture(autouse=True)
def unjudged() -> Iterator[None]:
    yield
    poolers._judged.clear()


@contextmanager
def busy(url: str, clients: int) -> Iterator[None]:
    """Have so many clients do one short transaction after another."""
    end = threading.Event()

    def work() -> None:
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as client:
            while not end.wait(0.001):
                client.execute("BEGIN; SELECT pg_sleep(0.003); COMMIT")

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()


def warm(url: str, processes: int) -> None:
    """Have so many processes started, and free."""
    with ExitStack() as stack:
        for _ in range(processes):
            stack.enter_context(psycopg.connect(url)).execute("SELECT 1")


# The four are a client's own, which PgBouncer brings along to whatever process serves it.
_LEFT_BEHIND = """
SELECT name, setting FROM pg_settings
WHERE source = 'session'
    AND name NOT IN ('application_name', 'client_encoding', 'DateStyle', 'TimeZone',
        'standard_conforming_strings')
UNION ALL SELECT locktype, pid::text FROM pg_locks WHERE locktype = 'advisory'
UNION ALL SELECT 'role', current_user WHERE current_user <> session_user
"""


def left_behind(url: str, processes: int) -> set[tuple[object, ...]]:
    """Return what the next clients of so many processes find set, and who holds an advisory lock."""
    with ExitStack() as stack:
        clients = [stack.enter_context(psycopg.connect(url)) for _ in range(processes)]
        return {row for client in clients for row in client.execute(_LEFT_BEHIND)}


@pytest.mark.parametrize("robin", [0, 1], ids=["last free first", "round robin"])
@pytest.mark.parametrize(("size", "others"), [(1, 0), (2, 1), (5, 3), (20, 0), (20, 8)])
def test_transaction_mode_is_found_in_every_one_of_20_trials(
    empty: Database, size: int, others: int, robin: int
) -> None:
    with pgbouncer(
        empty.server, pool_mode="transaction", default_pool_size=size, server_round_robin=robin
    ) as pool:
        url = pool.url(empty.name)
        warm(url, size)
        with busy(url, others):
            for _ in range(20):
                with pytest.raises(UnsuitableDatabase, match=SHARED):
                    connect(url, 0)


@pytest.mark.parametrize(("size", "others"), [(1, 0), (2, 1), (5, 3), (20, 8)])
def test_session_mode_is_never_taken_for_another(empty: Database, size: int, others: int) -> None:
    with pgbouncer(empty.server, pool_mode="session", default_pool_size=size) as pool:
        url = pool.url(empty.name)
        warm(url, size)
        with busy(url, others):
            for _ in range(5):
                poolers._judged.clear()
                connect(url, 0).close()


@contextmanager
def pool_of(database: Database, mode: str, size: int = 20, **settings: str | int) -> Iterator[str]:
    """Run a pooler that cleans nothing by itself; yield the URL of the database behind it."""
    with pgbouncer(
        database.server, pool_mode=mode, default_pool_size=size, server_reset_query="", **settings
    ) as pool:
        yield pool.url(database.name)


@pytest.mark.parametrize("size", [1, 2, 20])
def test_upgrade_through_session_mode_leaves_its_process_as_it_was(v034: Database, size: int) -> None:
    write_history(v034)
    with pool_of(v034, "session", size) as url:
        # The trap: whatever a client sets or locks is there for the next one.
        with psycopg.connect(url) as client:
            client.execute("SET work_mem = '1MB'")
            client.execute("SELECT pg_advisory_lock(4246)")
            client.commit()
        assert len(left_behind(url, 1)) == 2
        with psycopg.connect(url, autocommit=True) as client:
            client.execute("DISCARD ALL")
        printed = v034.upgrade(DATABASE_URL=url)
        assert v034.revision == "104"
        assert ("the pooler has no second session to give" in printed) == (size == 1)
        assert left_behind(url, min(size, 4)) == set()


def test_workers_leave_their_processes_as_they_were(v034: Database) -> None:
    write_history(v034)
    with pool_of(v034, "session") as url:
        result = v034.alembic("-x", "jobs=4", "upgrade", "head", DATABASE_URL=url)
        assert result.returncode == 0, result.stdout
        assert left_behind(url, 6) == set()


def test_refused_upgrade_leaves_its_process_as_it_was(empty: Database) -> None:
    empty.execute("CREATE TABLE something ()")
    with pool_of(empty, "session", 1) as url:
        assert "holds tables but no ledger" in empty.refused(DATABASE_URL=url)
        assert left_behind(url, 1) == set()


def test_terminated_upgrade_leaves_no_lock_and_no_setting(at_102: Database) -> None:
    months = write_history(at_102)
    with pool_of(at_102, "session", 5) as url:
        with blocked_at(at_102, months[2]):
            process = at_102.spawn("alembic", "upgrade", "head", DATABASE_URL=url)
            wait_until_blocked(at_102)
            process.send_signal(signal.SIGTERM)
            finish(process, 143)
        wait_until(lambda: advisory_locks(at_102) == [], "the locks are free")
        assert left_behind(url, 5) == set()


COMMANDS = [
    ("alembic", "upgrade", "head"),
    ("alembic", "current"),
    *(("usage-rollup", name) for name in ("preflight", "backfill", "tick", "verify", "status", "check")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_sets_anything_in_a_process_that_is_shared(
    at_102: Database, command: tuple[str, ...]
) -> None:
    before = at_102.catalog()
    with pool_of(at_102, "transaction", 2) as url:
        result = at_102.run(*command, DATABASE_URL=url)
        assert result.returncode == (255 if command[0] == "alembic" else 1)
        assert SHARED in result.stdout + result.stderr
        assert "HINT: set MIGRATION_DATABASE_URL to a direct connection" in result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        assert left_behind(url, 2) == set()
    assert at_102.catalog() == before


def test_of_two_upgrades_at_once_through_one_busy_pool_neither_gets_in(at_102: Database) -> None:
    before = at_102.catalog()
    with pool_of(at_102, "transaction", 5) as url, busy(url, 3):
        upgrades = [at_102.spawn("alembic", "upgrade", "head", DATABASE_URL=url) for _ in range(2)]
        for upgrade in upgrades:
            assert SHARED in finish(upgrade, 255)
    assert at_102.catalog() == before


def test_statement_mode_is_refused_in_the_poolers_words(at_102: Database) -> None:
    with pool_of(at_102, "statement") as url:
        printed = at_102.refused(DATABASE_URL=url)
    assert "transaction blocks not allowed in statement pooling mode" in printed
    assert "HINT: set MIGRATION_DATABASE_URL to a direct connection" in printed
    assert printed.count("FAILED: ") == 1


def test_parameter_that_the_pooler_does_not_know_is_refused_in_its_words(at_102: Database) -> None:
    with pool_of(at_102, "session") as url:
        printed = at_102.refused(DATABASE_URL=f"{url}&options=-cjit%3Don")
    assert "unsupported startup parameter: options" in printed
    assert printed.count("FAILED: ") == 1


@pytest.mark.parametrize("query_wait_s", [1, 0], ids=["ended by the pooler", "ended by us"])
def test_pool_whose_only_session_is_taken_is_one_sentence(at_102: Database, query_wait_s: int) -> None:
    with (
        pool_of(at_102, "session", 1, query_wait_timeout=query_wait_s) as url,
        psycopg.connect(url) as holder,
    ):
        holder.execute("SELECT 1")
        result = at_102.usage_rollup("status", DATABASE_URL=url, DATABASE_STARTUP_TIMEOUT="1")
    assert result.returncode == 75
    message, hint = result.stderr.splitlines()
    assert message.startswith("usage-rollup: the pooler in front of the database gave no session: ")
    assert "raise the pool's size" in hint


# As PgBouncer writes it when the server is gone: no severity but the one for people, and ready for more until
# it closes.
_CRASHED = b"SFATAL\0C08P01\0Mserver conn crashed?\0\0"
CRASHED = b"E" + (4 + len(_CRASHED)).to_bytes(4, "big") + _CRASHED + b"Z\0\0\0\x05I"


def test_session_is_lost_when_the_pooler_says_so_and_has_not_closed_it_yet(at_102: Database) -> None:
    own = at_102.server.port
    road = Road(own)
    created = engine(at_102.url.replace(f":{own}/", f":{road.port}/"), 5)
    asked_so = "SELECT pid FROM pg_stat_activity WHERE query = $$SELECT 'asked'$$"
    with created.connect() as session, ThreadPoolExecutor(1) as pool, road.swallowing():
        asked = pool.submit(session.execute, sa.text("SELECT 'asked'"))
        wait_until(lambda: at_102.execute(asked_so), "the question has arrived")
        road.say(CRASHED)
        with pytest.raises(SessionLost, match="server conn crashed"):
            asked.result()
    road.close()
