"""Look at a command's screen: run it on a terminal of a chosen width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

import pyte

from tests.support.database import BIN, ROOT, Database
from tests.support.deadline import DEADLINE_S

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_a_terminal(
    database: Database,
    *arguments: str,
    program: str = "usage-rollup",
    columns: int = 80,
    colours: bool = False,
    **extra: str,
) -> str:
    """Run a real command to its end and return its screen, without colours unless asked for."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = database.environment(TERM="xterm-256color", **extra)
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [BIN / program, *arguments],
        cwd=ROOT,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    printed = b""
    # Reading a terminal that nobody writes to any more fails on Linux.
    while chunk := _read(ours):
        printed += chunk
    os.close(ours)
    process.wait(timeout=DEADLINE_S)
    screen = printed.decode().replace("\r\n", "\n")
    return screen if colours else ESCAPES.sub("", screen)


def displayed(printed: str, columns: int, lines: int = 300) -> list[str]:
    """Return the lines that a terminal shows after `printed`, a screen of on_a_terminal with its escapes."""
    screen = pyte.Screen(columns, lines)
    pyte.Stream(screen).feed(printed.replace("\n", "\r\n"))
    return "\n".join(line.rstrip() for line in screen.display).rstrip().split("\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
