"""Find out whether the rollup's triggers may queue what changes. Where they may not, they say nothing."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from ..queries import beside

_SQL = beside(__file__)


@dataclass(frozen=True)
class TriggerRights:
    """A role that owns trigger functions it should not, or without the rights they need.

    `missing` rights, as GRANT takes them; without any, changes are queued, for now. `mend` is what to run.
    """

    owner: str
    missing: list[str]
    meaning: str
    mend: str


def find(session: sa.Connection) -> list[TriggerRights]:
    """Return what is wrong with the owners of the trigger functions; nothing where there are none.

    Asks the catalog alone, in the caller's transaction.
    """
    return [
        _judged(row) for row in session.execute(sa.text(_SQL["trigger_rights"])).mappings() if _wrong(row)
    ]


def _wrong(row: sa.RowMapping) -> bool:
    return bool(row["missing"] or row["policed"]) or row["owner"] != row["usage_owner"]


def _judged(row: sa.RowMapping) -> TriggerRights:
    owner, missing = row["owner"], row["missing"]
    if missing:
        grants = "; ".join(f"GRANT {right} TO {row['quoted_owner']}" for right in missing)
        return TriggerRights(
            owner,
            missing,
            f"changes are not queued: the triggers' functions belong to role {owner}, which lacks"
            f" {', '.join(missing)}",
            f"{grants}; then mend what was missed: usage-rollup backfill --repair",
        )
    if row["policed"]:
        tables = row["policed"]
        return TriggerRights(
            owner,
            [f"row security off on {table}" for table in tables],
            f"changes are not queued: row security on {', '.join(tables)} binds role {owner}, whose the"
            " triggers' functions are",
            "; ".join(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY" for table in tables)
            + "; then mend what was missed: usage-rollup backfill --repair",
        )
    return TriggerRights(
        owner,
        [],
        f"the triggers' functions belong to role {owner} and task_usage to role {row['usage_owner']}:"
        " changes are queued as long as the first keeps its rights",
        row["altered"],
    )
