"""Try mutants on copies of the project, some at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.support.database import ROOT
from tests.support.files import project_files
from tests.support.mutants.mutant import Mutant

# A mutant may wait for ever; the tests it is given take a minute or two.
_TIMEOUT_S = 900

# What changes without a change of behaviour, or only says that there was one.
_NOT_BEHAVIOUR = ("tests/test_frozen.py", "tests/test_layout.py", "tests/test_mutants.py")

_PASSED, _FAILED = 0, 1  # pytest's exit codes


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: killed by the test that failed first, or None where all passed."""

    mutant: Mutant
    killed_by: str | None


def judge(mutants: Sequence[Mutant], at_once: int) -> Iterator[Verdict]:
    """Yield a verdict each, as they come. Raises RuntimeError where the tests fail without a mistake, too."""
    trees: SimpleQueue[Path] = SimpleQueue()
    with _copies(at_once) as copies:
        for copy in copies:
            trees.put(copy)

        def borrowed(mutant: Mutant | None, tests: str) -> str | None:
            tree = trees.get()
            try:
                return _first_failure(tree, mutant, tests)
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(at_once) as pool:
            sound = {tests: pool.submit(borrowed, None, tests) for tests in {m.tests for m in mutants}}
            for tests, future in sound.items():
                if failed := future.result():
                    raise RuntimeError(f"{failed} fails without a mistake: {tests}")
            tried = {pool.submit(borrowed, mutant, mutant.tests): mutant for mutant in mutants}
            for future in as_completed(tried):
                yield Verdict(tried[future], future.result())


@contextmanager
def _copies(number: int) -> Iterator[list[Path]]:
    with tempfile.TemporaryDirectory(prefix="usage-rollup-mutants-") as directory:
        copies = [Path(directory, str(each)) for each in range(number)]
        for copy in copies:
            for name in project_files():
                target = copy / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)
        yield copies


def _first_failure(tree: Path, mutant: Mutant | None, tests: str) -> str | None:
    """Run tests on a tree with a mistake in it, or without one; return the first that fails."""
    before = mutant.apply(tree) if mutant else ""
    try:
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider", *tests.split()]
            + [f"--ignore={path}" for path in _NOT_BEHAVIOUR],
            cwd=tree,
            # Before what pip installed as editable.
            env={**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "no end"
    finally:
        if mutant:
            (tree / mutant.path).write_text(before, "utf-8")
    if result.returncode == _PASSED:
        return None
    failed = [line for line in result.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    # Whoever looks for the text that a mistake has changed has noticed nothing.
    if result.returncode != _FAILED or not failed or " - LookupError: " in failed[0]:
        # A mistake that keeps Python from importing the project is one that every test would notice.
        if mutant and "ImportError while loading conftest" in result.stderr + result.stdout:
            return "import"
        raise RuntimeError(f"pytest {tests} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
    return failed[0].split(" ", 1)[1].split(" - ")[0]
