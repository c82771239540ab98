"""Measure what a live writer feels beside 102, the backfill, verify and 103.

A writer reports usage as the server does, one upsert a transaction, without a rest; its longest one is the
pause. Beside nothing at all it has some, too: the machine's. Beside a backfill that is told to spare the
server its 99th percentile counts.
"""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from alembic import command
from benchmarks import history
from benchmarks.commands import ALEMBIC, USAGE_ROLLUP
from benchmarks.demo import ROOT
from benchmarks.hot_path import UPSERT
from benchmarks.results import Result
from tests.support.server import Server

SPARING = "backfill that rests a second after each slice"

# These begin on a database at 101, or at 102 with nothing rolled up; the others go on from the one before.
AT_101, AT_102 = ("nothing",), ("backfill, 2 jobs", SPARING)

PHASES = {
    "nothing": ["sleep", "5"],
    "102": [ALEMBIC, "upgrade", "102"],
    "backfill": [USAGE_ROLLUP, "backfill"],
    "backfill, 2 jobs": [USAGE_ROLLUP, "backfill", "--jobs", "2"],
    SPARING: [USAGE_ROLLUP, "backfill", "--sleep-between-slices", "1s"],
    "verify": [USAGE_ROLLUP, "verify"],
    "103": [ALEMBIC, "upgrade", "103"],
}

# What a person does not notice, in milliseconds; the percentile beside SPARING to that beside nothing.
TARGET_MS = 250
TARGET_P99 = 1.2


def measure(server: Server, rows: int, rounds: int = 3) -> Iterator[Result]:
    """Yield the pause beside each phase in milliseconds, the best of `rounds`. No write may fail."""
    name = "bench_pause"
    template = history.build(server, rows, "usual").name
    command.downgrade(history.alembic(), "101")
    pauses: dict[str, list[float]] = {phase: [] for phase in PHASES}
    percentiles: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for _ in range(rounds):
        for phase, arguments in PHASES.items():
            if phase in {*AT_101, *AT_102}:
                server.drop_database(name)
                history.use(server.create_database(name, template=template))
            if phase in AT_102:
                command.upgrade(history.alembic(), "102")
            with writing(server.url(name)) as seconds:
                subprocess.run(
                    arguments, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            pauses[phase].append(max(seconds))
            percentiles[phase].append(statistics.quantiles(seconds, n=100)[98])
    for phase, found in pauses.items():
        yield Result(
            f"longest pause of a writer beside {phase}",
            "usual",
            rows,
            min(found) * 1000,
            target=None if phase == "nothing" else TARGET_MS,
            unit="ms",
        )
    idle, beside = min(percentiles["nothing"]), min(percentiles[SPARING])
    yield Result("99th percentile of a writer beside nothing", "usual", rows, idle * 1000, unit="ms")
    yield Result(
        f"99th percentile beside a {SPARING}", "usual", rows, beside * 1000, beside / idle, TARGET_P99, "ms"
    )
    server.drop_database(name)
    server.drop_database(template)


@contextmanager
def writing(url: str) -> Iterator[list[float]]:
    """Yield the seconds that each write has taken; a write that failed is raised at the end."""
    seconds: list[float] = []
    failures: list[psycopg.Error] = []
    over = threading.Event()

    def write() -> None:
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                tasks = connection.execute("SELECT id FROM agent_task_queue LIMIT 1000").fetchall()
                while not over.is_set():
                    started = time.perf_counter()
                    connection.execute(UPSERT, tasks[len(seconds) % len(tasks)])
                    seconds.append(time.perf_counter() - started)
        except psycopg.Error as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield seconds
    finally:
        over.set()
        writer.join()
    if failures:
        raise failures[0]
