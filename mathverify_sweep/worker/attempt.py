"""One attempt of a run while it is in the engine: what it says goes to the outbox and to W&B, verdicts go back."""

from __future__ import annotations

import shutil
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from mathverify_sweep import paths
from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import ENDINGS, RunState
from mathverify_sweep.store.runs import Claim
from mathverify_sweep.tracking import TrackedRun
from mathverify_sweep.worker import messages
from mathverify_sweep.worker.ancestry import Ancestry
from mathverify_sweep.worker.outbox import Finished, Held, Logged, Reported
from mathverify_sweep.worker.retry import next_attempt


@dataclass
class Attempt:
    """A claimed run on its way through the engine. `asked`: the rows seen and the time of the report that waits.

    `is_lost`: it is no longer this worker's. `brought`: done when what it goes on from is on this machine.
    """

    claim: Claim
    spec: RunSpec
    ancestry: Ancestry
    folder: Path
    tracked: TrackedRun
    asked: tuple[int, float] | None = None
    is_lost: bool = False
    brought: Future[None] = field(default_factory=Future)
    held: Held = field(init=False)

    def __post_init__(self) -> None:
        self.held = Held.of(self.claim)

    @property
    def title(self) -> str:
        """What it is, for people."""
        stage = f" stage {self.spec.stage}" if self.spec.stage else ""
        again = f" attempt {self.claim.attempt}" if self.claim.attempt > 1 else ""
        return f"run {self.claim.run_id} trial {self.spec.trial_number}{stage}{again}"

    @property
    def settings(self) -> str:
        """What it is trained with, where that is not a default."""
        changed = self.spec.params.model_dump(exclude_defaults=True)
        shown = ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in changed.items())
        return f"{self.spec.rows_to_meet} rows, {shown or 'defaults'}"

    def order(self, checkpoint_seconds: float) -> messages.Start:
        """What the engine is told."""
        start = self.ancestry.start_adapter
        return messages.Start(
            run_id=self.claim.run_id,
            spec=self.spec,
            folder=str(self.folder),
            start_adapter=str(start) if start else None,
            resume_from=tuple(map(str, (*self.ancestry.folders, *self.ancestry.trunk))),
            checkpoint_seconds=checkpoint_seconds,
        )

    def logged(self, message: messages.Logged) -> Logged:
        """A point of the curve: drawn, and to be said."""
        self.tracked.log(message.rows_seen, {"loss": message.loss, "learning_rate": message.learning_rate})
        return Logged(
            held=self.held, rows_seen=message.rows_seen, loss=message.loss, learning_rate=message.learning_rate
        )

    def reported(self, message: messages.Reported) -> Reported:
        """A value at a rung: drawn, and to be said; the pruner compares trials with trials, so no stage asks it."""
        self.tracked.log(message.rows_seen, {self.spec.objective: message.value})
        asks = self.spec.stage is None
        return Reported(held=self.held, rows_seen=message.rows_seen, value=message.value, asks=asks)

    def finished(self, result: RunResult, output: Path) -> Finished:
        """How it ended: drawn, and to be said, with the next attempt if there is one."""
        failures = self.claim.failures + ENDINGS[result.end_reason].is_failure
        adapter = paths.adapter_folder(self.folder)
        result = result.model_copy(
            update={
                "adapter": str(adapter.relative_to(output)) if adapter.is_dir() else None,
                "started_from": self.ancestry.started_from,
            }
        )
        retry = next_attempt(self.spec, result, failures)
        self.tracked.finish(result)
        return Finished(
            held=self.held,
            result=result,
            at=datetime.now(UTC),
            retry=retry,
            tells=self.spec.stage is None and retry is None,
            link=self.tracked.link,
        )

    def is_gone_on_from(self, result: RunResult) -> bool:
        """Whether another run may go on from its checkpoints, when it has ended so."""
        return ENDINGS[result.end_reason].state is RunState.FAIL or self.spec.leaves_state

    def drop_earlier_pictures(self) -> None:
        """The offline W&B runs of earlier attempts: this one's has their curves, and one is to be synced."""
        for folder in self.ancestry.folders:
            for picture in paths.offline_wandb_runs(folder):
                shutil.rmtree(picture, ignore_errors=True)
