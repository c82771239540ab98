"""Say where a database stands, in words, and which steps are still to be taken."""

from __future__ import annotations

from dataclasses import dataclass

from .. import revisions
from ..contract import HEAD, STEMS
from ..runner import adoption, checks, ledger


@dataclass(frozen=True)
class Step:
    """A revision that is still to be applied, and the tables it locks, by lock mode."""

    name: str
    locks: dict[str, list[str]]


@dataclass(frozen=True)
class Place:
    """Where the database stands: its shape in words, our revision, why it is adopted, what is pending."""

    shape: str
    revision: str | None
    adoption: str | None
    pending: list[Step]


def revisions_after(start: str | None) -> list[str]:
    """Return what an upgrade to the newest revision takes from `start`, None being nothing."""
    return [revision for revision in STEMS if start is None or revision > start]


def find(checked: checks.Found) -> Place | None:
    """Say where a database stands that the upgrade would go on from, None where its ledgers contradict it."""
    standing = checked.standing
    if standing is None or standing.refused("upgrade"):
        return None
    scripts = [revisions.scripts().get_revision(revision) for revision in revisions_after(standing.start)]
    pending = [Step(ledger.stem_of(script), dict(script.module.LOCK)) for script in scripts]
    return Place(_shape(standing, standing.adoption()), standing.version, standing.reason, pending)


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
    if adopted.revision == "101" and standing.has_pipeline:
        return (
            "stuck before 103: the product's own runner got as far as 102, whose functions this one replaces"
        )
    return f"migrated by the product's own runner to {STEMS[adopted.revision]}"
