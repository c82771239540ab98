"""`usage-rollup status`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from ..contract import LAG_THRESHOLD
from ..reports import covered_days
from ..reports import status as reporting
from ..session import connection
from .output import JsonOption, console, write_json

NO_USAGE = "no usage"

# A day's character and colour in the strip, and the legend's order.
MARKS = {
    covered_days.COMPLETE: ("=", "green"),
    covered_days.PENDING: ("~", "cyan"),
    covered_days.PARTLY: ("+", "bold yellow"),
    covered_days.MISSING: ("X", "bold red"),
    covered_days.LEFT_OUT: ("o", "magenta"),
    NO_USAGE: (".", "dim"),
}

# What a strip shows unless asked for everything.
MONTHS = 24

# More empty months than these become one line.
EMPTY_MONTHS = 3

_CATCH_UP = "catch up: usage-rollup backfill"

_LABEL_WIDTH = 12


def status(
    everything: Annotated[
        bool, typer.Option("--all", help=f"Show every month, not only the newest {MONTHS}.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show where the database stands and how the hourly rollup does; reads only."""
    with connection.migration_session() as session:
        found = reporting.status(session)
    if as_json:
        write_json(found)
        return
    out = console()
    for label, value, style in _facts(found):
        _line(out, label, value, style)
    if found.coverage:
        _show_coverage(out, found.coverage, everything)
    else:
        _line(out, "coverage", "-" if found.coverage is None else "there is no usage")


def _facts(s: reporting.Status) -> Iterator[tuple[str, str, str]]:
    """Yield label, value and style of every line above the strip."""
    yield "revision", s.revision or "-", ""
    yield "ledger", "-" if s.ledger_rows is None else f"{s.ledger_rows} rows, newest {s.newest_stem}", ""
    yield "pipeline", s.pipeline or "-", ""
    if s.pipeline and not s.ticked_by:
        yield "ticks", "nothing ticks here: `usage-rollup schedule` says how to change that", "bold red"
    else:
        yield "ticks", s.ticked_by or "-", ""
    yield "watermark", s.watermark or "-", "bold red" if s.watermark_in_future else ""
    yield "data lag", *_lag(s)
    queued = [f"{q.table} {q.rows:,}" + (f", oldest {q.oldest}" if q.oldest else "") for q in s.queues]
    yield "queued", "; ".join(queued) or "-", ""
    yield "last run", *_last_run(s.last_run)
    yield "lock 4246", f"held by {s.lock_holders}" if s.lock_holders else "free", ""
    if s.backfill:
        yield (
            "backfill",
            f"unfinished: {s.backfill.walked} of {s.backfill.slices} slices walked,"
            f" {s.backfill.rows_left:,} usage rows left; resume: usage-rollup backfill",
            "bold yellow",
        )
    else:
        yield "backfill", "-" if s.watermark is None else "none unfinished", ""
    yield "set aside", *_number(s.set_aside, "buckets", "usage-rollup verify names them")
    yield "undated", *_number(s.undated, "usage rows outside years 1-9998", "mend their created_at by hand")
    if s.left_out:
        by = f" by {s.left_out.acknowledged_by}" if s.left_out.acknowledged_by else ""
        yield (
            "left out",
            f"hours before {s.left_out.before_hour}, on purpose{by}, {s.left_out.acknowledged_at}",
            "bold yellow",
        )


def _lag(s: reporting.Status) -> tuple[str, str]:
    if s.lag_seconds is None or s.watermark is None:
        return "-", ""
    if s.watermark_in_future:
        return "not known: the watermark lies in the future", "bold red"
    if s.lag_seconds == 0:
        return "none", "green"
    if s.watermark.startswith(("1970-01-01 00:00:00", "-infinity", reporting.NO_ROW)):
        return f"all usage there is, the watermark has never moved; {_CATCH_UP}", "bold red"
    lag = f"{_duration(s.lag_seconds)} behind the newest usage"
    behind = s.lag_seconds > LAG_THRESHOLD.total_seconds()
    return (f"{lag}; {_CATCH_UP}", "bold red") if behind else (lag, "green")


