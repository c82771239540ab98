"""LOG_FORMAT: lines for people, or one JSON object a line and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.database import BIN, ROOT, Database
from tests.support.processes import finish
from tests.support.terminal import on_a_terminal
from tests.support.walks import blocked_at, wait_until_blocked, write_history


def objects(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_upgrade_logs_one_object_a_line_and_prints_nothing_else(v034: Database) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    result = v034.run("alembic", "upgrade", "head", LOG_FORMAT="json")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    entries = objects(result.stderr)
    fields = {"time", "level", "logger", "message"}
    assert all(fields <= set(entry) for entry in entries)
    assert all(fields == set(entry) for entry in entries if entry["logger"] == "alembic.runtime.migration")
    for entry in entries:
        time = datetime.fromisoformat(entry["time"])
        assert time.utcoffset() == timedelta(0)
        assert before <= time <= datetime.now(UTC)
    assert any(e["logger"] == "alembic.runtime.migration" and "102 -> 103" in e["message"] for e in entries)
    assert (entries[-1]["level"], entries[-1]["logger"]) == ("WARNING", "usage_rollup.hourly.schedule")


def test_refusal_of_alembic_is_an_object_with_its_hint_and_the_same_exit_status(at_102: Database) -> None:
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() + interval '1 day'")
    text = at_102.run("alembic", "upgrade", "head")
    # What alembic prints by itself, on standard output.
    assert text.stdout.startswith("FAILED: ")
    refused = at_102.run("alembic", "upgrade", "head", LOG_FORMAT="json")
    assert refused.returncode == text.returncode == 255
    assert refused.stdout == ""
    last = objects(refused.stderr)[-1]
    assert last["level"] == "ERROR"
    assert "lies in the future" in last["message"]
    assert last["hint"].startswith("UPDATE public.task_usage_hourly_rollup_state")


def test_command_that_prints_a_result_still_does(head: Database) -> None:
    result = head.run("alembic", "current", LOG_FORMAT="json")
    assert result.stdout == "104 (head)\n"
    assert objects(result.stderr)


@pytest.mark.parametrize("value", [{}, {"LOG_FORMAT": ""}, {"LOG_FORMAT": "text"}])
def test_text_is_what_one_gets_without_asking(v034: Database, value: dict[str, str]) -> None:
    result = v034.run("alembic", "upgrade", "100", **value)
    # Not on a terminal: each line says when.
    time, line = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", r"INFO  \[alembic.runtime.migration\] Context impl"
    assert re.search(f"^{time} {line}", result.stderr, re.MULTILINE)


def test_on_a_terminal_a_line_begins_with_its_level(v034: Database) -> None:
    shown = on_a_terminal(v034, "upgrade", "100", program="alembic", columns=200)
    assert re.search(r"^INFO  \[alembic.runtime.migration\] Context impl", shown, re.MULTILINE)
    assert "WARNI " not in shown


def test_a_slice_is_told_in_fields_too(v034: Database) -> None:
    write_history(v034, rows=60, months=2)
    result = v034.run("alembic", "upgrade", "head", LOG_FORMAT="json")
    slices = [entry for entry in objects(result.stderr) if "slice" in entry]
    assert [entry["slice"] for entry in slices] == [*range(1, len(slices) + 1)]
    assert sum(entry["rows"] for entry in slices) == 60
    assert slices[-1]["rows_left"] == 0
    assert {"from", "to", "buckets", "seconds", "seconds_left"} <= set(slices[0])
    assert datetime.fromisoformat(slices[0]["from"]).utcoffset() == timedelta(0)


@pytest.mark.parametrize("command", [("alembic", "upgrade", "head"), ("usage-rollup", "tick")])
def test_any_other_format_is_refused_in_one_sentence(v034: Database, command: tuple[str, ...]) -> None:
    before = v034.catalog()
    result = v034.run(*command, LOG_FORMAT="xml")
    assert result.returncode in (2, 255)
    (line,) = (result.stdout + result.stderr).splitlines()
    assert line.endswith(": LOG_FORMAT is neither text nor json: 'xml'")
    assert v034.catalog() == before


def test_refusal_of_a_command_is_an_object(v034: Database) -> None:
    result = v034.run("usage-rollup", "tick", LOG_FORMAT="json")
    assert result.returncode == 1
    (entry,) = objects(result.stderr)
    assert (entry["level"], entry["logger"]) == ("ERROR", "usage_rollup.commands.cli")
    assert "run `alembic upgrade 102` first" in entry["hint"]
    assert result.stdout == ""


def test_command_in_text_shows_messages_alone(v034: Database) -> None:
    result = v034.run("usage-rollup", "tick")
    assert result.stderr.startswith("usage-rollup: there is no hourly rollup in this database")


@pytest.mark.parametrize("line", ["1 / 0", "warnings.warn('careful')"])
def test_what_python_itself_would_print_is_an_object(v034: Database, line: str) -> None:
    program = f"import warnings; from usage_rollup import logs; logs.configure(); {line}"
    text = v034.run(sys.executable, "-c", program)
    with pytest.raises(json.JSONDecodeError):
        objects(text.stderr)
    result = v034.run(sys.executable, "-c", program, LOG_FORMAT="json")
    assert result.returncode == text.returncode
    (entry,) = objects(result.stderr)
    if line == "1 / 0":
        assert entry["level"] == "CRITICAL"
        assert entry["message"] == "ZeroDivisionError: division by zero"
        assert entry["traceback"].startswith("Traceback")
    else:
        assert "careful" in entry["message"]


# A mistake in a revision, and what a library says on the way to it.
BROKEN = """


