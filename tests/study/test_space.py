"""Claims about axes, samplers and pruners in Optuna's hands; no database needed."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.search_space import Value
from mathverify_sweep.study import space

SPACE = {
    "learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
    "lora_r": {"low": 1, "high": 4},
    "lora_dropout": {"low": 0, "high": 0.3, "step": 0.1},
    "effective_batch_size": {"low": 8, "high": 60, "step": 8},
    "lr_scheduler_type": {"choices": ["linear", "cosine_with_restarts"]},
    "lr_num_cycles": {"low": 2, "high": 5, "log": True, "when": {"lr_scheduler_type": "cosine_with_restarts"}},
}


def config_of(**sections: Any) -> SweepConfig:
    return SweepConfig.model_validate({"study": "s", "search_space": SPACE} | sections)


def drawn(config: SweepConfig, trials: int) -> list[dict[str, Value]]:
    study = optuna.create_study(direction="maximize")
    found = []
    for _ in range(trials):
        trial = study.ask()
        study.sampler = space.sampler(config, trial.number)
        found.append(space.suggest(trial, config.space))
        study.tell(trial, 0.5)
    return found


@pytest.mark.parametrize("sampler", ["tpe", "random", "quasi_random"])
def test_a_conditional_axis_is_drawn_only_where_it_applies(sampler: str) -> None:
    for point in drawn(config_of(sampler={"type": sampler, "n_startup_trials": 4}), 16):
        assert ("lr_num_cycles" in point) == (point["lr_scheduler_type"] == "cosine_with_restarts")
        config_of().space.params(point)


@pytest.mark.parametrize("sampler", ["tpe", "random", "quasi_random"])
def test_values_lie_on_their_axes_and_reach_all_of_them(sampler: str) -> None:
    config = config_of(sampler={"type": sampler, "n_startup_trials": 64})
    points = drawn(config, 64)
    for axis in config.space.axes:
        assert all(axis.takes(point[axis.name]) for point in points if axis.name in point)
    assert {point["lora_r"] for point in points} == {1, 2, 3, 4}
    assert {point["lora_dropout"] for point in points} == {0.0, 0.1, 0.2, 0.3}
    assert {point["effective_batch_size"] for point in points} == {8, 16, 24, 32, 40, 48, 56}


def test_a_quasi_random_study_fills_its_space_evenly() -> None:
    rates = [point["learning_rate"] for point in drawn(config_of(sampler={"type": "quasi_random"}), 16)]
    quarters = [sum(10.0**e <= float(rate) < 10.0 ** (e + 1) for rate in rates) for e in range(-5, -1)]
    assert quarters == [4, 4, 4, 4]


def test_a_study_without_axes_may_be_sampled() -> None:
    for sampler in ("tpe", "random", "quasi_random"):
        assert drawn(config_of(search_space={}, sampler={"type": sampler}), 2) == [{}, {}]


@pytest.mark.parametrize(
    ("kind", "of"),
    [
        ("asha", SuccessiveHalvingPruner),
        ("hyperband", HyperbandPruner),
        ("median", MedianPruner),
        ("none", NopPruner),
    ],
)
def test_each_pruner_has_its_counterpart(kind: str, of: type) -> None:
    assert isinstance(space.pruner(config_of(pruner={"type": kind})), of)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_asha_prunes_at_the_rungs_that_the_runs_report_at(factor: int) -> None:
    config = config_of(pruner={"type": "asha", "reduction_factor": factor}, data={"train_rows": 1000})
    study = optuna.create_study(direction="maximize", pruner=space.pruner(config))
    first, *_ = trials = [study.ask() for _ in range(len(config.rungs) + 1)]
    for rung in config.rungs:
        first.report(0.9, rung)
        assert not first.should_prune()
    for trial, last in zip(trials[1:], config.rungs, strict=True):
        for rung in config.rungs:
            trial.report(0.8 if rung == last else 0.95, rung)
            assert trial.should_prune() == (rung == last), rung
            if rung == last:
                break
