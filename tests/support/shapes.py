"""Databases past 104 that the product's own runner migrated: its pipeline, none of our functions.

The naive pipeline stands for the product's first one, which had the same interface and the same mistakes.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.database import ROOT, Database
from tests.support.later_release import apply_later_release

_OURS_AWAY = ROOT / "alembic" / "versions" / "102_task_usage_hourly_pipeline.down.sql"
_PRODUCTS = Path(__file__).parent / "naive_pipeline.sql"


def make_products(head: Database, *, later: bool) -> Database:
    """Turn a database at head into shape D, or into shape E when `later`; its rows stay."""
    with head.connect() as connection:
        connection.execute(_OURS_AWAY.read_bytes())
        connection.execute(_PRODUCTS.read_bytes())
        connection.execute("DROP TABLE public.alembic_version")
        connection.execute("INSERT INTO public.schema_migrations (version) VALUES ('105_issue_metadata')")
    return apply_later_release(head) if later else head
