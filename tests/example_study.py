"""A study as workers would have left it, made with the real store and study, and made-up results.

`example(engine, folder)` has complete, pruned, diverged and retried trials, one that runs, one that waits, and a
promotion of three stages. Nothing is trained: a trial's accuracy is a smooth function of its parameters.
"""

from __future__ import annotations

import json
import math
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from sqlalchemy.engine import Engine

from mathverify_sweep.config import PromotionConfig, SweepConfig
from mathverify_sweep.specs import Metrics, RunResult, RunSpec, TrainParams
from mathverify_sweep.states import EndReason, Verdict
from mathverify_sweep.store import promotions, runs, studies
from mathverify_sweep.store.database import connect, upgrade
from mathverify_sweep.store.runs import Claim, Point, WorkerIdentity
from mathverify_sweep.study import plans, study
from mathverify_sweep.study.study import StudyHandle

NAME = "fractions"
START = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
WORKER = WorkerIdentity("w0rker01", "node-1", 4242, "cpu")
ROWS = 800
SPACE = {
    "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    "lora_r": {"choices": [4, 8, 16, 32]},
    "lr_scheduler_type": {"choices": ["cosine", "warmup_stable_decay"]},
    "lr_decay_share": {"low": 0.1, "high": 0.5, "when": {"lr_scheduler_type": "warmup_stable_decay"}},
}


def config(**changes: object) -> SweepConfig:
    """The sweep file of the example."""
    given = {
        "study": NAME,
        "data": {"train_rows": ROWS},
        "search_space": SPACE,
        "sampler": {"n_startup_trials": 4, "seed": 3},
        "pruner": {"type": "median", "min_rows": 100, "n_startup_trials": 5},
        "budget": {"trials": 14},
        "promotion": {"stages": [1_000, 2_000, 4_000]},
    }
    return SweepConfig.model_validate(given | changes)


def metrics(accuracy: float, rows: int = 1_000) -> Metrics:
    """Figures that fit together, roughly."""
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / rows)
    right = round(accuracy * rows)
    return Metrics(
        rows=rows,
        accuracy=accuracy,
        accuracy_low=accuracy - half,
        accuracy_high=accuracy + half,
        precision=accuracy - 0.02,
        recall=accuracy - 0.01,
        f1=accuracy - 0.015,
        log_loss=1.1 - accuracy,
        auc=min(0.99, accuracy + 0.05),
        true_positives=right * 4 // 10,
        false_positives=(rows - right) // 2,
        true_negatives=right - right * 4 // 10,
        false_negatives=rows - right - (rows - right) // 2,
        threshold=0.12,
        accuracy_at_threshold=accuracy + 0.002,
    )


def empty(engine: Engine, **changes: object) -> StudyHandle:
    """The study just after `mvsweep create`."""
    study.create(engine, config(**changes), "f00dfeed" * 8, START)
    studies.save_baselines(
        engine,
        NAME,
        json.dumps({"majority": metrics(0.6).model_dump(), "bag_of_words": metrics(0.61).model_dump()}),
    )
    return study.open_study(engine, NAME)


def example(engine: Engine, folder: Path, trials: int = 12) -> None:
    """The study of the module's docstring; artifacts go to `folder`."""
    with empty(engine) as handle:
        handle.enqueue({"learning_rate": 6e-4, "lora_r": 16, "lr_scheduler_type": "cosine"})
        player = Player(engine, handle, folder)
        for number in range(trials):
            player.trial(diverges=number == 5, dies_once=number == 2)
        player.promote(0)
        player.start_a_trial()
        handle.enqueue({"learning_rate": 3e-4, "lora_r": 8, "lr_scheduler_type": "cosine"})


@contextmanager
def example_database(folder: Path) -> Iterator[Engine]:
    """A SQLite database with the example in it, in `folder`; it is played once a process, and copied."""
    file = folder / "example.sqlite3"
    file.write_bytes(_played())
    engine = connect(f"sqlite:///{file}")
    yield engine
    engine.dispose()


