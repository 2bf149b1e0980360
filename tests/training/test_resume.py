"""A run that is cut and gone on with ends in the same bits as one that is not cut. On a CPU, in float32 and NF4."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import EndReason, Verdict
from mathverify_sweep.training.checkpoints import Checkpoints
from mathverify_sweep.training.order import Order
from mathverify_sweep.training.reference import ReferenceEngine
from tests.training.tiny_fixture import Place, Recorder, crash, trained

ROOT = Path(__file__).resolve().parents[2]

KINDS: dict[str, dict[str, Any]] = {
    "adamw_torch": {"lr_scheduler_type": "linear", "weight_decay": 0.1},
    # 64 ranks make tensors of 4,096 values: smaller ones keep 32-bit state whatever the optimizer's name says
    "adamw_8bit": {"lr_scheduler_type": "cosine", "lora_r": 64},
    "paged_adamw_32bit": {"lr_scheduler_type": "cosine_with_restarts", "prompt_loss_weight": 0.2},
    "paged_adamw_8bit": {"lr_scheduler_type": "constant_with_warmup", "lora_r": 64, "warmup_steps": 4},
    "lion_8bit": {"lr_scheduler_type": "warmup_stable_decay", "lora_r": 64, "lr_decay_share": 0.6},
}


@pytest.fixture(scope="module")
def engine() -> ReferenceEngine:
    return ReferenceEngine("cpu")


@pytest.fixture(scope="module")
def spec(place: Place) -> RunSpec:
    """Eight steps, with all that draws numbers or remembers: dropout, weighted prompts, rungs between the steps."""
    params = {"lora_dropout": 0.2, "prompt_loss_weight": 0.1}
    rungs = (8, 20, 33, 48, 59)
    return place.spec(params=params, rungs=rungs, rung_rows=20, objective="validation_log_loss")


@pytest.fixture(scope="module")
def whole(engine: ReferenceEngine, spec: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """That run, not cut."""
    return ended(engine, spec, tmp_path_factory.mktemp("whole"))


class Ended:
    """What a run left behind."""

    def __init__(self, result: RunResult, logs: list[Any], reports: list[Any], folder: Path) -> None:
        own = {"train_seconds", "eval_seconds", "peak_memory_bytes", "resumed_from_rows"}
        self.result, self.logs, self.reports = result, list(map(tuple, logs)), list(map(tuple, reports))
        self.figures = result.model_dump(exclude=own)
        self.adapter = load_file(folder / "adapter" / "adapter_model.safetensors")

    def is_end_of(self, other: Ended) -> None:
        """This is the last part of the same run: the same bits, and no word that the other did not say."""
        assert self.figures == other.figures
        assert self.adapter.keys() == other.adapter.keys()
        assert all(torch.equal(self.adapter[name], other.adapter[name]) for name in self.adapter)
        assert self.logs == other.logs[len(other.logs) - len(self.logs) :]
        assert self.reports == other.reports[len(other.reports) - len(self.reports) :]


def ended(engine: ReferenceEngine, spec: RunSpec, folder: Path, *resume_from: Path) -> Ended:
    recorder = Recorder()
    result = trained(engine, spec, folder, recorder, resume_from=resume_from)
    assert result.end_reason is EndReason.FINISHED, result.message
    return Ended(result, recorder.logs, recorder.reports, folder)


def preempted(engine: ReferenceEngine, spec: RunSpec, folder: Path, step: int, *resume_from: Path) -> Recorder:
    """A run that is preempted after so many steps of its own, and what it said until then."""
    recorder = Recorder(interrupt=(step, EndReason.PREEMPTED))
    result = trained(engine, spec, folder, recorder, resume_from=resume_from)
    assert result.end_reason is EndReason.PREEMPTED, result.message
    # Whatever runs in between draws numbers too.
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    return recorder


@pytest.mark.parametrize("optim", KINDS)
def test_a_cut_run_ends_in_the_same_bits(place: Place, engine: ReferenceEngine, tmp_path: Path, optim: str) -> None:
    params = {"optim": optim, "lora_dropout": 0.2, **KINDS[optim]}
    spec = place.spec(
        params=params, quantization="nf4", train_rows=40, rungs=(8, 20, 33), objective="validation_log_loss"
    )
    not_cut = ended(engine, spec, tmp_path / "whole")
    before = preempted(engine, spec, tmp_path / "cut", 3)
    after = ended(engine, spec, tmp_path / "next", tmp_path / "cut")
    after.is_end_of(not_cut)
    assert before.logs + after.logs == not_cut.logs
    assert before.reports + after.reports == not_cut.reports
    assert (after.result.resumed_from_rows, not_cut.result.resumed_from_rows) == (24, 0)


@pytest.mark.parametrize("step", [1, 5, 7, 8])
def test_it_does_not_matter_where_it_is_cut(
    engine: ReferenceEngine, spec: RunSpec, whole: Ended, tmp_path: Path, step: int
) -> None:
    """The eighth step is the last one: what is left is to evaluate."""
    before = preempted(engine, spec, tmp_path / "cut", step)
    after = ended(engine, spec, tmp_path / "next", tmp_path / "cut")
    after.is_end_of(whole)
    assert before.logs + after.logs == whole.logs
    assert before.reports + after.reports == whole.reports
    assert after.result.resumed_from_rows == min(8 * step, 60)


def test_nor_how_often(engine: ReferenceEngine, spec: RunSpec, whole: Ended, tmp_path: Path) -> None:
    folders: list[Path] = []
    said = Recorder()
    for step in (2, 1, 3):
        folder = tmp_path / str(len(folders))
        attempt = preempted(engine, spec, folder, step, *folders)
        said.logs += attempt.logs
        said.reports += attempt.reports
        folders.insert(0, folder)
    last = ended(engine, spec, tmp_path / "last", *folders)
    last.is_end_of(whole)
    assert said.logs + last.logs == whole.logs
    assert said.reports + last.reports == whole.reports


def test_an_adapter_in_bfloat16_is_gone_on_with_as_it_was(
    place: Place, engine: ReferenceEngine, tmp_path: Path
) -> None:
    spec = place.spec(base_model={"adapter_dtype": "bfloat16"}, params={"optim": "adamw_8bit"}, train_rows=24)
    not_cut = ended(engine, spec, tmp_path / "whole")
    preempted(engine, spec, tmp_path / "cut", 2)
    ended(engine, spec, tmp_path / "next", tmp_path / "cut").is_end_of(not_cut)


def test_a_run_that_began_from_an_adapter_goes_on_from_its_checkpoint(
    place: Place, engine: ReferenceEngine, tmp_path: Path
) -> None:
    spec, start = place.spec(train_rows=32, params={"learning_rate": 2e-2}), tmp_path / "start" / "adapter"
    ended(engine, spec, start.parent)
    recorders = [Recorder(), Recorder(interrupt=(2, EndReason.PREEMPTED)), Recorder()]
    results = [
        trained(engine, spec, tmp_path / str(n), recorder, start, resume_from=(tmp_path / "1",) if n == 2 else ())
        for n, recorder in enumerate(recorders)
    ]
    not_cut, resumed = (Ended(results[n], recorders[n].logs, recorders[n].reports, tmp_path / str(n)) for n in (0, 2))
    resumed.is_end_of(not_cut)
    assert recorders[1].logs + recorders[2].logs == recorders[0].logs
    other = trained(engine, spec, tmp_path / "other", Recorder(), resume_from=(tmp_path / "1",))
    assert other.resumed_from_rows == 0


def test_a_smaller_micro_batch_goes_on_from_a_larger_ones_checkpoint(
    engine: ReferenceEngine, spec: RunSpec, whole: Ended, tmp_path: Path
) -> None:
    preempted(engine, spec, tmp_path / "cut", 4)
    smaller = ended(engine, spec.model_copy(update={"micro_batch_tokens": 128}), tmp_path / "next", tmp_path / "cut")
    assert smaller.result.resumed_from_rows == 32
    assert smaller.result.value == pytest.approx(whole.result.value, abs=0.05)


@pytest.mark.parametrize("reason", [EndReason.STOPPED_BY_USER, EndReason.LEASE_EXPIRED])
def test_only_who_is_preempted_writes_a_last_checkpoint(
    engine: ReferenceEngine, spec: RunSpec, tmp_path: Path, reason: EndReason
) -> None:
    trained(engine, spec, tmp_path, Recorder(interrupt=(2, reason)))
    assert not (tmp_path / "checkpoints").exists()


def test_a_rung_that_was_passed_when_preempted_can_still_prune(
    engine: ReferenceEngine, spec: RunSpec, whole: Ended, tmp_path: Path
) -> None:
    preempted(engine, spec, tmp_path / "cut", 3)
    recorder = Recorder(prune_at=20)
    result = trained(engine, spec, tmp_path / "next", recorder, resume_from=(tmp_path / "cut",))
    assert (result.end_reason, result.rows_seen, recorder.logs) == (EndReason.PRUNED, 24, [])
    assert recorder.reports == whole.reports[1:2]


class Breaking(Recorder):
    """Meets an error at a rung."""

    def report(self, rows_seen: int, value: float) -> Verdict:
        if rows_seen == 33:
            raise ZeroDivisionError
        return super().report(rows_seen, value)


def test_a_run_that_breaks_goes_on_from_its_last_checkpoint(
    engine: ReferenceEngine, spec: RunSpec, whole: Ended, tmp_path: Path
) -> None:
    crash(trained(engine, spec, tmp_path / "broken", Breaking(), checkpoint_seconds=0.0))
    after = ended(engine, spec, tmp_path / "next", tmp_path / "broken")
    after.is_end_of(whole)
    assert after.result.resumed_from_rows == 32
    assert after.reports == whole.reports[2:]


class _Trap:
    """Pickled, it makes a folder where it is loaded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self._path),))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_holds_code_is_not_run_and_the_run_starts_over(
    engine: ReferenceEngine, spec: RunSpec, whole: Ended, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Its manifest is in order: whoever makes a checkpoint can make that too."""

    def fill(folder: Path) -> None:
        real = tmp_path / "cut" / "checkpoints" / "16"
        shutil.copytree(real, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        torch.save(_Trap(tmp_path / "ran"), folder / name)

    preempted(engine, spec, tmp_path / "cut", 2)
    Checkpoints(Order(spec, tmp_path / "forged"), "reference").write(16, fill)
    over = ended(engine, spec, tmp_path / "next", tmp_path / "forged")
    assert not (tmp_path / "ran").exists()
    assert "Weights only load failed" in caplog.text
    over.is_end_of(whole)
    assert (over.result.resumed_from_rows, over.logs) == (0, whole.logs)


def start_process(spec: RunSpec, folder: Path, *resume_from: Path) -> subprocess.Popen[str]:
    """An attempt in a fresh process, with a checkpoint after every step."""
    order = {
        "spec": spec.model_dump(mode="json"),
        "folder": str(folder),
        "resume_from": list(map(str, resume_from)),
        "checkpoint_seconds": 0.0,
    }
    command = [sys.executable, "-m", "tests.training.attempt_process", json.dumps(order)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def kill_after(process: subprocess.Popen[str], steps: int) -> list[str]:
    """SIGKILL at the word of that step, while its checkpoint is written. What it said of its end, if it got there."""
    assert process.stdout is not None
    heard = [line for _, line in zip(range(steps), process.stdout, strict=False)]
    process.send_signal(signal.SIGKILL)
    return [line for line in [*heard, *process.communicate()[0].splitlines()] if line.strip() != "step"]


def test_a_killed_process_is_gone_on_with_in_another(
    engine: ReferenceEngine, spec: RunSpec, whole: Ended, tmp_path: Path
) -> None:
    assert kill_after(start_process(spec, tmp_path / "killed"), 4) == []
    after = ended(engine, spec, tmp_path / "next", tmp_path / "killed")
    after.is_end_of(whole)
    assert after.result.resumed_from_rows in (24, 32, 40)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_in_the_same_bits(spec: RunSpec, whole: Ended, tmp_path: Path) -> None:
    """Each attempt in a fresh process. Each gets on: the third step's word comes after the second's checkpoint."""
    folders: list[Path] = []
    while not (lines := kill_after(start_process(spec, tmp_path / str(len(folders)), *folders), 3)):
        folders.insert(0, tmp_path / str(len(folders)))
    after = Ended(RunResult.model_validate_json(lines[0]), *json.loads(lines[1]), tmp_path / str(len(folders)))
    after.is_end_of(whole)
    assert len(folders) >= 2
