"""The container's door without a shell behind it: MIGRATE=off, `migrate`, `usage-rollup ...`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.database import NOWHERE, ROOT, Database
from tests.support.deadline import DEADLINE_S
from tests.support.entrypoint import ENTRYPOINT, SHELLS, STARTED
from tests.support.processes import finish, read_until
from tests.support.product import wait_until
from tests.support.walks import runners

pytestmark = pytest.mark.process


def run(db: Database, *arguments: str, **extra: Any) -> subprocess.CompletedProcess[str]:
    return db.run(str(ENTRYPOINT), *arguments, **extra)


def stuck(at_102: Database) -> Database:
    """Return a database that no upgrade to head gets through."""
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() + interval '1 day'")
    return at_102


def test_migrate_off_becomes_the_command_without_a_database(v034: Database) -> None:
    process = v034.spawn(
        "./entrypoint.sh", "sh", "-c", "echo $$ $#", "sh", "a b", "", MIGRATE="off", DATABASE_URL=NOWHERE
    )
    output = process.communicate(timeout=DEADLINE_S)[0]
    assert (process.returncode, output) == (0, f"{process.pid} 2\n")


def test_migrate_off_starts_the_command_over_a_migration_that_would_fail(at_102: Database) -> None:
    stuck(at_102)
    assert run(at_102, "echo", STARTED).stdout != f"{STARTED}\n"
    assert run(at_102, "echo", STARTED, MIGRATE="off").stdout == f"{STARTED}\n"
    assert at_102.revision == "102"


def test_migrate_off_without_a_command_does_nothing(v034: Database) -> None:
    result = run(v034, MIGRATE="off")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert v034.revision is None


@pytest.mark.parametrize("value", ["on", ""])
def test_migrate_on_is_what_one_gets_without_asking(v034: Database, value: str) -> None:
    assert run(v034, "echo", STARTED, MIGRATE=value, MIGRATE_TARGET="100").returncode == 0
    assert v034.revision == "100"


@pytest.mark.parametrize("value", ["no", "OFF", "0", "on off"])
def test_any_other_value_of_migrate_is_refused_in_one_sentence(v034: Database, value: str) -> None:
    result = run(v034, "echo", STARTED, MIGRATE=value)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "entrypoint.sh: MIGRATE is neither on nor off\n"
    assert v034.revision is None


def test_migrate_migrates_to_its_target_and_starts_nothing(v034: Database) -> None:
    result = run(v034, "migrate", MIGRATE="off", MIGRATE_TARGET="102")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert v034.revision == "102"


def test_migrate_exits_with_the_migrations_status(at_102: Database) -> None:
    stuck(at_102)
    assert run(at_102, "migrate").returncode == at_102.alembic("upgrade", "head").returncode == 255


def test_migrate_takes_no_arguments(v034: Database) -> None:
    result = run(v034, "migrate", "up")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert v034.revision is None


def test_operators_command_runs_without_migrating_where_alembic_ini_lies(
    v034: Database, tmp_path: Path
) -> None:
    result = run(v034, "usage-rollup", "tick", cwd=tmp_path)
    assert result.returncode == 1
    assert "there is no hourly rollup in this database" in result.stderr
    assert v034.revision is None
    program = tmp_path / "usage-rollup"
    program.write_text("#!/bin/sh\npwd\necho $$ $*\n")
    program.chmod(0o755)
    process = v034.spawn("./entrypoint.sh", "usage-rollup", "a", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert process.communicate(timeout=DEADLINE_S)[0] == f"{ROOT}\n{process.pid} a\n"


def test_failed_migration_ends_with_commands_for_those_who_cannot_enter_the_container(
    at_102: Database,
) -> None:
    result = run(stuck(at_102), "echo", STARTED)
    assert result.returncode == 255
    assert "lies in the future" in result.stdout
    hints = result.stderr.splitlines()[-4:]
    assert hints[0].startswith("The migration failed.")
    assert hints[1] == "  docker compose run --rm --no-deps SERVICE usage-rollup preflight"
    assert hints[2] == "  docker compose run --rm --no-deps SERVICE migrate"
    assert hints[3].startswith("  kubectl run usage-rollup --rm -i --restart=Never --image=IMAGE ")
    assert hints[3].endswith(" -- usage-rollup preflight   # or: -- migrate")
    overrides = json.loads(hints[3].split("--overrides='")[1].split("'")[0])
    assert overrides["spec"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "SECRET"}}]
    assert STARTED not in result.stdout


def test_failure_in_json_is_json_to_the_last_line(at_102: Database) -> None:
    result = run(stuck(at_102), "echo", STARTED, LOG_FORMAT="json")
    assert result.returncode == 255
    assert result.stdout == ""
    entries = [json.loads(line) for line in result.stderr.splitlines()]
    assert "lies in the future" in entries[-5]["message"]
    assert "docker compose run" in entries[-3]["message"]
    assert '"secretRef":{"name":"SECRET"}' in entries[-1]["message"]
    assert entries[-5].pop("hint").startswith("UPDATE ")
    assert {tuple(entry) for entry in entries} == {("time", "level", "logger", "message")}


def test_migration_that_was_told_to_stop_has_not_failed(at_102: Database) -> None:
    holder = at_102.connect(autocommit=True)
    holder.execute("SELECT pg_advisory_lock(7244554146635925501)")
    process = at_102.spawn("./entrypoint.sh", "migrate")
    wait_until(lambda: runners(at_102) == 1, "the run is connected")
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=DEADLINE_S)[0]
    assert process.returncode == 143, output
    assert "The migration failed" not in output


def test_what_may_pass_by_itself_is_75_and_says_so(at_102: Database) -> None:
    at_102.connect(autocommit=True).execute("SELECT pg_advisory_lock(7244554146635925501)")
    for log_format in ("text", "json"):
        alembic = run_alembic(at_102, LOCK_TIMEOUT="0", LOG_FORMAT=log_format)
        assert alembic.returncode == 75
        result = run(at_102, "echo", STARTED, LOCK_TIMEOUT="0", LOG_FORMAT=log_format)
        assert result.returncode == 75
        assert result.stdout == alembic.stdout
        assert "may pass by itself" in result.stderr.splitlines()[-1]
        assert "The migration failed" not in result.stderr
        assert STARTED not in result.stdout


def test_quiet_alembic_says_nothing_of_what_may_pass_by_itself(at_102: Database) -> None:
    at_102.connect(autocommit=True).execute("SELECT pg_advisory_lock(7244554146635925501)")
    result = at_102.run("alembic", "--quiet", "upgrade", "head", LOCK_TIMEOUT="0")
    assert (result.returncode, result.stdout) == (75, "")


def run_alembic(db: Database, **extra: str) -> subprocess.CompletedProcess[str]:
    return db.run("alembic", "upgrade", "head", **extra)


def path_to_alembic(directory: Path, text: str) -> str:
    """Write a program that stands in for a migration; return the PATH on which the door finds it."""
    program = directory / "alembic"
    program.write_text(text)
    program.chmod(0o755)
    return f"{directory}:/usr/bin:/bin"


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_reaches_a_migration_that_knows_none_yet(
    v034: Database, tmp_path: Path, shell: list[str], signum: signal.Signals, status: int
) -> None:
    # Like Python before it has installed a handler: SIGINT is ignored, as a shell has it.
    path = path_to_alembic(tmp_path, "#!/bin/sh\necho begun\nexec sleep 600\n")
    process = v034.spawn(*shell, "entrypoint.sh", "echo", STARTED, PATH=path)
    read_until(process, "begun")
    process.send_signal(signum)
    assert STARTED not in finish(process, status)


# A migration that has to be told three times, and then ends when it is let.
STUBBORN = f"""\
#!{sys.executable}
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM, signal.SIGUSR1}})
print("begun", os.getpid(), flush=True)
for _ in range(3):
    if not signal.sigtimedwait({{signal.SIGTERM}}, 30):
        sys.exit("never told")
    print("told", flush=True)
