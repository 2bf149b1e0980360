"""How runs in company are cut, gone on with, and end; and that trouble stays where it belongs."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mathverify_sweep.errors import DataDrift
from mathverify_sweep.states import EndReason, Verdict
from mathverify_sweep.training.engine import PackedEngine
from mathverify_sweep.training.order import Order
from mathverify_sweep.training.packed import plan
from mathverify_sweep.training.packed.model import PackedModel
from mathverify_sweep.training.packed.stream import Share
from tests.training.packed.company import Numbers, adapter_of, largest_difference, numbers, together
from tests.training.tiny_fixture import Place, Recorder, crash, trained

KINDS: dict[str, dict[str, Any]] = {
    "adamw_torch": {"lr_scheduler_type": "linear", "weight_decay": 0.1, "lora_dropout": 0.2},
    # 64 ranks make tensors of 4,096 values: smaller ones keep 32-bit state whatever the optimizer's name says
    "adamw_8bit": {"lr_scheduler_type": "cosine", "lora_r": 64},
    "paged_adamw_32bit": {"lr_scheduler_type": "cosine_with_restarts", "prompt_loss_weight": 0.2},
    "paged_adamw_8bit": {"lr_scheduler_type": "constant_with_warmup", "lora_r": 64, "warmup_steps": 4},
    "lion_8bit": {"lr_scheduler_type": "warmup_stable_decay", "lora_r": 64, "lr_decay_share": 0.6},
}


@pytest.fixture
def engine() -> PackedEngine:
    return PackedEngine("cpu", slots=3, token_budget=512)


@pytest.fixture
def in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs share passes, as on a GPU."""
    made = plan.make
    monkeypatch.setattr(plan, "make", lambda *arguments: replace(made(*arguments), together=True))


# Cut and gone on with


