"""The product's tables as they stand at head, as far as this project reads them and relies on them.

Completes metadata.METADATA. Check constraints and comments are the product's own business.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from .metadata import ID, METADATA, NOW, OWNED, TEXT, TIME, ZERO, column, tokens

INT, JSON = sa.Integer(), JSONB()


def _key(doc: str) -> sa.Column[Any]:
    return column("id", ID, doc, primary_key=True, server_default=sa.text("gen_random_uuid()"))


def _refers(name: str, table: str, on_delete: str | None, doc: str, *, null: bool = False) -> sa.Column[Any]:
    return column(name, ID, doc, sa.ForeignKey(f"{table}.id", ondelete=on_delete), null=null)


def _written() -> tuple[sa.Column[Any], sa.Column[Any]]:
    return (
        column("created_at", TIME, "When the row was made.", server_default=NOW),
        column("updated_at", TIME, "When the row last changed.", server_default=NOW),
    )


sa.Table(
    "user",
    METADATA,
    _key("A person who signs in."),
    column("name", TEXT, "What the person is called."),
    column("email", TEXT, "Where the person signs in from.", unique=True),
    column("avatar_url", TEXT, "A picture.", null=True),
    *_written(),
    column("profile_description", TEXT, "What the person says about themselves.", server_default=""),
    column("timezone", TEXT, "IANA zone reports are read in; NULL for the browser's.", null=True),
)

sa.Table(
    "workspace",
    METADATA,
    _key("A tenant; deleting it deletes everything in it."),
    column("name", TEXT, "What the workspace is called."),
    column("slug", TEXT, "Its name in a URL.", unique=True),
    column("description", TEXT, "What it is for.", null=True),
    column("settings", JSON, "The product's settings.", server_default="{}"),
    *_written(),
    column("issue_prefix", TEXT, "What its issues' names begin with.", server_default=""),
    column("issue_counter", INT, "The number of its newest issue.", server_default=ZERO),
)

sa.Table(
    "agent_runtime",
    METADATA,
    _key("Where agents run: a daemon and a provider, or the cloud."),
    _refers("workspace_id", "workspace", "CASCADE", "The workspace it serves."),
    column("daemon_id", TEXT, "The daemon; NULL in the cloud.", null=True),
    column("name", TEXT, "What the runtime is called."),
    column("runtime_mode", TEXT, "local or cloud."),
    column("provider", TEXT, "The program that runs agents there."),
    column("status", TEXT, "online or offline.", server_default="offline"),
    column("device_info", TEXT, "What the daemon tells about its machine.", server_default=""),
    column("metadata", JSON, "What else the daemon tells.", server_default="{}"),
    column("last_seen_at", TIME, "When the daemon last called.", null=True),
    *_written(),
    _refers("owner_id", "user", None, "Whose it is.", null=True),
    column("visibility", TEXT, "private or public.", server_default="private"),
    sa.UniqueConstraint("workspace_id", "daemon_id", "provider"),
    sa.Index("idx_agent_runtime_status", "workspace_id", "status"),
    sa.Index("idx_agent_runtime_workspace", "workspace_id"),
)

sa.Table(
    "agent",
    METADATA,
    _key("An agent; its usage belongs to its workspace."),
    _refers("workspace_id", "workspace", "CASCADE", "The workspace its usage belongs to."),
    column("name", TEXT, "What the agent is called, once in a workspace."),
    column("runtime_mode", TEXT, "local or cloud."),
    column("runtime_config", JSON, "How it is run.", server_default="{}"),
    column("visibility", TEXT, "workspace or private.", server_default="private"),
    column("status", TEXT, "What it is doing.", server_default="offline"),
    column("max_concurrent_tasks", INT, "Tasks it may run at once.", server_default=sa.text("6")),
    _refers("owner_id", "user", None, "Whose it is.", null=True),
    *_written(),
    column("description", TEXT, "What it is for, 255 characters at most.", server_default=""),
    _refers("runtime_id", "agent_runtime", "RESTRICT", "Where it runs now; a task keeps its own."),
    column("instructions", TEXT, "What it is told.", server_default=""),
    column("archived_at", TIME, "When it was put away; NULL while in use.", null=True),
    sa.UniqueConstraint("workspace_id", "name", name="agent_workspace_name_unique"),
    sa.Index("idx_agent_workspace", "workspace_id"),
)

sa.Table(
    "project",
    METADATA,
    _key("A project that issues may be filed under."),
    _refers("workspace_id", "workspace", "CASCADE", "Whose project it is."),
    column("title", TEXT, "What it is called."),
    column("description", TEXT, "What it is about.", null=True),
    column("status", TEXT, "How far it is.", server_default="planned"),
    *_written(),
    sa.Index("idx_project_workspace", "workspace_id"),
)

sa.Table(
    "issue",
    METADATA,
    _key("An issue that agents work on."),
    _refers("workspace_id", "workspace", "CASCADE", "Whose issue it is; usage goes by the agent's."),
    column("title", TEXT, "What it is called."),
    column("description", TEXT, "What is to be done.", null=True),
    column("status", TEXT, "How far it is.", server_default="backlog"),
    column("priority", TEXT, "How urgent it is.", server_default="none"),
    column("creator_type", TEXT, "member or agent."),
    column("creator_id", ID, "Who made it."),
    _refers("parent_issue_id", "issue", "SET NULL", "The issue it is a part of.", null=True),
    *_written(),
    column("number", INT, "Its number in the workspace.", server_default=ZERO),
    _refers("project_id", "project", "SET NULL", "The project its usage belongs to.", null=True),
    sa.UniqueConstraint("workspace_id", "number", name="uq_issue_workspace_number"),
    sa.Index("idx_issue_project", "project_id"),
    sa.Index("idx_issue_workspace", "workspace_id"),
    sa.Index("idx_issue_parent", "parent_issue_id"),
    sa.Index("idx_issue_status", "workspace_id", "status"),
)

tasks = sa.Table(
    "agent_task_queue",
    METADATA,
    _key("A task, waiting or done."),
    _refers("agent_id", "agent", "CASCADE", "The agent its usage belongs to."),
    _refers("issue_id", "issue", "CASCADE", "The issue it is for, if any.", null=True),
    column("status", TEXT, "How far it is.", server_default="queued"),
    column("priority", INT, "Higher goes first.", server_default=ZERO),
    column("dispatched_at", TIME, "When a runtime took it.", null=True),
    column("started_at", TIME, "When the work began.", null=True),
    column("completed_at", TIME, "When the work ended.", null=True),
    column("result", JSON, "What came of it.", null=True),
    column("error", TEXT, "Why it failed.", null=True),
    column("created_at", TIME, "When the row was made.", server_default=NOW),
    _refers("runtime_id", "agent_runtime", "CASCADE", "The runtime its usage belongs to."),
    _refers("parent_task_id", "agent_task_queue", "SET NULL", "The task it follows.", null=True),
    sa.Index("idx_agent_task_queue_issue_id", "issue_id"),
    sa.Index("idx_agent_task_queue_agent", "agent_id", "status"),
    sa.Index("idx_agent_task_queue_parent", "parent_task_id"),
)
sa.Index(
    "idx_one_pending_task_per_issue_agent",
    tasks.c.issue_id,
    tasks.c.agent_id,
    unique=True,
    postgresql_where=tasks.c.status.in_(["queued", "dispatched"]),
)

usage = sa.Table(
    "task_usage",
    METADATA,
    _key("Token counters of a task, provider and model; the rollups' only source."),
    _refers("task_id", "agent_task_queue", "CASCADE", "The task that used the tokens."),
    column("provider", TEXT, "Who runs the model, as reported.", server_default=""),
    column("model", TEXT, "The model, as reported."),
    *tokens(),
    column(
        "created_at", TIME, "When first reported; decides the bucket and never changes.", server_default=NOW
    ),
    column("updated_at", TIME, "When last replaced; NULL for created_at.", null=True, server_default=NOW),
    sa.UniqueConstraint("task_id", "provider", "model"),
    sa.Index("idx_task_usage_created_at", "created_at"),
    sa.Index("idx_task_usage_updated_at", "updated_at"),
    sa.Index("idx_task_usage_task_id", "task_id"),
)
sa.Index(
    "idx_task_usage_created_at_legacy", usage.c.created_at, postgresql_where=usage.c.updated_at.is_(None)
)

PRODUCTS = frozenset(METADATA.tables) - OWNED
