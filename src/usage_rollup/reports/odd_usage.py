"""Find raw usage that deserves a look before the upgrade. Nothing here edits it."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from ..queries import beside

_SQL = beside(__file__)


@dataclass(frozen=True)
class Oddity:
    """Usage rows of one kind: what they are and what becomes of them, how many, the id of one."""

    kind: str
    meaning: str
    rows: int
    example: str


MEANINGS = {
    "future": "dated in the future; counted in the hour they name, and as now where lag is measured",
    "undated": "created at infinity or outside years 1-9998; in no hour of the rollup until mended",
    "overflowing": "with token counts beyond 2^62; a sum that does not fit bigint shows the largest bigint",
    "overlong": "of provider and model beyond 2,600 bytes; what the rollup's index refuses is set aside",
}


def find(connection: sa.Connection) -> list[Oddity]:
    """Return the kinds of odd usage there are; in the caller's transaction, by one sequential scan."""
    found = connection.execute(sa.text(_SQL["odd_usage"])).mappings().one()
    return [
        Oddity(kind, meaning, found[kind], found[f"{kind}_example"])
        for kind, meaning in MEANINGS.items()
        if found[kind]
    ]