@pytest.mark.parametrize(("optim", "params"), KINDS.items(), ids=KINDS.keys())
def test_a_run_that_is_cut_and_gone_on_with_elsewhere_ends_in_the_same_bits(
    place: Place, engine: PackedEngine, tmp_path: Path, optim: str, params: dict[str, Any]
) -> None:
    spec = place.spec(params={"optim": optim, **params}, quantization="nf4", rungs=(24, 48))
    uncut = numbers(engine, spec, tmp_path / "uncut")
    first, second = Recorder(interrupt=(4, EndReason.PREEMPTED)), Recorder()
    result = trained(engine, spec, tmp_path / "first", first)
    assert (result.end_reason, result.rows_seen) == (EndReason.PREEMPTED, 32)
    neighbour = Order(place.spec(quantization="nf4", seed=9), tmp_path / "neighbour")
    going_on = Order(spec, tmp_path / "second", resume_from=(tmp_path / "first",))
    elsewhere = PackedEngine("cpu", slots=2, token_budget=512)
    results = together(elsewhere, {"n": neighbour, "mine": going_on}, {"mine": second})
    assert results["mine"].resumed_from_rows == 32
    whole = Numbers.of(second, results["mine"], tmp_path / "second")
    assert (first.logs + second.logs, first.reports + second.reports) == (uncut.logs, uncut.reports)
    assert whole.log_odds == uncut.log_odds
    assert largest_difference(whole.adapter, uncut.adapter) == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_run_whose_newest_checkpoint_is_cut_short_anywhere_goes_on_from_the_one_before_to_the_same_bits(
    place: Place, engine: PackedEngine, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    step = dice.randint(2, 7)
    spec = place.spec(params={"lora_dropout": 0.2}, rungs=(24, 48))
    uncut = numbers(engine, spec, tmp_path / "uncut")
    trained(engine, spec, tmp_path / "first", Recorder(interrupt=(step, EndReason.PREEMPTED)), checkpoint_seconds=0.0)
    newest = tmp_path / "first" / "checkpoints" / str(8 * step)
    file = dice.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
    os.truncate(file, dice.randrange(file.stat().st_size))
    recorder = Recorder()
    result = trained(engine, spec, tmp_path / "second", recorder, resume_from=(tmp_path / "first",))
    assert result.resumed_from_rows == 8 * (step - 1)
    assert recorder.logs == uncut.logs[step - 1 :]
    assert result.log_odds == uncut.log_odds
    assert largest_difference(adapter_of(tmp_path / "second"), uncut.adapter) == 0


def test_a_run_that_was_cut_after_its_last_step_only_has_to_be_judged(
    place: Place, engine: PackedEngine, tmp_path: Path
) -> None:
    spec = place.spec()
    trained(engine, spec, tmp_path / "first", Recorder(interrupt=(8, EndReason.PREEMPTED)))
    result = trained(engine, spec, tmp_path / "second", Recorder(), resume_from=(tmp_path / "first",))
    assert (result.end_reason, result.resumed_from_rows, result.rows_seen) == (EndReason.FINISHED, 60, 60)


# Ends


def test_a_finished_run_says_all_about_itself(place: Place, engine: PackedEngine, tmp_path: Path) -> None:
    recorder = Recorder()
    spec = place.spec(rungs=(20, 40), rung_rows=30, objective="validation_log_loss")
    result = trained(engine, spec, tmp_path, recorder)
    assert result.metrics is not None
    assert result.metrics.rows == len(result.log_odds) > 30
    assert result.value == result.metrics.log_loss
    assert (result.rows_seen, result.optimizer_steps, result.micro_batch_tokens) == (60, 8, 512)
    assert min(result.train_seconds, result.eval_seconds, result.peak_memory_bytes) > 0
    assert [rows for rows, _ in recorder.reports] == [20, 40]
    assert result.adapter == "adapter"
    assert engine.score(spec, tmp_path / "adapter", "validation") == result.log_odds


def test_slots_are_taken_and_given_back(place: Place, engine: PackedEngine, tmp_path: Path) -> None:
    assert engine.free_slots() == 3
    for name, rows in (("a", 8), ("b", 16), ("c", 24)):
        engine.start(name, Order(place.spec(train_rows=rows), tmp_path / name), Recorder())
    assert engine.free_slots() == 0
    ended: list[str] = []
    while len(ended) < 3:
        ended += [run_id for run_id, _ in engine.step()]
        assert engine.free_slots() == len(ended)
    assert ended == ["a", "b", "c"]
    assert engine.step() == []


def test_a_run_on_another_base_waits_until_the_house_is_empty(
    place: Place, engine: PackedEngine, tmp_path: Path
) -> None:
    engine.start("nf4", Order(place.spec(quantization="nf4", train_rows=8), tmp_path / "nf4"), Recorder())
    engine.start("plain", Order(place.spec(train_rows=8), tmp_path / "plain"), Recorder())
    results = dict(engine.step())
    assert "must share a base model" in crash(results["plain"])
    assert trained(engine, place.spec(train_rows=8), tmp_path / "again", Recorder()).end_reason is EndReason.FINISHED


def test_other_data_than_the_studys_is_refused(place: Place, engine: PackedEngine) -> None:
    with pytest.raises(DataDrift):
        engine.prepare(place.data, "0" * 64)


# Trouble


class Breaking(Recorder):
    """Meets an error in the middle of a run."""

    def report(self, rows_seen: int, value: float) -> Verdict:
        super().report(rows_seen, value)
        raise ZeroDivisionError


def test_an_error_of_one_run_ends_that_run_only(place: Place, engine: PackedEngine, tmp_path: Path) -> None:
    spec = place.spec(rungs=(16,))
    alone = numbers(engine, spec, tmp_path / "alone")
    recorders = {"mine": Recorder(), "broken": Breaking()}
    results = together(engine, {name: Order(spec, tmp_path / name) for name in recorders}, recorders)
    assert "ZeroDivisionError" in crash(results["broken"])
    assert Numbers.of(recorders["mine"], results["mine"], tmp_path / "mine").same_bits(alone)


Passes = Callable[[PackedModel, Sequence[Share]], list[Tensor]]


def failing(patch: pytest.MonkeyPatch, fails: Callable[[Sequence[Share]], Exception | None]) -> list[int]:
    """Passes do half their work and then fail where `fails` says so. Gives the tokens of all that were tried."""
    train: Passes = PackedModel.train
    tried: list[int] = []

    def train_or_fail(model: PackedModel, shares: Sequence[Share]) -> list[Tensor]:
        tried.append(sum(share.tokens for share in shares))
        error = fails(shares)
        if error is None:
            return train(model, shares)
        train(model, shares[: len(shares) // 2 + 1])
        raise error

    patch.setattr(PackedModel, "train", train_or_fail)
    return tried


def test_too_little_memory_makes_passes_smaller_and_all_runs_go_on(
    place: Place, engine: PackedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failed pass leaves no trace: what follows is what an engine with the smaller budget does from the start."""
    specs = {str(i): place.spec(seed=i, params={"effective_batch_size": 16}) for i in range(3)}
    small = PackedEngine("cpu", slots=3, token_budget=256)
    expected = {name: numbers(small, spec, tmp_path / f"small-{name}") for name, spec in specs.items()}
    memory_error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    tried = failing(monkeypatch, lambda shares: memory_error if sum(s.tokens for s in shares) > 256 else None)
    recorders = {name: Recorder() for name in specs}
    results = together(engine, {name: Order(spec, tmp_path / name) for name, spec in specs.items()}, recorders)
    assert len([tokens for tokens in tried if tokens > 256]) == 1
    for name, result in results.items():
        assert result.end_reason is EndReason.FINISHED
        assert result.micro_batch_tokens == 256
        assert recorders[name].logs == expected[name].logs
        assert largest_difference(adapter_of(tmp_path / name), expected[name].adapter) == 0


def test_a_row_that_fits_no_memory_ends_its_run_and_spares_the_others(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = place.spec(seed=1)
    short = place.spec(seed=2, max_length=33, train_rows=24)
    memory_error = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    failing(monkeypatch, lambda shares: memory_error if any(_longest(share) > 33 for share in shares) else None)
    engine = PackedEngine("cpu", slots=2, token_budget=256)
    orders = {"long": Order(long, tmp_path / "long"), "short": Order(short, tmp_path / "short")}
    results = together(engine, orders)
    assert results["long"].end_reason is EndReason.OUT_OF_MEMORY
    assert results["short"].end_reason is EndReason.FINISHED


@pytest.mark.usefixtures("in_one_pass")
def test_whose_fault_a_failed_pass_is_shows_when_each_is_alone(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = {str(i): place.spec(seed=i, params={"lora_r": 4 + i}) for i in range(3)}
    fails = RuntimeError("this kernel does not like rank 5")
    tried = failing(monkeypatch, lambda shares: fails if any(_rank(share) == 5 for share in shares) else None)
    engine = PackedEngine("cpu", slots=3, token_budget=2_048)
    results = together(engine, {name: Order(spec, tmp_path / name) for name, spec in specs.items()})
    assert "does not like rank 5" in crash(results["1"])
    assert [results[name].end_reason for name in ("0", "2")] == [EndReason.FINISHED] * 2
    assert max(tried) > 2 * min(tried)
    for name in ("0", "2"):
        alone = trained(PackedEngine("cpu"), specs[name], tmp_path / f"alone-{name}", Recorder())
        assert alone.end_reason is EndReason.FINISHED
        assert largest_difference(adapter_of(tmp_path / name), adapter_of(tmp_path / f"alone-{name}")) < 1e-5


def test_evaluation_that_does_not_fit_is_done_in_smaller_pieces(
    place: Place, engine: PackedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = place.spec(train_rows=8)
    whole = trained(engine, spec, tmp_path / "whole", Recorder())
    judge = PackedModel.judge

    def judge_or_fail(model: PackedModel, shares: list[Share]) -> list[Tensor]:
        if sum(share.tokens for share in shares) > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return judge(model, shares)

    monkeypatch.setattr(PackedModel, "judge", judge_or_fail)
    pieces = trained(engine, spec, tmp_path / "pieces", Recorder())
    assert pieces.log_odds == pytest.approx(whole.log_odds, abs=1e-5)


def _longest(share: Share) -> int:
    return max(len(row.prompt_ids) for row in share.rows)


def _rank(share: Share) -> int:
    assert share.weights is not None
    return share.weights.rank
