-- What else may have been done to a database before it meets the upgrade, one change a name.
--
-- `on` says what must be there, or must not: see START_TRAITS in starts.py; `raises` with what words code may stop
-- the upgrade that nobody can foresee. Whoever applies a change is a superuser.
-- Gaps: :database, :login (whoever migrates), :owner (of the product's objects), :stranger, :tablespace.

-- Owners and grants

-- name: schema_public_belongs_to_a_stranger
ALTER SCHEMA public OWNER TO :stranger;

-- name: all_functions_belong_to_a_stranger
DO $$ DECLARE f regprocedure; BEGIN
    FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = 'public'::regnamespace LOOP
        EXECUTE format('ALTER ROUTINE %s OWNER TO :stranger', f);
    END LOOP;
END $$;

-- name: all_tables_belong_to_a_stranger
DO $$ DECLARE t regclass; BEGIN
    FOR t IN SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO :stranger', t);
    END LOOP;
END $$;

-- name: database_belongs_to_a_stranger
ALTER DATABASE :database OWNER TO :stranger;

-- name: ledger_may_be_read_and_added_to
ALTER TABLE schema_migrations OWNER TO :stranger;
GRANT SELECT, INSERT ON schema_migrations TO :owner, :login;

-- name: ledger_belongs_to_a_stranger_who_shares_it
ALTER TABLE schema_migrations OWNER TO :stranger;
GRANT SELECT, INSERT, UPDATE, DELETE ON schema_migrations TO :owner, :login;

-- name: schema_public_may_not_be_used
REVOKE USAGE ON SCHEMA public FROM PUBLIC, :owner, :login;

-- name: schema_public_may_not_be_added_to
REVOKE CREATE ON SCHEMA public FROM PUBLIC, :owner, :login;

-- name: anybody_may_add_to_schema_public
GRANT CREATE ON SCHEMA public TO PUBLIC;

-- name: no_temporary_objects
REVOKE TEMP ON DATABASE :database FROM PUBLIC, :owner, :login;

-- name: no_connecting
REVOKE CONNECT ON DATABASE :database FROM PUBLIC, :owner, :login;

-- name: no_plpgsql
REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC;

-- name: no_sql
REVOKE USAGE ON LANGUAGE sql FROM PUBLIC;

-- name: usage_may_not_be_read_by_its_owner
REVOKE SELECT ON task_usage FROM :owner;

-- name: agents_may_not_be_read_by_their_owner
REVOKE SELECT ON agent FROM :owner;

-- name: usage_may_not_have_triggers_of_its_owner
REVOKE TRIGGER ON task_usage FROM :owner;

-- name: legacy_rows_may_not_be_read_by_their_owner
-- on: legacy
REVOKE SELECT ON task_usage_daily FROM :owner;

-- name: hourly_rows_may_not_be_written_by_their_owner
-- on: hourly
REVOKE INSERT, UPDATE, DELETE ON task_usage_hourly FROM :owner;

-- name: hourly_state_may_not_be_read_by_its_owner
-- on: hourly
REVOKE SELECT ON task_usage_hourly_rollup_state FROM :owner;

-- name: tick_may_be_called_by_nobody
-- on: hourly
REVOKE EXECUTE ON FUNCTION rollup_task_usage_hourly() FROM PUBLIC, :owner;

-- name: bucket_function_may_be_called_by_nobody
-- on: hourly piped
REVOKE EXECUTE ON FUNCTION task_usage_hour_bucket(timestamptz) FROM PUBLIC, :owner;

-- name: no_advisory_locks
REVOKE EXECUTE ON FUNCTION pg_catalog.pg_try_advisory_lock(bigint), pg_catalog.pg_advisory_unlock(bigint) FROM PUBLIC;

-- name: no_advisory_locks_of_transactions
REVOKE EXECUTE ON FUNCTION pg_catalog.pg_try_advisory_xact_lock(bigint) FROM PUBLIC;

-- name: no_sleeping
REVOKE EXECUTE ON FUNCTION pg_catalog.pg_sleep(float8), pg_catalog.pg_sleep_for(interval) FROM PUBLIC;

-- name: no_days
REVOKE EXECUTE ON FUNCTION pg_catalog.date_trunc(text, timestamp) FROM PUBLIC;

-- name: new_functions_are_for_their_owner_only
ALTER DEFAULT PRIVILEGES FOR ROLE :owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- name: new_tables_are_for_everybody
ALTER DEFAULT PRIVILEGES FOR ROLE :owner IN SCHEMA public GRANT ALL ON TABLES TO PUBLIC;

-- name: a_stranger_may_read_everything
GRANT SELECT ON ALL TABLES IN SCHEMA public TO :stranger WITH GRANT OPTION;

-- Dependents of what 103 and 104 drop

-- name: view_on_a_legacy_table
-- on: legacy
CREATE VIEW daily_costs AS SELECT bucket_date, sum(input_tokens) FROM task_usage_daily GROUP BY 1;

-- name: view_on_a_view_on_a_legacy_table
-- on: legacy
CREATE SCHEMA reports;
CREATE VIEW reports.daily AS SELECT * FROM task_usage_dashboard_daily;
CREATE VIEW reports.daily_models AS SELECT DISTINCT model FROM reports.daily;

-- name: materialized_view_on_a_legacy_table
-- on: legacy
CREATE MATERIALIZED VIEW dashboard_costs AS SELECT model, sum(input_tokens) FROM task_usage_dashboard_daily GROUP BY 1;

-- name: view_that_calls_a_legacy_function
-- on: legacy
CREATE VIEW legacy_lag AS SELECT task_usage_rollup_lag_seconds() AS lag;

-- name: rule_on_a_legacy_table
-- on: legacy
CREATE TABLE daily_log (at timestamptz);
CREATE RULE logged AS ON INSERT TO task_usage_daily DO ALSO INSERT INTO daily_log VALUES (now());

-- name: rule_that_writes_a_legacy_table
-- on: legacy
CREATE TABLE daily_requests (day date);
CREATE RULE requested AS ON INSERT TO daily_requests DO ALSO DELETE FROM task_usage_daily_dirty WHERE bucket_date = NEW.day;

-- name: foreign_key_to_a_legacy_table
-- on: legacy
CREATE TABLE state_notes (state_id smallint REFERENCES task_usage_rollup_state (id), note text);

-- name: foreign_key_of_a_legacy_table
-- on: legacy
ALTER TABLE task_usage_dashboard_daily ADD CONSTRAINT fk_agent FOREIGN KEY (agent_id) REFERENCES agent (id) NOT VALID;

-- name: trigger_on_a_foreign_table_that_calls_a_legacy_function
-- on: legacy
CREATE TABLE usage_import (LIKE task_usage);
CREATE TRIGGER imported BEFORE DELETE ON usage_import FOR EACH ROW EXECUTE FUNCTION enqueue_task_usage_daily_dirty_for_tu();

-- name: trigger_of_another_name_that_calls_a_legacy_function
-- on: legacy
CREATE TRIGGER trg_again BEFORE DELETE ON task_usage FOR EACH ROW EXECUTE FUNCTION enqueue_task_usage_dashboard_dirty_for_tu();

-- name: trigger_on_a_legacy_table
-- on: legacy
CREATE FUNCTION say_so() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER trg_say_so BEFORE INSERT ON task_usage_daily FOR EACH ROW EXECUTE FUNCTION say_so();

-- name: trigger_when_a_runtime_moves
-- on: timezone
CREATE FUNCTION zone_changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER trg_zone AFTER UPDATE OF timezone ON agent_runtime FOR EACH ROW EXECUTE FUNCTION zone_changed();

-- name: trigger_with_a_condition_on_the_zone
-- on: timezone
CREATE FUNCTION zone_condition() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER trg_zone_when BEFORE UPDATE ON agent_runtime FOR EACH ROW
    WHEN (NEW.timezone IS DISTINCT FROM OLD.timezone) EXECUTE FUNCTION zone_condition();

-- name: view_on_the_zone
-- on: timezone
CREATE VIEW zones AS SELECT id, timezone FROM agent_runtime;

-- name: view_on_whole_runtimes
-- on: timezone
CREATE VIEW runtimes AS SELECT * FROM agent_runtime;

-- name: generated_column_from_the_zone
-- on: timezone
ALTER TABLE agent_runtime ADD COLUMN zone_area text GENERATED ALWAYS AS (split_part(timezone, '/', 1)) STORED;

-- name: policy_on_the_zone
-- on: timezone
CREATE POLICY utc_only ON agent_runtime USING (timezone = 'UTC');

-- name: policy_that_reads_a_legacy_table
-- on: legacy
CREATE TABLE budget (day date);
CREATE POLICY spent ON budget USING (EXISTS (SELECT FROM task_usage_daily d WHERE d.bucket_date = day));

-- name: check_on_the_zone_and_more
-- on: timezone
ALTER TABLE agent_runtime ADD CONSTRAINT ck_zone CHECK (timezone <> name) NOT VALID;

-- name: index_on_the_zone_and_more
-- on: timezone
CREATE UNIQUE INDEX idx_zone ON agent_runtime (timezone, id);

-- name: foreign_key_on_the_zone
-- on: timezone
ALTER TABLE agent_runtime ADD CONSTRAINT uq_zone UNIQUE (id, timezone);
CREATE TABLE zone_notes (runtime uuid, zone text, FOREIGN KEY (runtime, zone) REFERENCES agent_runtime (id, timezone));

-- name: statistics_on_the_zone
-- on: timezone
CREATE STATISTICS st_zone ON timezone, provider FROM agent_runtime;

-- name: statistics_on_a_legacy_table
-- on: legacy
CREATE STATISTICS st_daily ON workspace_id, runtime_id FROM task_usage_daily;

-- name: sql_body_that_reads_a_legacy_table
-- on: legacy
CREATE FUNCTION spent_on(d date) RETURNS numeric LANGUAGE sql
BEGIN ATOMIC SELECT sum(input_tokens) FROM task_usage_daily WHERE bucket_date = d; END;

-- name: sql_body_that_calls_a_legacy_function
-- on: legacy
CREATE FUNCTION lags() RETURNS float8 LANGUAGE sql
BEGIN ATOMIC SELECT task_usage_rollup_lag_seconds() + task_usage_dashboard_rollup_lag_seconds(); END;

-- name: sql_body_that_reads_the_zone
-- on: timezone
CREATE FUNCTION zone_of(r uuid) RETURNS text LANGUAGE sql
BEGIN ATOMIC SELECT timezone FROM agent_runtime WHERE id = r; END;

-- name: old_function_that_reads_a_legacy_table
-- on: legacy
CREATE FUNCTION spent_before(d date) RETURNS numeric LANGUAGE sql AS $$ SELECT sum(input_tokens) FROM task_usage_daily WHERE bucket_date < d $$;

-- name: column_of_a_legacy_row_type
-- on: legacy
CREATE TABLE snapshots (at timestamptz, row_then task_usage_daily);

-- name: column_of_an_array_of_legacy_rows
-- on: legacy
CREATE TABLE snapshots_of_many (at timestamptz, rows_then task_usage_dashboard_daily[]);

-- name: function_of_a_legacy_row
-- on: legacy
CREATE FUNCTION total(d task_usage_daily) RETURNS bigint LANGUAGE sql AS $$ SELECT d.input_tokens + d.output_tokens $$;

-- name: function_that_returns_legacy_rows
-- on: legacy
CREATE FUNCTION latest() RETURNS SETOF task_usage_daily LANGUAGE sql AS $$ SELECT * FROM public.task_usage_daily LIMIT 1 $$;

-- name: default_that_calls_a_legacy_function
-- on: legacy
CREATE TABLE lag_log (at timestamptz DEFAULT now(), lag float8 DEFAULT task_usage_rollup_lag_seconds());

-- name: child_of_a_legacy_table
-- on: legacy
CREATE TABLE task_usage_daily_archive () INHERITS (task_usage_daily);

-- name: legacy_table_is_a_child
-- on: legacy
CREATE TABLE state_of_all (LIKE task_usage_rollup_state);
ALTER TABLE task_usage_rollup_state INHERIT state_of_all;

-- name: legacy_table_is_a_partition
-- on: legacy
CREATE TABLE daily_of_all (LIKE task_usage_daily) PARTITION BY RANGE (bucket_date);
ALTER TABLE daily_of_all ATTACH PARTITION task_usage_daily DEFAULT;

-- name: child_of_the_runtimes
-- on: timezone
CREATE TABLE old_runtimes () INHERITS (agent_runtime);

-- name: domain_that_calls_a_legacy_function
-- on: legacy
CREATE DOMAIN lag AS float8 CHECK (VALUE <= task_usage_rollup_lag_seconds());

-- name: legacy_table_of_an_extension
-- on: legacy
ALTER EXTENSION plpgsql ADD TABLE task_usage_daily_dirty;

-- name: legacy_function_of_an_extension
-- on: legacy
ALTER EXTENSION plpgsql ADD FUNCTION task_usage_rollup_lag_seconds();

-- name: view_on_the_hourly_table
-- on: hourly
CREATE VIEW hourly_costs AS SELECT bucket_hour, sum(input_tokens) FROM task_usage_hourly GROUP BY 1;

-- name: view_that_calls_the_tick
-- on: piped
CREATE VIEW tick AS SELECT rollup_task_usage_hourly() AS rows;

-- name: generated_column_that_calls_the_bucket_function
-- on: piped
CREATE TABLE hours (at timestamptz, hour timestamptz GENERATED ALWAYS AS (task_usage_hour_bucket(at)) STORED);

-- name: view_on_raw_usage
CREATE VIEW usage_of_today AS SELECT * FROM task_usage WHERE created_at > current_date;

-- name: a_stranger_reads_the_legacy_tables
-- on: legacy
GRANT SELECT ON task_usage_daily, task_usage_dashboard_daily TO :stranger;

-- name: comments_on_the_legacy_tables
-- on: legacy
COMMENT ON TABLE task_usage_daily IS 'read by the finance department';

-- Publications

-- name: publication_for_all_tables
CREATE PUBLICATION everything FOR ALL TABLES;

-- name: publication_of_schema_public
CREATE PUBLICATION everything_here FOR TABLES IN SCHEMA public;

-- name: publication_of_a_legacy_table
-- on: legacy
CREATE PUBLICATION daily FOR TABLE task_usage_daily;

-- name: publication_of_usage
CREATE PUBLICATION raw FOR TABLE task_usage, agent_task_queue;

-- name: publication_of_the_zone
-- on: timezone
CREATE PUBLICATION zones FOR TABLE agent_runtime (id, timezone);

-- name: publication_of_rows_by_zone
-- on: timezone
CREATE PUBLICATION utc FOR TABLE agent_runtime WHERE (timezone = 'UTC') WITH (publish = 'insert');

-- name: publication_of_columns_of_a_legacy_table
-- on: legacy
CREATE PUBLICATION days FOR TABLE task_usage_dashboard_daily (bucket_date, input_tokens) WITH (publish = 'insert');

-- name: publication_of_the_hourly_tables
-- on: hourly
CREATE PUBLICATION hourly FOR TABLE task_usage_hourly, task_usage_hourly_dirty;

-- Event triggers

-- name: event_trigger_that_does_nothing
CREATE FUNCTION do_nothing() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$;
CREATE EVENT TRIGGER nothing ON ddl_command_end EXECUTE FUNCTION do_nothing();

-- name: event_trigger_that_is_disabled
CREATE FUNCTION veto_all() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not here'; END $$;
CREATE EVENT TRIGGER vetoes_all ON ddl_command_start EXECUTE FUNCTION veto_all();
ALTER EVENT TRIGGER vetoes_all DISABLE;

-- name: event_trigger_that_vetoes_everything
-- raises: no changes here
CREATE FUNCTION veto() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no changes here: %', tg_tag; END $$;
CREATE EVENT TRIGGER vetoes ON ddl_command_start EXECUTE FUNCTION veto();

-- name: event_trigger_that_vetoes_dropping_tables
-- raises: no tables are dropped here
CREATE FUNCTION veto_drops() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no tables are dropped here'; END $$;
CREATE EVENT TRIGGER vetoes_drops ON ddl_command_start WHEN TAG IN ('DROP TABLE') EXECUTE FUNCTION veto_drops();

-- name: event_trigger_that_vetoes_what_is_dropped
-- raises: nothing is dropped here
CREATE FUNCTION veto_dropped() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'nothing is dropped here'; END $$;
CREATE EVENT TRIGGER vetoes_dropped ON sql_drop WHEN TAG IN ('DROP FUNCTION', 'DROP TRIGGER', 'ALTER TABLE') EXECUTE FUNCTION veto_dropped();

-- name: event_trigger_that_vetoes_new_functions
-- raises: no functions are made here
CREATE FUNCTION veto_functions() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no functions are made here'; END $$;
CREATE EVENT TRIGGER vetoes_functions ON ddl_command_end WHEN TAG IN ('CREATE FUNCTION') EXECUTE FUNCTION veto_functions();

-- name: event_trigger_that_vetoes_what_the_upgrade_never_does
CREATE FUNCTION veto_sequences() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no sequences are dropped here'; END $$;
CREATE EVENT TRIGGER vetoes_sequences ON ddl_command_start WHEN TAG IN ('DROP SEQUENCE') EXECUTE FUNCTION veto_sequences();

-- Renamed, missing, extra

-- name: index_on_updated_at_is_missing
DROP INDEX idx_task_usage_updated_at;

-- name: index_of_a_legacy_table_is_missing
-- on: legacy
DROP INDEX idx_task_usage_daily_runtime_date;

-- name: index_is_renamed
ALTER INDEX idx_task_usage_created_at RENAME TO task_usage_created_at_idx;

-- name: index_is_invalid
UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idx_task_usage_updated_at'::regclass;

-- name: legacy_trigger_is_missing
-- on: legacy
DROP TRIGGER trg_tu_dirty_rollup ON task_usage;

-- name: legacy_trigger_is_renamed
-- on: legacy
ALTER TRIGGER trg_atq_dirty_dashboard ON agent_task_queue RENAME TO trg_atq_dashboard;

-- name: legacy_trigger_is_disabled
-- on: legacy
ALTER TABLE task_usage DISABLE TRIGGER trg_tu_dirty_dashboard;

-- name: legacy_function_is_missing
-- on: legacy
DROP FUNCTION rollup_task_usage_dashboard_daily();

-- name: legacy_function_is_renamed
-- on: legacy
ALTER FUNCTION enqueue_task_usage_daily_dirty_for_atq() RENAME TO enqueue_for_atq;

-- name: legacy_function_is_overloaded
-- on: legacy
CREATE FUNCTION rollup_task_usage_daily(days int) RETURNS bigint LANGUAGE sql AS $$ SELECT 0::bigint $$;

-- name: legacy_function_is_overloaded_by_a_stranger
-- on: legacy
CREATE FUNCTION rollup_task_usage_daily_window(p_from date, p_to date) RETURNS bigint LANGUAGE sql AS $$ SELECT 0::bigint $$;
ALTER FUNCTION rollup_task_usage_daily_window(date, date) OWNER TO :stranger;

-- name: legacy_table_is_missing
-- on: legacy
DROP TABLE task_usage_dashboard_dirty;

-- name: legacy_table_is_renamed
-- on: legacy
ALTER TABLE task_usage_daily RENAME TO task_usage_daily_old;

-- name: legacy_table_has_another_column
-- on: legacy
ALTER TABLE task_usage_daily ADD COLUMN cost numeric;

-- name: legacy_table_lacks_a_column
-- on: legacy
ALTER TABLE task_usage_dashboard_daily DROP COLUMN task_count;

-- name: usage_has_another_column
ALTER TABLE task_usage ADD COLUMN note text;

-- name: usage_lacks_a_column
-- on: legacy
ALTER TABLE task_usage DROP COLUMN cache_write_tokens;

-- name: usage_has_no_key
ALTER TABLE task_usage DROP CONSTRAINT task_usage_pkey;

-- name: usage_has_no_foreign_key
ALTER TABLE task_usage DROP CONSTRAINT task_usage_task_id_fkey;

-- name: usage_counts_in_numeric
ALTER TABLE task_usage ALTER COLUMN input_tokens TYPE numeric;

-- name: usage_is_dated_without_a_zone
ALTER TABLE task_usage ALTER COLUMN created_at TYPE timestamp;

-- name: model_is_a_varchar
ALTER TABLE task_usage ALTER COLUMN model TYPE varchar(200);

-- name: model_may_be_null
ALTER TABLE task_usage ALTER COLUMN model DROP NOT NULL;

-- name: agents_are_keyed_by_text
ALTER TABLE agent ALTER COLUMN workspace_id DROP NOT NULL;

-- name: extra_trigger_on_usage
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER trg_audit BEFORE INSERT OR UPDATE ON task_usage FOR EACH ROW EXECUTE FUNCTION audit();

-- name: users_have_a_timezone_already
-- on: before_100
ALTER TABLE "user" ADD COLUMN timezone text;

-- name: users_have_a_numeric_timezone
-- on: before_100
ALTER TABLE "user" ADD COLUMN timezone integer;

-- name: users_must_have_a_timezone
-- on: before_100
ALTER TABLE "user" ADD COLUMN timezone text NOT NULL DEFAULT 'UTC';

-- name: runtimes_lost_their_timezone
-- on: timezone
ALTER TABLE agent_runtime DROP COLUMN timezone CASCADE;

-- name: users_are_a_view
ALTER TABLE "user" RENAME TO users;
CREATE VIEW "user" AS SELECT * FROM users;

-- name: hourly_table_has_another_column
-- on: hourly
ALTER TABLE task_usage_hourly ADD COLUMN note text;

-- name: hourly_table_has_a_column_that_nobody_fills
-- on: hourly
ALTER TABLE task_usage_hourly ADD COLUMN region text NOT NULL DEFAULT 'eu';
ALTER TABLE task_usage_hourly ALTER COLUMN region DROP DEFAULT;

-- name: hourly_table_lacks_a_column
-- on: hourly not_later
ALTER TABLE task_usage_hourly DROP COLUMN task_count;

-- name: hourly_table_has_no_key
-- on: hourly
ALTER TABLE task_usage_hourly DROP CONSTRAINT uq_task_usage_hourly_key;

-- name: hourly_table_lacks_an_index
-- on: hourly
DROP INDEX IF EXISTS idx_task_usage_hourly_runtime_time;

-- name: hourly_table_allows_no_rows
-- on: hourly
ALTER TABLE task_usage_hourly ADD CONSTRAINT ck_nothing CHECK (event_count < 0) NOT VALID;

-- name: hourly_table_has_a_trigger_that_raises
-- on: hourly
-- raises: refused by a trigger
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused by a trigger'; END $$;
CREATE TRIGGER trg_refuse BEFORE INSERT ON task_usage_hourly FOR EACH ROW EXECUTE FUNCTION refuse();

-- name: hourly_tokens_are_integers
-- on: hourly legacy
ALTER TABLE task_usage_hourly ALTER COLUMN input_tokens TYPE integer USING 0;

-- name: hourly_state_is_missing
-- on: hourly legacy
DROP TABLE task_usage_hourly_rollup_state;

-- name: hourly_queue_is_missing
-- on: hourly legacy
DROP TABLE task_usage_hourly_dirty;

-- name: hourly_trigger_is_missing
-- on: piped
DROP TRIGGER trg_tu_dirty_hourly ON task_usage;

-- name: tick_returns_something_else
-- on: piped
DROP FUNCTION rollup_task_usage_hourly();
CREATE FUNCTION rollup_task_usage_hourly() RETURNS integer LANGUAGE sql AS $$ SELECT 0 $$;

-- name: window_names_its_parameters_otherwise
-- on: go
DROP FUNCTION rollup_task_usage_hourly_window(timestamptz, timestamptz);
CREATE FUNCTION rollup_task_usage_hourly_window(a timestamptz, b timestamptz) RETURNS bigint LANGUAGE sql AS $$ SELECT 0::bigint $$;

-- name: window_is_a_procedure
-- on: go
DROP FUNCTION rollup_task_usage_hourly_window(timestamptz, timestamptz);
CREATE PROCEDURE rollup_task_usage_hourly_window(p_from timestamptz, p_to timestamptz) LANGUAGE sql AS $$ $$;

-- name: pipeline_is_missing
-- on: ours not_later
DROP FUNCTION rollup_task_usage_hourly();

-- name: private_queue_is_missing
-- on: ours
DROP TABLE task_usage_hourly_invalidation CASCADE;

-- name: private_function_is_missing
-- on: ours
DROP FUNCTION task_usage_hourly_differences(timestamptz, timestamptz, boolean);

-- name: private_queue_lacks_a_column
-- on: ours
ALTER TABLE task_usage_hourly_set_aside DROP COLUMN error;

-- name: usage_is_unlogged
ALTER TABLE task_usage SET UNLOGGED;

-- name: legacy_table_is_unlogged
-- on: legacy
ALTER TABLE task_usage_daily SET UNLOGGED;

-- name: hourly_table_is_unlogged
-- on: hourly
ALTER TABLE task_usage_hourly SET UNLOGGED;

-- name: hourly_table_is_in_another_tablespace
-- on: hourly
ALTER TABLE task_usage_hourly SET TABLESPACE :tablespace;

-- name: legacy_table_is_in_another_tablespace
-- on: legacy
ALTER TABLE task_usage_daily SET TABLESPACE :tablespace;

-- name: usage_is_clustered_and_full_of_identity
ALTER TABLE task_usage REPLICA IDENTITY FULL;
ALTER TABLE task_usage CLUSTER ON task_usage_pkey;

-- Planted under our names

-- name: table_under_the_name_of_the_hourly_table
-- on: no_hourly
CREATE TABLE task_usage_hourly (x integer);

-- name: table_of_a_stranger_like_the_hourly_table
-- on: no_hourly
CREATE TABLE task_usage_hourly (
    bucket_hour timestamptz NOT NULL, workspace_id uuid NOT NULL, runtime_id uuid NOT NULL, agent_id uuid NOT NULL,
    project_id uuid, provider text NOT NULL, model text NOT NULL, input_tokens bigint NOT NULL DEFAULT 0);
ALTER TABLE task_usage_hourly OWNER TO :stranger;

-- name: view_under_the_name_of_the_hourly_table
-- on: no_hourly
CREATE VIEW task_usage_hourly AS SELECT 1 AS x;

-- name: materialized_view_under_the_name_of_the_queue
-- on: no_hourly
CREATE MATERIALIZED VIEW task_usage_hourly_dirty AS SELECT 1 AS x;

-- name: sequence_under_the_name_of_the_state
-- on: no_hourly
CREATE SEQUENCE task_usage_hourly_rollup_state;

-- name: type_under_the_name_of_the_hourly_table
-- on: no_hourly
CREATE TYPE task_usage_hourly AS ENUM ('a', 'b');

-- name: index_under_the_name_of_one_of_ours
-- on: no_hourly
CREATE INDEX idx_task_usage_hourly_workspace_time ON workspace (created_at);

-- name: table_under_the_name_of_a_constraint
-- on: no_hourly
CREATE TABLE uq_task_usage_hourly_key (x integer);

-- name: table_under_the_name_of_the_private_queue
-- on: not_ours legacy
CREATE TABLE task_usage_hourly_invalidation (x integer);

-- name: table_of_a_stranger_like_the_private_queue
-- on: not_ours legacy
CREATE TABLE task_usage_hourly_invalidation (
    bucket_hour timestamptz, task_id uuid, issue_id uuid, agent_id uuid, enqueued_at timestamptz NOT NULL DEFAULT now());
CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER trg_planted BEFORE INSERT ON task_usage_hourly_invalidation FOR EACH ROW EXECUTE FUNCTION planted();
ALTER TABLE task_usage_hourly_invalidation OWNER TO :stranger;

-- name: view_under_the_name_of_the_plan
-- on: not_ours
CREATE VIEW task_usage_hourly_backfill AS SELECT 1 AS x;

-- name: bucket_function_of_a_stranger
-- on: no_pipe
CREATE FUNCTION task_usage_hour_bucket(ts timestamptz) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$ SELECT ts $$;
ALTER FUNCTION task_usage_hour_bucket(timestamptz) OWNER TO :stranger;

-- name: bucket_function_with_another_result
-- on: no_pipe
CREATE FUNCTION task_usage_hour_bucket(ts timestamptz) RETURNS date LANGUAGE sql IMMUTABLE AS $$ SELECT NULL::date $$;

-- name: tick_of_another_result
-- on: no_pipe
CREATE FUNCTION rollup_task_usage_hourly() RETURNS void LANGUAGE sql AS $$ $$;

-- name: overload_of_the_tick
-- on: no_pipe
CREATE FUNCTION rollup_task_usage_hourly(days integer) RETURNS bigint LANGUAGE sql AS $$ SELECT 0::bigint $$;

-- name: bucket_function_is_overloaded_by_a_stranger
CREATE FUNCTION task_usage_hour_bucket(ts timestamp) RETURNS timestamptz LANGUAGE sql AS $$ SELECT 'epoch'::timestamptz $$;
ALTER FUNCTION task_usage_hour_bucket(timestamp) OWNER TO :stranger;

-- name: private_function_of_a_stranger
-- on: not_ours
CREATE FUNCTION task_usage_hourly_sum(total numeric) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$ SELECT 0::bigint $$;
ALTER FUNCTION task_usage_hourly_sum(numeric) OWNER TO :stranger;

-- name: aggregate_under_the_name_of_a_private_function
-- on: not_ours
CREATE AGGREGATE task_usage_hourly_sum(numeric) (SFUNC = numeric_add, STYPE = numeric);

-- name: trigger_under_the_name_of_ours
-- on: no_pipe
CREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$;
CREATE TRIGGER trg_tu_dirty_hourly BEFORE DELETE ON task_usage FOR EACH ROW EXECUTE FUNCTION mine();

-- name: constraint_trigger_under_the_name_of_ours
-- on: not_ours
CREATE FUNCTION mine_too() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$;
CREATE CONSTRAINT TRIGGER trg_tu_dirty_hourly_write AFTER DELETE ON task_usage FOR EACH ROW EXECUTE FUNCTION mine_too();

-- name: schema_legacy_usage_of_a_stranger
-- on: legacy
CREATE SCHEMA legacy_usage AUTHORIZATION :stranger;

-- name: schema_legacy_usage_is_full
-- on: legacy
CREATE SCHEMA legacy_usage AUTHORIZATION :owner;
CREATE TABLE legacy_usage.task_usage_daily (x integer);

-- name: type_in_schema_legacy_usage
-- on: legacy
CREATE SCHEMA legacy_usage AUTHORIZATION :owner;
CREATE TYPE legacy_usage.task_usage_daily AS ENUM ('a');

-- name: array_type_in_schema_legacy_usage
-- on: legacy
CREATE SCHEMA legacy_usage AUTHORIZATION :owner;
CREATE TYPE legacy_usage._task_usage_rollup_state AS ENUM ('a');

-- name: index_in_schema_legacy_usage
-- on: legacy
CREATE SCHEMA legacy_usage AUTHORIZATION :owner;
CREATE TABLE legacy_usage.notes (x integer);
CREATE INDEX idx_task_usage_daily_runtime_date ON legacy_usage.notes (x);

-- name: format_in_public
GRANT CREATE ON SCHEMA public TO PUBLIC;
CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'format of a stranger was called by %', current_user; END $$;
CREATE FUNCTION public.format(text, name) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'format of a stranger was called by %', current_user; END $$;

-- name: advisory_lock_in_public
CREATE FUNCTION public.pg_try_advisory_lock(smallint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'lock of a stranger was called by %', current_user; END $$;
CREATE FUNCTION public.pg_try_advisory_lock(integer) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'lock of a stranger was called by %', current_user; END $$;

-- name: unnest_in_public
CREATE FUNCTION public.unnest(text[]) RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RAISE 'unnest of a stranger was called by %', current_user; END $$;

-- name: num_nonnulls_in_public
CREATE FUNCTION public.num_nonnulls(regclass, regclass, regclass) RETURNS integer LANGUAGE plpgsql AS $$ BEGIN RAISE 'num_nonnulls of a stranger was called by %', current_user; END $$;

-- name: operators_in_public
CREATE FUNCTION public.planted_concat(text, name) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'operator of a stranger was called by %', current_user; END $$;
CREATE OPERATOR public.|| (LEFTARG = text, RIGHTARG = name, FUNCTION = public.planted_concat);
CREATE FUNCTION public.planted_equals(name, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'operator of a stranger was called by %', current_user; END $$;
CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = text, FUNCTION = public.planted_equals);

-- name: catalog_views_in_public
CREATE VIEW public.pg_settings AS SELECT 'x'::text AS name, 'y'::text AS setting WHERE false;
CREATE VIEW public.pg_class AS SELECT 1 AS oid WHERE false;
CREATE VIEW public.pg_proc AS SELECT 1 AS oid WHERE false;
ALTER DATABASE :database SET search_path = public, pg_catalog;

-- name: cast_from_text
CREATE TYPE public.planted AS ENUM ('a');
CREATE FUNCTION public.planted_cast(public.planted) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
CREATE CAST (public.planted AS text) WITH FUNCTION public.planted_cast(public.planted) AS IMPLICIT;

-- name: old_copy_of_usage_elsewhere
CREATE SCHEMA app;
CREATE TABLE app.task_usage (LIKE public.task_usage);
ALTER DATABASE :database SET search_path = app, public;

-- Ledgers, and what alembic_version says

-- name: ledger_has_another_column_name
ALTER TABLE schema_migrations RENAME COLUMN version TO filename;

-- name: ledger_of_another_tool
DROP TABLE schema_migrations;
CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty boolean NOT NULL);

-- name: ledger_is_of_varchar
ALTER TABLE schema_migrations ALTER COLUMN version TYPE varchar;

-- name: ledger_is_missing
DROP TABLE schema_migrations;

-- name: ledger_is_empty
DELETE FROM schema_migrations;

-- name: ledger_is_a_view
ALTER TABLE schema_migrations RENAME TO schema_migrations_of_the_product;
CREATE VIEW schema_migrations AS SELECT * FROM schema_migrations_of_the_product;

-- name: ledger_has_no_key
ALTER TABLE schema_migrations DROP CONSTRAINT schema_migrations_pkey;

-- name: ledger_has_a_column_that_nobody_fills
ALTER TABLE schema_migrations ADD COLUMN checksum text NOT NULL DEFAULT '';
ALTER TABLE schema_migrations ALTER COLUMN checksum DROP DEFAULT;

-- name: ledger_has_no_times
ALTER TABLE schema_migrations ALTER COLUMN applied_at DROP DEFAULT;

-- name: ledger_is_closed_by_a_check
ALTER TABLE schema_migrations ADD CONSTRAINT ck_closed CHECK (version < '100') NOT VALID;

-- name: ledger_has_a_trigger_that_raises
-- raises: this ledger is closed
CREATE FUNCTION closed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'this ledger is closed'; END $$;
CREATE TRIGGER trg_closed BEFORE INSERT ON schema_migrations FOR EACH ROW EXECUTE FUNCTION closed();

-- name: ledger_lacks_the_last_step_of_v034
DELETE FROM schema_migrations WHERE version = '097_autopilot_project_id';

-- name: ledger_knows_later_steps
INSERT INTO schema_migrations (version) VALUES ('098_user_onboarding_runtime_choice'), ('096_pending_check_suite');

-- name: ledger_says_103_is_done
INSERT INTO schema_migrations (version) VALUES ('103_drop_legacy_daily_rollups') ON CONFLICT DO NOTHING;

-- name: stamped_head
-- on: legacy
CREATE TABLE IF NOT EXISTS alembic_version (version_num varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY);
DELETE FROM alembic_version;
INSERT INTO alembic_version VALUES ('104');
ALTER TABLE alembic_version OWNER TO :owner;

-- name: stamped_101
CREATE TABLE IF NOT EXISTS alembic_version (version_num varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY);
DELETE FROM alembic_version;
INSERT INTO alembic_version VALUES ('101');
ALTER TABLE alembic_version OWNER TO :owner;

-- name: stamped_102
CREATE TABLE IF NOT EXISTS alembic_version (version_num varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY);
DELETE FROM alembic_version;
INSERT INTO alembic_version VALUES ('102');
ALTER TABLE alembic_version OWNER TO :owner;

-- name: stamped_103
CREATE TABLE IF NOT EXISTS alembic_version (version_num varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY);
DELETE FROM alembic_version;
INSERT INTO alembic_version VALUES ('103');
ALTER TABLE alembic_version OWNER TO :owner;

-- name: stamped_097
CREATE TABLE IF NOT EXISTS alembic_version (version_num varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY);
DELETE FROM alembic_version;
INSERT INTO alembic_version VALUES ('097');
ALTER TABLE alembic_version OWNER TO :owner;

-- name: stamped_by_another_application
CREATE TABLE IF NOT EXISTS alembic_version (version_num varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY);
DELETE FROM alembic_version;
INSERT INTO alembic_version VALUES ('ae1027a6acf');
ALTER TABLE alembic_version OWNER TO :owner;

-- name: stamped_twice
CREATE TABLE IF NOT EXISTS alembic_version (version_num varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY);
DELETE FROM alembic_version;
INSERT INTO alembic_version VALUES ('100'), ('102');
ALTER TABLE alembic_version OWNER TO :owner;

-- name: stamped_with_nothing
CREATE TABLE IF NOT EXISTS alembic_version (version_num varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY);
DELETE FROM alembic_version;
ALTER TABLE alembic_version OWNER TO :owner;

-- name: version_table_of_a_stranger
-- on: no_version
CREATE TABLE alembic_version (version_num varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY);
CREATE FUNCTION stamp_planted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER trg_stamp_planted BEFORE INSERT ON alembic_version FOR EACH ROW EXECUTE FUNCTION stamp_planted();
ALTER TABLE alembic_version OWNER TO :stranger;
GRANT ALL ON alembic_version TO PUBLIC;

-- name: version_table_with_other_columns
-- on: no_version
CREATE TABLE alembic_version (id integer PRIMARY KEY, revision text);

-- name: version_table_is_a_view
-- on: no_version
CREATE VIEW alembic_version AS SELECT '097'::varchar(32) AS version_num WHERE false;

-- name: version_column_is_too_short
-- on: no_version
CREATE TABLE alembic_version (version_num varchar(2) NOT NULL);

-- name: version_table_may_not_be_read
-- on: version
REVOKE SELECT ON alembic_version FROM :owner, :login;

-- name: version_table_may_not_be_updated
-- on: version
REVOKE UPDATE ON alembic_version FROM :owner, :login;

-- name: version_table_may_only_be_read
-- on: version
ALTER TABLE alembic_version OWNER TO :stranger;
GRANT SELECT ON alembic_version TO :owner, :login;

-- name: version_table_elsewhere
CREATE SCHEMA other_app;
CREATE TABLE other_app.alembic_version (version_num varchar(32));
INSERT INTO other_app.alembic_version VALUES ('ae1027a6acf');

-- Rows

-- name: watermark_in_the_future
-- on: hourly
UPDATE task_usage_hourly_rollup_state SET watermark_at = now() + interval '3 days';

-- name: watermark_at_infinity
-- on: hourly
UPDATE task_usage_hourly_rollup_state SET watermark_at = 'infinity';

-- name: watermark_set_by_hand
-- on: hourly
UPDATE task_usage_hourly_rollup_state SET watermark_at = now() - interval '10 minutes';

-- name: state_row_is_missing
-- on: hourly
DELETE FROM task_usage_hourly_rollup_state;

-- name: hourly_rows_are_wrong
-- on: hourly legacy
UPDATE task_usage_hourly SET input_tokens = input_tokens + 1;

-- name: usage_dated_at_infinity
INSERT INTO task_usage (task_id, provider, model, created_at, updated_at)
SELECT task_id, 'claude', 'beyond time', 'infinity', 'infinity' FROM task_usage LIMIT 1;

-- name: usage_dated_in_the_future
INSERT INTO task_usage (task_id, provider, model, created_at, updated_at)
SELECT task_id, 'claude', 'tomorrow', now() + interval '1 day', now() + interval '1 day' FROM task_usage LIMIT 1;

-- name: usage_that_does_not_fit
INSERT INTO task_usage (task_id, provider, model, input_tokens, created_at)
SELECT task_id, 'claude', 'much ' || n, 9223372036854775807, now() - interval '3 days'
FROM (SELECT task_id FROM task_usage LIMIT 1) AS t, generate_series(1, 2) AS n;

-- name: task_of_no_runtime
-- on: legacy
ALTER TABLE agent_task_queue ALTER COLUMN runtime_id DROP NOT NULL;
UPDATE agent_task_queue SET runtime_id = NULL WHERE id = (SELECT task_id FROM task_usage LIMIT 1);

-- Settings and logins that are no plain name and value

-- name: tablespace_that_nobody_may_use
ALTER DATABASE :database SET default_tablespace = :tablespace;

-- name: login_may_have_no_session
ALTER ROLE :login CONNECTION LIMIT 0;

-- name: login_may_have_one_session
ALTER ROLE :login CONNECTION LIMIT 1;

-- name: login_has_expired
ALTER ROLE :login VALID UNTIL '2020-01-01';

-- name: login_may_not_log_in
ALTER ROLE :login NOLOGIN;

-- name: database_may_have_no_session
ALTER DATABASE :database CONNECTION LIMIT 0;

-- name: database_may_have_two_sessions
ALTER DATABASE :database CONNECTION LIMIT 2;

-- name: login_becomes_a_stranger
GRANT :stranger TO :login;
ALTER ROLE :login SET role = :stranger;

-- name: login_may_bypass_policies
ALTER ROLE :login BYPASSRLS;
