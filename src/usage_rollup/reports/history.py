"""Say which steps are done, since when, and by which runner; which are pending. Reads only.

The product's ledger says when. Nobody has written down whose step it was, so it is found out: our runner
writes the row in the ledger in the transaction of the step, the product's in one of its own. A restore or
pg_upgrade blurs that; where no step can be told to be ours any more, it is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from ..contract import OUR_FUNCTIONS, STEMS
from ..queries import beside, filled
from ..runner import adoption
from ..session.connection import snapshot
from .place import revisions_after

_SQL = beside(__file__)

APPLIED, PENDING = "applied", "pending"
US, PRODUCT = "usage-rollup", "product"


@dataclass(frozen=True)
class Step:
    """A step, whether it is applied, when (None: not recorded), and by which runner (None: not known).

    One that is pending although a runner has applied it is applied again: the Go release's 102.
    """

    revision: str
    step: str
    state: str
    applied_at: datetime | None
    runner: str | None


@dataclass(frozen=True)
class History:
    """What alembic_version says, every step of the chain, and the newest that the product's ledger has."""

    revision: str | None
    steps: list[Step]
    newest_in_ledger: str | None


def history(session: sa.Connection) -> History:
    """Return the history in one snapshot; entered and left outside a transaction.

    Raises AdoptionRefused where no upgrade can go on: which steps are done nobody can tell there.
    """
    with snapshot(session):
        standing = adoption.look(session)
        standing.adoption()
        stems = standing.ledger()
        rows: dict[str, sa.Row[tuple[str, datetime, bool]]] = {}
        if stems is not None:
            recorded = session.execute(sa.text(_SQL["recorded"]), {"stems": [*STEMS.values()]})
            rows = {row.stem: row for row in recorded}
        ours = bool(session.scalar(sa.text(filled(_SQL["ours"], our_functions=OUR_FUNCTIONS))))
    counted = {revision for revision in STEMS if revision <= (standing.version or "")}
    pending = revisions_after(standing.start)
    steps = [
        _step(revision, PENDING if revision in pending else APPLIED, revision in counted, rows, ours)
        for revision in STEMS
    ]
    return History(standing.version, steps, max(stems or (), default=None, key=str.encode))


def _step(
    revision: str,
    state: str,
    counted: bool,
    rows: Mapping[str, sa.Row[tuple[str, datetime, bool]]],
    ours: bool,
) -> Step:
    """Return a step, which alembic_version may count, and the ledger's `rows` may hold."""
    stem = STEMS[revision]
    row = rows.get(stem)
    if row is None:
        # A crash of the product's runner leaves its last step unrecorded.
        runner = US if counted else PRODUCT
        return Step(revision, stem, state, None, runner if state == APPLIED else None)
    told = {stem for stem, row in rows.items() if row.by_us}
    # 103 leaves nothing of its own in the catalog; 104 follows it in the same run.
    stands_at_103 = counted and STEMS["104"] not in rows
    by_us = row.by_us or (revision == "103" and ours and (STEMS["104"] in told or stands_at_103))
    others = revision == "097" or not counted or not ours or told
    return Step(revision, stem, state, row.applied_at, US if by_us else PRODUCT if others else None)
