"""Runs: reserved within the budget, claimed once, written under their token, ended once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep.errors import StudyError
from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store import runs, studies
from mathverify_sweep.store.database import connect
from mathverify_sweep.store.runs import Budget, Claim, Point, WorkerIdentity

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANN = WorkerIdentity("ann", "host-a", 11, "cuda:0")
BOB = WorkerIdentity("bob", "host-b", 22, "cuda:1")
ENDLESS = Budget(None, None, None)
FINISHED = RunResult(end_reason=EndReason.FINISHED, value=0.8, log_odds=(1.5, -2.25, 0.1))
LOST = RunResult(end_reason=EndReason.PREEMPTED, message="SIGTERM")


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.fixture
def study(engine: Engine) -> Engine:
    studies.create(engine, studies.StudyRecord("s", "{}", "f", None, None, NOW))
    return engine


def start(
    engine: Engine, spec: RunSpec, trial: int = 0, budget: Budget = ENDLESS, worker: WorkerIdentity = ANN
) -> Claim:
    """A run that trains, ANN's or that of another worker."""
    claim = runs.reserve(engine, "s", worker, budget, NOW)
    assert claim is not None
    assert runs.attach(engine, claim, trial, spec.model_copy(update={"trial_number": trial}))
    return claim


def test_a_reservation_becomes_a_trial_that_ends(study: Engine, spec: RunSpec) -> None:
    claim = start(study, spec, trial=7)
    assert runs.renew(study, claim, later(10))
    assert runs.finish(study, claim, FINISHED, later(30))
    (run,) = runs.runs(study, "s")
    assert run == runs.get(study, claim.run_id[:6])
    assert (run.state, run.end_reason, run.attempt, run.trial_number) == (RunState.COMPLETE, EndReason.FINISHED, 1, 7)
    assert run.spec == spec.model_copy(update={"trial_number": 7})
    assert (run.worker, run.renewals, run.renewed_at, run.busy_seconds) == (ANN, 1, later(10), 30.0)
    assert run.result == FINISHED.model_copy(update={"log_odds": ()})


def test_attaching_or_releasing_twice_is_harmless(study: Engine, spec: RunSpec) -> None:
    claim = start(study, spec)
    assert runs.attach(study, claim, 0, spec)
    assert not runs.attach(study, claim, 1, spec)
    assert not runs.release(study, claim)  # it has its trial
    empty = runs.reserve(study, "s", ANN, ENDLESS, NOW)
    assert empty is not None
    assert runs.release(study, empty)
    assert not runs.release(study, empty)
    assert not runs.attach(study, empty, 1, spec)
    assert len(runs.runs(study, "s")) == 1


def test_a_budget_counts_trials_not_attempts_stages_or_released_reservations(study: Engine, spec: RunSpec) -> None:
    two = Budget(2, None, None)
    first = start(study, spec, trial=0, budget=two)
    dropped = runs.reserve(study, "s", BOB, two, NOW)
    assert dropped is not None
    assert runs.reserve(study, "s", ANN, two, NOW) is None
    runs.release(study, dropped)
    runs.finish(study, first, LOST, later(1), retry=spec)
    runs.enqueue(study, spec.model_copy(update={"stage": 1, "trial_number": 5}), NOW)
    start(study, spec, trial=1, budget=two)
    assert runs.reserve(study, "s", ANN, two, NOW) is None


def test_gpu_time_is_that_of_ended_runs_and_of_running_ones_so_far(study: Engine, spec: RunSpec) -> None:
    """Two runs of ANN shared her GPU, so its time counts once."""
    hundred = Budget(None, 100.0, None)
    both = [start(study, spec), start(study, spec, trial=2)]
    for run in both:
        runs.finish(study, run, FINISHED, later(60))
    start(study, spec, trial=1, worker=BOB)
    last = runs.reserve(study, "s", BOB, hundred, later(39))
    assert last is not None
    runs.release(study, last)
    assert runs.reserve(study, "s", BOB, hundred, later(40)) is None


def test_nothing_is_reserved_after_the_deadline(study: Engine) -> None:
    until = Budget(None, None, later(10))
    assert runs.reserve(study, "s", ANN, until, later(9)) is not None
    assert runs.reserve(study, "s", ANN, until, later(10)) is None


def test_a_stopped_study_hands_out_nothing_until_it_is_resumed(study: Engine, spec: RunSpec) -> None:
    runs.enqueue(study, spec, NOW)
    studies.stop(study, "s", "enough")
    assert runs.reserve(study, "s", ANN, ENDLESS, NOW) is None
    assert runs.claim_waiting(study, "s", ANN, NOW) is None
    studies.resume(study, "s")
    assert runs.claim_waiting(study, "s", ANN, NOW) is not None
    assert runs.reserve(study, "s", ANN, ENDLESS, NOW) is not None


