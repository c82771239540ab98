"""Which files are the project's."""

from __future__ import annotations

import subprocess

from tests.support.database import ROOT

# What tools leave in an unpacked source distribution, which has no git to say so.
_LEFT = {
    ".hypothesis",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".venv",
    "__pycache__",
    "build",
    "dist",
}


def project_files(*under: str) -> list[str]:
    """Return the names of the files that git has or would add, of all or of what lies under some places."""
    if not (ROOT / ".git").exists():
        return [name for name in _unpacked() if not under or name.startswith(under)]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *under],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    # Some are deleted in the working tree and not committed yet.
    return [name for name in listed if name and (ROOT / name).is_file()]


def _unpacked() -> list[str]:
    names = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    return [str(name) for name in names if name.name != "PKG-INFO" and not _LEFT & set(name.parts)]
