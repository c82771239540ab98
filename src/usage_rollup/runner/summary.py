"""Say at the end what a run did: from where to where, what was rolled up, what became of the legacy rollups.

The account that it tells of outlives lost sessions, and so does where the run began.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from .. import account, doors
from ..contract import STEMS
from ..session.options import Options
from ..words import count, took
from . import adoption
from .adoption import Standing

log = logging.getLogger(__name__)

# What to do at a revision. Whoever reads it stands there after an upgrade, or after a downgrade.
_GO_ON = "a v0.3.4 server may run beside this; to go on, stop it, then `alembic upgrade head`"
_NEXT = {
    **dict.fromkeys(("097", "100", "101", "102"), _GO_ON),
    "103": "no release of the product runs at 103; go on: `alembic upgrade head`",
    "104": "start the product, v0.3.5 or later: its own runner applies 105 and what follows",
}


@dataclass
class _Began:
    at_s: float = field(default_factory=time.monotonic)
    standing: Standing | None = None
    kept_in: str | None = None


_began = _Began()


def begin(session: sa.Connection, standing: Standing) -> None:
    """Note where the run found the database; not again when it goes on in another session."""
    if _began.standing is None:
        _began.standing = standing
        _began.kept_in = _kept_in(session)


def tell(session: sa.Connection, command: str, options: Options) -> None:
    """Log what an `upgrade` or `downgrade` has done; with JSON its fields, too.

    Outside a transaction, when all is committed. Only reads. last() has the fields afterwards.
    """
    before, after = _began.standing, adoption.look(session)
    assert before is not None
    done = account.run
    steps = [name for name in done.seconds if name in STEMS]
    took_s = time.monotonic() - _began.at_s
    # Those that this run has made itself were empty.
    dropped = command == "upgrade" and "103" in steps and "097" not in steps
    lines = {
        "rolled up": done.rolled_up() if done.slices else None,
        "legacy rollups": _legacy(session, options) if dropped else None,
        "time": done.times() or None,
        "next": doors.named(_next(after)),
    }
    if steps:
        came_from = before.start if command == "upgrade" else before.version
        said = f"{command}d from {_name(came_from)} to {_name(after.version)} in {took(took_s)}"
    elif before.version != after.version:
        said = f"taken over at {_name(after.version)} in {took(took_s)}: nothing else to do"
    else:
        said = f"already at {_name(after.version)}: nothing to do"
    _told.update(
        {"from": before.version, "to": after.version, "steps": steps},
        adopted=before.start if before.start != before.version else None,
        legacy=lines["legacy rollups"],
        next=lines["next"],
        total_seconds=round(took_s, 3),
        **done.fields(),
    )
    told = [said, *(f"  {name}: {line}" for name, line in lines.items() if line)]
    log.info("%s", "\n".join(told), extra={"fields": _told})


_told: dict[str, Any] = {}


def last() -> dict[str, Any]:
    """Return the fields of what was told last in this process."""
    return _told


def _name(revision: str | None) -> str:
    return STEMS.get(revision, revision) if revision else "an empty database"


def _next(standing: Standing) -> str:
    newest = max(standing.stems or (), default="", key=str.encode)
    if newest.encode() > max(STEMS.values()).encode():
        return f"start the product: its own runner has gone on, to {newest}"
    return _NEXT.get(standing.version or "", "`alembic upgrade head` makes the schema")


def _legacy(session: sa.Connection, options: Options) -> str:
    """Say what 103 has done with the legacy rollups, and why."""
    only_there = account.run.only_in_legacy
    totals = f"{count(only_there, 'daily total')} {'is' if only_there == 1 else 'are'} in no raw usage"
    kept_in = _kept_in(session)
    if kept_in is None or kept_in == _began.kept_in:
        return (
            f"dropped, as asked for, although {totals}"
            if only_there
            else "dropped: raw usage holds all they showed"
        )
    if options.keep_legacy:
        return f"kept in schema {kept_in}, as asked for"
    reasons = [totals] if only_there else []
    if account.run.set_aside or account.run.undated:
        reasons.append("the hourly rollup does not show all usage (see above)")
    return f"kept in schema {kept_in}: {', and '.join(reasons)}"


def _kept_in(session: sa.Connection) -> str | None:
    """Return the newest schema in which 103 has kept legacy rollups."""
    schema: str | None = session.scalar(sa.text(_KEPT_IN))
    return schema


_KEPT_IN = """
SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = 'task_usage_daily' AND n.nspname ~ '^legacy_usage(_[0-9]+)?$'
ORDER BY length(n.nspname) DESC, n.nspname DESC LIMIT 1
"""
