"""One run, start to end, on TRL: the oracle that a faster engine is held against. Spec in, reports during, result out.

The base model, the data and the encoded rows stay loaded from run to run. Refuses data whose fingerprint is not the
study's. Four endings are results (finished, pruned, diverged, out of memory); whatever else goes wrong is raised.
"""

from __future__ import annotations

import gc
import math
import resource
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from mathverify_sweep import metrics
from mathverify_sweep.data import dataset, prompts
from mathverify_sweep.data.encode import Encoded, encode
from mathverify_sweep.errors import DataDrift, ModelError, TrainingEnded
from mathverify_sweep.paths import adapter_folder
from mathverify_sweep.specs import BaseModelSpec, DataSpec, Metrics, RunResult, RunSpec, Split
from mathverify_sweep.states import EndReason, Verdict
from mathverify_sweep.training import adapters, base
from mathverify_sweep.training.base import BaseModel
from mathverify_sweep.training.batches import training_order
from mathverify_sweep.training.divergence import DivergenceWatch
from mathverify_sweep.training.evaluate import log_odds
from mathverify_sweep.training.trainer import Epoch, Step, train

LOG_POINTS = 50
"""How many times a run logs at most."""


class Reporter(Protocol):
    """Whom a run talks to while it trains."""

    def report(self, rows_seen: int, value: float) -> Verdict:
        """The objective at a rung; `rows_seen` is the rung's own number, so that trials of all batch sizes share it."""

    def log(self, rows_seen: int, loss: float, learning_rate: float) -> None:
        """The mean training loss since the last log, and the learning rate of the last step."""


class ReferenceEngine:
    """Runs one spec after another on one device: "cpu", or "cuda:0" with a single GPU visible."""

    def __init__(self, device: str) -> None:
        self.device = _device(device)
        # Each run collects garbage once; over all that the libraries above hold, that would take 0.4 s.
        gc.collect()
        gc.freeze()
        # The runs of a study share base and data; the rows of the last two prompts stay encoded (training, validation).
        self._base = lru_cache(maxsize=1)(base.load)
        self._data = lru_cache(maxsize=1)(_load_data)
        self._encoded = lru_cache(maxsize=4)(self._encode)

    def prepare(self, data: DataSpec, fingerprint: str) -> None:
        """Read the data of the runs to come. Raises DataDrift when it is not the study's."""
        self._data(data, fingerprint)

    def run(self, spec: RunSpec, folder: Path, reporter: Reporter, start_adapter: Path | None = None) -> RunResult:
        """Trains, evaluates, and leaves the adapter in `folder`. With `start_adapter` it goes on from those weights."""
        material = self._material(spec)
        course = _Course(spec, material, reporter)
        _reset_peak_memory(self.device)
        began = time.monotonic()
        epoch = Epoch(training_order(material.train.rows, spec.seed), material.micro_batch_tokens, folder)
        try:
            with adapters.attached(material.base, spec, start_adapter) as model:
                train(material.base, model, spec, epoch, lambda step: course.after(step, model))
                judged, odds = course.judge(model, len(material.labels))
                adapters.save(model, adapter_folder(folder))
            ending = course.finished(judged, odds, adapter_folder(folder).name)
        except TrainingEnded as ended:
            ending = course.ended(ended.reason, str(ended))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            ending = course.ended(EndReason.OUT_OF_MEMORY, f"{epoch.micro_batch_tokens} tokens at once: {error}")
        seconds = time.monotonic() - began
        resources = {"train_seconds": seconds - course.eval_seconds, "peak_memory_bytes": _peak_memory(self.device)}
        _free_memory(self.device)
        return ending.model_copy(update=resources)

    def score(self, spec: RunSpec, adapter: Path | None, split: Split) -> tuple[float, ...]:
        """The log-odds of a split's rows in its order, by an adapter of the spec's shape or by the base model alone."""
        loaded = self._base(spec.base_model, self.device)
        count = len(self._data(spec.data, spec.data_fingerprint).split(split))
        rows = self._encoded(_Rows.of(spec, split, count)).rows
        tokens = base.evaluation_tokens(loaded, base.micro_batch_tokens(loaded, spec))
        if adapter is None:
            return tuple(log_odds(loaded, loaded.model, rows, count, tokens))
        with adapters.attached(loaded, spec, adapter) as model:
            return tuple(log_odds(loaded, model, rows, count, tokens))

    def _material(self, spec: RunSpec) -> _Material:
        data = self._data(spec.data, spec.data_fingerprint)
        loaded = self._base(spec.base_model, self.device)
        return _Material(
            base=loaded,
            micro_batch_tokens=base.micro_batch_tokens(loaded, spec),
            train=self._encoded(_Rows.of(spec, "train", len(data.training_rows(spec.train_rows)))),
            validation=self._encoded(_Rows.of(spec, "validation", len(data.validation))),
            labels=tuple(row.is_correct for row in data.validation),
            groups=tuple(dataset.groups(data.validation)),
        )

    def _encode(self, wanted: _Rows) -> Encoded:
        rows = self._data(wanted.data, wanted.data_fingerprint).split(wanted.split)[: wanted.count]
        loaded = self._base(wanted.base_model, self.device)
        encoded = encode(rows, wanted.template_text, loaded.tokenizer, wanted.max_length)
        _require_positions(loaded, encoded)
        return encoded


