"""Say what 103 would decide today: its guard, and whether it keeps the legacy tables. Nothing is written.

Both read in the caller's transaction; `reading` has the functions of 102.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ..contract import HOURLY, LEGACY
from ..errors import Refusal
from ..hourly import backfill
from ..hourly.pipeline import Reading

# Less than the hook's patience, because the snapshot is open meanwhile.
HORIZON_WAIT = "2 seconds"

NO_USAGE = "passes: there is no usage"


@dataclass(frozen=True)
class Guard:
    """The verdict and what decides it. Times are text, because either may be infinite.

    `walks` when the watermark trails usage or a backfill is unfinished (`resumes`); `held_back` when
    open transactions would keep the hook from moving the watermark far enough.
    """

    verdict: str
    watermark: str | None
    latest_event: str | None
    walks: bool
    resumes: bool
    held_back: bool
    refusals: list[Refusal]


@dataclass(frozen=True)
class Legacy:
    """What 103 removes: bytes, totals that exist only there, and why it would keep the tables."""

    bytes: int
    totals_only_there: int
    examples: list[str]
    kept_because: list[str]
    refusals: list[Refusal]


def guard(session: sa.Connection, reading: Reading, *, drops: bool, has_schema: bool) -> Guard:
    """Decide as the hook and the guard of 103 do, up to the comparison of every hour.

    `drops`: 103 is pending; `has_schema`: 101 is not. A few look-ups by index, and a wait of two seconds
    at most for transactions whose start this role may not see.
    """
    names = {"hourly": sorted(HOURLY.columns), "legacy": sorted(LEGACY.columns)}
    has = session.execute(sa.text(_HAS), names).mappings().one()
    watermark = _WATERMARK if has["hourly"] else "NULL::timestamptz"
    planned = _PLANNED if has["plan"] else "NULL::timestamptz"
    state: Any = (
        session.execute(reading.sql(_STATE.format(watermark=watermark, planned=planned))).mappings().one()
    )
    walks = state["used"] and not state["future"] and (state["behind"] or state["unfinished"])
    held_back, refusals = False, []
    if not drops:
        verdict = "not asked: 103 is not pending"
    elif not has["legacy"]:
        verdict = "passes: nothing is left to drop"
    elif has_schema and not has["hourly"] and state["used"]:
        verdict = "refuses: the hourly pipeline is not installed, although its revisions are recorded"
        refusals.append(
            Refusal(
                "the hourly pipeline is not installed, although its revisions are recorded",
                hint="put 101 and 102 back: `alembic downgrade 100`, then `alembic upgrade head`",
            )
        )
    elif state["future"]:
        verdict = "refuses: the watermark lies in the future"
        refusals.append(backfill.future_watermark(state["watermark"]))
    elif not state["used"]:
        verdict = NO_USAGE
    elif walks:
        verdict = "would refuse, until the history is rolled up: the upgrade does that just before 103"
        held_back = state["needs_horizon"] and session.scalar(reading.sql(_HELD_BACK), {"wait": HORIZON_WAIT})
    else:
        verdict = "passes: the watermark trails usage by an hour at most; every hour is compared before 103"
    return Guard(
        verdict, state["watermark"], state["latest"], walks, state["unfinished"], bool(held_back), refusals
    )


def legacy(session: sa.Connection, reading: Reading, keep: bool | None) -> Legacy:
    """Decide as 103 does whether the legacy tables are dropped or kept; `keep` is what the operator says.

    Compares the legacy rollups, where they hold rows, with all of raw usage: 5 s a million rows.
    """
    found = session.execute(reading.sql(_LEGACY), {"tables": sorted(LEGACY.columns)}).mappings().one()
    excess = session.execute(reading.sql(_EXCESS)).all()
    totals = excess[0].totals if excess else 0
    because = []
    if keep:
        because = ["KEEP_LEGACY=true asks for it"]
    elif keep is None:
        because = [f"{totals:,} daily totals exist only there"] if totals else []
        because += ["some usage is set aside"] if found["set_aside"] else []
    refusals = []
    if because and not found["may_keep"]:
        refusals.append(
            Refusal(
                f"role {found['role']} may not create schema legacy_usage to keep the legacy rollups in:"
                f" {', and '.join(because)}",
                hint=f"GRANT CREATE ON DATABASE {found['quoted_database']} TO {found['quoted_role']},"
                " or drop them: alembic -x keep-legacy=false upgrade head",
            )
        )
    return Legacy(found["bytes"], totals, [row.example for row in excess], because, refusals)


_HAS = """
SELECT
    (SELECT bool_and(to_regclass('public.' || t) IS NOT NULL)
     FROM unnest(CAST(:hourly AS text[])) AS t) AS hourly,
    (SELECT bool_or(to_regclass('public.' || t) IS NOT NULL)
     FROM unnest(CAST(:legacy AS text[])) AS t) AS legacy,
    to_regclass('public.task_usage_hourly_backfill') IS NOT NULL AS plan
"""

_WATERMARK = "(SELECT watermark_at FROM public.task_usage_hourly_rollup_state WHERE id = 1)"
_PLANNED = "(SELECT MIN(horizon_at) FROM public.task_usage_hourly_backfill)"

# An unfinished backfill takes the watermark to where it was planned; only beyond is a horizon needed.
_STATE = """
SELECT s.watermark::text AS watermark, s.latest::text AS latest, s.used, s.planned IS NOT NULL AS unfinished,
    COALESCE(s.watermark > clock_timestamp(), false) AS future,
    COALESCE(s.latest - interval '1 hour' > s.rolled_up, false) AS behind,
    COALESCE(s.latest - interval '1 hour' > GREATEST(s.rolled_up, s.planned), false) AS needs_horizon
FROM (
    SELECT *, CASE WHEN isfinite(watermark) THEN watermark ELSE 'epoch' END AS rolled_up
    FROM (SELECT {watermark} AS watermark, {planned} AS planned,
            public.task_usage_hourly_latest_event() AS latest,
            EXISTS (SELECT FROM public.task_usage) AS used) AS r
) AS s
"""

_HELD_BACK = """
SELECT public.task_usage_hourly_latest_event() - interval '1 hour'
    > public.task_usage_hourly_horizon(CAST(:wait AS interval))
"""

_LEGACY = """
SELECT
    (SELECT COALESCE(SUM(pg_total_relation_size(to_regclass('public.' || t))), 0)::bigint
     FROM unnest(CAST(:tables AS text[])) AS t) AS bytes,
    EXISTS (SELECT FROM public.task_usage_hourly_set_aside)
        OR EXISTS (SELECT FROM public.task_usage_hourly_undated()) AS set_aside,
    to_regnamespace('legacy_usage') IS NOT NULL
        OR has_database_privilege(current_database(), 'CREATE') AS may_keep,
    current_user AS role, quote_ident(current_user) AS quoted_role,
    quote_ident(current_database()) AS quoted_database
"""

_EXCESS = """
SELECT COUNT(*) OVER () AS totals, format('%s %s, workspace %s, %s: %s tokens there, %s in raw usage',
    rollup, bucket_date, workspace_id, left(model, 60), legacy_tokens, raw_tokens) AS example
FROM public.task_usage_hourly_legacy_excess() LIMIT 3
"""
