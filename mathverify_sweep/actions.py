"""What a person asks of a study, as functions: create it, queue trials and promotions, stop it.

The command line only parses and prints. Nothing here trains or loads a model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mathverify_sweep import sweep_file
from mathverify_sweep.config import PromotionConfig, SweepConfig
from mathverify_sweep.data import baselines, dataset, injected
from mathverify_sweep.data.write import write
from mathverify_sweep.errors import ConfigError
from mathverify_sweep.reports.checked import load_data
from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store import promotions, runs, studies
from mathverify_sweep.store.runs import Claim
from mathverify_sweep.study import plans, promotion
from mathverify_sweep.study import study as study_page

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.store.runs import RunRecord
    from mathverify_sweep.study.study import StudyHandle


@dataclass(frozen=True)
class Promoted:
    """A trial and the promotion that holds its stages; `created` is False when it was there before."""

    trial_number: int
    plan: str
    promotion_id: str
    created: bool
    stages: tuple[RunSpec, ...]


def create(database: Database, config: SweepConfig) -> bool:
    """Create the study of a sweep file with its baselines; False when the same study is there already.

    Raises StudyError when the name is taken by a study with another configuration.
    """
    data = load_data(config)
    created = study_page.create(database, config, data.fingerprint, datetime.now(UTC))
    if studies.get(database, config.study).baselines is None:
        figures = {name: found.model_dump() for name, found in baselines.baselines(data).items()}
        studies.save_baselines(database, config.study, json.dumps(figures))
    return created


def stop(database: Database, study: StudyHandle, now: bool) -> int:
    """Hand out no more runs; with `now` take the running ones back from their workers. How many were taken back."""
    name = study.config.study
    studies.stop(database, name, "stopped by user")
    held = [run for run in runs.runs(database, name) if now and run.state is RunState.RUNNING]
    running = [run for run in held if not runs.release(database, _claim(run))]  # a place without a trial is given up
    result = RunResult(end_reason=EndReason.STOPPED_BY_USER, message="stopped by user")
    ended = sum(runs.finish(database, _claim(run), result, datetime.now(UTC)) for run in running)
    if now:
        study.reconcile(time.monotonic(), 0.0)
    return ended


def enqueue(study: StudyHandle, settings: Sequence[str], table: Path | None) -> int:
    """Queue settings as trials: one from `axis=value` texts, or one for each row of a CSV. How many were queued.

    Nothing is queued when one of them is wrong. Raises ConfigError with every problem.
    """
    rows = [sweep_file.assignments(settings)] if settings else []
    rows += sweep_file.read_table(table) if table else []
    if not rows:
        raise ConfigError("enqueue", ["give --set axis=value, or --table FILE.csv"])
    space = study.config.space
    problems = [p for i, row in enumerate(rows, 1) for p in sweep_file.enqueue_problems(space, row, f"row {i}")]
    if problems:
        raise ConfigError(str(table or "enqueue"), problems)
    for row in rows:
        study.enqueue(row)
    return len(rows)


def build_rows(source: Path, target: Path, wrong_share: float, seed: int) -> int:
    """Write labelled rows made from correct solutions, as parquet, CSV or JSONL. How many."""
    rows = injected.build(injected.read_worked(str(source)), seed, wrong_share)
    write(rows, target)
    return len(rows)


def promote(
    database: Database, study: StudyHandle, top: int, trial: int | None, overrides: Sequence[str] = ()
) -> list[Promoted]:
    """Queue the long runs of the best `top` trials, or of one trial, by the study's plan with `promotion.key=value`
    overrides. Said twice, it changes nothing; another plan is another promotion.

    A promotion with stages that failed gets them queued again.
    """
    settings = sweep_file.promotion(study.config, overrides)
    chosen = promotion.select(study, top) if trial is None else [trial]
    available = len(dataset.load(study.config.data_spec).train)
    return [_promote(database, study, number, available, settings) for number in chosen]


def _promote(
    database: Database, study: StudyHandle, number: int, available: int, settings: PromotionConfig
) -> Promoted:
    stages = plans.plan(promotion.spec_of(study, number), available, settings)
    now = datetime.now(UTC)
    promotion_id, created = promotions.record(database, study.config.study, number, settings.key, stages, now)
    if not created:
        promotions.resume(database, promotion_id, now)
    return Promoted(number, settings.plan, promotion_id, created, tuple(stage.spec for stage in stages))


def _claim(run: RunRecord) -> Claim:
    assert run.lease_token is not None
    return Claim(run.run_id, run.lease_token, run.attempt, run.trial_number, run.spec, run.continues, run.failures)
