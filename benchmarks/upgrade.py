"""Measure `alembic upgrade 103` from 102, less start-up, beside what the database needs at least."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from benchmarks import yardsticks
from benchmarks.commands import ALEMBIC
from benchmarks.demo import ROOT
from benchmarks.history import History, use
from benchmarks.results import Result
from tests.support.server import Server

# Each with proof and ANALYZE. The default is measured on every history, others up to a million usual rows.
DEFAULT = "upgrade 103"
WAYS = {DEFAULT: (), f"{DEFAULT}, jobs=1": ("-x", "jobs=1"), f"{DEFAULT}, jobs=2": ("-x", "jobs=2")}

# At most so many times the bare aggregate: at 100,000 rows, and above.
OF_BARE = (1.2, 0.9)

# At most so many times the engine's limit, an undisturbed run, and the cost per row at a million.
OF_LIMIT, OF_UNDISTURBED, PER_ROW = 1.9, 0.6, 1.1


def measure(server: Server, history: History, rounds: int, *, resumed: bool = False) -> Iterator[Result]:
    """Yield the best of `rounds`; in each, yardsticks and ways take turns on copies of `history`."""
    bare: list[float] = []
    limit: list[float] = []
    all_ways = history.kind == "usual" and history.rows <= 1_000_000
    ways: dict[str, list[float]] = {way: [] for way in WAYS if all_ways or way == DEFAULT}
    start_up = min(_seconds("upgrade", "102") for _ in range(5))
    after_kill: list[float] = []
    written: dict[str, int] = {}
    for _ in range(rounds):
        for way in ways:
            with copy_of(server, history) as url:
                if way == DEFAULT:
                    found = yardsticks.measure(url)
                    bare.append(found[0])
                    limit.append(found[1])
                    buckets = found[2]
                before = _written(url)
                ways[way].append(_seconds(*WAYS[way], "upgrade", "103") - start_up)
                if way == DEFAULT:
                    written = {name: value - before[name] for name, value in _written(url).items()}
        if resumed:
            with copy_of(server, history) as url:
                after_kill.append(_resumed(url) - start_up)
    kind, rows = history.kind, history.rows
    target = OF_BARE[rows > 100_000]
    yield Result("buckets", kind, rows, buckets, unit="")
    yield Result("bare aggregate", kind, rows, min(bare))
    yield Result("the engine's limit", kind, rows, min(limit), min(limit) / min(bare))
    for way, seconds in ways.items():
        limits = target if way == DEFAULT else None
        yield Result(way, kind, rows, min(seconds), min(seconds) / min(bare), limits)
    default = min(ways[DEFAULT])
    yield Result(f"{DEFAULT}, to the limit", kind, rows, default, default / min(limit), OF_LIMIT)
    if resumed:
        yield Result(
            f"{DEFAULT}, resumed after a kill at half, to an undisturbed one",
            kind,
            rows,
            min(after_kill),
            min(after_kill) / default,
            OF_UNDISTURBED,
        )
    yield Result("WAL a bucket", kind, rows, written["wal"] / buckets, unit="bytes")
    yield Result("temporary files", kind, rows, written["temporary"] / 2**20, unit="MiB")


@contextmanager
def copy_of(server: Server, history: History) -> Iterator[str]:
    """Lend a copy that this process and its children use, with its pages in memory."""
    name = "bench_copy"
    server.drop_database(name)
    url = server.create_database(name, template=history.name)
    use(url)
    with psycopg.connect(url, autocommit=True) as connection:
        for table in ("task_usage", "agent_task_queue", "agent", "issue"):
            connection.execute(f"SELECT COUNT(*) FROM (SELECT t FROM {table} AS t OFFSET 0) AS read")
        connection.execute("CHECKPOINT")
    yield url
    server.drop_database(name)


def _resumed(url: str) -> float:
    """Kill an upgrade when half of its rows are walked; return the seconds of the next one."""
    process = subprocess.Popen(
        [ALEMBIC, "upgrade", "103"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    walked = (
        "SELECT COALESCE(SUM(usage_rows) FILTER (WHERE walked_at IS NOT NULL) >= SUM(usage_rows) / 2, false)"
        " FROM task_usage_hourly_backfill"
    )
    others = (
        "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute(walked).fetchone() == (False,):
            assert process.poll() is None, "the upgrade has ended before it was half done"
            time.sleep(0.005)
        process.kill()
        process.wait()
        while connection.execute(others).fetchone() != (0,):
            time.sleep(0.005)
    return _seconds("upgrade", "103")


def _seconds(*arguments: str) -> float:
    started = time.monotonic()
    subprocess.run(
        [ALEMBIC, *arguments],
        cwd=ROOT,
        env=os.environ,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.monotonic() - started


def _written(url: str) -> dict[str, int]:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT pg_current_wal_lsn() - '0/0', temp_bytes FROM pg_stat_database"
            " WHERE datname = current_database()"
        ).fetchone()
    assert row is not None
    return {"wal": int(row[0]), "temporary": int(row[1])}
