"""A study in plain rows: its status, and its leaderboard. Every number that is shown anywhere comes from here.

Reads, and writes nothing.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from mathverify_sweep import metrics
from mathverify_sweep.config import SweepConfig
from mathverify_sweep.rates import Rates
from mathverify_sweep.reports import held
from mathverify_sweep.reports.models import (
    BudgetUse,
    CurvePoint,
    Leaderboard,
    LeaderRow,
    Prediction,
    PromotionRow,
    RunningRow,
    StageRow,
    StatusReport,
    StudyState,
    TrialRow,
)
from mathverify_sweep.specs import Metrics, Objective
from mathverify_sweep.states import RunState
from mathverify_sweep.store import promotions, runs, speeds, studies
from mathverify_sweep.store.device_time import Use, device_seconds
from mathverify_sweep.store.runs import Point, RunRecord
from mathverify_sweep.study import views
from mathverify_sweep.study.artifacts import WANDB
from mathverify_sweep.study.views import IMPORTED, TrialView

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.store.promotions import PromotionRecord
    from mathverify_sweep.store.studies import StudyRecord


_Said = dict[str, tuple[CurvePoint, ...]]
"""What each run said, by run_id."""


def status(database: Database, study: str) -> StatusReport:
    """Everything about a study that fits on a page. Raises StudyError when there is no study of that name."""
    record = studies.get(database, study)
    config = SweepConfig.model_validate_json(record.config)
    every = [run for run in runs.runs(database, study) if run.spec is not None]
    points = runs.points_of_study(database, study)
    rates = {worker: Rates.model_validate_json(found) for worker, found in speeds.of_study(database, study).items()}
    said = {run_id: _curve(found) for run_id, found in points.items()}
    trials = _trials(views.trials(database, study), every, said, config.data.train_rows)
    best = ranked(trials, config.objective)
    uses = _uses(every)
    budget = _budget([use for _, use in uses], trials, config)
    return StatusReport(
        study=study,
        state=_state(record, every, trials, budget),
        stopped=record.stopped,
        objective=config.objective,
        data_fingerprint=record.data_fingerprint,
        created_at=record.created_at,
        counts=dict(Counter(trial.state for trial in trials)),
        end_reasons=dict(Counter(trial.end_reason for trial in trials if trial.end_reason)),
        best_trial=best[0].number if best else None,
        best_value=best[0].value if best else None,
        budget=budget,
        predictions=held.predictions(uses, points, rates),
        baselines={name: Metrics(**figures) for name, figures in json.loads(record.baselines or "{}").items()},
        trials=trials,
        promotions=tuple(_promotion(found, every, said, trials) for found in promotions.promotions(database, study)),
        running=tuple(_running(run, said) for run in every if run.state is RunState.RUNNING),
    )


def leaderboard(report: StatusReport, top: int | None = None) -> Leaderboard:
    """The best `top` trials by the study's objective, and the baselines below them."""
    best = ranked(report.trials, report.objective)
    promoted = best_promoted(report)
    rows = [_leader(rank, trial, promoted.get(trial.number)) for rank, trial in enumerate(best[:top], start=1)]
    baselines = [_baseline(name, found, report.objective) for name, found in report.baselines.items()]
    rows += sorted(baselines, key=lambda row: row.value, reverse=metrics.higher_is_better(report.objective))
    return Leaderboard(study=report.study, objective=report.objective, complete=len(best), rows=tuple(rows))


def ranked(trials: Sequence[TrialRow], objective: Objective) -> list[TrialRow]:
    """Complete trials, the best first, the older first among equals."""
    complete = [(trial.value, trial) for trial in trials if trial.state is RunState.COMPLETE and trial.metrics]
    sign = -1.0 if metrics.higher_is_better(objective) else 1.0
    with_value = [(sign * value, trial.number, trial) for value, trial in complete if value is not None]
    return [trial for _, _, trial in sorted(with_value, key=lambda found: found[:2])]


def best_stage(stages: Sequence[StageRow], objective: Objective) -> StageRow | None:
    """The complete stage with the best value, whose adapter is what it all came to; of equals the later one."""
    sign = 1.0 if metrics.higher_is_better(objective) else -1.0
    complete = [
        (sign * stage.value, stage.stage, stage)
        for stage in stages
        if stage.state is RunState.COMPLETE and stage.value is not None
    ]
    return max(complete, key=lambda found: found[:2])[2] if complete else None


def best_promoted(report: StatusReport) -> dict[int, StageRow]:
    """Of each promoted trial the best stage of all its promotions, as far as one is complete."""
    stages: dict[int, list[StageRow]] = defaultdict(list)
    for row in report.promotions:
        stages[row.trial_number] += row.stages
    best = {number: best_stage(found, report.objective) for number, found in stages.items()}
    return {number: stage for number, stage in best.items() if stage is not None}


