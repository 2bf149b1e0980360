"""A stage is left out when the one before it is known to have brought too little, and only then."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep.config import PromotionConfig
from mathverify_sweep.data import dataset
from mathverify_sweep.data.rows import Row
from mathverify_sweep.specs import DataSpec, RunResult, RunSpec
from mathverify_sweep.states import EndReason
from mathverify_sweep.store import promotions, runs, studies
from mathverify_sweep.store.runs import Claim, WorkerIdentity
from mathverify_sweep.study import plans
from mathverify_sweep.worker.ancestry import ancestry
from mathverify_sweep.worker.gain import unneeded

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ME = WorkerIdentity("w", "host", 1, "cpu")
DATA = DataSpec(generated_rows=1500, validation_share=0.4)
sqlite = pytest.mark.parametrize("backend", ["sqlite"])


def claimed(engine: Engine) -> Claim:
    claim = runs.claim_waiting(engine, "s", ME, NOW)
    assert claim is not None
    return claim


def finish(engine: Engine, claim: Claim, share: float) -> None:
    """A stage that gets so much of validation right: the first rows, so that stages err on the same ones."""
    rows: tuple[Row, ...] = dataset.load(DATA).validation
    truth = np.array([1.0 if row.is_correct else -1.0 for row in rows])
    odds = np.where(np.arange(len(rows)) < share * len(rows), truth, -truth)
    result = RunResult(end_reason=EndReason.FINISHED, value=share, log_odds=tuple(odds), adapter="a")
    assert runs.finish(engine, claim, result, NOW)


def third(engine: Engine, spec: RunSpec, least: float | None, plan: str, *shares: float) -> str | None:
    """What is said of the stage that comes after stages with these accuracies."""
    studies.create(engine, studies.StudyRecord("s", "{}", "f", None, None, NOW))
    trial = spec.model_copy(update={"data": DATA})
    settings = PromotionConfig.model_validate({"plan": plan, "stages": [100, 200, 300], "least_gain": least})
    promotions.record(engine, "s", 0, settings.key, plans.plan(trial, 300, settings), NOW)
    for share in shares:
        finish(engine, claimed(engine), share)
    claim = claimed(engine)
    assert claim.spec is not None
    return unneeded(engine, claim, claim.spec)


@sqlite
def test_a_stage_after_one_that_is_known_to_have_brought_too_little_is_not_needed(
    engine: Engine, spec: RunSpec
) -> None:
    why = third(engine, spec, 0.05, "cumulative", 0.8, 0.81)
    assert why is not None
    assert why.startswith("not needed: stage 2 brought +1.0")
    assert why.endswith("over stage 1, below promotion.least_gain = 0.05")


@sqlite
@pytest.mark.parametrize(("least", "last"), [(0.005, 0.802), (0.05, 0.9), (None, 0.5)])
def test_a_gain_that_is_large_or_unsure_or_not_asked_for_goes_on(
    engine: Engine, spec: RunSpec, least: float | None, last: float
) -> None:
    assert third(engine, spec, least, "sequential", 0.8, last) is None


@sqlite
def test_one_finished_stage_has_nothing_to_be_held_against(engine: Engine, spec: RunSpec) -> None:
    assert third(engine, spec, 0.5, "replay", 0.8) is None


@sqlite
def test_pieces_of_a_trunk_do_not_count(engine: Engine, spec: RunSpec) -> None:
    """Piece, cooldown, piece: the second piece is no worse a stage for not having cooled down."""
    assert third(engine, spec, 0.2, "trunk", 0.4, 0.8, 0.4) is None


@sqlite
@pytest.mark.parametrize(
    ("shares", "start"),
    [((0.9, 0.6), 1), ((0.8, 0.798), 2), ((0.8, 0.9), 2), ((0.9, 0.6, 0.5), 1), ((0.6, 0.9, 0.5), 2)],
)
def test_a_stage_goes_back_only_over_one_that_is_known_to_be_worse(
    engine: Engine, spec: RunSpec, tmp_path: Path, shares: tuple[float, ...], start: int
) -> None:
    studies.create(engine, studies.StudyRecord("s", "{}", "f", None, None, NOW))
    stages = [100, 200, 300, 400][: len(shares) + 1]
    settings = PromotionConfig.model_validate({"plan": "sequential", "stages": stages, "go_back": True})
    trial = spec.model_copy(update={"data": DATA})
    promotions.record(engine, "s", 0, settings.key, plans.plan(trial, 400, settings), NOW)
    done = []
    for share in shares:
        done.append(claimed(engine))
        finish(engine, done[-1], share)
    claim = claimed(engine)
    assert claim.spec is not None
    found = ancestry(engine, claim, claim.spec, tmp_path)
    assert found.started_from == done[start - 1].run_id
    assert found.start_adapter == tmp_path / "a"
