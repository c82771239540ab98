"""Standard output and error that cannot stop a run: what they do not take is lost, and that is noted.

A disk fills up under a log, a reader goes away or stops reading, a descriptor was closed from the start.
Python would raise in the middle of a step, or exit with 120 after a migration that succeeded.
"""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress
from errno import EBADF
from typing import Any, TextIO

# How long a line of the log may wait for somebody to read those before it. A run may hold locks meanwhile.
PATIENCE_S = 10.0


class _Sink(io.RawIOBase):
    """A descriptor; what it does not take goes to `instead`, if anywhere, and is never an error.

    `patience_s` bounds how long a write waits for a reader; None is for ever.
    """

    def __init__(self, number: int, *, missing: bool, patience_s: float | None) -> None:
        self.number = number
        self.missing = missing
        self.patience_s = patience_s
        self.stalled = False
        self.instead: int | None = None
        self.error: OSError | None = None

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.number

    def isatty(self) -> bool:
        """Say whether it is a terminal."""
        return os.isatty(self.number)

    def write(self, data: Any, /) -> int:
        """Write the beginning of `data`; return how much of it is done with."""
        # So much never blocks where poll says that it need not (pipe(7), PIPE_BUF).
        piece = bytes(data)[: select.PIPE_BUF]
        try:
            if self.missing:
                raise OSError(EBADF, os.strerror(EBADF))
            while self._takes_more():
                with suppress(BlockingIOError):
                    return os.write(self.number, piece)
        except OSError as error:
            self.error = self.error or error
            if self.instead is not None:
                with suppress(OSError):
                    return os.write(self.instead, piece)
        return len(piece)

    def _takes_more(self) -> bool:
        """Wait until it can be written to, or the patience is over; once it was, not again."""
        poll = select.poll()
        poll.register(self.number, select.POLLOUT)
        wait_s = 0.0 if self.stalled else self.patience_s
        ready = bool(poll.poll(None if wait_s is None else wait_s * 1000))
        self.stalled = not ready
        return ready


def guard() -> None:
    """Replace sys.stdout and sys.stderr by streams that raise no OSError.

    Descriptors that are closed are opened on /dev/null first, so that no connection gets their numbers, and
    with one the text that was meant for them. Does nothing the second time, nor to a stream that is not the
    process's own.
    """
    for number in (0, 1, 2):
        if not _is_open(number):
            # The lowest number that is free is taken.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _guarded(sys.stdout, 1, None)
    sys.stderr = _guarded(sys.stderr, 2, PATIENCE_S)


def print_instead_on_error() -> None:
    """Print on standard error what standard output does not take."""
    if (sink := _sink(sys.stdout)) is not None:
        sink.instead = 2


def unwritten() -> str | None:
    """Say that something printed on standard output could not be written, and why; None when all was."""
    if sys.stdout is not None:
        sys.stdout.flush()
    sink = _sink(sys.stdout)
    if sink is None or sink.error is None:
        return None
    why = os.strerror(sink.error.errno or EBADF)
    return f"the answer could not be written to standard output: {why}"


def _guarded(stream: TextIO | None, number: int, patience_s: float | None) -> TextIO:
    sink = _Sink(number, missing=stream is None, patience_s=patience_s)
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(sink), "utf-8", line_buffering=True)
    if not isinstance(stream, io.TextIOWrapper) or _sink(stream) is not None or stream.fileno() != number:
        return stream
    with suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(sink),
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _sink(stream: TextIO | None) -> _Sink | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Sink) else None


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
