"""The guide's blocks, typed as they stand, in order, by a shell that ends at the first failure."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.support.database import BIN, ROOT, MakeDatabase
from tests.support.starts import STARTS

pytestmark = pytest.mark.process

GUIDE = (ROOT / "docs" / "upgrading.md").read_text("utf-8")


def block(heading: str) -> str:
    """Return the first block of the section, which must have one for a shell."""
    _, _, section = GUIDE.partition(f"\n## {heading}\n")
    found = re.search(r"```sh\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    assert found, heading
    return found[1]


@pytest.mark.parametrize(
    ("start", "headings", "revision"),
    [
        ("v034", ["Before", "Small install"], "104"),
        ("v034_with_losses", ["Before", "Small install", "Rolled back", "Small install"], "104"),
        ("v034", ["Large install, without downtime"], "104"),
        ("half_way", ["Large install, without downtime"], "104"),
        ("stuck_at_103", ["Before", "Stuck at 103"], "104"),
        ("go_104", ["Dashboards at zero"], None),
        ("head", ["Dashboards at zero", "Rolled back"], "102"),
    ],
    ids=lambda value: "+".join(value).replace(" ", "_") if isinstance(value, list) else str(value),
)
def test_guide_can_be_typed_from_top_to_bottom(
    make_database: MakeDatabase, tmp_path: Path, start: str, headings: list[str], revision: str | None
) -> None:
    database = STARTS[start](make_database)
    # In the checkout, where `alembic` finds its alembic.ini; what is dumped goes elsewhere.
    typed = "".join(map(block, headings)).replace("before-hourly.dump", str(tmp_path / "before-hourly.dump"))
    path = os.pathsep.join([str(BIN), str(Path(database.server.program("psql")).parent), os.environ["PATH"]])
    done = database.run("bash", "-e", "-c", typed, PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert database.revision == revision
