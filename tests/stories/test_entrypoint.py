"""The container's door, as a process: migrate, pass signals on, then become the command."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from psycopg import pq

from tests.support.database import BIN, ROOT, Database
from tests.support.deadline import DEADLINE_S
from tests.support.entrypoint import ENTRYPOINT, SHELLS, STARTED
from tests.support.product import wait_until
from tests.support.server import Server, start_server
from tests.support.sessions import is_gone
from tests.support.walks import (
    advisory_locks,
    blocked_at,
    committed_months,
    runners,
    slices,
    wait_until_blocked,
    write_history,
)

pytestmark = pytest.mark.process


def output_of(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=DEADLINE_S)[0]


def test_migrates_and_then_becomes_the_command(v034: Database) -> None:
    process = v034.spawn("./entrypoint.sh", "sh", "-c", "echo $$")
    output = output_of(process)
    assert process.returncode == 0, output
    assert output.splitlines()[-1] == str(process.pid)
    assert v034.revision == "104"


def test_command_starts_after_the_migration_has_committed(v034: Database) -> None:
    query = "SELECT version_num FROM alembic_version"
    process = v034.spawn("./entrypoint.sh", v034.server.program("psql"), "-Atc", query, v034.url)
    assert output_of(process).splitlines()[-1] == "104"
    assert process.returncode == 0


def test_arguments_reach_the_command_as_they_are(head: Database) -> None:
    arguments = ["two  spaces", "", "*", "a'b\"c", "$HOME", "-n", "new\nline", "\\n"]
    process = head.spawn("./entrypoint.sh", "printf", "<%s>", *arguments)
    output = output_of(process)
    assert process.returncode == 0, output
    assert output.endswith("".join(f"<{argument}>" for argument in arguments))


def test_exit_status_of_the_command_is_the_containers(head: Database) -> None:
    process = head.spawn("./entrypoint.sh", "sh", "-c", "exit 42")
    output = output_of(process)
    assert process.returncode == 42, output


def test_without_a_command_it_only_migrates(v034: Database) -> None:
    process = v034.spawn("./entrypoint.sh")
    output = output_of(process)
    assert process.returncode == 0, output
    assert v034.revision == "104"


def test_command_that_does_not_exist_fails_after_the_migration(v034: Database) -> None:
    process = v034.spawn("./entrypoint.sh", "no-such-command")
    output = output_of(process)
    assert process.returncode == 127, output
    assert v034.revision == "104"


def test_stops_at_migrate_target(v034: Database) -> None:
    process = v034.spawn("./entrypoint.sh", "echo", STARTED, MIGRATE_TARGET="102")
    output = output_of(process)
    assert process.returncode == 0, output
    assert output.endswith(f"{STARTED}\n")
    assert v034.revision == "102"
    assert v034.value("SELECT to_regclass('public.task_usage_daily') IS NOT NULL")


def test_empty_migrate_target_means_head(v034: Database) -> None:
    process = v034.spawn("./entrypoint.sh", MIGRATE_TARGET="")
    output = output_of(process)
    assert process.returncode == 0, output
    assert v034.revision == "104"


def test_failed_migration_keeps_its_status_and_does_not_start_the_command(at_102: Database) -> None:
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() + interval '1 day'")
    plain = at_102.alembic("upgrade", "head")
    process = at_102.spawn("./entrypoint.sh", "echo", STARTED)
    output = output_of(process)
    assert process.returncode == plain.returncode != 0
    assert "lies in the future" in output
    assert STARTED not in output
    assert at_102.revision == "102"


def test_command_runs_in_the_callers_directory(head: Database, tmp_path: Path) -> None:
    result = subprocess.run(
        [ENTRYPOINT, "pwd"],
        cwd=tmp_path,
        env=head.environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(tmp_path)


def test_migrates_from_any_directory(v034: Database, tmp_path: Path) -> None:
    result = subprocess.run(
        [os.path.relpath(ENTRYPOINT, tmp_path), "echo", STARTED],
        cwd=tmp_path,
        env=v034.environment(CDPATH=str(ROOT.parent)),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{STARTED}\n"
    assert v034.revision == "104"


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_any_posix_shell_can_run_it(head: Database, shell: list[str]) -> None:
    assert subprocess.run([*shell, "-n", ENTRYPOINT], check=False).returncode == 0
    process = head.spawn(*shell, "entrypoint.sh", "echo", STARTED)
    output = output_of(process)
    assert process.returncode == 0, output
    assert output.endswith(f"{STARTED}\n")


def test_is_executable_and_says_which_shell() -> None:
    assert os.access(ENTRYPOINT, os.X_OK)
    assert ENTRYPOINT.read_text().startswith("#!/bin/sh\n")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_command_gets_its_signals_itself(head: Database, signum: signal.Signals) -> None:
    process = head.spawn("./entrypoint.sh", "sh", "-c", f"kill -{signum.value} $$; echo survived")
    output = output_of(process)
    assert process.returncode == -signum, output
    assert "survived" not in output


# Stopped in the middle.

ENDS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
COMMANDS = {
    "entrypoint": ("./entrypoint.sh", "echo", STARTED),
    "alembic": (str(BIN / "alembic"), "upgrade", "head"),
}


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@pytest.mark.parametrize(("signum", "status"), ENDS)
def test_signal_cancels_the_walk_and_the_next_start_completes_it(
    at_102: Database, shell: list[str], signum: signal.Signals, status: int
) -> None:
    months = write_history(at_102)
    stop_in_the_third_slice(at_102, months, (*shell, *COMMANDS["entrypoint"]), signum, status)
    process = at_102.spawn(*COMMANDS["entrypoint"])
    output = output_of(process)
    assert process.returncode == 0, output
    assert output.endswith(f"{STARTED}\n")
    assert slices(output) == len(months) - 2
    assert at_102.revision == "104"


@pytest.mark.parametrize(("signum", "status"), ENDS)
def test_signal_to_alembic_itself_cancels_the_walk(
    at_102: Database, signum: signal.Signals, status: int
) -> None:
    months = write_history(at_102)
    stop_in_the_third_slice(at_102, months, COMMANDS["alembic"], signum, status)


def test_ctrl_c_in_a_terminal_which_reaches_shell_and_migration_ends_quietly(at_102: Database) -> None:
    months = write_history(at_102)
    with blocked_at(at_102, months[0]):
        process = start_in_a_session_of_its_own(at_102)
        wait_until_blocked(at_102)
        os.killpg(process.pid, signal.SIGINT)
        output = output_of(process)
        assert process.returncode == 130, output
        assert "Traceback" not in output
        assert STARTED not in output
        wait_until(lambda: advisory_locks(at_102) == [], "the locks are free")


def start_in_a_session_of_its_own(database: Database) -> subprocess.Popen[str]:
    return subprocess.Popen(
        COMMANDS["entrypoint"],
        cwd=ROOT,
        env=database.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def stop_in_the_third_slice(
    database: Database, months: list[datetime], command: tuple[str, ...], signum: int, status: int
) -> None:
    with blocked_at(database, months[2]):
        process = database.spawn(*command)
        pid = wait_until_blocked(database)
        assert len(advisory_locks(database)) == 2
        process.send_signal(signum)
        output = output_of(process)
        assert process.returncode == status, output
        assert "Traceback" not in output
        assert STARTED not in output
        # Gone although what it waited for is still there: the statement was cancelled.
        wait_until(lambda: is_gone(database, pid), "the upgrade's session is gone")
        assert advisory_locks(database) == []
        assert committed_months(database) == months[:2]
        assert database.revision == "102"


@pytest.mark.parametrize(("signum", "status"), ENDS)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_signal_ends_the_wait_for_another_run(
    at_102: Database, command: tuple[str, ...], signum: signal.Signals, status: int
) -> None:
    holder = at_102.connect(autocommit=True)
    holder.execute("SELECT pg_advisory_lock(7244554146635925501)")
    process = at_102.spawn(*command)
    wait_until(lambda: runners(at_102) == 1, "the run is connected")
    process.send_signal(signum)
    output = output_of(process)
    assert process.returncode == status, output
    assert "Traceback" not in output
    assert STARTED not in output
    wait_until(lambda: runners(at_102) == 0, "the session is gone")
    assert at_102.revision == "102"


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_signal_ends_the_wait_for_table_locks(at_102: Database, command: tuple[str, ...]) -> None:
    at_102.connect().execute("SELECT FROM task_usage_daily")
    process = at_102.spawn(*command)
    assert process.stdout is not None
    assert any("waiting for table locks" in line for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    output = output_of(process)
    assert process.returncode == 143, output
    assert "Traceback" not in output
    assert STARTED not in output
    wait_until(lambda: advisory_locks(at_102) == [], "the locks are free")
    assert at_102.revision == "102"


@pytest.fixture(scope="module")
def stopped_server() -> Iterator[Server]:
    with start_server() as server:
        server.stop()
        yield server


@pytest.mark.parametrize(("signum", "status"), ENDS)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_signal_ends_the_wait_for_the_database(
    stopped_server: Server, command: tuple[str, ...], signum: signal.Signals, status: int
) -> None:
    database = Database(stopped_server, "postgres")
    assert pq.PGconn.ping(database.url.encode()) == pq.Ping.NO_RESPONSE
    process = database.spawn(*command)
    assert process.stdout is not None
    assert "waiting up to 180 s for the database" in process.stdout.readline()
    process.send_signal(signum)
    output = output_of(process)
    assert process.returncode == status, output
    assert "Traceback" not in output
    assert STARTED not in output


def test_container_that_is_killed_again_and_again_still_finishes(at_102: Database) -> None:
    months = write_history(at_102)
    walked = 0
    for reached in (1, 3, 4):
        with blocked_at(at_102, months[reached]):
            # What kills a container kills everything in it.
            process = start_in_a_session_of_its_own(at_102)
            pid = wait_until_blocked(at_102)
            assert committed_months(at_102) == months[:reached]
            os.killpg(process.pid, signal.SIGKILL)
            output = output_of(process)
            assert STARTED not in output
            walked += slices(output)
            assert walked == reached
            # Else this slice, which nobody will commit, would be the one to go on.
            assert at_102.value("SELECT pg_terminate_backend(%s, 10000)", pid)
    process = at_102.spawn(*COMMANDS["entrypoint"])
    output = output_of(process)
    assert process.returncode == 0, output
    assert output.endswith(f"{STARTED}\n")
    assert walked + slices(output) == len(months)
    assert at_102.revision == "104"


def test_container_may_start_before_its_database(stopped_server: Server) -> None:
    database = Database(stopped_server, f"late_{uuid.uuid4().hex[:8]}")
    process = database.spawn(*COMMANDS["entrypoint"], DATABASE_URL=stopped_server.url("postgres"))
    assert process.stdout is not None
    assert "waiting up to 180 s for the database" in process.stdout.readline()
    stopped_server.restart()
    output = output_of(process)
    assert process.returncode == 0, output
    assert output.endswith(f"{STARTED}\n")
    assert Database(stopped_server, "postgres").revision == "104"
