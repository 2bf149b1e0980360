"""A run that is cut and gone on with ends in the same bits as one that is not cut. On a CPU, in float32 and NF4."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import EndReason
from mathverify_sweep.training.reference import ReferenceEngine
from tests.training.tiny_fixture import Place, Recorder, trained


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine() -> ReferenceEngine:
    return ReferenceEngine("cpu")


def preempted(engine: ReferenceEngine, spec: RunSpec, folder: Path, step: int, **rest: Any) -> Recorder:
    """A run that is preempted after a step, and what it said until then."""
    recorder = Recorder(interrupt=(step, EndReason.PREEMPTED))
    result = trained(engine, spec, folder, recorder, **rest)
    assert result.end_reason is EndReason.PREEMPTED
    return recorder


def assert_same_end(whole: tuple[RunResult, Path], resumed: tuple[RunResult, Path]) -> None:
    (a, a_folder), (b, b_folder) = whole, resumed
    own = {"train_seconds", "eval_seconds", "peak_memory_bytes", "resumed_from_rows"}
    assert a.model_dump(exclude=own) == b.model_dump(exclude=own)
    first, second = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (a_folder, b_folder))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


KINDS: dict[str, dict[str, Any]] = {
    "adamw_torch": {"lr_scheduler_type": "linear", "weight_decay": 0.1},
    "adamw_8bit": {"lr_scheduler_type": "cosine", "lora_r": 64},
    "paged_adamw_32bit": {"lr_scheduler_type": "cosine_with_restarts", "prompt_loss_weight": 0.2},
    "paged_adamw_8bit": {"lr_scheduler_type": "constant_with_warmup", "lora_r": 64, "warmup_steps": 4},
    "lion_8bit": {"lr_scheduler_type": "warmup_stable_decay", "lora_r": 64, "lr_decay_share": 0.6},
}


@pytest.mark.parametrize("optim", KINDS)
def test_a_cut_run_ends_in_the_same_bits(place: Place, engine: ReferenceEngine, tmp_path: Path, optim: str) -> None:
    # 64 ranks make tensors of 4,096 values: smaller ones keep 32-bit state whatever the optimizer's name says
    params = {"optim": optim, "lora_dropout": 0.2, **KINDS[optim]}
    spec = place.spec(params=params, quantization="nf4", rungs=(8, 20, 33, 48), rung_rows=20)
    whole = Recorder()
    ending = trained(engine, spec, tmp_path / "whole", whole)
    before = preempted(engine, spec, tmp_path / "cut", 3)
    torch.manual_seed(1)
    after = Recorder()
    resumed = trained(engine, spec, tmp_path / "next", after, resume_from=(tmp_path / "cut",))
    assert resumed.resumed_from_rows == 24
    assert_same_end((ending, tmp_path / "whole"), (resumed, tmp_path / "next"))
    assert before.logs + after.logs == whole.logs
    assert before.reports + after.reports == whole.reports
