"""Claims about whose fault a failure is: a shared crash stops the study, a bad GPU is quarantined alone."""

from __future__ import annotations

import traceback
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import EndReason
from mathverify_sweep.store import runs, studies
from mathverify_sweep.store.runs import Budget, WorkerIdentity
from mathverify_sweep.store.studies import StudyRecord
from mathverify_sweep.store.suspicion import fingerprint, is_quarantined, repeated_crash

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SHAPES = """Traceback (most recent call last):
  File "/home/bo/venv/lib/python3.11/site-packages/mathverify_sweep/training/course.py", line 139, in train
    loss = self._forward(batch)
           ^^^^^^^^^^^^^^^^^^^^
  File "/home/bo/venv/lib/python3.11/site-packages/torch/nn/modules/linear.py", line 125, in forward
    return F.linear(input, self.weight, self.bias)
RuntimeError: mat1 and mat2 shapes cannot be multiplied (32x64 and 128x64)
"""
SHAPES_ELSEWHERE = """Traceback (most recent call last):
  File "/opt/conda/lib/python3.12/site-packages/mathverify_sweep/training/course.py", line 144, in train
    loss = self._forward(batch)
  File "/opt/conda/lib/python3.12/site-packages/torch/nn/modules/linear.py", line 127, in forward
    return F.linear(input, self.weight, self.bias)
RuntimeError: mat1 and mat2 shapes cannot be multiplied (8x64 and 256x64)
"""
CUDA = SHAPES.replace(
    "RuntimeError: mat1 and mat2 shapes cannot be multiplied (32x64 and 128x64)",
    "torch.AcceleratorError: CUDA error: device-side assert triggered\n"
    "CUDA kernel errors might be asynchronously reported at some other API call.\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.",
)


class Hall:
    """A study, and GPUs on which trials end."""

    def __init__(self, engine: Engine, spec: RunSpec) -> None:
        self._engine, self._spec, self._now = engine, spec, NOW
        studies.create(engine, StudyRecord("s", "{}", "f", None, None, NOW))
        self._trials = 0
        self._last = ""

    def ends(self, gpu: str, reason: EndReason, message: str = SHAPES, attempts: int = 1) -> None:
        """A new trial that ends so, on `gpu` of a host of the same name."""
        worker = WorkerIdentity("w", f"host-{gpu}", 1, gpu)
        place = runs.reserve(self._engine, "s", worker, Budget(None, None, None), self._now)
        assert place is not None
        spec = self._spec.model_copy(update={"trial_number": self._trials})
        assert runs.attach(self._engine, place, self._trials, spec)
        self._trials += 1
        claim: runs.Claim | None = place
        self._last = message
        for attempt in range(attempts):
            assert claim is not None
            self._now += timedelta(seconds=1)
            retry = spec if attempt + 1 < attempts else None
            assert runs.finish(
                self._engine, claim, RunResult(end_reason=reason, message=message), self._now, retry=retry
            )
            claim = runs.claim_waiting(self._engine, "s", worker, self._now)

    def quarantine(self, gpu: str) -> str | None:
        return is_quarantined(self._engine, "s", f"host-{gpu}", gpu)

    def crash(self) -> str | None:
        """What is to be said of the crash that came last."""
        return repeated_crash(self._engine, "s", self._last)


@pytest.fixture
def hall(engine: Engine, spec: RunSpec) -> Hall:
    return Hall(engine, spec)


def crash(kind: type[Exception], text: str) -> str:
    try:
        raise kind(text)
    except kind:
        return traceback.format_exc()


def test_a_fingerprint_is_the_same_on_all_machines_and_for_all_figures() -> None:
    assert fingerprint(SHAPES) == fingerprint(SHAPES_ELSEWHERE)
    assert fingerprint(SHAPES) == fingerprint(SHAPES.replace("/", "\\"))
    assert fingerprint("no adapter in /a/b/c after 0x7f12 s (3 of 4)") == fingerprint(
        "no adapter in /d/e after 0x9a s (1 of 2)"
    )


