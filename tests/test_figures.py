"""Every figure in README.md comes from somewhere: what a command measured, or what the code says."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks import figures
from benchmarks.figures import README, SPEED
from benchmarks.results import END
from tests.support.database import ROOT
from usage_rollup import revisions
from usage_rollup.contract import LAG_THRESHOLD
from usage_rollup.hourly import pace, slices
from usage_rollup.hourly.pace import GROWTH, MOST
from usage_rollup.session import advisory_lock, opening, options, outages, pinned

pytestmark = pytest.mark.offline

PAGE = README.read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PIPELINE = revisions.sql("102")

WORDS = {1: "one", 2: "two", 4: "four", 5: "five"}


def said(pattern: str, text: str) -> str:
    """Return what a text says in the place of the one group of a pattern."""
    found = re.search(pattern, text)
    assert found, pattern
    return found[1]


def traps() -> str:
    return str(len(re.findall(r"^\| H\d+ \|", (ROOT / "docs" / "correctness.md").read_text("utf-8"), re.M)))


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f}"


def silence_s(tcp: dict[str, str]) -> int:
    """Return how long a dead peer goes unnoticed: idle, then probes that nobody answers."""
    idle, interval, count = (
        int(value) for name, value in tcp.items() if name.endswith(("_idle", "_interval", "_count"))
    )
    return idle + interval * count


# What README says, with its figures in groups, and where they come from.
FACTS: dict[str, Callable[[], tuple[str, ...]]] = {
    r"in \[(\d+) ways\]": lambda: (traps(),),
    r"PostgreSQL (\d+) or newer": lambda: (str(opening.MINIMUM_VERSION),),
    r"Python (\S+) or newer": lambda: (PYPROJECT["project"]["requires-python"].removeprefix(">="),),
    r"(?<!_)ROWS=(\d+)": lambda: (said(r"ROWS +\?= (\d+)", MAKEFILE),),
    r"MINUTES=(\d+)": lambda: (said(r"MINUTES +\?= (\d+)", MAKEFILE),),
    r"on (\d+), (\d+), (\d+) and (\d+), whose binaries": lambda: tuple(
        said(r"for major in ([\d ]+);", MAKEFILE).split()
    ),
    r"after (\w+) losses in a row": lambda: (WORDS[outages.MOST_LOSSES],),
    r"for up to (\w+) minutes\. Live": lambda: (WORDS[int(options.LOCK_PATIENCE_S / 60)],),
    r"at most (an hour) and no unfinished": lambda: ({timedelta(hours=1): "an hour"}[LAG_THRESHOLD],),
    r"(\w+) of the history, of ([\d,]+) rows at\s+least and ([\d,]+) at most": lambda: (
        {"8": "eighths"}[said(r"div\(SUM\(h\.events\) OVER \(\), (\d+)\) \+ 1", PIPELINE)],
        f"{int(said(r'LEAST.p_rows, GREATEST.(50000),', PIPELINE)):,}",
        f"{slices.SLICE_ROWS:,}",
    ),
    r"no later than (\w+) minutes ago": lambda: (
        WORDS[int(said(r"LEAST\(v_start - interval '(\d+) minutes', v_oldest\)", PIPELINE))],
    ),
    r"later than (\w+) minutes after its start": lambda: (
        WORDS[int(said(r"'(\d+) minutes'::pg_catalog\.interval\)", PIPELINE))],
    ),
    r"begins nothing after (\w+) seconds \(`usage_rollup\.tick_budget`\)": lambda: (
        WORDS[int(said(r"usage_rollup\.tick_budget', true\), ''\)::interval, '(\d+) seconds'", PIPELINE))],
    ),
    r"up to (\w+), as long as it makes the walk a (fifth) faster": lambda: (
        WORDS[MOST],
        {1.2: "fifth"}[GROWTH],
    ),
    r"a (quarter) of the allowed connections": lambda: (
        {"3 / 4": "quarter"}[
            said(r"l\.most \* (3 / 4)", Path(pace.__file__).with_suffix(".sql").read_text())
        ],
    ),
    r"`DATABASE_STARTUP_TIMEOUT` \| `(\d+)m`": lambda: (minutes(opening.DEFAULT_STARTUP_TIMEOUT_S),),
    r"`0`: (one) attempt": lambda: (WORDS[1],),
    r"\| `(\d+)m`, `(\d+)m` \| how long": lambda: (
        minutes(advisory_lock.PATIENCE_S),
        minutes(options.LOCK_PATIENCE_S),
    ),
    r"server's\s+session and locks within (a minute)": lambda: (
        {True: "a minute"}[max(silence_s(pinned.CLIENT_TCP), silence_s(pinned.SERVER_TCP)) <= 60],
    ),
    # One look a second, and one more for the end.
    r"a killed one within (two) seconds": lambda: ({"1s": "two"}["".join(pinned.LOOK_FOR_CLIENT.values())],),
    r"a `statement_timeout` of (1 ms) included": lambda: (
        said(r"ALTER ROLE .* = .(\d+)ms", (ROOT / "tests/session/test_opening.py").read_text()) + " ms",
    ),
}

# A number, of whatever is measured or counted.
FIGURE = re.compile(
    r"(?<![\w.`\u2013-])(?:\d[\d,.]*|one|two|three|four|five|six|seven|eight|nine|ten|an?|fifth|quarter|eighths)\]?"
    r"(?:\s+(?:more|of|the|allowed|usage)){0,3}\s+(?:ms|us|s|seconds?|minutes?|hours?|rows|ways|buckets|slices"
    r"|sessions|columns|[kMG]i?B|%|times|losses|faster|attempts?|connections)\b"
)
# Not of anything that is measured.
IN_WORDS = {"between two slices"}


def test_page_has_the_figures_that_were_measured_last() -> None:
    assert figures.with_figures(PAGE) == PAGE


def test_other_measurements_would_be_other_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = json.loads(SPEED.read_text("utf-8"))
    for result in measured["results"]:
        if (result["case"], result["history"]) == ("upgrade 103", "dense"):
            result["ratio"] = 0.123
    monkeypatch.setattr(figures, "SPEED", tmp_path / "speed.json")
    figures.SPEED.write_text(json.dumps(measured))
    screens = figures.SCREENS.read_text("utf-8")
    monkeypatch.setattr(figures, "SCREENS", tmp_path / "screens.md")
    figures.SCREENS.write_text(screens.replace(" buckets,", "0 buckets,"))
    page = figures.with_figures(PAGE)
    assert "a million rows: <!-- speed -->0.12 to " in page
    assert re.search(r"\d0 buckets, in ", page)


@pytest.mark.parametrize("fact", FACTS)
def test_figure_of_the_readme_is_what_the_code_says(fact: str) -> None:
    found = re.findall(fact, PAGE)
    assert found
    for figure in found:
        assert (figure if isinstance(figure, tuple) else (figure,)) == FACTS[fact]()


def test_every_figure_of_the_readme_comes_from_somewhere() -> None:
    told = re.sub(rf"<!-- \w+ -->.*?{END}", "", PAGE, flags=re.DOTALL)
    for pattern in (*FACTS, *IN_WORDS):
        assert re.search(pattern, told), pattern
        told = re.sub(pattern, "", told)
    assert FIGURE.findall(told) == []


@pytest.mark.parametrize("figure", ["0.85 s", "300,000 usage rows", "two minutes", "a quarter of the rows"])
def test_figure_is_found_where_there_is_one(figure: str) -> None:
    assert FIGURE.search(f"it is {figure}.")
