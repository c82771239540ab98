"""Draw what a cycle does: commands, and the faults that strike while each of them runs.

The same seed draws the same cycles. When a fault strikes is counted from the moment a command opens its
session, so a plan means the same on a slow machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

V034, PIPELINE, HEAD = "097", "102", "head"


@dataclass(frozen=True)
class Fault:
    """What strikes, whom or what it strikes, when, and for how long; `after_s` counts from the session."""

    kind: str
    target: str = ""
    after_s: float = 0.0
    lasts_s: float = 0.0

    def __str__(self) -> str:
        lasts = f" for {self.lasts_s:.1f} s" if self.lasts_s else ""
        return f"{self.kind} {self.target}".rstrip() + f" after {self.after_s:.2f} s{lasts}"


@dataclass(frozen=True)
class Step:
    """One command, and where the database stands once it has succeeded; None where it stays."""

    command: tuple[str, ...]
    to: str | None = None
    faults: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        return self.to or self.command[1]


@dataclass(frozen=True)
class Cycle:
    """What one cycle does, from where the last one ended."""

    number: int
    start: str
    steps: tuple[Step, ...]
    pooled: bool = False  # commands reach the server through a pooler

    @property
    def end(self) -> str:
        return next((step.to for step in reversed(self.steps) if step.to), self.start)


POOLER = "pooler restart"

# Weight, targets, and the longest it lasts in seconds.
KINDS: dict[str, tuple[int, tuple[str, ...], float]] = {
    "restart": (3, ("fast", "immediate"), 1.0),
    "terminate": (5, ("runner", "runner", "writer", "everybody"), 0.0),
    "signal": (5, ("KILL", "KILL", "TERM", "INT"), 0.0),
    "network": (6, ("cut", "hold", "swallow", "refuse"), 4.0),
    "lock": (
        6,
        (
            *("schema_migrations", "alembic_version", "task_usage", "agent_task_queue", "agent"),
            *("task_usage_hourly", "task_usage_hourly_invalidation", "task_usage_hourly_dirty"),
            *("task_usage_hourly_rollup_state", "task_usage_hourly_backfill", "task_usage_daily"),
            *("ledger row", "version row", "state row"),
        ),
        2.0,
    ),
    "rival": (3, ("4246", "7244554146635925501", "command"), 3.0),
    "disk full": (2, ("",), 1.5),
    POOLER: (3, ("",), 0.0),
    "clock": (2, ("-20", "20"), 3.0),
}

# How many strike one command.
_HOW_MANY = (0, 1, 1, 1, 2, 2, 3)


def draw(seed: str, possible: frozenset[str]) -> Iterator[Cycle]:
    """Yield cycle after cycle, the first from v0.3.4; of faults only those that can be had here.

    What cannot be had is drawn and left out, so that the rest of a seed's plan is the same everywhere.
    """
    place, number = V034, 0
    while True:
        number += 1
        rng = Random(f"{seed}/{number}")
        pooled = rng.random() < 0.4 and POOLER in possible
        known = possible if pooled else possible - {POOLER}
        steps = tuple(Step(step.command, step.to, _faults(rng, known)) for step in _steps(rng, place))
        cycle = Cycle(number, place, steps, pooled)
        yield cycle
        place = cycle.end


def _steps(rng: Random, place: str) -> Iterator[Step]:
    """Go up, work at the top, and go down; half of the time up again."""
    if place != HEAD:
        yield from _up(rng, place)
    for _ in range(rng.randint(1, 2)):
        yield _at_work(rng)
    down = rng.choice((V034, V034, PIPELINE))
    yield Step(("alembic", "downgrade", down), down)
    if rng.random() < 0.5:
        yield from _up(rng, down)
        yield Step(("usage-rollup", "verify"))


def _up(rng: Random, place: str) -> Iterator[Step]:
    """Upgrade at once, or by way of 102 and a backfill beside a running server."""
    if rng.random() < 0.6:
        if place == V034:
            yield _upgrade(rng, PIPELINE)
        yield _backfill(rng)
        yield Step(("usage-rollup", "verify"))
    yield _upgrade(rng, HEAD)


def _upgrade(rng: Random, to: str) -> Step:
    options = rng.choice(((), ("-x", "jobs=3"), ("-x", "sleep-between-slices=200ms")))
    if rng.random() < 0.5:
        return Step(("usage-rollup", "upgrade", *options, to), to)
    if options or rng.random() < 0.5:
        return Step(("alembic", *options, "upgrade", to), to)
    return Step(("./entrypoint.sh", "migrate"), to) if to == HEAD else Step(("alembic", "upgrade", to), to)


def _backfill(rng: Random, *other: str) -> Step:
    """Backfill one way or another; where the history is rolled up, `other` is one more."""
    options = rng.choice(((), (), ("--jobs", "3"), ("--sleep-between-slices", "200ms"), other))
    return Step(("usage-rollup", "backfill", *options))


def _at_work(rng: Random) -> Step:
    command = rng.choice(("verify", "backfill", "check", "status", "preflight", "tick"))
    return _backfill(rng, "--repair") if command == "backfill" else Step(("usage-rollup", command))


def _faults(rng: Random, possible: frozenset[str]) -> tuple[Fault, ...]:
    drawn = [_fault(rng) for _ in range(rng.choice(_HOW_MANY))]
    return tuple(
        sorted((fault for fault in drawn if fault.kind in possible), key=lambda fault: fault.after_s)
    )


def _fault(rng: Random) -> Fault:
    (kind,) = rng.choices(list(KINDS), [weight for weight, _, _ in KINDS.values()])
    _, targets, longest_s = KINDS[kind]
    # Most of what a command does is done in its first second.
    after_s = round(min(rng.expovariate(2.0), 3.0), 3)
    lasts_s = round(rng.uniform(0.2, 1.0) * longest_s, 3)
    return Fault(kind, rng.choice(targets), after_s, lasts_s)
