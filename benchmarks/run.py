"""Measure everything in one run on one server: ratios are what to quote, seconds are this machine's."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator

from rich.console import Console

from benchmarks import commands, guard, history, hook, hot_path, pause, results, tick
from benchmarks.demo import ROOT
from benchmarks.results import Result
from tests.support.server import Server, open_server

SIZES = (100_000, 1_000_000, 10_000_000)

PAUSE_ROWS = 300_000

console = Console(stderr=True)


def main() -> int:
    """Print the table; with --save write docs/speed.json and docs/speed.svg too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-rows", type=int, default=SIZES[-1], help="leave out larger histories")
    parser.add_argument("--save", action="store_true", help="write docs/speed.json and docs/speed.svg")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    with open_server(history.SETTINGS) as server:
        measured = list(_measure(server, [size for size in SIZES if size <= options.max_rows]))
        where = results.machine(server.version, history.SETTINGS)
    results.show(measured, where)
    if options.save:
        results.save(measured, where, ROOT / "docs")
    return 0


def _measure(server: Server, sizes: list[int]) -> Iterator[Result]:
    ticks: list[Result] = []
    memory: list[Result] = []
    per_row: dict[tuple[str, int], float] = {}
    for rows in sizes:
        console.print(f"{rows:,} rows")
        usual = history.build(server, rows, "usual")
        for result in hook.measure(usual, rounds=3 if rows <= 1_000_000 else 2):
            per_row[result.case, rows] = result.value / rows
            yield result
        seconds = tick.measure(usual)
        smallest = ticks[0].value if ticks else seconds
        ticks.append(Result("tick after 1,000 rows", "usual", rows, seconds, seconds / smallest, 1.2))
        if rows == sizes[-1]:
            alone, all_of_103 = guard.measure()
            yield Result("guard of 103", "usual", rows, alone * 1000, target=50, unit="ms")
            yield Result("guard and drops of 103", "usual", rows, all_of_103 * 1000, unit="ms")
        whole, peak = commands.upgrade(usual)
        yield Result("alembic upgrade head from 102", "usual", rows, whole)
        least = memory[0].value if memory else peak
        memory.append(Result("peak memory of the process", "usual", rows, peak, peak / least, 1.1, "MiB"))
        if rows == sizes[0]:
            ours, empty = commands.nothing_to_do(usual, server.create_database("bench_empty"))
            yield Result("alembic current, empty environment", "usual", rows, empty)
            yield Result("alembic upgrade head, nothing to do", "usual", rows, ours, ours / empty, 1.3)
            yield from hot_path.measure(usual)
        server.drop_database(usual.url.rsplit("/", 1)[1].split("?")[0])
    for result in (*ticks, *memory):
        yield result
    if 10_000_000 in sizes:
        for case, target in (("bare aggregate", None), ("walk", 1.1)):
            large, small = per_row[case, 10_000_000], per_row[case, 1_000_000]
            name = f"{case}, a row, to that at 1 million"
            yield Result(name, "usual", 10_000_000, large * 1e6, large / small, target, "us")
    rows = min(PAUSE_ROWS, sizes[-1])
    console.print(f"{rows:,} rows, beside a live writer")
    yield from pause.measure(server, rows)
    for kind in ("low aggregation", "mass correction"):
        for rows in sizes:
            if rows <= 1_000_000:
                console.print(f"{rows:,} rows, {kind}")
                yield from hook.measure(history.build(server, rows, kind), rounds=2)


if __name__ == "__main__":
    sys.exit(main())
