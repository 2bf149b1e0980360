"""Optuna's trials as plain values, for reports. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mathverify_sweep.errors import StudyError
from mathverify_sweep.search_space import Value
from mathverify_sweep.states import RunState
from mathverify_sweep.store import studies
from mathverify_sweep.study.storage import opened

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

IMPORTED = "imported"
"""The user attribute of a trial from elsewhere: file, row, score there, and the cells that are no setting."""
MIN_TRIALS = 4
"""Complete trials below which importances would be a guess."""


@dataclass(frozen=True, slots=True)
class TrialView:
    """A trial. `params`: its tuned axes. `intermediate`: its values by rows seen. `duration`: seconds, once ended."""

    number: int
    state: RunState
    params: dict[str, Value]
    value: float | None
    intermediate: dict[int, float]
    duration: float | None
    user_attrs: dict[str, Any]

    @property
    def ran_elsewhere(self) -> bool:
        """Whether it is complete by a score that was taken over: there is no run of it here."""
        return self.state is RunState.COMPLETE and IMPORTED in self.user_attrs and "end_reason" not in self.user_attrs


def trials(engine: Engine, name: str) -> list[TrialView]:
    """The trials of a study, by number. Raises StudyError naming the nearest study when there is none of that name."""
    return [view(trial) for trial in _study_trials(engine, name)]


def parameter_importances(engine: Engine, name: str) -> dict[str, float]:
    """The share of each axis in what makes complete trials differ (fANOVA), the largest first; they add up to 1.

    Empty when it cannot be told: few complete trials, or all of one value. Leaves out axes that not every trial has.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances  # brings scikit-learn, seconds

    complete = [t for t in _study_trials(engine, name) if t.state is TrialState.COMPLETE]
    if len(complete) < MIN_TRIALS or len({trial.value for trial in complete}) == 1:
        return {}
    study = optuna.create_study()  # in memory; fANOVA does not ask which direction is better
    study.add_trials(complete)
    return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0)))


def view(trial: FrozenTrial) -> TrialView:
    """An Optuna trial as a plain value."""
    return TrialView(
        number=trial.number,
        state=RunState(trial.state.name),
        params=dict(trial.params),
        value=trial.value,
        intermediate=dict(sorted(trial.intermediate_values.items())),
        duration=trial.duration.total_seconds() if trial.duration else None,
        user_attrs=dict(trial.user_attrs),
    )


def _study_trials(engine: Engine, name: str) -> list[FrozenTrial]:
    studies.get(engine, name)
    with opened(engine) as storage:
        try:
            return storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False)
        except KeyError:
            raise StudyError(f"study {name!r} was not created to its end. Run `mvsweep create` again.") from None
