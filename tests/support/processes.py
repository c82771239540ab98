"""Wait for a process that Database.spawn() started: until it says something, or to its end."""

from __future__ import annotations

import subprocess

from tests.support.deadline import DEADLINE_S


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Return what a process prints up to and including the line that contains `text`."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"ended without {text!r}:\n{seen}")


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    """Wait until a process ends with `status`, and without a traceback; return what it printed."""
    printed, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == status, printed
    assert "Traceback" not in printed
    assert "Exception ignored" not in printed
    return printed
