"""The rooms of the packed engine one by one: cuts, rectangles, optimizers, plans, token budgets."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import get_args

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import nn
from transformers import Trainer, TrainingArguments

from mathverify_sweep.data.encode import EncodedRow
from mathverify_sweep.paths import token_budgets_file
from mathverify_sweep.specs import BaseModelSpec, TrainParams
from mathverify_sweep.specs import Optimizer as OptimizerName
from mathverify_sweep.training import base
from mathverify_sweep.training.batches import total_weight
from mathverify_sweep.training.packed import measure, plan
from mathverify_sweep.training.packed.model import PackedModel
from mathverify_sweep.training.packed.optimizer import Optimizer
from mathverify_sweep.training.packed.plan import Budget
from mathverify_sweep.training.packed.stream import Laid, Share, Stream, cut
from mathverify_sweep.training.packed.weights import Weights
from mathverify_sweep.training.trainer import Epoch, _Collator
from tests.training.tiny_fixture import Place

CPU = torch.device("cpu")


def rows(*lengths: int) -> list[EncodedRow]:
    return [EncodedRow(tuple(range(length)), i % 2 == 0, i) for i, length in enumerate(lengths)]


def weights(params: TrainParams, rank_step: int = 1) -> Weights:
    """Of one layer with 128 inputs and 64 outputs."""
    name, r = "base_model.model.model.layers.0.mlp.up_proj", params.lora_r
    generator = torch.Generator().manual_seed(0)
    values = {
        f"{name}.lora_A.weight": torch.randn(r, 128, generator=generator),
        f"{name}.lora_B.weight": torch.randn(64, r, generator=generator),
    }
    return Weights(values, params, CPU, torch.float32, rank_step)


# Cuts and streams


def test_cuts_hold_every_row_once_within_the_budget() -> None:
    dice = random.Random(0)
    for _ in range(200):
        given = rows(*(dice.randint(1, 60) for _ in range(dice.randint(1, 40))))
        parts = cut(given, 100)
        assert sorted(row.index for part in parts for row in part) == list(range(len(given)))
        sizes = [sum(len(row.prompt_ids) for row in part) for part in parts]
        assert max(sizes) <= 100
        assert len(parts) <= 1.5 * sum(sizes) / 100 + 1
        assert all(part == sorted(part, key=lambda row: -len(row.prompt_ids)) for part in parts)


def test_cuts_are_about_equally_large() -> None:
    assert [sum(len(row.prompt_ids) for row in part) for part in cut(rows(*[10] * 11), 100)] == [60, 50]


def test_a_row_longer_than_the_budget_goes_alone() -> None:
    assert sorted(map(len, cut(rows(5, 90, 5), 20))) == [1, 1, 1]
    assert cut([], 20) == []


@pytest.mark.parametrize("prompt_weight", [0.0, 0.25])
def test_a_stream_and_a_trainers_batch_ask_for_the_same_tokens_of_rows_that_learn_many(
    place: Place, prompt_weight: float
) -> None:
    dice = random.Random(0)
    given = [EncodedRow(tuple(dice.choices(range(300), k=n)), True, n, learnt=1 + n // 2, end=299) for n in (9, 7, 4)]
    whole = total_weight(given, prompt_weight)
    laid = Laid.of([Share(None, given, prompt_weight, whole)], (7, 8))
    spec = place.spec(params={"prompt_loss_weight": prompt_weight})
    collate = _Collator(base.load(spec.base_model, CPU), spec, Epoch(given, 10_000, Path()))
    (batch,) = collate([{"row": number} for number in range(len(given))])["micro_batches"]
    asked = sorted(zip(batch["targets"].tolist(), batch["weights"].tolist(), strict=True))
    assert asked == sorted(zip(laid.targets.tolist(), laid.weights.tolist(), strict=True))
    assert sum(weight for _, weight in asked) == pytest.approx(1)
    assert len(asked) == sum(len(row.prompt_ids) if prompt_weight else row.learnt for row in given)


def test_a_stream_is_its_rows_end_to_end() -> None:
    params = TrainParams(lora_r=4)
    mine, yours = weights(params), weights(params)
    shares = [Share(mine, rows(5, 3), whole=2.0), Share(yours, rows(4), prompt_weight=0.5, whole=2.5)]
    laid = Laid.of(shares, (7, 8))
    assert laid.ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3] == laid.positions.tolist()
    assert laid.row_ends.tolist() == [0, 5, 8, 12]
    assert laid.token_ends.tolist() == [8, 12]
    assert laid.read.tolist() == [4, 7, 8, 9, 10, 11]
    assert laid.read_ends.tolist() == [2, 6]
    assert laid.targets.tolist() == [8, 7, 1, 2, 3, 8]
    assert laid.weights.tolist() == pytest.approx([0.5, 0.5, 0.2, 0.2, 0.2, 0.4])
    assert laid.owners.tolist() == [0, 0, 1, 1, 1, 1]
    losses = Stream(laid, CPU).by_run(torch.tensor([1.0, 2.0, 3.0, math.nan, 5.0, 6.0]))
    assert losses.isnan().tolist() == [False, True]
    assert losses[0] == 3.0


def test_rectangles_hold_rows_of_one_run_and_of_like_length() -> None:
    stream = Stream(Laid.of([Share(None, rows(20, 18, 17, 16, 9)), Share(None, rows(9, 9))], (0, 1)), CPU)
    assert [(group.start, group.end, group.rows, group.longest) for group in stream.groups] == [
        (0, 71, 4, 20),
        (71, 80, 1, 9),
        (80, 98, 2, 9),
    ]
    padded = stream.groups[0]
    assert padded.places is not None
    assert padded.places.tolist()[19:22] == [19, 20, 21]
    assert stream.groups[-1].places is None


# Weights and optimizers


def test_padding_a_rank_changes_neither_names_nor_values() -> None:
    plain, padded = weights(TrainParams(lora_r=5)), weights(TrainParams(lora_r=5), 16)
    assert (plain.padded_rank, padded.padded_rank) == (5, 16)
    assert all(torch.equal(tensor, padded.named()[name]) for name, tensor in plain.named().items())
    assert padded.flat.abs().sum() == pytest.approx(plain.flat.abs().sum().item(), rel=1e-6)


@pytest.mark.parametrize("optim", get_args(OptimizerName))
def test_padding_of_a_rank_stays_zero_whatever_the_optimizer(optim: str) -> None:
    params = TrainParams(lora_r=40, optim=optim, weight_decay=0.1, learning_rate=1e-2)  # type: ignore[arg-type]
    padded = weights(params, 64)
    optimizer = Optimizer(padded, params, 5)
    used = torch.zeros_like(padded.flat)
    for matrix in padded.matrices(used):
        matrix.fill_(1)
    before = padded.flat.clone()
    for step in range(5):
        padded.gradient.copy_(used * (step + 1))
        optimizer.step(float(optimizer.norm()))
    assert padded.flat[used == 0].abs().max() == 0
    assert (padded.flat != before)[used == 1].float().mean() > 0.9


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning")
@pytest.mark.parametrize("optim", get_args(OptimizerName))
def test_optimizers_are_those_that_the_trainer_builds(optim: OptimizerName, tmp_path: Path) -> None:
    params = TrainParams(optim=optim, learning_rate=3e-4, weight_decay=0.2)
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=optim, learning_rate=3e-4, use_cpu=True)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    theirs = kind([torch.nn.Parameter(torch.zeros(2))], **options)
    ours = Optimizer(weights(params), params, 10)._optimizer
    assert type(ours) is type(theirs)
    assert ours.defaults == {**theirs.defaults, "weight_decay": 0.2}
    assert vars(getattr(ours, "args", TrainParams)) == vars(getattr(theirs, "args", TrainParams))
    assert getattr(ours, "is_paged", None) == getattr(theirs, "is_paged", None)


def test_a_gradient_that_is_no_number_is_not_stepped_along() -> None:
    params = TrainParams(warmup_steps=0)
    mine = weights(params)
    before = mine.flat.clone()
    optimizer = Optimizer(mine, params, 10)
    mine.gradient[3] = float("nan")
    norm = float(optimizer.norm())
    assert math.isnan(norm)
    optimizer.step(norm)
    assert torch.equal(mine.flat, before)
    assert mine.gradient.abs().max() == 0


# Plans and budgets


def test_nf4_unpacked_once_multiplies_to_the_same_bits(place: Place) -> None:
    spec = place.spec(quantization="nf4")
    for dequantised in (True, False):
        loaded = base.load(spec.base_model, CPU)
        layer = next(module for module in loaded.model.modules() if isinstance(module, Linear4bit))
        x = torch.randn(1, 37, layer.in_features)
        expected = layer(x)
        PackedModel(loaded, replace(plan.make(loaded, spec), dequantised=dequantised))
        assert torch.equal(layer(x), expected)


def test_a_plan_unpacks_what_leaves_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = place.spec(quantization="nf4")
    loaded = base.load(spec.base_model, CPU)
    assert plan.make(loaded, spec).dequantised
    monkeypatch.setattr(plan, "_free_bytes", lambda _: 100_000)
    assert not plan.make(loaded, spec).dequantised
    plain = base.load(BaseModelSpec(name=str(place.base), quantization="none"), CPU)
    assert not plan.make(plain, spec).dequantised


def test_a_pass_of_a_small_model_waits_for_python_and_one_of_a_large_model_for_the_gpu(place: Place) -> None:
    spec = place.spec(quantization="nf4")
    made = plan.make(base.load(spec.base_model, CPU), spec)
    small, large = replace(made, layers=30, numbers=106_000_000), replace(made, layers=32, numbers=6_980_000_000)
    plain = base.load(BaseModelSpec(name=str(place.base), quantization="none"), CPU).model.model.layers
    assert made.layers == len(plain)
    assert made.numbers == sum(module.weight.numel() for module in plain.modules() if isinstance(module, nn.Linear))
    assert small.is_launch_bound(65_536)
    assert not large.is_launch_bound(4_096)


def test_memory_that_is_short_halves_the_most_and_never_the_least() -> None:
    budget = Budget(4_096, 8_192, 10_240)
    assert budget.shrink(9_000, 1_024)
    assert (budget.tokens, budget.of_one) == (4_096, 4_500), "that one run needed less says nothing of several"
    sizes = []
    while budget.shrink(budget.tokens, 1_024):
        sizes.append((budget.tokens, budget.of_one))
    assert sizes == [(2_048, 2_048), (1_024, 1_024)]
    assert budget.evaluation_tokens == 8_192


def test_what_fits_does_not_hang_on_some_megabytes() -> None:
    assert {plan._in_steps(tokens) for tokens in range(10_240, 11_264)} == {10_240}
    assert all(0.88 * tokens < plan._in_steps(tokens) <= tokens for tokens in range(1, 5_000))


def test_the_smallest_budget_near_the_best_rate_is_enough() -> None:
    assert measure.smallest_near_peak({2_048: 50.0, 4_096: 94.0, 8_192: 97.0, 16_384: 100.0, 32_768: 99.0}) == 8_192


def test_rates_are_measured_as_far_up_as_memory_reaches(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = place.spec(quantization="nf4")
    loaded = base.load(spec.base_model, CPU)
    model = PackedModel(loaded, plan.make(loaded, spec))
    train = PackedModel.train

    def train_or_fail(model: PackedModel, shares: list[Share]) -> list[torch.Tensor]:
        if shares[0].tokens > 500:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(model, shares)

    monkeypatch.setattr(PackedModel, "train", train_or_fail)
    seconds = count()
    rates = measure.rates(model, spec, [256, 512, 1_024], clock=lambda: float(next(seconds)))
    assert rates == {256: 3 * 128.0, 512: 3 * 384.0}, "three quarters of a budget, in whole rows of 128"


def test_a_measured_budget_is_remembered(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(measure, "_gpu", lambda: "some GPU")
    measured: list[int] = []

    def rates(*_: object) -> dict[int, float]:
        measured.append(1)
        return {2_048: 10.0, 4_096: 20.0}

    monkeypatch.setattr(measure, "rates", rates)
    spec = place.spec(quantization="nf4")
    loaded = base.load(spec.base_model, CPU)
    made = plan.make(loaded, spec)
    model = PackedModel(loaded, made)
    assert [measure._remembered_or_measured(model, made, spec) for _ in range(2)] == [4_096, 4_096]
    assert len(measured) == 1
    assert list(json.loads(token_budgets_file().read_text()).values()) == [4_096]
    token_budgets_file().write_text("{ half a fi")
    assert measure._remembered_or_measured(model, made, spec) == 4_096
    assert len(measured) == 2
