-- What a script of steps has around their SQL. script.py closes the gaps.

-- name: session
-- Run it with: psql -X -v ON_ERROR_STOP=1 -f FILE; not with -1, since it commits each step.

-- First, and by themselves: what follows means the same whatever there is in any other schema.
SET statement_timeout = 0;
SET search_path = pg_catalog, pg_temp;

DO $session$
BEGIN
    IF current_setting('server_version_num')::int < :minimum0000 THEN
        RAISE EXCEPTION 'PostgreSQL :minimum or newer is required, this server is %',
            current_setting('server_version');
    END IF;
    -- Not every server knows every one; ours, with a dot in the name, none knows.
    PERFORM set_config(p.name, p.value, false)
    FROM (VALUES
        :settings
    ) AS p (name, value)
    WHERE p.name LIKE '%.%' OR current_setting(p.name, true) IS NOT NULL;
END
$session$;

DO $lock$
:take_lock;
$lock$;

-- name: version_table
CREATE TABLE IF NOT EXISTS public.:version_table (
    version_num varchar(32) NOT NULL CONSTRAINT :constraint PRIMARY KEY
);

-- name: ground
-- Before the ledgers are read, or the version table is made.
DO $ground$
DECLARE
    v_reasons CONSTANT jsonb := (SELECT COALESCE(jsonb_agg(q), '[]') FROM (
        :ground
    ) AS q);
BEGIN
    :refuse
END
$ground$;

-- name: begin
-- A script made for another place must not begin.
DO $begin$
DECLARE
    c_start CONSTANT text := :start;
    c_command CONSTANT text := :command;
    c_target CONSTANT text := :target;
    c_standing CONSTANT jsonb := current_setting('usage_rollup.standing')::jsonb;
    -- A way back begins where alembic_version says, an upgrade where the chain goes on.
    c_here CONSTANT text := COALESCE(
        c_standing ->> CASE c_command WHEN 'upgrade' THEN 'start' ELSE 'version' END, 'base');
    v_reasons jsonb := (
        SELECT COALESCE(jsonb_agg(f.value), '[]') FROM (
            SELECT r.value FROM jsonb_array_elements(c_standing -> 'refusals') WITH ORDINALITY AS r (value, n)
            WHERE r.value ->> 'about' IN (c_command, CASE WHEN c_command = 'downgrade' THEN c_target END)
            ORDER BY r.n LIMIT 1
        ) AS f);
BEGIN
    IF c_here <> c_start AND v_reasons = '[]' THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('this script begins at %s, and this database stands at %s', c_start, c_here),
            HINT = CASE WHEN c_here = CASE c_command WHEN 'upgrade' THEN :head ELSE 'base' END
                THEN 'nothing is left to ' || c_command
                ELSE format('make the script by `alembic %s %s:%s --sql`', c_command, c_here, c_target) END;
    END IF;
    IF v_reasons = '[]' OR c_command = 'upgrade' AND (c_start, c_standing ->> 'shown') = ('097', '097') THEN
        v_reasons := v_reasons || (SELECT COALESCE(jsonb_agg(q), '[]') FROM (
            :checks
        ) AS q);
    END IF;
    :refuse
END
$begin$;

-- name: adopt
-- Where the product's own runner stopped is taken over here.
DO $adopt$
DECLARE
    c_standing CONSTANT jsonb := current_setting('usage_rollup.standing')::jsonb;
BEGIN
    IF c_standing ->> 'reason' IS NOT NULL THEN
        RAISE INFO '%', c_standing ->> 'reason';
        INSERT INTO public.schema_migrations (version)
        SELECT jsonb_array_elements_text(c_standing -> 'missing_stems') ON CONFLICT DO NOTHING;
        DELETE FROM public.:version_table;
        INSERT INTO public.:version_table (version_num) VALUES (:start);
    END IF;
END
$adopt$;

-- name: refuse
IF jsonb_array_length(v_reasons) = 1 THEN
    RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
        MESSAGE = v_reasons -> 0 ->> 'message', HINT = v_reasons -> 0 ->> 'hint';
ELSIF v_reasons <> '[]' THEN
    RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state', MESSAGE = (
        SELECT format('%s reasons to refuse; nothing was changed', COUNT(*)) || string_agg(
            format(E'\n%s. %s\n   HINT: %s', r.n, r.value ->> 'message', r.value ->> 'hint'), '' ORDER BY r.n)
        FROM jsonb_array_elements(v_reasons) WITH ORDINALITY AS r (value, n));
END IF;

-- name: step_done
DO $$ BEGIN IF (SELECT MAX(version_num) FROM public.:version_table) IS DISTINCT FROM :version THEN
    RAISE EXCEPTION 'the step before this one was not done; nothing of this one is kept'; END IF; END $$;

-- name: end
-- For a session that goes on to something else.
SELECT pg_advisory_unlock(l.key)
FROM (VALUES (:run), (:rollup)) AS l (key)
JOIN pg_locks AS held ON held.locktype = 'advisory' AND held.pid = pg_backend_pid() AND held.objsubid = 1
    AND (held.classid::bigint << 32 | held.objid::bigint) = l.key;
