"""One mistake: where, what it makes of the text, and who should notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """`old` in the file at `path` becomes `new`; `tests` are arguments of pytest that should fail then.

    `equivalent` says why nobody could ever tell: such a one is not tried.
    """

    name: str
    path: str
    old: str
    new: str
    tests: str
    equivalent: str = ""

    def apply(self, tree: Path) -> str:
        """Write the mistake into a copy of the project; return what stood there. `old` must be there once."""
        file = tree / self.path
        text = file.read_text("utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: found {text.count(self.old)} times in {self.path}: {self.old}")
        file.write_text(text.replace(self.old, self.new), "utf-8")
        return text


def within(name: str, path: str, old: str, part: str, new: str, tests: str) -> Mutant:
    """Return a mistake in a part that stands elsewhere, too: `old` is what it stands in."""
    return Mutant(name, path, old, old.replace(part, new), tests)
