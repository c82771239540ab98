"""Write rows the way the product does: helpers for tests that need a few and know each one.

Every helper takes a connection, whose transaction it joins, or a URL, and then commits at once.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import md5
from typing import Any
from uuid import UUID

import psycopg

from tests.support.closing import Session
from tests.support.deadline import DEADLINE_S

Target = psycopg.Connection[Any] | str

# A datetime, or text that PostgreSQL reads: psycopg's datetime knows no infinity.
Timestamp = datetime | str

# The server leaves updated_at alone on insert, so both columns get its transaction's now().
AS_CREATED: Timestamp = "as created"

# Random text, which does not compress: longer than an index row of the hourly table may be, and short
# enough for task_usage's own.
LONG_MODEL = "".join(md5(str(number).encode()).hexdigest() for number in range(1, 83))

# How far each count of a report is from what a test asks for: a column that took another one's place shows in
# every bucket. Together nothing, so that a report of 100 holds 400 tokens.
_APART = {"input_tokens": 0, "output_tokens": 1, "cache_read_tokens": 2, "cache_write_tokens": -3}

# The columns of counts, and their parameters, as a statement names them.
COUNTS = ", ".join(_APART)
_COUNTED = ", ".join(f"%({column})s" for column in _APART)


def counts(tokens: int) -> dict[str, int]:
    """Return what a report of `tokens` counts, by column: no two alike, where bigint has room."""
    return {column: max(-(2**63), min(tokens + apart, 2**63 - 1)) for column, apart in _APART.items()}


def utc(*parts: int) -> datetime:
    """Return an instant, its parts given as UTC's."""
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


@dataclass(frozen=True)
class World:
    """Ids of what small_world() wrote, each list in the order of its comment there."""

    workspaces: tuple[UUID, UUID]
    runtimes: tuple[UUID, UUID]
    agents: tuple[UUID, UUID, UUID]
    projects: tuple[UUID, UUID]
    issues: tuple[UUID, UUID, UUID, UUID]


def small_world(target: Target) -> World:
    """Write two workspaces that share nothing, with two runtimes, three agents, four issues."""
    with _session(target) as connection:
        one, other = workspace(connection), workspace(connection)
        runtimes = runtime(connection, one), runtime(connection, other)
        # Two agents of the first workspace on one runtime, one of the second.
        agents = (
            agent(connection, one, runtimes[0]),
            agent(connection, one, runtimes[0]),
            agent(connection, other, runtimes[1]),
        )
        projects = project(connection, one), project(connection, other)
        # In the first workspace two with its project and one without any, in the second one.
        issues = (
            issue(connection, one, projects[0]),
            issue(connection, one, projects[0]),
            issue(connection, one),
            issue(connection, other, projects[1]),
        )
        return World((one, other), runtimes, agents, projects, issues)


def workspace(target: Target) -> UUID:
    return _insert(
        target,
        "INSERT INTO public.workspace (name, slug) VALUES (%(tag)s, %(tag)s) RETURNING id",
        tag=_tag("workspace"),
    )


def runtime(target: Target, workspace_id: UUID) -> UUID:
    return _insert(
        target,
        "INSERT INTO public.agent_runtime (workspace_id, daemon_id, name, runtime_mode, provider)"
        " VALUES (%(workspace_id)s, %(tag)s, %(tag)s, 'local', 'claude') RETURNING id",
        workspace_id=workspace_id,
        tag=_tag("runtime"),
    )


def agent(target: Target, workspace_id: UUID, runtime_id: UUID) -> UUID:
    return _insert(
        target,
        "INSERT INTO public.agent (workspace_id, name, runtime_mode, runtime_id)"
        " VALUES (%(workspace_id)s, %(tag)s, 'local', %(runtime_id)s) RETURNING id",
        workspace_id=workspace_id,
        runtime_id=runtime_id,
        tag=_tag("agent"),
    )


def project(target: Target, workspace_id: UUID) -> UUID:
    return _insert(
        target,
        "INSERT INTO public.project (workspace_id, title) VALUES (%(workspace_id)s, %(tag)s) RETURNING id",
        workspace_id=workspace_id,
        tag=_tag("project"),
    )


