"""`usage-rollup status`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from ..contract import LAG_THRESHOLD
from ..hourly import slices
from ..hourly.backfill import future_watermark
from ..reports import covered_days
from ..reports import status as reporting
from ..session.options import read as read_options
from ..session.outages import in_session
from . import strip
from .output import Fact, JsonOption, console, duration, show_facts, write_json

_CATCH_UP = "catch up: usage-rollup backfill"
_NO_BACKFILL = "no backfill can help before what holds it back has ended"

_LABEL_WIDTH = 12


def status(
    everything: Annotated[
        bool, typer.Option("--all", help=f"Show every month, not only the newest {strip.MONTHS}.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show where the database stands and how the hourly rollup does; reads only."""
    found = in_session(reporting.status, read_options())
    if as_json:
        write_json(found)
        return
    out = console()
    show_facts(out, [*_facts(found), *_coverage(found.coverage)], width=_LABEL_WIDTH)
    if found.coverage:
        strip.show(out, found.coverage, everything)


def _facts(s: reporting.Status) -> Iterator[Fact]:
    """Yield what there is to tell before the days that are covered."""
    yield Fact("revision", s.revision or "-")
    yield Fact("ledger", "-" if s.ledger_rows is None else f"{s.ledger_rows} rows, newest {s.newest_stem}")
    yield Fact("pipeline", s.pipeline or "-")
    if s.pipeline and not s.ticked_by:
        yield Fact("ticks", "nothing ticks here: `usage-rollup schedule` says how to change that", "bold red")
    else:
        yield Fact("ticks", s.ticked_by or "-")
    yield Fact("watermark", s.watermark or "-", "bold red" if s.watermark_in_future else "")
    yield Fact("data lag", *_lag(s))
    if s.held_back:
        yield Fact("held back", f"by {s.held_back.who}; {s.held_back.hint}", "bold yellow")
    queued = [f"{q.table} {q.rows:,}" + (f", oldest {q.oldest}" if q.oldest else "") for q in s.queues]
    yield Fact("queued", "; ".join(queued) or "-")
    yield Fact("last run", *_last_run(s.last_run))
    yield Fact("lock 4246", f"held by {s.lock_holders}" if s.lock_holders else "free")
    if s.backfill:
        yield Fact(
            "backfill",
            f"unfinished: {s.backfill.walked} of {s.backfill.slices} slices walked,"
            f" {s.backfill.rows_left:,} usage rows left; resume: usage-rollup backfill",
            "bold yellow",
        )
    else:
        yield Fact("backfill", "-" if s.watermark is None else "none unfinished")
    yield Fact("set aside", *_number(s.set_aside, "buckets", "usage-rollup verify names them"))
    yield Fact(
        "undated", *_number(s.undated, "usage rows outside years 1-9998", "mend their created_at by hand")
    )
    for rights in s.trigger_rights:
        style = "bold red" if rights.missing else "bold yellow"
        yield Fact("triggers", f"{rights.meaning}; {rights.mend}", style)
    for unseen in s.unseen:
        yield Fact("not queued", str(unseen), "bold yellow")
    if s.not_asked:
        what = "data lag, undated usage, coverage"
        yield Fact("not asked", f"{what}: {s.not_asked.message}; {s.not_asked.hint}", "bold yellow")
    if s.left_out:
        by = f" by {s.left_out.acknowledged_by}" if s.left_out.acknowledged_by else ""
        yield Fact(
            "left out",
            f"hours before {s.left_out.before_hour}, on purpose{by}, {s.left_out.acknowledged_at}",
            "bold yellow",
        )


def _lag(s: reporting.Status) -> tuple[str, str]:
    if s.lag_seconds is None or s.watermark is None:
        return "-", ""
    if s.watermark_in_future:
        return f"not known: {future_watermark(s.watermark).message}", "bold red"
    if s.lag_seconds == 0:
        return "none", "green"
    advice = _NO_BACKFILL if s.held_back and s.held_back.stuck else _CATCH_UP
    if s.watermark.startswith(slices.NEVER_MOVED):
        return f"all usage there is, the watermark has never moved; {advice}", "bold red"
    lag = f"{duration(s.lag_seconds)} behind the newest usage"
    behind = s.lag_seconds > LAG_THRESHOLD.total_seconds()
    return (f"{lag}; {advice}", "bold red") if behind else (lag, "green")


def _last_run(run: reporting.Run | None) -> tuple[str, str]:
    if run is None:
        return "-", ""
    if run.error:
        return f"said: {run.error} (started {run.started_at})", "bold red"
    if run.started_at is None:
        return "never", ""
    if run.finished_at is None:
        return f"started {run.started_at}, not finished", ""
    return f"started {run.started_at}, finished {run.finished_at}, {run.rows:,} rows changed", ""


def _number(number: int | None, of: str, advice: str) -> tuple[str, str]:
    if not number:
        return "-" if number is None else f"0 {of}", ""
    return f"{number:,} {of}: {advice}", "bold yellow"


def _coverage(days: Sequence[covered_days.Day] | None) -> Iterator[Fact]:
    """Yield how many days are covered, and the holes."""
    if not days:
        yield Fact("coverage", "-" if days is None else "there is no usage")
        return
    with_usage = [day for day in days if day.state != covered_days.LEFT_OUT]
    counts = Counter(day.state for day in days)
    pending = f", {counts[covered_days.PENDING]:,} pending" if counts[covered_days.PENDING] else ""
    left_out = f", {counts[covered_days.LEFT_OUT]:,} left out" if counts[covered_days.LEFT_OUT] else ""
    holes = covered_days.holes(days)
    yield Fact(
        "coverage",
        f"{counts[covered_days.COMPLETE]:,} of {len(with_usage):,} days with usage complete"
        f"{pending}{left_out}; holes: {len(holes) or 'none'}",
        "bold red" if holes else "green",
    )
    for hole in holes:
        last = f" to {hole.last}" if hole.last != hole.first else ""
        yield Fact("", f"{hole.first}{last}: {hole.rolled_up_rows:,} of {hole.usage_rows:,} usage rows")
    if holes:
        yield Fact("", "mend them: usage-rollup backfill --repair")
