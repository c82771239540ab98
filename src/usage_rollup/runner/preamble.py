"""What a script of steps begins with: a pinned session, a lock, and where the database stands."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping

from ..contract import (
    BASELINE,
    HOURLY,
    LEGACY,
    MIGRATION_RUN,
    NEXT_STEM,
    OUR_FUNCTIONS,
    PIPELINE,
    RUNTIME_TIMEZONE,
    STEMS,
    USER_TIMEZONE,
)
from ..session import advisory_lock
from ..session.connection import MINIMUM_VERSION, SESSION_SETTINGS
from .adoption import OBJECTS

# Where an empty database stands.
NOTHING = "base"


def session(settings: Mapping[str, str]) -> str:
    """Return statements that pin a session as the runner pins its own, and take the migration-run lock.

    To be run outside a transaction. `settings` are those of the session besides the runner's.
    """
    return _SESSION.format(
        settings=",\n        ".join(
            f"({literal(name)}, {literal(value)})"
            for name, value in {**SESSION_SETTINGS, **_QUIET, **settings}.items()
        ),
        minimum=MINIMUM_VERSION,
        run=MIGRATION_RUN,
        patience=f"{advisory_lock.PATIENCE_S:.0f}s",
    )


def place(start: str, command: str, target: str) -> str:
    """Return a transaction that fails unless the database stands at revision `start`, and adopts it there.

    `command`, upgrade or downgrade, goes to `target`: a way back that could not be finished is refused, as
    way_back.py does it.
    """
    check = _PLACE.format(
        start=literal(start),
        command=literal(command),
        target=literal(target),
        next_stem=literal(NEXT_STEM),
        stems=_array(STEMS.values()),
        product=_array(BASELINE.columns),
        legacy_tables=_array(LEGACY.tables()),
        hourly=_array(HOURLY.names()),
        required=_array(_REQUIRED.get(start, BASELINE.names() | LEGACY.names())),
        pipeline=literal(PIPELINE),
        user_timezone=literal(USER_TIMEZONE),
        runtime_timezone=literal(RUNTIME_TIMEZONE),
        objects=OBJECTS,
        installed=OUR_FUNCTIONS,
    )
    # Alembic makes its table with the first step.
    table = "" if start == NOTHING else f"{_VERSION_TABLE}\n\n"
    return f"BEGIN;\n\n{table}{check}\n\nCOMMIT;"


def literal(text: str) -> str:
    """Return `text` as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def _array(names: Iterable[str]) -> str:
    """Return an SQL expression for an array of names, in lines somebody may want to read."""
    # A name's own blanks are no place to break a line.
    items = ", ".join(literal(name).replace(" ", "\0") for name in sorted(names))
    lines = textwrap.fill(items, 110, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return f"ARRAY[\n{lines}]::text[]".replace("\0", " ")


# What of v0.3.4 is not there from these revisions on, or not looked at.
_REQUIRED = {"103": BASELINE.names(), "104": frozenset[str]()}

# Progress is told as INFO, which this lets through.
_QUIET = {"client_min_messages": "warning"}

_SESSION = """\
-- Run it with: psql -X -v ON_ERROR_STOP=1 -f FILE; not with -1, since it commits each step.

DO $session$
BEGIN
    IF current_setting('server_version_num')::int < {minimum}0000 THEN
        RAISE EXCEPTION 'PostgreSQL {minimum} or newer is required, this server is %',
            current_setting('server_version');
    END IF;
    -- Not every server knows every one; ours, with a dot in the name, none knows.
    PERFORM set_config(p.name, p.value, false)
    FROM (VALUES
        {settings}
    ) AS p (name, value)
    WHERE p.name LIKE '%.%' OR p.name IN (SELECT name FROM pg_settings);
END
$session$;

DO $lock$
DECLARE
    v_deadline CONSTANT timestamptz := clock_timestamp()
        + COALESCE(NULLIF(current_setting('usage_rollup.lock_timeout', true), ''), '{patience}')::interval;
BEGIN
    WHILE NOT pg_try_advisory_lock({run}) LOOP
        IF clock_timestamp() >= v_deadline THEN
            RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
                MESSAGE = 'another migration runs: advisory lock {run} was not free in time',
                DETAIL = concat('held by ', (
                    SELECT string_agg(format('pid %s (%s, %s since %s)',
                        a.pid, a.application_name, a.state, a.state_change), '; ')
                    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
                    WHERE l.locktype = 'advisory' AND l.granted
                        AND (l.classid::bigint << 32 | l.objid::bigint) = {run}
                        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))),
                HINT = 'wait for it, or end that session: SELECT pg_terminate_backend(pid)';
        END IF;
        COMMIT;
        PERFORM pg_sleep(0.1);
    END LOOP;
END
$lock$;"""

_VERSION_TABLE = """\
CREATE TABLE IF NOT EXISTS public.alembic_version (
    version_num varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY
);"""

# Where the database stands is read off its catalog, as adoption.py does: the ledger of the product's own
# runner may be a step behind, and a script made for another place must not begin.
_PLACE = """\
DO $place$
DECLARE
    c_start CONSTANT text := {start};
    c_command CONSTANT text := {command};
    c_target CONSTANT text := {target};
    c_stems CONSTANT text[] := {stems};
    c_legacy CONSTANT text[] := {legacy_tables};
    c_hourly CONSTANT text[] := {hourly};
    c_required CONSTANT text[] := {required};
    v_objects CONSTANT text[] := ARRAY({objects});
    v_ours CONSTANT boolean := {installed};
    v_ledger text[];
    v_version text;
    v_place text;
    v_names text[];
    v_table text;
    v_filled boolean;
BEGIN
    v_place := CASE
        WHEN NOT EXISTS (SELECT FROM unnest(v_objects) AS o WHERE o LIKE 'table %') THEN 'base'
        WHEN {pipeline} = ANY (v_objects) AND NOT v_objects && c_legacy
            THEN CASE WHEN {runtime_timezone} = ANY (v_objects) THEN '103' ELSE '104' END
        WHEN v_ours THEN '102'
        WHEN v_objects @> c_hourly THEN '101'
        WHEN {user_timezone} = ANY (v_objects) THEN '100'
        ELSE '097' END;
    IF to_regclass('public.alembic_version') IS NOT NULL THEN
        SELECT MAX(version_num) INTO v_version FROM public.alembic_version;
    END IF;
    IF to_regclass('public.schema_migrations') IS NOT NULL THEN
        v_ledger := ARRAY(SELECT version FROM public.schema_migrations);
    END IF;

    IF v_place <> c_start OR COALESCE(v_version, v_place) <> c_start THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('this script begins at %s, and this database stands at %s', c_start, v_place)
                || COALESCE(', its alembic_version at ' || v_version, ''),
            HINT = CASE
                WHEN v_version <> v_place THEN '`alembic upgrade head`, connected to it, adopts it'
                WHEN v_place = '104' AND c_command = 'upgrade' THEN 'nothing is left to upgrade'
                ELSE format('make the script by `alembic %s %s:%s --sql`', c_command, v_place, c_target) END;
    END IF;
    IF c_start = 'base' THEN
        RETURN;
    END IF;
    SELECT array_agg(r ORDER BY r) INTO v_names FROM unnest(c_required) AS r WHERE r <> ALL (v_objects);
    IF v_names IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('this database is not a complete v0.3.4: missing %s',
                array_to_string(v_names[:8], ', ')),
            HINT = 'upgrade the product to v0.3.4 first';
    END IF;

    IF c_command = 'downgrade' THEN
        SELECT MAX(l COLLATE "C") INTO v_table FROM unnest(v_ledger) AS l;
        IF v_table > {next_stem} COLLATE "C" THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = 'refusing to downgrade: the product''s own runner has gone on to ' || v_table,
                HINT = 'to go back, restore a backup taken before the upgrade';
        ELSIF c_start >= '102' AND NOT v_ours THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = 'refusing to downgrade: the functions of the hourly rollup are the product''s own',
                HINT = 'to go back, restore a backup taken before the upgrade';
        END IF;
        IF c_target = 'base' THEN
            FOREACH v_table IN ARRAY {product} LOOP
                EXECUTE format('SELECT EXISTS (SELECT FROM public.%I)', v_table) INTO v_filled;
                IF v_filled OR v_ledger IS NOT NULL THEN
                    RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                        MESSAGE = 'refusing to remove the v0.3.4 baseline: ' || CASE WHEN v_filled
                            THEN format('table %I holds rows', v_table)
                            ELSE 'the product''s own runner made this database' END;
                END IF;
            END LOOP;
        END IF;
    END IF;

    -- Adopt it: only the newest step may be unrecorded, and none beyond it recorded.
    IF v_version IS NULL THEN
        v_names := ARRAY(
            SELECT s FROM unnest(c_stems) AS s
            WHERE CASE WHEN left(s, 3) < c_start THEN s <> ALL (v_ledger)
                       -- The Go release's 102, which this chain's replaces.
                       WHEN left(s, 3) > c_start THEN s = ANY (v_ledger)
                           AND NOT (c_start = '101' AND {pipeline} = ANY (v_objects) AND s LIKE '102%') END);
        IF v_ledger IS NULL OR cardinality(v_names) > 0 THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = CASE WHEN v_ledger IS NULL
                    THEN 'this database holds tables but no ledger (schema_migrations) and no alembic_version'
                    ELSE format('ledger and schema contradict each other: the schema shows %s, the ledger'
                        ' disagrees about %s', c_start, array_to_string(v_names, ', ')) END,
                HINT = '`alembic upgrade head`, connected to it, says more';
        END IF;
        INSERT INTO public.schema_migrations (version)
        SELECT s FROM unnest(c_stems) AS s WHERE left(s, 3) = c_start ON CONFLICT (version) DO NOTHING;
        INSERT INTO public.alembic_version (version_num) VALUES (c_start);
    END IF;
END
$place$;"""
