"""The strip of days under `usage-rollup status`: what the hourly rollup covers, at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from rich.console import Console
from rich.text import Text

from ..reports import covered_days

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


def show(out: Console, days: Sequence[covered_days.Day], everything: bool) -> None:
    """Print a line a month and a character a day, below a ruler and above the legend.

    The newest MONTHS of them, or `everything`. There is a day at least.
    """
    states = {day.day: day.state for day in days}
    months = sorted({_number_of(day) for day in states})
    # A row dated in the future must not push the present out of sight.
    newest = min(months[-1], _number_of(datetime.now(UTC).date()))
    shown = months if everything else [month for month in months if month > newest - MONTHS]
    out.print()
    out.print(" " * 9 + "1   5    10   15   20   25   30", style="dim")
    before = shown[0]
    for month in shown:
        empty = range(before + 1, month)
        if len(empty) > EMPTY_MONTHS:
            out.print(f"{_name(empty[0])} to {_name(empty[-1])}: no usage", style="dim")
            empty = range(0)
        for number in (*empty, month):
            out.print(_month(number, states))
        before = month
    if len(shown) < len(months):
        out.print(f"older usage since {_name(months[0])}: usage-rollup status --all", style="dim")
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
