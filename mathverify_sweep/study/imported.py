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
    """Enqueue these, or add those with a value as complete; how many were not there yet. Repeatable."""
    with one_at_a_time(engine), opened(engine) as storage:
        study = optuna.load_study(study_name=name, storage=storage)
        there = [trial.user_attrs.get(IMPORTED) for trial in study.get_trials(deepcopy=False)]
        new = [each for each in known if dict(each.origin) not in there]
        for each in new:
            attributes = {IMPORTED: dict(each.origin)}
            if each.value is None:
                study.enqueue_trial(dict(each.settings), user_attrs=attributes)
                continue
            distributions = {
                axis.name: spaces.distribution(axis.distribution) for axis in space.axes if axis.name in each.settings
            }
            study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.COMPLETE,
                    value=each.value,
                    params=dict(each.settings),
                    distributions=distributions,
                    user_attrs=attributes,
                )
            )
    return len(new)
