"""How far one run is: what it logs and reports, when it looks at itself, what it keeps, and how it ends.

Knows no engine and no trainer: an engine hands over every optimizer step, with a function that evaluates the run's
model as it stands, and one that writes all it needs to go on from here.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mathverify_sweep import metrics
from mathverify_sweep.data.encode import digest
from mathverify_sweep.errors import TrainingEnded
from mathverify_sweep.specs import Frozen, Metrics, RunResult, SliceFigures
from mathverify_sweep.states import EndReason, Verdict
from mathverify_sweep.training import adapters, device, slices
from mathverify_sweep.training.checkpoints import Checkpoint, Checkpoints
from mathverify_sweep.training.divergence import DivergenceWatch
from mathverify_sweep.training.material import Material
from mathverify_sweep.training.order import Order
from mathverify_sweep.training.reporter import Reporter
from mathverify_sweep.training.slices import Read

LOG_POINTS = 50
"""How many times a run logs at most."""

Evaluate = Callable[[int], Sequence[float]]
"""The log-odds of the first so many validation rows, by the run's model as it stands."""

Fill = Callable[[Path], None]
"""Writes all that the engine needs to go on from here into a folder. Its file `course.json` is the course's."""

_FILE = "course.json"


@dataclass(frozen=True)
class Step:
    """One optimizer step, looked at after it was taken."""

    number: int
    rows_seen: int
    loss: float
    gradient_norm: float
    learning_rate: float


class Course:
    """One attempt's way from its first step to its result. `clock` counts seconds."""

    def __init__(
        self,
        order: Order,
        material: Material,
        reporter: Reporter,
        checkpoints: Checkpoints,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._order, self._spec, self._material, self._reporter = order, order.spec, material, reporter
        self._checkpoints, self._clock, self._sleep = checkpoints, clock, sleep
        self._divergence = DivergenceWatch()
        self._rungs = sorted(self._spec.rungs)
        self._last_step = _before(0, 0)
        self._log_every = math.ceil(len(material.train.rows) / LOG_POINTS)
        self._losses_to_log: list[float] = []
        self._last_value: float | None = None
        self._resumed_from_rows = 0
        self._eval_seconds = 0.0
        self._slices: tuple[SliceFigures, ...] = ()
        self._began = self._kept_at = clock()

    def resume(self) -> Checkpoint | None:
        """Where an earlier attempt got to: from here on the course is as if it had run there. None: there is nothing.

        To be called first. The engine loads what it has kept in the folder, then calls `catch_up`.
        """
        found = self._checkpoints.newest()
        if found is None:
            return None
        kept = _Kept.model_validate_json((found.folder / _FILE).read_bytes())
        self._divergence = DivergenceWatch(kept.recent_losses, kept.lowest_loss)
        self._rungs = [rung for rung in self._rungs if rung > kept.answered_rows]
        self._last_step = _before(kept.steps, kept.rows_seen)
        self._losses_to_log = list(kept.losses_to_log)
        self._resumed_from_rows = kept.rows_seen
        return found

    @property
    def is_stuck(self) -> bool:
        """Whether it has resumed, and taken no step since: what it resumed from may be to blame for that."""
        return 0 < self._resumed_from_rows == self._last_step.rows_seen

    def catch_up(self, evaluate: Evaluate) -> None:
        """Answers the rungs that the earlier attempt had passed and not reported. Raises TrainingEnded."""
        if self._rungs and self._last_step.rows_seen >= self._rungs[0]:
            self._report(evaluate)

    def after(self, step: Step, evaluate: Evaluate, fill: Fill) -> None:
        """Looks at an optimizer step. Raises TrainingEnded when it is the last one.

        An interrupt is heard before a rung is evaluated: who preempts does not wait for long.
        """
        is_last = step.rows_seen == len(self._material.train.rows)
        logs_before = self._last_step.rows_seen // self._log_every
        self._last_step = step
        self._divergence.check(step.loss, step.gradient_norm, step.rows_seen)
        self._losses_to_log.append(step.loss)
        if step.rows_seen // self._log_every > logs_before or is_last:
            mean = sum(self._losses_to_log) / len(self._losses_to_log)
            self._reporter.log(step.rows_seen, mean, step.learning_rate)
            self._losses_to_log.clear()
        if reason := self._reporter.interrupted():
            if reason is EndReason.PREEMPTED:
                self._keep(fill)
            raise TrainingEnded(reason, f"after {step.rows_seen} rows")
        self.catch_up(evaluate)
        if is_last and self._spec.leaves_state:
            while not self._keep(fill):  # other runs are waiting for it, so this one waits for room
                self._sleep(adapters.ROOM_SECONDS)
        elif self._clock() - self._kept_at >= self._order.checkpoint_seconds:
            self._keep(fill)

    def finish(self, evaluate: Evaluate, read: Read) -> tuple[Metrics, tuple[float, ...]]:
        """The look at all validation rows after the last step, and at the slices that the spec asks for."""
        judged, odds = self._judge(evaluate, len(self._material.labels))
        began = self._clock()
        self._slices = slices.figures(self._material.slices, odds, self._material.labels, read)
        self._eval_seconds += self._clock() - began
        return judged, odds

    def finished(self, judged: Metrics, odds: tuple[float, ...], adapter: str) -> RunResult:
        """The result of a run that got to its end and left its adapter in the folder of that name."""
        unread = self._material.validation.left_out
        message = f"{unread} validation rows do not fit max_length even when cut: their log-odds are 0"
        result = self._ended(EndReason.FINISHED, message if unread else "")
        met = digest(self._material.train.rows)
        found = {"metrics": judged, "log_odds": odds, "adapter": adapter, "rows_digest": met, "slices": self._slices}
        return result.model_copy(update=found)

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
            resumed_from_rows=self._resumed_from_rows,
            optimizer_steps=self._last_step.number,
            micro_batch_tokens=self._material.micro_batch_tokens,
            left_out_rows=self._material.train.left_out,
            train_seconds=self._clock() - self._began - self._eval_seconds,
            eval_seconds=self._eval_seconds,
        )

    def _keep(self, fill: Fill) -> bool:
        """A checkpoint of the run as it is after its last step; whether the disk has taken it."""
        step = self._last_step
        recent, lowest = self._divergence.seen
        kept = _Kept(
            steps=step.number,
            rows_seen=step.rows_seen,
            answered_rows=self._rungs[0] - 1 if self._rungs else step.rows_seen,
            losses_to_log=tuple(self._losses_to_log),
            recent_losses=recent,
            lowest_loss=lowest,
        )

        def fill_all(folder: Path) -> None:
            (folder / _FILE).write_text(kept.model_dump_json(indent=1), encoding="utf-8")
            fill(folder)

        self._kept_at = self._clock()
        return self._checkpoints.write(step.rows_seen, fill_all)

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
        labels, questions = self._material.labels[:count], self._material.groups[:count]
        judged = metrics.judge(odds, labels, questions, task=self._spec.data.task)
        self._last_value = metrics.objective_value(judged, self._spec.objective)
        self._eval_seconds += self._clock() - began
        return judged, tuple(odds)


class _Kept(Frozen):
    """What of a course a checkpoint keeps. Every rung up to `answered_rows` has been reported."""

    steps: int
    rows_seen: int
    answered_rows: int
    losses_to_log: tuple[float, ...]
    recent_losses: tuple[float, ...]
    lowest_loss: float | None


def _before(number: int, rows_seen: int) -> Step:
    """The step behind a run that has not taken one yet, here."""
    return Step(number, rows_seen, loss=math.nan, gradient_norm=math.nan, learning_rate=0.0)
