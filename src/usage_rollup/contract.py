"""What the field already is: the chain's names, lock numbers, and what a v0.3.4 database is made of.

A test holds the inventories equal to what revisions 097 and 101 create, as far as this chain relies on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

# The chain, by revision and ledger stem; a test holds it equal to the revision files.
STEMS = {
    "097": "097_autopilot_project_id",
    "100": "100_user_timezone",
    "101": "101_task_usage_hourly_schema",
    "102": "102_task_usage_hourly_pipeline",
    "103": "103_drop_legacy_daily_rollups",
    "104": "104_drop_runtime_timezone",
}

HEAD = max(STEMS)

# The last step of the field that this chain knows: what follows it here is ours alone, and in no database
# that the product's own runner made, whose own steps go on with other names and the same numbers.
LAST_SHARED = "104"

# The product's first step after this chain. It stands on nothing of ours; later ones may.
NEXT_STEM = "105_issue_metadata"

# A step of v0.3.17: the table of its server's own scheduler, which ticks the hourly rollup from then on.
SCHEDULER_STEM = "113_sys_cron_executions"

# Advisory locks. Held for a whole migration run, by the product's Go runner (since v0.3.15) and by ours;
# and by every writer of task_usage_hourly.
MIGRATION_RUN = 7244554146635925501
HOURLY_ROLLUP = 4246

# The guard of 103 refuses a watermark that trails the newest event by more.
LAG_THRESHOLD = timedelta(hours=1)

# The name of the pg_cron job that ticks; the product's own documentation uses it too.
TICK_JOB = "rollup_task_usage_hourly"

# Whether this database has the functions of our 102, in SQL. A later release may have replaced the window.
OUR_FUNCTIONS = "to_regprocedure('public.task_usage_hourly_slices(tstzmultirange,bigint)') IS NOT NULL"


@dataclass(frozen=True)
class Inventory:
    """Objects of schema public: columns and indexes by table, triggers by table, functions."""

    columns: dict[str, str]
    indexes: str
    triggers: dict[str, str]
    functions: str

    def tables(self) -> frozenset[str]:
        """Return the tables, as `table <name>`."""
        return frozenset(f"table {table}" for table in self.columns)

    def names(self) -> frozenset[str]:
        """Return every object, as `<kind> <name>`."""
        return self.tables() | {
            *(f"column {t}.{c}" for t, columns in self.columns.items() for c in columns.split()),
            *(f"index {name}" for name in self.indexes.split()),
            *(f"trigger {t}.{name}" for t, names in self.triggers.items() for name in names.split()),
            *(f"function {name}" for name in self.functions.split()),
        }


USER_TIMEZONE = "column user.timezone"
RUNTIME_TIMEZONE = "column agent_runtime.timezone"
PIPELINE = "function rollup_task_usage_hourly"
# Of our 102, and of no other.
OURS = "function task_usage_hourly_slices"

BASELINE = Inventory(
    columns={
        "user": "id name email avatar_url created_at updated_at profile_description",
        "workspace": "id name slug description settings created_at updated_at issue_prefix issue_counter",
        "agent_runtime": "id workspace_id daemon_id name runtime_mode provider status device_info"
        " metadata last_seen_at created_at updated_at owner_id timezone visibility",
        "agent": "id workspace_id name runtime_mode runtime_config visibility status"
        " max_concurrent_tasks owner_id created_at updated_at description runtime_id instructions"
        " archived_at",
        "project": "id workspace_id title description status created_at updated_at",
        "issue": "id workspace_id title description status priority creator_type creator_id"
        " parent_issue_id created_at updated_at number project_id",
        "agent_task_queue": "id agent_id issue_id status priority dispatched_at started_at"
        " completed_at result error created_at runtime_id parent_task_id",
        "task_usage": "id task_id provider model input_tokens output_tokens cache_read_tokens"
        " cache_write_tokens created_at updated_at",
    },
    indexes="idx_agent_runtime_status idx_agent_runtime_workspace agent_workspace_name_unique"
    " idx_agent_workspace idx_project_workspace uq_issue_workspace_number idx_issue_project"
    " idx_issue_workspace idx_issue_parent idx_issue_status idx_agent_task_queue_issue_id"
    " idx_agent_task_queue_agent idx_agent_task_queue_parent idx_one_pending_task_per_issue_agent"
    " idx_task_usage_created_at idx_task_usage_updated_at idx_task_usage_task_id"
    " idx_task_usage_created_at_legacy",
    triggers={},
    functions="",
)

_STATE = "id watermark_at last_run_started_at last_run_finished_at last_run_rows last_error"

LEGACY = Inventory(
    columns={
        "task_usage_daily": "bucket_date workspace_id runtime_id provider model input_tokens"
        " output_tokens cache_read_tokens cache_write_tokens event_count updated_at",
        "task_usage_daily_dirty": "bucket_date workspace_id runtime_id provider model enqueued_at",
        "task_usage_rollup_state": _STATE,
        "task_usage_dashboard_daily": "bucket_date workspace_id agent_id project_id model"
        " input_tokens output_tokens cache_read_tokens cache_write_tokens task_count event_count"
        " updated_at",
        "task_usage_dashboard_dirty": "bucket_date workspace_id agent_id project_id model enqueued_at",
        "task_usage_dashboard_rollup_state": _STATE,
    },
    indexes="idx_task_usage_daily_runtime_date idx_task_usage_daily_workspace_date"
    " idx_task_usage_daily_dirty_enqueued_at uq_task_usage_dashboard_daily_key"
    " idx_task_usage_dashboard_daily_workspace_date idx_task_usage_dashboard_daily_agent_date"
    " idx_task_usage_dashboard_daily_project_date uq_task_usage_dashboard_dirty_key"
    " idx_task_usage_dashboard_dirty_enqueued_at",
    triggers={
        "agent_task_queue": "trg_atq_dirty_rollup trg_atq_dirty_dashboard",
        "task_usage": "trg_tu_dirty_rollup trg_tu_dirty_dashboard",
        "issue": "trg_issue_delete_dirty_dashboard trg_issue_project_dirty_dashboard",
    },
    functions="rollup_task_usage_daily_window rollup_task_usage_daily task_usage_rollup_lag_seconds"
    " enqueue_task_usage_daily_dirty_for_atq enqueue_task_usage_daily_dirty_for_tu"
    " rollup_task_usage_dashboard_daily_window rollup_task_usage_dashboard_daily"
    " task_usage_dashboard_rollup_lag_seconds enqueue_task_usage_dashboard_dirty_for_atq"
    " enqueue_task_usage_dashboard_dirty_for_tu enqueue_task_usage_dashboard_dirty_for_issue_delete"
    " enqueue_task_usage_dashboard_dirty_for_issue_project",
)

_KEY = "bucket_hour workspace_id runtime_id agent_id project_id provider model"

# Of 101's, what a walk into an empty table leaves to its last slice: a killed one of ours has none of them.
BUILT_BY_THE_WALK = (
    "idx_task_usage_hourly_workspace_time idx_task_usage_hourly_runtime_time"
    " idx_task_usage_hourly_workspace_agent_time idx_task_usage_hourly_workspace_project_time"
)

HOURLY = Inventory(
    columns={
        "task_usage_hourly": f"{_KEY} input_tokens output_tokens cache_read_tokens"
        " cache_write_tokens task_count event_count updated_at",
        "task_usage_hourly_dirty": f"{_KEY} enqueued_at",
        "task_usage_hourly_rollup_state": _STATE,
    },
    indexes=f"uq_task_usage_hourly_key {BUILT_BY_THE_WALK}"
    " uq_task_usage_hourly_dirty_key idx_task_usage_hourly_dirty_enqueued_at",
    triggers={},
    functions="",
)
