"""Trials that come from elsewhere: settings of finished runs, to be tried here, or complete with the score they had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from mathverify_sweep.search_space import SearchSpace, Value
from mathverify_sweep.store.turns import one_at_a_time
from mathverify_sweep.study import space as spaces
from mathverify_sweep.study.storage import opened
from mathverify_sweep.study.views import IMPORTED

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine


@dataclass(frozen=True, slots=True)
class Known:
    """Values of tuned axes, and where they come from: file, row, score there, and what else the row says.

    `value`: the score, where it counts as the study's; the trial is then complete and not run.
    """

    settings: Mapping[str, Value]
    origin: Mapping[str, Any]
    value: float | None


def add(engine: Engine, name: str, space: SearchSpace, known: Sequence[Known]) -> int:
    """Enqueue these, or add those with a value as complete; how many were not there yet. Repeatable.

    Settings that are enqueued already, from wherever, are there.
    """
    added = 0
    with one_at_a_time(engine), opened(engine) as storage:
        study = optuna.load_study(study_name=name, storage=storage)
        trials = study.get_trials(deepcopy=False)
        there = [trial.user_attrs.get(IMPORTED) for trial in trials]
        planned = [trial.system_attrs.get("fixed_params") for trial in trials]
        for each in known:
            settings = dict(each.settings)
            if dict(each.origin) in there or (each.value is None and settings in planned):
                continue
            added += 1
            attributes = {IMPORTED: dict(each.origin)}
            if each.value is None:
                study.enqueue_trial(settings, user_attrs=attributes)
                planned.append(settings)
                continue
            distributions = {
                axis.name: spaces.distribution(axis.distribution) for axis in space.axes if axis.name in settings
            }
            study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.COMPLETE,
                    value=each.value,
                    params=settings,
                    distributions=distributions,
                    user_attrs=attributes,
                )
            )
    return added
