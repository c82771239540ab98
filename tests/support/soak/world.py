"""What one writer's workspaces hold, in memory, and what the product's server does to them.

A verb draws what it does, changes a world and returns the statements that do the same to the database. So a
writer knows what must be there, whatever becomes of the server.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any, TypeVar
from uuid import UUID

import psycopg

from tests.support.product import COUNTS, counts

Statement = tuple[str, Sequence[Any]]
Usage = tuple[UUID, str, str]  # task, provider, model
T = TypeVar("T")

MODELS = (("claude", "claude-sonnet-4-5"), ("codex", "gpt-5-codex"), ("", "gpt-5-mini"))

# Workspaces besides the first; they come and go.
GUESTS = 2


@dataclass
class World:
    """The rows of one writer: nobody else writes in its workspaces. The first one is never torn down."""

    home: UUID
    workspaces: set[UUID] = field(default_factory=set)
    runtimes: dict[UUID, UUID] = field(default_factory=dict)  # workspace
    agents: dict[UUID, tuple[UUID, UUID]] = field(default_factory=dict)  # workspace, runtime
    projects: dict[UUID, UUID] = field(default_factory=dict)  # workspace
    issues: dict[UUID, tuple[UUID, UUID | None]] = field(default_factory=dict)  # workspace, project
    tasks: dict[UUID, tuple[UUID, UUID, UUID | None]] = field(default_factory=dict)  # agent, runtime, issue
    usage: dict[Usage, int] = field(default_factory=dict)  # input tokens

    def copy(self) -> World:
        return World(self.home, *(getattr(self, part.name).copy() for part in fields(self)[1:]))

    def difference(self, other: World) -> str:
        """Name the parts that differ, and how many rows of each."""
        parts = []
        for part in fields(self)[1:]:
            mine, others = (
                {(key, world[key]) if isinstance(world, dict) else key for key in world}
                for world in (getattr(self, part.name), getattr(other, part.name))
            )
            if mine != others:
                parts.append(
                    f"{part.name}: {len(mine - others)} rows missing, {len(others - mine)} too many;"
                    f" {[*map(str, mine ^ others)][:4]}"
                )
        return "; ".join(parts)


def read(connection: psycopg.Connection[Any], home: UUID, workspaces: set[UUID]) -> World:
    """Return what the database holds in these workspaces, all of one snapshot."""
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")

    def rows(query: str) -> list[tuple[Any, ...]]:
        return connection.execute(query, [list(workspaces)]).fetchall()

    return World(
        home,
        {row[0] for row in rows("SELECT id FROM workspace WHERE id = ANY(%s)")},
        dict(rows("SELECT id, workspace_id FROM agent_runtime WHERE workspace_id = ANY(%s)")),
        {
            row[0]: row[1:]
            for row in rows("SELECT id, workspace_id, runtime_id FROM agent WHERE workspace_id = ANY(%s)")
        },
        dict(rows("SELECT id, workspace_id FROM project WHERE workspace_id = ANY(%s)")),
        {
            row[0]: row[1:]
            for row in rows("SELECT id, workspace_id, project_id FROM issue WHERE workspace_id = ANY(%s)")
        },
        {
            row[0]: row[1:]
            for row in rows(
                "SELECT q.id, agent_id, q.runtime_id, issue_id FROM agent_task_queue q"
                " JOIN agent a ON a.id = agent_id WHERE workspace_id = ANY(%s)"
            )
        },
        {
            row[:3]: row[3]
            for row in rows(
                "SELECT task_id, u.provider, model, input_tokens FROM task_usage u"
                " JOIN agent_task_queue q ON q.id = task_id"
                " JOIN agent a ON a.id = agent_id WHERE workspace_id = ANY(%s)"
            )
        },
    )


def _id(rng: Random) -> UUID:
    return uuid.UUID(int=rng.getrandbits(128), version=4)


def _any(rng: Random, choices: Sequence[T] | dict[T, Any] | set[T]) -> T | None:
    return rng.choice(list(choices)) if choices else None


# Usage

_UPSERT = (
    f"INSERT INTO public.task_usage (task_id, provider, model, {COUNTS}) VALUES (%s, %s, %s, %s, %s, %s, %s)"
    " ON CONFLICT (task_id, provider, model) DO UPDATE SET input_tokens = EXCLUDED.input_tokens,"
    " output_tokens = EXCLUDED.output_tokens, cache_read_tokens = EXCLUDED.cache_read_tokens,"
    " cache_write_tokens = EXCLUDED.cache_write_tokens, updated_at = now()"
)


def _upsert(rng: Random, world: World, key: Usage) -> list[Statement]:
    tokens = world.usage[key] = rng.randrange(1, 100_000)
    return [(_UPSERT, [*key, *counts(tokens).values()])]


def report(rng: Random, world: World) -> list[Statement]:
    """Report usage of a task, for the first time or again; some of these tasks are a year old."""
    task = _any(rng, world.tasks)
    return _upsert(rng, world, (task, *rng.choice(MODELS))) if task else []


def correct(rng: Random, world: World) -> list[Statement]:
    key = _any(rng, world.usage)
    return _upsert(rng, world, key) if key else []


def report_many(rng: Random, world: World) -> list[Statement]:
    return [one for _ in range(rng.randint(2, 6)) for one in report(rng, world)]


def work(rng: Random, world: World) -> list[Statement]:
    """Queue a task, and report what it used."""
    agent = _any(rng, world.agents)
    if agent is None:
        return []
    workspace, runtime = world.agents[agent]
    issue = _any(rng, [i for i, (w, _) in world.issues.items() if w == workspace] + [None])
    task = _id(rng)
    world.tasks[task] = (agent, runtime, issue)
    return [
        (
            "INSERT INTO public.agent_task_queue (id, agent_id, runtime_id, issue_id, status)"
            " VALUES (%s, %s, %s, %s, 'completed')",
            [task, agent, runtime, issue],
        ),
        *_upsert(rng, world, (task, *rng.choice(MODELS))),
    ]


# Moves


def move_issue(rng: Random, world: World) -> list[Statement]:
    """File an issue under another project of its workspace, or under none."""
    issue = _any(rng, world.issues)
    if issue is None:
        return []
    workspace, _ = world.issues[issue]
    project = _any(rng, [p for p, w in world.projects.items() if w == workspace] + [None])
    world.issues[issue] = (workspace, project)
    return [("UPDATE public.issue SET project_id = %s WHERE id = %s", [project, issue])]


def move_task(rng: Random, world: World) -> list[Statement]:
    """Give a task to another issue, agent and runtime of this server."""
    task, agent = _any(rng, world.tasks), _any(rng, world.agents)
    if task is None or agent is None:
        return []
    _, runtime, issue = world.tasks[task]
    what = rng.choice(("issue", "agent", "runtime"))
    if what == "issue":
        world.tasks[task] = (world.tasks[task][0], runtime, _any(rng, [*world.issues, None]))
    elif what == "agent":
        world.tasks[task] = (agent, runtime, issue)
    else:
        world.tasks[task] = (world.tasks[task][0], world.agents[agent][1], issue)
    return [
        (
            "UPDATE public.agent_task_queue SET agent_id = %s, runtime_id = %s, issue_id = %s WHERE id = %s",
            [*world.tasks[task], task],
        )
    ]


def move_agent(rng: Random, world: World) -> list[Statement]:
    """Take an agent of a guest to another workspace, its usage with it."""
    agent = _any(rng, [a for a, (w, _) in world.agents.items() if w != world.home])
    if agent is None:
        return []
    workspace = _any(rng, world.workspaces)
    assert workspace is not None
    world.agents[agent] = (workspace, world.agents[agent][1])
    return [("UPDATE public.agent SET workspace_id = %s WHERE id = %s", [workspace, agent])]


def merge_runtimes(rng: Random, world: World) -> list[Statement]:
    """Hand everything that a guest's runtime did to another one."""
    ours = [r for r, w in world.runtimes.items() if w != world.home]
    if len(ours) < 2:
        return []
    one, other = rng.sample(ours, 2)
    for task, (agent, runtime, issue) in world.tasks.items():
        if runtime == one:
            world.tasks[task] = (agent, other, issue)
    return [("UPDATE public.agent_task_queue SET runtime_id = %s WHERE runtime_id = %s", [other, one])]


