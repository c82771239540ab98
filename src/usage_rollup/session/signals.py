"""Die of SIGTERM and SIGINT the way a database client should.

Imports nothing that takes time: a command's first act is exit_at_once().
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

# Long enough for a notice to be written to the log.
_AGAIN_S = 0.01

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def exit_at_once() -> None:
    """Let SIGTERM and SIGINT end the process with status 143 or 130 while there is nothing to clean up.

    For the time of the imports, in which an exception that comes from nowhere may be swallowed, and in which
    a container's first process would ignore both.
    """
    for signum in _SIGNALS:
        signal.signal(signum, lambda number, frame: os._exit(128 + number))


def exit_on_termination() -> None:
    """Turn SIGTERM and SIGINT into SystemExit with status 143 or 130.

    psycopg answers SystemExit by cancelling the running statement in the server; the connection is
    then closed on the way out, which rolls back and frees every lock. Installed even where SIGINT is
    ignored, as it is for a shell's background process.
    """
    for signum in _SIGNALS:
        signal.signal(signum, _exit)


def _exit(signum: int, frame: FrameType | None) -> None:
    if _is_in_notice(frame):
        # C code calls that, and would end the process on the spot: nothing would be cancelled, and the
        # statement would run on in the server with all its locks.
        threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signum)).start()
        return
    sys.exit(128 + signum)


def _is_in_notice(frame: FrameType | None) -> bool:
    # Imported by whoever has a session.
    psycopg = sys.modules["psycopg"]
    while frame is not None:
        if frame.f_code is psycopg.Connection._notice_handler.__code__:
            return True
        frame = frame.f_back
    return False
