"""A run's numbers are its own: alone, in company, in another slot, whoever the company is. On a CPU to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mathverify_sweep.specs import RunSpec
from mathverify_sweep.states import EndReason
from mathverify_sweep.training.engine import PackedEngine
from mathverify_sweep.training.order import Order
from mathverify_sweep.training.packed import plan
from tests.training.packed.company import Numbers, adapter_of, largest_difference, numbers, together
from tests.training.tiny_fixture import Place, Recorder


@pytest.fixture(scope="module")
def engine() -> PackedEngine:
    return PackedEngine("cpu", slots=4, token_budget=256)


@pytest.fixture(scope="module")
def spec(place: Place) -> RunSpec:
    """All that draws, accumulates or looks: dropout, weighted prompts, several micro-batches a step, a rung."""
    params = {"lora_dropout": 0.1, "prompt_loss_weight": 0.1, "learning_rate": 5e-3}
    return place.spec(params=params, quantization="nf4", rungs=(24,))


@pytest.fixture(scope="module")
def alone(engine: PackedEngine, spec: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> Numbers:
    return numbers(engine, spec, tmp_path_factory.mktemp("alone"))


NEIGHBOURS: dict[str, dict[str, Any]] = {
    "like it": {},
    "rank": {"lora_r": 12},
    "alpha": {"lora_alpha": 50.0},
    "plain LoRA": {"use_rslora": False},
    "learning rate": {"learning_rate": 1e-4},
    "schedule": {"lr_scheduler_type": "constant_with_warmup"},
    "warm-up": {"warmup_steps": 5},
    "weight decay": {"weight_decay": 0.5},
    "clip": {"max_grad_norm": 1e-3},
    "AdamW in 8 bits": {"optim": "adamw_8bit", "lora_r": 64},
    "paged AdamW": {"optim": "paged_adamw_32bit"},
    "Lion": {"optim": "lion_8bit"},
    "effective batch": {"effective_batch_size": 3},
    "prompt weight": {"prompt_loss_weight": 0.0},
    "dropout": {"lora_dropout": 0.5},
    "not a number": {"learning_rate": 1e30, "max_grad_norm": 0.0},
}


@pytest.mark.parametrize("params", NEIGHBOURS.values(), ids=NEIGHBOURS.keys())
def test_one_axis_of_a_neighbour_moves_no_bit(
    engine: PackedEngine, spec: RunSpec, alone: Numbers, tmp_path: Path, params: dict[str, Any]
) -> None:
    other = spec.model_copy(update={"params": spec.params.model_copy(update=params), "train_rows": 40})
    company = {"other": Order(other, tmp_path / "other")}
    assert numbers(engine, spec, tmp_path / "mine", company).same_bits(alone)


def test_another_slot_and_a_full_house_move_no_bit(
    engine: PackedEngine, spec: RunSpec, alone: Numbers, tmp_path: Path
) -> None:
    kinds = [{"lora_r": 8}, {"optim": "lion_8bit", "effective_batch_size": 2}, {"prompt_loss_weight": 0.5}]
    company = {
        str(i): Order(
            spec.model_copy(update={"params": spec.params.model_copy(update=kind), "seed": i}), tmp_path / str(i)
        )
        for i, kind in enumerate(kinds)
    }
    assert numbers(engine, spec, tmp_path / "mine", company, last=True).same_bits(alone)


def test_neighbours_that_end_and_are_replaced_move_no_bit(
    engine: PackedEngine, spec: RunSpec, alone: Numbers, tmp_path: Path
) -> None:
    """Seven short runs pass through the other three slots; one diverges, one is pruned, one cannot even start."""
    short = [spec.model_copy(update={"train_rows": rows, "seed": rows}) for rows in (5, 9, 14, 20, 30)]
    wild = spec.model_copy(update={"params": spec.params.model_copy(update={"learning_rate": 1e30})})
    broken = spec.model_copy(update={"train_rows": 10})
    orders = {str(i): Order(one, tmp_path / str(i)) for i, one in enumerate(short)}
    orders = {"mine": Order(spec, tmp_path / "mine"), "wild": Order(wild, tmp_path / "wild"), **orders}
    orders["broken"] = Order(broken, tmp_path / "broken", tmp_path / "no such adapter")
    orders["pruned"] = Order(spec, tmp_path / "pruned")
    mine = Recorder()
    results = together(engine, orders, {"mine": mine, "pruned": Recorder(prune_at=24)})
    ends = {run_id: result.end_reason for run_id, result in results.items()}
    assert (ends["wild"], ends["broken"], ends["pruned"]) == (
        EndReason.DIVERGED,
        EndReason.CRASHED,
        EndReason.PRUNED,
    )
    assert Numbers.of(mine, results["mine"], tmp_path / "mine").same_bits(alone)


def test_a_run_in_company_is_the_same_run_again(engine: PackedEngine, spec: RunSpec, tmp_path: Path) -> None:
    """Two of one spec side by side are one run twice."""
    recorders = {"a": Recorder(), "b": Recorder()}
    results = together(engine, {name: Order(spec, tmp_path / name) for name in recorders}, recorders)
    a, b = (Numbers.of(recorders[name], results[name], tmp_path / name) for name in ("a", "b"))
    assert a.same_bits(b)


# As on a GPU: several runs in one pass


@pytest.fixture
def one_pass(monkeypatch: pytest.MonkeyPatch) -> PackedEngine:
    """An engine that puts runs into one pass, their adapters' matmuls grouped."""
    made = plan.make

    def as_on_a_gpu(*arguments: Any) -> plan.Plan:
        return replace(made(*arguments), together=True, rank_step=16)

    monkeypatch.setattr(plan, "make", as_on_a_gpu)
    return PackedEngine("cpu", slots=4, token_budget=2_048)


