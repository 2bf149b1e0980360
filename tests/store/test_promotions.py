"""Promotions: said twice they are one, their stages wait for each other, and failed stages can be tried again."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep.errors import StudyError
from mathverify_sweep.specs import PlannedStage, RunResult, RunSpec
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store import promotions, runs, studies
from mathverify_sweep.store.runs import Claim, WorkerIdentity

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANN = WorkerIdentity("ann", "host-a", 11, "cuda:0")
FINISHED = RunResult(end_reason=EndReason.FINISHED)
CRASHED = RunResult(end_reason=EndReason.CRASHED)


@pytest.fixture
def study(engine: Engine) -> Engine:
    studies.create(engine, studies.StudyRecord("s", "{}", "f", None, None, NOW))
    return engine


@pytest.fixture
def stages(spec: RunSpec) -> list[PlannedStage]:
    """Cumulative: each waits for the one before, and starts from the best of all before."""
    return [
        PlannedStage(
            spec=_stage(spec, number + 1), after=number - 1 if number else None, start_from=tuple(range(number))
        )
        for number in range(3)
    ]


def _stage(spec: RunSpec, stage: int) -> RunSpec:
    return spec.model_copy(update={"trial_number": 4, "stage": stage, "train_rows": 100 * stage})


def claim(engine: Engine) -> Claim:
    claim = runs.claim_waiting(engine, "s", ANN, NOW)
    assert claim is not None
    assert runs.claim_waiting(engine, "s", ANN, NOW) is None
    return claim


def start_from(engine: Engine, run_id: str) -> tuple[str, ...]:
    spec = runs.get(engine, run_id).spec
    assert spec is not None
    return spec.start_from


def test_stages_run_one_after_the_other_from_the_adapters_before_them(
    study: Engine, stages: list[PlannedStage]
) -> None:
    promotion_id, created = promotions.record(study, "s", 4, "cumulative", stages, NOW)
    assert created
    (promotion,) = promotions.promotions(study, "s")
    assert (promotion.promotion_id, promotion.trial_number, promotion.plan) == (promotion_id, 4, "cumulative")
    for stage, run_id in enumerate(promotion.run_ids):
        running = claim(study)
        assert running.run_id == run_id
        assert running.spec is not None
        assert running.spec.stage == stage + 1
        assert running.spec.start_from == promotion.run_ids[:stage]
        assert runs.finish(study, running, FINISHED, NOW)
    assert runs.claim_waiting(study, "s", ANN, NOW) is None


def test_a_promotion_recorded_twice_is_one(study: Engine, stages: list[PlannedStage]) -> None:
    first = promotions.record(study, "s", 4, "cumulative", stages, NOW)
    assert promotions.record(study, "s", 4, "cumulative", stages, NOW) == (first[0], False)
    assert len(runs.runs(study, "s")) == 3
    other, created = promotions.record(study, "s", 4, "another", stages, NOW)
    assert created
    assert other != first[0]


def test_stages_behind_a_retried_one_wait_for_and_start_from_its_next_attempt(
    study: Engine, stages: list[PlannedStage]
) -> None:
    promotions.record(study, "s", 4, "cumulative", stages, NOW)
    first = claim(study)
    assert first.spec is not None
    runs.finish(study, first, RunResult(end_reason=EndReason.PREEMPTED), NOW, retry=first.spec)
    (promotion,) = promotions.promotions(study, "s")
    assert first.run_id not in promotion.run_ids
    second = claim(study)
    assert (second.run_id, second.continues) == (promotion.run_ids[0], first.run_id)
    assert start_from(study, promotion.run_ids[1]) == promotion.run_ids[:1]
    assert start_from(study, promotion.run_ids[2]) == promotion.run_ids[:2]
    runs.finish(study, second, FINISHED, NOW)
    assert claim(study).run_id == promotion.run_ids[1]


def test_a_cooldown_and_the_next_piece_of_a_trunk_wait_for_its_piece_only_and_follow_its_retry(
    study: Engine, spec: RunSpec
) -> None:
    trunk = [
        PlannedStage(spec=_stage(spec, 1)),
        PlannedStage(spec=_stage(spec, 2), after=0, goes_on_from=0),
        PlannedStage(spec=_stage(spec, 3), after=0, goes_on_from=0),
    ]
    promotions.record(study, "s", 4, "trunk", trunk, NOW)
    first = claim(study)
    assert first.spec is not None
    runs.finish(study, first, RunResult(end_reason=EndReason.PREEMPTED), NOW, retry=first.spec)
    piece = claim(study)
    runs.finish(study, piece, FINISHED, NOW)
    together = [runs.claim_waiting(study, "s", ANN, NOW) for _ in range(2)]
    for follower in together:
        assert follower is not None
        assert follower.spec is not None
        assert follower.spec.goes_on_from == piece.run_id
        assert follower.spec.start_from == ()


def test_a_failed_promotion_is_resumed_from_the_stage_that_failed(study: Engine, stages: list[PlannedStage]) -> None:
    promotion_id, _ = promotions.record(study, "s", 4, "cumulative", stages, NOW)
    runs.finish(study, claim(study), FINISHED, NOW)
    crashed = claim(study)
    runs.finish(study, crashed, CRASHED, NOW)
    before = promotions.promotions(study, "s")[0].run_ids
    assert runs.claim_waiting(study, "s", ANN, NOW) is None
    again = promotions.resume(study, promotion_id, NOW)
    after = promotions.promotions(study, "s")[0].run_ids
    assert after == (before[0], *again)
    assert promotions.resume(study, promotion_id, NOW) == ()
    for stage in (1, 2):
        running = claim(study)
        assert running.run_id == after[stage]
        assert (running.attempt, running.failures) == (2, 0)
        assert running.continues == (crashed.run_id if stage == 1 else None)  # stage 3 had not started
        assert start_from(study, running.run_id) == after[:stage]
        runs.finish(study, running, FINISHED, NOW)
    assert [runs.get(study, run_id).state for run_id in after] == [RunState.COMPLETE] * 3


def test_an_unknown_promotion_cannot_be_resumed(study: Engine) -> None:
    with pytest.raises(StudyError, match="no promotion has the id 'x'"):
        promotions.resume(study, "x", NOW)