@dataclass(frozen=True)
class _Rows:
    """The first `count` rows of a split as one prompt and tokenizer encode them: the key of what stays encoded."""

    data: DataSpec
    data_fingerprint: str
    base_model: BaseModelSpec
    template_text: str
    max_length: int
    split: Split
    count: int

    @classmethod
    def of(cls, spec: RunSpec, split: Split, count: int) -> _Rows:
        text = prompts.find(spec.params.prompt_template, spec.prompt_texts)
        return cls(spec.data, spec.data_fingerprint, spec.base_model, text, spec.max_length, split, count)


@dataclass(frozen=True)
class _Material:
    """What a run works on. `labels` and `groups` are those of all validation rows, in the split's order."""

    base: BaseModel
    micro_batch_tokens: int
    train: Encoded
    validation: Encoded
    labels: tuple[bool, ...]
    groups: tuple[str, ...]


class _Course:
    """How far a run is: its logs, its rungs, its evaluations."""

    def __init__(self, spec: RunSpec, material: _Material, reporter: Reporter) -> None:
        self._spec, self._material, self._reporter = spec, material, reporter
        self._divergence = DivergenceWatch()
        self._rungs = sorted(spec.rungs)
        self._last_step = Step(number=0, rows_seen=0, loss=math.nan, gradient_norm=math.nan, learning_rate=0.0)
        self._log_every = math.ceil(len(material.train.rows) / LOG_POINTS)
        self._losses_to_log: list[float] = []
        self._last_value: float | None = None
        self.eval_seconds = 0.0

    def after(self, step: Step, model: nn.Module) -> None:
        """Looks at an optimizer step. Raises TrainingEnded when it is the last one."""
        logs_before = self._last_step.rows_seen // self._log_every
        self._last_step = step
        self._divergence.check(step.loss, step.gradient_norm, step.rows_seen)
        self._losses_to_log.append(step.loss)
        if step.rows_seen // self._log_every > logs_before or step.rows_seen == len(self._material.train.rows):
            mean = sum(self._losses_to_log) / len(self._losses_to_log)
            self._reporter.log(step.rows_seen, mean, step.learning_rate)
            self._losses_to_log.clear()
        if self._rungs and step.rows_seen >= self._rungs[0]:
            self._report(model)

    def judge(self, model: nn.Module, count: int) -> tuple[Metrics, tuple[float, ...]]:
        """Metrics and log-odds on the first `count` validation rows."""
        began = time.monotonic()
        material = self._material
        rows = [row for row in material.validation.rows if row.index < count]
        tokens = base.evaluation_tokens(material.base, material.micro_batch_tokens)
        odds = log_odds(material.base, model, rows, count, tokens)
        if not all(map(math.isfinite, odds)):
            raise TrainingEnded(EndReason.DIVERGED, f"log-odds are not numbers after {self._last_step.rows_seen} rows")
        judged = metrics.judge(odds, material.labels[:count], material.groups[:count])
        self._last_value = metrics.objective_value(judged, self._spec.objective)
        self.eval_seconds += time.monotonic() - began
        return judged, tuple(odds)

    def finished(self, judged: Metrics, odds: tuple[float, ...], adapter: str) -> RunResult:
        """The result of a run that got to its end."""
        unread = self._material.validation.left_out
        message = f"{unread} validation rows do not fit max_length even when cut: their log-odds are 0"
        result = self.ended(EndReason.FINISHED, message if unread else "")
        return result.model_copy(update={"metrics": judged, "log_odds": odds, "adapter": adapter})

    def ended(self, reason: EndReason, message: str) -> RunResult:
        """The result of a run as far as it got; its value is that of the last look, unless the parameters ruined it."""
        return RunResult(
            end_reason=reason,
            message=message,
            value=self._last_value if reason in (EndReason.FINISHED, EndReason.PRUNED) else None,
            rows_seen=self._last_step.rows_seen,
            optimizer_steps=self._last_step.number,
            micro_batch_tokens=self._material.micro_batch_tokens,
            left_out_rows=self._material.train.left_out,
            eval_seconds=self.eval_seconds,
        )

    def _report(self, model: nn.Module) -> None:
        """One look answers every rung that this step has passed."""
        total = len(self._material.labels)
        self.judge(model, min(self._spec.rung_rows or total, total))
        assert self._last_value is not None
        while self._rungs and self._rungs[0] <= self._last_step.rows_seen:
            rung = self._rungs.pop(0)
            if self._reporter.report(rung, self._last_value) is Verdict.PRUNE:
                what = f"{self._spec.objective} {self._last_value:.4f} at {rung} rows"
                raise TrainingEnded(EndReason.PRUNED, what)


