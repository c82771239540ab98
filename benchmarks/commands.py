"""Measure whole commands: `alembic upgrade head` with nothing to do, and with everything to do."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.demo import ROOT
from benchmarks.history import History, use
from usage_rollup.session.connection import migration_session

ALEMBIC = str(Path(sys.executable).parent / "alembic")


def upgrade(history: History) -> tuple[float, float]:
    """Upgrade to head from an empty rollup; return seconds and the process's peak memory in MiB."""
    use(history.url)
    with migration_session() as session:
        session.exec_driver_sql("TRUNCATE task_usage_hourly, task_usage_hourly_backfill")
        session.exec_driver_sql("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")
        session.commit()
    started = time.monotonic()
    process = subprocess.Popen([ALEMBIC, "upgrade", "head"], cwd=ROOT, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"alembic upgrade head: {status}"
    return time.monotonic() - started, usage.ru_maxrss / 1024


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
            ours.append(_seconds([ALEMBIC, "upgrade", "head"], ROOT))
            empty.append(_seconds([ALEMBIC, "current"], Path(folder)))
    return statistics.median(ours), statistics.median(empty)


def _seconds(command: list[str], folder: Path) -> float:
    started = time.monotonic()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - started
