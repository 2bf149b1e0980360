"""How a database is: version, speed, room for connections, clock, revision. Changes nothing in it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from mathverify_sweep import paths
from mathverify_sweep.store.database import driver_url, transaction
from mathverify_sweep.store.tables import VERSION_TABLE

_TIMES = 9


@dataclass(frozen=True, slots=True)
class Connections:
    """Of the whole server: in use now, and how many there may be for accounts like ours."""

    used: int
    most: int


@dataclass(frozen=True, slots=True)
class Health:
    """A database as it was found. Times are medians of several.

    `revision` is None where our tables are not there yet; `connections` and `clock_ahead_seconds` (the server's clock
    against this machine's) are None on SQLite, `journal_mode` on PostgreSQL.
    """

    version: str
    round_trip_seconds: float
    transaction_seconds: float
    revision: str | None
    head: str
    connections: Connections | None = None
    clock_ahead_seconds: float | None = None
    journal_mode: str | None = None


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite database, which may not be there; None for another kind. Raises StorageError."""
    parsed = sa.make_url(driver_url(url))
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


def health(engine: Engine) -> Health:
    """Look at the database. Raises StorageError when it cannot be used."""
    with transaction(engine) as connection:
        round_trip = _median_seconds(lambda: connection.execute(sa.select(1)))
        revision, head = _revisions(connection)
        if engine.dialect.name == "sqlite":
            version = f"SQLite {connection.scalar(sa.text('SELECT sqlite_version()'))}"
            mode = connection.scalar(sa.text("PRAGMA journal_mode"))
            found = Health(version, round_trip, 0.0, revision, head, journal_mode=mode)
        else:
            version = f"PostgreSQL {connection.scalar(sa.text('SHOW server_version'))}"
            ahead = _clock_ahead(connection)
            found = Health(version, round_trip, 0.0, revision, head, _connections(connection), ahead)
    return replace(found, transaction_seconds=_median_seconds(lambda: _read_once(engine)))


def _read_once(engine: Engine) -> None:
    with transaction(engine) as connection:
        connection.execute(sa.select(1))


def _median_seconds(once: Callable[[], object]) -> float:
    taken = []
    for _ in range(_TIMES):
        started = time.perf_counter()
        once()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _revisions(connection: Connection) -> tuple[str | None, str]:
    from alembic.runtime.migration import MigrationContext  # slow to import, and needed by few commands
    from alembic.script import ScriptDirectory

    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision(), ScriptDirectory(str(paths.migrations_folder())).get_current_head() or ""


def _clock_ahead(connection: Connection) -> float:
    before = time.time()
    server: float = connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())::float8")) or 0.0
    return server - (before + time.time()) / 2


def _connections(connection: Connection) -> Connections:
    # Not pg_stat_activity, where other accounts' rows are veiled.
    used = connection.scalar(sa.text("SELECT sum(numbackends) FROM pg_stat_database WHERE datid > 0"))
    reserved = "('superuser_reserved_connections', 'reserved_connections')"
    most = connection.scalar(
        sa.text(
            "SELECT current_setting('max_connections')::int - "
            f"(SELECT sum(setting::int) FROM pg_settings WHERE name IN {reserved})"
        )
    )
    return Connections(int(used or 0), int(most or 0))
