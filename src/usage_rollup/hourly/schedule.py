"""Have pg_cron tick the hourly rollup every five minutes, and find out whether anything ticks it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from ..contract import TICK_JOB
from ..errors import explain
from ..queries import beside
from ..session.connection import policies_filter, transaction
from . import pipeline

log = logging.getLogger(__name__)

_SQL = beside(__file__)

# The period the product recommends; its horizon trails by five minutes too.
PERIOD = "*/5 * * * *"

COMMAND = "SELECT public.rollup_task_usage_hourly()"

# Three of the usual five-minute periods: one tick may be late, and one may find the lock busy.
RECENT = timedelta(minutes=15)


@dataclass(frozen=True)
class Unusable:
    """Why pg_cron cannot be used here, and what would change that."""

    reason: str
    mend: str | None


@dataclass(frozen=True)
class Scheduled:
    """The pg_cron job there is now and how many it replaced, or why there is none; who ticks, in words."""

    job_id: int | None
    replaced: int
    not_used: Unusable | None
    ticks: str | None


@dataclass(frozen=True)
class Unscheduled:
    """How many pg_cron jobs were removed, or why pg_cron could not be asked; who still ticks, in words."""

    removed: int
    not_used: Unusable | None
    ticks: str | None


def schedule(session: sa.Connection) -> Scheduled:
    """Make one active pg_cron job of the contract's name, where pg_cron is usable, and commit.

    Replaces the jobs of that name in this database that this role can see. Takes no lock; entered and
    left outside a transaction. Raises UnsuitableDatabase before 102, where the job could only fail.
    """
    pipeline.require(session)
    with transaction(session):
        not_used = pg_cron_unusable(session)
        if not_used:
            return Scheduled(None, 0, not_used, who_ticks(session))
        # cron.schedule() updates a job of its name and leaves it paused when it is (pg_cron 1.4).
        with policies_filter(session):
            replaced = session.scalars(sa.text(_SQL["unschedule"]), {"job": TICK_JOB}).all()
            job_id = session.scalar(
                sa.text(_SQL["schedule"]),
                {"job": TICK_JOB, "period": PERIOD, "command": COMMAND},
            )
        return Scheduled(job_id, len(replaced), None, who_ticks(session))


def unschedule(session: sa.Connection) -> Unscheduled:
    """Remove the pg_cron jobs of the contract's name that this role can see, and commit.

    Takes no lock; entered and left outside a transaction, at any revision.
    """
    with transaction(session):
        not_used = pg_cron_unusable(session)
        removed = 0
        if not not_used:
            with policies_filter(session):
                removed = len(session.scalars(sa.text(_SQL["unschedule"]), {"job": TICK_JOB}).all())
        return Unscheduled(removed, not_used, who_ticks(session))


def pg_cron_unusable(session: sa.Connection) -> Unusable | None:
    """Say why this role cannot schedule with pg_cron in this database; None when it can.

    Reads in the caller's transaction.
    """
    found = session.execute(sa.text(_SQL["pg_cron"])).one()
    again = "then run `usage-rollup schedule` again"
    if found.here and found.usable:
        return None
    if found.here:
        return Unusable(
            f"pg_cron is installed here, but role {found.role} may not use its schema",
            f"as a superuser: GRANT USAGE ON SCHEMA cron TO {found.quoted_role}; {again}",
        )
    if found.lives_in is None:
        return Unusable("pg_cron is not installed in this database", None)
    if found.lives_in == found.database:
        return Unusable(
            "pg_cron is loaded by this server, but not installed in this database",
            f"as a superuser: CREATE EXTENSION pg_cron; {again}",
        )
    return Unusable(
        f"pg_cron is installed in another database, {found.lives_in}",
        f"as a superuser, there: SELECT cron.schedule_in_database('{TICK_JOB}', '{PERIOD}', '{COMMAND}',"
        f" {found.database_literal})",
    )


def who_ticks(session: sa.Connection) -> str | None:
    """Say who ticks, in words: a pg_cron job, or a run that finished a while ago; None when nobody does.

    Reads in the caller's transaction, on a database at any revision, and takes no lock. Sees only the
    pg_cron jobs of this role, and none when pg_cron lives in another database: there a recent run tells.
    """
    if session.scalar(sa.text(_SQL["cron_readable"])):
        with policies_filter(session):
            job = session.execute(sa.text(_SQL["its_schedule"]), {"job": TICK_JOB}).one_or_none()
        if job is not None:
            return f"pg_cron job {job.name} ({job.schedule})"
    if session.scalar(sa.text(_SQL["state_readable"])):
        minutes = session.scalar(sa.text(_SQL["recent_run"]), {"recent": RECENT})
        if minutes is not None:
            return "a run finished " + (f"{minutes} min ago" if minutes else "less than a minute ago")
    return None


def warn_if_nothing_ticks(session: sa.Connection) -> None:
    """Warn, after an upgrade to 102 or later, when nothing ticks the hourly rollup.

    What was done stays done, so what may not be looked at is no more than a warning.
    """
    try:
        if pipeline.find(session).installed and who_ticks(session) is None:
            log.warning("dashboards will not move until something ticks: run `usage-rollup schedule`")
    except DBAPIError as error:
        if not isinstance(error.orig, psycopg.Error):
            raise
        log.warning("whether something ticks cannot be seen: %s", explain(error.orig).message)
