"""How a session is opened: what is waited for, what is final at once, and what each is called."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.database import Database
from tests.support.deadline import DEADLINE_S
from tests.support.entrypoint import STARTED
from tests.support.processes import finish, read_until
from tests.support.product import wait_until
from tests.support.roles import MakeRole
from tests.support.server import start_server
from tests.support.walks import runners
from usage_rollup.errors import DatabaseUnavailable, LoginRefused
from usage_rollup.session import attempt, parameters, verbosity
from usage_rollup.session.opening import connect

pytestmark = pytest.mark.process

REFUSED, USAGE, TRY_AGAIN, ALEMBIC_REFUSED = 1, 2, 75, 255


# What is final at once.


def wrong_password(database: Database, make_role: MakeRole) -> tuple[str, str]:
    return database.url.replace(":multica@", ":wr0ng@"), "the password, or the role, was refused"


def unknown_role(database: Database, make_role: MakeRole) -> tuple[str, str]:
    return database.url.replace("//postgres:", "//nobody_here:"), "the password, or the role, was refused"


def role_without_login(database: Database, make_role: MakeRole) -> tuple[str, str]:
    role = make_role("idle")
    database.execute(f"ALTER ROLE {role} NOLOGIN")
    return database.url_of(role), "the role was refused"


def no_password(database: Database, make_role: MakeRole) -> tuple[str, str]:
    return database.url.replace(":multica@", "@"), "the server wants a password"


def unknown_database(database: Database, make_role: MakeRole) -> tuple[str, str]:
    return database.url.replace("/test_", "/no_such_test_"), "there is no such database"


def closed_database(database: Database, make_role: MakeRole) -> tuple[str, str]:
    database.end_sessions()
    Database(database.server, "postgres").execute(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS false")
    return database.url, "the database does not allow connections"


def no_right_to_connect(database: Database, make_role: MakeRole) -> tuple[str, str]:
    database.execute(f"REVOKE CONNECT ON DATABASE {database.name} FROM PUBLIC")
    return database.url_of(make_role("stranger")), "the role may not connect to the database"


def tls_required(database: Database, make_role: MakeRole) -> tuple[str, str]:
    return database.url.replace("sslmode=disable", "sslmode=require"), "there is no agreement on TLS"


def tls_verified(database: Database, make_role: MakeRole) -> tuple[str, str]:
    return database.url.replace("sslmode=disable", "sslmode=verify-full"), "there is no agreement on TLS"


def another_method(database: Database, make_role: MakeRole) -> tuple[str, str]:
    return f"{database.url}&require_auth=md5", "the server's way to log in was refused here"


def setting_there_is_not(database: Database, make_role: MakeRole) -> tuple[str, str]:
    return f"{database.url}&options=-c%20no_such_setting%3D1", "the session was refused"


FINAL = [
    wrong_password,
    unknown_role,
    role_without_login,
    no_password,
    unknown_database,
    closed_database,
    no_right_to_connect,
    tls_required,
    tls_verified,
    another_method,
    setting_there_is_not,
]


@pytest.fixture
def opened_again(v034: Database) -> Iterator[Database]:
    yield v034
    Database(v034.server, "postgres").execute(f"ALTER DATABASE {v034.name} ALLOW_CONNECTIONS true")


@pytest.mark.parametrize("refused", FINAL)
def test_what_is_refused_for_good_is_final_at_once_and_named(
    opened_again: Database, make_role: MakeRole, refused: Callable[[Database, MakeRole], tuple[str, str]]
) -> None:
    url, named = refused(opened_again, make_role)
    for command, status in (
        (("usage-rollup", "status"), REFUSED),
        (("alembic", "upgrade", "head"), ALEMBIC_REFUSED),
        # It passes on what Alembic ends with, whatever that is.
        *([(("./entrypoint.sh", "echo", STARTED), ALEMBIC_REFUSED)] if refused is FINAL[0] else []),
    ):
        result = opened_again.run(*command, DATABASE_URL=url, DATABASE_STARTUP_TIMEOUT="60s")
        output = result.stdout + result.stderr
        assert result.returncode == status, output
        assert f"cannot connect to the database: {named}" in output
        assert "waiting" not in output
        assert "Traceback" not in output
        assert STARTED not in output
        assert "wr0ng" not in output


@pytest.mark.parametrize("command", ["tick", "backfill", "status", "preflight", "verify", "check", "upgrade"])
def test_every_command_is_refused_with_a_status_of_its_own(at_102: Database, command: str) -> None:
    url = at_102.url.replace(":multica@", ":wr0ng@")
    assert at_102.usage_rollup(command, DATABASE_URL=url).returncode == REFUSED
    away = at_102.usage_rollup(
        command, DATABASE_URL="postgres://u:p@127.0.0.1:1/d", DATABASE_STARTUP_TIMEOUT="0"
    )
    assert away.returncode == TRY_AGAIN, away.stderr
    bad = at_102.usage_rollup(command, DATABASE_URL="host=127.0.0.1 port=99999")
    assert bad.returncode == USAGE, bad.stderr


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("host=127.0.0.1 port=99999", "there is no port 99999"),
        ("host=127.0.0.1 port=0", "there is no port 0"),
        ("host=127.0.0.1 port=five", "the port is not a number"),
        ("postgres://u:s3cret/db", "the port is not a number"),
        ("host=127.0.0.1 sslmode=nonsense", 'invalid sslmode value: "nonsense"'),
        ("host=/nowhere sslmode=nonsense", 'invalid sslmode value: "nonsense"'),
        ("host=no-such-host.invalid gssencmode=nonsense", 'invalid gssencmode value: "nonsense"'),
        ("host=127.0.0.1 require_auth=nonsense", 'invalid require_auth value: "nonsense"'),
        ("host='a host'", "there cannot be a host named 'a host'"),
        ("postgres://u:p@a..b/db", "there cannot be a host named 'a..b'"),
        ("hostaddr=localhost", "this is not an address: 'localhost'"),
        ("host=a,b,c port=1,2", "there are not as many ports as hosts"),
        ("host=a,b hostaddr=127.0.0.1", "there are not as many addresses as hosts"),
        ("host=127.0.0.1 connect_timeout=soon", "connect_timeout is not a number: 'soon'"),
        ("host=127.0.0.1 keepalives_idle=long", "keepalives_idle is not a number: 'long'"),
        ("service=nosuch", 'definition of service "nosuch" not found'),
        ("postgres:///?service=nosuch", 'definition of service "nosuch" not found'),
    ],
)
def test_what_libpq_cannot_use_is_a_matter_of_configuration(v034: Database, said: str, told: str) -> None:
    result = v034.usage_rollup("status", DATABASE_URL=said)
    assert result.returncode == USAGE, result.stderr
    assert f"usage-rollup: {told}" in result.stderr
    assert "waiting" not in result.stderr
    assert "s3cret" not in result.stderr
    assert v034.alembic("upgrade", "head", DATABASE_URL=said).returncode == ALEMBIC_REFUSED


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[other]\nhost=127.0.0.1\n", 'definition of service "multica" not found'),
        ("[multica]\nhost\n", "syntax error in service file"),
        ("[multica]\nno_such_parameter=1\n", "syntax error in service file"),
        ("[multica]\nhost=127.0.0.1\nsslmode=nonsense\n", 'invalid sslmode value: "nonsense"'),
        (None, "not found"),
    ],
)
@pytest.mark.parametrize(
    "said", [{"DATABASE_URL": "service=multica"}, {"DATABASE_URL": "", "PGSERVICE": "multica"}], ids=str
)
def test_service_that_cannot_be_used_is_a_matter_of_configuration(
    v034: Database, tmp_path: Path, said: dict[str, str], content: str | None, told: str
) -> None:
    services = tmp_path / "services.conf"
    if content is not None:
        services.write_text(content)
    result = v034.usage_rollup("status", PGSERVICEFILE=str(services), **said)
    assert result.returncode == USAGE, result.stderr
    assert told in result.stderr
    assert "waiting" not in result.stderr


# What is waited for.


@contextlib.contextmanager
def listener(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Listen like a server, let `answer` do what it will with every client, and return its URL."""
    clients: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    clients.append(client)
                    answer(client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"postgres://u:s3cret@127.0.0.1:{server.getsockname()[1]}/d"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for client in clients:
                client.close()


def silent(client: socket.socket) -> None:
    """Accept, as a proxy does whose backend hangs."""


def closing(client: socket.socket) -> None:
    """Hang up, as a proxy does that has no backend."""
    client.close()


def letting_in(client: socket.socket) -> None:
    """Ask for no password, and then say nothing any more."""
    client.recv(1024)
    client.sendall(b"R\0\0\0\x08\0\0\0\0" + b"S\0\0\0\x18server_version\x0017.0\0" + b"Z\0\0\0\x05I")


@pytest.mark.parametrize("sslmode", ["disable", "prefer", "require"])
@pytest.mark.parametrize("answer", [silent, closing])
def test_who_never_answers_is_waited_for_and_no_longer(
    v034: Database, answer: Callable[[socket.socket], None], sslmode: str
) -> None:
    with listener(answer) as url:
        output = v034.alembic(
            "upgrade", "head", DATABASE_URL=f"{url}?sslmode={sslmode}", DATABASE_STARTUP_TIMEOUT="1s"
        )
        assert output.returncode == TRY_AGAIN, output.stdout
        assert "FAILED: cannot connect to the database after 1 s: " in output.stdout


def test_who_lets_us_in_and_never_answers_is_waited_for_and_no_longer(v034: Database) -> None:
    with listener(letting_in) as url:
        result = v034.usage_rollup(
            "status", DATABASE_URL=f"{url}?sslmode=disable", DATABASE_STARTUP_TIMEOUT="1s"
        )
    assert result.returncode == TRY_AGAIN, result.stderr
    assert "who let us in does not answer: a pooler without a free session, or a server" in result.stderr


def test_who_lets_us_in_and_never_answers_is_told_of_meanwhile(v034: Database) -> None:
    with listener(letting_in) as url:
        process = v034.spawn("usage-rollup", "status", DATABASE_URL=f"{url}?sslmode=disable")
        told = read_until(process, "waiting up to 180 s for the database at 127.0.0.1 port ")
        assert "who let us in does not answer" in told
        process.terminate()
        finish(process, 143)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    "command",
    [("alembic", "upgrade", "head"), ("usage-rollup", "tick"), ("./entrypoint.sh", "echo", STARTED)],
)
def test_signal_ends_the_wait_for_who_never_answers(
    v034: Database, command: tuple[str, ...], signum: signal.Signals, status: int
) -> None:
    reached = threading.Event()
    with listener(lambda client: reached.set()) as url:
        process = v034.spawn(*command, DATABASE_URL=f"{url}?sslmode=disable")
        assert reached.wait(60)
        process.send_signal(signum)
        assert STARTED not in finish(process, status)


