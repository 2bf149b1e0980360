"""Claims about W&B sweep files: what each method, distribution and name is read as, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mathverify_sweep import sweep_file, wandb_sweep
from mathverify_sweep.errors import ConfigError

BAYES = """
program: train.py
method: bayes
name: Llama rank sweep
project: mathverify
entity: team
metric: {name: eval/accuracy, goal: maximize}
run_cap: 20
parameters:
  lr: {distribution: log_uniform_values, min: 1e-5, max: 1e-3}
  lora_rank: {values: [8, 16, 32]}
  lora_alpha: {value: 32}
  dropout: {distribution: q_uniform, min: 0, max: 0.2, q: 0.05}
  weight_decay: {distribution: log_uniform, min: -9.21034, max: -2.302585}
  per_device_train_batch_size: {values: [4, 8]}
  gradient_accumulation_steps: {values: [2, 4]}
  optimizer: {values: [adamw, adam, paged_adamw_8bit]}
  lr_scheduler: {values: [linear, cosine, constant]}
  warmup_ratio: {min: 0.0, max: 0.1}
  epochs: {value: 1}
  max_seq_length: {value: 768}
early_terminate: {type: hyperband, s: 2, eta: 3, max_iter: 27}
command: ["${env}", python]
"""

GRID = """
method: grid
metric: {name: val_loss, goal: minimize}
parameters:
  r: {values: [8, 16]}
  learning_rate: {values: [1e-4, 2e-4, 4e-4]}
  use_rslora: {values: [true, false]}
"""

RANDOM = """
method: random
parameters:
  learning-rate: {min: 1e-5, max: 1e-3}
  alpha: {min: 8, max: 64}
  batch_size: {distribution: int_uniform, min: 8, max: 64}
