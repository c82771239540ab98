"""The tables this project owns, as they stand at head, for `alembic check` and for readers.

`doc` says what a column means; comments in the database are checked by `usage-rollup check`. Times are
timestamptz, tokens are counts, ids are UUIDs of the product's rows.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

METADATA = sa.MetaData(schema="public")

ID, TEXT, TIME = sa.Uuid(), sa.Text(), sa.TIMESTAMP(timezone=True)
BIGINT, SMALLINT = sa.BigInteger(), sa.SmallInteger()

NOW, ZERO = sa.text("now()"), sa.text("0")


def _column(
    name: str, type_: Any, doc: str, *args: Any, null: bool = False, **options: Any
) -> sa.Column[Any]:
    """Make a column, NOT NULL unless `null`, that says what it means."""
    return sa.Column(name, type_, *args, doc=doc, nullable=null, **options)


def _tokens() -> list[sa.Column[Any]]:
    """Make the four token counters."""
    return [
        _column("input_tokens", BIGINT, "Tokens sent to the model.", server_default=ZERO),
        _column("output_tokens", BIGINT, "Tokens the model wrote.", server_default=ZERO),
        _column("cache_read_tokens", BIGINT, "Tokens read from the cache.", server_default=ZERO),
        _column("cache_write_tokens", BIGINT, "Tokens written to the cache.", server_default=ZERO),
    ]


def _bucket() -> list[sa.Column[Any]]:
    """Return the columns that name a bucket's hour and whose usage it is."""
    return [
        _column("bucket_hour", TIME, "The start of the UTC hour of task_usage.created_at."),
        _column("workspace_id", ID, "The workspace of the agent."),
        _column("runtime_id", ID, "The runtime of the task."),
        _column("agent_id", ID, "The agent of the task."),
        _column("project_id", ID, "The project of the task's issue now; NULL for none.", null=True),
    ]


def _label() -> list[sa.Column[Any]]:
    return [
        _column("provider", TEXT, "Who runs the model, as reported; may be empty."),
        _column("model", TEXT, "The model, as reported."),
    ]


def _unique_bucket(name: str, *labels: str) -> sa.UniqueConstraint:
    columns = [column.name for column in _bucket()]
    return sa.UniqueConstraint(*columns, *labels, name=name, postgresql_nulls_not_distinct=True)


def _one_row(name: str) -> tuple[sa.Column[Any], sa.CheckConstraint]:
    number = _column(
        "id",
        SMALLINT,
        "Always 1: the table has at most one row.",
        primary_key=True,
        autoincrement=False,
        server_default=sa.text("1"),
    )
    return number, sa.CheckConstraint("id = 1", name=name)


# No foreign keys here: a rollup never makes a product transaction wait or fail.

hourly = sa.Table(
    "task_usage_hourly",
    METADATA,
    *_bucket(),
    *_label(),
    *_tokens(),
    _column("task_count", BIGINT, "How many tasks used tokens.", server_default=ZERO),
    _column("event_count", BIGINT, "How many rows of task_usage it sums.", server_default=ZERO),
    _column("updated_at", TIME, "When the bucket last changed.", server_default=NOW),
    _unique_bucket("uq_task_usage_hourly_key", "provider", "model"),
)
for _name, *_by in (
    ("workspace_time", "workspace_id"),
    ("runtime_time", "runtime_id"),
    ("workspace_agent_time", "workspace_id", "agent_id"),
):
    sa.Index(f"idx_task_usage_hourly_{_name}", *(hourly.c[by] for by in _by), hourly.c.bucket_hour.desc())
sa.Index(
    "idx_task_usage_hourly_workspace_project_time",
    hourly.c.workspace_id,
    hourly.c.project_id,
    hourly.c.bucket_hour.desc(),
    postgresql_where=hourly.c.project_id.is_not(None),
)

sa.Table(
    "task_usage_hourly_dirty",
    METADATA,
    *_bucket(),
    *_label(),
    _column("enqueued_at", TIME, "When the bucket was queued.", server_default=NOW),
    _unique_bucket("uq_task_usage_hourly_dirty_key", "provider", "model"),
    sa.Index("idx_task_usage_hourly_dirty_enqueued_at", "enqueued_at"),
)

