"""Databases past 104 that the product's own runner migrated: its pipeline, none of our functions.

The naive pipeline stands for the product's, which had the same interface and the same mistakes.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.database import ROOT, Database

_OURS_AWAY = ROOT / "alembic" / "versions" / "102_task_usage_hourly_pipeline.down.sql"
_PRODUCTS = Path(__file__).parent / "naive_pipeline.sql"

# What 213 does to the hourly table, as v0.4.10 has it; the words of the comments are ours.
COST_COLUMNS = """
ALTER TABLE public.task_usage_hourly
    ADD COLUMN cost_usd_ticks bigint NOT NULL DEFAULT 0,
    ADD COLUMN uncosted_input_tokens bigint,
    ADD COLUMN uncosted_output_tokens bigint,
    ADD COLUMN uncosted_cache_read_tokens bigint,
    ADD COLUMN uncosted_cache_write_tokens bigint;
COMMENT ON COLUMN public.task_usage_hourly.cost_usd_ticks IS 'What it cost:
the provider''s own word, in ticks.';
COMMENT ON COLUMN public.task_usage_hourly.uncosted_input_tokens IS 'Tokens whose cost nobody knows.'
"""

# What 213 and 251 do to others.
_LATER = b"""
ALTER TABLE public.task_usage ADD COLUMN cost_usd_ticks bigint;
ALTER TABLE public.agent_task_queue ALTER COLUMN runtime_id DROP NOT NULL;
ALTER TABLE public.agent DROP CONSTRAINT agent_workspace_name_unique;
"""


def install_later_pipeline(database: Database) -> None:
    """Replace window and tick by the product's, as 213 and 272 do; all else of ours stays."""
    functions = re.findall(
        r"^(CREATE FUNCTION public\.rollup_task_usage_hourly(?:_window)?\(.*?^\$\$;)$",
        _PRODUCTS.read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert len(functions) == 2
    for function in functions:
        database.execute(function.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1))


def make_products(head: Database, *, later: bool) -> Database:
    """Turn a database at head into shape D, or into shape E when `later`; its rows stay."""
    with head.connect() as connection:
        connection.execute(_OURS_AWAY.read_bytes())
        connection.execute(_PRODUCTS.read_bytes())
        connection.execute("DROP TABLE public.alembic_version")
        stems = ["105_issue_metadata", *(["213_usage_cost", "272_tick"] if later else [])]
        connection.execute(
            "INSERT INTO public.schema_migrations (version) SELECT unnest(%s::text[])", [stems]
        )
        if later:
            connection.execute(COST_COLUMNS)
            connection.execute(_LATER)
    return head
