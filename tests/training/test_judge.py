"""Adapters over one base judge rows together as each does alone, in fewer passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mathverify_sweep.data import dataset
from mathverify_sweep.specs import RunSpec
from mathverify_sweep.training import base
from mathverify_sweep.training.judge import Judge, Trained, _packed, _weights
from mathverify_sweep.training.packed import plan
from mathverify_sweep.training.packed.model import PackedModel
from mathverify_sweep.training.packed.plan import Budget
from mathverify_sweep.training.packed.ready import Ready
from mathverify_sweep.training.packed.stream import Share
from mathverify_sweep.training.reference import ReferenceEngine
from tests.training.tiny_fixture import Place, Recorder, trained

KINDS: list[dict[str, Any]] = [
    {"params": {"lora_r": 4, "learning_rate": 2e-2}},
    {"params": {"lora_r": 20, "learning_rate": 1e-2, "lora_alpha": 3.0}, "seed": 1},
    {"params": {"lora_r": 8, "learning_rate": 2e-2, "prompt_template": "own"}, "max_length": 64},
]
OWN = {"own": "Q {question} A {answer} S {solution} ok?"}


def adapters(place: Place, folder: Path, **changes: Any) -> list[Trained]:
    """Of other ranks, scales and prompts, trained far enough to differ."""
    engine = ReferenceEngine("cpu")
    found = []
    for number, kind in enumerate(KINDS):
        spec = place.spec(prompt_texts=OWN, **kind, **changes)
        trained(engine, spec, folder / str(number), Recorder())
        found.append(Trained(spec, folder / str(number) / "adapter"))
    return found


class Counting(PackedModel):
    """Remembers how many runs and tokens each pass had; has no memory above `room` tokens."""

    room = 10_000

    def judge(self, shares: list[Share]) -> list[Tensor]:  # type: ignore[override]
        tokens = sum(share.tokens for share in shares)
        if tokens > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.passes = [*getattr(self, "passes", []), (len(shares), tokens)]
        return super().judge(shares)


def ready_for_company(spec: RunSpec, tokens: int) -> tuple[Ready, Counting]:
    """A base on the CPU, planned as on a GPU: several runs in a pass, ranks padded."""
    loaded = base.load(spec.base_model, torch.device("cpu"))
    planned = replace(plan.make(loaded, spec), together=True, rank_step=16)
    model = Counting(loaded, planned)
    return Ready(model, planned, Budget(tokens, tokens, tokens)), model


def test_several_adapters_in_one_pass_say_what_each_says_alone(place: Place, tmp_path: Path) -> None:
    members = adapters(place, tmp_path, quantization="nf4")
    rows = dataset.load(place.data).validation
    expected = [Judge("cpu").reader([member])(rows)[0] for member in members]
    assert max(abs(a - b) for a, b in zip(expected[0], expected[1], strict=True)) > 0.1, "they differ"

    ready, model = ready_for_company(members[0].spec, 1_500)
    said = _packed(ready, members, [_weights(ready, member) for member in members], rows)
    for ours, theirs in zip(said, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert model.passes[0][0] == 3
    assert max(tokens for _, tokens in model.passes) <= 1_500


def test_too_little_memory_makes_passes_smaller_and_loses_no_row(place: Place, tmp_path: Path) -> None:
    members = adapters(place, tmp_path)
    rows = dataset.load(place.data).validation
    ready, model = ready_for_company(members[0].spec, 4_000)
    model.room = 300
    said = _packed(ready, members, [_weights(ready, member) for member in members], rows)
    for ours, member in zip(said, members, strict=True):
        assert ours == pytest.approx(Judge("cpu").reader([member])(rows)[0], abs=1e-4)
    assert ready.budget.evaluation_tokens <= 300


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_judge_says_what_the_run_has_said_of_validation(place: Place, tmp_path: Path, quantization: str) -> None:
    """An int8 base cannot be packed: its adapters are read one after the other."""
    engine = ReferenceEngine("cpu")
    specs = [place.spec(quantization=quantization, seed=seed, params={"learning_rate": 2e-2}) for seed in (0, 1)]
    folders = [tmp_path / str(spec.seed) for spec in specs]
    results = [trained(engine, spec, folder, Recorder()) for spec, folder in zip(specs, folders, strict=True)]
    members = [Trained(spec, folder / "adapter") for spec, folder in zip(specs, folders, strict=True)]
    said = Judge("cpu").reader(members)(dataset.load(place.data).validation)
    for ours, result in zip(said, results, strict=True):
        assert ours == pytest.approx(result.log_odds, abs=1e-4 if quantization == "nf4" else 0.1)
