"""One run at a time, start to end, on TRL: the oracle that a faster engine is held against.

The base model, the data and the encoded rows stay loaded from run to run. However a run ends, its end is a result.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mathverify_sweep.data.encode import EncodedRow
from mathverify_sweep.paths import adapter_folder
from mathverify_sweep.specs import DataSpec, RunResult, RunSpec, Split
from mathverify_sweep.states import EndReason
from mathverify_sweep.training import adapters, base, device
from mathverify_sweep.training.checkpoints import Checkpoints, start_over
from mathverify_sweep.training.course import Course
from mathverify_sweep.training.evaluate import log_odds
from mathverify_sweep.training.material import Library, Material
from mathverify_sweep.training.order import Order
from mathverify_sweep.training.reporter import Reporter
from mathverify_sweep.training.trainer import Epoch, train


class ReferenceEngine:
    """An `order.Engine` with one slot, on one device: "cpu", or "cuda:0" with a single GPU visible."""

    def __init__(self, device_name: str) -> None:
        self.device = device.find(device_name)
        self._library = Library(self.device)
        self._started: tuple[str, Order, Reporter] | None = None

    def prepare(self, data: DataSpec, fingerprint: str) -> None:
        """Read the data of the runs to come. Raises DataDrift when it is not the study's."""
        self._library.data(data, fingerprint)

    def free_slots(self) -> int:
        """One, or none."""
        return int(self._started is None)

    def start(self, run_id: str, order: Order, reporter: Reporter) -> None:
        """Take the slot; `step` trains."""
        assert self._started is None, "the reference engine trains one run at a time"
        self._started = run_id, order, reporter

    def step(self) -> list[tuple[str, RunResult]]:
        """Train the run in the slot to its end."""
        if self._started is None:
            return []
        run_id, order, reporter = self._started
        self._started = None
        try:
            result = self._trained(order, self._library.material(order.spec), reporter)
        except Exception:  # noqa: BLE001 - whatever is wrong with a run ends that run
            result = RunResult(end_reason=EndReason.CRASHED, message=traceback.format_exc(limit=-12))
        return [(run_id, result)]

    def told(self) -> str:
        """One line."""
        return "reference engine: one run at a time"

    def score(self, spec: RunSpec, adapter: Path | None, split: Split) -> tuple[float, ...]:
        """The log-odds of a split's rows in its order, by an adapter of the spec's shape or by the base model alone."""
        loaded = self._library.base(spec.base_model)
        count = len(self._library.data(spec.data, spec.data_fingerprint).split(split))
        rows = self._library.rows(spec, split, count).rows
        tokens = base.evaluation_tokens(loaded, base.micro_batch_tokens(loaded, spec))
        if adapter is None:
            return tuple(log_odds(loaded, loaded.model, rows, count, tokens))
        with adapters.attached(loaded, spec, adapter) as model:
            return tuple(log_odds(loaded, model, rows, count, tokens))

    def _trained(self, order: Order, material: Material, reporter: Reporter) -> RunResult:
        """Trains, evaluates, and leaves the adapter in the order's folder."""
        course = Course(order, material, reporter, Checkpoints(order, "reference"))
        device.reset_peak_memory(self.device)
        try:
            ending = self._to_its_end(order, material, course)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a run ends that run
            ending = course.ended_by(error)
            if ending.end_reason is EndReason.CRASHED and course.is_stuck:
                return self._trained(start_over(order, error), material, reporter)
        peak = device.peak_memory(self.device)
        device.free_memory(self.device)
        return ending.model_copy(update={"peak_memory_bytes": peak})

    def _to_its_end(self, order: Order, material: Material, course: Course) -> RunResult:
        spec, target = order.spec, adapter_folder(order.folder)
        resumed = course.resume()
        start = adapter_folder(resumed.folder) if resumed else order.start_adapter
        epoch = Epoch(
            material.train.rows, material.micro_batch_tokens, order.folder, resumed.folder if resumed else None
        )
        with adapters.attached(material.base, spec, start) as model:

            def evaluate(count: int) -> Sequence[float]:
                return material.log_odds(model, material.first(count), count)

            def read(rows: Sequence[EncodedRow]) -> Sequence[float]:
                return material.log_odds(model, rows, len(rows))

            course.catch_up(evaluate)
            train(material.base, model, spec, epoch, lambda step, fill: course.after(step, evaluate, fill))
            judged, odds = course.finish(evaluate, read)
            adapters.keep(partial(adapters.save, model, target), target)
        return course.finished(judged, odds, target.name)
