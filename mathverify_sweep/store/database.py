"""Opens the database, brings it to our version, and turns the driver's errors into one line each.

SQLite and PostgreSQL, nothing else. Passwords never reach a message: whatever prints a URL prints `safe_url(url)`.
"""

from __future__ import annotations

import re
import select
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc, orm
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine

from mathverify_sweep import paths, redaction
from mathverify_sweep.errors import StorageError
from mathverify_sweep.store import file_systems
from mathverify_sweep.store.outages import storage_error
from mathverify_sweep.store.tables import REVISION, VERSION_TABLE

SQLITE_BUSY_SECONDS = 60
"""How long a transaction waits for the write lock; the workers of a machine take turns on it."""
SQLITE_RETRY_SECONDS = 0.02
"""How soon write-ahead logging is asked for again where others do the same."""
POSTGRES_CONNECT_SECONDS = 10
POSTGRES_LOCK_SECONDS = 30
"""How long a statement waits for a row that another transaction holds. Ours hold one for milliseconds."""
POSTGRES_STANDSTILL_SECONDS = 60
"""After this long without a statement the server cuts a transaction, and frees its locks: its host is suspended."""
_only_reading: ContextVar[bool] = ContextVar("only_reading", default=False)
# Any fixed number: workers that start at once take turns on it while they upgrade.
_UPGRADE_LOCK = 7_316_041_902


def connect(url: str) -> Engine:
    """An engine for `url`, not yet connected. The folder of a SQLite file is made, on a local disk.

    It keeps one connection, a second one while a study is created: workers are many and PostgreSQL's connections few.
    A connection that broke is never handed out again.
    """
    parsed = _parse(url)
    redaction.remember(parsed.password)
    options: dict[str, Any] = {"hide_parameters": True, "pool_size": 1, "max_overflow": 1}
    if parsed.get_backend_name() == "sqlite":
        assert parsed.database is not None
        _make_folder(Path(parsed.database), url)
        if (problem := file_systems.refusal(Path(parsed.database))) is not None:
            raise StorageError(problem)
        engine = sa.create_engine(parsed, connect_args=_connect_args("sqlite"), **options)
        prepare_sqlite(engine)
        return engine
    engine = sa.create_engine(parsed, connect_args=_connect_args("postgresql"), **options)
    sa.event.listen(engine, "connect", _set_timeouts)
    sa.event.listen(engine, "checkout", _refuse_if_cut)
    return engine


def passing_engine(dialect: str) -> dict[str, Any]:
    """Options of another engine on the same database, Optuna's, that keeps no connection beyond its use."""
    return {"hide_parameters": True, "connect_args": _connect_args(dialect), "poolclass": sa.NullPool}


def sessions(engine: Engine) -> orm.scoped_session[orm.Session]:
    """Sessions on an engine, one for each thread, as Optuna's storage has them."""
    return orm.scoped_session(orm.sessionmaker(bind=engine))


def rest(engine: Engine) -> None:
    """Hold no connection to a server until one is needed again: a worker mostly waits. A SQLite file stays open.

    Does nothing while another thread is in a transaction: its connection would outlive the pool that is closed here.
    """
    pool = engine.pool
    if engine.dialect.name != "sqlite" and not (isinstance(pool, sa.QueuePool) and pool.checkedout()):
        engine.dispose()


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
    """One short transaction. What the driver says comes out as one line, see `errors_of`."""
    with errors_of(engine), engine.begin() as connection:
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Statements that only read: on SQLite in a transaction that waits for no writer, and none waits for it.

    On PostgreSQL without one: there each statement has a snapshot of its own anyway, and BEGIN and COMMIT are a round
    trip each.
    """
    if engine.dialect.name != "sqlite":
        engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    with only_reading(), transaction(engine) as connection:
        yield connection


@contextmanager
def only_reading() -> Iterator[None]:
    """Transactions that begin inside, on a SQLite engine and in this thread, do without the write lock.

    Sixty-four workers that took it to read stood in line for minutes.
    """
    before = _only_reading.set(True)
    try:
        yield
    finally:
        _only_reading.reset(before)


@contextmanager
def errors_of(engine: Engine) -> Iterator[None]:
    """The driver's errors come out in one line: StorageUnavailable when later may help, StorageError if it refuses."""
    try:
        yield
    except exc.SQLAlchemyError as error:
        # `from None`: the driver's own text may quote the connection string.
        raise storage_error(engine.url, error) from None


def insert(connection: Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that knows ON CONFLICT, which SQLAlchemy has per dialect only."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def wait_for_turn(connection: Connection, lock: int) -> None:
    """Hold PostgreSQL's advisory `lock` until the transaction ends, however long the others or this one take."""
    connection.exec_driver_sql("SET LOCAL lock_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0")
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))


def upgrade(engine: Engine) -> None:
    """Bring the database to this package's version. Repeatable, and safe when many workers start at once.

    Raises StorageError when a newer version of the package has been here.
    """
    with reading(engine) as connection:
        if _is_up_to_date(connection):
            return  # without the lock: starting workers would stand in line for it while each imports Alembic
    with transaction(engine) as connection:
        if engine.dialect.name == "postgresql":
            wait_for_turn(connection, _UPGRADE_LOCK)
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


def _connect_args(dialect: str) -> dict[str, int]:
    if dialect == "sqlite":
        return {"timeout": SQLITE_BUSY_SECONDS}
    # A host that is gone says nothing: without the last four a statement waits for it for a quarter of an hour.
    return {
        "connect_timeout": POSTGRES_CONNECT_SECONDS,
        "keepalives_idle": 20,
        "keepalives_interval": 5,
        "keepalives_count": 4,
        "tcp_user_timeout": 40_000,
    }


def _set_pragmas(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself, so that `_begin_immediate` can
    connection.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_SECONDS * 1000}")
    deadline = time.monotonic() + SQLITE_BUSY_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:  # others open the new file too: SQLite waits for any lock but this one
            if time.monotonic() > deadline:
                raise
            time.sleep(SQLITE_RETRY_SECONDS)


def _set_timeouts(connection: Any, _record: object) -> None:
    # Not as a start-up option, which connection poolers refuse.
    with connection.cursor() as cursor:
        cursor.execute(
            f"SET lock_timeout = {POSTGRES_LOCK_SECONDS * 1000};"
            f"SET idle_in_transaction_session_timeout = {POSTGRES_STANDSTILL_SECONDS * 1000}"
        )
    connection.commit()


def _refuse_if_cut(connection: Any, _record: object, _checked_out: object) -> None:
    """Have the pool replace a connection that the server has ended: its farewell can be read.

    To ask the server each time, as `pool_pre_ping` does, was a tenth of what a trial costs.
    """
    waiting = select.poll()
    if not connection.closed:
        waiting.register(connection.fileno(), select.POLLIN)
    if connection.closed or waiting.poll(0):
        raise exc.DisconnectionError("the server has ended the connection")


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN" if _only_reading.get() else "BEGIN IMMEDIATE")


def _is_up_to_date(connection: Connection) -> bool:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return False
    version = sa.table(VERSION_TABLE, sa.column("version_num"))
    return list(connection.scalars(sa.select(version.c.version_num))) == [REVISION]


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
