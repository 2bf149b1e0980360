"""The packed engine against TRL and against formulas: one run alone, on a CPU in float32, fifty steps per axis.

Bases are real NF4, but for the oracle of formulas, which knows no NF4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor

from mathverify_sweep.specs import RunSpec
from mathverify_sweep.training import base
from mathverify_sweep.training.batches import total_weight
from mathverify_sweep.training.engine import PackedEngine
from mathverify_sweep.training.material import Library
from mathverify_sweep.training.packed.optimizer import Optimizer
from mathverify_sweep.training.packed.weights import Weights
from mathverify_sweep.training.reference import ReferenceEngine
from tests.training import plain_loop
from tests.training.packed.company import adapter_of, largest_difference
from tests.training.tiny_fixture import Place, Recorder, trained

STEPS = 50
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reference() -> ReferenceEngine:
    return ReferenceEngine("cpu")


@pytest.fixture(scope="module")
def packed() -> PackedEngine:
    return PackedEngine("cpu")


AXES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "rank": {"lora_r": 12},
    "alpha": {"lora_alpha": 3.0},
    "plain LoRA": {"use_rslora": False},
    "linear": {"lr_scheduler_type": "linear"},
    "restarts": {"lr_scheduler_type": "cosine_with_restarts", "lr_num_cycles": 3},
    "constant": {"lr_scheduler_type": "constant_with_warmup"},
    "warm up, hold, decay": {"lr_scheduler_type": "warmup_stable_decay", "lr_decay_share": 0.4},
    "warm-up of a third": {"warmup_steps": 0.3},
    "warm-up of seven steps": {"warmup_steps": 7},
    "weight decay": {"weight_decay": 0.3},
    "a tight clip": {"max_grad_norm": 0.05},
    "no clip": {"max_grad_norm": 0.0},
    "prompts weigh 0.3": {"prompt_loss_weight": 0.3},
}


def fifty_steps(place: Place, params: dict[str, Any], **changes: Any) -> RunSpec:
    batch = params.get("effective_batch_size", 3)
    return place.spec(
        params={"effective_batch_size": batch, **params},
        **{"quantization": "nf4", "train_rows": STEPS * batch, "max_length": 96, **changes},
    )


def both(
    reference: ReferenceEngine, packed: PackedEngine, spec: RunSpec, folder: Path
) -> tuple[Recorder, Recorder, float]:
    """What each engine says of the same spec, and how far their adapters are apart."""
    theirs, ours = Recorder(), Recorder()
    expected = trained(reference, spec, folder / "reference", theirs)
    result = trained(packed, spec, folder / "packed", ours)
    assert (result.optimizer_steps, result.rows_seen) == (expected.optimizer_steps, expected.rows_seen)
    return theirs, ours, largest_difference(adapter_of(folder / "reference"), adapter_of(folder / "packed"))


@pytest.mark.parametrize("params", AXES.values(), ids=AXES.keys())
def test_fifty_steps_are_those_of_the_trainer(
    place: Place, reference: ReferenceEngine, packed: PackedEngine, tmp_path: Path, params: dict[str, Any]
) -> None:
    theirs, ours, apart = both(reference, packed, fifty_steps(place, params), tmp_path)
    assert len(ours.logs) == STEPS
    assert [rate for *_, rate in ours.logs] == pytest.approx([rate for *_, rate in theirs.logs], rel=1e-12)
    assert ours.losses == pytest.approx(theirs.losses, abs=1e-5)
    assert apart < 1e-5


def test_a_step_that_is_all_warm_up_trains_nothing(
    place: Place, reference: ReferenceEngine, packed: PackedEngine, tmp_path: Path
) -> None:
    """Its learning rate is 0: this is how a sweep file has the untrained model as a trial."""
    params = {"learning_rate": 1.0, "warmup_steps": 1, "weight_decay": 0.5, "prompt_loss_weight": 1.0}
    both(reference, packed, fifty_steps(place, params, train_rows=3), tmp_path)
    for engine in ("reference", "packed"):
        made = {name: weight for name, weight in adapter_of(tmp_path / engine).items() if "lora_B" in name}
        assert made
        assert not any(weight.any() for weight in made.values())


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_every_effective_batch_is_the_trainers(
    place: Place, reference: ReferenceEngine, packed: PackedEngine, tmp_path: Path, batch: int
) -> None:
    """The last is cut into micro-batches of two or three rows, by engines that cut differently, with a rest of 9."""
    params = {"effective_batch_size": batch}
    rows = 50 if batch == 1 else 185
    spec = fifty_steps(place, params, train_rows=rows, micro_batch_tokens=100 if batch == 16 else None)
    theirs, ours, apart = both(reference, packed, spec, tmp_path)
    assert ours.losses == pytest.approx(theirs.losses, abs=1e-5)
    assert apart < 1e-5


@pytest.mark.parametrize("params", [{}, {"prompt_loss_weight": 0.3}], ids=["verdicts", "prompts too"])
def test_fifty_steps_are_what_the_formulas_say(
    place: Place, packed: PackedEngine, tmp_path: Path, params: dict[str, Any]
) -> None:
    spec = fifty_steps(place, params, quantization="none", micro_batch_tokens=60)
    start = tmp_path / "start"
    trained(packed, spec.model_copy(update={"train_rows": 9}), start, Recorder())
    ours = Recorder()
    trained(packed, spec, tmp_path, ours, start / "adapter")
    losses, adapter = plain_loop.train(spec, start / "adapter")
    assert ours.losses == pytest.approx(losses, abs=1e-5)
    assert largest_difference(adapter_of(tmp_path), adapter) < 1e-5


class Watch:
    """Sees the weights and the gradient of every step of a run."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        step = Optimizer.step

        def watched(optimizer: Optimizer, norm: float) -> None:
            weights = optimizer._weights
            self.seen.append((_copied(weights.named()), _copied(gradients(weights))))
            step(optimizer, norm)

        patch.setattr(Optimizer, "step", watched)


