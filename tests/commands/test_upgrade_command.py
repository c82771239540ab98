"""`usage-rollup upgrade`: what `alembic upgrade` does, by the installed revisions."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from tests.support.database import BIN, Database, MakeDatabase
from tests.support.deadline import DEADLINE_S
from tests.support.product import wait_until
from usage_rollup.contract import MIGRATION_RUN

pytestmark = pytest.mark.process


def log_of(output: str) -> list[str]:
    """Return the log lines without what differs from run to run."""
    return [re.sub(r"\d+", "N", line) for line in output.splitlines()]


def test_upgrade_writes_the_log_lines_of_alembic(make_database: MakeDatabase) -> None:
    ours, alembics = make_database("v034"), make_database("v034")
    done = ours.usage_rollup("upgrade")
    assert done.stdout == ""
    assert log_of(done.stderr) == log_of(alembics.upgrade())


def test_upgrade_goes_to_head_or_to_the_revision_given(v034: Database) -> None:
    done = v034.usage_rollup("upgrade", "102")
    assert done.returncode == 0, done.stderr
    assert v034.revision == "102"
    assert v034.usage_rollup("upgrade").returncode == 0
    assert v034.revision == "104"


def test_upgrade_in_json_is_one_object_with_both_ends(v034: Database) -> None:
    done = v034.usage_rollup("upgrade", "102", "--json")
    told = json.loads(done.stdout)
    assert (told["from"], told["to"], told["steps"]) == (None, "102", ["100", "101", "102"])
    assert "Running upgrade" in done.stderr
    done = v034.usage_rollup("upgrade", "--json")
    told = json.loads(done.stdout)
    assert (told["from"], told["to"], told["steps"]) == ("102", "104", ["103", "104"])


def test_upgrade_takes_the_options_of_a_run(v034: Database) -> None:
    done = v034.usage_rollup("upgrade", "-x", "keep-legacy=true", "-x", "jobs=2")
    assert done.returncode == 0, done.stderr
    assert v034.value("SELECT to_regclass('legacy_usage.task_usage_daily') IS NOT NULL")


@pytest.mark.parametrize("arguments", [("105",), ("-x", "job=2"), ("base:head",)], ids=" ".join)
def test_upgrade_refuses_what_there_is_not_as_a_usage_error(
    arguments: tuple[str, ...], v034: Database
) -> None:
    done = v034.usage_rollup("upgrade", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "HINT: there is: " in done.stderr
    assert "Traceback" not in done.stderr
    assert v034.revision is None


def test_upgrade_refused_by_the_database_exits_1_with_one_message(empty: Database) -> None:
    empty.execute("CREATE TABLE something (id int)")
    done = empty.usage_rollup("upgrade", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["status"] == 1
    assert "holds tables but no ledger" in done.stderr
    assert "Traceback" not in done.stderr


def test_upgrade_of_a_revision_it_does_not_know_exits_1(head: Database) -> None:
    head.execute("UPDATE alembic_version SET version_num = 'later'")
    done = head.usage_rollup("upgrade")
    assert done.returncode == 1
    assert "alembic_version holds later, which is no revision of this chain" in done.stderr
    assert "Traceback" not in done.stderr


def test_upgrade_that_finds_another_runner_at_work_exits_75(v034: Database) -> None:
    with v034.connect() as other:
        other.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_RUN])
        done = v034.usage_rollup("upgrade", "-x", "lock-timeout=1s")
    assert done.returncode == 75, done.stderr
    assert v034.revision is None


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_upgrade_ended_by_a_signal_leaves_no_session_behind(end: signal.Signals, v034: Database) -> None:
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'usage-rollup'"
    sessions += " AND datname = current_database()"
    holder = v034.connect()
    holder.execute('LOCK TABLE "user" IN ACCESS SHARE MODE')
    process = v034.spawn(str(BIN / "usage-rollup"), "upgrade")
    wait_until(lambda: v034.value(f"{sessions} AND wait_event_type = 'Lock'"), "the step waits for its lock")
    process.send_signal(end)
    assert process.wait(timeout=DEADLINE_S) == 128 + end
    assert process.stdout is not None
    assert "Traceback" not in process.stdout.read()
    wait_until(lambda: v034.value(sessions) == 0, "its sessions have ended")
    holder.rollback()
    assert v034.usage_rollup("upgrade").returncode == 0
    assert v034.revision == "104"


def test_upgrade_uses_the_configuration_that_alembic_config_names(v034: Database, tmp_path: Path) -> None:
    done = v034.usage_rollup("upgrade", ALEMBIC_CONFIG=str(tmp_path / "alembic.ini"))
    assert done.returncode == 2
    assert f"no Alembic configuration at {tmp_path}" in done.stderr