# Deletions


def _without_orphans(world: World) -> None:
    """Do what the foreign keys do when something is gone."""
    world.runtimes = {r: w for r, w in world.runtimes.items() if w in world.workspaces}
    world.agents = {
        a: (w, r) for a, (w, r) in world.agents.items() if w in world.workspaces and r in world.runtimes
    }
    world.projects = {p: w for p, w in world.projects.items() if w in world.workspaces}
    world.issues = {
        i: (w, p if p in world.projects else None)
        for i, (w, p) in world.issues.items()
        if w in world.workspaces
    }
    world.tasks = {
        t: (a, r, i)
        for t, (a, r, i) in world.tasks.items()
        if a in world.agents and r in world.runtimes and (i is None or i in world.issues)
    }
    world.usage = {key: tokens for key, tokens in world.usage.items() if key[0] in world.tasks}


def delete_task(rng: Random, world: World) -> list[Statement]:
    task = _any(rng, world.tasks)
    if task is None:
        return []
    del world.tasks[task]
    _without_orphans(world)
    return [("DELETE FROM public.agent_task_queue WHERE id = %s", [task])]


def delete_usage(rng: Random, world: World) -> list[Statement]:
    key = _any(rng, world.usage)
    if key is None:
        return []
    del world.usage[key]
    return [("DELETE FROM public.task_usage WHERE (task_id, provider, model) = (%s, %s, %s)", key)]