def role_limit(database: Database, role: str, limit: int) -> None:
    database.execute(f"ALTER ROLE {role} CONNECTION LIMIT {limit}")


def database_limit(database: Database, role: str, limit: int) -> None:
    database.execute(f"ALTER DATABASE {database.name} CONNECTION LIMIT {limit}")


@pytest.mark.parametrize("set_limit", [role_limit, database_limit])
def test_room_for_one_more_session_is_waited_for(
    at_102: Database, make_role: MakeRole, set_limit: Callable[[Database, str, int], None]
) -> None:
    role = make_role("limited", "IN ROLE pg_read_all_data")
    set_limit(at_102, role, 0)
    process = at_102.spawn("usage-rollup", "status", DATABASE_URL=at_102.url_of(role))
    waiting = read_until(process, "waiting up to 180 s for the database at 127.0.0.1 port ")
    assert "too many connections for" in waiting
    set_limit(at_102, role, -1)
    finish(process, 0)


def test_room_on_a_full_server_is_waited_for() -> None:
    with start_server({"max_connections": "4", "superuser_reserved_connections": "1"}) as server:
        database = Database(server, "postgres")
        database.execute("CREATE ROLE ordinary LOGIN PASSWORD 'ordinary'")
        # All but the reserved one, then that as well.
        for url, sessions in ((database.url_of("ordinary"), 3), (database.url, 4)):
            for _ in range(sessions):
                database.connect()
            process = database.spawn("usage-rollup", "status", DATABASE_URL=url)
            read_until(process, "waiting up to 180 s for the database at 127.0.0.1 port ")
            database.end_sessions()
            finish(process, 0)


