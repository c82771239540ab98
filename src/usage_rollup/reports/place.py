"""Say where a database stands, in words, which steps are still to be taken, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from .. import revisions
from ..contract import HEAD, STEMS
from ..runner import adoption, checks, ledger
from ..session.connection import snapshot


@dataclass(frozen=True)
class Step:
    """A revision that is still to be applied, and the tables it locks, by lock mode."""

    name: str
    locks: dict[str, list[str]]


@dataclass(frozen=True)
class Place:
    """Where the database stands: its shape in words, our revision, why it is adopted, what is pending.

    `next_step` is what to do for it, None where nothing is left to do. `refused` where no upgrade can go on
    from here: the shape then says why, and what is pending nobody can tell.
    """

    shape: str
    revision: str | None
    adoption: str | None
    pending: list[Step]
    next_step: str | None
    refused: bool = False


def revisions_after(start: str | None) -> list[str]:
    """Return what an upgrade to the newest revision takes from `start`, None being nothing."""
    return [revision for revision in STEMS if start is None or revision > start]


def find(checked: checks.Found) -> Place | None:
    """Say where a database stands that the upgrade would go on from, None where its ledgers contradict it."""
    place = of(checked.standing) if checked.standing else None
    return None if place is None or place.refused else place


def look(session: sa.Connection) -> Place:
    """Say where a database stands, in a snapshot of its own; entered and left outside a transaction."""
    with snapshot(session):
        return of(adoption.look(session))


def of(standing: adoption.Standing) -> Place:
    """Say where a database stands, also one that no upgrade can go on from."""
    for refusal in standing.refused("upgrade"):
        return Place(refusal.message, standing.version, None, [], refusal.hint, refused=True)
    scripts = [revisions.scripts().get_revision(revision) for revision in revisions_after(standing.start)]
    pending = [Step(ledger.stem_of(script), dict(script.module.LOCK)) for script in scripts]
    shape = _shape(standing, standing.adoption())
    return Place(shape, standing.version, standing.reason, pending, _next_step(standing) if pending else None)


def _shape(standing: adoption.Standing, adopted: adoption.Adoption | None) -> str:
    """Say in words what kind of database this is."""
    if standing.version == HEAD:
        return "migrated by this runner to its newest revision"
    if standing.version is not None:
        since = ", and since then by the product's own runner" if adopted else ""
        return f"migrated by this runner to {STEMS[standing.version]}{since}"
    if adopted is None:
        return "empty"
    if adopted.revision == "097":
        return "v0.3.4, as the product's own runner left it"
    if adopted.revision == "104":
        return "v0.3.5 or later, migrated by the product's own runner"
    if _is_stuck(standing):
        return (
            "stuck before 103: the product's own runner got as far as 102, whose functions this one replaces"
        )
    return f"migrated by the product's own runner to {STEMS[adopted.revision]}"


def _is_stuck(standing: adoption.Standing) -> bool:
    return standing.start == "101" and standing.has_pipeline


def _next_step(standing: adoption.Standing) -> str:
    """Say what takes it to the newest revision, and what the product's server may do meanwhile."""
    if standing.start is None:
        return "`usage-rollup upgrade` makes a new database of it; should it hold data, look at DATABASE_URL"
    if _is_stuck(standing):
        return "stop the product's server, then `usage-rollup preflight`, then `usage-rollup upgrade`"
    if standing.start < "102":
        return (
            "`usage-rollup preflight`, then `usage-rollup upgrade`; a v0.3.4 server may run until 103,"
            " which `usage-rollup upgrade 102` stops at"
        )
    if standing.start == "102":
        return (
            "`usage-rollup backfill` beside the v0.3.4 server, as often as you like; then stop that server"
            " and run `usage-rollup upgrade`"
        )
    return "stop the product's server, then `usage-rollup upgrade`"
