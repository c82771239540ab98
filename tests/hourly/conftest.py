"""What schedules of several sessions are replayed on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.database import MakeDatabase
from tests.support.stateful.machine import Machine


@pytest.fixture
def machine(make_database: MakeDatabase) -> Iterator[Machine]:
    machine = Machine(make_database("head").url)
    yield machine
    machine.close()