def _duration(seconds: float) -> str:
    minutes, _ = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else "less than a minute"


def _last_run(run: reporting.Run | None) -> tuple[str, str]:
    if run is None:
        return "-", ""
    if run.error:
        return f"failed: {run.error} (started {run.started_at})", "bold red"
    if run.started_at is None:
        return "never", ""
    if run.finished_at is None:
        return f"started {run.started_at}, not finished", ""
    return f"started {run.started_at}, finished {run.finished_at}, {run.rows:,} rows changed", ""


def _number(number: int | None, of: str, advice: str) -> tuple[str, str]:
    if not number:
        return "-" if number is None else f"0 {of}", ""
    return f"{number:,} {of}: {advice}", "bold yellow"


def _line(out: Console, label: str, value: str, style: str = "") -> None:
    """Print a fact: folded under its own beginning on a terminal, one line in a pipe."""
    text = Text(value, style)
    lines = [text] if out.soft_wrap else text.wrap(out, out.width - _LABEL_WIDTH)
    for n, line in enumerate(lines):
        out.print(Text((label if n == 0 else "").ljust(_LABEL_WIDTH)) + line)


def _show_coverage(out: Console, days: Sequence[covered_days.Day], everything: bool) -> None:
    with_usage = [day for day in days if day.state != covered_days.LEFT_OUT]
    counts = {state: sum(day.state == state for day in days) for state in MARKS}
    pending = f", {counts[covered_days.PENDING]:,} pending" if counts[covered_days.PENDING] else ""
    left_out = f", {counts[covered_days.LEFT_OUT]:,} left out" if counts[covered_days.LEFT_OUT] else ""
    holes = covered_days.holes(days)
    _line(
        out,
        "coverage",
        f"{counts[covered_days.COMPLETE]:,} of {len(with_usage):,} days with usage complete"
        f"{pending}{left_out}; holes: {len(holes) or 'none'}",
        "bold red" if holes else "green",
    )
    for hole in holes:
        last = f" to {hole.last}" if hole.last != hole.first else ""
        _line(out, "", f"{hole.first}{last}: {hole.rolled_up_rows:,} of {hole.usage_rows:,} usage rows")
    if holes:
        _line(out, "", "mend them: usage-rollup backfill --repair")
    _show_strip(out, days, everything)


def _show_strip(out: Console, days: Sequence[covered_days.Day], everything: bool) -> None:
    """Print a line a month and a character a day, below a ruler and above the legend."""
    states = {day.day: day.state for day in days}
    months = sorted({_number_of(day) for day in states})
    # A row dated in the future must not push the present out of sight.
    newest = min(months[-1], _number_of(datetime.now(UTC).date()))
    shown = months if everything else [month for month in months if month > newest - MONTHS]
    out.print()
    out.print(Text(" " * 9 + "1   5    10   15   20   25   30", "dim"))
    before = shown[0]
    for month in shown:
        empty = range(before + 1, month)
        if len(empty) > EMPTY_MONTHS:
            out.print(Text(f"{_name(empty[0])} to {_name(empty[-1])}: no usage", "dim"))
            empty = range(0)
        for number in (*empty, month):
            out.print(_month(number, states))
        before = month
    if len(shown) < len(months):
        out.print(Text(f"older usage since {_name(months[0])}: usage-rollup status --all", "dim"))
    legend = Text("  ").join(Text(f"{mark} {state}", style) for state, (mark, style) in MARKS.items())
    out.print(legend)


# Months are counted from year 0, so that they can be subtracted.
def _number_of(day: date) -> int:
    return day.year * 12 + day.month - 1


def _first(number: int) -> date:
    return date(number // 12, number % 12 + 1, 1)


def _name(number: int) -> str:
    # Not by strftime, which writes early years short.
    return _first(number).isoformat()[:7]


def _month(number: int, states: dict[date, str]) -> Text:
    strip = Text(f"{_name(number)}  ")
    day = _first(number)
    while _number_of(day) == number:
        strip.append(*MARKS[states.get(day, NO_USAGE)])
        day += timedelta(days=1)
    return strip
