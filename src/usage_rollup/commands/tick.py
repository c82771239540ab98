"""`usage-rollup tick`."""

from __future__ import annotations

import logging

import sqlalchemy as sa

from ..contract import LAG_THRESHOLD
from ..hourly import slices
from ..hourly import tick as ticks
from ..reports import trigger_rights
from ..session.options import read as read_options
from ..session.outages import in_session
from ..times import for_people
from . import health
from .output import Fact, JsonOption, console, show_facts, write_json

log = logging.getLogger(__name__)


def tick(as_json: JsonOption = False) -> None:
    """Run one tick: bring the hourly rollup up to date, by a day at most, as cron or a CronJob would.

    Exits 75 when another session is writing the rollup, and 1 when it fails.
    The state row then keeps the reason, as last_error, until a tick succeeds.
    """
    done, warnings = in_session(_tick, read_options())
    for rights in warnings:
        log.warning("%s; %s", rights.meaning, rights.mend)
    if as_json:
        write_json(done)
        return
    stuck = done.held_back is not None and done.held_back.stuck
    out = console()
    after = done.watermark_after or "none"
    facts = [
        Fact("rows changed", f"{done.rows_changed:,}"),
        Fact("watermark", f"{for_people(done.watermark_before or 'none')} -> {for_people(after)}"),
        Fact("data lag", _lag(done)),
    ]
    if done.held_back:
        facts.append(Fact("held back", f"by {done.held_back.who}; {done.held_back.hint}", "bold yellow"))
    show_facts(out, facts, width=14)
    if (done.lag_seconds or 0) > LAG_THRESHOLD.total_seconds() and not stuck:
        out.print("One tick rolls up a day at most: `usage-rollup backfill` catches up at once.")


def _lag(done: ticks.Tick) -> str:
    if done.lag_seconds is None:
        return "not known"
    return health.behind(done.watermark_after or slices.NO_ROW, done.lag_seconds)


def _tick(session: sa.Connection) -> tuple[ticks.Tick, list[trigger_rights.TriggerRights]]:
    return ticks.tick(session), [rights for rights in trigger_rights.find(session) if rights.missing]
