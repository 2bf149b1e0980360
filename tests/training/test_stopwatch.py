"""What is measured of an engine is true of it: of a made-up one to the percent, and real ones can be measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mathverify_sweep.errors import ModelError
from mathverify_sweep.specs import DataSpec, Metrics, RunResult, RunSpec, Split
from mathverify_sweep.states import EndReason
from mathverify_sweep.training import stopwatch
from mathverify_sweep.training.engine import PackedEngine
from mathverify_sweep.training.order import Engine, Order
from mathverify_sweep.training.reference import ReferenceEngine
from mathverify_sweep.training.reporter import Reporter
from tests.example_study import metrics
from tests.training.tiny_fixture import Place

VALIDATION_ROWS = 500


@dataclass
class MadeUp:
    """An engine and its clock: a pass has one effective batch of each run, and takes what it says it takes."""

    slots: int
    per_pass: float = 0.1
    per_row: float = 0.01
    per_judged_row: float = 0.002
    starting: float = 0.3
    ending: float = 0.2
    loading: float = 7.0
    ends: EndReason | None = None
    now: float = 0.0
    _runs: dict[str, tuple[Order, Reporter, int, float]] = field(default_factory=dict)

    def clock(self) -> float:
        return self.now

    def prepare(self, data: DataSpec, fingerprint: str) -> None:
        raise NotImplementedError

    def free_slots(self) -> int:
        return self.slots - len(self._runs)

    def start(self, run_id: str, order: Order, reporter: Reporter) -> None:
        self.now += self.starting + self.loading
        self.loading = 0.0
        self._runs[run_id] = (order, reporter, 0, 0.0)

    def step(self) -> list[tuple[str, RunResult]]:
        self.now += self.per_pass
        self.now += self.per_row * sum(run[0].spec.params.effective_batch_size for run in self._runs.values())
        ended = []
        for run_id in list(self._runs):
            result = self._stepped(run_id)
            if result is not None:
                del self._runs[run_id]
                ended.append((run_id, result))
        return ended

    def told(self) -> str:
        return "made up"

    def score(self, spec: RunSpec, adapter: Path | None, split: Split) -> tuple[float, ...]:
        raise NotImplementedError

    def _stepped(self, run_id: str) -> RunResult | None:
        order, reporter, seen, judging = self._runs[run_id]
        seen += order.spec.params.effective_batch_size
        reason = self.ends or reporter.interrupted()
        if reason:
            return RunResult(end_reason=reason, message="made up")
        for rung in order.spec.rungs:
            if rung == seen:
                judging += self._judged(100)
                reporter.report(rung, 0.5)
        self._runs[run_id] = (order, reporter, seen, judging)
        if seen < order.spec.rows_to_meet:
            return None
        judging += self._judged(VALIDATION_ROWS)
        self.now += self.ending
        judged: Metrics = metrics(0.8, VALIDATION_ROWS)
        return RunResult(end_reason=EndReason.FINISHED, metrics=judged, eval_seconds=judging, peak_memory_bytes=123)

    def _judged(self, rows: int) -> float:
        self.now += rows * self.per_judged_row
        return rows * self.per_judged_row


def measured(engine: MadeUp, specs: list[RunSpec], folder: Path) -> stopwatch.Measured:
    return stopwatch.measure(engine, specs, folder, lambda _: None, engine.clock)


def batches(spec: RunSpec, *sizes: int) -> list[RunSpec]:
    return [
        spec.model_copy(update={"params": spec.params.model_copy(update={"effective_batch_size": size})})
        for size in sizes
    ]


def test_runs_side_by_side_and_one_alone_are_told_apart(spec: RunSpec, tmp_path: Path) -> None:
    engine = MadeUp(slots=4)
    found = measured(engine, batches(spec, 8, 8, 8, 8), tmp_path).rates
    assert found.slots == 4
    assert found.together == pytest.approx(32 / (0.1 + 0.32), rel=0.01)
    assert found.alone == pytest.approx(8 / (0.1 + 0.08), rel=0.01)
    assert found.trained(2) == pytest.approx(16 / (0.1 + 0.16), rel=0.01), "two were not measured"


def test_judging_starting_ending_and_loading_are_told_apart(spec: RunSpec, tmp_path: Path) -> None:
    found = measured(MadeUp(slots=1), batches(spec, 8), tmp_path)
    assert found.rates.judged == pytest.approx(500)
    assert found.rates.run_seconds == pytest.approx(0.5)
    assert found.rates.first_seconds == pytest.approx(7.0, abs=0.25), "a start, but no end, is in it"
    assert found.rates.validation_rows == VALIDATION_ROWS
    assert found.peak_memory_bytes == 123


def test_where_one_run_is_trained_at_a_time_several_settings_are_measured(spec: RunSpec, tmp_path: Path) -> None:
    found = measured(MadeUp(slots=1), batches(spec, 8, 16, 32), tmp_path).rates
    seconds_a_row = [0.1 / size + 0.01 for size in (8, 16, 32)]
    assert found.alone == found.together == pytest.approx(3 / sum(seconds_a_row), rel=0.02)


def test_a_step_that_takes_a_minute_is_waited_for(spec: RunSpec, tmp_path: Path) -> None:
    found = measured(MadeUp(slots=1, per_pass=60.0), batches(spec, 32), tmp_path).rates
    assert found.alone == pytest.approx(32 / 60.32, rel=0.01)


def test_a_device_that_takes_no_two_steps_in_time_is_not_predicted(spec: RunSpec, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="too slow"):
        measured(MadeUp(slots=1, per_pass=400.0), batches(spec, 32), tmp_path)


def test_a_run_that_fails_is_no_measurement(spec: RunSpec, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="out_of_memory: made up"):
        measured(MadeUp(slots=1, ends=EndReason.OUT_OF_MEMORY), batches(spec, 8), tmp_path)


@pytest.mark.parametrize("kind", [PackedEngine, ReferenceEngine])
def test_real_engines_are_measured_with_runs_of_their_own(
    kind: type[PackedEngine | ReferenceEngine], place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WARM_SECONDS", "SECONDS"):
        monkeypatch.setattr(stopwatch, name, 0.2)
    heard: list[str] = []
    engine: Engine = kind("cpu")
    # At this rate the model would be ruined in a few steps.
    specs = [place.spec(params={"learning_rate": 10.0, "lora_r": rank}) for rank in (4, 8)]
    found = stopwatch.measure(engine, specs, tmp_path, heard.append)
    assert found.rates.slots == 1
    assert found.rates.alone == found.rates.together > 1
    assert found.rates.validation_rows > 40
    assert found.how.startswith(("packed engine: 2048 tokens", "reference engine"))
    assert heard[0].startswith("training")
    assert engine.free_slots() == 1
