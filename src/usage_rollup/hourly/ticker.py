"""Find out who ticks the hourly rollup.

What counts is a schedule, not a run: a tick that somebody typed once leaves the same traces as the first of
many. A database knows two schedules, a job of pg_cron and the scheduler in the product's own server. Of cron,
systemd timers and Kubernetes it knows nothing but that a run finished.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from ..contract import SCHEDULER_STEM, TICK_JOB
from ..queries import beside
from ..session.connection import policies_filter
from ..times import rfc3339
from . import pipeline

_SQL = beside(__file__)

PG_CRON = "pg_cron"
SERVER = "server"

# Three of the usual five-minute periods: one tick may be late, and one may find the lock busy.
RECENT_S = 15 * 60


@dataclass(frozen=True)
class Ticker:
    """Who ticks, as far as this database and this role see.

    `by` is PG_CRON, SERVER (the product's, of v0.3.17 or later, while it runs) or None; `job` names the job
    of pg_cron. `needed` as soon as the daily rollups are gone: until then no server reads the hourly one.
    `last_run_at` is when a run last finished, whoever's, `idle_seconds` how many seconds ago.
    """

    by: str | None
    job: str | None
    needed: bool
    last_run_at: str | None
    idle_seconds: float | None

    @property
    def ran_lately(self) -> bool:
        """Say whether a run finished within the last three periods."""
        return self.idle_seconds is not None and self.idle_seconds <= RECENT_S


def find(session: sa.Connection) -> Ticker | None:
    """Say who ticks; None where there is nothing to tick.

    Reads in the caller's transaction, at any revision and any release, and takes no lock. Sees only the
    pg_cron jobs of this role, and none when pg_cron lives in another database.
    """
    if not pipeline.find(session).installed:
        return None
    seen = session.execute(sa.text(_SQL["seen"])).one()
    job = None
    if seen.cron:
        with policies_filter(session):
            job = session.execute(sa.text(_SQL["job"]), {"job": TICK_JOB}).one_or_none()
    server = seen.ledger and session.scalar(sa.text(_SQL["scheduler"]), {"stem": SCHEDULER_STEM})
    run = session.execute(sa.text(_SQL["last_run"])).one_or_none() if seen.state else None
    return Ticker(
        by=PG_CRON if job else SERVER if server else None,
        job=f"{job.name} ({job.schedule})" if job else None,
        needed=seen.needed,
        last_run_at=rfc3339(run.at) if run else None,
        idle_seconds=run.idle_seconds if run else None,
    )
