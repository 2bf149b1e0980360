"""Optuna's own connections to the database that our tables live in, and what an outage of it is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage

from mathverify_sweep.errors import StorageError
from mathverify_sweep.store import database

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine


_checked: set[str] = set()
"""Databases whose version this process has checked: that loads all of Optuna's migrations, a tenth of a second."""


def open_storage(engine: Engine) -> RDBStorage:
    """Optuna's storage in the database of `engine`, with a pool as small as ours. To be closed with `close_storage`.

    Raises StorageError, also when the tables are another Optuna's.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options: dict[str, Any] = {"hide_parameters": True}
    if engine.dialect.name == "sqlite":
        options |= {"connect_args": {"timeout": database.SQLITE_BUSY_SECONDS}}
    else:
        timeout = {"connect_timeout": database.POSTGRES_CONNECT_SECONDS}
        options |= {"connect_args": timeout, "pool_size": 1, "max_overflow": 1, "pool_pre_ping": True}
    url = engine.url.render_as_string(hide_password=False)
    known = url in _checked
    try:
        storage = RDBStorage(url, options, skip_compatibility_check=known, skip_table_creation=known)
    except Exception as error:  # noqa: BLE001 - the driver's, SQLAlchemy's and Optuna's errors, which share no root
        raise _storage_error(engine, error) from None
    _checked.add(url)
    database.prepare_sqlite(storage.engine)
    return storage


def close_storage(storage: RDBStorage) -> None:
    """Close its connections."""
    storage.remove_session()
    storage.engine.dispose()


@contextmanager
def opened(engine: Engine) -> Iterator[RDBStorage]:
    """A storage for as long as the block lasts; what Optuna calls an internal error comes out as StorageError."""
    storage = open_storage(engine)
    try:
        with storage_errors(engine):
            yield storage
    finally:
        close_storage(storage)


@contextmanager
def storage_errors(engine: Engine) -> Iterator[None]:
    """What Optuna calls an internal error comes out as a StorageError of one line."""
    try:
        yield
    except StorageInternalError as error:
        raise _storage_error(engine, error.__cause__ or error) from None


def _storage_error(engine: Engine, error: BaseException) -> StorageError:
    # The kind of the error, not its text: a driver may quote the connection string.
    said = str(error) if isinstance(error, RuntimeError) else type(getattr(error, "orig", None) or error).__name__
    return StorageError(f"Optuna cannot use the database {engine.url.render_as_string(hide_password=True)}: {said}")
