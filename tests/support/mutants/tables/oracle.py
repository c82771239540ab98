"""102: what the rollup should hold, and where it differs; how the legacy rollups were set."""

from __future__ import annotations

from tests.support.mutants.mutant import Mutant

_UP = "alembic/versions/102_task_usage_hourly_pipeline.up"
SETTINGS = f"{_UP}/12_legacy_settings.sql"
EXPECTED = f"{_UP}/20_expected.sql"
DIFFERENCES = f"{_UP}/25_differences.sql"

ORACLE = "tests/hourly/test_differences.py"
VERIFY = "tests/hourly/test_verify.py"
LOSSES = "tests/stories/test_losses.py"
EXCESS = "tests/stories/test_legacy_excess.py"
WAY_BACK = "tests/runner/test_way_back.py"

# What is compared: of the expected row, and of the stored one.
_MEASURES = (
    """(e.input_tokens, e.output_tokens, e.cache_read_tokens, e.cache_write_tokens,
            e.task_count, e.event_count)""",
    """(h.input_tokens, h.output_tokens, h.cache_read_tokens,
            h.cache_write_tokens, h.task_count, h.event_count)""",
)
_COMPARED = "\n        IS DISTINCT FROM ".join(_MEASURES)
# By what they are joined, and by what a bucket that is set aside is found.
_JOINED = """(e.bucket_hour, e.workspace_id, e.runtime_id, e.agent_id, e.provider, e.model)
        = (h.bucket_hour, h.workspace_id, h.runtime_id, h.agent_id, h.provider, h.model)"""
_SET_ASIDE = """(s.bucket_hour, s.workspace_id, s.runtime_id, s.agent_id)
                = (e.bucket_hour, e.workspace_id, e.runtime_id, e.agent_id)"""
_SAME_PROJECT = """
        AND COALESCE(e.project_id, '00000000-0000-0000-0000-000000000000')
        = COALESCE(h.project_id, '00000000-0000-0000-0000-000000000000')"""
_BY_UPDATED_AT = "WHERE tu.updated_at >= v_watermark AND tu.updated_at <= v_now"
_BY_CREATED_AT = "WHERE tu.updated_at IS NULL AND tu.created_at >= v_watermark AND tu.created_at <= v_now"
_SUMS = (
    "SUM(tu.input_tokens) + SUM(tu.output_tokens) + SUM(tu.cache_read_tokens) + SUM(tu.cache_write_tokens)"
)
_OF_DAILY = "d.input_tokens::numeric + d.output_tokens + d.cache_read_tokens + d.cache_write_tokens AS tokens"
_OF_DASHBOARD = "SUM(d.input_tokens::numeric + d.output_tokens + d.cache_read_tokens + d.cache_write_tokens),"
_EVERY_STEP = "SELECT s.owner AS role FROM public.task_usage_hourly_legacy_settings s WHERE s.step = p_step\n"


def _without(column: str, text: str) -> str:
    """Return a comparison of rows in which a column is left out on both sides."""
    left_out = text
    for side in ("e", "h", "s"):
        name = f"{side}.{column}"
        for written in (f"{name}, ", f"{name},\n            ", f",\n            {name}", f", {name}"):
            if written in left_out:
                left_out = left_out.replace(written, "")
                break
    return left_out