def test_a_fingerprint_tells_kinds_and_places_apart() -> None:
    kinds = {
        fingerprint(text)
        for text in (
            SHAPES,
            CUDA,
            SHAPES.replace("in forward", "in backward"),
            SHAPES.replace("linear.py", "conv.py"),
            SHAPES.replace("RuntimeError", "ValueError"),
            "the engine ended with signal 11",
            "the data is gone",
            "",
        )
    }
    assert len(kinds) == 8


def test_of_a_chain_of_errors_the_last_one_counts() -> None:
    during = "\nDuring handling of the above exception, another exception occurred:\n\n"
    assert fingerprint(CUDA + during + SHAPES) == fingerprint(SHAPES)


def test_real_tracebacks_of_one_place_are_alike_whatever_they_say() -> None:
    assert fingerprint(crash(ValueError, "a\nb: c")) == fingerprint(crash(ValueError, "at 0x12 of 'x'"))
    assert fingerprint(crash(ValueError, "x")) != fingerprint(crash(KeyError, "x"))


def test_the_same_crash_of_three_trials_on_two_gpus_is_the_codes_fault(hall: Hall) -> None:
    hall.ends("a", EndReason.FINISHED)
    hall.ends("a", EndReason.CRASHED)
    hall.ends("a", EndReason.CRASHED, SHAPES_ELSEWHERE)
    assert hall.crash() is None
    hall.ends("b", EndReason.CRASHED)
    assert (hall.crash() or "").startswith("3 trials crashed alike: RuntimeError: mat1 and mat2")


def test_the_same_crash_on_one_of_two_gpus_is_that_gpus_fault(hall: Hall) -> None:
    hall.ends("b", EndReason.FINISHED)
    for _ in range(3):
        hall.ends("a", EndReason.CRASHED)
    assert hall.crash() is None
    assert "RuntimeError: mat1" in (hall.quarantine("a") or "")
    assert hall.quarantine("b") is None


def test_on_the_only_gpu_three_crashes_alike_stop_the_study(hall: Hall) -> None:
    for _ in range(3):
        hall.ends("a", EndReason.CRASHED)
    assert hall.crash() is not None


def test_three_different_crashes_are_nobodys_pattern_but_quarantine_the_gpu(hall: Hall) -> None:
    for message in (SHAPES, CUDA, "something else"):
        hall.ends("a", EndReason.CRASHED, message)
    assert hall.crash() is None
    assert hall.quarantine("a") is not None


def test_attempts_of_one_trial_count_once(hall: Hall) -> None:
    hall.ends("a", EndReason.HUNG, "no progress", attempts=3)
    assert hall.quarantine("a") is None
    hall.ends("a", EndReason.HUNG, "no progress", attempts=3)
    hall.ends("a", EndReason.CRASHED, "signal 11")
    assert (hall.quarantine("a") or "").startswith("3 trials have failed on it")


@pytest.mark.parametrize("good", [EndReason.FINISHED, EndReason.PRUNED, EndReason.DIVERGED])
def test_a_trial_that_gets_anywhere_clears_the_gpu(hall: Hall, good: EndReason) -> None:
    for _ in range(2):
        hall.ends("a", EndReason.HUNG)
    hall.ends("a", good)
    hall.ends("a", EndReason.HUNG)
    assert hall.quarantine("a") is None


@pytest.mark.parametrize("neutral", [EndReason.OUT_OF_MEMORY, EndReason.PREEMPTED, EndReason.KILLED])
def test_endings_that_say_nothing_of_the_gpu_count_neither_way(hall: Hall, neutral: EndReason) -> None:
    for _ in range(4):
        hall.ends("a", neutral)
    assert hall.quarantine("a") is None
    for _ in range(3):
        hall.ends("a", EndReason.HUNG)
        hall.ends("a", neutral)
    assert hall.quarantine("a") is not None
