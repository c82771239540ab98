"""Build what is published, in dist/, and try it where a user would have it: `make build`.

The source distribution, unpacked elsewhere, builds the same wheel again and passes its own offline tests;
the wheel is installed in an empty environment, and upgrades a database with a history from there. Exits 1
with one sentence when a tag does not fit.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

from tests.support.database import ROOT

DIST = ROOT / "dist"
PYTHON = sys.executable


def main() -> None:
    """Build and try it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tag", help="of this release: v and the version")
    if unfit := _unfit(parser.parse_args().tag):
        sys.exit(unfit)
    shutil.rmtree(DIST, ignore_errors=True)
    try:
        _run(PYTHON, "-m", "build", "--outdir", str(DIST))
        (wheel,) = DIST.glob("*.whl")
        (sdist,) = DIST.glob("*.tar.gz")
        _run(PYTHON, "-m", "twine", "check", "--strict", str(wheel), str(sdist))
        with tempfile.TemporaryDirectory() as scratch:
            _try_sdist(sdist, wheel, Path(scratch))
            _try_wheel(wheel, Path(scratch))
    except subprocess.CalledProcessError as failed:
        sys.exit(f"failed: {' '.join(failed.cmd)}")


def _unfit(tag: str | None) -> str | None:
    """Return why this checkout cannot be released under a tag, None if it can or there is none."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    if tag and tag != f"v{version}":
        return f"the tag {tag} is not v{version}, the version in pyproject.toml"
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    if tag and not re.search(rf"^## \[?{re.escape(version)}\b", changes, re.MULTILINE):
        return f"CHANGELOG.md has no section {version}"
    return None


def _try_sdist(sdist: Path, wheel: Path, scratch: Path) -> None:
    with tarfile.open(sdist) as archive:
        # Not in 3.11.0, and asked for from 3.12 on.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(scratch)
    unpacked = scratch / sdist.name.removesuffix(".tar.gz")
    _run(PYTHON, "-m", "build", "--wheel", "--outdir", str(scratch / "again"), cwd=unpacked)
    if _contents(scratch / "again" / wheel.name) != _contents(wheel):
        sys.exit("the source distribution builds another wheel than the checkout")
    # Before this environment's own, which is the checkout's.
    own = {"PYTHONPATH": str(unpacked / "src")}
    _run(PYTHON, "-m", "pytest", "-q", "-m", "offline", cwd=unpacked, **own)


def _try_wheel(wheel: Path, scratch: Path) -> None:
    python = str(scratch / "venv" / "bin" / "python")
    _run(PYTHON, "-m", "venv", "--without-pip", str(scratch / "venv"))
    pip = (PYTHON, "-m", "pip", "--quiet", "--disable-pip-version-check")
    _run(*pip, "--python", python, "install", str(wheel), cwd=scratch)
    program = str(scratch / "venv" / "bin" / "usage-rollup")
    _run(program, "--version", cwd=scratch)
    _run(program, "--help", cwd=scratch)
    _run(PYTHON, "-m", "benchmarks.demo", "--rows", "20000", "--program", program)


def _contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _run(*command: str, cwd: Path = ROOT, **env: str) -> None:
    subprocess.run(command, cwd=cwd, env={**os.environ, **env}, check=True)


if __name__ == "__main__":
    main()
