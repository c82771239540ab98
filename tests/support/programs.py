"""Run a program's entry point in a process forked from one that has imported it already.

Importing Alembic, SQLAlchemy and psycopg anew for every command was two thirds of the suite's time. What
is run is the function that the installed script calls, in a process of its own, with arguments,
environment, directory, output and signals like the script's. Start-up and the scripts themselves are for
tests that start the real thing: Database.run(), and Database.spawn() of a path.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

ENTRY_POINTS = {"alembic": "alembic.config:main", "usage-rollup": "usage_rollup.commands.cli:main"}

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pytest", "tests.support.preloaded", __name__])


def run(
    program: str,
    arguments: Sequence[str],
    *,
    cwd: Path | str,
    env: Mapping[str, str],
    timeout_s: float,
    merge: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; with `merge` its standard error is in `stdout`, as it came."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "out")
        err = out if merge else Path(directory, "err")
        process = _context.Process(
            target=_main_in_files, args=(program, list(arguments), str(cwd), dict(env), str(out), str(err))
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


class Started(subprocess.Popen[str]):
    """A program that runs, waited for and signalled like any process; its output is merged in `stdout`."""

    def __init__(self, program: str, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        # Nothing of Popen's own: there is no program to execute.
        self.args = [program, *arguments]
        self.returncode: int | None = None
        self.stdin = self.stderr = None
        ours, theirs = _context.Pipe(duplex=False)
        self._process = _context.Process(
            target=_main_at_pipe, args=(program, list(arguments), str(cwd), dict(env), theirs), daemon=True
        )
        self._process.start()
        theirs.close()
        self.stdout = open(os.dup(ours.fileno()), encoding="utf-8")  # noqa: SIM115
        ours.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (status := self.poll()) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def communicate(self, input: None = None, timeout: float | None = None) -> tuple[str, str]:  # type: ignore[override]
        assert self.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.kill()

        timer = threading.Timer(timeout or threading.TIMEOUT_MAX, give_up)
        timer.start()
        printed = self.stdout.read()
        self.wait()
        timer.cancel()
        if late.is_set():
            raise subprocess.TimeoutExpired(self.args, timeout or 0, printed)
        return printed, ""


def _main_at_pipe(
    program: str, arguments: list[str], cwd: str, env: dict[str, str], pipe: Connection
) -> None:
    _main(program, arguments, cwd, env, pipe.fileno(), pipe.fileno())


def _main_in_files(program: str, arguments: list[str], cwd: str, env: dict[str, str], *paths: str) -> None:
    _main(
        program,
        arguments,
        cwd,
        env,
        *(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for path in paths),
    )


def _main(program: str, arguments: list[str], cwd: str, env: dict[str, str], out: int, err: int) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    os.chdir(cwd)
    sys.argv = [str(Path(sys.executable).with_name(program)), *arguments]
    module, function = ENTRY_POINTS[program].split(":")
    sys.exit(getattr(importlib.import_module(module), function)())
