"""What the commands share to print with: units in words, and facts that are never folded or cut in a pipe."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest
from rich.table import Table

from usage_rollup.commands import strip
from usage_rollup.commands.output import Fact, console, duration, show_facts, size
from usage_rollup.reports.covered_days import COMPLETE, Day

pytestmark = pytest.mark.offline


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "1 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (119, "1 min 59 s"),
        (3599, "59 min 59 s"),
        (3599.6, "1 h"),
        (3629, "1 h"),
        (5400, "1 h 30 min"),
        (180_000, "2 d 2 h"),
        (172_800 + 59, "2 d"),
        (90_000_000, "1,041 d 16 h"),
    ],
)
def test_duration_is_said_by_its_greatest_unit_and_the_next_without_zeros(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_duration_is_said_by_more_units_where_two_would_not_tell() -> None:
    assert duration(86_401, 4) == "1 d 1 s"
    assert duration(10_830, 4) == "3 h 30 s"


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 kB"), (350_000, "342 kB"), (1024**2, "1.0 MB"), (5000 * 1024**3, "5,000.0 GB")],
)
def test_size_is_said_in_the_greatest_unit(count: int, said: str) -> None:
    assert size(count) == said


def test_in_a_pipe_a_fact_is_one_line_whatever_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    odd = "[bold]no markup[/bold] :smile: " + "long " * 100
    show_facts(console(), [Fact("odd", odd, "red"), Fact("step", "one\n  locks two\nthree")])
    show_facts(console(), [Fact("label", "value")], width=12)
    assert capsys.readouterr().out == f"odd: {odd}\nstep: one; locks two; three\nlabel       value\n"


def test_in_a_pipe_a_table_is_as_wide_as_it_gets(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("model", box=None)
    table.add_row("[x] :smile: " + "m" * 300)
    console().print(table)
    assert "[x] :smile: " + "m" * 300 in capsys.readouterr().out


def test_strip_ends_with_the_newest_24_months(capsys: pytest.CaptureFixture[str]) -> None:
    def before(months: int) -> date:
        today = datetime.now(UTC).date()
        year, month = divmod(12 * today.year + today.month - 1 - months, 12)
        return date(year, month + 1, 1)

    days = [Day(before(months), 1, 1, COMPLETE) for months in (24, 23, 0)]
    strip.show(console(), days, everything=False)
    shown = capsys.readouterr().out
    assert f"\n{before(23):%Y-%m}  =" in shown
    assert f"\n{before(24):%Y-%m}  =" not in shown
    assert f"older usage since {before(24):%Y-%m}: usage-rollup status --all" in shown
    strip.show(console(), days, everything=True)
    shown = capsys.readouterr().out
    assert f"\n{before(24):%Y-%m}  =" in shown
    assert "older usage" not in shown
