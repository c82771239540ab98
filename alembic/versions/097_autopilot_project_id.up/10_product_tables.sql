-- 097_autopilot_project_id: the v0.3.4 baseline.
--
-- What      The 14 relations that revisions 100-104 stand on: eight product tables, and the two legacy rollup pipelines
--           (daily, dashboard) with their 12 functions and 6 triggers. Names and meanings are those of v0.3.4.
-- Why now   A fresh database has no v0.3.4 to adopt. It begins here, so that one chain serves it and the field alike;
--           databases that met the Go runner are adopted at this revision and never run this file.
-- Assumes   A database without these objects (any of them makes a CREATE fail, and the transaction with it), schema
--           public, PostgreSQL 15 or newer for UNIQUE NULLS NOT DISTINCT.
-- Locks     None that anybody could wait for: every table is new.
-- Undone    By 097_autopilot_project_id.down.sql, while the product tables are empty. Revision 103 drops both pipelines.


-- Product tables, each after the ones it refers to. CHECK, UNIQUE and FOREIGN KEY constraints stay inline and unnamed
-- because the field knows them by PostgreSQL's default names; a name is given only where the field has another one.

CREATE TABLE public."user" (
    id                  uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name                text NOT NULL,
    email               text NOT NULL UNIQUE,
    avatar_url          text,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    profile_description text NOT NULL DEFAULT ''
);
COMMENT ON TABLE public."user" IS 'People who sign in.';

CREATE TABLE public.workspace (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name          text NOT NULL,
    slug          text NOT NULL UNIQUE,
    description   text,
    settings      jsonb NOT NULL DEFAULT '{}',
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    issue_prefix  text NOT NULL DEFAULT '',
    issue_counter int NOT NULL DEFAULT 0
);
COMMENT ON TABLE public.workspace IS 'Tenants. Deleting one deletes everything in it.';

CREATE TABLE public.agent_runtime (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id uuid NOT NULL REFERENCES public.workspace (id) ON DELETE CASCADE,
    daemon_id    text,
    name         text NOT NULL,
    runtime_mode text NOT NULL CHECK (runtime_mode IN ('local', 'cloud')),
    provider     text NOT NULL,
    status       text NOT NULL DEFAULT 'offline' CHECK (status IN ('online', 'offline')),
    device_info  text NOT NULL DEFAULT '',
    metadata     jsonb NOT NULL DEFAULT '{}',
    last_seen_at timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    owner_id     uuid REFERENCES public."user" (id),
    timezone     text NOT NULL DEFAULT 'UTC',
    visibility   text NOT NULL DEFAULT 'private' CHECK (visibility IN ('private', 'public')),
    UNIQUE (workspace_id, daemon_id, provider)
);
CREATE INDEX idx_agent_runtime_status ON public.agent_runtime (workspace_id, status);
CREATE INDEX idx_agent_runtime_workspace ON public.agent_runtime (workspace_id);
COMMENT ON TABLE public.agent_runtime IS 'Where agents run: one row per daemon and provider, or a cloud runtime.';
COMMENT ON COLUMN public.agent_runtime.timezone IS
    'IANA zone that the daemon registered with. task_usage_daily takes its calendar days from it.';

CREATE TABLE public.agent (
    id                   uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id         uuid NOT NULL REFERENCES public.workspace (id) ON DELETE CASCADE,
    name                 text NOT NULL,
    runtime_mode         text NOT NULL CHECK (runtime_mode IN ('local', 'cloud')),
    runtime_config       jsonb NOT NULL DEFAULT '{}',
    visibility           text NOT NULL DEFAULT 'private' CHECK (visibility IN ('workspace', 'private')),
    status               text NOT NULL DEFAULT 'offline'
                         CHECK (status IN ('idle', 'working', 'blocked', 'error', 'offline')),
    max_concurrent_tasks int NOT NULL DEFAULT 6,
    owner_id             uuid REFERENCES public."user" (id),
    created_at           timestamptz NOT NULL DEFAULT now(),
    updated_at           timestamptz NOT NULL DEFAULT now(),
    description          text NOT NULL DEFAULT '' CHECK (char_length(description) <= 255),
    runtime_id           uuid NOT NULL REFERENCES public.agent_runtime (id) ON DELETE RESTRICT,
    instructions         text NOT NULL DEFAULT '',
    archived_at          timestamptz,
    CONSTRAINT agent_workspace_name_unique UNIQUE (workspace_id, name)
);
CREATE INDEX idx_agent_workspace ON public.agent (workspace_id);
COMMENT ON TABLE public.agent IS 'Agents. Usage belongs to the workspace of the agent that caused it.';

