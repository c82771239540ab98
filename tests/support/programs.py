"""Run a program's entry point in a process forked from one that has imported it already.

Importing Alembic, SQLAlchemy and psycopg anew for every command was two thirds of the suite's time. What
is run is the function that the installed script calls, in a process of its own, with arguments,
environment, directory and output like the script's. Signals, start-up and the scripts themselves are for
tests that start the real thing: Database.run() and Database.spawn().
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ENTRY_POINTS = {"alembic": "alembic.config:main", "usage-rollup": "usage_rollup.commands.cli:main"}

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "pytest",
        "alembic.config",
        "sqlalchemy.dialects.postgresql.psycopg",
        "usage_rollup.commands.cli",
        __name__,
    ]
)


def run(
    program: str,
    arguments: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    timeout_s: float,
    merge: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; with `merge` its standard error is in `stdout`, as it came."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "out")
        err = out if merge else Path(directory, "err")
        process = _context.Process(
            target=_main, args=(program, list(arguments), str(cwd), dict(env), str(out), str(err))
        )
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([program, *arguments], timeout_s, out.read_bytes())
        return subprocess.CompletedProcess(
            [program, *arguments],
            process.exitcode,
            out.read_text("utf-8"),
            "" if merge else err.read_text("utf-8"),
        )


def _main(program: str, arguments: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    os.chdir(cwd)
    sys.argv = [str(Path(sys.executable).with_name(program)), *arguments]
    module, function = ENTRY_POINTS[program].split(":")
    sys.exit(getattr(importlib.import_module(module), function)())
