"""`make soak`: play faults for some minutes, a line a cycle, and stop at the first finding."""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter
from itertools import islice

from tests.support.processes import heed_sigint
from tests.support.soak.cycle import Played, play
from tests.support.soak.findings import Finding
from tests.support.soak.plan import KINDS, Cycle, draw
from tests.support.soak.stage import Stage, set_up

_OUTPUT_LINES = 60


def main() -> int:
    """Play until the minutes or cycles are over; return 1 when something was found."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no cycle after that")
    parser.add_argument("--cycles", type=int, default=None, help="play exactly so many")
    parser.add_argument("--seed", default="", help="draw the cycles of this seed; else of a random one")
    parser.add_argument("--rows", type=int, default=20_000, help="usage rows of the history")
    parser.add_argument("--plan", action="store_true", help="show what would be played, and play nothing")
    options = parser.parse_args()
    heed_sigint()
    seed = options.seed or f"{random.SystemRandom().randrange(1_000_000):06}"
    if options.plan:
        for cycle in islice(draw(seed, frozenset(KINDS)), options.cycles or 10):
            say(_plan(cycle))
        return 0
    with set_up(seed, options.rows) as stage:
        return _soak(stage, seed, options.minutes, options.cycles)


def _soak(stage: Stage, seed: str, minutes: float, cycles: int | None) -> int:
    say(f"seed {seed}; PostgreSQL {stage.server.version // 10_000}; server in {stage.server.directory}")
    if missing := KINDS.keys() - stage.possible():
        say(f"cannot be had here: {', '.join(sorted(missing))}")
    started = time.monotonic()
    total: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    attempts = commands = played_cycles = 0
    for cycle in islice(draw(seed, stage.possible()), cycles):
        if cycles is None and time.monotonic() - started > 60 * minutes:
            break
        played = Played(cycle)
        try:
            play(stage, cycle, played)
        except KeyboardInterrupt:
            say(f"stopped in cycle {cycle.number}")
            break
        except Finding as finding:
            _report(stage, seed, played, finding)
            return 1
        except Exception:
            _report(stage, seed, played, traceback.format_exc())
            return 1
        total += played.struck
        statuses += played.statuses
        attempts += played.attempts
        commands += len(cycle.steps)
        played_cycles += 1
        say(_line(played))
    say("")
    say(
        f"nothing found: {played_cycles} cycles in {(time.monotonic() - started) / 60:.1f} min,"
        f" {commands} commands in {attempts} attempts, {total.total()} faults ({_kinds(total)})"
    )
    say(f"run again after: {_kinds(statuses)}")
    say(f"writers: {_kinds(stage.writers.count)}; {_kinds(stage.ticks.count)}")
    say(f"again: make soak SEED={seed}")
    return 0


def _line(played: Played) -> str:
    cycle = played.cycle
    steps = " > ".join([cycle.start, *map(str, cycle.steps)])
    reruns = played.attempts - len(cycle.steps)
    return (
        f"cycle {cycle.number:3}  {played.seconds:5.1f} s  {played.rows:7,} rows"
        f"  {played.struck.total():2} faults  {reruns:2} reruns  {steps}"
        f"{'  pooled' if cycle.pooled else ''}  [{_kinds(played.struck)}]"
    )


def _kinds(count: Counter[str]) -> str:
    return ", ".join(f"{number:,} {kind}" for kind, number in sorted(count.items())) or "none"


def _plan(cycle: Cycle) -> str:
    lines = [f"cycle {cycle.number}, from {cycle.start}{', through a pooler' if cycle.pooled else ''}"]
    for step in cycle.steps:
        lines.append(f"  {' '.join(step.command)}")
        lines += [f"      {fault}" for fault in step.faults]
    return "\n".join(lines)


def _report(stage: Stage, seed: str, played: Played, finding: object) -> None:
    """Print what was found, and how to look at it; the server is stopped, its directory kept."""
    number = played.cycle.number
    say(f"\nFOUND in cycle {number} of seed {seed}: {finding}\n")
    say(_plan(played.cycle))
    say("\nwhat was done, by the second:")
    say("\n".join(played.events))
    for output in sorted(stage.outputs.glob(f"{number:03}-*"))[-3:]:
        lines = output.read_text("utf-8", "replace").splitlines()[-_OUTPUT_LINES:]
        say(f"\n{output.name}:\n" + "\n".join(lines))
    stage.writers.stop()
    stage.ticks.stop()
    stage.watch.stop()
    log = (stage.server.directory / "log").read_text(errors="replace").splitlines()[-_OUTPUT_LINES:]
    say("\nthe end of the server's log:\n" + "\n".join(log))
    say(f"\nreplay: make soak SEED={seed} CYCLES={number}")
    say(f"the database `{stage.database.name}` is kept; start its server again: {stage.keep()}")
    if stage.disk is not None:
        say(f"its tablespace is on a disk of its own; when you are done: umount {stage.disk.directory}")


def say(text: str) -> None:
    """Print a line at once, to a terminal or a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
