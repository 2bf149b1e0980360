"""`mvsweep reap --accept RUN`: a result that came after its run's lease was lost counts after all.

A trial that is still open in Optuna gets it, and the attempt that was to repeat the work is ended with it. When the
trial has ended meanwhile, a new one with the same parameters gets it. A promotion goes on from the stage that gets it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mathverify_sweep import paths
from mathverify_sweep.errors import StudyError
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store import late, promotions, runs
from mathverify_sweep.store.runs import RunRecord
from mathverify_sweep.store.turns import one_at_a_time
from mathverify_sweep.study import late as late_trials

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.study.study import StudyHandle


def accept(database: Database, study: StudyHandle, run: RunRecord, output: Path) -> RunRecord:
    """The run that has the late result of `run` now. Said twice, it is the same one.

    Raises StudyError when there is no late result that finished, or when a promotion's stage was trained since.
    """
    _require_finished(run)
    with one_at_a_time(database):
        number = _trial_for(database, study, run)
        if run.stage is not None:
            _require_open_stage(database, run)
        heir = runs.get(database, late.accept(database, run.run_id, number, datetime.now(UTC)))
    assert run.late_result is not None
    if run.late_result.log_odds:
        runs.save_log_odds(database, heir.run_id, "validation", run.late_result.log_odds)
    if run.stage is None:
        assert heir.result is not None
        study.show(heir, runs.points(database, heir.run_id), None, paths.artifacts_folder(output))
        study.tell(number, heir.result, heir.run_id)
    return heir


def _require_finished(run: RunRecord) -> None:
    if run.late_result is None:
        raise StudyError(f"run {run.run_id} has no late result. `mvsweep reap` lists those that have.")
    if run.late_result.end_reason is not EndReason.FINISHED or run.late_result.value is None:
        reason = run.late_result.end_reason
        raise StudyError(f"run {run.run_id} ended late as {reason}; only a finished run has a value to accept.")


def _trial_for(database: Database, study: StudyHandle, run: RunRecord) -> int:
    """The run's own trial while that is open, or the one that got the result before; else a new one."""
    assert run.trial_number is not None
    heir = late.accepted_as(database, run.run_id)
    if heir is not None:
        number = runs.get(database, heir).trial_number
        assert number is not None
        return number
    own = next(trial for trial in study.trials() if trial.number == run.trial_number)
    if run.stage is not None or own.state is RunState.RUNNING:
        return run.trial_number
    return late_trials.open_again(database, study.config.study, run.trial_number, run.run_id)


def _require_open_stage(database: Database, run: RunRecord) -> None:
    """A stage that failed for good took those behind it along: they are queued again, to go on from this one."""
    if late.accepted_as(database, run.run_id) is not None:
        return
    assert run.promotion_id is not None
    of_stage = [r for r in runs.runs(database, run.study_name) if r.promotion_id == run.promotion_id]
    last = [r for r in of_stage if r.stage == run.stage][-1]
    if last.state is RunState.COMPLETE:
        raise StudyError(f"stage {run.stage} of trial {run.trial_number} was trained since, by run {last.run_id}.")
    promotions.resume(database, run.promotion_id, datetime.now(UTC))
