"""Measure whole commands: one with nothing to do, those that only read, and the memory of the process."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from benchmarks.demo import ROOT
from benchmarks.history import History, use
from benchmarks.results import Result

ALEMBIC = str(Path(sys.executable).parent / "alembic")
USAGE_ROLLUP = str(Path(sys.executable).parent / "usage-rollup")


def peak_memory(url: str) -> float:
    """Upgrade to head; return the process's peak memory in MiB."""
    use(url)
    process = subprocess.Popen([ALEMBIC, "upgrade", "head"], cwd=ROOT, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"alembic upgrade head: {status}"
    return usage.ru_maxrss / 1024


def that_read(history: History, url: str) -> Iterator[Result]:
    """Yield the seconds of preflight before a walk, and of verify, preflight and the loss check after one."""
    use(url)
    kind, rows = history.kind, history.rows
    yield Result("preflight, nothing rolled up", kind, rows, _seconds([USAGE_ROLLUP, "preflight"], ROOT))
    _seconds([USAGE_ROLLUP, "backfill"], ROOT)
    for command in ("verify", "preflight"):
        yield Result(f"{command}, all rolled up", kind, rows, _seconds([USAGE_ROLLUP, command], ROOT))
    with psycopg.connect(url) as connection:
        for function in ("rollup_task_usage_daily_window", "rollup_task_usage_dashboard_daily_window"):
            connection.execute(f"SELECT {function}('-infinity', now())")
        connection.commit()
        connection.execute("ANALYZE task_usage_daily, task_usage_dashboard_daily")
        started = time.monotonic()
        connection.execute("SELECT COUNT(*) FROM task_usage_hourly_legacy_excess()")
        seconds = time.monotonic() - started
    yield Result("comparing full legacy rollups, before 103", kind, rows, seconds)


def nothing_to_do(history: History, empty_url: str, rounds: int = 15) -> tuple[float, float]:
    """Return medians in seconds: our no-op upgrade, and `alembic current` of an empty environment.

    The second is what `alembic init` makes, on an empty database.
    """
    use(history.url)
    ours, empty = [], []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([ALEMBIC, "init", "environment"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        ini = Path(folder, "alembic.ini")
        url = empty_url.replace("postgres://", "postgresql+psycopg://", 1)
        lines = ini.read_text().splitlines()
        ini.write_text(
            "\n".join(
                f"sqlalchemy.url = {url}" if line.startswith("sqlalchemy.url") else line for line in lines
            )
        )
        for _ in range(rounds):
            ours.append(_seconds([ALEMBIC, "upgrade", "102"], ROOT))
            empty.append(_seconds([ALEMBIC, "current"], Path(folder)))
    return statistics.median(ours), statistics.median(empty)


def _seconds(command: list[str], folder: Path) -> float:
    started = time.monotonic()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - started
