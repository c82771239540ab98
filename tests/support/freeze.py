"""The digests of released revisions, in tests/released.sha256.

`python -m tests.support.freeze`, which is `make freeze`, adds those that are missing; it never replaces
one. `sha256sum -c tests/released.sha256` reads the same file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.support.database import ROOT

RELEASED = ROOT / "tests" / "released.sha256"

CHANGED = """{} changed, or went away, after databases were upgraded with it.
Restore it, and make the change in a new revision: alembic revision -m "..."
Only if no release has it yet: delete its line in tests/released.sha256, then `make freeze`."""

UNKNOWN = "{} has no digest in tests/released.sha256: `make freeze`, in the commit that adds the revision."


def digests(root: Path) -> dict[str, str]:
    """Return the sha256 of every SQL file of a revision, parts included, by name below `root`."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (root / "alembic" / "versions").rglob("*.sql")
    }


def read(released: Path) -> dict[str, str]:
    lines = released.read_text("utf-8").splitlines() if released.exists() else []
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def freeze(root: Path, released: Path) -> None:
    """Add the digests that are missing."""
    frozen = {**digests(root), **read(released)}
    released.write_text("".join(f"{frozen[name]}  {name}\n" for name in sorted(frozen)), "utf-8")


def complaints(root: Path, released: Path) -> list[str]:
    """Say what to do about every file that is not as it was released."""
    found, frozen = digests(root), read(released)
    changed = [CHANGED.format(name) for name in sorted(frozen) if found.get(name) != frozen[name]]
    return changed + [UNKNOWN.format(name) for name in sorted(found.keys() - frozen)]


if __name__ == "__main__":
    freeze(ROOT, RELEASED)