def test_a_changed_reason_is_told(make_role: MakeRole) -> None:
    with start_server() as server:
        database = Database(server, "postgres")
        database.execute("CREATE ROLE limited LOGIN PASSWORD 'limited' CONNECTION LIMIT 0")
        server.stop()
        process = database.spawn("usage-rollup", "status", DATABASE_URL=database.url_of("limited"))
        assert "Connection refused" in read_until(process, "waiting up to 180 s for the database at ")
        server.restart()
        told = read_until(process, "too many connections for role")
        assert " still waiting, " in told.splitlines()[-1]
        database.execute("ALTER ROLE limited CONNECTION LIMIT -1")
        finish(process, 0)


def test_silence_of_one_host_does_not_hide_what_another_one_answered(v034: Database) -> None:
    port = v034.url.split(":")[-1].split("/")[0]
    for ports in (f"1,{port}", f"{port},1"):
        both = f"host=127.0.0.1,127.0.0.1 port={ports} user=postgres dbname={v034.name}"
        connect(f"{both} password=multica", 5).close()
        with pytest.raises(LoginRefused, match="the password, or the role, was refused"):
            connect(f"{both} password=wr0ng", 60)


def test_a_standby_among_hosts_may_become_the_primary(v034: Database) -> None:
    with pytest.raises(DatabaseUnavailable):
        connect(f"{v034.url}&target_session_attrs=standby", 0)