sa.Table(
    "task_usage_hourly_rollup_state",
    METADATA,
    *_one_row("task_usage_hourly_rollup_state_id_check"),
    _column(
        "watermark_at",
        TIME,
        "Every event before it is rolled up or queued.",
        server_default="1970-01-01 00:00:00+00",
    ),
    _column("last_run_started_at", TIME, "When the last tick began.", null=True),
    _column("last_run_finished_at", TIME, "When the last tick ended.", null=True),
    _column("last_run_rows", BIGINT, "Buckets the last tick changed.", server_default=ZERO),
    _column("last_error", TEXT, "Why the last tick failed; NULL after a good one.", null=True),
)

sa.Table(
    "task_usage_hourly_invalidation",
    METADATA,
    _column("bucket_hour", TIME, "The UTC hour to recompute.", null=True),
    _column("task_id", ID, "The task whose hours to recompute.", null=True),
    _column("issue_id", ID, "The issue whose tasks' hours to recompute.", null=True),
    _column("agent_id", ID, "The agent whose tasks' hours to recompute.", null=True),
    _column("enqueued_at", TIME, "When it was queued: the writer's now().", server_default=NOW),
    sa.CheckConstraint(
        "num_nonnulls(bucket_hour, task_id, issue_id, agent_id) <= 1",
        name="ck_task_usage_hourly_invalidation_subject",
    ),
)

sa.Table(
    "task_usage_hourly_backfill",
    METADATA,
    _column("from_hour", TIME, "The UTC hour the slice begins with.", primary_key=True),
    _column("to_hour", TIME, "The UTC hour it ends before."),
    _column("usage_rows", BIGINT, "Rows of task_usage in it when it was planned."),
    _column("horizon_at", TIME, "Where the watermark goes when every slice is walked."),
    _column("walked_at", TIME, "When the slice was walked; NULL until then.", null=True),
    sa.CheckConstraint("from_hour < to_hour", name="ck_task_usage_hourly_backfill_range"),
)

sa.Table(
    "task_usage_hourly_left_out",
    METADATA,
    _column("before_hour", TIME, "Usage created before it has no buckets, on purpose."),
    _column("acknowledged_at", TIME, "When that was decided.", server_default=NOW),
    _column("acknowledged_by", TEXT, "The role that did.", server_default=sa.text("SESSION_USER")),
    *_one_row("ck_task_usage_hourly_left_out_one_row"),
)

sa.Table(
    "task_usage_hourly_set_aside",
    METADATA,
    *_bucket(),
    _column("label_digest", TEXT, "A digest of provider and model, which may be too long to index."),
    _column("label_start", TEXT, "How provider and model begin."),
    _column("sqlstate", TEXT, "PostgreSQL's error code, five characters."),
    _column("error", TEXT, "PostgreSQL's message."),
    _column("set_aside_at", TIME, "When the bucket was refused.", server_default=NOW),
    _unique_bucket("uq_task_usage_hourly_set_aside_key", "label_digest"),
)

sa.Table(
    "task_usage_hourly_legacy_settings",
    METADATA,
    _column("step", TEXT, "The revision that alters or drops it.", primary_key=True),
    _column("kind", TEXT, "A table, column, index, constraint, function, trigger, reader.", primary_key=True),
    _column("relation", TEXT, "Its table; empty for a function.", primary_key=True),
    _column("name", TEXT, "Its name in the table, or empty; a signature; a role.", primary_key=True),
    _column("owner", TEXT, "The role that owned it.", null=True),
    _column("acl", postgresql.JSONB(), "Who may do what, by role; a role of null is PUBLIC.", null=True),
    _column("comment", TEXT, "Its comment; NULL for none.", null=True),
    _column("replica_identity", TEXT, "DEFAULT, FULL, NOTHING or INDEX.", null=True),
    _column("replica_index", TEXT, "The index, where that is the identity.", null=True),
    _column("options", sa.ARRAY(TEXT), "Storage parameters, as name=value.", null=True),
    _column("enabled", TEXT, "Whether, and when, a trigger fires.", null=True),
    _column("security_definer", sa.Boolean(), "Whether a function runs as its owner.", null=True),
)
