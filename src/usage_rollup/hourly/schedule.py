"""Have pg_cron tick the hourly rollup every five minutes, and say after an upgrade who ticks it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from ..contract import TICK_JOB
from ..errors import explain
from ..queries import beside
from ..session.connection import policies_filter, transaction
from . import pipeline, ticker
from .ticker import Ticker

log = logging.getLogger(__name__)

_SQL = beside(__file__)

# The period the product recommends; its horizon trails by five minutes too.
PERIOD = "*/5 * * * *"

COMMAND = "SELECT public.rollup_task_usage_hourly()"

# What to do where nobody is seen to tick, whichever release is started next.
MEND = (
    "a server of v0.3.17 or later ticks by itself; for one of v0.3.5 to v0.3.16 run `usage-rollup schedule`"
)


@dataclass(frozen=True)
class Unusable:
    """Why pg_cron cannot be used here, and what would change that."""

    reason: str
    mend: str | None


@dataclass(frozen=True)
class Scheduled:
    """The pg_cron job there is now and how many it replaced, or why there is none; and who ticks."""

    job_id: int | None
    replaced: int
    not_used: Unusable | None
    ticks: Ticker | None


@dataclass(frozen=True)
class Unscheduled:
    """How many pg_cron jobs were removed, or why pg_cron could not be asked; and who ticks still."""

    removed: int
    not_used: Unusable | None
    ticks: Ticker | None


def schedule(session: sa.Connection) -> Scheduled:
    """Make one active pg_cron job of the contract's name, where pg_cron is usable, and commit.

    Replaces the jobs of that name in this database that this role can see. Takes no lock; entered and
    left outside a transaction. Raises UnsuitableDatabase before 102, where the job could only fail.
    """
    pipeline.require(session)
    with transaction(session):
        not_used = pg_cron_unusable(session)
        if not_used:
            return Scheduled(None, 0, not_used, ticker.find(session))
        # cron.schedule() updates a job of its name and leaves it paused when it is (pg_cron 1.4).
        with policies_filter(session):
            replaced = session.scalars(sa.text(_SQL["unschedule"]), {"job": TICK_JOB}).all()
            job_id = session.scalar(
                sa.text(_SQL["schedule"]),
                {"job": TICK_JOB, "period": PERIOD, "command": COMMAND},
            )
        return Scheduled(job_id, len(replaced), None, ticker.find(session))


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
        return Unscheduled(removed, not_used, ticker.find(session))


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


def warn_if_nothing_ticks(session: sa.Connection) -> None:
    """Say, after an upgrade past 102, who ticks the hourly rollup; warn when nobody is seen to.

    Until 103 no server reads it, and nothing is said. What was done stays done, so what may not be looked
    at is no more than a warning.
    """
    try:
        found = ticker.find(session)
    except DBAPIError as error:
        if not isinstance(error.orig, psycopg.Error):
            raise
        log.warning("whether something ticks cannot be seen: %s", explain(error.orig).message)
        return
    if found is None or not found.needed:
        return
    if found.by == ticker.PG_CRON:
        log.info("the hourly rollup is ticked by the pg_cron job %s", found.job)
    elif found.by == ticker.SERVER:
        log.info("the hourly rollup is ticked by the product's own server, v0.3.17 or later, while it runs")
    elif found.ran_lately:
        log.info("a tick has run lately, but this database shows no schedule: %s, unless cron ticks", MEND)
    else:
        log.warning("dashboards will not move until something ticks: %s", MEND)