def issue(target: Target, workspace_id: UUID, project_id: UUID | None = None) -> UUID:
    return _insert(
        target,
        "INSERT INTO public.issue (workspace_id, title, creator_type, creator_id, number, project_id)"
        " SELECT %(workspace_id)s, %(tag)s, 'member', gen_random_uuid(),"
        " COALESCE(MAX(number), 0) + 1, %(project_id)s"
        " FROM public.issue WHERE workspace_id = %(workspace_id)s RETURNING id",
        workspace_id=workspace_id,
        project_id=project_id,
        tag=_tag("issue"),
    )


def task(
    target: Target,
    agent_id: UUID,
    runtime_id: UUID | None = None,
    issue_id: UUID | None = None,
    *,
    status: str = "completed",
) -> UUID:
    """Write a task, on the agent's own runtime unless another is named."""
    return _insert(
        target,
        "INSERT INTO public.agent_task_queue (agent_id, runtime_id, issue_id, status)"
        " SELECT a.id, COALESCE(%(runtime_id)s, a.runtime_id), %(issue_id)s, %(status)s"
        " FROM public.agent a WHERE a.id = %(agent_id)s RETURNING id",
        agent_id=agent_id,
        runtime_id=runtime_id,
        issue_id=issue_id,
        status=status,
    )


def usage(
    target: Target,
    task_id: UUID,
    created_at: Timestamp | None = None,
    updated_at: Timestamp | None = AS_CREATED,
    *,
    tokens: int = 100,
    provider: str = "claude",
    model: str = "claude-sonnet-4-5",
) -> UUID:
    """Write one usage row; created_at None means now().

    updated_at is that of created_at unless given; None is NULL, as on rows older than the column.
    """
    return _insert(
        target,
        f"INSERT INTO public.task_usage (task_id, provider, model, {COUNTS}, created_at, updated_at)"
        f" SELECT %(task_id)s, %(provider)s, %(model)s, {_COUNTED},"
        " created_at, CASE WHEN %(as_created)s THEN created_at ELSE %(updated_at)s::timestamptz END"
        " FROM (SELECT COALESCE(%(created_at)s::timestamptz, now()) AS created_at) AS c RETURNING id",
        task_id=task_id,
        provider=provider,
        model=model,
        **counts(tokens),
        created_at=created_at,
        as_created=updated_at == AS_CREATED,
        updated_at=None if updated_at == AS_CREATED else updated_at,
    )


def event(
    target: Target,
    world: World,
    created_at: Timestamp | None = None,
    updated_at: Timestamp | None = AS_CREATED,
    *,
    agent: int = 0,
    issue: int | None = 0,
    tokens: int = 100,
    provider: str = "claude",
    model: str = "claude-sonnet-4-5",
) -> UUID:
    """Write a task of its own and its one usage row; `agent` and `issue` count in `world`."""
    with _session(target) as connection:
        task_id = task(
            connection,
            world.agents[agent],
            issue_id=None if issue is None else world.issues[issue],
        )
        return usage(
            connection, task_id, created_at, updated_at, tokens=tokens, provider=provider, model=model
        )


def upsert_usage(
    target: Target,
    task_id: UUID,
    *,
    tokens: int = 100,
    provider: str = "claude",
    model: str = "claude-sonnet-4-5",
) -> UUID:
    """Report usage exactly as the server does."""
    return _insert(
        target,
        f"INSERT INTO public.task_usage (task_id, provider, model, {COUNTS})"
        f" VALUES (%(task_id)s, %(provider)s, %(model)s, {_COUNTED})"
        " ON CONFLICT (task_id, provider, model) DO UPDATE SET"
        " input_tokens = EXCLUDED.input_tokens, output_tokens = EXCLUDED.output_tokens,"
        " cache_read_tokens = EXCLUDED.cache_read_tokens,"
        " cache_write_tokens = EXCLUDED.cache_write_tokens, updated_at = now() RETURNING id",
        task_id=task_id,
        provider=provider,
        model=model,
        **counts(tokens),
    )


def wait_until(condition: Callable[[], object], what: str, *, every_s: float = 0.02) -> None:
    """Ask `condition` again and again until it holds; fail with `what` after DEADLINE_S."""
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up, f"never happened: {what}"
        time.sleep(every_s)


def _insert(target: Target, statement: str, **parameters: Any) -> UUID:
    with _session(target) as connection:
        row = connection.execute(statement, parameters).fetchone()
    assert row is not None
    written: UUID = row[0]
    return written


def _session(target: Target) -> AbstractContextManager[psycopg.Connection[Any]]:
    return Session.connect(target) if isinstance(target, str) else nullcontext(target)


def _tag(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:12]}"
