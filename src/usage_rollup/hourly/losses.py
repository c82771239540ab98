"""Look for what the hourly rollup does not show, and for what only the legacy rollups do."""

from __future__ import annotations

import logging

import sqlalchemy as sa

from .. import account

log = logging.getLogger(__name__)


def look(session: sa.Connection) -> None:
    """Report usage that the rollup cannot show, and totals that only the legacy rollups hold.

    One statement, which leaves the number of totals in a setting of the session, where 103 looks.
    """
    run = account.run
    run.set_aside, run.undated, run.only_in_legacy = session.execute(sa.text(_LOSSES)).one()
    if run.set_aside:
        log.warning(
            "buckets that are set aside, see task_usage_hourly_set_aside: %s; PostgreSQL refuses to store"
            " them, and reports do without them",
            f"{run.set_aside:,}",
        )
    if run.undated:
        log.warning(
            "usage rows dated outside years 1-9998, see task_usage_hourly_undated(): %s", f"{run.undated:,}"
        )
    if run.only_in_legacy:
        log.warning("daily totals that exist only in the legacy rollups: %s", f"{run.only_in_legacy:,}")


_LOSSES = """
SELECT (SELECT COUNT(*) FROM public.task_usage_hourly_set_aside),
    (SELECT COUNT(*) FROM public.task_usage_hourly_undated()),
    set_config('usage_rollup.legacy_excess',
        (SELECT COUNT(*)::text FROM public.task_usage_hourly_legacy_excess()), false)::bigint
"""