import warnings


def upgrade() -> None:
    warnings.warn("careful\\nin two lines", stacklevel=1)
    raise ValueError("wrong\\nin two lines")
"""


def test_what_python_prints_of_a_migration_is_an_object_too(v034: Database, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "alembic", tmp_path / "alembic", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    with (tmp_path / "alembic" / "versions" / "100_user_timezone.py").open("a") as revision:
        revision.write(BROKEN)
    command = (str(BIN / "alembic"), "-c", str(tmp_path / "alembic.ini"), "upgrade", "head")
    text = v034.run(*command)
    assert "UserWarning: careful" in text.stderr
    assert "\nTraceback " in text.stderr
    result = v034.run(*command, LOG_FORMAT="json")
    assert (result.returncode, result.stdout) == (text.returncode, "")
    entries = objects(result.stderr)
    (warning,) = [entry for entry in entries if "careful" in entry["message"]]
    assert (warning["level"], warning["logger"]) == ("WARNING", "py.warnings")
    last = entries[-1]
    assert (last["level"], last["message"]) == ("CRITICAL", "ValueError: wrong\nin two lines")
    assert last["traceback"].startswith("Traceback")


@pytest.mark.parametrize("command", [("alembic", "upgrade", "head"), ("usage-rollup", "backfill")])
def test_what_a_signal_ends_is_logged_as_objects_to_the_last_line(
    at_102: Database, command: tuple[str, ...]
) -> None:
    months = write_history(at_102)
    with blocked_at(at_102, months[1]):
        process = at_102.spawn(*command, LOG_FORMAT="json")
        wait_until_blocked(at_102)
        process.terminate()
        said = finish(process, 143)
    assert [entry["slice"] for entry in objects(said) if "slice" in entry] == [1]
    assert at_102.usage_rollup("backfill").returncode == 0


def test_reason_of_a_probe_is_an_object_beside_its_answer(at_102: Database) -> None:
    probed = at_102.run("usage-rollup", "status", "--json", "--exit-code", LOG_FORMAT="json")
    assert probed.returncode == 3
    (entry,) = objects(probed.stderr)
    assert entry["message"].startswith("the upgrade is not finished: ")
    assert json.loads(probed.stdout)["problems"]
