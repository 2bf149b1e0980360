"""A promotion from the command line, and what can be done with its runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mathverify_sweep.states import RunState
from mathverify_sweep.store import runs
from mathverify_sweep.store.database import connect
from tests.flows.commands import SWEEP, Shell, ended


@pytest.mark.slow
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
    (pair,) = json.loads(shell.json("compare", last, trial, "--split", "test"))["pairs"]
    difference = pair["comparison"]["difference"]
    assert difference["low"] <= difference["estimate"] <= difference["high"]
    assert "no predictions on gate" in shell.run("compare", last, trial, "--split", "gate", code=2)


@pytest.mark.slow
def test_a_stage_is_made_again_from_its_lineage_to_the_same_bits(tmp_path: Path) -> None:
    sweep = SWEEP.replace("trials: 4", "trials: 2").replace("stages: [256, 0.5, all]", "stages: [128, 256]")
    storage = f"sqlite:///{tmp_path / 'mvsweep.sqlite3'}"
    shell = Shell.at(tmp_path, storage, sweep)
    shell.run("create", "flow.yaml")
    ended(shell.worker("--until-idle"))
    shell.run("promote", "flow", "--set", "promotion.plan=trunk", "--set", "promotion.seed=5")
    ended(shell.worker("--until-idle"))
    cooldown = shell.status().promotions[0].stages[1].run_id

    told = shell.run("lineage", str(cooldown), "--sweep-file", "again.yaml")
    assert told.rstrip().endswith("OMP_NUM_THREADS=1 mvsweep run again.yaml --device cpu"), "as the tests' commands run"
    shell.run("run", "again.yaml", "--device", "cpu")

    database = connect(storage)
    first = runs.get(database, str(cooldown))
    (second,) = (run for run in runs.runs(database, "flow-again") if run.stage == 2)
    assert first.result is not None
    assert second.result is not None
    assert (first.result.rows_digest, first.result.value) == (second.result.rows_digest, second.result.value)
    weights = [
        (tmp_path / "runs" / str(run.result.adapter) / "adapter_model.safetensors").read_bytes()
        for run in (first, second)
        if run.result
    ]
    assert weights[0] == weights[1]
    lineage = json.loads(shell.json("lineage", second.run_id))
    assert [step["spec"]["stage"] for step in lineage["steps"]] == [None, 1, 2]
    assert lineage["steps"][2]["begins"].startswith("the checkpoint of run")
