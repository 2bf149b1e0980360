"""What holds of a study whose database was away for long: no trial lost, no attempt wasted, training never waited."""

from __future__ import annotations

from mathverify_sweep.chaos.stage import Stage
from mathverify_sweep.states import RunState


def all_train(stage: Stage, count: int) -> bool:
    return sum(stage.rows_seen(run.run_id) > 0 for run in stage.running()) == count


def assert_nothing_was_lost_and_nobody_waited(stage: Stage) -> None:
    assert stage.broken() == []
    records = stage.runs()
    assert [run.attempt for run in records] == [1] * stage.config.trials
    assert [run.state for run in records] == [RunState.COMPLETE] * stage.config.trials
    seconds = [run.result.train_seconds for run in records if run.result]
    assert max(seconds) < stage.run_seconds + 15, "a report waits a few seconds at most before training goes on"
    assert {tuple(trial.intermediate) for trial in stage.trials()} == {stage.config.rungs}, "every report arrived"