def test_runs_in_one_pass_are_themselves_but_for_rounding(one_pass: PackedEngine, place: Place, tmp_path: Path) -> None:
    """Ranks of two paddings, every kind of scale, weighted prompts beside verdicts, dropout: one stream."""
    kinds: list[dict[str, Any]] = [
        {"lora_r": 20, "lora_dropout": 0.2},
        {"lora_r": 4, "prompt_loss_weight": 0.2},
        {"lora_r": 12, "lora_alpha": 3.0, "use_rslora": False, "effective_batch_size": 2},
        {"lora_r": 8, "optim": "lion_8bit", "learning_rate": 1e-4},
    ]
    specs = [place.spec(params=kind, quantization="nf4", train_rows=40, seed=i) for i, kind in enumerate(kinds)]
    by_itself = [numbers(one_pass, one, tmp_path / f"alone-{i}") for i, one in enumerate(specs)]
    recorders = {str(i): Recorder() for i in range(4)}
    results = together(one_pass, {str(i): Order(one, tmp_path / str(i)) for i, one in enumerate(specs)}, recorders)
    for i, alone in enumerate(by_itself):
        shared = Numbers.of(recorders[str(i)], results[str(i)], tmp_path / str(i))
        signs = "optim" in kinds[i]  # Lion steps by signs: rounding at a zero is a whole step
        assert [loss for _, loss, _ in shared.logs] == pytest.approx(
            [loss for _, loss, _ in alone.logs], abs=1e-3 if signs else 1e-5
        )
        assert largest_difference(shared.adapter, alone.adapter) < (5e-4 if signs else 1e-5)


def test_a_neighbour_that_is_no_number_reaches_nobody_in_one_pass(
    one_pass: PackedEngine, place: Place, tmp_path: Path
) -> None:
    spec = place.spec(quantization="nf4", train_rows=40)
    alone = numbers(one_pass, spec, tmp_path / "alone")
    wild = place.spec(params={"learning_rate": 1e30, "max_grad_norm": 0.0}, quantization="nf4", train_rows=40)
    shared = numbers(one_pass, spec, tmp_path / "mine", {"wild": Order(wild, tmp_path / "wild")})
    assert largest_difference(shared.adapter, alone.adapter) < 1e-5


def test_one_pass_in_bfloat16_is_near_float32(one_pass: PackedEngine, place: Place, tmp_path: Path) -> None:
    """Matmuls in bfloat16; adapters, their gradients and their optimizers in float32."""
    kinds: list[dict[str, Any]] = [{"lora_r": 20}, {"lora_r": 4, "prompt_loss_weight": 0.2}, {"lora_r": 12}]
    losses: dict[str, list[float]] = {}
    for dtype in ("float32", "bfloat16"):
        orders, recorders = {}, {str(i): Recorder() for i in range(len(kinds))}
        for i, kind in enumerate(kinds):
            spec = place.spec(
                params={"learning_rate": 3e-3, **kind}, quantization="nf4", base_model={"compute_dtype": dtype}
            )
            orders[str(i)] = Order(spec, tmp_path / dtype / str(i))
        together(one_pass, orders, recorders)
        losses[dtype] = [loss for recorder in recorders.values() for loss in recorder.losses]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)
    assert adapter_dtypes(tmp_path / "bfloat16" / "0") == {torch.float32}


def adapter_dtypes(folder: Path) -> set[torch.dtype]:
    return {tensor.dtype for tensor in adapter_of(folder).values()}
