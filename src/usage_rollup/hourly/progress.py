"""Show how a backfill gets on: a bar on a terminal, a line a slice anywhere else."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from .. import logs
from ..account import run
from ..words import duration, took
from .slices import Slice

log = logging.getLogger(__name__)


class Display(Protocol):
    """What shows the slices."""

    def advance(self, done: Slice) -> None:
        """Show a slice that has just been committed."""


class Progress:
    """What the walk reports to: it shows each slice, and enters it in the run's account."""

    def __init__(self, display: Display) -> None:
        self.display = display

    def advance(self, done: Slice) -> None:
        """Take note of a slice that has just been committed."""
        run.slices += 1
        run.rows += done.rows
        run.buckets += done.buckets
        self.display.advance(done)


@contextmanager
def slice_progress(total_rows: int) -> Iterator[Progress]:
    """Yield what to report a walk of `total_rows` usage rows to: a bar where somebody can watch it."""
    if not sys.stderr.isatty() or logs.wants_json():
        yield Progress(_Lines(total_rows))
        return
    # Only here: a run that shows no bar starts without it.
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("backfill {task.description}"),
        BarColumn(),
        TextColumn(
            "{task.completed:,.0f}/{task.total:,.0f} rows, {task.fields[rate]} rows/s{task.fields[left]}"
        ),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        yield Progress(_Bar(bar, total_rows))


class _Lines:
    def __init__(self, total_rows: int) -> None:
        self.total_rows = total_rows
        self.rows = 0
        self.number = 0
        self.started = time.monotonic()

    def advance(self, done: Slice) -> None:
        self.number += 1
        self.rows += done.rows
        left_rows = max(0, self.total_rows - self.rows)
        left_s = (time.monotonic() - self.started) / max(1, self.rows) * left_rows
        log.info(
            "slice %d: %s to %s, %s rows, %s buckets, %s; %s",
            self.number,
            f"{done.from_:%Y-%m-%d %H:%M}",
            f"{done.to:%Y-%m-%d %H:%M}",
            f"{done.rows:,}",
            f"{done.buckets:,}",
            took(done.seconds),
            f"{left_rows:,} rows left, about {duration(left_s)}" if left_rows else "0 rows left",
            extra={
                "fields": {
                    "slice": self.number,
                    "from": done.from_.isoformat(),
                    "to": done.to.isoformat(),
                    "rows": done.rows,
                    "buckets": done.buckets,
                    "seconds": round(done.seconds, 3),
                    "rows_left": left_rows,
                    "seconds_left": round(left_s, 1),
                }
            },
        )


class _Bar:
    def __init__(self, bar: "Bar", total_rows: int) -> None:  # type: ignore[name-defined] # noqa: F821, UP037
        self.bar = bar
        self.task = bar.add_task("", total=total_rows, rate="-", left="")
        self.rows = 0
        self.started = time.monotonic()

    def advance(self, done: Slice) -> None:
        self.rows += done.rows
        rate = self.rows / max(0.001, time.monotonic() - self.started)
        # The plan counted rows before the walk; a live server adds some.
        total = max(self.rows, self.bar.tasks[self.task].total or 0)
        self.bar.update(
            self.task,
            completed=self.rows,
            total=total,
            description=f"{done.from_:%Y-%m}",
            rate=f"{rate:,.0f}",
            left=f", about {duration((total - self.rows) / max(1, rate))} left" if total > self.rows else "",
        )
