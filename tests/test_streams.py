"""Whatever becomes of standard output and error, a run goes on, and its exit status is the truth."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.database import ROOT, Database
from tests.support.deadline import DEADLINE_S
from tests.support.product import wait_until
from tests.support.walks import write_history
from usage_rollup import streams

pytestmark = pytest.mark.process

GONE, STUCK = "2>&1 into a pipe whose reader is gone", "2>&1 into a pipe that nobody reads"
SINKS = [
    ">&-",
    "2>&-",
    "<&- >&- 2>&-",
    ">/dev/full",
    "2>/dev/full",
    ">/dev/full 2>&1",
    GONE,
    STUCK,
]


def fill(pipe: int) -> None:
    """Write to a pipe until it takes no more."""
    os.set_blocking(pipe, False)
    with suppress(BlockingIOError):
        while True:
            os.write(pipe, b"\n" * 4096)
    os.set_blocking(pipe, True)


@contextmanager
def into(sink: str) -> Iterator[tuple[str, int]]:
    """Yield a shell's redirection, and the descriptor that is standard output and error before it."""
    if sink not in (GONE, STUCK):
        with open(os.devnull, "wb") as null:
            yield sink, null.fileno()
        return
    reader, writer = os.pipe()
    try:
        if sink == GONE:
            os.close(reader)
        else:
            fill(writer)
        yield "", writer
    finally:
        os.close(writer)
        if sink == STUCK:
            os.close(reader)


def status_of(database: Database, sink: str, *command: str, **extra: str) -> int:
    """Run a real command with such a sink to its end; return its exit status."""
    with into(sink) as (redirection, output):
        return subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *command],
            cwd=ROOT,
            env=database.environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=DEADLINE_S,
            check=False,
        ).returncode


def said_of(database: Database, redirection: str, *command: str) -> tuple[int, str]:
    """Run a real command with its standard output redirected; return its exit status and standard error."""
    done = database.run("/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *command)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("sink", "log_format"),
    [(sink, "text") for sink in SINKS] + [(sink, "json") for sink in ("2>&-", ">/dev/full 2>&1", GONE)],
)
def test_upgrade_goes_on_and_exits_0(v034: Database, sink: str, log_format: str) -> None:
    write_history(v034)
    assert status_of(v034, sink, "alembic", "upgrade", "head", LOG_FORMAT=log_format) == 0
    assert v034.revision == "104"
    assert v034.value("SELECT sum(event_count) FROM task_usage_hourly") == 400


@pytest.mark.parametrize("sink", ["<&- >&- 2>&-", ">/dev/full 2>&1", GONE])
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_refused_upgrade_exits_as_ever(empty: Database, sink: str, log_format: str) -> None:
    empty.execute("CREATE TABLE something ()")
    assert status_of(empty, sink, "alembic", "upgrade", "head", LOG_FORMAT=log_format) == 255
    assert status_of(empty, sink, "usage-rollup", "tick", LOG_FORMAT=log_format) == 1


@pytest.mark.parametrize("sink", ["<&- >&- 2>&-", ">/dev/full 2>&1", GONE])
def test_commands_that_work_go_on_and_exit_0(at_102: Database, sink: str) -> None:
    write_history(at_102)
    assert status_of(at_102, sink, "usage-rollup", "backfill", "--json") == 0
    assert at_102.value("SELECT sum(event_count) FROM task_usage_hourly") == 400
    assert status_of(at_102, sink, "usage-rollup", "tick") == 0
    assert status_of(at_102, sink, "usage-rollup", "upgrade", "--json") == 0
    assert at_102.revision == "104"


@pytest.mark.parametrize("sink", [">&-", "2>&-", ">/dev/full 2>&1", GONE])
def test_containers_door_passes_the_exit_status_on(v034: Database, sink: str, tmp_path: Path) -> None:
    touched = tmp_path / "started"
    assert status_of(v034, sink, "./entrypoint.sh", "touch", str(touched)) == 0
    assert v034.revision == "104"
    assert touched.exists()
    v034.execute("UPDATE alembic_version SET version_num = 'later'")
    touched.unlink()
    assert status_of(v034, sink, "./entrypoint.sh", "touch", str(touched)) == 255
    assert not touched.exists()


ANSWERS = [
    ("usage-rollup", "status"),
    ("usage-rollup", "status", "--json"),
    ("usage-rollup", "verify"),
    ("usage-rollup", "preflight"),
    ("usage-rollup", "backfill", "--dry-run"),
    ("usage-rollup", "--help"),
    (sys.executable, "-m", "usage_rollup.revisions"),
    ("alembic", "current"),
    ("alembic", "upgrade", "101:head", "--sql"),
]


@pytest.mark.parametrize("command", ANSWERS, ids=" ".join)
def test_answer_that_cannot_be_written_is_one_sentence_and_a_failure(
    at_102: Database, command: tuple[str, ...]
) -> None:
    assert said_of(at_102, ">/dev/null", *command)[0] in (0, 3)
    for redirection, why in (">/dev/full", "No space left on device"), (">&-", "Bad file descriptor"):
        status, said = said_of(at_102, redirection, *command)
        assert status != 0
        lost = f"the answer could not be written to standard output: {why}"
        assert lost in said.splitlines()[-1] or status == 3
        assert "Traceback" not in said
        assert "Exception ignored" not in said


def test_refusal_that_standard_output_does_not_take_is_said_on_standard_error(empty: Database) -> None:
    empty.execute("CREATE TABLE something ()")
    for redirection in (">/dev/full", ">&-"):
        status, said = said_of(empty, redirection, "alembic", "upgrade", "head")
        assert status == 255
        assert said.splitlines()[-2].startswith("FAILED: this database holds tables but no ledger"), said


def test_line_waits_for_a_reader_who_is_slow_to_come() -> None:
    reader, writer = os.pipe()
    fill(writer)
    us = threading.get_ident()

    def read_it_all() -> bytes:
        wait_until(lambda: sys._current_frames()[us].f_code.co_name == "_takes_more", "the line waits")
        with os.fdopen(reader, "rb") as slow:
            return slow.read()

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_it_all)
        streams._Sink(writer, missing=False, patience_s=None).write(b"told\n")
        os.close(writer)
        assert reading.result().endswith(b"\ntold\n")


OPENED = """
import os, sys
from usage_rollup import logs
logs.escape_output()
file = open(sys.argv[1], "w")
print("to standard output")
print("to standard error", file=sys.stderr)
logs.configure()
import logging
logging.getLogger("usage_rollup").warning("logged")
sys.exit(file.fileno() < 3)
"""


def test_what_is_opened_after_the_start_gets_no_standard_descriptor(empty: Database, tmp_path: Path) -> None:
    # The trap: the first file that a program opens takes the place of the one that was closed.
    taken = "import os, sys; sys.exit(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT) == 2)"
    opened = str(tmp_path / "opened")
    assert status_of(empty, "2>&-", sys.executable, "-c", taken, opened) == 1
    for sink in SINKS[:-1]:
        assert status_of(empty, sink, sys.executable, "-c", OPENED, opened) == 0
        assert Path(opened).read_text() == ""