MUTANTS: list[Mutant] = [
    # What the rollup should hold.
    Mutant(
        "a label's digest is that of both texts run together",
        EXPECTED,
        "pg_catalog.md5(p_provider) OPERATOR(pg_catalog.||) pg_catalog.md5(p_model)",
        "pg_catalog.md5(p_provider OPERATOR(pg_catalog.||) p_model)",
        ORACLE,
    ),
    Mutant(
        "the year 9999 has hours",
        EXPECTED,
        "ts OPERATOR(pg_catalog.<) '9999-01-01",
        "ts OPERATOR(pg_catalog.<=) '9999-01-01",
        f"{LOSSES} -k readable",
    ),
    Mutant(
        "the first hour of the year 1 is none",
        EXPECTED,
        "ts OPERATOR(pg_catalog.>=) '0001-01-01",
        "ts OPERATOR(pg_catalog.>) '0001-01-01",
        f"{LOSSES} -k readable",
    ),
    Mutant(
        "a sum below bigint is refused",
        EXPECTED,
        "GREATEST(LEAST(total, 9223372036854775807), -9223372036854775808)",
        "LEAST(total, 9223372036854775807)",
        ORACLE,
    ),
    Mutant(
        "what is expected has the first instant after its range",
        EXPECTED,
        "tu.created_at < p_to\n        AND public.task_usage_hourly_dated(tu.created_at) AND q.runtime_id",
        "tu.created_at <= p_to\n        AND public.task_usage_hourly_dated(tu.created_at) AND q.runtime_id",
        ORACLE,
    ),
    Mutant(
        "what is expected lacks the first instant of its range",
        EXPECTED,
        """WHERE tu.created_at >= p_from AND tu.created_at < p_to
        AND public.task_usage_hourly_dated(tu.created_at) AND q.runtime_id""",
        """WHERE tu.created_at > p_from AND tu.created_at < p_to
        AND public.task_usage_hourly_dated(tu.created_at) AND q.runtime_id""",
        ORACLE,
    ),
    Mutant(
        "usage without an issue is not expected",
        EXPECTED,
        "LEFT JOIN public.issue i ON i.id = q.issue_id\n",
        "JOIN public.issue i ON i.id = q.issue_id\n",
        ORACLE,
    ),
    Mutant(
        "usage of a task without a runtime is expected",
        EXPECTED,
        "(tu.created_at) AND q.runtime_id IS NOT NULL",
        "(tu.created_at)",
        f"{VERIFY} -k runtime",
    ),
    Mutant(
        "tokens of two kinds change places in what is expected",
        EXPECTED,
        """SUM(tu.cache_read_tokens)),
        public.task_usage_hourly_sum(SUM(tu.cache_write_tokens)),
        COUNT(*), COUNT(*)
    FROM public.task_usage tu
    JOIN public.agent_task_queue""",
        """SUM(tu.cache_write_tokens)),
        public.task_usage_hourly_sum(SUM(tu.cache_read_tokens)),
        COUNT(*), COUNT(*)
    FROM public.task_usage tu
    JOIN public.agent_task_queue""",
        ORACLE,
    ),
    Mutant(
        "tokens of one kind are counted twice where tasks are looked up",
        EXPECTED,
        """SUM(tu.output_tokens)),
        public.task_usage_hourly_sum(SUM(tu.cache_read_tokens)),
        public.task_usage_hourly_sum(SUM(tu.cache_write_tokens)),
        COUNT(*), COUNT(*)
    FROM public.task_usage tu
    JOIN tasks t""",
        """SUM(tu.input_tokens)),
        public.task_usage_hourly_sum(SUM(tu.cache_read_tokens)),
        public.task_usage_hourly_sum(SUM(tu.cache_write_tokens)),
        COUNT(*), COUNT(*)
    FROM public.task_usage tu
    JOIN tasks t""",
        ORACLE,
    ),
    Mutant(
        "tasks whose only usage opens the range are not looked up",
        EXPECTED,
        "WHERE tu.created_at >= p_from AND tu.created_at < p_to ORDER BY tu.task_id",
        "WHERE tu.created_at > p_from AND tu.created_at < p_to ORDER BY tu.task_id",
        ORACLE,
    ),
    Mutant(
        "more is summed than the range has where tasks are looked up",
        EXPECTED,
        "tu.created_at < p_to\n        AND public.task_usage_hourly_dated(tu.created_at)\n    GROUP BY",
        "tu.created_at <= p_to\n        AND public.task_usage_hourly_dated(tu.created_at)\n    GROUP BY",
        ORACLE,
    ),
    Mutant(
        "usage without an issue is not looked up",
        EXPECTED,
        "LEFT JOIN LATERAL (SELECT i.*",
        "JOIN LATERAL (SELECT i.*",
        ORACLE,
    ),
    # Which keys are wrong.
    *(
        Mutant(f"{measure} is not compared", DIFFERENCES, _COMPARED, _without(measure, _COMPARED), ORACLE)
        for measure in (
            *("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"),
            *("task_count", "event_count"),
        )
    ),
    *(
        Mutant(
            f"rows are joined whatever their {part}", DIFFERENCES, _JOINED, _without(part, _JOINED), ORACLE
        )
        for part in ("bucket_hour", "workspace_id", "runtime_id", "agent_id", "provider", "model")
    ),
    Mutant("rows are joined whatever their project", DIFFERENCES, _SAME_PROJECT, "", ORACLE),
    Mutant(
        "no project and the project of zeros are one",
        DIFFERENCES,
        "        AND (e.project_id IS NULL) = (h.project_id IS NULL)\n",
        "",
        ORACLE,
    ),
    Mutant(
        "what is stored and not expected is not wrong",
        DIFFERENCES,
        "    FULL JOIN (",
        "    LEFT JOIN (",
        ORACLE,
    ),
    Mutant(
        "what is expected and not stored is not wrong",
        DIFFERENCES,
        "    FULL JOIN (",
        "    RIGHT JOIN (",
        ORACLE,
    ),
    Mutant(
        "a range has the stored hour after it",
        DIFFERENCES,
        "AND bucket_hour < LEAST(p_to, '9999-01-01 00:00:00+00')",
        "AND bucket_hour <= LEAST(p_to, '9999-01-01 00:00:00+00')",
        ORACLE,
    ),
    Mutant(
        "a range lacks its first stored hour",
        DIFFERENCES,
        "WHERE bucket_hour >= GREATEST(p_from, '0001-01-01 00:00:00+00')",
        "WHERE bucket_hour > GREATEST(p_from, '0001-01-01 00:00:00+00')",
        ORACLE,
    ),
    Mutant(
        "buckets before all time are judged",
        DIFFERENCES,
        "WHERE bucket_hour >= GREATEST(p_from, '0001-01-01 00:00:00+00')",
        "WHERE bucket_hour >= p_from",
        ORACLE,
    ),
    Mutant(
        "buckets after all time are judged",
        DIFFERENCES,
        "AND bucket_hour < LEAST(p_to, '9999-01-01 00:00:00+00')",
        "AND bucket_hour < p_to",
        ORACLE,
    ),
    *(
        Mutant(
            f"a set-aside bucket masks others, whatever their {part}",
            DIFFERENCES,
            _SET_ASIDE,
            _without(part, _SET_ASIDE),
            ORACLE,
        )
        for part in ("bucket_hour", "workspace_id", "runtime_id", "agent_id")
    ),
    Mutant(
        "a set-aside bucket masks another of the same key",
        DIFFERENCES,
        "\n                AND s.label_digest = public.task_usage_hourly_label_digest(e.provider, e.model)))",
        "))",
        ORACLE,
    ),
    Mutant(
        "a set-aside bucket masks those of other projects",
        DIFFERENCES,
        "                AND s.project_id IS NOT DISTINCT FROM e.project_id\n",
        "",
        ORACLE,
    ),
    Mutant(
        "a set-aside bucket without a project is wrong for ever",
        DIFFERENCES,
        "AND s.project_id IS NOT DISTINCT FROM e.project_id",
        "AND s.project_id = e.project_id",
        ORACLE,
    ),
    Mutant(
        "a stored bucket that is set aside may hold anything",
        DIFFERENCES,
        "AND NOT (h.bucket_hour IS NULL AND EXISTS (",
        "AND NOT (EXISTS (",
        ORACLE,
    ),
    # Which hours are pending.
    Mutant(
        "what is pending differs",
        DIFFERENCES,
        "WHERE p_pending OR k.bucket_hour NOT IN (SELECT public.task_usage_hourly_pending_hours())",
        "WHERE true",
        ORACLE,
    ),
    Mutant(
        "what is pending is passed over by who asks for it",
        DIFFERENCES,
        "WHERE p_pending OR k.bucket_hour NOT IN",
        "WHERE k.bucket_hour NOT IN",
        ORACLE,
    ),
    Mutant(
        "an event at the watermark is not pending",
        DIFFERENCES,
        _BY_UPDATED_AT,
        _BY_UPDATED_AT.replace(">=", ">"),
        ORACLE,
    ),
    Mutant(
        "an event in the future is pending until then",
        DIFFERENCES,
        _BY_UPDATED_AT,
        _BY_UPDATED_AT.removesuffix(" AND tu.updated_at <= v_now"),
        ORACLE,
    ),
    Mutant(
        "usage that was never updated is never pending",
        DIFFERENCES,
        _BY_CREATED_AT,
        "WHERE false",
        ORACLE,
    ),
    Mutant(
        "usage that was updated is pending by its creation too",
        DIFFERENCES,
        _BY_CREATED_AT,
        _BY_CREATED_AT.replace("tu.updated_at IS NULL AND ", ""),
        ORACLE,
    ),
    Mutant(
        "usage that was never updated is not pending at the watermark",
        DIFFERENCES,
        _BY_CREATED_AT,
        _BY_CREATED_AT.replace("tu.created_at >=", "tu.created_at >"),
        ORACLE,
    ),
    Mutant(
        "usage that was never updated is pending until its day in the future",
        DIFFERENCES,
        _BY_CREATED_AT,
        _BY_CREATED_AT.removesuffix(" AND tu.created_at <= v_now"),
        ORACLE,
    ),
    Mutant(
        "without a state row nothing is pending by time",
        DIFFERENCES,
        "FROM public.task_usage_hourly_rollup_state WHERE id = 1), '-infinity');",
        "FROM public.task_usage_hourly_rollup_state WHERE id = 1), 'infinity');",
        ORACLE,
    ),
    Mutant(
        "the product's own queue makes nothing pending",
        DIFFERENCES,
        "FROM public.task_usage_hourly_dirty d\n",
        "FROM public.task_usage_hourly_dirty d WHERE false\n",
        ORACLE,
    ),
    Mutant(
        "a row of the product's own queue stands for the minute it names",
        DIFFERENCES,
        "SELECT public.task_usage_hour_bucket(d.bucket_hour) FROM public.task_usage_hourly_dirty d",
        "SELECT d.bucket_hour FROM public.task_usage_hourly_dirty d",
        ORACLE,
    ),
    Mutant(
        "a task's one queued hour stands for all its hours",
        DIFFERENCES,
        "    JOIN public.task_usage tu ON tu.task_id = v.task_id\n    WHERE v.bucket_hour IS NULL\n",
        "    JOIN public.task_usage tu ON tu.task_id = v.task_id\n",
        ORACLE,
    ),
    Mutant(
        "a queued issue stands for nothing",
        DIFFERENCES,
        "ON q.issue_id = v.issue_id",
        "ON q.issue_id = v.issue_id AND q.agent_id = v.agent_id",
        ORACLE,
    ),
    Mutant(
        "a queued agent stands for nothing",
        DIFFERENCES,
        "ON q.agent_id = v.agent_id\n",
        "ON q.agent_id = v.agent_id AND q.issue_id = v.issue_id\n",
        ORACLE,
    ),
    Mutant(
        "any queued row stands for every hour",
        DIFFERENCES,
        "WHERE num_nonnulls(v.bucket_hour, v.task_id, v.issue_id, v.agent_id) = 0)",
        "WHERE num_nonnulls(v.task_id, v.issue_id, v.agent_id) = 0)",
        ORACLE,
    ),
    Mutant(
        "a queued row that names nothing stands for nothing",
        DIFFERENCES,
        "WHERE num_nonnulls(v.bucket_hour, v.task_id, v.issue_id, v.agent_id) = 0)",
        "WHERE num_nonnulls(v.bucket_hour, v.task_id, v.issue_id, v.agent_id) < 0)",
        ORACLE,
    ),
    Mutant(
        "usage dated after all time is not undated",
        DIFFERENCES,
        "FROM public.task_usage tu WHERE tu.created_at >= '9999-01-01 00:00:00+00'\n",
        "FROM public.task_usage tu WHERE false\n",
        f"{LOSSES} -k readable_years",
    ),
    # What only the legacy rollups hold.
    Mutant(
        "legacy totals are compared by tokens only",
        DIFFERENCES,
        "WHERE c.tokens > c.raw_tokens OR c.events > c.raw_events",
        "WHERE c.tokens > c.raw_tokens",
        f"{EXCESS} -k events",
    ),
    Mutant(
        "legacy totals are compared by events only",
        DIFFERENCES,
        "WHERE c.tokens > c.raw_tokens OR c.events > c.raw_events",
        "WHERE c.events > c.raw_events",
        f"{EXCESS} -k kind",
    ),
    Mutant(
        "legacy totals exceed only by tokens and events at once",
        DIFFERENCES,
        "WHERE c.tokens > c.raw_tokens OR c.events > c.raw_events",
        "WHERE c.tokens > c.raw_tokens AND c.events > c.raw_events",
        f"{EXCESS} -k kind",
    ),
    Mutant(
        "usage of a runtime in an unknown zone is taken for lost",
        DIFFERENCES,
        "LEFT JOIN zones z ON z.name = r.timezone",
        "JOIN zones z ON z.name = r.timezone",
        f"{EXCESS} -k nobody_knows",
    ),
    Mutant(
        "an unknown zone stops the comparison",
        DIFFERENCES,
        "(tu.created_at AT TIME ZONE COALESCE(z.name, 'UTC'))::date AS runtime_day",
        "(tu.created_at AT TIME ZONE COALESCE(r.timezone, 'UTC'))::date AS runtime_day",
        f"{EXCESS} -k nobody_knows",
    ),
    Mutant(
        "days of an unknown zone are no days",
        DIFFERENCES,
        "(tu.created_at AT TIME ZONE COALESCE(z.name, 'UTC'))::date AS runtime_day",
        "(tu.created_at AT TIME ZONE z.name)::date AS runtime_day",
        f"{EXCESS} -k nobody_knows",
    ),
    *(
        Mutant(
            f"{kind} of {whose} are no loss",
            DIFFERENCES,
            text,
            text.replace(f" + {d}.{kind}", ""),
            f"{EXCESS} -k kind",
        )
        for whose, d, text in (
            ("the daily rollup", "d", _OF_DAILY),
            ("the dashboard rollup", "d", _OF_DASHBOARD),
        )
        for kind in ("output_tokens", "cache_read_tokens", "cache_write_tokens")
    ),
    Mutant(
        "raw usage is compared without what was read from a cache",
        DIFFERENCES,
        _SUMS,
        _SUMS.replace(" + SUM(tu.cache_read_tokens)", ""),
        f"{EXCESS} -k kind",
    ),
    Mutant(
        "another model makes up for what is lost",
        DIFFERENCES,
        "LEFT JOIN keys k USING (day, workspace_id, model)",
        "LEFT JOIN keys k USING (day, workspace_id)",
        f"{EXCESS} -k made_up",
    ),
    Mutant(
        "another workspace makes up for what is lost",
        DIFFERENCES,
        "LEFT JOIN keys k USING (day, workspace_id, model)",
        "LEFT JOIN keys k USING (day, model)",
        f"{EXCESS} -k made_up",
    ),
    Mutant(
        "another day makes up for what is lost",
        DIFFERENCES,
        "LEFT JOIN keys k USING (day, workspace_id, model)",
        "LEFT JOIN keys k USING (workspace_id, model)",
        f"{EXCESS} -k made_up",
    ),
    Mutant(
        "without a row of its own a runtime counts as the larger of two days",
        DIFFERENCES,
        "WHEN false THEN k.utc_events ELSE LEAST(k.runtime_events, k.utc_events) END), 0) AS raw_events",
        "WHEN false THEN k.utc_events ELSE GREATEST(k.runtime_events, k.utc_events) END), 0) AS raw_events",
        f"{EXCESS} -k total_made",
    ),
    Mutant(
        "without a row of its own a runtime's tokens count as those of the larger of two days",
        DIFFERENCES,
        "ELSE LEAST(k.runtime_tokens, k.utc_tokens) END), 0) AS raw_tokens",
        "ELSE GREATEST(k.runtime_tokens, k.utc_tokens) END), 0) AS raw_tokens",
        f"{EXCESS} -k total_made",
    ),
    Mutant(
        "days older than 082 are the runtime's",
        DIFFERENCES,
        "d.updated_at >= v_by_runtime AS by_runtime",
        "true AS by_runtime",
        f"{EXCESS} -k 082",
    ),
    Mutant(
        "one rollup that is gone stops the comparison of the other",
        DIFFERENCES,
        "IF to_regclass('public.task_usage_daily') IS NULL\n        OR to_regclass",
        "IF to_regclass('public.task_usage_daily') IS NULL\n        AND to_regclass",
        f"{EXCESS} -k without_one",
    ),
    Mutant(
        "a ledger that this role may not read stops the comparison",
        DIFFERENCES,
        "IF has_table_privilege(to_regclass('public.schema_migrations'), 'SELECT') AND EXISTS (",
        "IF EXISTS (",
        f"{EXCESS} -k ledger",
    ),
    # How the legacy rollups were set.
    Mutant(
        "what was remembered once is not remembered again",
        SETTINGS,
        """ON CONFLICT (step, kind, relation, name) DO UPDATE SET owner = EXCLUDED.owner, acl = EXCLUDED.acl,
        comment = EXCLUDED.comment, replica_identity = EXCLUDED.replica_identity,
        replica_index = EXCLUDED.replica_index, options = EXCLUDED.options, enabled = EXCLUDED.enabled,
        security_definer = EXCLUDED.security_definer""",
        "ON CONFLICT (step, kind, relation, name) DO NOTHING",
        f"{WAY_BACK} -k remembered",
    ),
    *(
        Mutant(
            f"{column} is remembered as it was the first time",
            SETTINGS,
            f"{column} = EXCLUDED.{column}",
            f"{column} = s.{column}",
            f"{WAY_BACK} -k remembered",
        )
        for column in (
            *("owner", "acl", "comment", "replica_identity", "replica_index", "options", "enabled"),
            "security_definer",
        )
    ),
    Mutant(
        "roles that are gone are named only where something was granted to them",
        SETTINGS,
        f"{_EVERY_STEP}        UNION\n        SELECT g.role",
        "SELECT g.role",
        f"{WAY_BACK} -k gone",
    ),
    Mutant(
        "roles that are gone are named only where they owned something",
        SETTINGS,
        """        UNION
        SELECT g.role FROM public.task_usage_hourly_legacy_settings s
        CROSS JOIN jsonb_to_recordset(s.acl) AS g (role text) WHERE s.step = p_step
""",
        "",
        f"{WAY_BACK} -k gone",
    ),
    Mutant(
        "rights that the owner inherits not are not lent",
        SETTINGS,
        "IF NOT pg_has_role(p_owner, 'USAGE') AND pg_has_role(p_owner, 'MEMBER') THEN",
        "IF false THEN",
        f"{WAY_BACK} -k members",
    ),
    Mutant(
        "what one statement was lent the next ones keep",
        SETTINGS,
        "    EXECUTE p_statement;\n    PERFORM set_config('role', v_role, true);\n",
        "    EXECUTE p_statement;\n",
        f"{WAY_BACK} -k members",
    ),
    Mutant(
        "the way back from 102 grants what was granted before it",
        SETTINGS,
        """JOIN rights r USING (thing)
            WHERE t.acl <> t.acl_now AND t.step <> '102'""",
        """JOIN rights r USING (thing)
            WHERE t.acl <> t.acl_now""",
        f"{WAY_BACK} -k grant_or_option",
    ),
    Mutant(
        "the way back from 102 revokes what was granted since",
        SETTINGS,
        "WHERE t.acl <> t.acl_now AND t.step <> '102' AND (t.owner",
        "WHERE t.acl <> t.acl_now AND (t.owner",
        f"{WAY_BACK} -k grant_or_option",
    ),
    Mutant(
        "the way back from 102 sets options back",
        SETTINGS,
        "AND t.options <> '{}' AND t.step <> '102'",
        "AND t.options <> '{}'",
        f"{WAY_BACK} -k grant_or_option",
    ),
    Mutant(
        "what everybody may is given to nobody",
        SETTINGS,
        "WHERE (g.role IS NULL OR g.role IN (SELECT p.rolname FROM pg_roles p)) AND",
        "WHERE g.role IN (SELECT p.rolname FROM pg_roles p) AND",
        f"{WAY_BACK} -k comments",
    ),
    Mutant(
        "who could let others do something may not any more",
        SETTINGS,
        "'right', a.privilege_type, 'grantable', a.is_grantable)",
        "'right', a.privilege_type, 'grantable', false)",
        f"{WAY_BACK} -k comments",
    ),
    Mutant(
        "rights on columns are revoked with those on their table",
        SETTINGS,
        "ORDER BY starts_with(a.thing, 'COLUMN'), a.thing, a.n, a.statement",
        "ORDER BY a.thing, a.n, a.statement",
        f"{WAY_BACK} -k comments",
    ),
    Mutant(
        "a comment that was taken away stays",
        SETTINGS,
        "WHERE t.comment IS DISTINCT FROM t.comment_now",
        "WHERE t.comment <> t.comment_now",
        f"{WAY_BACK} -k comments",
    ),
    Mutant(
        "a trigger that was switched off fires again",
        SETTINGS,
        "FROM things t WHERE t.enabled <> t.enabled_now",
        "FROM things t WHERE t.enabled <> t.enabled_now AND t.enabled <> 'DISABLE'",
        f"{WAY_BACK} -k comments",
    ),
    Mutant(
        "an owner who is not the one there was loses what is theirs",
        SETTINGS,
        " AND (t.owner = t.owner_now OR g.role IS DISTINCT FROM t.owner_now)",
        "",
        f"{WAY_BACK} -k left_to_the_operator",
    ),
    Mutant(
        "excess: told in any order",
        DIFFERENCES,
        "\n    ORDER BY 2, 1, 3, 4",
        "",
        f"{EXCESS} -k day_by_day",
    ),
]
