"""What of a status needs somebody, in sentences: for `status --exit-code` and `--max-lag`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..contract import LAG_THRESHOLD
from ..hourly import slices
from ..hourly.backfill import future_watermark
from ..hourly.schedule import MEND
from ..hourly.ticker import Ticker
from ..reports import backfilling
from ..reports.backfilling import Backfilling
from ..reports.status import Status
from ..times import for_people
from .output import duration

CATCH_UP = "catch up: usage-rollup backfill"
TICK = "a tick catches up to five minutes ago: usage-rollup tick"
NO_BACKFILL = "no backfill can help before what holds it back has ended"


@dataclass(frozen=True)
class MaxLag:
    """The lag that is still well: in seconds, and as it was asked for."""

    seconds: float
    asked: str


AN_HOUR = MaxLag(LAG_THRESHOLD.total_seconds(), duration(LAG_THRESHOLD.total_seconds()))


def problems(s: Status, most: MaxLag) -> Iterator[str]:
    """Yield what needs somebody, the gravest first, each with what to do; a lag of `most` does not.

    What cannot go on comes before what is lost unseen; that before data which is late, and all that before
    what is still to be done.
    """
    lags = [*lag_problems(s, most)]
    if s.watermark is None:
        yield lags.pop()
    elif s.place.refused:
        yield f"no upgrade can go on from here: {s.place.shape}; {s.place.next_step}"
    for rights in s.trigger_rights:
        if rights.missing:
            yield f"{rights.meaning}; {rights.mend}"
    yield from map(str, s.unseen)
    yield from lags
    if s.last_run and s.last_run.error:
        yield f"the last run said: {s.last_run.error}"
    if s.backfill and s.backfill.state == backfilling.INTERRUPTED:
        yield f"backfill {backfill(s.backfill)}"
    if s.place.pending and s.watermark is not None:
        yield f"the upgrade is not finished: {s.place.shape}; {next_step(s)}"
    if s.ticks and s.ticks.needed and not ticks_are_well(s.ticks):
        yield f"ticks: {ticks(s.ticks)}"


def lag_problems(s: Status, most: MaxLag) -> Iterator[str]:
    """Yield why the data lags by more than `most`, or why that cannot be told."""
    if s.watermark is None:
        yield f"there is no hourly rollup here: {s.place.shape}; {s.place.next_step}"
    elif s.watermark_in_future:
        yield f"data lag not known: {future_watermark(for_people(s.watermark))}".replace("\nHINT: ", "; ")
    elif s.not_asked:
        yield f"data lag not known: {s.not_asked.message}; {s.not_asked.hint}"
    elif s.lag_seconds is not None and s.lag_seconds > most.seconds:
        lag_s = math.ceil(s.lag_seconds)
        # Where two units show no difference, all do.
        units = 4 if duration(lag_s) == duration(most.seconds) else 2
        said = behind(s.watermark, lag_s, units)
        yield f"data lag: {said}, more than {most.asked}; {_advice(s)}"


def lag(s: Status) -> str:
    """Say how far the data is behind, and what brings it up to date."""
    assert s.lag_seconds is not None
    assert s.watermark is not None
    said = behind(s.watermark, s.lag_seconds)
    return f"{said}; {_advice(s)}" if s.lag_seconds and _is_far_behind(s) else said


def behind(watermark: str, lag_s: float, units: int = 2) -> str:
    """Say how far the data is behind: `lag_s` is as hourly/lag.py says."""
    if not lag_s:
        return "none"
    if watermark.startswith(slices.NEVER_MOVED):
        age = duration(lag_s, units)
        return f"all usage there is, the watermark has never moved and the oldest is {age} old"
    return f"{duration(lag_s, units)} behind the newest usage"


def _is_far_behind(s: Status) -> bool:
    """Say whether a backfill would walk, which it does for more than an hour."""
    never_moved = s.watermark is not None and s.watermark.startswith(slices.NEVER_MOVED)
    return never_moved or (s.lag_seconds or 0) > LAG_THRESHOLD.total_seconds()


def _advice(s: Status) -> str:
    if s.backfill and s.backfill.state == backfilling.RUNNING:
        return f"a backfill is {_running(s.backfill)}"
    if s.held_back and s.held_back.stuck:
        return NO_BACKFILL
    # The Go release's functions are replaced before anything is walked with them.
    if s.place.pending and s.revision != "102":
        return f"catch up: {s.place.next_step}"
    return CATCH_UP if _is_far_behind(s) else TICK


def backfill(b: Backfilling) -> str:
    """Say how far a backfill has come, who is at it, and what goes on with it."""
    walked = (
        f"{b.walked_rows:,} of {b.usage_rows:,} usage rows, {b.walked_slices:,} of {b.slices:,} slices walked"
    )
    if b.state == backfilling.INTERRUPTED:
        return f"interrupted at {b.percent} %: {walked}; resume: usage-rollup backfill"
    leader, *others = b.pids
    who = f"pid {leader}" + (f" and {len(others)} more" if others else "")
    return f"{_running(b)}, {who}" + (f": {walked}" if b.slices else "")


def _running(b: Backfilling) -> str:
    return f"running, {b.percent} %" if b.percent is not None else "running, planning or comparing"


def next_step(s: Status) -> str | None:
    """Say what to do for the database to stand at the newest revision; None where it does."""
    if s.place.pending and s.backfill and s.backfill.state == backfilling.RUNNING:
        return f"let the backfill finish ({_running(s.backfill)}), then ask again"
    return s.place.next_step


def ticks(t: Ticker) -> str:
    """Say who ticks, when a run last finished, and what to do where nobody ticks that should."""
    last = (
        f"the last run finished {duration(t.idle_seconds)} ago"
        if t.idle_seconds is not None
        else "no run has finished"
    )
    if t.by:
        who = (
            f"pg_cron job {t.job}" if t.job else "the product's own server (v0.3.17 or later), while it runs"
        )
        return f"{who}; {last}"
    if not t.needed:
        return f"not needed before 103, no server reads the hourly rollup yet; {last}"
    if t.ran_lately:
        return f"{last}, but no schedule is to be seen here; unless cron or the like ticks: {MEND}"
    return f"nothing ticks here, {last}: {MEND}"


def ticks_are_well(t: Ticker) -> bool:
    """Say whether runs come: a tick that cron started cannot be told from one typed by hand."""
    return t.ran_lately