def delete_issue(rng: Random, world: World) -> list[Statement]:
    """Delete an issue, of a guest mostly: a history that is gone after an hour is none."""
    anywhere = rng.random() < 0.1
    issue = _any(rng, [i for i, (w, _) in world.issues.items() if anywhere or w != world.home])
    if issue is None:
        return []
    del world.issues[issue]
    _without_orphans(world)
    return [("DELETE FROM public.issue WHERE id = %s", [issue])]


def delete_project(rng: Random, world: World) -> list[Statement]:
    project = _any(rng, [p for p, w in world.projects.items() if w != world.home])
    if project is None:
        return []
    del world.projects[project]
    _without_orphans(world)
    return [("DELETE FROM public.project WHERE id = %s", [project])]


def delete_runtime(rng: Random, world: World) -> list[Statement]:
    """Delete a guest's runtime, and before it the agents that live there, as the product does."""
    runtime = _any(rng, [r for r, w in world.runtimes.items() if w != world.home])
    if runtime is None:
        return []
    del world.runtimes[runtime]
    _without_orphans(world)
    return [
        ("DELETE FROM public.agent WHERE runtime_id = %s", [runtime]),
        ("DELETE FROM public.agent_runtime WHERE id = %s", [runtime]),
    ]


def tear_down(rng: Random, world: World) -> list[Statement]:
    """Delete a guest, as the product does: under 4246, for which it waits ten seconds."""
    workspace = _any(rng, world.workspaces - {world.home})
    if workspace is None:
        return []
    world.workspaces.discard(workspace)
    _without_orphans(world)
    return [
        ("SET LOCAL lock_timeout = '10s'", []),
        ("SELECT pg_advisory_xact_lock(4246)", []),
        (
            "DELETE FROM public.agent WHERE workspace_id = %s"
            " OR runtime_id IN (SELECT id FROM public.agent_runtime WHERE workspace_id = %s)",
            [workspace, workspace],
        ),
        ("DELETE FROM public.workspace WHERE id = %s", [workspace]),
    ]


# What comes new


def settle_in(rng: Random, world: World) -> list[Statement]:
    """Make a workspace with two of everything; agents come with their first tasks."""
    if len(world.workspaces) > GUESTS:
        return []
    workspace = _id(rng)
    world.workspaces.add(workspace)
    statements: list[Statement] = [
        (
            "INSERT INTO public.workspace (id, name, slug) VALUES (%s, 'guest', %s)",
            [workspace, str(workspace)],
        )
    ]
    for number in range(2):
        runtime, agent, project, issue = (_id(rng) for _ in range(4))
        world.runtimes[runtime] = workspace
        world.agents[agent] = (workspace, runtime)
        world.projects[project] = workspace
        world.issues[issue] = (workspace, project)
        statements += [
            _register(runtime, workspace),
            (
                "INSERT INTO public.agent (id, workspace_id, name, runtime_mode, runtime_id)"
                " VALUES (%s, %s, %s, 'local', %s)",
                [agent, workspace, str(agent), runtime],
            ),
            (
                "INSERT INTO public.project (id, workspace_id, title) VALUES (%s, %s, 'guest')",
                [project, workspace],
            ),
            (
                "INSERT INTO public.issue"
                " (id, workspace_id, title, creator_type, creator_id, number, project_id)"
                " VALUES (%s, %s, 'guest', 'member', %s, %s, %s)",
                [issue, workspace, issue, number, project],
            ),
        ]
    return statements


def _register(runtime: UUID, workspace: UUID) -> Statement:
    return (
        "INSERT INTO public.agent_runtime (id, workspace_id, daemon_id, name, runtime_mode, provider)"
        " VALUES (%s, %s, %s, 'daemon', 'local', 'claude')",
        [runtime, workspace, str(runtime)],
    )


def change_zone(rng: Random, world: World) -> list[Statement]:
    """Write what a v0.3.4 daemon says of its time zone when it registers; later releases have no column."""
    runtime = _any(rng, world.runtimes)
    if runtime is None:
        return []
    zone = rng.choice(("UTC", "Asia/Kathmandu", "America/New_York", "Australia/Lord_Howe"))
    return [("UPDATE public.agent_runtime SET timezone = %s WHERE id = %s", [zone, runtime])]


VERBS: dict[Callable[[Random, World], list[Statement]], int] = {
    report: 30,
    correct: 10,
    report_many: 8,
    work: 24,
    move_issue: 6,
    move_task: 6,
    move_agent: 1,
    merge_runtimes: 1,
    delete_task: 4,
    delete_usage: 3,
    delete_issue: 2,
    delete_project: 1,
    delete_runtime: 1,
    tear_down: 1,
    settle_in: 4,
    change_zone: 1,
}
