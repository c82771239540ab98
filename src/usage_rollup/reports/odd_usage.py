"""Find raw usage that deserves a look before the upgrade. Nothing here edits it."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa


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
    found = connection.execute(sa.text(_ODDITIES)).mappings().one()
    return [
        Oddity(kind, meaning, found[kind], found[f"{kind}_example"])
        for kind, meaning in MEANINGS.items()
        if found[kind]
    ]


# An index row holds a third of a page, 2,704 bytes; four uuids and an hour take the rest of the key.
_KINDS = {
    "future": "dated AND (created_at > now() OR updated_at > now())",
    "undated": "NOT dated",
    "overflowing": "GREATEST(input_tokens, output_tokens, cache_read_tokens, cache_write_tokens)"
    " > 1::bigint << 62"
    " OR LEAST(input_tokens, output_tokens, cache_read_tokens, cache_write_tokens) < -(1::bigint << 62)",
    "overlong": "octet_length(provider) + octet_length(model) > 2600",
}

_ODDITIES = (
    "SELECT "
    + ", ".join(
        f"COUNT(*) FILTER (WHERE {condition}) AS {kind},"
        f" MIN(id::text) FILTER (WHERE {condition}) AS {kind}_example"
        for kind, condition in _KINDS.items()
    )
    + " FROM (SELECT *, created_at >= '0001-01-01 00:00:00+00' AND created_at < '9999-01-01 00:00:00+00'"
    " AS dated FROM public.task_usage) AS tu"
)