CREATE TABLE public.project (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id uuid NOT NULL REFERENCES public.workspace (id) ON DELETE CASCADE,
    title        text NOT NULL,
    description  text,
    status       text NOT NULL DEFAULT 'planned'
                 CHECK (status IN ('planned', 'in_progress', 'paused', 'completed', 'cancelled')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX idx_project_workspace ON public.project (workspace_id);
COMMENT ON TABLE public.project IS 'Projects that issues may be filed under.';

CREATE TABLE public.issue (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id    uuid NOT NULL REFERENCES public.workspace (id) ON DELETE CASCADE,
    title           text NOT NULL,
    description     text,
    status          text NOT NULL DEFAULT 'backlog',
    priority        text NOT NULL DEFAULT 'none',
    creator_type    text NOT NULL CHECK (creator_type IN ('member', 'agent')),
    creator_id      uuid NOT NULL,
    parent_issue_id uuid REFERENCES public.issue (id) ON DELETE SET NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    number          int NOT NULL DEFAULT 0,
    project_id      uuid REFERENCES public.project (id) ON DELETE SET NULL,
    CONSTRAINT uq_issue_workspace_number UNIQUE (workspace_id, number)
);
CREATE INDEX idx_issue_project ON public.issue (project_id);
CREATE INDEX idx_issue_workspace ON public.issue (workspace_id);
CREATE INDEX idx_issue_parent ON public.issue (parent_issue_id);
CREATE INDEX idx_issue_status ON public.issue (workspace_id, status);
COMMENT ON TABLE public.issue IS 'Issues. Usage belongs to the project its issue is filed under now.';

CREATE TABLE public.agent_task_queue (
    id             uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    agent_id       uuid NOT NULL REFERENCES public.agent (id) ON DELETE CASCADE,
    issue_id       uuid REFERENCES public.issue (id) ON DELETE CASCADE,
    status         text NOT NULL DEFAULT 'queued'
                   CHECK (status IN ('queued', 'dispatched', 'running', 'completed', 'failed', 'cancelled')),
    priority       int NOT NULL DEFAULT 0,
    dispatched_at  timestamptz,
    started_at     timestamptz,
    completed_at   timestamptz,
    result         jsonb,
    error          text,
    created_at     timestamptz NOT NULL DEFAULT now(),
    runtime_id     uuid NOT NULL REFERENCES public.agent_runtime (id) ON DELETE CASCADE,
    parent_task_id uuid REFERENCES public.agent_task_queue (id) ON DELETE SET NULL
);
CREATE INDEX idx_agent_task_queue_issue_id ON public.agent_task_queue (issue_id);
CREATE INDEX idx_agent_task_queue_agent ON public.agent_task_queue (agent_id, status);
CREATE INDEX idx_agent_task_queue_parent ON public.agent_task_queue (parent_task_id);
CREATE UNIQUE INDEX idx_one_pending_task_per_issue_agent ON public.agent_task_queue (issue_id, agent_id)
    WHERE status IN ('queued', 'dispatched');
COMMENT ON TABLE public.agent_task_queue IS 'Tasks, waiting and done. Finished tasks stay: usage hangs on them.';

CREATE TABLE public.task_usage (
    id                 uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    task_id            uuid NOT NULL REFERENCES public.agent_task_queue (id) ON DELETE CASCADE,
    provider           text NOT NULL DEFAULT '',
    model              text NOT NULL,
    input_tokens       bigint NOT NULL DEFAULT 0,
    output_tokens      bigint NOT NULL DEFAULT 0,
    cache_read_tokens  bigint NOT NULL DEFAULT 0,
    cache_write_tokens bigint NOT NULL DEFAULT 0,
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz DEFAULT now(),
    UNIQUE (task_id, provider, model)
);
CREATE INDEX idx_task_usage_created_at ON public.task_usage (created_at);
CREATE INDEX idx_task_usage_updated_at ON public.task_usage (updated_at);
CREATE INDEX idx_task_usage_task_id ON public.task_usage (task_id);
CREATE INDEX idx_task_usage_created_at_legacy ON public.task_usage (created_at) WHERE updated_at IS NULL;
COMMENT ON TABLE public.task_usage IS
    'Raw token counters per task, provider and model; a later report replaces them. Every rollup derives from here.';
COMMENT ON COLUMN public.task_usage.updated_at IS
    'When the counters were last replaced. NULL on rows older than the column: created_at stands in.';
