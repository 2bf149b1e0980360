"""Studies: create, open, ask, report, tell, reconcile. Refuses to change a study that is there.

Optuna is the truth about trials' parameters and scores. All that is said to it here may be said twice, and an outage of
the database comes out as StorageError. A handle is for one thread.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from mathverify_sweep import metrics, sweep_file
from mathverify_sweep.config import SweepConfig
from mathverify_sweep.errors import ConfigError, StudyError
from mathverify_sweep.search_space import Value
from mathverify_sweep.specs import RunResult, TrainParams
from mathverify_sweep.states import ENDINGS, EndReason, Verdict
from mathverify_sweep.store import database, glances, studies
from mathverify_sweep.store.runs import Point, RunRecord
from mathverify_sweep.store.studies import StudyRecord
from mathverify_sweep.store.turns import one_at_a_time
from mathverify_sweep.study import artifacts, proxy, space
from mathverify_sweep.study.storage import (
    close_storage,
    one_look,
    open_storage,
    opened,
    set_user_attrs,
    storage_errors,
)
from mathverify_sweep.study.views import IMPORTED, TrialView, view

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

log = logging.getLogger(__name__)

FITS_IN_MEMORY = "fits_in_memory"
"""The constraint that a trial violates which runs out of memory at the smallest token budget."""

# Names of user attributes, beside those of the metrics.
_END_REASON, _MESSAGE, _RUN_ID, _PRUNED_AT, _ABANDONED = "end_reason", "message", "run_id", "pruned_at", "abandoned"


@dataclass(frozen=True, slots=True)
class Asked:
    """A new trial: RUNNING in Optuna, and nobody's run yet."""

    trial_number: int
    params: TrainParams


def create(engine: Engine, config: SweepConfig, data_fingerprint: str, now: datetime) -> bool:
    """Make the study, ours and Optuna's, and enqueue what the sweep file says and the whole grid; False if it is there.

    Repeatable, also after a crash in its middle and by many at once. Raises StudyError when the study is there with
    another configuration, DataDrift when it was created from other data.
    """
    record = StudyRecord(config.study, config.model_dump_json(), data_fingerprint, None, None, now)
    with one_at_a_time(engine), opened(engine) as storage:
        if config.study not in studies.names(engine) and config.study in optuna.get_all_study_names(storage):
            raise StudyError(
                f"this database has an Optuna study {config.study!r} that mvsweep did not make. "
                "Give the file another name."
            )
        created = studies.create(engine, record)
        study = _create_optuna_study(storage, config)
        for settings in _missing(study, _planned(config)):
            study.enqueue_trial(dict(settings))
    return created


def open_study(engine: Engine, name: str, optuna_proxy: str | None = None) -> StudyHandle:
    """THE way to open a study: sampler and pruner come from the sweep file that is stored with it.

    With `optuna_proxy` (HOST:PORT) Optuna reaches the database through that proxy only.

    Raises StudyError naming the nearest study when there is none of that name.
    """
    record = studies.get(engine, name)
    config = SweepConfig.model_validate_json(record.config)
    database.rest(engine)  # or a hundred workers that start at once hold a connection each and wait for another one
    return StudyHandle(engine, config, record.data_fingerprint, optuna_proxy)


@dataclass(frozen=True, slots=True)
class _Orphan:
    """A RUNNING trial that no run is at: how it looks, since when, and the places that waited for a trial then."""

    looks: str
    since: float
    places: frozenset[str]