def test_without_codes_everything_unclear_is_waited_for(
    v034: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbosity, "_pq_set_error_verbosity", lambda: None)
    with pytest.raises(DatabaseUnavailable, match="password authentication failed"):
        connect(v034.url.replace(":multica@", ":wr0ng@"), 0)
    connect(v034.url, 0).close()


def test_errors_of_an_open_session_are_as_terse_as_ever(v034: Database) -> None:
    with connect(v034.url, 0) as session, pytest.raises(psycopg.errors.DivisionByZero) as raised:
        session.execute("SELECT 1/0")
    assert str(raised.value) == "division by zero"


# Deadlines of the role or the database.


@pytest.mark.parametrize(
    "names",
    [
        ["statement_timeout"],
        ["idle_session_timeout"],
        ["transaction_timeout"],
        ["statement_timeout", "idle_session_timeout", "transaction_timeout", "lock_timeout"],
    ],
    ids=" ".join,
)
def test_deadline_of_a_millisecond_does_not_cut_a_session_short(
    v034: Database, make_role: MakeRole, names: list[str]
) -> None:
    role = make_role("hurried")
    known = [n for n in names if v034.value("SELECT current_setting(%s, true) IS NOT NULL", n)]
    for name in known:
        v034.execute(f"ALTER ROLE {role} SET {name} = '1ms'")
    url = v034.url_of(role)
    if "idle_session_timeout" in names:
        # The trap: whoever thinks it over has no session any more.
        plain = psycopg.connect(url)
        pid = plain.info.backend_pid
        wait_until(lambda: not v034.execute("SELECT FROM pg_stat_activity WHERE pid = %s", pid), "it is gone")
        with pytest.raises(psycopg.OperationalError):
            plain.execute("SELECT 1")
    for _ in range(20):
        with connect(url, 0) as session:
            shown = [session.execute(f"SHOW {name}").fetchone() for name in known]
        assert shown == [("0",)] * len(known)


def test_a_setting_of_the_url_is_kept_beside_what_lifts_a_deadline(
    v034: Database, make_role: MakeRole
) -> None:
    role = make_role("hurried")
    v034.execute(f"ALTER ROLE {role} SET idle_session_timeout = '1ms'")
    url = f"{v034.url_of(role)}&options=-c%20tcp_keepalives_idle%3D77%20-c%20geqo%3Doff"
    with connect(url, 0) as session:
        assert session.execute("SHOW tcp_keepalives_idle").fetchone() == ("77",)
        assert session.execute("SHOW geqo").fetchone() == ("off",)
        assert session.execute("SHOW idle_session_timeout").fetchone() == ("0",)


