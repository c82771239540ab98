"""Databases past 104 that the product's own runner migrated: its pipeline, none of our functions.

The naive pipeline stands for the product's first one, which had the same interface and the same mistakes.
"""

from __future__ import annotations

from tests.support import releases
from tests.support.database import ROOT, Database
from tests.support.rollup import WATERMARK

_OURS_AWAY = ROOT / "alembic" / "versions" / "102_task_usage_hourly_pipeline.down.sql"


def make_products(head: Database, *, later: bool) -> Database:
    """Turn a database at head into shape D, v0.3.5, or into shape E, v0.4.23, when `later`.

    Its rows and its watermark stay: the product's pipeline has been here all the time.
    """
    watermark = head.value(WATERMARK)
    with head.connect() as connection:
        connection.execute(_OURS_AWAY.read_bytes())
        connection.execute("DROP TABLE public.alembic_version")
        releases.take_on(connection, "v0.4.23" if later else "v0.3.5", others=False)
        connection.execute(f"UPDATE public.task_usage_hourly_rollup_state SET watermark_at = '{watermark}'")
    return head
