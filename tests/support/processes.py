"""Processes that a test starts: which signals they heed, what they say, how they end."""

from __future__ import annotations

import signal
import subprocess

from tests.support.deadline import DEADLINE_S


def heed_sigint() -> None:
    """Have all that is started from here on heed SIGINT, as at a terminal.

    In a shell's background, or under a CI's runner, it is ignored, and whoever is started inherits that. A
    handler is not inherited.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
