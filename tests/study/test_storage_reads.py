"""Optuna's trials read in plain SQL are those that Optuna reads; its attributes are written in one transaction."""

from __future__ import annotations

import math
from collections.abc import Iterator

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Engine

from mathverify_sweep.study.storage import close_storage, open_storage, set_user_attrs


@pytest.fixture
def storage(engine: Engine) -> Iterator[BaseStorage]:
    opened = open_storage(engine)
    yield opened
    close_storage(opened)


def eventful(storage: BaseStorage) -> optuna.Study:
    """Trials of all states, with all kinds of values, parameters and attributes."""
    study = optuna.create_study(storage=storage, study_name="s", sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial({"x": 0.25})
    for number, value in enumerate((0.5, math.inf, -math.inf, None)):
        trial = study.ask()
        trial.suggest_float("x", 1e-3, 1.0, log=True)
        trial.suggest_categorical("kind", ["a", "b", None, True])
        trial.suggest_int("n", 0, 9)
        for step, said in enumerate((0.1, math.nan, math.inf, -math.inf)):
            trial.report(said, step)
        set_user_attrs(storage, trial._trial_id, {"text": "ä\u2028", "number": number, "list": [1, {"a": None}]})
        if value is not None:
            study.tell(trial, value)
    study.tell(study.ask(), state=TrialState.PRUNED)
    study.tell(study.ask(), state=TrialState.FAIL)
    study.ask()
    study.enqueue_trial({"x": 0.5})
    optuna.create_study(storage=storage, study_name="another").ask()
    return study


def plain(trials: list[FrozenTrial]) -> list[object]:
    """What can be compared: the order within a trial's dictionaries is not Optuna's promise, and NaN equals nothing."""
    parts = "number", "state", "values", "params", "distributions", "user_attrs", "system_attrs"
    times = "datetime_start", "datetime_complete", "_trial_id"
    return [
        ([getattr(t, name) for name in (*parts, *times)], list(t.params), repr(sorted(t.intermediate_values.items())))
        for t in trials
    ]


def test_trials_read_in_plain_sql_are_those_that_optuna_reads(storage: BaseStorage) -> None:
    study = eventful(storage)
    assert isinstance(storage, RDBStorage)
    theirs = RDBStorage._get_trials(storage, study._study_id, None, set(), -1)
    ours = storage._get_trials(study._study_id, None, set(), -1)
    assert len(theirs) == 8
    assert plain(ours) == plain(theirs)
    ids = [trial._trial_id for trial in theirs]
    for states, also, above in (
        (None, {ids[0], ids[3]}, ids[4]),
        ((TrialState.RUNNING,), set(), -1),
        (None, set(), ids[-1]),
        (None, {ids[0]}, ids[-1]),
    ):
        wanted = RDBStorage._get_trials(storage, study._study_id, states, set(also), above)
        got = storage._get_trials(study._study_id, states, set(also), above)
        assert plain(got) == plain(wanted)


def test_attributes_are_replaced_and_those_of_an_ended_trial_are_not(storage: BaseStorage) -> None:
    study = optuna.create_study(storage=storage, study_name="s")
    trial = study.ask()
    set_user_attrs(storage, trial._trial_id, {"a": 1, "b": 2})
    set_user_attrs(storage, trial._trial_id, {"b": 3, "c": 4})
    assert study.trials[0].user_attrs == {"a": 1, "b": 3, "c": 4}
    study.tell(trial, 1.0)
    with pytest.raises(UpdateFinishedTrialError):
        set_user_attrs(storage, trial._trial_id, {"a": 2})
    assert study.trials[0].user_attrs["a"] == 1