# A dead peer.

ON_THE_SERVER = {
    "tcp_keepalives_idle": "20",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "5",
    "tcp_user_timeout": "45000",
}
IN_THE_CLIENT = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 20,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 5,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 5,
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 45000,
}


def on_the_server(session: psycopg.Connection[Any]) -> dict[str, str]:
    names = "SELECT name, setting FROM pg_settings WHERE name = ANY (%s)"
    return dict(session.execute(names, [list(ON_THE_SERVER)]).fetchall())


def in_the_client(session: psycopg.Connection[Any]) -> dict[tuple[int, int], int]:
    with socket.socket(fileno=os.dup(session.fileno())) as end:
        return {option: end.getsockopt(*option) for option in IN_THE_CLIENT}


def test_both_ends_of_a_session_notice_a_dead_peer(v034: Database) -> None:
    with psycopg.connect(v034.url) as plain:
        assert on_the_server(plain) != ON_THE_SERVER
        assert in_the_client(plain) != IN_THE_CLIENT
    with connect(v034.url, 0) as session:
        assert on_the_server(session) == ON_THE_SERVER
        assert in_the_client(session) == IN_THE_CLIENT
        assert session.execute("SHOW client_connection_check_interval").fetchone() == ("1s",)
    with v034.migration_connection() as worker:
        raw = worker.connection.dbapi_connection
        assert isinstance(raw, psycopg.Connection)
        assert (on_the_server(raw), in_the_client(raw)) == (ON_THE_SERVER, IN_THE_CLIENT)


def test_what_the_url_says_of_a_dead_peer_holds(v034: Database) -> None:
    with connect(f"{v034.url}&keepalives_idle=77&tcp_user_timeout=7000", 0) as session:
        found = in_the_client(session)
    assert found[socket.IPPROTO_TCP, socket.TCP_KEEPIDLE] == 77
    assert found[socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT] == 7000
    assert found[socket.IPPROTO_TCP, socket.TCP_KEEPCNT] == 5
    with connect(f"{v034.url}&options=-c%20client_connection_check_interval%3D7s", 0) as session:
        assert session.execute("SHOW client_connection_check_interval").fetchone() == ("7s",)


PLAIN = """
import os, psycopg
with psycopg.connect(os.environ["DATABASE_URL"], application_name="usage-rollup") as session:
    session.execute("SELECT pg_sleep(600)")
"""
OURS = """
from usage_rollup.session import connection
with connection.migration_session() as session:
    session.exec_driver_sql("SELECT pg_sleep(600)")
"""


def sleeps(database: Database) -> bool:
    found: bool = database.value(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'usage-rollup' AND wait_event = 'PgSleep')"
    )
    return found


def killed(database: Database, program: str) -> subprocess.Popen[str]:
    """Kill a client in the middle of its statement."""
    process = database.spawn(sys.executable, "-c", program)
    wait_until(lambda: sleeps(database), "the statement runs")
    process.kill()
    process.communicate(timeout=DEADLINE_S)
    return process


def test_killed_client_frees_its_session_in_the_middle_of_a_statement(empty: Database) -> None:
    killed(empty, OURS)
    wait_until(lambda: runners(empty) == 0, "its session is gone")
    # The trap: another client's is still there.
    killed(empty, PLAIN)
    assert sleeps(empty)
    assert empty.value(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'usage-rollup'"
    )


def test_setting_that_a_platform_does_not_have_is_done_without(v034: Database) -> None:
    with connect(v034.url, 0) as session:
        # Refused as it is where the platform cannot tell, with SQLSTATE 22023.
        with pytest.raises(attempt.Failed, match="22023"):
            attempt.run(session, "SELECT set_config('client_connection_check_interval', '-1', false)", 10)
        attempt.run(session, "SELECT 1", 10)


def test_time_that_is_over_before_an_attempt_begins_is_a_failed_attempt(head: Database) -> None:
    # As when a process was stopped, or a loaded machine gave it no processor, between two attempts.
    with pytest.raises(attempt.Failed, match="in time"):
        attempt.log_in(parameters.read(head.url), -1.0)