class StudyHandle:
    """An open study. `close` it, or use it as a context manager."""

    def __init__(
        self, engine: Engine, config: SweepConfig, data_fingerprint: str, optuna_proxy: str | None = None
    ) -> None:
        self.config = config
        self.data_fingerprint = data_fingerprint
        self._engine = engine
        self._orphans: dict[int, _Orphan] = {}
        self._looked_at = -float("inf")
        self._storage: BaseStorage = proxy.connect(optuna_proxy) if optuna_proxy else open_storage(engine)
        try:
            with storage_errors(engine):
                self._study = _load_optuna_study(self._storage, config)
                self._study_id = self._storage.get_study_id_from_name(config.study)
        except BaseException:
            self.close()
            raise

    def ask(self) -> Asked | None:
        """A new trial, the enqueued ones first; None when a grid has no point left."""
        with storage_errors(self._engine):
            while (trial := self._next()) is not None:
                self._study.sampler = space.sampler(self.config, trial.number)
                try:
                    params = self.config.space.params(space.suggest(trial, self.config.space))
                except UpdateFinishedTrialError:
                    # It took two lease periods to ask for it, and somebody took it for abandoned: ask for another one.
                    log.warning("trial %d was failed by another worker while it was asked for", trial.number)
                    continue
                except ValueError as error:
                    # Enqueued past our checks, with Optuna's own tools: not a value of its axis.
                    log.warning("trial %d cannot be run: %s", trial.number, error)
                    self._end(trial, RunResult(end_reason=EndReason.CRASHED, message=str(error)), None)
                    continue
                return Asked(trial.number, params)
        return None

    def report(self, trial_number: int, rows_seen: int, value: float) -> Verdict:
        """Give a trial's value at a rung; whether the trial is to go on. Said again, the answer stays."""
        with storage_errors(self._engine), one_look(self._storage):
            frozen = self._frozen(trial_number)
            if frozen.state.is_finished() or _PRUNED_AT in frozen.user_attrs:
                return Verdict.PRUNE
            # Trials are compared at rungs; a large batch passes one by a few rows.
            rung = max((rung for rung in self.config.rungs if rung <= rows_seen), default=rows_seen)
            if rung in frozen.intermediate_values:
                return Verdict.CONTINUE
            trial = self._trial(trial_number)
            try:
                trial.report(value, rung)
                if not trial.should_prune():
                    return Verdict.CONTINUE
                # Asked once more, a pruner says CONTINUE: it counts the rung as passed.
                trial.set_user_attr(_PRUNED_AT, rung)
            except UpdateFinishedTrialError:  # another worker ended it between two of these lines
                log.info("trial %d has ended already", trial_number)
            return Verdict.PRUNE

    def tell(self, trial_number: int, result: RunResult, run_id: str | None = None) -> None:
        """End a trial as its last attempt ended. Of a trial that has ended, it changes nothing."""
        with storage_errors(self._engine), one_look(self._storage):
            self._end(self._trial(trial_number), result, run_id)

    def show(self, run: RunRecord, points: Sequence[Point], link: str | None, folder: Path) -> None:
        """Put a note and pictures of an ended run beside its trial, for optuna-dashboard. Before `tell`; repeatable.

        `link`: the run in W&B. `folder`: the artifacts of all studies of this database.
        """
        assert run.trial_number is not None
        baselines = json.loads(studies.get(self._engine, self.config.study).baselines or "{}")
        accuracies = {name: figures["accuracy"] for name, figures in baselines.items()}
        page = artifacts.Page(run, tuple(points), link, accuracies)
        with storage_errors(self._engine), one_look(self._storage):
            if self._frozen(run.trial_number).state.is_finished():
                return
            try:
                artifacts.show(self._trial(run.trial_number), page, folder)
            except UpdateFinishedTrialError:  # another worker told it meanwhile
                log.info("trial %d has ended already", run.trial_number)
            except OSError as error:  # a full disk costs a picture, not the trial
                log.warning("trial %d: nothing to show in %s: %s", run.trial_number, folder, error)

    def enqueue(self, settings: Mapping[str, Value]) -> None:
        """Have these values of tuned axes tried next; the sampler fills in the others. Raises ConfigError."""
        problems = sweep_file.enqueue_problems(self.config.space, settings, "enqueue")
        if problems:
            raise ConfigError(f"study {self.config.study}", problems)
        with storage_errors(self._engine):
            self._study.enqueue_trial(dict(settings))

    def reconcile(self, monotonic: float, patience_seconds: float, only: Collection[int] | None = None) -> list[int]:
        """Mend what a crash left between our runs and Optuna's trials; the numbers of the trials that it ended.

        A RUNNING trial whose last attempt has ended is told so. One that no run ever took is failed, and what was
        enqueued in it is enqueued again. Both only once this handle has seen the trial unchanged for
        `patience_seconds` (two lease periods; 0 at a person's word) of its clock `monotonic`, every look in between
        having succeeded: until then its worker may be about to tell it, with its note and pictures. And while a place
        of those times waits for its trial, the trial may be that one, however long its worker takes. `only`: of these
        trials.
        """
        orphans, self._orphans = self._orphans, {}  # a look that fails forgets them
        if monotonic - self._looked_at > 0.75 * patience_seconds:  # a gap, which may hide one that would have failed
            orphans = {}
        self._looked_at = monotonic
        ended = []
        with storage_errors(self._engine):
            # In this order: a run that is attached between the reads is then seen.
            running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            places = glances.places(self._engine, self.config.study)
            numbers = [frozen.number for frozen in running]
            last = glances.last_attempts(self._engine, self.config.study, numbers)
            for frozen in running:
                run = last.get(frozen.number)
                if (run is not None and run.end_reason is None) or (only is not None and frozen.number not in only):
                    continue
                orphan = _Orphan(_looks(frozen, run), monotonic, places)
                before = orphans.get(frozen.number, orphan)
                orphan = before if before.looks == orphan.looks else orphan
                self._orphans[frozen.number] = orphan
                may_be_taken = run is None and not places.isdisjoint(orphan.places)
                if monotonic - orphan.since >= patience_seconds and not may_be_taken:
                    self._mend(frozen, run)
                    ended.append(frozen.number)
        return ended

    def trials(self) -> list[TrialView]:
        """All trials, by number."""
        with storage_errors(self._engine):
            return [view(trial) for trial in self._study.get_trials(deepcopy=False)]

    def rest(self) -> None:
        """Hold no connection until one is needed again, neither for Optuna nor for us: they share one."""
        self._storage.remove_session()
        database.rest(self._engine)

    def close(self) -> None:
        """Let go of Optuna's storage. The engine stays open."""
        close_storage(self._storage)

    def __enter__(self) -> StudyHandle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _mend(self, frozen: FrozenTrial, run: glances.LastAttempt | None) -> None:
        if run is None or run.end_reason is None:
            self._abandon(frozen)
        else:
            result = run.result or RunResult(end_reason=run.end_reason)
            self._end(self._trial(frozen.number), result, run.run_id)

    def _next(self) -> Trial | None:
        if self.config.sampler.type != "grid":
            return self._study.ask()
        # Optuna's ask would make a new trial where the grid has come to its end.
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            try:
                if self._storage.set_trial_state_values(self._trial_id(frozen.number), TrialState.RUNNING):
                    return self._trial(frozen.number)
            except UpdateFinishedTrialError:
                continue
        return None

    def _end(self, trial: Trial, result: RunResult, run_id: str | None) -> None:
        state = TrialState[ENDINGS[result.end_reason].last_state]
        if state is TrialState.COMPLETE and result.value is None:
            state = TrialState.FAIL
            result = result.model_copy(update={"message": "finished without a value"})
        try:
            set_user_attrs(self._storage, self._trial_id(trial.number), _attributes(result, run_id))
            if result.end_reason is EndReason.OUT_OF_MEMORY and not trial.constraints:
                trial.set_constraint(FITS_IN_MEMORY, 1.0)
            value = result.value if state is TrialState.COMPLETE else None
            self._study.tell(trial.number, value, state=state, skip_if_finished=True)
        except UpdateFinishedTrialError:
            log.info("trial %d had ended already", trial.number)

    def _abandon(self, frozen: FrozenTrial) -> None:
        """Fail a trial that nobody runs. Of many who do so at once, one enqueues its settings again."""
        log.warning("trial %d was asked for and no run took it; failing it", frozen.number)
        trial_id = self._trial_id(frozen.number)
        try:
            self._storage.set_trial_user_attr(trial_id, _ABANDONED, True)
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return
        if enqueued := frozen.system_attrs.get("fixed_params"):
            origin = {name: value for name, value in frozen.user_attrs.items() if name == IMPORTED}
            self._study.enqueue_trial(enqueued, user_attrs=origin)

    def _trial(self, trial_number: int) -> Trial:
        return Trial(self._study, self._trial_id(trial_number))

    def _frozen(self, trial_number: int) -> FrozenTrial:
        return self._storage.get_trial(self._trial_id(trial_number))

    def _trial_id(self, trial_number: int) -> int:
        try:
            return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial_number)
        except KeyError:
            raise StudyError(f"study {self.config.study!r} has no trial {trial_number}.") from None


