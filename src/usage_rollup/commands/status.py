"""`usage-rollup status`."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated

import typer

from ..contract import LAG_THRESHOLD
from ..errors import ConfigurationError
from ..hourly.backfill import future_watermark
from ..reports import covered_days
from ..reports import status as reporting
from ..session.options import read as read_options
from ..session.options import seconds
from ..session.outages import in_session
from ..times import for_people
from . import health, strip
from .output import DIFFERENCES, Fact, JsonOption, console, count, duration, show_facts, size, write_json

log = logging.getLogger(__name__)

_LABEL_WIDTH = 12

# Whoever probes asks again, and ends what does not answer within seconds.
_PROBES_PATIENCE = "5s"


class Format(StrEnum):
    """What a status is printed as, where it is no JSON."""

    TEXT = "text"
    PROMETHEUS = "prometheus"


def status(
    everything: Annotated[
        bool, typer.Option("--all", help=f"Show every month, not only the newest {strip.MONTHS}.")
    ] = False,
    max_lag: Annotated[
        str | None,
        typer.Option(
            help="For a probe: one line, and exit 3 when the data lags by more, 30m say.", metavar="DURATION"
        ),
    ] = None,
    exit_code: Annotated[
        bool,
        typer.Option("--exit-code", help="For a probe: one line, and exit 3 when anything needs somebody."),
    ] = False,
    form: Annotated[
        Format, typer.Option("--format", help="prometheus: for node_exporter's textfile collector.")
    ] = Format.TEXT,
    as_json: JsonOption = False,
) -> None:
    """Show where the database stands and how the hourly rollup does; reads only.

    A probe counts no days, and waits five seconds for a server unless DATABASE_STARTUP_TIMEOUT says
    something else. With --json and --format prometheus its reason for exiting 3 is a line on standard error.
    """
    if as_json and form != Format.TEXT:
        raise ConfigurationError(f"--json and --format {form} contradict each other", hint="leave one out")
    most = health.AN_HOUR if max_lag is None else _most(max_lag)
    probes = exit_code or max_lag is not None
    days = form != Format.PROMETHEUS and not probes
    if probes and not os.environ.get("DATABASE_STARTUP_TIMEOUT", "").strip():
        os.environ["DATABASE_STARTUP_TIMEOUT"] = _PROBES_PATIENCE
    found = in_session(lambda session: reporting.status(session, coverage=days), read_options())
    wrong = list(health.problems(found, most) if exit_code else health.lag_problems(found, most))
    if as_json:
        problems = wrong if probes else list(health.problems(found, most))
        write_json({**dataclasses.asdict(found), "problems": problems})
    elif form == Format.PROMETHEUS:
        # Only here: no other command needs the library.
        from . import prometheus

        sys.stdout.write(prometheus.text(found))
    elif not probes:
        _show(found, everything)
    if not probes:
        return
    line = _verdict(found, wrong)
    if form == Format.TEXT and not as_json:
        console().print(line, soft_wrap=True)
    elif wrong:
        log.warning("%s", line)
    raise typer.Exit(DIFFERENCES if wrong else 0)


def _most(max_lag: str) -> health.MaxLag:
    """Return --max-lag; a number alone is seconds."""
    unit = "" if max_lag[-1:].isalpha() else " s"
    return health.MaxLag(seconds(max_lag, "--max-lag"), f"{max_lag}{unit}")


def _verdict(found: reporting.Status, wrong: Sequence[str]) -> str:
    if not wrong:
        return f"ok: data lag {health.lag(found)}"
    more = f" (and {count(len(wrong) - 1, 'more reason')}: usage-rollup status)" if wrong[1:] else ""
    return " ".join(wrong[0].split()) + more


def _show(found: reporting.Status, everything: bool) -> None:
    out = console()
    show_facts(out, [*_place(found), *_facts(found), *_coverage(found.coverage)], width=_LABEL_WIDTH)
    if found.coverage:
        strip.show(out, found.coverage, everything)


def _place(s: reporting.Status) -> Iterator[Fact]:
    yield Fact("place", s.place.shape, "bold red" if s.place.refused else "")
    if next_step := health.next_step(s):
        yield Fact("next", next_step, "bold yellow")
    yield Fact("revision", s.revision or "none")
    if s.ledger_rows is not None:
        newest = f", newest {s.newest_in_ledger}" if s.newest_in_ledger else ""
        yield Fact("ledger", f"{count(s.ledger_rows, 'row')}{newest}")


def _facts(s: reporting.Status) -> Iterator[Fact]:
    """Yield what there is to tell of the hourly rollup before the days that are covered."""
    if s.watermark is None:
        return
    yield Fact("pipeline", s.pipeline or "none")
    if s.ticks:
        style = "" if health.ticks_are_well(s.ticks) or not s.ticks.needed else "bold yellow"
        yield Fact("ticks", health.ticks(s.ticks), style if s.ticks.by else style and "bold red")
    yield Fact("watermark", for_people(s.watermark), "bold red" if s.watermark_in_future else "")
    if s.lag_seconds is not None or s.watermark_in_future:
        yield Fact("data lag", *_lag(s))
    if s.held_back:
        yield Fact("held back", f"by {s.held_back.who}; {s.held_back.hint}", "bold yellow")
    for queue in s.queues:
        yield Fact("queued", _queue(queue), "bold yellow" if _waits_long(queue) else "")
    yield Fact("last run", *_last_run(s.last_run))
    yield Fact(
        "lock 4246", f"held by {s.lock_holders}" if s.lock_holders else "free: nobody writes the rollup"
    )
    if s.backfill:
        yield Fact("backfill", health.backfill(s.backfill), "bold yellow")
    else:
        yield Fact("backfill", "none unfinished")
    if s.set_aside_buckets is not None:
        what = "that PostgreSQL refused to store"
        names = f"{what}; correct that usage, usage-rollup verify names it"
        yield Fact(
            "set aside", *_number(s.set_aside_buckets, "bucket", names if s.set_aside_buckets else what)
        )
    if s.undated_rows:
        yield Fact(
            "undated",
            *_number(
                s.undated_rows,
                "usage row",
                "dated outside years 1-9998, set aside too; mend created_at by hand",
            ),
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
            f"hours before {for_people(s.left_out.before_hour)}, on purpose{by},"
            f" {_time(s.left_out.acknowledged_at)}",
            "bold yellow",
        )


def _lag(s: reporting.Status) -> tuple[str, str]:
    if s.watermark_in_future:
        return f"not known: {future_watermark(for_people(s.watermark or '')).message}", "bold red"
    behind = (s.lag_seconds or 0) > LAG_THRESHOLD.total_seconds()
    return health.lag(s), "bold red" if behind else "green"


def _queue(queue: reporting.Queue) -> str:
    waits = f", oldest {duration(queue.oldest_seconds)} old" if queue.oldest_seconds is not None else ""
    grows = "; it grows until something ticks" if _waits_long(queue) else ""
    return f"{queue.table} {count(queue.rows, 'row')}, {size(queue.bytes)}{waits}{grows}"


def _waits_long(queue: reporting.Queue) -> bool:
    return (queue.oldest_seconds or 0) > LAG_THRESHOLD.total_seconds()


def _last_run(run: reporting.Run | None) -> tuple[str, str]:
    if run is not None and run.error:
        return f"said: {run.error} (started {_time(run.started_at)})", "bold red"
    if run is None or run.started_at is None:
        return "never", ""
    if run.finished_at is None:
        return f"started {_time(run.started_at)}, not finished", ""
    ran = f"started {_time(run.started_at)}, finished {_time(run.finished_at)}"
    return f"{ran}, {count(run.rows, 'row')} changed", ""


def _time(at: str | None) -> str:
    return for_people(at) if at else "at a time nobody recorded"


def _number(number: int, of: str, which: str) -> tuple[str, str]:
    return f"{count(number, of)} {which}", "bold yellow" if number else ""


def _coverage(days: Sequence[covered_days.Day] | None) -> Iterator[Fact]:
    """Yield how many days are covered, and the holes."""
    if not days:
        if days is not None:
            yield Fact("coverage", "there is no usage")
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
