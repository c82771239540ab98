"""Have the hourly rollup ticked every five minutes: by pg_cron, or by whatever else can run a command."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass

import sqlalchemy as sa

from . import ticking
from .tick import require_pipeline

log = logging.getLogger(__name__)

# The period the product recommends; its horizon trails by five minutes too.
PERIOD = "*/5 * * * *"

COMMAND = "SELECT public.rollup_task_usage_hourly()"


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


def schedule(connection: sa.Connection) -> Scheduled:
    """Make one active pg_cron job of the contract's name, where pg_cron is usable, and commit.

    Replaces the jobs of that name in this database that this role can see. Takes no lock; entered and
    left outside a transaction. Raises UnsuitableDatabase before 102, where the job could only fail.
    """
    require_pipeline(connection)
    with connection.begin():
        not_used = pg_cron_unusable(connection)
        if not_used:
            return Scheduled(None, 0, not_used, ticking.find(connection))
        # cron.schedule() updates a job of its name and leaves it paused when it is (pg_cron 1.4).
        replaced = connection.scalars(sa.text(_UNSCHEDULE), {"job": ticking.JOB}).all()
        job_id = connection.scalar(
            sa.text(_SCHEDULE),
            {"job": ticking.JOB, "period": PERIOD, "command": COMMAND},
        )
        return Scheduled(job_id, len(replaced), None, ticking.find(connection))


def unschedule(connection: sa.Connection) -> Unscheduled:
    """Remove the pg_cron jobs of the contract's name that this role can see, and commit.

    Takes no lock; entered and left outside a transaction, at any revision.
    """
    with connection.begin():
        not_used = pg_cron_unusable(connection)
        removed = 0
        if not not_used:
            removed = len(connection.scalars(sa.text(_UNSCHEDULE), {"job": ticking.JOB}).all())
        return Unscheduled(removed, not_used, ticking.find(connection))


def pg_cron_unusable(connection: sa.Connection) -> Unusable | None:
    """Say why this role cannot schedule with pg_cron in this database; None when it can.

    Reads in the caller's transaction.
    """
    found = connection.execute(sa.text(_PG_CRON)).one()
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
        f"as a superuser, there: SELECT cron.schedule_in_database('{ticking.JOB}', '{PERIOD}', '{COMMAND}',"
        f" {found.database_literal})",
    )


def warn_if_nothing_ticks(connection: sa.Connection) -> None:
    """Warn, after an upgrade to 102 or later, when nothing ticks the hourly rollup.

    Ends the transaction Alembic's reading may have left open, and its own.
    """
    connection.commit()
    revision = connection.scalar(sa.text("SELECT max(version_num) FROM public.alembic_version")) or ""
    if revision >= "102" and ticking.find(connection) is None:
        log.warning("dashboards will not move until something ticks: run `usage-rollup schedule`")
    connection.commit()


def recipes(program: str, user: str) -> dict[str, str]:
    """Return what runs `usage-rollup tick` every five minutes without pg_cron, ready to paste.

    `program` is the absolute path of usage-rollup, `user` the account that may run it. No password is
    in them: DATABASE_URL comes from a file, or from the secret the server itself uses.
    """
    words = {"program": shlex.quote(program), "user": user, "period": PERIOD}
    return {name: text.format_map(words) for name, text in _RECIPES.items()}


_UNSCHEDULE = """
SELECT cron.unschedule(jobid) FROM cron.job WHERE database = current_database() AND jobname = :job
"""

# Cast, because the two-argument form takes a schedule and a command.
_SCHEDULE = """
SELECT cron.schedule(CAST(:job AS text), CAST(:period AS text), CAST(:command AS text))
"""

# Others may not ask which database pg_cron's jobs live in.
_PG_CRON = """
SELECT
    current_database() AS database, quote_literal(current_database()) AS database_literal,
    current_user AS role, quote_ident(current_user) AS quoted_role,
    c.oid IS NOT NULL AS here,
    has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS usable,
    CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE') THEN
        NULLIF(current_setting('cron.database_name', true), '') END AS lives_in
FROM (SELECT) AS always
LEFT JOIN (pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace)
    ON n.nspname = 'cron' AND c.relname = 'job'
"""

_RECIPES = {
    "environment_file": """\
DATABASE_URL='postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=disable'
""",
    "cron": """\
{period} set -a; . /etc/usage-rollup.env; {program} tick >/dev/null
""",
    "compose": """\
{period} cd DIRECTORY && docker compose --progress quiet run -T --rm --no-deps SERVICE \
usage-rollup tick >/dev/null
""",
    "systemd_service": """\
[Unit]
Description=One tick of the hourly usage rollup
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
User={user}
EnvironmentFile=/etc/usage-rollup.env
ExecStart={program} tick
# 75: another session is writing the rollup; the next tick goes on.
SuccessExitStatus=75
""",
    "systemd_timer": """\
[Unit]
Description=Tick the hourly usage rollup every five minutes

[Timer]
OnCalendar=*:0/5
AccuracySec=10s

[Install]
WantedBy=timers.target
""",
    "kubernetes": """\
apiVersion: batch/v1
kind: CronJob
metadata:
  name: usage-rollup-tick
spec:
  schedule: "{period}"
  concurrencyPolicy: Forbid
  startingDeadlineSeconds: 240
  successfulJobsHistoryLimit: 1
  jobTemplate:
    spec:
      backoffLimit: 0
      template:
        spec:
          restartPolicy: Never
          containers:
            - name: tick
              image: IMAGE
              command: ["usage-rollup", "tick"]
              env:
                - name: DATABASE_URL
                  valueFrom:
                    secretKeyRef:
                      name: SECRET
                      key: DATABASE_URL
""",
}
