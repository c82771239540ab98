"""What the product's own runner, written in Go, leaves behind: its 102 to 104 and its ledger."""

from __future__ import annotations

from tests.support.database import Database, MakeDatabase
from usage_rollup.contract import LEGACY, STEMS

# The Go release's 102: names and signatures of the contract, bodies that show who wrote them.
GO_102 = """
CREATE FUNCTION task_usage_hour_bucket(ts timestamptz) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS
$$SELECT date_trunc('hour', ts, 'UTC') /* go */$$;
CREATE FUNCTION enqueue_task_usage_hourly_dirty_for_atq() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN /* go */ RETURN COALESCE(NEW, OLD); END$$;
CREATE FUNCTION enqueue_task_usage_hourly_dirty_for_issue_delete() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN /* go */ RETURN OLD; END$$;
CREATE FUNCTION enqueue_task_usage_hourly_dirty_for_issue_project() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN /* go */ RETURN NEW; END$$;
CREATE FUNCTION enqueue_task_usage_hourly_dirty_for_tu() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN /* go */ RETURN OLD; END$$;
CREATE TRIGGER trg_atq_dirty_hourly BEFORE UPDATE OF runtime_id, issue_id OR DELETE ON agent_task_queue
    FOR EACH ROW EXECUTE FUNCTION enqueue_task_usage_hourly_dirty_for_atq();
CREATE TRIGGER trg_issue_delete_dirty_hourly BEFORE DELETE ON issue
    FOR EACH ROW EXECUTE FUNCTION enqueue_task_usage_hourly_dirty_for_issue_delete();
CREATE TRIGGER trg_issue_project_dirty_hourly BEFORE UPDATE OF project_id ON issue
    FOR EACH ROW EXECUTE FUNCTION enqueue_task_usage_hourly_dirty_for_issue_project();
CREATE TRIGGER trg_tu_dirty_hourly BEFORE DELETE ON task_usage
    FOR EACH ROW EXECUTE FUNCTION enqueue_task_usage_hourly_dirty_for_tu();
CREATE FUNCTION rollup_task_usage_hourly_window(p_from timestamptz, p_to timestamptz) RETURNS bigint
LANGUAGE plpgsql AS $$BEGIN /* go */ RETURN 0; END$$;
CREATE FUNCTION rollup_task_usage_hourly() RETURNS bigint LANGUAGE plpgsql AS
$$BEGIN /* go */ RETURN 0; END$$;
CREATE FUNCTION prune_task_usage_hourly_dirty(p_retention interval DEFAULT '7 days') RETURNS bigint
LANGUAGE plpgsql AS $$BEGIN /* go */ RETURN 0; END$$;
CREATE FUNCTION task_usage_hourly_rollup_lag_seconds() RETURNS double precision LANGUAGE sql AS
$$SELECT 0::double precision /* go */$$
"""
# The Go release's way back: what it made, by name and signature, and without CASCADE.
GO_102_DOWN = """
DROP TRIGGER IF EXISTS trg_tu_dirty_hourly ON task_usage;
DROP TRIGGER IF EXISTS trg_issue_project_dirty_hourly ON issue;
DROP TRIGGER IF EXISTS trg_issue_delete_dirty_hourly ON issue;
DROP TRIGGER IF EXISTS trg_atq_dirty_hourly ON agent_task_queue;
DROP FUNCTION IF EXISTS enqueue_task_usage_hourly_dirty_for_tu();
DROP FUNCTION IF EXISTS enqueue_task_usage_hourly_dirty_for_issue_project();
DROP FUNCTION IF EXISTS enqueue_task_usage_hourly_dirty_for_issue_delete();
DROP FUNCTION IF EXISTS enqueue_task_usage_hourly_dirty_for_atq();
DROP FUNCTION IF EXISTS task_usage_hourly_rollup_lag_seconds();
DROP FUNCTION IF EXISTS prune_task_usage_hourly_dirty(interval);
DROP FUNCTION IF EXISTS rollup_task_usage_hourly();
DROP FUNCTION IF EXISTS rollup_task_usage_hourly_window(timestamptz, timestamptz);
DROP FUNCTION IF EXISTS task_usage_hour_bucket(timestamptz)
"""
GO_101_DOWN = """
DROP TABLE IF EXISTS task_usage_hourly_rollup_state;
DROP TABLE IF EXISTS task_usage_hourly_dirty;
DROP TABLE IF EXISTS task_usage_hourly
"""


def run_sql(database: Database, script: str) -> None:
    """Run many statements in one transaction, as the Go runner applies a file."""
    with database.connect() as connection:
        connection.execute(script.encode())


def record(database: Database, *stems: str) -> None:
    database.execute("INSERT INTO schema_migrations (version) SELECT unnest(%s::text[])", list(stems))


def unrecord(database: Database, *stems: str) -> None:
    database.execute("DELETE FROM schema_migrations WHERE version = ANY(%s::text[])", list(stems))


def drop_legacy(database: Database) -> None:
    """Do what the Go release's 103 does once its guard has passed."""
    run_sql(
        database,
        ";".join(
            [
                *(
                    f"DROP TRIGGER {trigger} ON {table}"
                    for table, triggers in LEGACY.triggers.items()
                    for trigger in triggers.split()
                ),
                *(f"DROP FUNCTION {function}" for function in LEGACY.functions.split()),
                *(f"DROP TABLE {table}" for table in LEGACY.columns),
            ]
        ),
    )


def drop_runtime_timezone(database: Database) -> None:
    database.execute("ALTER TABLE agent_runtime DROP COLUMN timezone")


def taken_by_go_to(make_database: MakeDatabase, revision: str) -> Database:
    """Return a database that the Go runner took from v0.3.4 to `revision`, its ledger complete."""
    if revision < "100":
        return make_database("v034")
    # 100 and 101 make the same schema whoever runs them.
    database = make_database(min(revision, "101"))
    database.execute("DROP TABLE alembic_version")
    if revision >= "102":
        run_sql(database, GO_102)
    if revision >= "103":
        drop_legacy(database)
    if revision >= "104":
        drop_runtime_timezone(database)
    record(database, *(STEMS[r] for r in STEMS if "101" < r <= revision))
    return database