def test_an_unknown_study_is_an_error(study: Engine) -> None:
    with pytest.raises(StudyError, match="It has: s"):
        runs.reserve(study, "other", ANN, ENDLESS, NOW)
    with pytest.raises(StudyError, match="no study is named"):
        runs.claim_waiting(study, "other", ANN, NOW)


def test_waiting_runs_are_claimed_oldest_first_each_once(study: Engine, spec: RunSpec) -> None:
    queued = [runs.enqueue(study, spec.model_copy(update={"trial_number": n}), NOW) for n in range(3)]
    claims = [runs.claim_waiting(study, "s", worker, NOW) for worker in (ANN, BOB, ANN)]
    assert [claim.run_id for claim in claims if claim] == queued
    assert [claim.spec.trial_number for claim in claims if claim and claim.spec] == [0, 1, 2]
    assert runs.claim_waiting(study, "s", BOB, NOW) is None
    assert runs.get(study, queued[1]).worker == BOB


def test_a_run_begins_no_earlier_than_it_was_queued(study: Engine, spec: RunSpec) -> None:
    """Whoever claims it looked at its clock, and then waited for the one who ended the attempt before."""
    preempted = RunResult(end_reason=EndReason.PREEMPTED)
    assert runs.finish(study, start(study, spec), preempted, later(30), retry=spec)
    assert runs.claim_waiting(study, "s", ANN, later(29.5))
    first, again = runs.runs(study, "s")
    assert (first.ended_at, again.started_at, again.renewed_at) == (later(30), later(30), later(30))


@pytest.mark.parametrize(
    ("ending", "claimable"),
    [(EndReason.FINISHED, True), (EndReason.PRUNED, True), (EndReason.DIVERGED, True), (EndReason.CRASHED, False)],
)
def test_a_run_waits_for_the_one_before_to_end_well(
    study: Engine, spec: RunSpec, ending: EndReason, claimable: bool
) -> None:
    first = start(study, spec)
    second = runs.enqueue(study, spec, NOW, after=first.run_id)
    assert runs.claim_waiting(study, "s", BOB, NOW) is None
    runs.finish(study, first, RunResult(end_reason=ending), later(1))
    claim = runs.claim_waiting(study, "s", BOB, NOW)
    assert (claim is not None and claim.run_id == second) is claimable


def test_runs_behind_one_that_failed_for_good_end_with_it(study: Engine, spec: RunSpec) -> None:
    first = start(study, spec)
    second = runs.enqueue(study, spec, NOW, after=first.run_id)
    third = runs.enqueue(study, spec, NOW, after=second)
    runs.finish(study, first, RunResult(end_reason=EndReason.CRASHED), later(1))
    for run_id in (second, third):
        run = runs.get(study, run_id)
        assert (run.state, run.end_reason, run.busy_seconds) == (RunState.FAIL, EndReason.CRASHED, 0.0)
        assert run.result is not None
        assert f"run {first.run_id}" in run.result.message


def test_points_of_the_same_rows_complete_each_other(study: Engine, spec: RunSpec) -> None:
    claim = start(study, spec)
    assert runs.progress(study, claim, [])
    first = [Point(64, loss=0.5, learning_rate=1e-4), Point(32, loss=0.7), Point(64, value=0.6)]
    for _ in range(2):
        assert runs.progress(study, claim, first)
    assert runs.progress(study, claim, [Point(64, loss=0.4), Point(96, loss=float("nan"), value=float("inf"))])
    assert runs.points(study, claim.run_id) == [Point(32, loss=0.7), Point(64, 0.6, 0.4, 1e-4), Point(96)]
    assert runs.points_of_study(study, "s") == {claim.run_id: tuple(runs.points(study, claim.run_id))}
    assert runs.points_of_study(study, "another") == {}
    assert runs.get(study, claim.run_id).points == 3


def test_an_ended_run_is_never_rewritten(study: Engine, spec: RunSpec) -> None:
    claim = start(study, spec)
    runs.finish(study, claim, FINISHED, later(1))
    before = runs.get(study, claim.run_id)
    assert not runs.finish(study, claim, LOST, later(2), retry=spec)
    assert not runs.renew(study, claim, later(2))
    assert not runs.progress(study, claim, [Point(1, 0.5)])
    assert not runs.attach(study, claim, 0, spec)
    assert not runs.release(study, claim)
    assert runs.runs(study, "s") == [before]
    assert runs.points(study, claim.run_id) == []


