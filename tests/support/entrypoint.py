"""The container's door, the shells here that can run it, and what a command says that it started."""

from __future__ import annotations

import shutil

from tests.support.database import ROOT

ENTRYPOINT = ROOT / "entrypoint.sh"
SHELLS = [
    command
    for command in (["sh"], ["dash"], ["busybox", "sh"], ["bash", "--posix"], ["mksh"])
    if shutil.which(command[0])
]
STARTED = "command started"
