"""`usage-rollup history`."""

from __future__ import annotations

from datetime import UTC

from .. import doors
from ..reports import history as past
from ..session.options import read as read_options
from ..session.outages import in_session
from ..times import PEOPLE
from ..words import count
from .output import JsonOption, console, table, write_json

_RUNNERS = {past.US: "usage-rollup", past.PRODUCT: "the product"}


def history(as_json: JsonOption = False) -> None:
    """Show every step: when it was applied, and by which runner; what is pending. Reads only."""
    found = in_session(past.history, read_options())
    if as_json:
        write_json(found)
        return
    steps = table("step", "state", "applied", "by")
    for step in found.steps:
        pending = step.state == past.PENDING
        steps.add_row(step.step, step.state, *_applied(step), style="yellow" if pending else "")
    out = console()
    out.print(steps)
    pending_steps = sum(step.state == past.PENDING for step in found.steps)
    if pending_steps:
        out.print(f"{count(pending_steps, 'step')} pending: {doors.named('alembic upgrade head')}")
    again = [step.step for step in found.steps if step.state == past.PENDING and step.applied_at]
    if again:
        out.print(f"to be applied again, as ours: {', '.join(again)}")
    if found.newest_in_ledger and found.newest_in_ledger.encode() > found.steps[-1].step.encode():
        out.print(f"the product's own runner has gone on, to {found.newest_in_ledger}")


def _applied(step: past.Step) -> tuple[str, str]:
    """Say when a step was applied, and by whom; nothing of one that never was."""
    if step.state == past.PENDING and step.applied_at is None:
        return "", ""
    at = f"{step.applied_at.astimezone(UTC):{PEOPLE}}" if step.applied_at else "not recorded"
    by = "not known" if step.runner is None else _RUNNERS[step.runner]
    return at, by
