"""Opens the database, brings it to our version, and turns the driver's errors into one line each.

SQLite and PostgreSQL, nothing else. Passwords never reach a message: whatever prints a URL prints `safe_url(url)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine

from mathverify_sweep import paths
from mathverify_sweep.errors import StorageError
from mathverify_sweep.store.tables import VERSION_TABLE

SQLITE_BUSY_SECONDS = 60
POSTGRES_CONNECT_SECONDS = 10
# Any fixed number: workers that start at once take turns on it while they upgrade.
_UPGRADE_LOCK = 7_316_041_902


def connect(url: str) -> Engine:
    """An engine for `url`, not yet connected. The folder of a SQLite file is made.

    At most two connections a worker (its loop, its lease): workers are many and PostgreSQL's connections few.
    """
    parsed = _parse(url)
    options: dict[str, Any] = {"hide_parameters": True}
    if parsed.get_backend_name() == "sqlite":
        assert parsed.database is not None
        _make_folder(Path(parsed.database), url)
        engine = sa.create_engine(parsed, connect_args={"timeout": SQLITE_BUSY_SECONDS}, **options)
        prepare_sqlite(engine)
        return engine
    return sa.create_engine(
        parsed,
        connect_args={"connect_timeout": POSTGRES_CONNECT_SECONDS},
        pool_size=1,
        max_overflow=1,
        pool_pre_ping=True,
        **options,
    )


def prepare_sqlite(engine: Engine) -> None:
    """Make every transaction of a SQLite engine, ours or Optuna's, take the write lock at its start and wait for it.

    A deferred transaction reads, then finds that another process wrote, and fails or acts on what it read: with stock
    settings 22-29 of 100 enqueued Optuna trials were claimed twice by 8 processes. Does nothing to other databases.
    """
    if engine.dialect.name != "sqlite" or sa.event.contains(engine, "begin", _begin_immediate):
        return
    sa.event.listen(engine, "connect", _set_pragmas)
    sa.event.listen(engine, "begin", _begin_immediate)
    engine.dispose()  # connections already in the pool have not heard of this


def driver_url(url: str) -> str:
    """`url` with its password and our driver: for Optuna, which opens the same database. Never print it."""
    return _parse(url).render_as_string(hide_password=False)


def safe_url(url: str) -> str:
    """`url` with every password in it masked, also when it is too broken to parse. For messages and logs."""
    masked = re.sub(r"(?i)([?&]\w*pass\w*=)[^&\s]*", r"\1***", url)
    masked = re.sub(r"(?i)(\bpassword\s*=\s*)[^&\s]+", r"\1***", masked)
    scheme, separator, rest = masked.partition("://")
    if not separator or scheme.startswith("sqlite") or "@" not in rest:
        return masked
    # The last @: a password with a raw @ in it is then masked whole.
    account, _, host = rest.rpartition("@")
    user, colon, _ = account.partition(":")
    return f"{scheme}://{user}:***@{host}" if colon else masked


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One short transaction; whatever the driver says comes out as a StorageError of one line."""
    try:
        with engine.begin() as connection:
            yield connection
    except exc.SQLAlchemyError as error:
        # `from None`: the driver's own text may quote the connection string.
        raise StorageError(_one_line(engine.url, error)) from None


def insert(connection: Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that knows ON CONFLICT, which SQLAlchemy has per dialect only."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def upgrade(engine: Engine) -> None:
    """Bring the database to this package's version. Repeatable, and safe when many workers start at once.

    Raises StorageError when a newer version of the package has been here.
    """
    with transaction(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
        _migrate(connection)


def _parse(url: str) -> URL:
    """A URL of a database that we can use, with its driver."""
    url = re.sub(r"^(postgres|postgresql)://", "postgresql+psycopg://", url.strip())
    try:
        if not url.startswith("sqlite") and url.partition("?")[0].count("@") > 1:
            raise ValueError  # it would parse, with a part of the password as its host
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError):
        raise StorageError(
            "a database is named by a URL like sqlite:///mvsweep.sqlite3 or postgresql://user:password@host/name, "
            f"got {safe_url(url)}. Characters like @ : / in a password are written %40 %3A %2F."
        ) from None
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise StorageError(
            f"the database is SQLite or PostgreSQL, got {parsed.drivername}. Use sqlite:///FILE or postgresql://…"
        )
    if any("password" in key.lower() for key in parsed.query):
        raise StorageError("a password goes before the host (postgresql://user:password@host/name) or into PGPASSWORD.")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StorageError(
            "workers share the database, so it cannot be in memory. Name a file: sqlite:///mvsweep.sqlite3"
        )
    return parsed


def _make_folder(file: Path, url: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot make the folder of {safe_url(url)}: {error.strerror}. Name a file that you may write."
        ) from None


def _set_pragmas(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself, so that `_begin_immediate` can
    connection.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_SECONDS * 1000}")
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        connection.execute("PRAGMA journal_mode = WAL")


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _one_line(url: URL, error: exc.SQLAlchemyError) -> str:
    """Which database, what it said, what to do."""
    shown = safe_url(url.render_as_string(hide_password=True))
    original = getattr(error, "orig", None) or error
    said = " ".join(str(original).split()) or type(original).__name__
    for form in {url.password or "", quote_plus(url.password or "")}:
        said = said.replace(form, "***") if len(form) > 2 else said
    if isinstance(error, exc.OperationalError | exc.InterfaceError):
        return f"the database {shown} cannot be used: {said}. Check its URL, that it runs and that its disk has room."
    return f"the database {shown} refused: {said}"


def _migrate(connection: Connection) -> None:
    # Alembic is needed here alone, and is slow to import.
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    folder = paths.migrations_folder()
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    scripts = ScriptDirectory(str(folder))
    current = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
    head = scripts.get_current_head()
    if current == head:
        return
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise StorageError(
            f"the database {safe_url(connection.engine.url.render_as_string())} is at revision {current}, but this "
            f"mathverify-sweep knows revisions up to {head}: a newer version has upgraded it. "
            "Install that version here, or restore the backup from before the upgrade."
        )
    command.upgrade(config, "head")
