"""How far one run is: what it logs and reports, when it looks at itself, and how it ends. Knows no engine, no trainer.

An engine hands over every optimizer step, and a function that evaluates the run's model as it stands.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mathverify_sweep import metrics
from mathverify_sweep.errors import TrainingEnded
from mathverify_sweep.specs import Metrics, RunResult, RunSpec
from mathverify_sweep.states import EndReason, Verdict
from mathverify_sweep.training import device
from mathverify_sweep.training.divergence import DivergenceWatch
from mathverify_sweep.training.material import Material
from mathverify_sweep.training.reporter import Reporter

LOG_POINTS = 50
"""How many times a run logs at most."""

Evaluate = Callable[[int], Sequence[float]]
"""The log-odds of the first so many validation rows, by the run's model as it stands."""


@dataclass(frozen=True)
class Step:
    """One optimizer step, looked at after it was taken."""

    number: int
    rows_seen: int
    loss: float
    gradient_norm: float
    learning_rate: float


class Course:
    """One run's way from its first step to its result. `clock` counts seconds."""

    def __init__(
        self, spec: RunSpec, material: Material, reporter: Reporter, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._spec, self._material, self._reporter, self._clock = spec, material, reporter, clock
        self._divergence = DivergenceWatch()
        self._rungs = sorted(spec.rungs)
        self._last_step = Step(number=0, rows_seen=0, loss=math.nan, gradient_norm=math.nan, learning_rate=0.0)
        self._log_every = math.ceil(len(material.train.rows) / LOG_POINTS)
        self._losses_to_log: list[float] = []
        self._last_value: float | None = None
        self._began = clock()
        self._eval_seconds = 0.0

    def after(self, step: Step, evaluate: Evaluate) -> None:
        """Looks at an optimizer step. Raises TrainingEnded when it is the last one."""
        logs_before = self._last_step.rows_seen // self._log_every
        self._last_step = step
        self._divergence.check(step.loss, step.gradient_norm, step.rows_seen)
        self._losses_to_log.append(step.loss)
        if step.rows_seen // self._log_every > logs_before or step.rows_seen == len(self._material.train.rows):
            mean = sum(self._losses_to_log) / len(self._losses_to_log)
            self._reporter.log(step.rows_seen, mean, step.learning_rate)
            self._losses_to_log.clear()
        if reason := self._reporter.interrupted():
            raise TrainingEnded(reason, f"interrupted after {step.rows_seen} rows")
        if self._rungs and step.rows_seen >= self._rungs[0]:
            self._report(evaluate)

    def finish(self, evaluate: Evaluate) -> tuple[Metrics, tuple[float, ...]]:
        """The look at all validation rows after the last step."""
        return self._judge(evaluate, len(self._material.labels))

    def finished(self, judged: Metrics, odds: tuple[float, ...], adapter: str) -> RunResult:
        """The result of a run that got to its end and left its adapter in the folder of that name."""
        unread = self._material.validation.left_out
        message = f"{unread} validation rows do not fit max_length even when cut: their log-odds are 0"
        result = self._ended(EndReason.FINISHED, message if unread else "")
        return result.model_copy(update={"metrics": judged, "log_odds": odds, "adapter": adapter})

    def ended_by(self, error: Exception) -> RunResult:
        """The result of a run that something has ended: an ending with a name, memory, or trouble. To be called where
        the error is handled.
        """
        if isinstance(error, TrainingEnded):
            return self._ended(error.reason, str(error))
        if device.is_out_of_memory(error):
            return self._ended(EndReason.OUT_OF_MEMORY, f"{self._material.micro_batch_tokens} tokens at once: {error}")
        return self._ended(EndReason.CRASHED, traceback.format_exc(limit=-12))

    def _ended(self, reason: EndReason, message: str) -> RunResult:
        """The result of a run as far as it got; its value is that of the last look, unless the parameters ruined it."""
        return RunResult(
            end_reason=reason,
            message=message,
            value=self._last_value if reason in (EndReason.FINISHED, EndReason.PRUNED) else None,
            rows_seen=self._last_step.rows_seen,
            optimizer_steps=self._last_step.number,
            micro_batch_tokens=self._material.micro_batch_tokens,
            left_out_rows=self._material.train.left_out,
            train_seconds=self._clock() - self._began - self._eval_seconds,
            eval_seconds=self._eval_seconds,
        )

    def _report(self, evaluate: Evaluate) -> None:
        """One look answers every rung that this step has passed."""
        total = len(self._material.labels)
        self._judge(evaluate, min(self._spec.rung_rows or total, total))
        assert self._last_value is not None
        while self._rungs and self._rungs[0] <= self._last_step.rows_seen:
            rung = self._rungs.pop(0)
            if self._reporter.report(rung, self._last_value) is Verdict.PRUNE:
                what = f"{self._spec.objective} {self._last_value:.4f} at {rung} rows"
                raise TrainingEnded(EndReason.PRUNED, what)

    def _judge(self, evaluate: Evaluate, count: int) -> tuple[Metrics, tuple[float, ...]]:
        """Metrics and log-odds on the first `count` validation rows."""
        began = self._clock()
        odds = evaluate(count)
        if not all(map(math.isfinite, odds)):
            raise TrainingEnded(EndReason.DIVERGED, f"log-odds are not numbers after {self._last_step.rows_seen} rows")
        judged = metrics.judge(odds, self._material.labels[:count], self._material.groups[:count])
        self._last_value = metrics.objective_value(judged, self._spec.objective)
        self._eval_seconds += self._clock() - began
        return judged, tuple(odds)