def standing(report: StatusReport) -> str:
    """The state of a study in words; runs that were under way when it was stopped go on."""
    if report.stopped is None:
        return report.state
    return (
        f"stopped: {report.stopped}" if report.state == "stopped" else f"{report.state}, then stopped: {report.stopped}"
    )


def held_against(prediction: Prediction) -> str:
    """A prediction and what came of it, in words."""
    who = f"{prediction.workers} worker{'s' if prediction.workers > 1 else ''}"
    return (
        f"device time over what was predicted for this work: {prediction.took_seconds:,.0f} s over "
        f"{prediction.predicted_seconds:,.0f} s, {who} on {prediction.device}"
    )


def _trials(
    seen: Sequence[TrialView], every: Sequence[RunRecord], said: _Said, train_rows: int
) -> tuple[TrialRow, ...]:
    attempts: dict[int, list[RunRecord]] = defaultdict(list)
    for run in every:
        if run.stage is None and run.trial_number is not None:
            attempts[run.trial_number].append(run)
    return tuple(_trial(view, attempts[view.number], said, train_rows) for view in seen)


def _trial(view: TrialView, attempts: Sequence[RunRecord], said: _Said, train_rows: int) -> TrialRow:
    """State and parameters are Optuna's word, the rest is ours."""
    link = view.user_attrs.get(WANDB)
    row = _run(attempts, said, train_rows) | {"state": view.state}
    if view.ran_elsewhere:
        row |= {"value": view.value}
    row["message"] = row["message"] or _origin(view.user_attrs.get(IMPORTED))
    return TrialRow(**row, number=view.number, params=view.params, wandb=None if link is None else str(link))


def _origin(imported: Mapping[str, Any] | None) -> str:
    if imported is None:
        return ""
    said = ", ".join(f"{column} {cell}" for column, cell in imported["cells"].items())
    score = "" if imported["score"] is None else f", {imported['score']} there"
    return f"imported from {imported['file']}, row {imported['row']}{score}" + (f": {said}" if said else "")


def _run(attempts: Sequence[RunRecord], said: _Said, train_rows: int) -> dict[str, Any]:
    """The fields of a RunRow, from all attempts of a run in order."""
    last = attempts[-1] if attempts else None
    result = last.result if last else None
    found = result.metrics if result else None
    curve = said.get(last.run_id, ()) if last else ()
    rungs = [point.value for point in curve if point.value is not None]
    at_end = result.value if result else None
    return {
        "run_id": last.run_id if last else None,
        "state": last.state if last else RunState.WAITING,
        "end_reason": last.end_reason if last else None,
        "message": result.message if result else "",
        "attempts": len(attempts),
        "value": at_end if at_end is not None or not rungs else rungs[-1],
        "accuracy": found.accuracy if found else None,
        "accuracy_low": found.accuracy_low if found else None,
        "accuracy_high": found.accuracy_high if found else None,
        "rows_seen": max(result.rows_seen if result else 0, curve[-1].rows_seen if curve else 0),
        "rows_to_meet": last.spec.rows_to_meet if last and last.spec else train_rows,
        "train_rows": last.spec.train_rows if last and last.spec else train_rows,
        "seconds": sum(_seconds(run) for run in attempts),
        "peak_memory_bytes": result.peak_memory_bytes if result else 0,
        "worker": last.worker.worker_id if last and last.worker else None,
        "gpu": last.worker.gpu if last and last.worker else None,
        "metrics": found,
        "curve": curve,
    }


def _promotion(
    found: PromotionRecord, every: Sequence[RunRecord], said: _Said, trials: Sequence[TrialRow]
) -> PromotionRow:
    attempts: dict[int, list[RunRecord]] = defaultdict(list)
    for run in every:
        if run.promotion_id == found.promotion_id and run.stage is not None:
            attempts[run.stage].append(run)
    stages = tuple(
        StageRow(
            **_run(of_stage, said, 0),
            stage=stage,
            part=_part(of_stage[-1]),
            started_from=_started_from(of_stage[-1]),
            slices=of_stage[-1].result.slices if of_stage[-1].result else (),
        )
        for stage, of_stage in sorted(attempts.items())
    )
    return PromotionRow(
        promotion_id=found.promotion_id,
        trial_number=found.trial_number,
        plan=_plan(found.plan),
        state=_together([stage.state for stage in stages]),
        trial_value=next((trial.value for trial in trials if trial.number == found.trial_number), None),
        stages=stages,
    )


def _part(run: RunRecord) -> Literal["trunk", "cooldown"] | None:
    if run.spec is not None and run.spec.leaves_state:
        return "trunk"
    return "cooldown" if run.spec is not None and run.spec.goes_on_from else None