def test_a_wrong_token_writes_nothing(study: Engine, spec: RunSpec) -> None:
    claim = start(study, spec)
    before = runs.get(study, claim.run_id)
    stale = Claim(claim.run_id, "another", 1, 0, spec, None)
    assert not runs.finish(study, stale, FINISHED, later(1))
    assert not runs.renew(study, stale, later(1))
    assert not runs.progress(study, stale, [Point(1, 0.5)])
    assert not runs.keep_late(study, stale, FINISHED)
    assert runs.runs(study, "s") == [before]
    assert runs.log_odds(study, claim.run_id, "validation") is None


def test_a_retry_is_a_new_run_that_continues_the_old(study: Engine, spec: RunSpec) -> None:
    claim = start(study, spec)
    smaller = spec.model_copy(update={"micro_batch_tokens": 512})
    memory = RunResult(end_reason=EndReason.OUT_OF_MEMORY, message="CUDA out of memory")
    assert runs.finish(study, claim, memory, later(5), retry=smaller)
    again = runs.claim_waiting(study, "s", BOB, later(6))
    assert again is not None
    assert (again.attempt, again.continues, again.spec, again.failures) == (2, claim.run_id, smaller, 0)
    assert again.lease_token != claim.lease_token
    hung = RunResult(end_reason=EndReason.HUNG)
    assert runs.finish(study, again, hung, later(9), retry=smaller)
    third = runs.claim_waiting(study, "s", ANN, later(9))
    assert third is not None
    assert (third.attempt, third.continues, third.failures) == (3, again.run_id, 1)
    assert [run.state for run in runs.runs(study, "s")] == [RunState.FAIL, RunState.FAIL, RunState.RUNNING]


def test_a_late_result_is_kept_for_a_person_once(study: Engine, spec: RunSpec) -> None:
    claim = start(study, spec)
    assert not runs.keep_late(study, claim, FINISHED)  # not late: it still runs
    runs.finish(study, claim, LOST, later(5), retry=spec)
    assert runs.keep_late(study, claim, FINISHED)
    assert not runs.keep_late(study, claim, FINISHED)
    run = runs.get(study, claim.run_id)
    assert run.late_result == FINISHED
    assert run.result == LOST


def test_a_result_said_again_is_not_late(study: Engine, spec: RunSpec) -> None:
    claim = start(study, spec)
    runs.finish(study, claim, FINISHED, later(5))
    assert not runs.keep_late(study, claim, FINISHED)
    assert runs.get(study, claim.run_id).late_result is None


def test_log_odds_come_back_as_float32(study: Engine, spec: RunSpec) -> None:
    claim = start(study, spec)
    runs.finish(study, claim, FINISHED, later(5))
    back = runs.log_odds(study, claim.run_id, "validation")
    assert back is not None
    assert back.dtype == np.float32
    assert back.tolist() == np.array([1.5, -2.25, 0.1], dtype=np.float32).tolist()
    runs.save_log_odds(study, claim.run_id, "test", [1.0])
    runs.save_log_odds(study, claim.run_id, "test", [2.0, 3.0])
    again = runs.log_odds(study, claim.run_id, "test")
    assert again is not None
    assert again.tolist() == [2.0, 3.0]
    assert runs.log_odds(study, claim.run_id, "gate") is None


def test_a_clock_set_back_makes_no_negative_gpu_time(study: Engine, spec: RunSpec) -> None:
    claim = start(study, spec)
    runs.finish(study, claim, FINISHED, later(-3600))
    assert runs.get(study, claim.run_id).busy_seconds == 0.0


def test_a_run_is_named_by_any_unique_beginning(study: Engine, spec: RunSpec) -> None:
    ids = [runs.enqueue(study, spec, NOW) for _ in range(2)]
    assert runs.get(study, ids[0]).run_id == ids[0]
    for name in ("", "zzzz", "%", "_"):
        with pytest.raises(StudyError, match="a run is named by its id or the beginning of it"):
            runs.get(study, name)


def test_a_budget_is_exact_however_many_ask_at_once(study: Engine) -> None:
    five = Budget(5, 1_000.0, later(100))

    def ask(_number: int) -> list[Claim | None]:
        engine = connect(study.url.render_as_string(hide_password=False))
        taken = [runs.reserve(engine, "s", ANN, five, NOW) for _ in range(2)]
        engine.dispose()
        return taken

    with ThreadPoolExecutor(8) as pool:
        claims = [claim for taken in pool.map(ask, range(8)) for claim in taken if claim is not None]
    assert len({claim.run_id for claim in claims}) == len(claims) == 5
    assert len(runs.runs(study, "s")) == 5
