"""Play one cycle: commands and their faults, each command again until its work is done, then the judge."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from tests.support.deadline import DEADLINE_S
from tests.support.soak.commands import Command
from tests.support.soak.faults import strike
from tests.support.soak.findings import Finding
from tests.support.soak.judge import judge
from tests.support.soak.plan import Cycle, Fault, Step
from tests.support.soak.stage import Stage, wait_for_server

# A command that a fault has ended is run again, as a supervisor would.
_ATTEMPTS = 8

_LOOK_S = 0.01

# A command that opens no session: it has ended, or is wrong.
_SESSION_S = DEADLINE_S


@dataclass
class Played:
    """What happened, in order, for whoever has to understand it."""

    cycle: Cycle
    events: list[str] = field(default_factory=list)
    struck: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    attempts: int = 0
    statuses: Counter[str] = field(default_factory=Counter)  # of commands that had to be run again
    rows: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def note(self, what: str) -> None:
        self.events.append(f"{time.monotonic() - self.started:8.2f} s  {what}")


def play(stage: Stage, cycle: Cycle, played: Played) -> None:
    """Play the cycle, writing down in `played` what is done. Raises Finding."""
    stage.lead(pooled=cycle.pooled)
    stage.writers.go_on()
    stage.ticks.go_on()
    for number, step in enumerate(cycle.steps, 1):
        _step(stage, step, played, f"{cycle.number:03}-{number}")
        stage.raise_findings()
    played.note("writers and ticks rest")
    wait_for_server(stage)
    stage.ticks.pause()
    stage.writers.pause()
    stage.raise_findings()
    judge(stage, cycle.end)
    played.rows = stage.database.value("SELECT count(*) FROM task_usage")
    played.seconds = time.monotonic() - played.started


def _step(stage: Stage, step: Step, played: Played, name: str) -> None:
    """Run a command until it has done its work, the step's faults striking one attempt after the other."""
    left = list(step.faults)
    for attempt in range(1, _ATTEMPTS + 1):
        played.attempts += 1
        before = stage.road.travellers
        command = Command(
            step.command,
            stage.database.environment(DATABASE_URL=stage.road_url),
            stage.outputs / f"{name}-{attempt}.log",
        )
        played.note(f"{command} begins, pid {command.process.pid}")
        give_up = command.started + _SESSION_S
        while stage.road.travellers == before and command.process.poll() is None:
            if time.monotonic() > give_up:
                raise Finding(f"{command} has opened no session within {_SESSION_S:.0f} s")
            time.sleep(_LOOK_S)
        _strike_all(stage, left, command, played)
        done = command.end()
        played.note(f"{command} ended with {command.process.returncode}")
        if done and not left:
            return
        if not done:
            played.statuses[f"status {command.process.returncode}"] += 1
    raise Finding(f"{command} has not done its work in {_ATTEMPTS} attempts\n{command.said}")


def _strike_all(stage: Stage, left: list[Fault], command: Command, played: Played) -> None:
    """Let faults strike at their times, until none is left or the command was ended by one of them."""
    seen = time.monotonic()
    while left:
        fault = left[0]
        while time.monotonic() < seen + fault.after_s and command.process.poll() is None:
            time.sleep(_LOOK_S)
        if command.process.poll() not in (None, 0):
            return
        left.pop(0)
        played.note(f"  {fault}")
        # Before it strikes: the command may end of it at once.
        command.struck.append(fault)
        if strike(stage, fault, command):
            played.struck[fault.kind] += 1
        else:
            played.missed += 1
            played.note("  struck nothing")
