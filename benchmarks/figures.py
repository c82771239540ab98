"""Write README's figures between their marks, from what commands have written: `make figures`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from benchmarks.results import ROOT, Result, put_between

README = ROOT / "README.md"
SPEED = ROOT / "docs" / "speed.json"
SCREENS = ROOT / "docs" / "screens.md"

# The screen, of docs/screens.md, that README shows the end of.
UPGRADE = "All of it at once"

# What README tells of.
_ROWS = 1_000_000


def main() -> None:
    """Write all that is known."""
    README.write_text(with_figures(README.read_text("utf-8")), "utf-8")


def with_figures(page: str) -> str:
    """Return `page` with every figure as it was measured last."""
    for name, figure in FIGURES.items():
        page = put_between(page, f"<!-- {name} -->", figure())
    return page


def speed() -> str:
    """Return the ratios of an upgrade to the bare aggregate, by docs/speed.json, of every kind of history."""
    results = [Result(**one) for one in json.loads(SPEED.read_text("utf-8"))["results"]]
    return span([r.ratio for r in results if (r.case, r.rows) == ("upgrade 103", _ROWS) and r.ratio])


def span(ratios: Sequence[float]) -> str:
    """Return the least and the most of them."""
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def upgrade() -> str:
    """Return what an upgrade says at its end, as a block of its own: from docs/screens.md."""
    screen = re.search(rf"^## {UPGRADE}\n\n```\n(.*?)^```$", SCREENS.read_text("utf-8"), re.M | re.S)
    assert screen, UPGRADE
    summary = re.search(r"upgraded from .*?\n  next: .*?\n", screen[1], re.S)
    assert summary, screen[1]
    return f"\n```\n{summary[0]}```\n"


FIGURES: dict[str, Callable[[], str]] = {"speed": speed, "upgrade": upgrade}


if __name__ == "__main__":
    main()
