"""One attempt of a run, from claim to result: what the engine says goes to SQL, Optuna and W&B; verdicts go back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mathverify_sweep import metrics, paths
from mathverify_sweep.errors import ModelError
from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import EndReason, RunState, Verdict
from mathverify_sweep.store import runs
from mathverify_sweep.store.runs import Claim, Point
from mathverify_sweep.worker.messages import Answer, Ended, FromEngine, Logged, Reported, Start

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.store.runs import RunRecord
    from mathverify_sweep.study.study import StudyHandle
    from mathverify_sweep.tracking import TrackedRun
    from mathverify_sweep.worker.engine import Engine

log = logging.getLogger(__name__)

LISTEN_SECONDS = 0.5
"""How long the worker waits for its engine before it looks at the lease and at signals again."""


class LeaseLost(Exception):
    """The run is no longer this worker's: it is to be ended here and nothing written."""


@dataclass(frozen=True)
class Attempt:
    """A claimed run on its way through the engine.

    `interrupted` is asked between messages and says why the run is to end now, if it is.
    """

    database: Database
    study: StudyHandle
    claim: Claim
    spec: RunSpec
    folder: Path
    tracked: TrackedRun
    lease_seconds: float
    hang_seconds: float
    interrupted: Callable[[], EndReason | None]

    def train(self, engine: Engine, start_adapter: Path | None) -> RunResult:
        """Have the engine train the run; its result, or the reason why it was cut short.

        Raises LeaseLost, and EngineDied; in both cases, and after a cut, the engine is to be replaced.
        """
        adapter = str(start_adapter) if start_adapter else None
        engine.send(Start(run_id=self.claim.run_id, spec=self.spec, folder=str(self.folder), start_adapter=adapter))
        renew_at = 0.0
        heard_at = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= renew_at:
                self._renew()
                renew_at = now + self.lease_seconds / 3
            if reason := self.interrupted():
                return RunResult(end_reason=reason)
            message = engine.receive(LISTEN_SECONDS)
            if message is not None:
                heard_at = now
                if isinstance(message, Ended):
                    return message.result
                self._hear(engine, message)
            elif now - heard_at > self.hang_seconds:
                return RunResult(end_reason=EndReason.HUNG, message=f"no progress for {self.hang_seconds:g} s")

    def _renew(self) -> None:
        if not runs.renew(self.database, self.claim, datetime.now(UTC)):
            raise LeaseLost(f"run {self.claim.run_id}: the lease is lost or was taken back; ending it here")

    def _hear(self, engine: Engine, message: FromEngine) -> None:
        if isinstance(message, Logged):
            self._keep(Point(message.rows_seen, loss=message.loss, learning_rate=message.learning_rate))
            self.tracked.log(message.rows_seen, {"loss": message.loss, "learning_rate": message.learning_rate})
        elif isinstance(message, Reported):
            self._keep(Point(message.rows_seen, value=message.value))
            self.tracked.log(message.rows_seen, {self.spec.objective: message.value})
            engine.send(Answer(verdict=self._verdict(message)))

    def _keep(self, point: Point) -> None:
        if not runs.progress(self.database, self.claim, [point]):
            raise LeaseLost(f"run {self.claim.run_id}: the lease is lost or was taken back; ending it here")

    def _verdict(self, message: Reported) -> Verdict:
        if self.spec.stage is not None:
            return Verdict.CONTINUE  # the pruner compares trials with trials
        verdict = self.study.report(self.spec.trial_number, message.rows_seen, message.value)
        log.info(
            "run %s trial %d at %d rows: %s %.4f%s",
            self.claim.run_id,
            self.spec.trial_number,
            message.rows_seen,
            self.spec.objective,
            message.value,
            ", pruned" if verdict is Verdict.PRUNE else "",
        )
        return verdict


def best_adapter(database: Database, spec: RunSpec, output: Path) -> tuple[str, Path] | None:
    """The run id and adapter folder of the best finished run among `spec.start_from`; None when there is none yet.

    Raises ModelError when the folder is not on this machine.
    """
    finished = [run for run in (runs.get(database, run_id) for run_id in spec.start_from) if _is_start(run)]
    if not finished:
        return None
    sign = 1 if metrics.higher_is_better(spec.objective) else -1
    best = max(finished, key=lambda run: sign * _value(run))
    assert best.result is not None
    assert best.result.adapter is not None
    folder = output / best.result.adapter
    if not folder.is_dir():
        raise ModelError(
            f"stage {spec.stage} starts from the adapter of run {best.run_id}, which is not at {folder}. "
            "Give all workers of a study the same --output on a shared file system."
        )
    return best.run_id, folder


def relative_adapter(folder: Path, output: Path) -> str | None:
    """The adapter that a run left in its folder, relative to the output folder; None when it left none."""
    adapter = paths.adapter_folder(folder)
    return str(adapter.relative_to(output)) if adapter.is_dir() else None


def _is_start(run: RunRecord) -> bool:
    return run.state is RunState.COMPLETE and run.result is not None and run.result.adapter is not None


def _value(run: RunRecord) -> float:
    assert run.result is not None
    assert run.result.value is not None
    return run.result.value
