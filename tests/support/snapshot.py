"""Write src/usage_rollup/schema/catalog.txt from the revisions: `make snapshot`."""

from __future__ import annotations

from tests.support.database import ROOT, Database
from tests.support.server import open_server
from usage_rollup.schema import catalog
from usage_rollup.session.connection import snapshot

DATABASE = "multica_snapshot"
SNAPSHOT = ROOT / "src" / "usage_rollup" / "schema" / catalog.SNAPSHOT


def main() -> None:
    """Upgrade an empty database of its own to head and describe it."""
    with open_server() as server:
        server.drop_database(DATABASE)
        server.create_database(DATABASE)
        database = Database(server, DATABASE)
        database.upgrade()
        with database.migration_connection() as connection, snapshot(connection):
            text = catalog.render(catalog.read(connection))
        server.drop_database(DATABASE)
    SNAPSHOT.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
