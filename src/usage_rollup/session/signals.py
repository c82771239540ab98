"""Die of SIGTERM and SIGINT the way a database client should."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

import psycopg

# Long enough for a notice to be written to the log.
_AGAIN_S = 0.01


def exit_on_termination() -> None:
    """Turn SIGTERM and SIGINT into SystemExit with status 143 or 130.

    psycopg answers SystemExit by cancelling the running statement in the server; the connection is
    then closed on the way out, which rolls back and frees every lock. Installed even where SIGINT is
    ignored, as it is for a shell's background process.
    """
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _exit)


def _exit(signum: int, frame: FrameType | None) -> None:
    if _is_in_notice(frame):
        # C code calls that, and would end the process on the spot: nothing would be cancelled, and the
        # statement would run on in the server with all its locks.
        threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signum)).start()
        return
    sys.exit(128 + signum)


def _is_in_notice(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is psycopg.Connection._notice_handler.__code__:
            return True
        frame = frame.f_back
    return False
