"""Say what is next for a database that a command finds no hourly rollup in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from ..errors import UnsuitableDatabase
from ..hourly.pipeline import NoHourlyRollup
from . import place as places


@contextmanager
def placed(session: sa.Connection) -> Iterator[None]:
    """Where the block finds no hourly rollup, say where the database stands and what its own next step is.

    Entered and left outside a transaction. Raises UnsuitableDatabase, and AdoptionRefused where the table of
    the product's ledger is another tool's.
    """
    try:
        yield
    except NoHourlyRollup as error:
        place = places.look(session)
        raise UnsuitableDatabase(
            f"{error.refusal.message}: {place.shape}", hint=place.next_step or error.refusal.hint
        ) from error
