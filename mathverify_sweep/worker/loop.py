"""THE LOOP: claim a run, have it trained, keep its lease, record how it ended. Imports no torch: the engine does.

Our row first, Optuna second, W&B never waited for. What a crash leaves between the first two, `reconcile` mends.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from mathverify_sweep import paths
from mathverify_sweep.errors import DataDrift, ModelError
from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import ENDINGS, EndReason, RunState
from mathverify_sweep.store import leases, runs, studies
from mathverify_sweep.store.runs import Budget, Claim, WorkerIdentity
from mathverify_sweep.tracking import TrackedRun, Tracker, TrackingSettings
from mathverify_sweep.worker.attempt import Attempt, LeaseLost, best_adapter, relative_adapter
from mathverify_sweep.worker.devices import Device
from mathverify_sweep.worker.engine import Engine, EngineDied
from mathverify_sweep.worker.messages import Prepare, Ready, Refused
from mathverify_sweep.worker.retry import next_attempt

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.study.study import StudyHandle

log = logging.getLogger(__name__)

SAME_CRASHES = 3
"""Trials that end with the same error before the study is stopped: it is the code then, not the parameters."""


@dataclass(frozen=True)
class WorkerOptions:
    """How one worker works. `count`: runs it takes at most. `until_idle`: it ends when the study has nothing left."""

    output: Path
    device: Device
    count: int | None = None
    until_idle: bool = False
    lease_seconds: float = 60.0
    hang_seconds: float = 1800.0
    poll_seconds: float = 1.0


class Worker:
    """One worker process on one device, working on one study."""

    def __init__(self, database: Database, study: StudyHandle, options: WorkerOptions) -> None:
        self._database = database
        self._study = study
        self._options = options
        self._name = study.config.study
        self._identity = WorkerIdentity(uuid.uuid4().hex[:8], socket.gethostname(), os.getpid(), options.device.label)
        self._watch = leases.Watch(options.lease_seconds, time.monotonic)
        tracking = study.config.tracking
        self._tracker = Tracker(TrackingSettings(tracking.wandb, tracking.project, tracking.entity))
        self._engine: Engine | None = None
        self._signal: int | None = None
        self._look_at = 0.0

    def work(self) -> bool:
        """Take runs until there is nothing left to take; whether the asked work is done, not cut short.

        Raises DataDrift when this machine's data is not the study's.
        """
        with self._signals():
            try:
                return self._loop()
            finally:
                self._end_engine()
                self._tracker.close()

    def _loop(self) -> bool:
        log.info("worker %s on %s: study %s", self._identity.worker_id, self._identity.gpu, self._name)
        self._reconcile()
        self._ready_engine()
        taken = 0
        while self._signal is None and taken != self._options.count:
            self._look_after_others()
            claim = self._claim()
            if claim is not None:
                taken += 1
                self._attend(claim)
            elif self._is_over():
                return studies.get(self._database, self._name).stopped is None
            else:
                time.sleep(self._options.poll_seconds)
        return self._signal is None

    def _claim(self) -> Claim | None:
        """A waiting run, or a new trial if the budget allows one."""
        waiting = runs.claim_waiting(self._database, self._name, self._identity, _now())
        return waiting or self._new_trial()

    def _new_trial(self) -> Claim | None:
        config = self._study.config
        hours = config.budget.gpu_hours
        budget = Budget(config.trials, hours * 3600 if hours else None, config.budget.deadline)
        place = runs.reserve(self._database, self._name, self._identity, budget, _now())
        if place is None:
            return None
        asked = self._study.ask()
        if asked is None:  # a grid has come to its end
            runs.release(self._database, place)
            return None
        spec = config.trial_spec(asked.trial_number, asked.params, self._study.data_fingerprint)
        if not runs.attach(self._database, place, asked.trial_number, spec):
            return None  # it took so long that somebody expired the reservation; reconcile ends the trial
        return Claim(place.run_id, place.lease_token, place.attempt, asked.trial_number, spec, None)

    def _attend(self, claim: Claim) -> None:
        assert claim.spec is not None
        spec = claim.spec
        log.info("run %s %s attempt %d: %s", claim.run_id, _title(spec), claim.attempt, _settings(spec))
        folder = paths.run_folder(self._options.output, self._name, claim.run_id, claim.lease_token)
        tracked = self._tracker.start(claim.run_id, spec, folder, claim.attempt)
        try:
            result = self._trained(claim, spec, folder, tracked)
        except LeaseLost as lost:
            log.warning("%s", lost)
            self._end_engine()
            tracked.finish(RunResult(end_reason=EndReason.LEASE_EXPIRED))
            return
        self._record(claim, spec, result, tracked)

    def _trained(self, claim: Claim, spec: RunSpec, folder: Path, tracked: TrackedRun) -> RunResult:
        options = self._options
        attempt = Attempt(
            self._database,
            self._study,
            claim,
            spec,
            folder,
            tracked,
            options.lease_seconds,
            options.hang_seconds,
            self._interrupted,
        )
        try:
            start = best_adapter(self._database, spec, options.output)
            result = attempt.train(self._ready_engine(), start[1] if start else None)
        except (EngineDied, ModelError) as error:
            result = RunResult(end_reason=EndReason.CRASHED, message=str(error))
            start = None
        if result.end_reason in (EndReason.HUNG, EndReason.PREEMPTED, EndReason.CRASHED):
            self._end_engine()
        adapter = relative_adapter(folder, options.output)
        return result.model_copy(update={"adapter": adapter, "started_from": start[0] if start else None})

    def _record(self, claim: Claim, spec: RunSpec, result: RunResult, tracked: TrackedRun) -> None:
        """Our row first, Optuna second."""
        failures = claim.failures + ENDINGS[result.end_reason].is_failure
        retry = next_attempt(spec, result, failures)
        tracked.finish(result)
        if not runs.finish(self._database, claim, result, _now(), retry):
            runs.keep_late(self._database, claim, result)
            log.warning("run %s ended %s too late: the lease was lost", claim.run_id, result.end_reason)
            return
        log.info("run %s %s ended %s%s", claim.run_id, _title(spec), result.end_reason, _score(result))
        if spec.stage is None and retry is None:
            self._tell(claim, spec, result, tracked.link)
        if result.end_reason is EndReason.CRASHED:
            log.error("run %s crashed:\n%s", claim.run_id, result.message)
            self._stop_on_repeated_crash(result)

    def _tell(self, claim: Claim, spec: RunSpec, result: RunResult, link: str | None) -> None:
        run = runs.get(self._database, claim.run_id)
        points = runs.points(self._database, claim.run_id)
        self._study.show(run, points, link, paths.artifacts_folder(self._options.output))
        self._study.tell(spec.trial_number, result, claim.run_id)

    def _stop_on_repeated_crash(self, result: RunResult) -> None:
        last_line = result.message.strip().splitlines()[-1]
        same = {
            run.trial_number
            for run in runs.runs(self._database, self._name)
            if run.end_reason is EndReason.CRASHED and run.result and run.result.message.strip().endswith(last_line)
        }
        if len(same) >= SAME_CRASHES:
            reason = f"{len(same)} trials crashed alike: {last_line}"
            studies.stop(self._database, self._name, reason)
            log.error("study %s stopped: %s", self._name, reason)

    def _look_after_others(self) -> None:
        """Expire the leases of the dead, a few times per lease period."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + self._options.lease_seconds / 3
        for observed in self._watch.look(self._database, self._name):
            if leases.expire(self._database, observed, _now()):
                log.warning("run %s expired: its worker was not heard of for two lease periods", observed.run_id)
        self._reconcile()

    def _reconcile(self) -> None:
        for number in self._study.reconcile(time.monotonic(), 2 * self._options.lease_seconds):
            log.warning("trial %d was RUNNING in Optuna though its last run has ended: told so", number)

    def _is_over(self) -> bool:
        """Whether this worker has nothing left to wait for."""
        if studies.get(self._database, self._name).stopped is not None:
            return True
        if not self._options.until_idle:
            return False
        unfinished = (RunState.WAITING, RunState.RUNNING)
        if any(run.state in unfinished for run in runs.runs(self._database, self._name)):
            return False
        # A trial whose worker died between our row and Optuna's: `reconcile` is about to tell it.
        return not any(trial.state is RunState.RUNNING for trial in self._study.trials())

    def _ready_engine(self) -> Engine:
        if self._engine is not None:
            return self._engine
        device = self._options.device
        log_file = paths.engine_log(self._options.output, self._name, self._identity.worker_id)
        self._engine = Engine(device.torch_name, device.environment, log_file)
        config = self._study.config
        self._engine.send(Prepare(data=config.data_spec, data_fingerprint=self._study.data_fingerprint))
        while self._signal is None:
            message = self._engine.receive(1.0)
            if isinstance(message, Refused):
                raise DataDrift(message.message)
            if isinstance(message, Ready):
                break
        return self._engine

    def _end_engine(self) -> None:
        if self._engine is not None:
            self._engine.kill()
            self._engine = None

    def _interrupted(self) -> EndReason | None:
        return None if self._signal is None else EndReason.PREEMPTED

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C hand the run back for another attempt."""

        def note(number: int, _frame: FrameType | None) -> None:
            self._signal = number

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _now() -> datetime:
    return datetime.now(UTC)


def _title(spec: RunSpec) -> str:
    return f"trial {spec.trial_number}" + (f" stage {spec.stage}" if spec.stage else "")


def _settings(spec: RunSpec) -> str:
    changed = spec.params.model_dump(exclude_defaults=True)
    shown = ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in changed.items())
    return f"{spec.train_rows} rows, {shown or 'defaults'}"


def _score(result: RunResult) -> str:
    return "" if result.value is None else f" with {result.value:.4f} after {result.rows_seen} rows"
