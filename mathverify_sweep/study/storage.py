"""Optuna's storage: on our connections to the database, or behind a proxy; and what an outage of it is called."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage
from optuna.storages._rdb.storage import _VersionManager
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mathverify_sweep.errors import StorageError
from mathverify_sweep.store import database, optuna_rows
from mathverify_sweep.study import proxy

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine


_checked: set[str] = set()
"""Databases whose version this process has checked."""


def open_storage(engine: Engine) -> RDBStorage:
    """Optuna's storage on the connections of `engine`: one serves both. To be closed with `close_storage`.

    Raises StorageError, also when the tables are another Optuna's.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = engine.url.render_as_string(hide_password=False)
    with storage_errors(engine):
        if url not in _checked and not optuna_rows.made_by(engine, optuna.__version__):
            try:  # on an engine of its own, which it insists on
                RDBStorage(url, database.passing_engine(engine.dialect.name))
            except RuntimeError as error:  # another Optuna's tables
                raise StorageError(f"Optuna cannot use the database {engine.url.render_as_string()}: {error}") from None
        _checked.add(url)
        return _Storage(engine)


class _Storage(RDBStorage):
    """Optuna's, with reads that do without SQLite's write lock: they are most of what a worker says to it.

    `_ids`: by study and number. `_running`: what was last read of running trials, and made of it. `_looks`: see
    `one_look`.
    """

    def __init__(self, engine: Engine) -> None:
        # Not Optuna's own: that makes an engine, makes tables, and loads all of its migrations to compare versions, a
        # quarter of what a worker's start costs.
        self.engine, self.engine_kwargs, self.url = engine, {}, engine.url.render_as_string(hide_password=False)
        self.scoped_session = database.sessions(engine)
        self.heartbeat_interval = self.grace_period = None
        self.heartbeat_stale_trial_callback = self.failed_trial_callback = None
        self._ids: dict[tuple[int, int], int] = {}
        self._running: dict[int, tuple[optuna_rows.TrialRow, FrozenTrial]] = {}
        self._looks: dict[int, FrozenTrial] | None = None

    @cached_property
    def _version_manager(self) -> _VersionManager:  # type: ignore[override]
        """Optuna's own, for whoever asks for versions: its dashboard does."""
        return _VersionManager(self.url, self.engine, self.scoped_session)

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
        key = study_id, trial_number
        if key not in self._ids:  # they never change
            with database.only_reading():
                self._ids[key] = super().get_trial_id_from_study_id_trial_number(study_id, trial_number)
        return self._ids[key]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See Optuna; within `one_look` the trial as it was at its first look."""
        if self._looks is None:
            return self._read_trial(trial_id)
        if trial_id not in self._looks:
            self._looks[trial_id] = self._read_trial(trial_id)
        return self._looks[trial_id]

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See Optuna."""
        self.save("user", trial_id, {key: value})

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See Optuna."""
        self.save("system", trial_id, {key: value})

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """The trials that Optuna's cache does not have, or that may have changed: the same ones, in plain SQL."""
        rows = optuna_rows.trial_rows(self.engine, study_id, trial_id_greater_than, included_trial_ids)
        before, self._running = self._running, {}
        found = []
        for row in rows:
            known = before.get(row.trial_id)
            trial = known[1] if known is not None and known[0] == row else _frozen(row)
            if row.state == "RUNNING":  # read again each time, and mostly as it was
                self._running[row.trial_id] = row, trial
            found.append(trial)
        return [trial for trial in found if states is None or trial.state in states]

    def save(self, kind: optuna_rows.AttributeKind, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Set attributes in one transaction. Raises UpdateFinishedTrialError."""
        if not optuna_rows.save_attrs(self.engine, kind, trial_id, {k: json.dumps(v) for k, v in attributes.items()}):
            raise UpdateFinishedTrialError(f"trial id {trial_id} has ended")

    def _read_trial(self, trial_id: int) -> FrozenTrial:
        row = optuna_rows.trial_row(self.engine, trial_id)
        if row is None:
            raise KeyError(f"there is no trial of id {trial_id}")
        return _frozen(row)


@contextmanager
def one_look(storage: BaseStorage) -> Iterator[None]:
    """Inside, a trial is read once, however often Optuna asks for it: three times for a report, as many to tell.

    For steps that only its worker takes; whoever ended the trial meanwhile is met by the writes, which look themselves.
    """
    if not isinstance(storage, _Storage):
        yield
        return
    storage._looks = {}
    try:
        yield
    finally:
        storage._looks = None


def set_user_attrs(storage: BaseStorage, trial_id: int, attributes: Mapping[str, Any]) -> None:
    """Set user attributes of a trial, in one transaction: Optuna has one for each, 18 of the 25 of a tell.

    Raises UpdateFinishedTrialError.
    """
    if not isinstance(storage, _Storage):
        for name, value in attributes.items():
            storage.set_trial_user_attr(trial_id, name, value)
    else:
        storage.save("user", trial_id, attributes)


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


_SPECIAL = {"INF_POS": float("inf"), "INF_NEG": -float("inf"), "NAN": float("nan")}


def _frozen(row: optuna_rows.TrialRow) -> FrozenTrial:
    """A trial as Optuna makes it from the same rows."""
    values = [_number(value, kind) for _objective, value, kind in sorted(row.values)]
    distributions = {name: _distribution(text) for name, _value, text in row.params}
    return FrozenTrial(
        number=row.number,
        state=TrialState[row.state],
        value=None,
        values=values or None,
        datetime_start=_local(row.started),
        datetime_complete=_local(row.completed),
        params={name: distributions[name].to_external_repr(value) for name, value, _text in row.params},
        distributions=distributions,
        user_attrs={key: json.loads(text) for key, text in row.user_attrs},
        system_attrs={key: json.loads(text) for key, text in row.system_attrs},
        intermediate_values={step: _number(value, kind) for step, value, kind in row.steps},
        trial_id=row.trial_id,
    )


def _number(value: float | None, kind: str) -> float:
    if kind in _SPECIAL:
        return _SPECIAL[kind]
    assert value is not None
    return value


@lru_cache(maxsize=1024)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _local(utc: datetime | None) -> datetime | None:
    """Optuna's times are those of this machine's zone, without saying so."""
    return None if utc is None else utc.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
