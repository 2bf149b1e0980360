"""What a sweep has to do is counted right, and the command measures on the built-in model and predicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mathverify_sweep.config import PromotionConfig
from mathverify_sweep.operations import plan
from mathverify_sweep.rates import Rates, Work
from mathverify_sweep.specs import RunSpec
from mathverify_sweep.study import expected, plans
from mathverify_sweep.worker.measuring import Found
from tests.example_study import config
from tests.flows.commands import SWEEP, Shell, ended


def promoted(spec: RunSpec, top: int = 1, **settings: Any) -> Work:
    stages = plans.plan(spec, 1_000, PromotionConfig.model_validate({"stages": (0.5, "all"), **settings}))
    return plan.work_of_promotions(stages, top, 300)


def test_trials_read_some_validation_rows_at_rungs_and_all_at_their_ends() -> None:
    study = config(training={"rung_rows": 200}, pruner={"type": "asha", "min_rows": 200})
    assert study.rungs == (200, 400)
    work = plan.work_of_trials(study, expected.unpruned(study), 300)
    assert work == Work(runs=14, rows_trained=14 * 800, rows_judged=14 * (2 * 200 + 300))
    few = plan.work_of_trials(study, expected.unpruned(study), 100)
    assert few.rows_judged == 14 * 3 * 100


def test_stages_train_their_rows_each_and_are_judged_each(spec: RunSpec) -> None:
    assert promoted(spec) == Work(runs=2, rows_trained=1_500, rows_judged=600)
    assert promoted(spec, top=3) == Work(runs=6, rows_trained=4_500, rows_judged=1_800)
    assert promoted(spec, plan="sequential").rows_trained == 1_000
    assert promoted(spec, plan="replay", replay_share=0.5).rows_trained == 1_250
    assert promoted(spec, plan="scratch") == Work(runs=1, rows_trained=1_000, rows_judged=300)


def test_a_cooldown_does_not_train_its_trunk_again(spec: RunSpec) -> None:
    work = promoted(spec, plan="trunk", cooldown_share=0.2)
    assert work == Work(runs=4, rows_trained=800 + 100 + 200, rows_judged=1_200)


@pytest.mark.parametrize(
    ("pruner", "names"), [("none", ["trials, none pruned"]), ("asha", ["trials, none pruned", "trials, pruned"])]
)
def test_trials_that_look_at_rungs_are_told_as_pruned_only_where_a_pruner_is(
    spec: RunSpec, pruner: str, names: list[str]
) -> None:
    study = config(pruner={"type": pruner, "min_rows": 200})
    rates = Rates(slots=1, alone=9, together=9, judged=9, run_seconds=1, first_seconds=1, validation_rows=300)
    found = Found(rates, "packed", None, "", load_seconds=1, peak_bytes=1, device_bytes=2)
    parts = plan._parts(study, plans.plan(spec, 1_000, study.promotion), found, 1)
    assert study.rungs
    assert [part.name for part in parts][:-1] == names


@pytest.mark.slow
def test_a_plan_predicts_and_what_workers_then_take_is_held_against_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shell = Shell.at(tmp_path / "work", f"sqlite:///{tmp_path / 'mvsweep.sqlite3'}", SWEEP)

    found = json.loads(shell.json("plan", "flow.yaml", "--device", "cpu"))

    trials, promotion = found["parts"]
    assert (trials["name"], promotion["name"]) == ("trials, none pruned", "promotion of 1")
    assert (found["engine"], found["device"], found["rates"]["slots"]) == ("packed", "cpu, 1 thread(s)", 1)
    assert trials["rows_trained"] == 4 * 256
    assert promotion["rows_trained"] == 256 + 563 + 1_126, "half of the training rows, and all of them"
    assert 0 < found["peak_bytes"] < found["device_bytes"]
    assert [file.name for file in shell.folder.iterdir()] == ["flow.yaml"], "it creates nothing"
    shell.run("create", "flow.yaml")
    ended(shell.worker("--until-idle"))
    (prediction,) = shell.status().predictions
    assert (prediction.runs, prediction.rows_trained, prediction.rows_judged) == (4, 4 * 256, 4 * 100)
    # Other tests run beside it.
    assert 0.3 < prediction.ratio < 3


@pytest.mark.slow
def test_a_base_that_cannot_be_packed_is_measured_with_the_engine_that_will_train_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shell = Shell.at(tmp_path / "work", f"sqlite:///{tmp_path / 'mvsweep.sqlite3'}", SWEEP)
    shown = shell.run("plan", "flow.yaml", "--device", "cpu", "--set", "base_model.quantization=int8")
    assert "reference engine" in shown
    assert "cannot be packed: an int8 base" in " ".join(shown.split())
