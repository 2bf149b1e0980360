"""A finished run as a verifier, or several whose log-odds are averaged. The page to read first in this folder.

A row is judged True when its log-odds are at least the threshold, which is fitted on validation and nowhere else.
Refuses runs that have not finished, runs on different data, and adapters that are not on this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mathverify_sweep import depot, metrics
from mathverify_sweep.config import SweepConfig
from mathverify_sweep.data import dataset
from mathverify_sweep.data.rows import Row
from mathverify_sweep.errors import DataError, StudyError
from mathverify_sweep.metrics import Floats
from mathverify_sweep.specs import Metrics, RunResult, RunSpec, Split
from mathverify_sweep.states import RunState
from mathverify_sweep.store import runs, studies

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.store.runs import RunRecord
    from mathverify_sweep.training.judge import Judge, Trained

AT_ONCE = 8
"""Adapters that are read together: of an 8B model and rank 64 they take 21 GB beside it."""


@dataclass(frozen=True)
class Model:
    """A run that has got to its end."""

    run: RunRecord
    spec: RunSpec
    result: RunResult
    metrics: Metrics

    def adapter(self, output: Path) -> Path:
        """The folder of its adapter. Raises StudyError when it is not under this output folder."""
        if self.result.adapter is not None:
            depot.bring(output, output / self.result.adapter)
        if self.result.adapter is None or not (output / self.result.adapter).is_dir():
            raise StudyError(f"the adapter of run {self.run.run_id} is not under {output}. Give the worker's --output.")
        return output / self.result.adapter

    def trained(self, output: Path) -> Trained:
        """As `training.judge` wants it. Raises as `adapter`."""
        from mathverify_sweep.training.judge import Trained  # imports torch: only when it is needed

        return Trained(self.spec, self.adapter(output))


@dataclass(frozen=True)
class Verifier:
    """One model, or the mean log-odds of several, with a threshold fitted on validation."""

    models: tuple[Model, ...]
    threshold: float

    @property
    def spec(self) -> RunSpec:
        """Of the first model; all have the same data."""
        return self.models[0].spec

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Of its models, in order."""
        return tuple(model.run.run_id for model in self.models)


@dataclass(frozen=True)
class Place:
    """Where models are: the study's database and output folder, and what reads their adapters."""

    database: Database
    output: Path
    judge: Judge


def find(database: Database, run_ids: Sequence[str]) -> Verifier:
    """The verifier of these runs, by their names (see `named`). Raises StudyError."""
    models = tuple(model(named(database, run_id)) for run_id in run_ids)
    require_same_rows(models)
    if len(models) > 1:
        require_judging(models[0], "averaged")
    if len(models) == 1:
        return Verifier(models, models[0].metrics.threshold)
    validation = rows_of(models[0], "validation")
    odds = np.mean([kept_log_odds(database, each, "validation") for each in models], axis=0)
    return Verifier(models, metrics.fitted_threshold(odds, [row.is_correct for row in validation]))


def named(database: Database, name: str) -> RunRecord:
    """A run by its id or the beginning of it, as `STUDY:3` (trial 3), or as `STUDY:best` (the best that has finished).

    Raises StudyError when there is no such run.
    """
    study, colon, which = name.rpartition(":")
    if not colon:
        return runs.get(database, name)
    config = SweepConfig.model_validate_json(studies.get(database, study).config)
    every = runs.runs(database, study)
    if which == "best":
        sign = 1 if metrics.higher_is_better(config.objective) else -1
        found = [(sign * run.result.value, run) for run in every if run.result and run.result.value is not None]
        found = [(value, run) for value, run in found if run.state is RunState.COMPLETE]
        runs_of_it = [max(found, key=lambda each: each[0])[1]] if found else []
    else:
        runs_of_it = [run for run in every if run.stage is None and str(run.trial_number) == which]
    if not runs_of_it:
        raise StudyError(
            f"study {study!r} has no run {which!r}. Name a trial by its number, or `best`, once one ended."
        )
    return runs_of_it[-1]


def model(run: RunRecord) -> Model:
    """Raises StudyError when the run has not finished."""
    if run.state is not RunState.COMPLETE or run.result is None or run.result.metrics is None or run.spec is None:
        raise StudyError(f"run {run.run_id} is {run.state}; only a COMPLETE run can be used as a verifier.")
    return Model(run, run.spec, run.result, run.result.metrics)


def require_same_rows(models: Sequence[Model]) -> None:
    """Raises StudyError when the models' splits have different rows."""
    if len({each.spec.data_fingerprint for each in models}) > 1:
        raise StudyError("runs are held against each other on the same rows; these belong to studies with other data.")


def require_judging(model: Model, done: str) -> None:
    """Raises StudyError for a run of the task solving, which has no log-odds of a verdict."""
    if model.spec.data.task == "solving":
        raise StudyError(f"run {model.run.run_id} writes solutions; only runs that judge them can be {done}.")


def rows_of(model: Model, split: Split) -> tuple[Row, ...]:
    """The rows of a split. Raises DataError when this machine's data is not that of the run."""
    data = dataset.load(model.spec.data)
    if data.fingerprint != model.spec.data_fingerprint:
        raise DataError(f"{model.spec.data.source} is not the data that run {model.run.run_id} was trained on.")
    return data.split(split)


def split_log_odds(database: Database, verifier: Verifier, split: Split, output: Path, judge: Judge) -> Floats:
    """The verifier's log-odds on a split, in its order. Each model reads a split once: what it said is kept."""
    have_read(unread(database, verifier.models, split), split, Place(database, output, judge))
    odds: Floats = np.mean([kept_log_odds(database, each, split) for each in verifier.models], axis=0)
    return odds


def row_log_odds(verifier: Verifier, rows: Sequence[Row], output: Path, judge: Judge) -> Floats:
    """The verifier's log-odds of rows of any origin, those of models over one base in packed passes."""
    said: list[list[float]] = []
    for models in by_base(verifier.models):
        said += judge.reader([each.trained(output) for each in models])(rows)
    odds: Floats = np.mean(said, axis=0)
    return odds


def by_base(models: Sequence[Model]) -> list[list[Model]]:
    """The models by their base model: those of one are read together."""
    found: list[list[Model]] = []
    for each in models:
        same = next((kin for kin in found if kin[0].spec.base_model == each.spec.base_model), None)
        if same is None:
            found.append([each])
        else:
            same.append(each)
    return found


def unread(database: Database, models: Sequence[Model], split: Split) -> list[Model]:
    """Those of the models that have not read a split."""
    return [each for each in models if runs.log_odds(database, each.run.run_id, split) is None]


def have_read(models: Sequence[Model], split: Split, place: Place) -> None:
    """Have the models read a split, and keep what they say there, some at a time. Raises StudyError, DataError,
    ModelError.
    """
    for kin in by_base(models):
        for some in (kin[start : start + AT_ONCE] for start in range(0, len(kin), AT_ONCE)):
            score = place.judge.reader([each.trained(place.output) for each in some])
            for each, odds in zip(some, score(rows_of(some[0], split)), strict=True):
                runs.save_log_odds(place.database, each.run.run_id, split, odds)


def kept_log_odds(database: Database, model: Model, split: Split) -> Floats:
    """What a model has said on a split. Raises StudyError when it has not read it."""
    odds = runs.log_odds(database, model.run.run_id, split)
    if odds is None:
        raise StudyError(
            f"run {model.run.run_id} has no predictions on {split}. "
            f"Make them: mvsweep evaluate {model.run.run_id} --split {split}"
        )
    return odds.astype(np.float64)
