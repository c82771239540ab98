"""Measure everything in one run on one server: ratios are what to quote, seconds are this machine's."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator

from rich.console import Console

from benchmarks import commands, figures, guard, history, hot_path, pause, results, tick, upgrade
from benchmarks.history import History
from benchmarks.results import Result
from tests.support.server import Server, open_server

SIZES = (100_000, 1_000_000, 10_000_000)

PAUSE_ROWS = 300_000

console = Console(stderr=True)


def main() -> int:
    """Print the table; with --save write docs/speed.json, its page and plot, and README's figures, too."""
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
        results.save(measured, where, results.ROOT / "docs")
        figures.main()
    return 0


def _measure(server: Server, sizes: list[int]) -> Iterator[Result]:
    per_row: dict[tuple[str, int], float] = {}
    first: dict[str, float] = {}
    for rows in sizes:
        for kind in history.KINDS:
            # One kind in full; ten million rows of the others would take an hour.
            if kind != "usual" and rows > 1_000_000:
                continue
            console.print(f"{rows:,} rows, {kind}")
            built = history.build(server, rows, kind)
            rounds = 3 if rows <= 1_000_000 else 1
            for result in upgrade.measure(
                server, built, rounds, resumed=kind == "usual" and rows >= 1_000_000
            ):
                per_row[f"{result.case}, {kind}", rows] = result.value / rows
                yield result
            if kind == "usual":
                yield from _beside_the_walk(server, built, first)
                if rows == sizes[0]:
                    yield from _whatever_the_size(server, built)
                if rows == min(1_000_000, sizes[-1]):
                    with upgrade.copy_of(server, built) as url:
                        yield from commands.that_read(built, url)
            server.drop_database(built.name)
    if 10_000_000 in sizes:
        for case, target in (("bare aggregate", None), ("upgrade 103", upgrade.PER_ROW)):
            large, small = (per_row[f"{case}, usual", rows] for rows in (10_000_000, 1_000_000))
            name = f"{case}, a row, to that at 1 million"
            yield Result(name, "usual", 10_000_000, large * 1e6, large / small, target, "us")
    rows = min(PAUSE_ROWS, sizes[-1])
    console.print(f"{rows:,} rows, beside a live writer")
    yield from pause.measure(server, rows)


def _beside_the_walk(server: Server, built: History, first: dict[str, float]) -> Iterator[Result]:
    """Yield what must not grow with the history, to what it is at the `first` size."""
    with upgrade.copy_of(server, built) as url:
        memory = commands.peak_memory(url)
        seconds = tick.measure(url)
        for case, value, target, unit in (
            ("tick after 1,000 rows", seconds, 1.2, "s"),
            ("peak memory of the process", memory, 1.1, "MiB"),
        ):
            smallest = first.setdefault(case, value)
            yield Result(case, "usual", built.rows, value, value / smallest, target, unit)
        if built.rows == 1_000_000:
            yield from tick.masses(built, url)
    with upgrade.copy_of(server, built):
        alone, all_of_103 = guard.measure()
        yield Result("guard of 103", "usual", built.rows, alone * 1000, target=50, unit="ms")
        yield Result("guard and drops of 103", "usual", built.rows, all_of_103 * 1000, unit="ms")


def _whatever_the_size(server: Server, built: History) -> Iterator[Result]:
    """Yield what a no-op upgrade and the triggers cost."""
    with upgrade.copy_of(server, built) as url:
        ours, empty = commands.nothing_to_do(built, server.create_database("bench_empty"))
        yield Result("alembic current, empty environment", "usual", built.rows, empty)
        yield Result("alembic upgrade, nothing to do", "usual", built.rows, ours, ours / empty, 1.3)
        commands.peak_memory(url)
        yield from hot_path.measure(built, url)


if __name__ == "__main__":
    sys.exit(main())
