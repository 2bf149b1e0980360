"""The reference engine on a CPU in float32: against formulas, against itself, and at every way a run can end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mathverify_sweep.errors import DataDrift, ModelError
from mathverify_sweep.specs import RunSpec
from mathverify_sweep.states import EndReason, Verdict
from mathverify_sweep.training.order import Order
from mathverify_sweep.training.reference import ReferenceEngine
from tests.training import plain_loop
from tests.training.tiny_fixture import Place, Recorder, crash, trained

OPTIMIZERS = ("adamw_torch", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "lion_8bit")


@pytest.fixture(scope="module")
def engine() -> ReferenceEngine:
    return ReferenceEngine("cpu")


@pytest.fixture(scope="module")
def learned(place: Place, engine: ReferenceEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that has learned to answer True or False: its loss is a third of the base's."""
    folder = tmp_path_factory.mktemp("learned")
    trained(engine, place.spec(params={"learning_rate": 2e-2}, train_rows=120), folder, Recorder())
    return folder / "adapter"


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def start_adapter(engine: ReferenceEngine, spec: RunSpec, folder: Path) -> Path:
    """An adapter of the spec's shape with random weights in both of its halves."""
    still = spec.model_copy(update={"train_rows": 1, "params": spec.params.model_copy(update={"learning_rate": 1e-30})})
    trained(engine, still, folder, Recorder())
    weights = adapter_of(folder)
    generator = torch.Generator().manual_seed(1)
    drawn = {name: 0.05 * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    save_file(drawn, folder / "adapter" / "adapter_model.safetensors")
    return folder / "adapter"


AXES: dict[str, dict[str, Any]] = {
    "cosine": {},
    "linear, decayed, clipped, plain LoRA": {
        "lr_scheduler_type": "linear",
        "weight_decay": 0.1,
        "max_grad_norm": 0.05,
        "use_rslora": False,
        "lora_alpha": 3.0,
    },
    "a last step of 4 rows, no clipping, two cycles": {
        "effective_batch_size": 7,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "cosine_with_restarts",
        "lr_num_cycles": 2,
        "warmup_steps": 2,
    },
    "the prompt weighs 0.3": {"prompt_loss_weight": 0.3, "lr_scheduler_type": "constant_with_warmup"},
    "warm up, hold, decay": {"lr_scheduler_type": "warmup_stable_decay", "lr_decay_share": 0.4, "lora_r": 6},
}


@pytest.mark.parametrize("params", AXES.values(), ids=AXES.keys())
def test_a_run_is_what_the_formulas_say(
    place: Place, engine: ReferenceEngine, tmp_path: Path, params: dict[str, Any]
) -> None:
    spec = place.spec(params=params, micro_batch_tokens=128)
    start = start_adapter(engine, spec, tmp_path / "start")
    recorder = Recorder()
    result = trained(engine, spec, tmp_path, recorder, start)
    losses, adapter = plain_loop.train(spec, start)
    assert result.optimizer_steps == len(losses) == len(recorder.losses)
    assert recorder.losses == pytest.approx(losses, abs=1e-5)
    assert largest_difference(adapter_of(tmp_path), adapter) < 1e-5


@pytest.mark.parametrize("params", [{}, {"prompt_loss_weight": 0.1}], ids=["verdicts", "prompts too"])
def test_the_micro_batch_changes_nothing(
    place: Place, engine: ReferenceEngine, tmp_path: Path, params: dict[str, Any]
) -> None:
    adapters = []
    for tokens in (16, 160, 100_000):
        recorder = Recorder()
        trained(engine, place.spec(params=params, micro_batch_tokens=tokens), tmp_path, recorder)
        adapters.append(adapter_of(tmp_path))
    assert largest_difference(adapters[0], adapters[2]) < 1e-5
    assert largest_difference(adapters[1], adapters[2]) < 1e-5


def test_the_same_spec_gives_the_same_bits(place: Place, engine: ReferenceEngine, tmp_path: Path) -> None:
    spec = place.spec(params={"lora_dropout": 0.2}, quantization="nf4", rungs=(16, 32))
    first, again = Recorder(), Recorder()
    a = trained(engine, spec, tmp_path / "a", first)
    trained(
        engine, place.spec(params={"optim": "lion_8bit"}, quantization="nf4", seed=5), tmp_path / "other", Recorder()
    )
    b = trained(engine, spec, tmp_path / "b", again)
    assert (first.logs, first.reports, a.log_odds) == (again.logs, again.reports, b.log_odds)
    assert largest_difference(adapter_of(tmp_path / "a"), adapter_of(tmp_path / "b")) == 0


def test_another_seed_gives_another_run(place: Place, engine: ReferenceEngine, tmp_path: Path) -> None:
    one, other = Recorder(), Recorder()
    trained(engine, place.spec(seed=1), tmp_path, one)
    trained(engine, place.spec(seed=2), tmp_path, other)
    assert one.losses != other.losses


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_every_optimizer_learns_on_an_nf4_base(
    place: Place, engine: ReferenceEngine, tmp_path: Path, optim: str
) -> None:
    # 64 ranks make tensors of 4,096 values: smaller ones keep 32-bit state whatever the optimizer's name says
    params = {"optim": optim, "lora_r": 64, "learning_rate": 3e-4 if optim == "lion_8bit" else 3e-3}
    recorder = Recorder()
    result = trained(engine, place.spec(params=params, quantization="nf4", train_rows=120), tmp_path, recorder)
    assert result.end_reason is EndReason.FINISHED
    assert sum(recorder.losses[-3:]) / 3 < 0.6 * recorder.losses[0]
    assert all(weights.dtype is torch.float32 for weights in adapter_of(tmp_path).values())


def test_an_int8_base_learns(place: Place, engine: ReferenceEngine, tmp_path: Path) -> None:
    recorder = Recorder()
    trained(engine, place.spec(params={"learning_rate": 3e-3}, quantization="int8"), tmp_path, recorder)
    assert recorder.losses[-1] < 0.8 * recorder.losses[0]


@pytest.mark.parametrize("params", [{}, {"prompt_loss_weight": 0.1}], ids=["verdicts", "prompts too"])
def test_a_bfloat16_run_is_near_the_float32_run(
    place: Place, engine: ReferenceEngine, tmp_path: Path, params: dict[str, Any]
) -> None:
    exact, rounded = Recorder(), Recorder()
    params = {"learning_rate": 3e-3, **params}
    trained(engine, place.spec(params=params), tmp_path, exact)
    trained(engine, place.spec(params=params, base_model={"compute_dtype": "bfloat16"}), tmp_path, rounded)
    assert rounded.losses == pytest.approx(exact.losses, rel=0.02)
    assert all(weights.dtype is torch.float32 for weights in adapter_of(tmp_path).values())


def test_a_quantised_base_does_not_round_the_adapter(place: Place, engine: ReferenceEngine, tmp_path: Path) -> None:
    spec = place.spec(params={"learning_rate": 1e-30}, quantization="nf4")
    start = start_adapter(engine, spec, tmp_path / "start")
    trained(engine, spec, tmp_path, Recorder(), start)
    assert largest_difference(adapter_of(tmp_path), adapter_of(tmp_path / "start")) == 0


def test_an_adapter_is_kept_in_bfloat16_where_the_spec_says_so(
    place: Place, engine: ReferenceEngine, tmp_path: Path
) -> None:
    result = trained(engine, place.spec(base_model={"adapter_dtype": "bfloat16"}, train_rows=16), tmp_path, Recorder())
    assert result.end_reason is EndReason.FINISHED
    assert {weights.dtype for weights in adapter_of(tmp_path).values()} == {torch.bfloat16}


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_run_leaves_no_trace_on_the_base(
    place: Place, engine: ReferenceEngine, tmp_path: Path, quantization: str
) -> None:
    spec = place.spec(quantization=quantization, train_rows=16, params={"prompt_loss_weight": 0.1})
    before = engine.score(spec, None, "validation")
    trained(engine, spec.model_copy(update={"gradient_checkpointing": True}), tmp_path, Recorder())
    trained(engine, spec.model_copy(update={"rungs": (8,)}), tmp_path, Recorder(prune_at=8))
    assert engine.score(spec, None, "validation") == before


def test_checkpointing_changes_memory_only(place: Place, engine: ReferenceEngine, tmp_path: Path) -> None:
    trained(engine, place.spec(), tmp_path / "plain", Recorder())
    trained(engine, place.spec(gradient_checkpointing=True), tmp_path / "checkpointed", Recorder())
    assert largest_difference(adapter_of(tmp_path / "plain"), adapter_of(tmp_path / "checkpointed")) < 1e-6


def test_a_finished_run_says_all_about_itself(place: Place, engine: ReferenceEngine, tmp_path: Path) -> None:
    recorder = Recorder()
    spec = place.spec(rungs=(20, 40), rung_rows=30, objective="validation_log_loss")
    result = trained(engine, spec, tmp_path, recorder)
    assert result.metrics is not None
    assert result.metrics.rows == len(result.log_odds) > 30
    assert result.value == result.metrics.log_loss
    assert (result.rows_seen, result.optimizer_steps, result.left_out_rows) == (60, 8, 0)
    assert result.train_seconds > 0
    assert result.eval_seconds > 0
    assert result.peak_memory_bytes > 0
    assert [rows for rows, _ in recorder.reports] == [20, 40]
    assert [rows for rows, _, _ in recorder.logs] == [8, 16, 24, 32, 40, 48, 56, 60]
    assert result.adapter == "adapter"
    assert engine.score(spec, tmp_path / "adapter", "validation") == result.log_odds


def test_a_step_over_two_rungs_reports_both(place: Place, engine: ReferenceEngine, tmp_path: Path) -> None:
    recorder = Recorder()
    trained(engine, place.spec(params={"effective_batch_size": 32}, rungs=(10, 20, 50)), tmp_path, recorder)
    assert [rows for rows, _ in recorder.reports] == [10, 20, 50]
    assert recorder.reports[0][1] == recorder.reports[1][1]


def test_a_long_run_logs_at_most_fifty_times(place: Place, engine: ReferenceEngine, tmp_path: Path) -> None:
    recorder = Recorder()
    trained(engine, place.spec(params={"effective_batch_size": 1}, train_rows=90), tmp_path, recorder)
    assert [rows for rows, _, _ in recorder.logs] == list(range(2, 91, 2))


def test_a_pruned_run_ends_at_its_rung(place: Place, engine: ReferenceEngine, tmp_path: Path) -> None:
    recorder = Recorder(prune_at=16)
    result = trained(engine, place.spec(rungs=(8, 16, 24)), tmp_path, recorder)
    assert result.end_reason is EndReason.PRUNED
    assert (result.rows_seen, result.optimizer_steps) == (16, 2)
    assert result.value == recorder.reports[-1][1]
    assert result.adapter is None
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(("learning_rate", "sign"), [(1e30, "nan"), (100.0, "median loss")])
def test_a_diverged_run_ends_early_and_without_a_value(
    place: Place, engine: ReferenceEngine, learned: Path, tmp_path: Path, learning_rate: float, sign: str
) -> None:
    params = {"learning_rate": learning_rate, "effective_batch_size": 2, "lr_scheduler_type": "constant_with_warmup"}
    spec = place.spec(params=params, train_rows=100, rungs=(90,))
    recorder = Recorder()
    result = trained(engine, spec, tmp_path, recorder, learned)
    assert result.end_reason is EndReason.DIVERGED
    assert sign in result.message
    assert result.optimizer_steps <= 20
    assert (result.value, recorder.reports) == (None, [])


class Breaking(Recorder):
    """Meets an error in the middle of a run."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def report(self, rows_seen: int, value: float) -> Verdict:
        super().report(rows_seen, value)
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_is_a_result_and_the_engine_goes_on(
    place: Place, engine: ReferenceEngine, tmp_path: Path, error: RuntimeError
) -> None:
    spec = place.spec(rungs=(16,), micro_batch_tokens=256, train_rows=24)
    result = trained(engine, spec, tmp_path, Breaking(error))
    assert result.end_reason is EndReason.OUT_OF_MEMORY
    assert result.micro_batch_tokens == 256
    assert "256 tokens at once" in result.message
    assert trained(engine, spec, tmp_path, Recorder()).end_reason is EndReason.FINISHED


@pytest.mark.parametrize("error", [ZeroDivisionError(), RuntimeError("shapes do not match")])
def test_any_other_error_is_a_crash_and_the_engine_goes_on(
    place: Place, engine: ReferenceEngine, tmp_path: Path, error: Exception
) -> None:
    spec = place.spec(rungs=(16,))
    before = engine.score(spec, None, "validation")
    result = trained(engine, spec, tmp_path, Breaking(error))
    assert repr(error).partition("(")[0] in crash(result)
    assert result.rows_seen == 16
    assert engine.score(spec, None, "validation") == before


def test_a_start_adapter_is_gone_on_from(place: Place, engine: ReferenceEngine, learned: Path, tmp_path: Path) -> None:
    spec = place.spec(train_rows=24)
    first, going_on, again = Recorder(), Recorder(), Recorder()
    trained(engine, spec, tmp_path, first)
    trained(engine, spec, tmp_path, going_on, learned)
    trained(engine, spec, tmp_path, again)
    assert going_on.losses[0] < 0.5 * first.losses[0]
    assert [rate for *_, rate in going_on.logs] == [rate for *_, rate in first.logs]
    assert again.losses == first.losses


@pytest.mark.parametrize("params", [{"lora_r": 8}, {"lora_alpha": 1.0}, {"use_rslora": False}])
def test_a_start_adapter_of_another_shape_is_refused(
    place: Place, engine: ReferenceEngine, tmp_path: Path, params: dict[str, Any]
) -> None:
    trained(engine, place.spec(train_rows=8), tmp_path, Recorder())
    result = trained(engine, place.spec(params=params), tmp_path / "next", Recorder(), tmp_path / "adapter")
    assert "must have the run's shape" in crash(result)


def test_rows_that_do_not_fit_are_left_out_and_counted(place: Place, engine: ReferenceEngine, tmp_path: Path) -> None:
    result = trained(engine, place.spec(max_length=32), tmp_path, Recorder())
    assert result.left_out_rows > 0
    assert result.rows_seen == 60 - result.left_out_rows
    unread = result.log_odds.count(0.0)
    assert unread > 0
    assert result.message.startswith(f"{unread} validation rows do not fit")


def test_other_data_than_the_study_was_created_with_is_refused(
    place: Place, engine: ReferenceEngine, tmp_path: Path
) -> None:
    with pytest.raises(DataDrift, match="Give this worker the same file"):
        engine.prepare(place.data, "0" * 64)
    result = trained(engine, place.spec(data_fingerprint="0" * 64), tmp_path, Recorder())
    assert "Give this worker the same file" in crash(result)


@pytest.mark.parametrize("reason", [EndReason.STOPPED_BY_USER, EndReason.LEASE_EXPIRED, EndReason.PREEMPTED])
def test_an_interrupted_run_ends_after_the_step(
    place: Place, engine: ReferenceEngine, tmp_path: Path, reason: EndReason
) -> None:
    recorder = Recorder(interrupt=(3, reason))
    result = trained(engine, place.spec(rungs=(8,)), tmp_path, recorder)
    assert (result.end_reason, result.rows_seen, result.optimizer_steps) == (reason, 24, 3)
    assert [rows for rows, _ in recorder.reports] == [8]
    assert not (tmp_path / "adapter").exists()


def test_an_engine_has_one_slot_while_it_trains(place: Place, engine: ReferenceEngine, tmp_path: Path) -> None:
    assert (engine.free_slots(), engine.step()) == (1, [])
    engine.start("7f3a", Order(place.spec(train_rows=8), tmp_path), Recorder())
    assert engine.free_slots() == 0
    [(run_id, result)] = engine.step()
    assert (run_id, result.end_reason, engine.free_slots()) == ("7f3a", EndReason.FINISHED, 1)


def test_a_device_that_is_none_is_refused() -> None:
    with pytest.raises(ModelError, match="cpu or cuda:0"):
        ReferenceEngine("meta")
