"""Say what 103 would decide today: its guard, and whether it keeps the legacy tables. Nothing is written.

Both read in the caller's transaction; `reading` has the functions of 102.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ..contract import HOURLY, LAG_THRESHOLD, LEGACY
from ..errors import Refusal
from ..hourly import backfill, pipeline, slices
from ..hourly.pipeline import Reading
from ..queries import beside, filled
from ..runner import checks
from ..times import rfc3339
from ..words import count

_SQL = beside(__file__)

# Asked for only where there is such a table.
_WATERMARK = "(SELECT watermark_at FROM public.task_usage_hourly_rollup_state WHERE id = 1)"
_PLANNED = "(SELECT MIN(horizon_at) FROM public.task_usage_hourly_backfill)"

# Less than the hook's patience, because the snapshot is open meanwhile.
HORIZON_WAIT = "2 seconds"

NO_USAGE = "passes: there is no usage"


@dataclass(frozen=True)
class Guard:
    """The verdict and what decides it. Times are text, because either may be infinite.

    `walks` when the watermark trails usage, a backfill is unfinished (`resumes`), or a partial one has left
    out what was created before `left_out_before`; `is_behind` is the first. `held_back` when open
    transactions would keep the hook from moving the watermark far enough.
    """

    verdict: str
    watermark: str | None
    latest_event: str | None
    walks: bool
    resumes: bool
    is_behind: bool
    left_out_before: str | None
    held_back: bool
    refusals: list[Refusal]


# Where there are no tables of the product yet.
NOTHING = Guard(NO_USAGE, None, None, False, False, False, None, False, [])


@dataclass(frozen=True)
class Legacy:
    """What 103 removes: bytes, totals that exist only there, and why it would keep the tables."""

    bytes: int
    totals_only_there: int
    examples: list[str]
    kept_because: list[str]
    refusals: list[Refusal]


def guard(
    session: sa.Connection, reading: Reading, *, drops: bool, has_schema: bool, has_pipeline: bool
) -> Guard:
    """Decide as the hook and the guard of 103 do, up to the comparison of every hour.

    `drops`: 103 is pending; `has_schema`: 101 is not; `has_pipeline`: 102 is not, which would distrust the
    watermark. A few look-ups by index, and a wait of two seconds at most for transactions whose start this
    role may not see.
    """
    names = {"hourly": sorted(HOURLY.columns), "legacy": sorted(LEGACY.columns)}
    has = session.execute(sa.text(_SQL["tables"]), names).mappings().one()
    asked = filled(
        _SQL["state"],
        watermark=_WATERMARK if has["hourly"] and has_pipeline else "NULL::timestamptz",
        planned=_PLANNED if has["plan"] and has_pipeline else "NULL::timestamptz",
        # No window but ours keeps what is left out.
        left_out=slices.LEFT_OUT if has["plan"] and pipeline.find(session).ours else "NULL::tstzmultirange",
    )
    state: Any = session.execute(reading.sql(asked), {"lag": LAG_THRESHOLD}).mappings().one()
    left_out_before = rfc3339(state["left_out_before"]) if has_pipeline else None
    to_do = state["behind"] or state["unfinished"] or left_out_before is not None
    walks = state["used"] and not state["future"] and to_do
    held_back, refusals = False, []
    if not drops:
        verdict = "not asked: 103 is not pending"
    elif not has["legacy"]:
        verdict = "passes: nothing is left to drop"
    elif has_schema and not has["hourly"] and state["used"]:
        refusals.append(
            Refusal(
                "the hourly pipeline is not installed, although its revisions are recorded",
                hint="put 101 and 102 back: `alembic downgrade 100`, then `alembic upgrade head`",
            )
        )
        verdict = f"refuses: {refusals[0].message}"
    elif state["future"]:
        refusals.append(backfill.future_watermark(state["watermark"]))
        verdict = f"refuses: {refusals[0].message}"
    elif not state["used"]:
        verdict = NO_USAGE
    elif walks:
        verdict = "would refuse, until the history is rolled up: the upgrade does that just before 103"
        held_back = state["needs_horizon"] and session.scalar(
            reading.sql(_SQL["held_back"]), {"lag": LAG_THRESHOLD, "wait": HORIZON_WAIT}
        )
    else:
        verdict = "passes: the watermark trails usage by an hour at most; every hour is compared before 103"
    return Guard(
        verdict,
        watermark=rfc3339(state["watermark"]),
        latest_event=rfc3339(state["latest"]),
        walks=walks,
        resumes=state["unfinished"],
        is_behind=state["behind"],
        left_out_before=left_out_before,
        held_back=bool(held_back),
        refusals=refusals,
    )


def refusals(session: sa.Connection) -> list[Refusal]:
    """Return what 103 would refuse for what the legacy tables hold, once checks.looks_ahead() to it.

    Entered and left outside a transaction.
    """
    return legacy(session, pipeline.reading(session), None).refusals


def legacy(session: sa.Connection, reading: Reading, keep: bool | None) -> Legacy:
    """Decide as 103 does whether the legacy tables are dropped or kept; `keep` is what the operator says.

    Compares the legacy rollups, where they hold rows, with all of raw usage: 5 s a million rows.
    """
    found = session.execute(reading.sql(_SQL["legacy"]), {"tables": sorted(LEGACY.columns)}).mappings().one()
    excess = session.execute(reading.sql(_SQL["excess"])).all()
    totals = excess[0].totals if excess else 0
    because = []
    if keep:
        because = ["KEEP_LEGACY=true asks for it"]
    elif keep is None:
        exist = "exists" if totals == 1 else "exist"
        because = [f"{count(totals, 'daily total')} {exist} only there"] if totals else []
        because += ["some usage is set aside"] if found["set_aside"] else []
    # Where the operator asks for it, the checks say so themselves.
    refusals = checks.keeping(session) if because and keep is None else []
    return Legacy(found["bytes"], totals, [row.example for row in excess], because, refusals)