def _copied(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in named.items()}


def gradients(weights: Weights) -> dict[str, Tensor]:
    named = {}
    for layer, (a, b) in weights.layout.matrices(weights.gradient).items():
        name = f"base_model.model.{layer}"
        named[f"{name}.lora_A.weight"] = a[: weights.rank]
        named[f"{name}.lora_B.weight"] = b[: weights.rank].t()
    return named


class Oracle:
    """Gradients by PEFT on a base of its own, one row at a time, with all logits."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.base = base.load(spec.base_model, CPU)
        params = spec.params
        config = LoraConfig(
            r=params.lora_r,
            lora_alpha=int(params.alpha),
            use_rslora=params.use_rslora,
            target_modules=list(spec.base_model.lora_target_modules),
            task_type="CAUSAL_LM",
        )
        self.model = get_peft_model(self.base.model, config)
        self.rows = Library(CPU).material(spec).train.rows

    def gradient(self, step: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        set_peft_model_state_dict(self.model, state)
        self.model.zero_grad()
        size = self.spec.params.effective_batch_size
        rows = self.rows[step * size : (step + 1) * size]
        whole = total_weight(rows, self.spec.params.prompt_loss_weight)
        for row in rows:
            logits = self.model(input_ids=torch.tensor([row.prompt_ids])).logits[0]
            (-logits[-1].log_softmax(-1)[self.base.answers[row.is_correct]] / whole).backward()
        return {name.replace(".default", ""): p.grad for name, p in self.model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own call
@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "lion_8bit"])
def test_other_optimizers_meet_the_same_gradients_and_stay_near(
    place: Place,
    reference: ReferenceEngine,
    packed: PackedEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    optim: str,
) -> None:
    """Eight bits and signs turn rounding into steps, so what is exact is the gradient of each step's own state.

    64 ranks make tensors of 4,096 values: smaller ones keep 32-bit state whatever the optimizer's name says.
    """
    spec = fifty_steps(place, {"optim": optim, "lora_r": 64, "learning_rate": 1e-4 if "lion" in optim else 5e-4})
    watch = Watch(monkeypatch)
    theirs, ours, _ = both(reference, packed, spec, tmp_path)
    oracle = Oracle(spec)
    assert len(watch.seen) == STEPS
    for step in (0, 1, 9, 24, 49):
        state, gradient = watch.seen[step]
        expected = oracle.gradient(step, state)
        assert largest_difference(gradient, expected) < 1e-5 * max(g.abs().max().item() for g in expected.values())
    assert ours.losses == pytest.approx(theirs.losses, abs=2e-2)


def test_evaluation_reads_what_the_reference_reads(
    place: Place, reference: ReferenceEngine, packed: PackedEngine, tmp_path: Path
) -> None:
    spec = fifty_steps(place, {"learning_rate": 5e-3})
    trained(packed, spec, tmp_path, Recorder())
    for adapter in (None, tmp_path / "adapter"):
        for split in ("validation", "test"):
            expected = reference.score(spec, adapter, split)
            assert packed.score(spec, adapter, split) == pytest.approx(expected, abs=1e-5)
