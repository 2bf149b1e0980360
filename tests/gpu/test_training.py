"""The reference engine on a GPU: bfloat16 on NF4, TRL's fused head, real memory limits. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mathverify_sweep.states import EndReason
from mathverify_sweep.training.reference import ReferenceEngine
from tests.training.tiny_fixture import Place, Recorder, trained

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() != 1, reason="needs one visible CUDA device"),
    # bitsandbytes, of a base as small as the tests'
    pytest.mark.filterwarnings("ignore:inner dimension .* is not aligned for fast kernel:UserWarning"),
]

OPTIMIZERS = ("adamw_torch", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "lion_8bit")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine() -> ReferenceEngine:
    return ReferenceEngine("cuda:0")


@pytest.fixture
def little_memory() -> Iterator[None]:
    torch.cuda.set_per_process_memory_fraction(1e-6)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_every_optimizer_learns_in_bfloat16_on_nf4(
    place: Place, engine: ReferenceEngine, tmp_path: Path, optim: str
) -> None:
    params = {"optim": optim, "lora_r": 64, "learning_rate": 3e-4 if optim == "lion_8bit" else 3e-3}
    recorder, before = Recorder(), torch.cuda.memory_allocated()
    result = trained(engine, place.spec(params=params, quantization="nf4", train_rows=120), tmp_path, recorder)
    assert sum(recorder.losses[-3:]) / 3 < 0.6 * recorder.losses[0]
    assert before < result.peak_memory_bytes < before + 2**30
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(tensor.dtype is torch.float32 for tensor in weights.values())


@pytest.mark.parametrize("params", [{}, {"prompt_loss_weight": 0.3}], ids=["verdicts", "prompts too"])
def test_float32_on_a_gpu_is_float32_on_a_cpu(
    place: Place, engine: ReferenceEngine, tmp_path: Path, params: dict[str, Any]
) -> None:
    spec = place.spec(params=params, base_model={"compute_dtype": "float32"}, micro_batch_tokens=128)
    ours, reference = Recorder(), Recorder()
    there = trained(engine, spec, tmp_path / "gpu", ours)
    here = trained(ReferenceEngine("cpu"), spec, tmp_path / "cpu", reference)
    assert ours.losses == pytest.approx(reference.losses, abs=1e-3)
    assert there.log_odds == pytest.approx(here.log_odds, abs=1e-2)


@pytest.mark.parametrize("params", [{}, {"prompt_loss_weight": 0.3}], ids=["verdicts", "prompts too"])
def test_the_micro_batch_changes_nothing(
    place: Place, engine: ReferenceEngine, tmp_path: Path, params: dict[str, Any]
) -> None:
    adapters = []
    for tokens in (16, 100_000):
        spec = place.spec(params=params, base_model={"compute_dtype": "float32"}, micro_batch_tokens=tokens)
        trained(engine, spec, tmp_path, Recorder())
        adapters.append(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    one_row, whole = adapters
    assert max((one_row[name] - whole[name]).abs().max().item() for name in whole) < 1e-4


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_run_leaves_no_trace_on_the_base(
    place: Place, engine: ReferenceEngine, tmp_path: Path, quantization: str
) -> None:
    spec = place.spec(quantization=quantization, train_rows=16)
    before = engine.score(spec, None, "validation")
    trained(engine, spec.model_copy(update={"gradient_checkpointing": True}), tmp_path, Recorder())
    assert engine.score(spec, None, "validation") == before


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_cut_run_ends_where_one_that_is_not_cut_ends(
    place: Place, engine: ReferenceEngine, tmp_path: Path, optim: str
) -> None:
    """Near it: a GPU adds up in another order each time."""
    params = {"optim": optim, "lora_r": 64, "lora_dropout": 0.2}
    spec = place.spec(params=params, quantization="nf4")
    whole, cut, rest = Recorder(), Recorder(interrupt=(3, EndReason.PREEMPTED)), Recorder()
    trained(engine, spec, tmp_path / "whole", whole)
    trained(engine, spec, tmp_path / "cut", cut)
    resumed = trained(engine, spec, tmp_path / "next", rest, resume_from=(tmp_path / "cut",))
    assert (resumed.end_reason, resumed.resumed_from_rows) == (EndReason.FINISHED, 24)
    assert cut.losses + rest.losses == pytest.approx(whole.losses, rel=0.02)


def test_the_gpus_memory_running_out_is_a_result(
    place: Place, engine: ReferenceEngine, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    spec = place.spec(train_rows=32, micro_batch_tokens=100_000, params={"effective_batch_size": 32})
    assert trained(engine, spec, tmp_path, Recorder()).end_reason is EndReason.FINISHED
    torch.cuda.empty_cache()
    request.getfixturevalue("little_memory")
    assert trained(engine, spec, tmp_path, Recorder()).end_reason is EndReason.OUT_OF_MEMORY
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert trained(engine, spec, tmp_path, Recorder()).end_reason is EndReason.FINISHED
