"""Optuna's storage: on our connections to the database, or behind a proxy; and what an outage of it is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage
from optuna.storages._rdb.models import TrialUserAttributeModel
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from mathverify_sweep.errors import StorageError
from mathverify_sweep.store import database
from mathverify_sweep.study import proxy

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine


_checked: set[str] = set()
"""Databases whose version this process has checked: that loads all of Optuna's migrations, a tenth of a second."""


def open_storage(engine: Engine) -> RDBStorage:
    """Optuna's storage on the connections of `engine`: one serves both. To be closed with `close_storage`.

    Raises StorageError, also when the tables are another Optuna's.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = engine.url.render_as_string(hide_password=False)
    # Optuna insists on an engine of its own. It makes and checks the tables through it, once a process and database;
    # then its sessions are bound to ours, and its own is never connected again.
    options = database.passing_engine(engine.dialect.name)
    known = url in _checked
    with storage_errors(engine):
        try:
            storage = _Storage(url, options, skip_compatibility_check=known, skip_table_creation=known)
        except RuntimeError as error:  # another Optuna's tables
            raise StorageError(f"Optuna cannot use the database {engine.url.render_as_string()}: {error}") from None
    storage.remove_session()
    storage.scoped_session.configure(bind=engine)
    _checked.add(url)
    return storage


class _Storage(RDBStorage):
    """Optuna's, with reads that do without SQLite's write lock: they are most of what a worker says to it."""

    def get_study_id_from_name(self, study_name: str) -> int:
        """See Optuna."""
        with database.only_reading():
            return super().get_study_id_from_name(study_name)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """See Optuna."""
        with database.only_reading():
            return super().get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """See Optuna."""
        with database.only_reading():
            return super().get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """See Optuna."""
        with database.only_reading():
            return super().get_study_system_attrs(study_id)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """See Optuna."""
        with database.only_reading():
            return super().get_trial_id_from_study_id_trial_number(study_id, trial_number)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See Optuna."""
        with database.only_reading():
            return super().get_trial(trial_id)

    def _get_trials(self, *arguments: Any, **more: Any) -> list[FrozenTrial]:
        with database.only_reading():
            return super()._get_trials(*arguments, **more)


def set_user_attrs(storage: BaseStorage, trial_id: int, attributes: Mapping[str, Any]) -> None:
    """Set user attributes of a trial, in one transaction: Optuna has one for each, which was most of what a trial cost.

    Raises UpdateFinishedTrialError. The one private use of Optuna's storage.
    """
    if not isinstance(storage, RDBStorage):
        for name, value in attributes.items():
            storage.set_trial_user_attr(trial_id, name, value)
        return
    with _create_scoped_session(storage.scoped_session, True) as session:
        for name, value in attributes.items():
            storage._set_trial_attr_without_commit(session, TrialUserAttributeModel, trial_id, name, value)


def close_storage(storage: BaseStorage) -> None:
    """Forget this thread's session, or close the channel to the proxy. Our engine's connections are its own affair."""
    if isinstance(storage, GrpcStorageProxy):
        storage.close()
    else:
        storage.remove_session()


@contextmanager
def opened(engine: Engine) -> Iterator[RDBStorage]:
    """A storage for as long as the block lasts; errors as in `storage_errors`."""
    storage = open_storage(engine)
    try:
        with storage_errors(engine):
            yield storage
    finally:
        close_storage(storage)


@contextmanager
def storage_errors(engine: Engine) -> Iterator[None]:
    """Errors of Optuna, its driver and its proxy come out as those of `store.database.errors_of`."""
    with database.errors_of(engine):
        try:
            yield
        except StorageInternalError as error:
            if isinstance(error.__cause__, Exception):
                raise error.__cause__ from None
            raise StorageError(f"Optuna: {error}") from None
        except Exception as error:
            proxied = proxy.storage_error(error)
            if proxied is None:
                raise
            raise proxied from None
