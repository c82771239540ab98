"""Run one real command in a process group of its own, and say what its end means."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.database import ROOT
from tests.support.soak.findings import Finding
from tests.support.soak.plan import POOLER, Fault
from usage_rollup.errors import TRY_AGAIN

# I14: whatever strikes, a command of this size has ended long before.
_DEADLINE_S = 240.0

# How long a command waits for the server; every outage here is shorter.
_STARTUP_TIMEOUT = "60s"

# Faults after which a command may have lost its session once too often, or met a server that is away. To a
# clock that is set forward every timeout looks over.
_OUTAGES = {"restart", "terminate", "network", "clock", POOLER}

# How a command ends that was refused or failed.
_FAILED = {"usage-rollup": 1, "./entrypoint.sh": 255, "alembic": 255}
_SIGNALLED = {"KILL": {-9, 137}, "TERM": {143, -15}, "INT": {130, -2}}

# No room on the disk.
_FULL = "SQLSTATE 53100"


@dataclass
class Command:
    """A running command; a rival is the same command once more, beside it."""

    arguments: tuple[str, ...]
    environment: dict[str, str]
    output: Path
    struck: list[Fault] = field(default_factory=list)
    rivals: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                self.arguments,
                cwd=ROOT,
                env=self.environment | {"DATABASE_STARTUP_TIMEOUT": _STARTUP_TIMEOUT},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.started = time.monotonic()

    def add_rival(self) -> None:
        """Start the same command beside this one."""
        output = self.output.with_suffix(f".rival{len(self.rivals) + 1}")
        self.rivals.append(Command(self.arguments, self.environment, output, self.struck))

    @property
    def said(self) -> str:
        return self.output.read_text("utf-8", "replace")

    def end(self) -> bool:
        """Wait for the end; tell whether the work is done. Raises Finding where no fault explains the end.

        Rivals are waited for first; they have the same faults to excuse them.
        """
        for rival in self.rivals:
            rival.end()
        try:
            status = self.process.wait(max(1.0, self.started + _DEADLINE_S - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise Finding(f"{self} has not ended within {_DEADLINE_S:.0f} s\n{self.said}") from None
        said = self.said
        if "Traceback" in said or "Exception ignored" in said:
            raise Finding(f"{self} ended with {status} and a traceback\n{said}")
        if status != 0 and status not in self._explained(said):
            raise Finding(f"{self} ended with {status}, which no fault explains\n{said}")
        return status == 0

    def _explained(self, said: str) -> set[int]:
        program = self.arguments[0]
        # Beside it others tick, too.
        statuses = {TRY_AGAIN} if self.arguments == ("usage-rollup", "tick") else set()
        for fault in self.struck:
            if fault.kind in _OUTAGES:
                statuses.add(TRY_AGAIN)
            elif fault.kind == "signal":
                statuses |= _SIGNALLED[fault.target]
            elif fault.kind == "disk full" and _FULL in said:
                statuses.add(_FAILED[program])
        return statuses

    def __str__(self) -> str:
        return f"`{' '.join(self.arguments)}`"