@dataclass
class Player:
    """Plays a worker, without training."""

    engine: Engine
    handle: StudyHandle
    folder: Path
    now: datetime = field(default=START)

    def trial(self, diverges: bool = False, dies_once: bool = False) -> None:
        """One trial from ask to tell; one that dies once is finished by its second attempt."""
        claim = self._claimed()
        assert claim.spec is not None
        if dies_once:
            self._tick(30)
            lost = RunResult(end_reason=EndReason.PREEMPTED, message="the host went away", rows_seen=100)
            runs.finish(self.engine, claim, lost, self.now, retry=claim.spec)
            again = runs.claim_waiting(self.engine, NAME, WORKER, self.now)
            assert again is not None
            claim = again
        result = RunResult(end_reason=EndReason.DIVERGED, rows_seen=200) if diverges else self._trained(claim)
        self._tick(60)
        runs.finish(self.engine, claim, result, self.now)
        ended = runs.get(self.engine, claim.run_id)
        points = runs.points(self.engine, claim.run_id)
        link = f"/somewhere/wandb/offline-run-{claim.run_id}"
        self.handle.show(ended, points, link, self.folder)
        self.handle.tell(ended.spec.trial_number if ended.spec else 0, result)

    def promote(self, trial_number: int) -> None:
        """Three cumulative stages, played to their end."""
        params = TrainParams(learning_rate=6e-4, lora_r=16)
        settings = PromotionConfig(stages=(1_000, 2_000, 4_000))
        stages = plans.plan(self._spec(trial_number, params), 4_000, settings)
        promotions.record(self.engine, NAME, trial_number, settings.key, stages, self.now)
        for _ in stages:
            claim = runs.claim_waiting(self.engine, NAME, WORKER, self.now)
            assert claim is not None
            assert claim.spec is not None
            start = claim.spec.start_from[-1] if claim.spec.start_from else None
            result = self._trained(claim).model_copy(update={"started_from": start})
            self._tick(claim.spec.train_rows / 8)
            runs.finish(self.engine, claim, result, self.now)

    def start_a_trial(self) -> Claim:
        """A trial that is half-way."""
        claim = self._claimed()
        runs.progress(self.engine, claim, [Point(100, 0.7, 0.5, 1e-4), Point(150, None, 0.45, 1e-4)])
        self._tick(20)
        runs.renew(self.engine, claim, self.now)
        return claim

    def _claimed(self) -> Claim:
        place = runs.reserve(self.engine, NAME, WORKER, runs.Budget(None, None, None), self.now)
        asked = self.handle.ask()
        assert place is not None
        assert asked is not None
        spec = self._spec(asked.trial_number, asked.params)
        assert runs.attach(self.engine, place, asked.trial_number, spec)
        return Claim(place.run_id, place.lease_token, place.attempt, asked.trial_number, spec, None)

    def _spec(self, trial_number: int, params: TrainParams) -> RunSpec:
        return self.handle.config.trial_spec(trial_number, params, self.handle.data_fingerprint)

    def _trained(self, claim: Claim) -> RunResult:
        spec = claim.spec
        assert spec is not None
        peak = 0.92 - 0.09 * abs(math.log10(spec.params.learning_rate / 5e-4)) + 0.001 * spec.params.lora_r
        for seen in range(25, spec.train_rows + 1, 25):
            value = 0.6 + (peak - 0.6) * (1 - math.exp(-seen / 400))
            point = Point(seen, None, 1.2 - value + 0.03 * math.sin(seen), spec.params.learning_rate)
            if seen in spec.rungs:
                point = Point(seen, value, point.loss, point.learning_rate)
                runs.progress(self.engine, claim, [point])
                if self.handle.report(spec.trial_number, seen, value) is Verdict.PRUNE:
                    return RunResult(end_reason=EndReason.PRUNED, rows_seen=seen, train_seconds=seen / 10)
            elif seen % 100 == 0:
                runs.progress(self.engine, claim, [point])
        found = metrics(round(0.6 + (peak - 0.6) * (1 - math.exp(-spec.train_rows / 400)), 4))
        log_odds = tuple(math.sin(i) for i in range(found.rows))
        return RunResult(
            end_reason=EndReason.FINISHED,
            value=found.accuracy,
            metrics=found,
            log_odds=log_odds,
            rows_seen=spec.train_rows,
            optimizer_steps=spec.train_rows // spec.params.effective_batch_size,
            train_seconds=spec.train_rows / 10,
            eval_seconds=3.0,
            adapter=f"{NAME}/{claim.run_id}/adapter",
        )

    def _tick(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@cache
def _played() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "example.sqlite3"
        engine = connect(f"sqlite:///{file}")
        upgrade(engine)
        example(engine, Path(folder) / "artifacts")
        engine.dispose()
        with closing(sqlite3.connect(file)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return file.read_bytes()