def _started_from(run: RunRecord) -> str | None:
    return run.result.started_from if run.result else None


def _plan(stored: str) -> str:
    """The plan's name; a plan is stored with its stages, which are shown as they became."""
    try:
        return str(json.loads(stored)["plan"])
    except (ValueError, TypeError, KeyError):
        return stored


def _together(states: Sequence[RunState]) -> RunState:
    """One state for many: what goes on before what failed, what failed before what waits, and only then complete."""
    for state in (RunState.RUNNING, RunState.FAIL, RunState.WAITING, RunState.PRUNED):
        if state in states:
            return state
    return RunState.COMPLETE


def _running(run: RunRecord, said: _Said) -> RunningRow:
    assert run.spec is not None
    curve = said.get(run.run_id, ())
    return RunningRow(
        run_id=run.run_id,
        trial_number=run.spec.trial_number,
        stage=run.stage,
        attempt=run.attempt,
        worker=f"{run.worker.worker_id}@{run.worker.host}" if run.worker else "",
        gpu=run.worker.gpu if run.worker else "",
        rows_seen=curve[-1].rows_seen if curve else 0,
        rows_to_meet=run.spec.rows_to_meet,
        value=next((point.value for point in reversed(curve) if point.value is not None), None),
        loss=next((point.loss for point in reversed(curve) if point.loss is not None), None),
        started_at=run.started_at,
        heard_at=run.renewed_at,
    )


def _state(
    record: StudyRecord, every: Sequence[RunRecord], trials: Sequence[TrialRow], budget: BudgetUse
) -> StudyState:
    # A trial whose run has ended is RUNNING until its worker has told Optuna, and not to be chosen from before;
    # one that was handed back is RUNNING to Optuna as well, and waits for its next attempt.
    handed_back = {run.trial_number for run in every if run.state is RunState.WAITING}
    states = {run.state for run in every}
    states |= {trial.state for trial in trials if trial.run_id and trial.number not in handed_back}
    if RunState.RUNNING in states:
        return "running"
    if record.stopped is not None:
        return "stopped"
    if RunState.WAITING in states:
        return "waiting"
    if _is_spent(budget):
        return "done"
    return "idle" if budget.trials_used else "new"


def _is_spent(budget: BudgetUse) -> bool:
    """The trials, the device-hours or the time: whichever comes first."""
    hours = budget.gpu_hours is not None and budget.gpu_hours_used >= budget.gpu_hours
    late = budget.deadline is not None and datetime.now(UTC) >= budget.deadline
    return budget.trials_used >= budget.trials or hours or late


def _uses(every: Sequence[RunRecord]) -> list[tuple[RunRecord, Use]]:
    """Attempts that were in an engine."""
    return [
        (run, Use(run.worker.worker_id, run.started_at, _seconds(run)))
        for run in every
        if run.worker and run.started_at
    ]


def _budget(uses: Sequence[Use], trials: Sequence[TrialRow], config: SweepConfig) -> BudgetUse:
    return BudgetUse(
        trials=config.trials,
        trials_used=sum(trial.run_id is not None for trial in trials),
        gpu_hours=config.budget.gpu_hours,
        gpu_hours_used=device_seconds(uses) / 3600,
        deadline=config.budget.deadline,
    )


def _seconds(run: RunRecord) -> float:
    """How long one attempt has been in an engine; of a running one until it was heard of last."""
    if run.busy_seconds is not None:
        return run.busy_seconds
    if run.started_at is None or run.renewed_at is None:
        return 0.0
    return max(0.0, (run.renewed_at - run.started_at).total_seconds())


def _curve(points: Sequence[Point]) -> tuple[CurvePoint, ...]:
    return tuple(CurvePoint(rows_seen=point.rows_seen, value=point.value, loss=point.loss) for point in points)


def _leader(rank: int, trial: TrialRow, promoted: StageRow | None) -> LeaderRow:
    assert trial.metrics is not None
    assert trial.value is not None
    return LeaderRow(
        kind="trial",
        rank=rank,
        name=f"trial {trial.number}",
        trial_number=trial.number,
        run_id=trial.run_id,
        value=trial.value,
        metrics=trial.metrics,
        params=trial.params,
        rows_seen=trial.rows_seen,
        promoted=promoted,
    )


def _baseline(name: str, found: Metrics, objective: Objective) -> LeaderRow:
    return LeaderRow(
        kind="baseline",
        rank=None,
        name=name.replace("_", " "),
        trial_number=None,
        run_id=None,
        value=metrics.objective_value(found, objective),
        metrics=found,
        params={},
        rows_seen=0,
        promoted=None,
    )
