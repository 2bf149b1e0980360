"""A trial for a result that came when its own trial had ended: a new one with the same parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState

from mathverify_sweep.errors import StudyError
from mathverify_sweep.study.storage import opened

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

LATE_RUN = "late_run"
"""The user attribute that names the run whose late result the trial has."""


def open_again(engine: Engine, name: str, trial_number: int, run_id: str) -> int:
    """The number of a RUNNING trial with the parameters of `trial_number`, for `tell`; or of the one that was told.

    Said twice for one run, it is the same trial.
    """
    with opened(engine) as storage:
        study = optuna.load_study(study_name=name, storage=storage)
        trials = study.get_trials(deepcopy=False)
        useful = (TrialState.RUNNING, TrialState.COMPLETE)
        for trial in trials:
            if trial.user_attrs.get(LATE_RUN) == run_id and trial.state in useful:
                return trial.number
        if trial_number >= len(trials):
            raise StudyError(f"study {name!r} has no trial {trial_number}.")
        same = trials[trial_number]
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=same.params,
                distributions=same.distributions,
                user_attrs={LATE_RUN: run_id},
            )
        )
        added = [trial.number for trial in study.get_trials() if trial.user_attrs.get(LATE_RUN) == run_id]
        return max(added)
