"""Write a script instead of running the steps: what `alembic upgrade --sql` puts around their SQL.

A script is run later, by psql, on a database nobody has looked at. So it pins its session as the runner
pins its own, holds the migration-run lock, checks where the database stands before anything is changed,
and at every step that the step before it was done: it fails closed, also in a client that goes on
after an error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alembic.runtime.migration import MigrationContext, MigrationInfo, MigrationStep, RevisionStep

from ..contract import HOURLY_ROLLUP, MIGRATION_RUN
from ..session.options import Options
from . import ledger, preamble
from .hooks import Work
from .preamble import NOTHING, literal


def with_script(work: Work, options: Options) -> Work:
    """Return an upgrade's or downgrade's `work` with what its script needs before and after the steps.

    Before a step lies what its revision
    keeps in a .before.sql file, outside the step's transaction. A script without steps stays empty.
    """

    def scripted_work(heads: Any, context: MigrationContext) -> Iterator[MigrationStep]:
        steps = [step for step in work(heads, context) if isinstance(step, RevisionStep)]
        if not steps:
            return
        write = context.impl.static_output
        start = max(heads, default=NOTHING)
        write(preamble.session(options.settings()))
        if steps[0].is_upgrade:
            write(preamble.place(start, "upgrade", "head"))
        else:
            write(preamble.place(start, "downgrade", max(steps[-1].to_revisions, default=NOTHING)))
        for step in steps:
            if before := _before(step):
                write(before)
            yield step
        write(_END)

    return scripted_work


def record_step(ctx: MigrationContext, step: MigrationInfo, heads: Collection[str], run_args: object) -> None:
    """Follow a step in the ledger, then insist that alembic_version shows it; in the step's transaction.

    Alembic's UPDATE of a row that is not there changes nothing and fails nothing.
    """
    ledger.record_step(ctx, step, heads, run_args)
    if not step.is_stamp:
        version = literal(max(heads)) if heads else "NULL"
        assert ctx.impl is not None
        ctx.impl.static_output(_STEP_DONE.format(version=version))


def lock_tables(lock: Mapping[str, Sequence[str]]) -> str:
    """Return a statement that locks those tables that exist, giving way until all are free at once.

    On the terms of steps.lock_tables(), for a transaction that is open.
    """
    return _LOCK_TABLES.format(
        locks=",\n                    ".join(
            f"({number}, '{mode}', '{' '.join(tables)}')"
            for number, (mode, tables) in enumerate(lock.items())
        ),
        tables=", ".join(table for tables in lock.values() for table in tables),
    )


def _before(step: RevisionStep) -> str | None:
    path = Path(step.revision.path).with_suffix(".before.sql")
    return path.read_text("utf-8").rstrip() if step.is_upgrade and path.is_file() else None


# One attempt waits less than deadlock_timeout in all, then everything is released, by the subtransaction:
# live queries queue behind it no longer, and no deadlock check finds a live transaction as its victim.
_LOCK_TABLES = """\
DO $lock$
DECLARE
    v_deadline CONSTANT timestamptz := clock_timestamp()
        + COALESCE(NULLIF(current_setting('usage_rollup.lock_timeout', true), ''), '2min')::interval;
    v_pause float8 := 0.1;
    v_lock record;
BEGIN
    LOOP
        BEGIN
            FOR v_lock IN
                SELECT l.mode, l.number, string_agg(t.name::text, ', ') AS tables,
                    SUM(COUNT(*)) OVER () AS all_tables
                FROM (VALUES
                    {locks}
                ) AS l (number, mode, tables)
                CROSS JOIN LATERAL (
                    SELECT to_regclass(format('public.%I', name)) AS name
                    FROM string_to_table(l.tables, ' ') AS name) AS t
                WHERE t.name IS NOT NULL GROUP BY l.number, l.mode ORDER BY l.number
            LOOP
                PERFORM set_config('lock_timeout', ceil(EXTRACT(EPOCH FROM
                    current_setting('deadlock_timeout')::interval) * 800 / v_lock.all_tables)::text, true);
                EXECUTE format('LOCK TABLE %s IN %s MODE', v_lock.tables, v_lock.mode);
            END LOOP;
            SET LOCAL lock_timeout = 0;
            RETURN;
        EXCEPTION WHEN lock_not_available OR deadlock_detected OR undefined_table THEN
            IF clock_timestamp() >= v_deadline THEN
                RAISE EXCEPTION USING ERRCODE = SQLSTATE,
                    MESSAGE = 'could not lock in time: {tables}',
                    DETAIL = concat('in the way: ', (
                        SELECT string_agg(DISTINCT format('pid %s (%s, %s since %s)',
                            a.pid, a.application_name, a.state, a.state_change), '; ')
                        FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
                        WHERE l.granted AND l.pid <> pg_backend_pid()
                            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                            AND l.relation IN (
                                SELECT to_regclass(format('public.%I', name))
                                FROM string_to_table('{tables}', ', ') AS name))),
                    HINT = 'end these sessions: SELECT pg_terminate_backend(pid); and make the script again';
            END IF;
        END;
        PERFORM pg_sleep(random() * v_pause);
        v_pause := LEAST(2 * v_pause, 3);
    END LOOP;
END
$lock$;"""

_STEP_DONE = """\
DO $$ BEGIN IF (SELECT MAX(version_num) FROM public.alembic_version) IS DISTINCT FROM {version} THEN
    RAISE EXCEPTION 'the step before this one was not done; nothing of this one is kept'; END IF; END $$;"""

# For a session that goes on to something else.
_END = f"""\
SELECT pg_advisory_unlock(l.key)
FROM (VALUES ({MIGRATION_RUN}), ({HOURLY_ROLLUP})) AS l (key)
JOIN pg_locks AS held ON held.locktype = 'advisory' AND held.pid = pg_backend_pid() AND held.objsubid = 1
    AND (held.classid::bigint << 32 | held.objid::bigint) = l.key;"""
