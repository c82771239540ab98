"""The container's door, the shells here that can run it, and what a command says that it started."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.database import ROOT

ENTRYPOINT = ROOT / "entrypoint.sh"
# By program: `sh` is one of the others here and there.
SHELLS = list(
    {
        Path(program).resolve(): command
        for command in (["dash"], ["busybox", "sh"], ["bash", "--posix"], ["mksh"], ["sh"])
        if (program := shutil.which(command[0]))
    }.values()
)
STARTED = "command started"