def _looks(frozen: FrozenTrial, run: glances.LastAttempt | None) -> str:
    return repr((run, frozen.params, frozen.intermediate_values, frozen.user_attrs, frozen.system_attrs))


def _create_optuna_study(storage: BaseStorage, config: SweepConfig) -> optuna.Study:
    study = optuna.create_study(
        study_name=config.study,
        storage=storage,
        direction="maximize" if metrics.higher_is_better(config.objective) else "minimize",
        sampler=space.sampler(config, 0),
        pruner=space.pruner(config),
        load_if_exists=True,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*set_metric_names is experimental", category=ExperimentalWarning)
        study.set_metric_names([config.objective])
    return study


def _load_optuna_study(storage: BaseStorage, config: SweepConfig) -> optuna.Study:
    try:
        return optuna.load_study(
            study_name=config.study, storage=storage, sampler=space.sampler(config, 0), pruner=space.pruner(config)
        )
    except KeyError:
        raise StudyError(f"study {config.study!r} was not created to its end. Run `mvsweep create` again.") from None


def _planned(config: SweepConfig) -> list[Mapping[str, Value]]:
    """The settings that the sweep file has tried first, then the grid's points."""
    grid = config.space.grid() if config.sampler.type == "grid" else ()
    return [*config.enqueue, *grid]


def _missing(study: optuna.Study, planned: Iterable[Mapping[str, Value]]) -> list[Mapping[str, Value]]:
    """Those of the planned settings that no trial stands for, each once."""
    trials = [t for t in study.get_trials(deepcopy=False) if _ABANDONED not in t.user_attrs]
    there = {_same(trial.system_attrs.get("fixed_params", {})) for trial in trials}
    new = {_same(settings): settings for settings in planned}
    return [settings for key, settings in new.items() if key not in there]


def _same(settings: Mapping[str, Value]) -> str:
    """Equal for equal settings, in whatever order they are written."""
    return repr(sorted(settings.items()))


def _attributes(result: RunResult, run_id: str | None) -> dict[str, Any]:
    """What a trial's user attributes say of its last run."""
    about = {_END_REASON: result.end_reason.value, _MESSAGE: result.message or None, _RUN_ID: run_id}
    figures = result.metrics.model_dump(exclude={"task"}) if result.metrics else {}
    spent = {"rows_seen": result.rows_seen, "train_seconds": round(result.train_seconds, 1)}
    return {name: value for name, value in {**about, **figures, **spent}.items() if value is not None}
