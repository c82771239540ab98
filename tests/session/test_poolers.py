"""A pooler that lends our server process is refused before anything is set; another one is left clean."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from tests.support.database import Connection, Database
from tests.support.pgbouncer import pgbouncer
from tests.support.pool import Pool
from tests.support.processes import finish, read_until
from tests.support.product import wait_until
from tests.support.roles import MakeRole
from tests.support.server import ThrowAwayServer, start_server
from tests.support.soak.road import Road
from tests.support.walks import advisory_locks, blocked_at, wait_until_blocked, write_history
from usage_rollup.errors import SessionLost, UnsuitableDatabase
from usage_rollup.session import pool_mode, pooler_words, poolers
from usage_rollup.session.attempt import NoSession
from usage_rollup.session.client import Client
from usage_rollup.session.connection import engine
from usage_rollup.session.opening import connect
from usage_rollup.session.pool_mode import judge

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

    with pytest.raises(NoSession, match="no more connections allowed"):
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


SETTINGS_REFUSED = "a pooler refused the settings sent with the login (options)"
LOGIN_REFUSED = "the login, or the database, was refused by a pooler or behind it"


@pytest.mark.parametrize(
    ("settings", "changed", "told"),
    [
        # Otherwise a pooler keeps who comes next waiting for 15 s.
        ({"server_login_retry": 0}, ("/test_", "/nodb_"), "does not exist"),
        ({}, ("//postgres:", "//nobody_here:"), '"trust" authentication failed'),
        ({"auth_type": "md5"}, (":multica@", ":wr0ng@"), "password authentication failed"),
        ({"auth_type": "plain"}, (":multica@", ":wr0ng@"), "password authentication failed"),
        ({"auth_type": "scram-sha-256"}, (":multica@", ":wr0ng@"), "SASL authentication failed"),
        ({"auth_type": "scram-sha-256"}, ("//postgres:", "//nobody_here:"), "SASL authentication failed"),
        ({"client_tls_sslmode": "disable"}, ("=disable", "=require"), "does not support SSL"),
    ],
)
def test_what_a_pooler_refuses_for_good_is_final_at_once(
    at_102: Database, settings: dict[str, Any], changed: tuple[str, str], told: str
) -> None:
    with pool_of(at_102, "session", **settings) as url:
        connect(url, 5).close()
        for command, status in ((("usage-rollup", "tick"), 1), (("alembic", "upgrade", "head"), 255)):
            result = at_102.run(*command, DATABASE_URL=url.replace(*changed), DATABASE_STARTUP_TIMEOUT="60s")
            output = result.stdout + result.stderr
            assert result.returncode == status, output
            assert "cannot connect to the database: " in output
            assert told in output
            assert "waiting" not in output
            assert "wr0ng" not in output


def test_password_that_the_pooler_itself_has_wrong_is_final(at_102: Database, make_role: MakeRole) -> None:
    role = make_role("rotated")
    with pgbouncer(at_102.server, pool_mode="session") as pool:
        pool.serve("rotated", f"user={role} password=stale dbname={at_102.name}")
        result = at_102.usage_rollup("tick", DATABASE_URL=pool.url("rotated"))
    assert result.returncode == 1, result.stderr
    assert "password authentication failed for user" in result.stderr


def test_role_without_room_behind_a_pooler_is_waited_for(at_102: Database, make_role: MakeRole) -> None:
    role = make_role("limited", "IN ROLE pg_read_all_data")
    at_102.execute(f"ALTER ROLE {role} CONNECTION LIMIT 0")
    with pgbouncer(at_102.server, pool_mode="session", server_login_retry=1) as pool:
        pool.serve("limited", f"user={role} password={role} dbname={at_102.name}")
        process = at_102.spawn("usage-rollup", "status", DATABASE_URL=pool.url("limited"))
        assert "too many connections for role" in read_until(process, "waiting up to 180 s for the database")
        at_102.execute(f"ALTER ROLE {role} CONNECTION LIMIT -1")
        finish(process, 0)


def test_server_that_restarts_behind_a_pooler_is_waited_for() -> None:
    with start_server() as server:
        assert isinstance(server, ThrowAwayServer)
        database = Database(server, "postgres")
        with pgbouncer(server, pool_mode="session", server_login_retry=1) as pool:
            # The last session is waited for, and nobody is let in any more.
            holder = database.connect()
            postmaster = (server.directory / "data/postmaster.pid").read_text().splitlines()[0]
            os.kill(int(postmaster), signal.SIGTERM)
            process = database.spawn("usage-rollup", "status", DATABASE_URL=pool.url("postgres"))
            told = read_until(process, "waiting up to 180 s for the database")
            assert "the database system is shutting down" in told
            holder.close()
            server.restart()
            finish(process, 0)


@pytest.mark.parametrize(
    "said",
    [
        "no more connections allowed (max_client_conn)",
        "query_wait_timeout",
        "client_login_timeout (server down)",
        "pooler is shut down",
        "server conn crashed?",
        "server login has been failing, try again later (server_login_retry)",
        "server login has been failing, cached error: (server_login_retry)",
        "server login has been failing, cached error: connect failed (server_login_retry)",
        "the database system is starting up",
        "server login has been failing, cached error: the database system is in recovery mode"
        " (server_login_retry)",
        "terminating connection due to administrator command",
        "sorry, too many clients already",
        "remaining connection slots are reserved for roles with the SUPERUSER attribute",
    ],
)
def test_words_that_tell_of_what_passes(said: str) -> None:
    assert pooler_words.passes(f"FATAL:  08P01: {said}")


@pytest.mark.parametrize(
    "said",
    [
        "no such user",
        "no such database: query_wait_timeout",
        'database "the database system is starting up" does not exist',
        "server login has been failing, cached error: password authentication failed for user "
        '"u" (server_login_retry)',
        "server login failed: wrong password type",
        "certificate authentication failed",
        "bouncer config error",
        'role "u" is not permitted to log in',
        "Passwort-Authentifizierung für Benutzer »u« fehlgeschlagen",
    ],
)
def test_words_that_tell_of_what_does_not(said: str) -> None:
    report = f"FATAL:  08P01: {said}"
    assert not pooler_words.passes(report)
    assert pooler_words.refused(report) == LOGIN_REFUSED


def holding(url: str) -> psycopg.Connection:
    """Return a client of a pooler, which takes a moment to notice that another one is gone."""
    clients: list[psycopg.Connection] = []

    def held() -> bool:
        with suppress(psycopg.OperationalError):
            clients.append(psycopg.connect(url))
        return bool(clients)

    wait_until(held, "there is room")
    return clients[0]


@pytest.mark.parametrize("sent", ["", "&options=-cgeqo%3Doff"], ids=["nothing sent", "a setting sent"])
def test_pooler_that_is_full_is_waited_for(at_102: Database, sent: str) -> None:
    settings = {"max_client_conn": 1, "ignore_startup_parameters": "options"}
    with pool_of(at_102, "session", **settings) as url, holding(url):  # type: ignore[arg-type]
        process = at_102.spawn("usage-rollup", "status", DATABASE_URL=f"{url}{sent}")
        told = read_until(process, "waiting up to 180 s for the database")
        assert "no more connections allowed (max_client_conn)" in told
        process.terminate()
        finish(process, 143)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"size": 1, "query_wait_timeout": 1},
            "the pooler in front of the database gave no session: query_wait",
        ),
        ({"size": 1, "query_wait_timeout": 0}, "who let us in does not answer"),
    ],
)
def test_pooler_without_a_free_session_is_waited_for(
    at_102: Database, settings: dict[str, int], told: str
) -> None:
    with pool_of(at_102, "session", **settings) as url:
        with holding(url) as holder:
            holder.execute("SELECT 1")
            process = at_102.spawn("usage-rollup", "status", DATABASE_URL=url)
            assert "waiting up to 180 s for the database at 127.0.0.1 port " in read_until(process, told)
        finish(process, 0)


def test_pooler_without_room_for_a_probe_is_waited_for(at_102: Database) -> None:
    with pool_of(at_102, "session", max_client_conn=2) as url, holding(url):
        process = at_102.spawn("usage-rollup", "status", DATABASE_URL=url)
        told = read_until(process, "cannot be told to be in session mode: ")
        assert "waiting up to 180 s for the database at 127.0.0.1 port " in told
        process.terminate()
        finish(process, 143)


@pytest.mark.parametrize("query_wait_s", [1, 0], ids=["ended by the pooler", "ended by us"])
def test_pool_whose_only_session_is_taken_is_one_sentence(at_102: Database, query_wait_s: int) -> None:
    with (
        pool_of(at_102, "session", 1, query_wait_timeout=query_wait_s) as url,
        psycopg.connect(url) as holder,
    ):
        holder.execute("SELECT 1")
        result = at_102.usage_rollup("status", DATABASE_URL=url, DATABASE_STARTUP_TIMEOUT="1")
    assert result.returncode == 75
    message, hint = result.stderr.splitlines()[-2:]
    assert message.startswith("usage-rollup: cannot connect to the database after 1 s: ")
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