data: {source: rows.jsonl, train_rows: 900}
early_terminate: {type: hyperband, min_iter: 3}
"""


def read(**raw: Any) -> tuple[dict[str, Any], list[str]]:
    return wandb_sweep.read({"method": "random", "parameters": {"lr": {"value": 1e-4}}} | raw, "folder/my sweep.yaml")


def space(**parameters: Any) -> dict[str, Any]:
    found: dict[str, Any] = read(parameters=parameters)[0]["search_space"]
    return found


def problems(**raw: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read(**raw)
    return caught.value.problems


def test_a_bayes_file_is_a_tpe_study(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(BAYES, encoding="utf-8")
    config = sweep_file.load(path)
    assert (config.study, config.sampler.type, config.objective, config.trials) == (
        "Llama-rank-sweep",
        "tpe",
        "validation_accuracy",
        20,
    )
    assert (config.tracking.project, config.tracking.entity) == ("mathverify", "team")
    assert {axis.name: str(axis.distribution) for axis in config.space.axes} == {
        "learning_rate": "log float 1e-05 to 0.001",
        "lora_r": "one of 8, 16, 32",
        "lora_dropout": "float 0 to 0.2 by 0.05",
        "weight_decay": "log float 0.0001 to 0.1",
        "optim": "one of adamw_torch, paged_adamw_8bit",
        "lr_scheduler_type": "one of linear, cosine, constant_with_warmup",
        "warmup_steps": "float 0 to 0.1",
        "effective_batch_size": "one of 8, 16, 32",
    }
    assert config.space.fixed == {"lora_alpha": 32}
    assert config.training.max_length == 768
    assert (config.pruner.type, config.pruner.reduction_factor, config.rungs) == ("hyperband", 3, (1111, 3333, 9999))


def test_every_key_says_what_it_was_read_as(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(BAYES, encoding="utf-8")
    lines = sweep_file.read_as(path)
    for key in sweep_file.read_yaml(path):
        assert key == "parameters" or any(line.startswith(key) for line in lines), key
    for name in sweep_file.read_yaml(path)["parameters"]:
        assert any(name in line.partition(":")[0] for line in lines), name
    assert (
        "early_terminate: pruner.min_rows 1111: iteration 3 of 27 read as that share of data.train_rows = 10000"
        in lines
    )
    assert "base_model: not in the file, the default. Add a section `base_model:` to name yours." in lines


def test_a_grid_file_is_a_grid_and_prunes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "grid-1.yaml"
    path.write_text(GRID, encoding="utf-8")
    config = sweep_file.load(path)
    assert (config.study, config.sampler.type, config.pruner.type, config.trials) == ("grid-1", "grid", "none", 12)
    assert config.objective == "validation_log_loss"


def test_a_random_file_with_our_sections_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(RANDOM, encoding="utf-8")
    config = sweep_file.load(path)
    assert config.data.source == str(tmp_path / "rows.jsonl")
    assert (config.pruner.type, config.pruner.reduction_factor, config.first_rung) == ("hyperband", 3, 112)
    assert {axis.name: str(axis.distribution) for axis in config.space.axes} == {
        "learning_rate": "float 1e-05 to 0.001",
        "lora_alpha": "float 8 to 64 by 1",
        "effective_batch_size": "int 8 to 64",
    }


@pytest.mark.parametrize(
    ("given", "entry"),
    [
        ({"value": 2e-4}, 2e-4),
        ({"distribution": "constant", "value": 2e-4}, 2e-4),
        ({"values": [1e-4]}, 1e-4),
        ({"distribution": "categorical", "values": [1e-4, 2e-4]}, {"choices": [1e-4, 2e-4]}),
        ({"min": 0.1, "max": 0.2}, {"low": 0.1, "high": 0.2}),
        ({"distribution": "uniform", "min": 1, "max": 2}, {"low": 1, "high": 2}),
        ({"distribution": "q_uniform", "min": 0.1, "max": 0.5, "q": 0.2}, {"low": 0.0, "high": 0.4, "step": 0.2}),
        ({"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-3}, {"low": 1e-5, "high": 1e-3, "log": True}),
        (
            {"distribution": "inv_log_uniform_values", "min": 1e-5, "max": 1e-3},
            {"low": 1e-5, "high": 1e-3, "log": True},
        ),
        ({"distribution": "q_log_uniform_values", "min": 1, "max": 8, "q": 2}, {"low": 1, "high": 8, "log": True}),
        (
            {"distribution": "log_uniform", "min": -2, "max": 0},
            {"low": pytest.approx(math.exp(-2), rel=1e-5), "high": 1, "log": True},
        ),
        (
            {"distribution": "inv_log_uniform", "min": 0, "max": 2},
            {"low": pytest.approx(math.exp(-2), rel=1e-5), "high": 1, "log": True},
        ),
    ],
)
def test_a_distribution_means_here_what_it_means_there(given: dict[str, Any], entry: Any) -> None:
    assert space(gradient_clipping=given) == {"max_grad_norm": entry}


def test_an_axis_of_whole_numbers_gets_whole_numbers() -> None:
    assert space(r={"distribution": "q_uniform", "min": 8, "max": 64, "q": 8}) == {
        "lora_r": {"low": 8, "high": 64, "step": 8}
    }
    assert space(r={"distribution": "q_log_uniform_values", "min": 8, "max": 64, "q": 1}) == {
        "lora_r": {"low": 8, "high": 64, "log": True}
    }
    assert space(r={"values": [8.0, 16.0]}) == {"lora_r": {"choices": [8, 16]}}


@pytest.mark.parametrize(
    ("name", "axis", "value"),
    [
        ("lr", "learning_rate", 1e-4),
        ("learning_rate", "learning_rate", 1e-4),
        ("Learning Rate", "learning_rate", 1e-4),
        ("r", "lora_r", 8),
        ("rank", "lora_r", 8),
        ("lora_rank", "lora_r", 8),
        ("alpha", "lora_alpha", 16),
        ("dropout", "lora_dropout", 0.1),
        ("batch_size", "effective_batch_size", 32),
        ("warmup_steps", "warmup_steps", 10),
        ("gradient_clipping", "max_grad_norm", 1),
        ("weight_decay", "weight_decay", 0.1),
    ],
)
def test_usual_names_are_our_axes(name: str, axis: str, value: float) -> None:
    assert space(**{name: {"value": value}}) == {axis: value}


def test_a_batch_times_its_accumulation_is_the_effective_batch_size() -> None:
    found = space(batch_size={"values": [4, 8]}, grad_accum={"value": 4})
    assert found == {"effective_batch_size": {"choices": [16, 32]}}
    assert space(batch_size={"value": 4}, grad_accum={"value": 4}) == {"effective_batch_size": 16}


@pytest.mark.parametrize(
    ("metric", "objective"),
    [
        ("accuracy", "validation_accuracy"),
        ("val/acc", "validation_accuracy"),
        ("validation_accuracy", "validation_accuracy"),
        ("eval_loss", "validation_log_loss"),
        ("val.roc_auc", "validation_auc"),
        ("test/accuracy", "validation_accuracy"),
    ],
)
def test_a_metric_is_an_objective(metric: str, objective: str) -> None:
    assert read(metric={"name": metric})[0]["objective"] == objective


@pytest.mark.parametrize(
    ("raw", "beginning"),
    [
        ({"method": "custom"}, "method: must be random, grid or bayes"),
        ({"metric": {"name": "train/loss"}}, "metric.name: "),
        ({"metric": {"name": "accuracy", "goal": "minimize"}}, "metric.goal: the goal of accuracy is to maximize it"),
        ({"metric": "accuracy"}, "metric: must hold a name"),
        ({"parametres": {}}, "parametres: unknown key. Did you mean parameters?"),
        ({"parameters": {}}, "parameters: must name at least one"),
        ({"parameters": {"lr": 1e-4}}, "parameters.lr: must be a mapping"),
        ({"parameters": {"lr": {"parameters": {"a": {"value": 1}}}}}, "parameters.lr.parameters: nested"),
        ({"parameters": {"lr": {"distribution": "normal", "mu": 0, "sigma": 1}}}, "parameters.lr.distribution: normal"),
        ({"parameters": {"lr": {"mu": 0, "sigma": 1}}}, "parameters.lr.distribution: normal"),
        ({"parameters": {"lr": {"values": [1, 2], "probabilities": [0.5, 0.5]}}}, "parameters.lr.distribution: "),
        (
            {"parameters": {"lr": {"distribution": "unifrom", "min": 1, "max": 2}}},
            "parameters.lr.distribution: unknown",
        ),
        ({"parameters": {"lr": {"min": 1e-4}}}, "parameters.lr.max: uniform needs a number, got None"),
        ({"parameters": {"lr": {"distribution": "log_uniform", "min": -1000, "max": 0}}}, "parameters.lr: log_uniform"),
        ({"parameters": {"lr": {}}}, "parameters.lr: needs value"),
        ({"parameters": {"lr": {"min": 1.0, "max": 0.1}}}, "parameters.lr: low must be below high"),
        ({"parameters": {"lr": {"value": -1}}}, "parameters.lr: "),
        ({"parameters": {"r": {"values": [8, 0]}}}, "parameters.r.values: "),
        ({"parameters": {"r": {"min": 0.5, "max": 8.0}}}, "parameters.r.min: "),
        ({"parameters": {"optimizer": {"values": ["sgd", "adamw"]}}}, "parameters.optimizer.values: "),
        (
            {"parameters": {"lr": {"value": 1}, "learning_rate": {"value": 1}}},
            "parameters.learning_rate: parameters.lr",
        ),
        (
            {"parameters": {"lerning_rate": {"value": 1}}},
            "parameters.lerning_rate: no axis is called that. Did you mean l",
        ),
        ({"parameters": {"warmup_ratio": {"values": [0.1, 1.0]}}}, "parameters.warmup_ratio: a ratio is a share"),
        ({"parameters": {"epochs": {"values": [1, 3]}}}, "parameters.epochs: a trial is one epoch"),
        ({"parameters": {"seed": {"values": [1, 3]}}}, "parameters.seed: training.seed is the same"),
        ({"parameters": {"grad_accum": {"value": 2}}}, "parameters.grad_accum: needs per_device"),
        ({"parameters": {"num_cycles": {"values": [2, 3]}}}, "parameters.num_cycles: only cosine_with_restarts"),
        ({"early_terminate": {"type": "envelope"}}, "early_terminate.type: "),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate: hyperband needs min_iter"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 0}}, "early_terminate.min_iter: must be a whole number"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_its_key(raw: dict[str, Any], beginning: str) -> None:
    found = problems(**raw)
    assert len(found) == 1
    assert found[0].startswith(beginning)


def test_all_problems_come_at_once() -> None:
    found = problems(method="custom", metric={"name": "f1"}, parameters={"lr": {"value": -1}, "r": {"values": [0]}})
    assert [problem.partition(":")[0] for problem in found] == [
        "method",
        "metric.name",
        "parameters.lr",
        "parameters.r",
    ]


def test_our_own_files_are_not_taken_for_theirs() -> None:
    assert wandb_sweep.looks_like({"method": "random", "parameters": {}})
    assert not wandb_sweep.looks_like({"study": "s", "parameters": {}})
    assert not wandb_sweep.looks_like({"study": "s"})


def test_a_study_without_a_name_is_called_after_its_file() -> None:
    assert read()[0]["study"] == "my-sweep"
    assert read(name="???")[0]["study"] == "sweep"
