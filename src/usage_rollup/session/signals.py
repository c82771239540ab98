"""Die of SIGTERM and SIGINT the way a database client should."""

from __future__ import annotations

import signal
import sys
from types import FrameType


def exit_on_termination() -> None:
    """Turn SIGTERM and SIGINT into SystemExit with status 143 or 130.

    psycopg answers SystemExit by cancelling the running statement in the server; the connection is
    then closed on the way out, which rolls back and frees every lock. Installed even where SIGINT is
    ignored, as it is for a shell's background process.
    """
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _exit)


def _exit(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)
