"""A promotion from the command line, and what can be done with its runs."""

from __future__ import annotations

import json
from pathlib import Path

from mathverify_sweep.states import RunState
from tests.flows.commands import SWEEP, Shell, ended


def test_the_best_trial_is_promoted_once_through_three_cumulative_stages(tmp_path: Path) -> None:
    sweep = SWEEP.replace("trials: 4", "trials: 2")
    shell = Shell.at(tmp_path, f"sqlite:///{tmp_path / 'mvsweep.sqlite3'}", sweep)
    shell.run("create", "flow.yaml")
    ended(shell.worker("--until-idle"))

    first = shell.run("promote", "flow", "--top", "1")
    again = shell.run("promote", "flow", "--top", "1")
    ended(shell.worker("--until-idle"))
    afterwards = shell.run("promote", "flow", "--top", "1")

    assert "promoted: cumulative, stages 256 rows" in first
    assert "promoted already" in again
    assert "promoted already" in afterwards
    report = shell.status()
    (promotion,) = report.promotions
    assert promotion.trial_number == report.best_trial
    assert [stage.state for stage in promotion.stages] == [RunState.COMPLETE] * 3
    sizes = [stage.train_rows for stage in promotion.stages]
    assert sizes == sorted(set(sizes))
    earlier = {stage.run_id: stage.value for stage in promotion.stages[:2]}
    assert promotion.stages[0].started_from is None
    assert promotion.stages[2].started_from == max(earlier, key=lambda run_id: earlier[run_id] or 0)

    last = str(promotion.stages[2].run_id)
    trial = str(report.trials[promotion.trial_number].run_id)
    for run in (last, trial):
        figures = json.loads(shell.json("evaluate", run, "--split", "test"))
        assert figures["rows"] > 100
        assert figures["accuracy_low"] <= figures["accuracy"] <= figures["accuracy_high"]
    difference = json.loads(shell.json("compare", last, trial, "--split", "test"))
    assert difference["low"] <= difference["estimate"] <= difference["high"]
    assert "no predictions on gate" in shell.run("compare", last, trial, "--split", "gate", code=2)
