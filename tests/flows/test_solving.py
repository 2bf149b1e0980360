"""The task solving from the command line: trained, promoted, evaluated on a file, and what cannot be asked of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mathverify_sweep.data import synthetic
from tests.flows.commands import SWEEP, Shell, ended

SOLVING = (
    SWEEP.replace("study: flow", "study: flow\ntask: solving\nobjective: pass_at_1")
    .replace("train_rows: 256, validation_rows: 100", "train_rows: 64, validation_rows: 40")
    .replace("rung_rows: 100", "rung_rows: 10, max_new_tokens: 40")
    .replace("trials: 4", "trials: 1")
    .replace("stages: [256, 0.5, all]", "stages: [48]")
)


@pytest.mark.slow
def test_a_study_that_solves_is_trained_promoted_and_evaluated_on_a_file(tmp_path: Path) -> None:
    shell = Shell.at(tmp_path, f"sqlite:///{tmp_path / 'mvsweep.sqlite3'}", SOLVING)
    shell.run("create", "flow.yaml")
    told = ended(shell.worker("--until-idle"))
    assert "cannot be packed: solutions are generated with a cache" in told
    shell.run("promote", "flow")
    ended(shell.worker("--until-idle"))
    rows = [row for row in synthetic.generate(120, seed=7) if row.is_correct][:20]
    lines = [{"question": row.question, "answer": f"{row.solution}\n#### {row.answer}"} for row in rows]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")

    report = shell.status()
    trial, stage = report.trials[0], report.promotions[0].stages[0]
    assert trial.value == trial.accuracy
    assert trial.value is not None
    assert trial.value > 0.5, "the built-in model has read such stories"
    assert trial.peak_memory_bytes > 0
    assert report.baselines == {}
    found = json.loads(shell.json("evaluate", "flow:0", "--data", "test.jsonl"))
    assert (found["rows"], found["accuracy"] > 0.5) == (20, True)
    shell.run("evaluate", "flow:0", "--split", "test")
    drawn = json.loads(shell.json("evaluate", "flow:0", "--data", "test.jsonl", "--samples", "3", "--temperature", "1"))
    figures = {name: figure["estimate"] for name, figure in drawn["figures"].items()}
    assert list(figures) == ["pass@1", "pass@3", "majority of 3"]
    assert figures["pass@1"] <= figures["pass@3"]
    assert "pass@1" in shell.run("evaluate", str(stage.run_id), "--split", "test")
    (pair,) = json.loads(shell.json("compare", "flow:0", str(stage.run_id), "--split", "test"))["pairs"]
    assert abs(pair["comparison"]["difference"]["estimate"]) < 0.5
    assert "only runs that judge" in shell.run("predict", "flow:0", "--data", "test.jsonl", "-o", "out.csv", code=2)
    assert "only runs that judge" in shell.run("export", "flow:0", "out", code=2)