signal.sigtimedwait({{signal.SIGUSR1}}, 30)
sys.exit(int(os.environ["ENDS_WITH"]))
"""


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@pytest.mark.parametrize(
    ("signum", "ends_with", "status"),
    [
        (signal.SIGTERM, "143", 143),
        (signal.SIGINT, "143", 130),
        # It had come to its end all the same: nothing is started after that.
        (signal.SIGTERM, "0", 143),
        (signal.SIGTERM, "255", 255),
    ],
)
def test_door_stays_until_the_migration_has_ended_however_often_it_is_told_to_stop(
    v034: Database, tmp_path: Path, shell: list[str], signum: signal.Signals, ends_with: str, status: int
) -> None:
    path = path_to_alembic(tmp_path, STUBBORN)
    process = v034.spawn(*shell, "entrypoint.sh", "echo", STARTED, PATH=path, ENDS_WITH=ends_with)
    migration = int(read_until(process, "begun").split()[1])
    for _ in range(3):
        process.send_signal(signum)
        read_until(process, "told")
    # A door that had gone would have passed nothing on the second time.
    assert process.poll() is None
    os.kill(migration, signal.SIGUSR1)
    output = finish(process, status)
    assert STARTED not in output
    assert ("The migration failed" in output) == (status == 255)


# The door, whose migration has ended and been collected before the trap that told it to stop is over.
SLOW_TRAP = """\
kill() {
    command kill "$@" || return
    while grep -qs '^State:[^Z]*$' "/proc/$2/status"; do :; done
}
. ./entrypoint.sh
"""
ENDS_WHEN_TOLD = f"""\
#!{sys.executable}
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
print("begun", flush=True)
signal.sigtimedwait({{signal.SIGTERM}}, 30)
sys.exit(int(os.environ["ENDS_WITH"]))
"""


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@pytest.mark.parametrize(("ends_with", "status"), [("0", 143), ("75", 75), ("143", 143), ("255", 255)])
def test_door_knows_how_a_migration_ended_that_was_gone_before_the_trap_was_over(
    v034: Database, tmp_path: Path, shell: list[str], ends_with: str, status: int
) -> None:
    path = path_to_alembic(tmp_path, ENDS_WHEN_TOLD)
    environment = {"PATH": path, "ENDS_WITH": ends_with}
    process = v034.spawn(*shell, "-c", SLOW_TRAP, "./entrypoint.sh", "echo", STARTED, **environment)
    read_until(process, "begun")
    process.send_signal(signal.SIGTERM)
    output = finish(process, status)
    assert STARTED not in output
    assert ("The migration failed" in output) == (status == 255)


# The door, told to stop when it knows how its migration ended, and before it looks whether it was told.
LATE_SIGNAL = """\
wait() {
    command wait "$1"
    set -- "$?"
    [ -n "${once-}" ] || { once=yes; kill -TERM "$$"; }
    return "$1"
}
. ./entrypoint.sh
"""


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@pytest.mark.parametrize(("ends_with", "status"), [(0, 143), (75, 75), (255, 255)])
def test_door_knows_how_a_migration_ended_when_a_signal_comes_as_it_ends(
    v034: Database, tmp_path: Path, shell: list[str], ends_with: int, status: int
) -> None:
    path = path_to_alembic(tmp_path, f"#!/bin/sh\nexit {ends_with}\n")
    process = v034.spawn(*shell, "-c", LATE_SIGNAL, "./entrypoint.sh", "echo", STARTED, PATH=path)
    output = finish(process, status)
    assert STARTED not in output
    assert ("The migration failed" in output) == (status == 255)


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_any_posix_shell_knows_the_modes(head: Database, shell: list[str]) -> None:
    def status(*arguments: str, **extra: str) -> tuple[int, str]:
        process = head.spawn(*shell, "entrypoint.sh", *arguments, **extra)
        return process.wait(timeout=DEADLINE_S), process.communicate()[0]

    assert status("echo", STARTED, MIGRATE="off") == (0, f"{STARTED}\n")
    assert status("echo", STARTED, MIGRATE="never")[0] == 2
    assert status("migrate", "up")[0] == 2
    assert status("usage-rollup", "--help")[0] == 0
    code, output = status("migrate", MIGRATE_TARGET="nothing", LOG_FORMAT="json")
    assert code == 255
    assert "kubectl" in [json.loads(line) for line in output.splitlines()][-1]["message"]