def _device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"the device must be cpu or cuda:0, got {name}")
    if device.type == "cuda" and (torch.cuda.device_count() != 1 or device.index not in (None, 0)):
        raise ModelError(
            f"an engine must see one GPU, its cuda:0; it sees {torch.cuda.device_count()} and was given {name}. "
            "Set CUDA_VISIBLE_DEVICES to that GPU"
        )
    return torch.device("cpu") if device.type == "cpu" else torch.device("cuda", 0)


def _load_data(spec: DataSpec, fingerprint: str) -> dataset.VerificationData:
    data = dataset.load(spec)
    if data.fingerprint != fingerprint:
        raise DataDrift(
            f"{spec.source}: the study was created with data of fingerprint {fingerprint[:12]}, this machine reads "
            f"{data.fingerprint[:12]}. Give this worker the same file or revision"
        )
    return data


def _require_positions(loaded: BaseModel, encoded: Encoded) -> None:
    most = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(row.prompt_ids) for row in encoded.rows), default=0)
    if not encoded.rows or (most is not None and longest > most):
        raise ModelError(
            f"max_length must leave rows of at most the base model's {most} positions, and some at all: "
            f"{len(encoded.rows)} rows fit, the longest has {longest}. Change max_length"
        )


def _is_out_of_memory(error: RuntimeError) -> bool:
    """PyTorch's own class for it, and the words of CUDA, cuBLAS and the CPU's allocator."""
    words = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_memory(device: torch.device) -> int:
    """Of this run on a GPU; on a CPU of the process so far, which is all that the system counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _free_memory(device: torch.device) -> None:
    """A GPU's, now: the trainer and its optimizer refer to each other, so only the collector frees them."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
