"""What was measured: a table on the terminal, JSON and a plot for the docs."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent

# What `save` replaces in docs/speed.md; other pages have marks of other names, that end alike.
BEGIN, END = "<!-- measured -->", "<!-- end -->"


@dataclass(frozen=True)
class Result:
    """One case: seconds, or what `unit` says; `ratio` to its yardstick of the same run; what it may be."""

    case: str
    history: str
    rows: int
    value: float
    ratio: float | None = None
    target: float | None = None
    unit: str = "s"

    @property
    def compared(self) -> float:
        """Return what the target is for: the ratio, or the value where there is none."""
        return self.value if self.ratio is None else self.ratio


def machine(version: int, settings: dict[str, str]) -> str:
    """Name the machine, the server and what it was told."""
    cpu = platform.processor() or platform.machine()
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{cpu}, {os.cpu_count()} cores, {memory_gib:.0f} GiB; PostgreSQL {version // 10000}.{version % 100}"
        f" with {', '.join(f'{name}={value}' for name, value in settings.items())};"
        f" {datetime.now(UTC):%Y-%m-%d}"
    )


def show(results: Sequence[Result], where: str) -> None:
    """Print the table; a ratio beyond its target is marked."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(f"\n{where}\n", soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("case", "history"):
        table.add_column(name, no_wrap=True)
    for name in ("rows", "measured", "ratio", "target"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        table.add_row(*_cells(result))
    console.print(table)


def _cells(r: Result) -> tuple[str, ...]:
    beyond = r.target is not None and r.compared > r.target
    value = f"{r.value:,.0f}" if r.value >= 1000 else f"{r.value:.3g}"
    return (
        r.case,
        r.history,
        f"{r.rows:,}",
        f"{value} {r.unit}".strip(),
        "" if r.ratio is None else f"{r.ratio:.2f} x",
        "" if r.target is None else f"{'MISSED ' if beyond else ''}{r.target:g}",
    )


def save(results: Sequence[Result], where: str, folder: Path) -> None:
    """Write speed.json and speed.svg, and the table into speed.md between its two marks."""
    cases = [dataclasses.asdict(r) for r in results]
    (folder / "speed.json").write_text(json.dumps({"machine": where, "results": cases}, indent=1) + "\n")
    _plot(results, where, folder / "speed.svg")
    page = folder / "speed.md"
    lines = [
        f"{where}.",
        "",
        "| case | history | rows | measured | ratio | may be |",
        "|---|---|--:|--:|--:|--:|",
        *("| " + " | ".join(_cells(r)) + " |" for r in results),
    ]
    page.write_text(put_between(page.read_text(), BEGIN, "\n\n" + "\n".join(lines) + "\n\n"))


def put_between(page: str, begin: str, text: str) -> str:
    """Return `page` with `text` between the mark `begin`, which is there once, and the next END."""
    before, rest = page.split(begin)
    _, end, after = rest.partition(END)
    return before + begin + text + end + after


def _plot(results: Sequence[Result], where: str, path: Path) -> None:
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "usage-rollup", "font.size": 9}
    figure, axes = plt.subplots(figsize=(7.5, 4.5))
    for case in ("bare aggregate", "the engine's limit", "upgrade 103", "upgrade 103, jobs=1"):
        points = sorted((r.rows, r.value) for r in results if r.case == case and r.history == "usual")
        axes.plot(*zip(*points, strict=True), marker="o", label=case)
    axes.set(xscale="log", yscale="log", xlabel="usage rows", ylabel="seconds")
    axes.set_title("\n".join(where.rsplit("; ", 2)), fontsize=7, loc="left")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
